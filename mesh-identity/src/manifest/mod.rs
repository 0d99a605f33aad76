//! Istio's security resources as they are written: documents, metadata, selectors.
//!
//! [`read`] turns YAML or JSON text into [`Manifest`]s. The crates that own a kind read its
//! `spec` with a [`Reader`], which reports every problem with file, document, field, line and
//! column, and lets no unknown field pass.

mod json;
mod metadata;
mod node;
mod reader;
#[cfg(feature = "yaml")]
mod yaml;

use std::sync::Arc;

pub use metadata::{Attachment, Metadata, Selector, TargetRef};
pub use node::{Node, Place};
pub use reader::{Fields, Problem, Problems, Reader};

use node::{SyntaxError, Value};
use reader::Sink;

/// The API group of Istio's security resources ([SEM-RES-01]).
const GROUP: &str = "security.istio.io";

/// Longest text that is read at all, in bytes.
pub const MAX_TEXT_LEN: usize = 16 * 1024 * 1024;

/// Longest document, in bytes of JSON or characters of YAML: what a ConfigMap holds
/// ([SEC-AUTHZ-10]). A text may have many.
pub const MAX_DOCUMENT_LEN: usize = 1024 * 1024;

/// The kinds of the group that Istio serves.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[expect(clippy::exhaustive_enums, reason = "a new kind must break every loader until it decides")]
pub enum Kind {
    /// Who may do what: read by mesh-authz.
    AuthorizationPolicy,
    /// Which ports demand mutual TLS: read by mesh-authn.
    PeerAuthentication,
    /// Which tokens are believed: read by mesh-authn.
    RequestAuthentication,
}

/// One resource as its author wrote it; its `spec` is read by the crate that owns the kind.
#[derive(Clone, Debug)]
pub struct Manifest {
    source: Arc<str>,
    document: usize,
    kind: Kind,
    metadata: Metadata,
    place: Place,
    spec: Option<Node>,
}

impl Manifest {
    /// The kind.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The metadata.
    #[must_use]
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Reads the `spec` and fails with every problem that `parse` recorded.
    ///
    /// An absent `spec` is read as an empty one, as Kubernetes does.
    ///
    /// # Errors
    ///
    /// All problems recorded through the reader; never an empty list.
    pub fn parse<T>(&self, parse: impl FnOnce(&Reader<'_>) -> Option<T>) -> Result<T, Problems> {
        let empty = Node { place: self.place, value: Value::Map(Vec::new()) };
        let spec = self.spec.as_ref().filter(|spec| !matches!(spec.value, Value::Null));
        let sink = Sink::new(&self.source, self.document);
        let value = parse(&Reader::new(spec.unwrap_or(&empty), "spec", &sink));
        sink.into_result(value)
    }

    /// A problem of the resource as a whole, found after it was read.
    #[must_use]
    pub fn problem(&self, path: &str, message: impl std::fmt::Display) -> Problem {
        Problem {
            source: Arc::clone(&self.source),
            document: Some(self.document),
            place: Some(self.place),
            path: path.to_owned(),
            message: message.to_string(),
        }
    }
}

/// What a text held.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Manifests {
    /// The resources of Istio's security group, in the order written.
    pub resources: Vec<Manifest>,
    /// What was passed over because it is of another kind, as `apiVersion kind` (such as
    /// `v1 ConfigMap`), with its place.
    pub skipped: Vec<Problem>,
}

/// Reads YAML (feature `yaml`) or JSON: several documents, and `List` objects with `items`.
///
/// `source` names the text in problems. A resource without `metadata.namespace` gets
/// `default_namespace`, as `kubectl apply -n` would give it. Documents of other kinds are skipped
/// and reported, except what looks like one of ours with its `apiVersion` misspelled: that is an
/// error. A text without any document is an error: an empty file is more often a failed write than
/// a wish for no policy.
///
/// # Errors
///
/// Every problem of the text's form and of each resource's envelope.
///
/// # Examples
///
/// ```
/// # #[cfg(feature = "yaml")] {
/// let text = "
/// apiVersion: security.istio.io/v1
/// kind: PeerAuthentication
/// metadata: {name: strict, namespace: shop}
/// spec: {mtls: {mode: STRICT}}
/// ";
/// let read = mesh_identity::manifest::read(text, "strict.yaml", "default")?;
/// assert_eq!(read.resources[0].metadata().namespace, "shop");
/// # }
/// # Ok::<(), mesh_identity::manifest::Problems>(())
/// ```
pub fn read(text: &str, source: &str, default_namespace: &str) -> Result<Manifests, Problems> {
    let source: Arc<str> = Arc::from(source);
    let documents = read_trees(text, &source)?;
    let mut manifests = Manifests::default();
    let mut problems = Vec::new();
    for (at, document) in documents.iter().enumerate() {
        let sink = Sink::new(&source, at.saturating_add(1));
        let file = File { source: &source, document: at.saturating_add(1), default_namespace };
        file.read(&Reader::new(document, "", &sink), document, &mut manifests);
        if let Err(found) = sink.into_result(Some(())) {
            problems.extend(found.into_list());
        }
    }
    Problems::from_list(problems).map_or(Ok(manifests), Err)
}

/// Reads YAML or JSON of any kind, a tree for each document, within the limits of manifests.
///
/// # Errors
///
/// What is wrong with the text, and where.
pub fn read_trees(text: &str, source: &str) -> Result<Vec<Node>, Problem> {
    documents(text).map_err(|error| Problem {
        source: Arc::from(source),
        document: None,
        place: error.place,
        path: String::new(),
        message: error.message,
    })
}

fn documents(text: &str) -> Result<Vec<Node>, SyntaxError> {
    let fail = |message: String| Err(SyntaxError { place: None, message });
    if text.len() > MAX_TEXT_LEN {
        return fail(format!("longer than {MAX_TEXT_LEN} bytes"));
    }
    let trimmed = text.trim_start_matches('\u{feff}').trim_start();
    let documents = if trimmed.starts_with('{') {
        // A YAML flow map begins alike, so what is no JSON may still be YAML.
        let read = json::parse(text).map(|node| vec![node]);
        if read.is_ok() && text.len() > MAX_DOCUMENT_LEN {
            return fail(format!("a document has at most {MAX_DOCUMENT_LEN} bytes; split it"));
        }
        read.or_else(|error| yaml_or(text, error))?
    } else {
        yaml_or(text, SyntaxError { place: None, message: "not valid JSON".to_owned() })?
    };
    if documents.is_empty() {
        return fail("no document; delete the file if no policy is meant".to_owned());
    }
    Ok(documents)
}

#[cfg(feature = "yaml")]
fn yaml_or(text: &str, _: SyntaxError) -> Result<Vec<Node>, SyntaxError> {
    yaml::parse(text)
}

#[cfg(not(feature = "yaml"))]
fn yaml_or(_: &str, error: SyntaxError) -> Result<Vec<Node>, SyntaxError> {
    Err(error)
}

struct File<'a> {
    source: &'a Arc<str>,
    document: usize,
    default_namespace: &'a str,
}

impl File<'_> {
    /// Reads the envelope of one object, or of each item of a list.
    fn read(&self, reader: &Reader<'_>, node: &Node, into: &mut Manifests) {
        let mut fields = reader.fields();
        let text =
            |value: Option<Reader<'_>>| value.and_then(|value| value.text().map(str::to_owned));
        let (api_version, kind) =
            (text(fields.require("apiVersion")), text(fields.require("kind")));
        let (Some(api_version), Some(kind)) = (api_version, kind) else {
            fields.ignore_rest();
            return;
        };
        if api_version == "v1" && kind == "List" {
            let items = fields.require("items").map(|items| items.items()).unwrap_or_default();
            for item in &items {
                self.read(item, item.node(), into);
            }
            fields.ignore_rest();
            return;
        }
        let version = api_version.strip_prefix(GROUP).and_then(|rest| rest.strip_prefix('/'));
        let Some(version) = version else {
            if is_meant_for_us(&api_version, &kind) {
                // [SEC-AUTHZ-2] Skipping it would drop a policy, such as the only DENY.
                reader.problem(
                    "apiVersion must be security.istio.io/v1 or security.istio.io/v1beta1",
                );
            } else {
                into.skipped.push(self.skipped(reader, &api_version, &kind));
            }
            fields.ignore_rest();
            return;
        };
        let Some(kind) = known_kind(reader, version, &kind) else {
            fields.ignore_rest();
            return;
        };
        let metadata = fields.require("metadata");
        let metadata = metadata.and_then(|value| Metadata::read(&value, self.default_namespace));
        let spec = fields.take("spec").map(|spec| spec.node().clone());
        drop(fields.take_or_null("status"));
        fields.finish();
        if let Some(metadata) = metadata {
            let (source, document) = (Arc::clone(self.source), self.document);
            let place = node.place;
            into.resources.push(Manifest { source, document, kind, metadata, place, spec });
        }
    }

    fn skipped(&self, reader: &Reader<'_>, api_version: &str, kind: &str) -> Problem {
        let clean =
            |text: &str| -> String { text.chars().take(64).flat_map(char::escape_debug).collect() };
        Problem {
            source: Arc::clone(self.source),
            document: Some(self.document),
            place: Some(reader.place()),
            path: String::new(),
            message: format!("skipped {} {}", clean(api_version), clean(kind)),
        }
    }
}

/// Whether somebody misspelled one of our resources: its kind is ours, or its group but for letter
/// case and what follows it.
fn is_meant_for_us(api_version: &str, kind: &str) -> bool {
    let group = api_version.split('/').next().unwrap_or_default();
    let ours = ["AuthorizationPolicy", "PeerAuthentication", "RequestAuthentication"];
    group.trim().eq_ignore_ascii_case(GROUP)
        || ours.iter().any(|ours| kind.trim().eq_ignore_ascii_case(ours))
}

/// [SEM-RES-01]: versions v1 and v1beta1 of three kinds, and nothing else.
fn known_kind(reader: &Reader<'_>, version: &str, kind: &str) -> Option<Kind> {
    if !matches!(version, "v1" | "v1beta1") {
        reader.problem("unknown version of security.istio.io; write v1 or v1beta1");
        return None;
    }
    match kind {
        "AuthorizationPolicy" => Some(Kind::AuthorizationPolicy),
        "PeerAuthentication" => Some(Kind::PeerAuthentication),
        "RequestAuthentication" => Some(Kind::RequestAuthentication),
        _ => {
            reader.problem("unknown kind of security.istio.io");
            None
        }
    }
}
