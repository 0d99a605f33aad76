//! Targets of the Rego engine's edges: what comes from a bundle server, from a request, and from a
//! policy that answers with anything.

use std::sync::OnceLock;

use http::{HeaderMap, HeaderName, HeaderValue};
use mesh_authz::rego::{
    BodyView, Bundle, BundleLimits, RegoDecision, RegoInput, RegoOptions, RegoPolicy,
};

/// A bundle is read or refused, within its limits, and the same again.
///
/// # Panics
///
/// When a limit or a path does not hold.
pub fn bundle(data: &[u8]) {
    let mut limits = BundleLimits::default();
    limits.bytes = 1 << 20;
    limits.files = 64;
    let read = Bundle::read(data, limits, None);
    assert_eq!(read, Bundle::read(data, limits, None));
    let Ok(bundle) = read else { return };
    assert!(bundle.modules().len() <= limits.files);
    assert!(bundle.data().is_object());
    for (path, text) in bundle.modules() {
        assert!(!path.starts_with('/') && !path.split('/').any(|part| part == ".."), "{path}");
        assert!(text.len() <= 1 << 20);
    }
    let twice = bundle.clone().join(bundle.clone());
    assert!(bundle.roots().is_empty() || twice.is_err(), "two owners of one root");
}

/// Whatever a policy answers is a decision; only `true` and `allowed: true` allow.
///
/// # Panics
///
/// When anything else allows.
pub fn rego_answer(data: &[u8]) {
    static POLICY: OnceLock<RegoPolicy> = OnceLock::new();
    let policy = POLICY.get_or_init(|| {
        let module = "package envoy.authz\nimport rego.v1\nallow := input.answer\n";
        RegoPolicy::compile(&[("p.rego", module)], None, RegoOptions::default())
            .expect("the module compiles")
    });
    let Ok(answer) = serde_json::from_slice::<serde_json::Value>(data) else { return };
    let allows = answer == true || answer.get("allowed").is_some_and(|allowed| *allowed == true);
    let input = RegoInput::from_json(&serde_json::json!({ "answer": answer }), None);
    match policy.decide(&input) {
        RegoDecision::Allow { headers_to_remove, .. } => {
            assert!(allows, "{answer}");
            assert!(headers_to_remove.iter().all(|name| name != "host"));
        }
        RegoDecision::Deny { status, .. } => {
            assert!(!status.is_informational(), "{answer}");
        }
    }
}

/// Whatever a request says, there is an input document or a 400; headers arrive as sent.
///
/// # Panics
///
/// When the document is not what the request says.
pub fn rego_input(data: &[u8]) {
    let mut lines = data.splitn(4, |byte| *byte == b'\n');
    let (path, kind) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let (header, body) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let Ok(path) = str::from_utf8(path) else { return };
    let mut headers = HeaderMap::new();
    for (name, value) in [("content-type", kind), ("x-any", header)] {
        if let Ok(value) = HeaderValue::from_bytes(value) {
            headers.append(HeaderName::from_static(name), value);
        }
    }
    for view in [BodyView::NotRequested, BodyView::Complete(body), BodyView::Truncated(body)] {
        let input = RegoInput::builder("POST", path, &headers).authority("a").body(view).build();
        let document = input.to_json();
        if input.problem().is_some() {
            assert!(document.is_null());
            continue;
        }
        assert_eq!(document["attributes"]["request"]["http"]["method"], "POST");
        assert!(document["parsed_path"].is_array() && document["parsed_query"].is_object());
        if matches!(view, BodyView::Truncated(_)) {
            assert!(document["truncated_body"] == true && document["parsed_body"].is_null());
        }
        if let Ok(text) = str::from_utf8(header)
            && headers.contains_key("x-any")
        {
            assert_eq!(document["attributes"]["request"]["http"]["headers"]["x-any"], text);
        }
        let again = RegoInput::from_json(&document, None);
        assert!(again.problem().is_none() || document.to_string().len() > 32 << 10);
    }
}
