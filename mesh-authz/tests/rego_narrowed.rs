//! An input that lacks what a policy does not read gives the same answer as the whole one.
#![cfg(feature = "rego")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::cell::RefCell;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use mesh_authz::rego::{BodyView, InputParts, RegoEvaluator, RegoInput, RegoOptions, RegoPolicy};
use mesh_identity::{Claims, VerifiedPeer, VerifiedToken};
use proptest::prelude::*;
use proptest::sample::select;
use rustls_pki_types::UnixTime;
use serde_json::{Value, json};

/// Ways to refer to the input, and whether the policy reads a body, and a header `x-other`. Who reads
/// all headers reads the one that tells whether the body is cut off.
const BODIES: &[(&str, bool, bool)] = &[
    ("allow if input.parsed_path[0] == \"a\"", false, false),
    ("allow if input.attributes.request.http.headers[\"x-role\"] == \"admin\"", false, false),
    ("h := input.attributes.request.http.headers\nallow if h[\"x-other\"]", true, true),
    (
        "allow if { some name; input.attributes.request.http.headers[name] == \"admin\" }",
        true,
        true,
    ),
    (
        "allow if { some k, v in input.attributes.request.http; v == \"GET\"; k == \"method\" }",
        true,
        true,
    ),
    ("allow if input[sprintf(\"parsed_%s\", [\"body\"])].user == \"ann\"", true, true),
    ("allow if object.get(input, \"parsed_body\", {}) != null", true, true),
    ("allow if f(input)\nf(x) if x.parsed_query.q[0] == \"1\"", true, true),
    ("allow if count(input.attributes) == 3", true, true),
    ("allow if not input.attributes.source", false, false),
    ("allow if input.truncated_body == false", true, false),
    ("allow if input.attributes.request.http.headers[\"x-envoy-auth-partial-body\"]", true, false),
    ("allow if input.attributes.request.http.size > 3", true, false),
    ("allow if \"user\" in object.keys(input.parsed_body)", true, false),
    ("allow := {\"allowed\": true, \"headers\": {\"x\": input.source_principal}}", false, false),
    (
        "allow := input.attributes.metadataContext.filterMetadata[\"envoy.filters.http.jwt_authn\"].payload.sub == \"ann\"",
        false,
        false,
    ),
    ("allow if input.attributes.request.time.seconds > 5", false, false),
    ("allow if { x := input; x.version.ext_authz == \"v3\" }", true, true),
    ("allow if [1 | input.attributes.request.http.host == \"shop\"] == [1]", false, false),
    ("default allow := false\nallow if input.nosuch", false, false),
    ("allow if { every part in input.parsed_path { part != \"\" } }", false, false),
    (
        "allow if { input.attributes.destination.address.socketAddress.portValue == 80 } else := false",
        false,
        false,
    ),
];

fn modules() -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/interop/opa/policies");
    let mut modules: Vec<(String, String)> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.display().to_string(), fs::read_to_string(path).unwrap()))
        .collect();
    modules.sort();
    assert!(modules.len() >= 25);
    let own = BODIES.iter().map(|(body, ..)| {
        ((*body).to_owned(), format!("package envoy.authz\nimport rego.v1\n{body}\n"))
    });
    let alias = "package envoy.authz\nimport input.attributes.request.http as h\nallow if h.method == \"GET\"\n";
    modules.extend(own.chain([("an import".to_owned(), alias.to_owned())]));
    modules.push(("bookinfo".to_owned(), include_str!("rego/bookinfo.rego").to_owned()));
    modules
}

fn compile(module: &str) -> RegoPolicy {
    let data = json!({
        "users": {"ann": {"roles": ["reader"], "department": "hr"}}, "blocked": ["eve"],
        "nets": ["10.0.0.0/8"], "namespaces": ["shop"], "tenants": {"acme": {"members": ["ann"]}},
        "directory": {"u1": {"active": true}}, "roles": {}, "bindings": {}, "documents": {},
        "grants": [], "groups": {}, "parents": {}, "skus": ["a"], "prefixes": ["0"],
    });
    RegoPolicy::compile(&[("p.rego", module)], Some(data), RegoOptions::default()).unwrap()
}

#[test]
fn bodies_and_headers_are_wanted_only_where_they_are_read() {
    for (body, wants_body, wants_other) in BODIES {
        let policy = compile(&format!("package envoy.authz\nimport rego.v1\n{body}\n"));
        assert_eq!(policy.reads().has_body(), *wants_body, "{body}");
        let mut headers = HeaderMap::new();
        headers.insert("x-other", HeaderValue::from_static("1"));
        let input = RegoInput::builder("GET", "/", &headers).only(policy.reads()).build();
        let shown = &input.to_json()["attributes"]["request"]["http"]["headers"]["x-other"];
        assert_eq!(!shown.is_null(), *wants_other, "{body}");
    }
}

/// What could not be read is refused, whoever reads it.
#[test]
fn a_bad_path_or_query_is_refused_all_the_same() {
    let policy = compile("package envoy.authz\nimport rego.v1\nallow := true\n");
    let headers = HeaderMap::new();
    for path in ["/%zz", "/?a=%zz", "/?a;b"] {
        let input = RegoInput::builder("GET", path, &headers).only(policy.reads()).build();
        assert!(input.problem().is_some(), "{path}");
    }
}

#[derive(Clone, Debug)]
struct Case {
    method: &'static str,
    path: &'static str,
    headers: Vec<(&'static str, &'static str)>,
    body: Option<&'static str>,
    truncated: bool,
    peer: Option<&'static str>,
    claims: Option<Value>,
    seconds: u64,
}

fn case() -> impl Strategy<Value = Case> {
    let header = select(vec![
        ("x-role", "admin"),
        ("x-other", "1"),
        ("x-other", "2"),
        ("x-tenant", "acme"),
        ("authorization", "Bearer e30.e30."),
        ("content-type", "application/json"),
        ("content-length", "1000"),
        ("x-envoy-auth-partial-body", "true"),
        ("host", "elsewhere"),
        ("user-agent", "curl"),
    ]);
    let body = select(vec![None, Some("{\"user\": \"ann\"}"), Some("{"), Some(""), Some("[1]")]);
    let peer = select(vec![None, Some("spiffe://cluster.local/ns/shop/sa/ann")]);
    let claims = select(vec![None, Some(json!({"sub": "ann", "role": "admin", "id": "u1"}))]);
    let path = select(vec!["/", "/a", "/a/b?q=1", "/users/ann", "/x%2Fy?q=2&q=1"]);
    let rest =
        (proptest::collection::vec(header, 0..5), body, any::<bool>(), peer, claims, 0..9_u64);
    (select(vec!["GET", "POST"]), path, rest).prop_map(
        |(method, path, (headers, body, truncated, peer, claims, seconds))| Case {
            method,
            path,
            headers,
            body,
            truncated,
            peer,
            claims,
            seconds,
        },
    )
}

impl Case {
    fn input(&self, only: &InputParts) -> RegoInput {
        let mut headers = HeaderMap::new();
        for (name, value) in &self.headers {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        let peer = self.peer.map(|id| VerifiedPeer::assert_verified(id.parse().unwrap()));
        let token = self.claims.as_ref().map(|claims| {
            let claims = Claims::new(claims.as_object().unwrap().clone());
            VerifiedToken::assert_verified(claims, ["scope"])
        });
        let body = match self.body.map(str::as_bytes) {
            None => BodyView::NotRequested,
            Some(body) if self.truncated => BodyView::Truncated(body),
            Some(body) => BodyView::Complete(body),
        };
        let mut builder = RegoInput::builder(self.method, self.path, &headers)
            .authority("shop")
            .scheme("https")
            .protocol("HTTP/2")
            .source("10.1.2.3:5".parse().unwrap())
            .destination("10.1.2.4:80".parse().unwrap())
            .time(UnixTime::since_unix_epoch(Duration::from_secs(self.seconds)), 7)
            .body(body)
            .only(only);
        if let Some(peer) = &peer {
            builder = builder.peer(peer);
        }
        if let Some(token) = &token {
            builder = builder.token(token);
        }
        builder.build()
    }
}

#[test]
fn sec_rego_8_the_answer_is_that_of_the_whole_input_on_a_fresh_machine() {
    let policies: Vec<(String, Arc<RegoPolicy>)> =
        modules().iter().map(|(name, text)| (name.clone(), Arc::new(compile(text)))).collect();
    let evaluators = policies.iter().map(|(_, policy)| RegoEvaluator::new(Arc::clone(policy)));
    // [SEC-REGO-8] They go on from case to case, and must not remember any.
    let evaluators: RefCell<Vec<_>> = RefCell::new(evaluators.collect());
    proptest!(ProptestConfig::with_cases(150), |(case in case())| {
        let whole = case.input(&InputParts::ALL);
        for ((name, policy), evaluator) in policies.iter().zip(evaluators.borrow_mut().iter_mut()) {
            let narrow = case.input(policy.reads());
            // A body that nobody reads is not looked at: then only the whole input has a problem.
            if whole.problem().is_some() && !policy.reads().has_body() {
                prop_assert!(narrow.problem().is_none(), "{}", name);
                continue;
            }
            let (wanted, got) = (policy.answer(&whole), evaluator.answer(&narrow));
            prop_assert_eq!(wanted.result(), got.result(), "{}", name);
            prop_assert_eq!(wanted.decision(), got.decision(), "{}", name);
        }
    });
}
