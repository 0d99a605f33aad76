//! docs/rego.md tells the truth about builtins.
#![cfg(feature = "rego")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;

use mesh_authz::rego::{RegoLoadError, RegoOptions, RegoPolicy, builtin_names};

const DOC: &str = include_str!("../../docs/rego.md");

/// The names in code font of a text.
fn names(text: &str) -> BTreeSet<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

fn between(from: &str, to: &str) -> &'static str {
    DOC.split_once(from).unwrap().1.split_once(to).unwrap().0
}

#[test]
fn what_is_listed_is_what_is_offered() {
    let listed = names(between("From regorus", "`io.jwt.decode_verify` and"));
    assert_eq!(listed, builtin_names().collect());
}

/// [SEC-REGO-1] Each is refused at load, with a reason, and so is a builtin of a family that does
/// not exist at all.
#[test]
fn sec_rego_1_what_is_listed_as_refused_is_refused_with_a_reason() {
    let rows = between("| Builtin of OPA | Why |", "Names that OPA itself");
    let mut refused = BTreeSet::new();
    for row in rows.lines().filter(|row| row.starts_with("| `")) {
        refused.extend(names(row.split('|').nth(1).unwrap()));
    }
    assert!(refused.len() > 50);
    for name in refused.into_iter().chain(["crypto.new", "strings.new"]) {
        let module = format!("package envoy.authz\nallow if {name}(input)\n");
        let error = RegoPolicy::compile(&[("p.rego", &module)], None, RegoOptions::default());
        let RegoLoadError::BuiltinNotOffered { name: told, reason, .. } = error.unwrap_err() else {
            panic!("{name}");
        };
        assert_eq!(told, name);
        assert!(!reason.is_empty());
    }
    for name in ["any", "re_match", "no_such", "no.such"] {
        let module = format!("package envoy.authz\nallow if {name}(input)\n");
        let error = RegoPolicy::compile(&[("p.rego", &module)], None, RegoOptions::default());
        assert!(error.is_err(), "{name}");
    }
}
