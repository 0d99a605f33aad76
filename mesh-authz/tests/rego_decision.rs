//! What the answers of policies mean: rows 16 and 16a of the interfaces' checklist.
#![cfg(feature = "rego")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use mesh_authz::rego::{
    BuiltinErrors, RegoDecision, RegoDenyReason, RegoInput, RegoLoadError, RegoOptions, RegoPolicy,
};
use rustls_pki_types::UnixTime;
use serde_json::json;
use std::time::Duration;

fn compile(body: &str) -> Result<RegoPolicy, RegoLoadError> {
    let module = format!("package envoy.authz\n{body}\n");
    RegoPolicy::compile(&[("p.rego", &module)], None, RegoOptions::default())
}

fn decide(body: &str) -> RegoDecision {
    compile(body).unwrap().decide(&RegoInput::builder("GET", "/a", &HeaderMap::new()).build())
}

fn reason(body: &str) -> RegoDenyReason {
    decide(body).reason().unwrap()
}

fn header(name: &str, value: &str) -> (HeaderName, HeaderValue) {
    (name.parse().unwrap(), HeaderValue::from_str(value).unwrap())
}

#[test]
fn booleans() {
    assert!(decide("allow := true").is_allow());
    let RegoDecision::Deny { status, headers, body, reason, .. } = decide("allow := false") else {
        panic!("allowed")
    };
    assert_eq!((status, headers.len(), body.as_str()), (StatusCode::FORBIDDEN, 0, ""));
    assert_eq!(reason, RegoDenyReason::Policy);
}

#[test]
fn every_member_of_an_allow() {
    let decision = decide(
        r#"allow := {
            "allowed": true,
            "headers": {"X-A": "1", "x-b": ["2", "3"]},
            "request_headers_to_remove": ["x-c", "host", ":path"],
            "response_headers_to_add": [{"x-d": "4"}, {"x-d": "5", "x-e": "6"}],
            "query_parameters_to_set": {"q": "7", "r": ["8", "9"]},
            "query_parameters_to_remove": ["s"],
            "dynamic_metadata": {"k": {"n": 1}},
            "http_status": "ignored", "body": 5,
        }"#,
    );
    let text = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let want = RegoDecision::Allow {
        headers_to_set: vec![header("x-a", "1"), header("x-b", "2"), header("x-b", "3")],
        headers_to_remove: vec!["x-c".parse().unwrap()],
        response_headers: vec![header("x-d", "4"), header("x-d", "5"), header("x-e", "6")],
        query_to_set: vec![text("q", "7"), text("r", "8"), text("r", "9")],
        query_to_remove: vec!["s".to_owned()],
        dynamic_metadata: json!({"k": {"n": 1}}).as_object().unwrap().clone(),
    };
    assert_eq!(decision, want);
}

#[test]
fn every_member_of_a_deny() {
    let decision = decide(
        r#"allow := {
            "allowed": false,
            "http_status": 302,
            "headers": {"location": "/login", "set-cookie": ["a=1", "b=2"]},
            "body": "go",
            "dynamic_metadata": {"why": "login"},
            "request_headers_to_remove": 5,
        }"#,
    );
    let want = RegoDecision::Deny {
        status: StatusCode::FOUND,
        headers: vec![
            header("location", "/login"),
            header("set-cookie", "a=1"),
            header("set-cookie", "b=2"),
        ],
        body: "go".to_owned(),
        reason: RegoDenyReason::Policy,
        dynamic_metadata: json!({"why": "login"}).as_object().unwrap().clone(),
    };
    assert_eq!(decision, want);
}

#[test]
fn sec_rego_7_wrong_types_deny() {
    for allow in [
        "null",
        "1",
        "\"true\"",
        "[true]",
        "{true}",
        "{}",
        r#"{"allowed": "true"}"#,
        r#"{"allowed": 1}"#,
        r#"{"allow": true}"#,
        r#"{"allowed": true, "headers": 1}"#,
        r#"{"allowed": true, "headers": ["x"]}"#,
        r#"{"allowed": true, "headers": {"x": 1}}"#,
        r#"{"allowed": true, "headers": {"x": [1]}}"#,
        r#"{"allowed": true, "headers": {1: "x"}}"#,
        r#"{"allowed": true, "headers": {"a b": "x"}}"#,
        r#"{"allowed": true, "headers": {"a": "x\ny"}}"#,
        r#"{"allowed": true, "response_headers_to_add": "x"}"#,
        r#"{"allowed": true, "request_headers_to_remove": "x"}"#,
        r#"{"allowed": true, "request_headers_to_remove": [1]}"#,
        r#"{"allowed": true, "query_parameters_to_set": ["x"]}"#,
        r#"{"allowed": true, "query_parameters_to_set": {"x": 1}}"#,
        r#"{"allowed": true, "query_parameters_to_remove": {"x": 1}}"#,
        r#"{"allowed": true, "dynamic_metadata": []}"#,
        r#"{"allowed": false, "body": 1}"#,
        r#"{"allowed": false, "http_status": "403"}"#,
        r#"{"allowed": false, "http_status": 403.5}"#,
        r#"{"allowed": false, "http_status": 799}"#,
        r#"{"allowed": false, "http_status": 100}"#,
        r#"{"allowed": false, "http_status": -1}"#,
        r#"{"allowed": false, "headers": 1}"#,
    ] {
        let RegoDecision::Deny { status, reason, .. } = decide(&format!("allow := {allow}")) else {
            panic!("{allow} allowed")
        };
        assert_eq!((status, reason), (StatusCode::FORBIDDEN, RegoDenyReason::WrongType), "{allow}");
    }
}

#[test]
fn sec_rego_7_undefined_errors_and_conflicts_deny_with_their_reasons() {
    assert_eq!(reason("allow if input.nothing"), RegoDenyReason::Undefined);
    assert_eq!(reason("allow if { not to_number(\"x\") }"), RegoDenyReason::EvaluationError);
    assert_eq!(
        reason("allow if { x := 1 + input.parsed_path; x }"),
        RegoDenyReason::EvaluationError
    );
    let conflict = "r := 1 if input.version\nr := 2 if input.parsed_path\nallow if not r == 3";
    assert_eq!(reason(conflict), RegoDenyReason::Conflict);
    // The default must not win over the error.
    let broken = "default allow := true\nallow := false if startswith(input.parsed_path, \"/\")";
    assert_eq!(reason(broken), RegoDenyReason::EvaluationError);
}

#[test]
fn builtin_errors_can_mean_undefined_as_in_opa() {
    let module = "package envoy.authz\nallow if not to_number(input.parsed_path[0])";
    let options = RegoOptions::default().with_builtin_errors(BuiltinErrors::Undefined);
    let policy = RegoPolicy::compile(&[("p.rego", module)], None, options).unwrap();
    let input = RegoInput::builder("GET", "/a", &HeaderMap::new()).build();
    assert!(policy.decide(&input).is_allow());
    // Limits and conflicts end evaluation all the same.
    let module = "package envoy.authz\nallow if not numbers.range(1, 30000000)";
    let options = RegoOptions::default().with_builtin_errors(BuiltinErrors::Undefined);
    let error = RegoPolicy::compile(&[("p.rego", module)], None, options).unwrap_err();
    assert!(matches!(error, RegoLoadError::ExceedsBudget { .. }));
}

#[test]
fn sec_rego_1_what_is_not_offered_is_refused_at_load() {
    for call in [
        "not http.send({\"method\": \"get\", \"url\": \"http://x\"})",
        "opa.runtime()",
        "net.lookup_ip_addr(\"x\")",
        "yaml.unmarshal(\"a\")",
        "crypto.x509.parse_certificates(\"a\")",
        "units.parse(\"1K\")",
        "regex.find_n(\"a\", \"a\", 1)",
        "rand.intn(\"x\", 5)",
        "walk(input, [p, v])",
        "print(\"x\")",
    ] {
        let error = compile(&format!("allow if {{\n  input.a\n  {call}\n}}")).unwrap_err();
        let RegoLoadError::BuiltinNotOffered { place, .. } = error else { panic!("{error}") };
        assert_eq!(place.to_string(), "p.rego:4", "{call}");
    }
    for call in ["nope(1)", "data.x.f(1)", "__builtin_host_await(1, 2)", "_agree([])"] {
        let error = compile(&format!("allow if {call}")).unwrap_err();
        assert!(matches!(error, RegoLoadError::UnknownFunction { .. }), "{call}: {error}");
    }
    // In a rule that the query does not reach, in a comprehension, an argument, a head.
    for module in [
        "allow := true\nother if http.send({})",
        "allow if count([x | x := http.send({})]) == 0",
        "allow if count(http.send({})) == 0",
        "allow := http.send({})",
        "allow if { every x in [1] { http.send(x) } }",
        "f(x) := http.send(x)\nallow := true",
        "allow := true if input.a else := http.send({})",
        "s contains http.send({})\nallow := true",
        "o[http.send({})] := 1 if true\nallow := true",
    ] {
        let error = compile(module).unwrap_err();
        assert!(matches!(error, RegoLoadError::BuiltinNotOffered { .. }), "{module}: {error}");
    }
}

/// [SEC-REGO-7] What compiled code would read otherwise than OPA, and no pass can say.
#[test]
fn sec_rego_7_what_would_mean_something_else_is_refused_at_load() {
    for (body, refused) in [
        ("allow if \"k\", 1 in input.o", true),
        ("allow if { some k, v in input.o; k == v }", false),
        ("allow if { _ := input.x }", true),
        ("allow if { [_, x] := input.x; x }", false),
        ("allow if not input.xs[_] == 1", true),
        ("allow if not input.xs[i] == 1", true),
        ("allow if { some i; not input.xs[i] == 1 }", true),
        ("allow if { input.ys[i]; not input.xs[i] == 1 }", false),
        ("allow if { some i in input.ys; not input.xs[i] == 1 }", false),
        ("allow if not count([1 | some i in input.ys; input.xs[i]]) == 1", false),
        ("allow if not count([input.xs[i] | some i in input.ys]) == 1", false),
        ("key := \"a\"\nallow if not input.xs[key]", false),
        ("f(i) if not input.xs[i]\nallow if f(1)", false),
        ("allow := [1 | input.xs[k]] if { k := input.k } else := []", true),
        ("allow := [x | k = x; x := 1] if { k := input.k } else := []", true),
        ("allow := [x | some x in input.xs] if { input.k } else := []", false),
        ("allow := [1 | input.xs[k]] if { k := input.k }", false),
    ] {
        let module = format!("package envoy.authz\nimport rego.v1\n{body}\n");
        let loaded = RegoPolicy::compile(&[("p.rego", &module)], None, RegoOptions::default());
        assert_eq!(loaded.is_err(), refused, "{body}: {:?}", loaded.err());
    }
}

#[test]
fn sec_rego_1_with_is_refused() {
    for with in ["count as http.send", "input.a as 1", "data.x as 1", "http.send as count"] {
        let error =
            compile(&format!("allow if {{\n  count([1]) == 1 with {with}\n}}")).unwrap_err();
        let RegoLoadError::WithModifier { place } = error else { panic!("{with}: {error}") };
        assert_eq!(place.line, 3);
    }
}

#[test]
fn a_query_without_a_rule_is_refused_at_load() {
    let error = compile("alow := true").unwrap_err();
    assert_eq!(error, RegoLoadError::QueryNotFound { query: "data.envoy.authz.allow".to_owned() });
    let options = RegoOptions::default().with_query("data.a.b");
    let module = "package a\nb := true";
    assert!(RegoPolicy::compile(&[("p.rego", module)], None, options).is_ok());
}

#[test]
fn data_is_seen_and_must_not_collide_with_rules() {
    let module = "package envoy.authz\nallow if data.users[input.parsed_path[0]].ok";
    let input = |path: &'static str| RegoInput::builder("GET", path, &HeaderMap::new()).build();
    let compile =
        |data| RegoPolicy::compile(&[("p.rego", module)], Some(data), RegoOptions::default());
    let policy = compile(json!({"users": {"alice": {"ok": true}}})).unwrap();
    assert!(policy.decide(&input("/alice")).is_allow());
    assert!(!policy.decide(&input("/bob")).is_allow());
    for data in [json!({"envoy": {"authz": {"allow": true}}}), json!({"envoy": 1}), json!([1])] {
        assert!(matches!(compile(data).unwrap_err(), RegoLoadError::Data { .. }));
    }
}

#[test]
fn supplied_builtins() {
    for (expression, holds) in [
        (
            "crypto.sha256(\"abc\") == \"ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad\"",
            true,
        ),
        ("net.cidr_contains(\"10.0.0.0/8\", \"10.1.2.3\")", true),
        ("net.cidr_contains(\"10.0.0.0/8\", \"11.1.2.3\")", false),
        ("net.cidr_contains(\"10.0.0.0/8\", \"10.1.0.0/16\")", true),
        ("net.cidr_contains(\"10.1.0.0/16\", \"10.0.0.0/8\")", false),
        ("net.cidr_contains(\"::/0\", \"::1\")", true),
        ("net.cidr_contains(\"0.0.0.0/0\", \"::1\")", false),
        ("net.cidr_intersects(\"10.1.0.0/16\", \"10.0.0.0/8\")", true),
        ("net.cidr_is_valid(\"10.0.0.0/33\")", false),
        ("net.cidr_is_valid(\"10.0.0.0/8\")", true),
        ("json.unmarshal(\"{\\\"a\\\": [1]}\").a[0] == 1", true),
        ("json.is_valid(\"{\")", false),
        ("to_number(\"1.5\") == 1.5", true),
        // {"alg":"none"} . {"role":"admin"} . 0x01
        (
            "io.jwt.decode(\"eyJhbGciOiJub25lIn0.eyJyb2xlIjoiYWRtaW4ifQ.AQ\") == [{\"alg\": \"none\"}, {\"role\": \"admin\"}, \"01\"]",
            true,
        ),
        (
            "[_, claims, _] := io.jwt.decode(\"eyJhbGciOiJub25lIn0.eyJyb2xlIjoiYWRtaW4ifQ.AQ\"); claims.role == \"admin\"",
            true,
        ),
    ] {
        let decision = decide(&format!("allow if {{ {expression} }}"));
        assert_eq!(decision.is_allow(), holds, "{expression}: {decision:?}");
    }
    for call in [
        "io.jwt.decode(\"a.b\")",
        "io.jwt.decode(\"a.b.c.d\")",
        "io.jwt.decode(5)",
        "net.cidr_contains(\"10.0.0.0\", \"10.1.2.3\")",
        "net.cidr_contains(\"10.0.0.0/8\", \"x\")",
        "to_number(\"1e9999999\")",
        "json.unmarshal(\"1e9999999\")",
        "crypto.sha256(5)",
    ] {
        assert_eq!(
            reason(&format!("allow if not {call}")),
            RegoDenyReason::EvaluationError,
            "{call}"
        );
    }
}

#[test]
fn sec_rego_8_the_clock_is_the_requests() {
    let policy = compile("allow if time.now_ns() == 7000000005").unwrap();
    let headers = HeaderMap::new();
    let input = |seconds, nanos| {
        let time = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        RegoInput::builder("GET", "/", &headers).time(time, nanos).build()
    };
    assert!(policy.decide(&input(7, 5)).is_allow());
    assert!(!policy.decide(&input(7, 6)).is_allow());
    let timeless = RegoInput::builder("GET", "/", &headers).build();
    assert_eq!(policy.decide(&timeless).reason(), Some(RegoDenyReason::EvaluationError));
}
