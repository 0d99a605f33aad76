//! The steps G of the demo scenario that need no network: the exact module, the exact answers.
#![cfg(feature = "rego")]
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use http::{HeaderMap, HeaderValue, StatusCode};
use mesh_authz::rego::{
    BadInput, BodyView, RegoDecision, RegoDenyReason, RegoInput, RegoLoadError, RegoOptions,
    RegoPolicy,
};
use mesh_identity::{Claims, VerifiedToken};
use serde_json::json;

const MODULE: &str = include_str!("rego/bookinfo.rego");

fn policy() -> RegoPolicy {
    RegoPolicy::compile(&[("bookinfo.rego", MODULE)], None, RegoOptions::default()).unwrap()
}

/// A token with the claims of the demo.
fn token(role: &str, name: &str) -> VerifiedToken {
    let claims = json!({"iss": "testing@secure.istio.io", "sub": name, "role": role, "name": name});
    VerifiedToken::assert_verified(Claims::new(claims.as_object().unwrap().clone()), ["scope"])
}

fn decide(
    token: Option<&VerifiedToken>,
    method: &str,
    path: &str,
    body: BodyView<'_>,
) -> RegoDecision {
    let mut headers = HeaderMap::new();
    if body != BodyView::NotRequested {
        headers.insert("content-type", HeaderValue::from_static("application/json"));
    }
    let builder = RegoInput::builder(method, path, &headers).body(body);
    let builder = match token {
        Some(token) => builder.token(token),
        None => builder,
    };
    policy().decide(&builder.build())
}

/// The role that the handler would see.
fn role(decision: &RegoDecision) -> &str {
    match decision {
        RegoDecision::Allow { headers_to_set, .. } => {
            let [(name, value)] = headers_to_set.as_slice() else { panic!("{decision:?}") };
            assert_eq!(name, "x-bookinfo-role");
            value.to_str().unwrap()
        }
        RegoDecision::Deny { .. } => panic!("{decision:?}"),
    }
}

fn assert_denied(decision: &RegoDecision) {
    let RegoDecision::Deny { status, body, reason, .. } = decision else { panic!("allowed") };
    assert_eq!(*status, StatusCode::FORBIDDEN);
    assert_eq!(body, "denied: no rule matched\n");
    assert_eq!(*reason, RegoDenyReason::Policy);
}

#[test]
fn g1_no_token_is_denied_with_the_policys_body() {
    assert_denied(&decide(None, "GET", "/details/1", BodyView::NotRequested));
}

#[test]
fn g2_a_guest_reads() {
    let decision =
        decide(Some(&token("guest", "alice")), "GET", "/details/1", BodyView::NotRequested);
    assert_eq!(role(&decision), "guest");
}

#[test]
fn g3_a_guest_does_not_write() {
    let body = BodyView::Complete(br#"{"Reviewer1":3}"#);
    assert_denied(&decide(Some(&token("guest", "alice")), "POST", "/ratings/0", body));
}

#[test]
fn g4_an_admin_reads() {
    let decision =
        decide(Some(&token("admin", "bob")), "GET", "/details/1", BodyView::NotRequested);
    assert_eq!(role(&decision), "admin");
}

#[test]
fn g5_an_admin_writes() {
    let body = BodyView::Complete(br#"{"Reviewer1":3}"#);
    let decision = decide(Some(&token("admin", "bob")), "POST", "/ratings/0", body);
    assert_eq!(role(&decision), "admin");
}

#[test]
fn g6_nobody_rates_in_the_own_name() {
    for body in [&br#"{"bob":5}"#[..], br#"{"bob":false}"#] {
        let body = BodyView::Complete(body);
        assert_denied(&decide(Some(&token("admin", "bob")), "POST", "/ratings/0", body));
    }
}

#[test]
fn g7_another_role_is_denied() {
    let token = token("other", "carol");
    assert_denied(&decide(Some(&token), "GET", "/details/1", BodyView::NotRequested));
}

#[test]
fn g8_the_clients_own_header_is_to_be_replaced() {
    let token = token("guest", "alice");
    let mut headers = HeaderMap::new();
    headers.insert("x-bookinfo-role", HeaderValue::from_static("admin"));
    let input = RegoInput::builder("GET", "/details/1", &headers).token(&token).build();
    assert_eq!(role(&policy().decide(&input)), "guest");
}

#[test]
fn g9_a_header_is_no_verified_token() {
    let mut headers = HeaderMap::new();
    let forged = HeaderValue::from_static("bearer eyJhbGciOiJub25lIn0.eyJyb2xlIjoiYWRtaW4ifQ.");
    headers.insert("authorization", forged);
    let input = RegoInput::builder("GET", "/details/1", &headers).build();
    assert_denied(&policy().decide(&input));
}

#[test]
fn g10_a_truncated_body_is_null_and_so_denied() {
    let token = token("admin", "bob");
    let mut headers = HeaderMap::new();
    headers.insert("content-type", HeaderValue::from_static("application/json"));
    let body = BodyView::Truncated(br#"{"Reviewer1":3"#);
    let input = RegoInput::builder("POST", "/ratings/0", &headers).token(&token).body(body).build();
    let json = input.to_json();
    assert_eq!((&json["truncated_body"], &json["parsed_body"]), (&json!(true), &json!(null)));
    assert_denied(&policy().decide(&input));
}

#[test]
fn g11_a_body_that_is_not_json_is_400_before_evaluation() {
    let body = BodyView::Complete(b"Reviewer1=3");
    let decision = decide(Some(&token("admin", "bob")), "POST", "/ratings/0", body);
    let RegoDecision::Deny { status, reason, .. } = decision else { panic!("allowed") };
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert_eq!(reason, RegoDenyReason::BadInput(BadInput::Body));
}

#[test]
fn g12_a_bad_replacement_is_refused_with_its_place() {
    let broken = "package envoy.authz\nallow if {\n";
    let error = RegoPolicy::compile(&[("new.rego", broken)], None, RegoOptions::default());
    let Err(RegoLoadError::Syntax { place, .. }) = error else { panic!("{error:?}") };
    assert_eq!((place.module.as_str(), place.line > 1), ("new.rego", true));

    let unknown = "package envoy.authz\nallow if input.x == 1\nother if {\n  no.such.fn(1)\n}";
    let error = RegoPolicy::compile(&[("new.rego", unknown)], None, RegoOptions::default());
    let Err(RegoLoadError::UnknownFunction { place, name }) = error else { panic!("{error:?}") };
    assert_eq!((place.to_string().as_str(), name.as_str()), ("new.rego:4", "no.such.fn"));
}

#[test]
fn g13_undefined_is_denied() {
    let undefined = "package envoy.authz\nallow if input.nothing";
    let policy = RegoPolicy::compile(&[("u.rego", undefined)], None, RegoOptions::default());
    let headers = HeaderMap::new();
    let decision = policy.unwrap().decide(&RegoInput::builder("GET", "/", &headers).build());
    let RegoDecision::Deny { status, reason, .. } = decision else { panic!("allowed") };
    assert_eq!((status, reason), (StatusCode::FORBIDDEN, RegoDenyReason::Undefined));
    assert_eq!(reason.as_str(), "undefined");
}
