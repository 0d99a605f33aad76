//! Reading manifests: what is accepted, what is refused, and that every refusal names its place.

use mesh_identity::manifest::{self, Attachment, Kind, Manifests, Problems};

fn read(text: &str) -> Result<Manifests, Problems> {
    manifest::read(text, "p.yaml", "default")
}

const POLICY: &str = "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: a, namespace: n, labels: {x: y}, uid: u}
spec: {action: ALLOW}
";

#[test]
fn sem_res_01_two_versions_of_three_kinds() {
    for version in ["v1", "v1beta1"] {
        let text = POLICY.replace("/v1", &format!("/{version}"));
        assert_eq!(read(&text).unwrap().resources[0].kind(), Kind::AuthorizationPolicy);
    }
    for (from, to) in [("/v1", "/v1alpha1"), ("AuthorizationPolicy", "ServiceRole")] {
        assert!(read(&POLICY.replace(from, to)).is_err(), "{to}");
    }
}

#[test]
fn other_kinds_are_skipped_but_reported() {
    let text = format!("apiVersion: v1\nkind: ConfigMap\ndata: {{}}\n---\n{POLICY}");
    let read = read(&text).unwrap();
    assert_eq!(read.resources.len(), 1);
    assert_eq!(
        read.skipped[0].to_string(),
        "p.yaml: document 1, line 1, column 1: skipped v1 ConfigMap"
    );
}

#[test]
fn lists_and_json_read_alike() {
    let json = r#"{"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
         "metadata": {"name": "a"}, "spec": {"action": "ALLOW"}},
        {"apiVersion": "security.istio.io/v1beta1", "kind": "PeerAuthentication",
         "metadata": {"name": "b"}}]}"#;
    let read = read(json).unwrap();
    let kinds: Vec<Kind> = read.resources.iter().map(manifest::Manifest::kind).collect();
    assert_eq!(kinds, [Kind::AuthorizationPolicy, Kind::PeerAuthentication]);
    assert_eq!(read.resources[0].metadata().namespace, "default");
}

/// Each bad text with the beginning of what is said about it.
#[test]
fn every_refusal_names_its_place() {
    let bomb = format!("{POLICY}  x: &a [1,1,1,1,1,1,1,1,1,1]\n");
    let deep_json = format!("{}{}", "{\"a\":".repeat(100), "1");
    let cases: &[(&str, &str)] = &[
        ("", "p.yaml: no document"),
        ("---\n---\n", "p.yaml: no document"),
        ("# only a comment\n", "p.yaml: no document"),
        (&"[".repeat(200_000), "p.yaml, line 1, column 6"),
        (&deep_json, "p.yaml, line "),
        ("spec:\n\taction: ALLOW\n\trules: []\n", "p.yaml, line 2, column "),
        ("\tkind: x", "p.yaml, line 1, column "),
        ("kind: x\nkind: y\n", "p.yaml, line 2, column 1: duplicate field \"kind\""),
        ("kind: !!binary x", "p.yaml, line 1, column "),
        ("a: 1\n<<: {b: 1}", "p.yaml, line 2, column 1: merge keys"),
        ("- 1\n- 2", "p.yaml: document 1, line 1, column 1: expected a map, found a list"),
        ("kind: x", "p.yaml: document 1, line 1, column 1: field apiVersion is missing"),
        (
            "apiVersion: 1\nkind: x",
            "p.yaml: document 1, line 1, column 13: apiVersion: expected text",
        ),
        ("{\"a\": 1,\n \"a\": 2}", "p.yaml, line 2, column "),
        (&bomb, "p.yaml, line 5, column "),
    ];
    for (text, want) in cases {
        let shown = read(text).unwrap_err().to_string();
        let head: String = text.chars().take(40).collect();
        assert!(shown.starts_with(want), "{head:?}: {shown}");
    }
}

#[test]
fn sem_res_03_unknown_fields_are_refused_with_their_path() {
    let text = POLICY.replace("spec:", "specs:");
    let shown = read(&text).unwrap_err().to_string();
    assert_eq!(
        shown,
        "p.yaml: document 1, line 4, column 1: specs: unknown field; remove it or correct its spelling"
    );
}

#[test]
fn all_problems_of_all_documents_are_reported_at_once() {
    let text =
        format!("{}---\n{}", POLICY.replace("spec", "spex"), POLICY.replace("name: a, ", ""));
    let problems = read(&text).unwrap_err();
    assert_eq!(problems.list().len(), 2, "{problems}");
    assert_eq!(problems.list()[1].path, "metadata");
}

#[test]
fn sem_val_01_one_attachment_only() {
    let text = POLICY.replace(
        "{action: ALLOW}",
        "{selector: {matchLabels: {a: b}}, targetRefs: [{group: g, kind: k, name: n}]}",
    );
    let manifest = &read(&text).unwrap().resources[0];
    let problems = manifest
        .parse(|spec| {
            let mut fields = spec.fields();
            let attachment = Attachment::read(&mut fields);
            fields.finish();
            Some(attachment)
        })
        .unwrap_err();
    let shown = problems.to_string();
    assert!(shown.contains("only one of selector"), "{shown}");
    assert!(shown.contains("spec.targetRefs[0]: group and kind must name"), "{shown}");
}
