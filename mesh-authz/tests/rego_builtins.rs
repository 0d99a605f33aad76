//! docs/rego.md tells the truth about builtins.
#![cfg(feature = "rego")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;

use http::HeaderMap;
use mesh_authz::rego::{RegoInput, RegoLoadError, RegoOptions, RegoPolicy, builtin_names};

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
    let mut listed = names(between("From regorus", "Recorded answers of"));
    assert!(listed.remove("es512"), "the feature");
    if cfg!(not(feature = "es512")) {
        assert!(listed.remove("io.jwt.verify_es512"));
    }
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

/// A key set of a P-256 key `e` and a P-521 key `g`, which only feature `es512` can use.
const KEYS: &str = r#"{"keys": [{"kty": "EC", "crv": "P-256", "x": "UDskQ9rcrabQuy4FPYzJaVi8Ne-YXRRCfscoCWRM6Aw", "y": "-dcWCG7iH72gZ31AxQHY7fHxMB-zUxyCJzenm4__2iQ", "kid": "e"}, {"kty": "EC", "crv": "P-521", "x": "AO2lP3A3PWjq6o4CIZpAVoqwKIuCM5C3IZq09ZtwCu3cYfxiEhX2sF0MheG3bQc8fbDcuYkaVWv3oNoGllio8JpW", "y": "AcsGIr8s3WiGTn4qLaXohpO9PQLJL1BKmdyjR4GguMhY-EydXw0TumsbHJAKJG0AqBD_WGFV_7bgbebOJvlIauf_", "kid": "g"}]}"#;
/// Signed by `e`; the first says `kid: g`, the second names no key of the set.
const TOKENS: [&str; 2] = [
    "eyJhbGciOiAiRVMyNTYiLCAidHlwIjogIkpXVCIsICJraWQiOiAiZyJ9.eyJzdWIiOiAiYW5uIn0.-jI\
     CECR-2x5HXK1I3sd7GdcsRmK77E5ae2p1_txhNYXpYXJVGOLZT6JDMDXL4N_0rl_h2KkC1hF47USe0U9yIw",
    "eyJhbGciOiAiRVMyNTYiLCAidHlwIjogIkpXVCIsICJraWQiOiAibm9ib2R5In0.eyJzdWIiOiAiYW5u\
     In0.5oY0kpV0nReQaN63ufEEa_hDOacggFyv9p5jILpNwG6QsI0oLQkXvzXS35QcizrhcJO5Xlslcur6BXVrKH-dLw",
];

/// As OPA decides: a token that names a key is judged by that key alone, also where we cannot use it;
/// one that names no key of the set is judged by all of them.
#[test]
fn a_named_key_that_cannot_be_used_is_not_replaced_by_another() {
    for (token, holds) in TOKENS.into_iter().zip([false, true]) {
        let module =
            format!("package envoy.authz\nallow := io.jwt.verify_es256(\"{token}\", data.keys)\n");
        let data = serde_json::json!({ "keys": KEYS });
        let policy =
            RegoPolicy::compile(&[("p.rego", &module)], Some(data), RegoOptions::default());
        let input = RegoInput::builder("GET", "/", &HeaderMap::new()).build();
        assert_eq!(policy.unwrap().answer(&input).decision().is_allow(), holds, "{token}");
    }
}
