//! From the text of a mesh configuration to providers, each problem with its place.

use mesh_identity::manifest::{Node, Place, Problem, read_trees};

use super::{ExtensionProvider, read};

/// Where the list stands.
const LIST: &str = "extensionProviders";

/// A configuration, and where its text begins in the file.
struct Found {
    tree: Node,
    /// Lines before it.
    lines: usize,
    /// Columns before each of its lines.
    indent: usize,
}

impl Found {
    fn place(&self, path: &str) -> Place {
        let mut place = self.tree.place_of(path);
        place.line = place.line.saturating_add(self.lines);
        place.column = place.column.saturating_add(self.indent);
        place
    }
}

pub(super) fn read_text(text: &str, source: &str) -> Result<Vec<ExtensionProvider>, Problem> {
    let found = find(text, source)?;
    let read = read::read_all(&found.tree.to_json());
    let mut providers = read.map_err(|error| {
        let path = format!("{LIST}[{}]", error.at);
        Problem::new(source, Some(found.place(&path)), path, error.message)
    })?;
    // Entries of other kinds are passed over, so a provider's number is not that of its entry.
    for provider in &mut providers {
        let Err(error) = &mut provider.config else { continue };
        let entry = entry_of(&found.tree, &provider.name);
        error.place = Some(found.place(&format!("{LIST}[{entry}].{}", error.field)));
    }
    Ok(providers)
}

/// Which entry has the name and is an authorizer.
fn entry_of(tree: &Node, name: &str) -> usize {
    let list = tree.get(LIST).map(Node::to_json).unwrap_or_default();
    let named = |entry: &serde_json::Value| {
        entry.get("name").is_some_and(|other| other == name)
            && ["envoyExtAuthzHttp", "envoyExtAuthzGrpc"]
                .iter()
                .any(|kind| entry.get(kind).is_some())
    };
    list.as_array().and_then(|list| list.iter().position(named)).unwrap_or_default()
}

/// The configuration itself, out of whatever it is wrapped in.
fn find(text: &str, source: &str) -> Result<Found, Problem> {
    let trees = read_trees(text, source)?;
    for tree in trees {
        for path in [&[][..], &["meshConfig"], &["spec", "meshConfig"]] {
            let at = path.iter().try_fold(&tree, |at, name| at.get(name));
            if let Some(at) = at.filter(|at| at.get(LIST).is_some()) {
                return Ok(Found { tree: at.clone(), lines: 0, indent: 0 });
            }
        }
        let inner = tree.get("data").and_then(|data| data.get("mesh"));
        if let Some((inner, mesh)) = inner.and_then(|inner| Some((inner, inner.as_text()?))) {
            // A block scalar is indented as a whole; its place is that of its first line.
            let lines = inner.place().line.saturating_sub(1);
            let begin = text.lines().skip(lines).find(|line| !line.trim().is_empty());
            let indent = begin.map_or(0, |line| line.len().saturating_sub(line.trim_start().len()));
            let mut trees = read_trees(mesh, source).map_err(|mut problem| {
                if let Some(place) = &mut problem.place {
                    place.line = place.line.saturating_add(lines);
                    place.column = place.column.saturating_add(indent);
                }
                problem
            })?;
            if let Some(tree) = trees.pop() {
                return Ok(Found { tree, lines, indent });
            }
        }
    }
    let message = "it has no extensionProviders".to_owned();
    Err(Problem::new(source, None, String::new(), message))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST_TEXT: &str = "\
extensionProviders:
- name: zipkin
  zipkin: {service: z, port: 9411}
- name: good
  envoyExtAuthzHttp:
    service: ext.shop.svc.cluster.local
    port: 8000
    failOpen: true
    statusOnError: \"503\"
    includeRequestBodyInCheck: {maxRequestBytes: 1024, allowPartialMessage: true}
- name: bad
  envoyExtAuthzGrpc:
    service: ext.shop.svc.cluster.local
    port: 0
";

    fn indented(by: usize) -> String {
        let indent = " ".repeat(by);
        format!("{indent}{}", LIST_TEXT.trim_end().replace('\n', &format!("\n{indent}")))
    }

    /// [SEM-EXT-04] The same list in every wrapping, its bad provider with its line.
    #[test]
    fn sem_ext_04_mesh_configuration_as_people_keep_it() {
        let wrapped = [
            (String::new(), 0, 14, 5),
            ("meshConfig:\n".to_owned(), 2, 15, 7),
            ("apiVersion: install.istio.io/v1alpha1\nkind: IstioOperator\nspec:\n  meshConfig:\n".to_owned(), 4, 18, 9),
            ("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio}\ndata:\n  mesh: |-\n".to_owned(), 4, 19, 9),
            ("kind: Other\n---\ndata:\n  mesh: |\n".to_owned(), 4, 18, 9),
        ];
        for (head, by, line, column) in wrapped {
            let text = format!("{head}{}", indented(by));
            let providers = ExtensionProvider::read_text(&text, "mesh.yaml").unwrap();
            let names: Vec<&str> = providers.iter().map(|one| one.name.as_str()).collect();
            assert_eq!(names, ["good", "bad"], "{text}");
            let good = providers.first().unwrap().config.as_ref().unwrap().settings();
            assert!(good.fail_open && good.port == 8000 && good.body.unwrap().allow_partial);
            let problem = providers.get(1).unwrap().config.as_ref().unwrap_err();
            let place = problem.place.unwrap();
            assert_eq!((place.line, place.column), (line, column), "{text}");
            assert_eq!(problem.field, "envoyExtAuthzGrpc.port");
        }
        let json = r#"{"extensionProviders": [{"name": "x", "envoyExtAuthzGrpc": {"service": "a", "port": 1}}]}"#;
        assert!(ExtensionProvider::read_text(json, "mesh.json").unwrap().remove(0).config.is_ok());
    }

    #[test]
    fn sem_ext_04_what_is_no_configuration_says_where() {
        for (text, wants) in [
            ("a: [", "mesh.yaml, line 1"),
            ("a: 1\n", "no extensionProviders"),
            ("extensionProviders: 5\n", "no list"),
            (
                "extensionProviders:\n- envoyExtAuthzGrpc: {}\n",
                "line 2, column 3: extensionProviders[0]: field name",
            ),
            ("data:\n  mesh: |\n    x: 1\n    y: [\n", "mesh.yaml, line 4"),
        ] {
            let error = ExtensionProvider::read_text(text, "mesh.yaml").unwrap_err().to_string();
            assert!(error.contains(wants), "{text}: {error}");
        }
    }
}
