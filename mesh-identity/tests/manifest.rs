//! Reading manifests: what is accepted, what is refused, and that every refusal names its place.

use std::fmt::Write as _;

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

/// A mistyped `apiVersion` would drop the only DENY policy in silence.
#[test]
fn sec_authz_2_our_resources_misspelled_are_no_others() {
    let ours = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy";
    for header in [
        "apiVersion: security.istio.io\nkind: AuthorizationPolicy",
        "apiVersion: security.istio.io\nkind: Unknown",
        "apiVersion: Security.istio.io/v1\nkind: Unknown",
        "apiVersion: secuirty.istio.io/v1\nkind: AuthorizationPolicy",
        "apiVersion: secuirty.istio.io/v1\nkind: authorizationpolicy",
        "apiVersion: v1\nkind: PeerAuthentication",
        "apiVersion: ' security.istio.io/v1'\nkind: RequestAuthentication",
    ] {
        let text = format!("{POLICY}---\n{}", POLICY.replace(ours, header));
        let shown = read(&text).unwrap_err().to_string();
        assert!(shown.contains("document 2, line 6"), "{header}: {shown}");
        assert!(shown.contains("apiVersion must be security.istio.io/v1 or"), "{header}: {shown}");
    }
    for header in [
        "apiVersion: apps/v1\nkind: Deployment",
        "apiVersion: networking.istio.io/v1\nkind: Gateway",
    ] {
        let read = read(&POLICY.replace(ours, header)).unwrap();
        assert_eq!((read.resources.len(), read.skipped.len()), (0, 1), "{header}");
    }
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

/// What an alias stands for counts before it is copied: text, values and depth.
#[test]
fn sec_authz_10_alias_bombs_are_refused() {
    let long = format!("a: &a '{}'\nb: [{}]\n", "x".repeat(512 * 1024), "*a,".repeat(170_000));
    // Each list holds the one before, 60 levels further down.
    let mut deep = String::from("- &a0 []\n");
    for at in 1..10 {
        let (open, close) = ("[".repeat(60), "]".repeat(60));
        writeln!(deep, "- &a{at} {open}*a{}{close}", at - 1).unwrap();
    }
    // Each list is copied for its own anchor and for each around it.
    let mut anchors = String::from("x: ");
    for at in 0..60 {
        write!(anchors, "[&a{at} ").unwrap();
    }
    write!(anchors, "[{}]{}", "1,".repeat(50_000), "]".repeat(60)).unwrap();
    for (text, want) in [
        (long, "anchors and aliases copy more than 16777216 bytes"),
        (deep, "nested deeper than 64 levels"),
        (anchors, "more than 1000000 values, aliases expanded"),
    ] {
        let shown = read(&text).unwrap_err().to_string();
        assert!(shown.contains(want), "{shown}");
    }
}

#[test]
fn sec_authz_10_honest_aliases_are_expanded() {
    let text = "a: &a {b: [1, {c: text}]}\nd: *a\ne: [*a, *a]\n";
    let tree = &manifest::read_trees(text, "p.yaml").unwrap()[0];
    let json = tree.to_json();
    assert_eq!(json["d"], json["a"]);
    assert_eq!(json["e"][1]["b"][1]["c"], "text");
    // As deep as without an alias: the map, 61 lists, and two levels that the alias stands for.
    for (lists, is_read) in [(61, true), (62, false)] {
        let text = format!("a: &a [[]]\nb: {}*a{}\n", "[".repeat(lists), "]".repeat(lists));
        assert_eq!(manifest::read_trees(&text, "p.yaml").is_ok(), is_read, "{lists}");
    }
}
