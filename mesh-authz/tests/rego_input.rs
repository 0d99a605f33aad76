//! The input document of OPA's Envoy plugin: row 15 of the interfaces' checklist.
#![cfg(feature = "rego")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use http::{HeaderMap, HeaderName, HeaderValue};
use mesh_authz::rego::{
    BadInput, BodyView, MAX_INPUT_BYTES, MAX_INPUT_DEPTH, MAX_STRING_BYTES, RegoInput,
};
use mesh_identity::{Claims, SpiffeId, VerifiedPeer, VerifiedToken};
use rustls_pki_types::UnixTime;
use serde_json::{Value, json};
use std::time::Duration;

fn headers(entries: &[(&str, &str)]) -> HeaderMap {
    let entries = entries.iter().map(|(name, value)| {
        (name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap())
    });
    let mut headers = HeaderMap::new();
    entries.for_each(|(name, value)| {
        headers.append(name, value);
    });
    headers
}

fn get(path: &str) -> RegoInput {
    RegoInput::builder("GET", path, &HeaderMap::new()).build()
}

fn post(entries: &[(&str, &str)], body: BodyView<'_>) -> RegoInput {
    RegoInput::builder("POST", "/", &headers(entries)).body(body).build()
}

fn parsed_body(entries: &[(&str, &str)], body: &str) -> Value {
    let input = post(entries, BodyView::Complete(body.as_bytes()));
    assert_eq!(input.problem(), None);
    input.to_json().get("parsed_body").unwrap().clone()
}

#[test]
fn the_whole_document() {
    let id: SpiffeId = "spiffe://cluster.local/ns/default/sa/bookinfo-productpage".parse().unwrap();
    let own: SpiffeId = "spiffe://cluster.local/ns/default/sa/bookinfo-details".parse().unwrap();
    let peer = VerifiedPeer::assert_verified(id);
    let claims =
        json!({"iss": "i", "sub": "s", "scope": "read write", "n": 1.5, "big": 1_u64 << 60});
    let claims = Claims::new(claims.as_object().unwrap().clone());
    let token = VerifiedToken::assert_verified(claims, ["scope"]);
    let headers = headers(&[
        ("host", "details"),
        ("Content-Type", "application/json"),
        ("x-a", "1"),
        ("x-a", "2"),
        ("x-envoy-auth-partial-body", "true"),
    ]);
    let input = RegoInput::builder("POST", "/details/1?a=1&a=2", &headers)
        .authority("details:9080")
        .scheme("https")
        .protocol("HTTP/2")
        .request_id("7")
        .source("10.0.0.1:1234".parse().unwrap())
        .destination("[::ffff:10.0.0.2]:9080".parse().unwrap())
        .peer(&peer)
        .destination_id(&own)
        .token(&token)
        .time(UnixTime::since_unix_epoch(Duration::from_secs(1_700_000_000)), 5_000)
        .body(BodyView::Complete(br#"{"a": [1, null]}"#))
        .build();
    let principal = "spiffe://cluster.local/ns/default/sa/bookinfo-productpage";
    let want = json!({
        "attributes": {
            "source": {
                "address": {"socketAddress": {"address": "10.0.0.1", "portValue": 1234}},
                "principal": principal,
            },
            "destination": {
                "address": {"socketAddress": {"address": "10.0.0.2", "portValue": 9080}},
                "principal": "spiffe://cluster.local/ns/default/sa/bookinfo-details",
            },
            "request": {
                "time": {"seconds": 1_700_000_000, "nanos": 5_000},
                "http": {
                    "id": "7",
                    "method": "POST",
                    "path": "/details/1?a=1&a=2",
                    "host": "details:9080",
                    "scheme": "https",
                    "protocol": "HTTP/2",
                    "size": 16,
                    "body": r#"{"a": [1, null]}"#,
                    "headers": {
                        ":method": "POST",
                        ":path": "/details/1?a=1&a=2",
                        ":authority": "details:9080",
                        ":scheme": "https",
                        "content-type": "application/json",
                        "x-a": "1,2",
                        "x-envoy-auth-partial-body": "false",
                    },
                },
            },
            "metadataContext": {"filterMetadata": {"envoy.filters.http.jwt_authn": {"payload": {
                "iss": "i", "sub": "s", "scope": ["read", "write"], "n": 1.5, "big": 1_u64 << 60,
            }}}},
        },
        "version": {"ext_authz": "v3", "encoding": "protojson"},
        "parsed_path": ["details", "1"],
        "parsed_query": {"a": ["1", "2"]},
        "parsed_body": {"a": [1, null]},
        "truncated_body": false,
        "source_principal": principal,
    });
    assert_eq!(input.to_json(), want);
}

#[test]
fn what_is_not_known_is_absent() {
    let want = json!({
        "attributes": {
            "source": {},
            "destination": {},
            "request": {"http": {
                "method": "GET", "path": "/", "headers": {":method": "GET", ":path": "/"},
            }},
        },
        "version": {"ext_authz": "v3", "encoding": "protojson"},
        "parsed_path": [""],
        "parsed_query": {},
        "parsed_body": null,
        "truncated_body": false,
    });
    assert_eq!(get("/").to_json(), want);
}

#[test]
fn paths_are_decoded_before_they_are_split() {
    for (path, want) in [
        ("/", json!([""])),
        ("", json!([""])),
        ("//a", json!(["a"])),
        ("/a/b/", json!(["a", "b", ""])),
        ("/a%2Fb", json!(["a", "b"])),
        ("/a%2fb/c+d", json!(["a", "b", "c+d"])),
        ("/caf%C3%A9", json!(["café"])),
        ("/a;b", json!(["a;b"])),
        ("/a:b", json!(["a:b"])),
        ("*", json!(["*"])),
    ] {
        assert_eq!(get(path).to_json()["parsed_path"], want, "{path}");
    }
    for path in ["/%", "/%2", "/%zz", "/%C3", "host:443", "/a\u{7}", "/a#b"] {
        assert_eq!(get(path).problem(), Some(BadInput::Path), "{path}");
    }
}

/// CVE-2026-26205: the first segment was read as a host, and `/admin/x` was judged as `/x`.
#[test]
fn sem_adv_14_two_slashes_hide_no_segment() {
    for path in ["//admin/x", "///admin/x", "//admin:80/x", "//user@admin/x"] {
        let parsed = &get(path).to_json()["parsed_path"];
        let segments: Vec<&str> =
            parsed.as_array().unwrap().iter().map(|segment| segment.as_str().unwrap()).collect();
        let named = segments.iter().find(|segment| !segment.is_empty()).unwrap();
        assert!(named.contains("admin"), "{path}: {segments:?}");
        assert_eq!(segments.last(), Some(&"x"), "{path}");
    }
    assert_eq!(get("//admin/x").to_json()["parsed_path"], json!(["admin", "x"]));
}

#[test]
fn queries_keep_every_value() {
    for (query, want) in [
        ("", json!({})),
        ("a", json!({"a": [""]})),
        ("a=1&b=&a=2&&c=x=y", json!({"a": ["1", "2"], "b": [""], "c": ["x=y"]})),
        ("a+b=c+d&e=%26%3D", json!({"a b": ["c d"], "e": ["&="]})),
        ("a=?", json!({"a": ["?"]})),
    ] {
        assert_eq!(get(&format!("/?{query}")).to_json()["parsed_query"], want, "{query}");
    }
    for query in ["a=%", "%zz=1", "a=1;b=2", "a=%ff"] {
        assert_eq!(get(&format!("/?{query}")).problem(), Some(BadInput::Query), "{query}");
    }
}

#[test]
fn json_bodies() {
    let json_type = ("content-type", "application/json; charset=utf-8");
    assert_eq!(parsed_body(&[json_type], r#"{"a": 1e3}"#), json!({"a": 1000}));
    assert_eq!(parsed_body(&[json_type], ""), json!(null));
    assert_eq!(parsed_body(&[], r#"{"a": 1}"#), json!(null));
    assert_eq!(parsed_body(&[("content-type", "text/plain")], "{}"), json!(null));
    assert_eq!(parsed_body(&[("content-type", "application/grpc")], "x"), json!(null));
    assert_eq!(parsed_body(&[json_type, ("content-length", "2")], "{}"), json!({}));
    for body in ["{", "{} x", "nul", "1e999", "\u{feff}{}"] {
        let input = post(&[json_type], BodyView::Complete(body.as_bytes()));
        assert_eq!(input.problem(), Some(BadInput::Body), "{body}");
    }
    let odd_length = post(&[json_type, ("content-length", "two")], BodyView::Complete(b"{}"));
    assert_eq!(odd_length.problem(), Some(BadInput::Body));
}

#[test]
fn a_body_shorter_than_its_length_is_truncated() {
    let entries = [("content-type", "application/json"), ("content-length", "9")];
    let input = post(&entries, BodyView::Complete(b"{\"a\"")).to_json();
    assert_eq!((&input["parsed_body"], &input["truncated_body"]), (&json!(null), &json!(true)));
}

#[test]
fn a_truncated_body_is_marked_and_not_parsed() {
    let entries = [("content-type", "application/json"), ("x-envoy-auth-partial-body", "false")];
    let input = post(&entries, BodyView::Truncated(b"{\"a\"")).to_json();
    assert_eq!((&input["parsed_body"], &input["truncated_body"]), (&json!(null), &json!(true)));
    let http = &input["attributes"]["request"]["http"];
    assert_eq!(http["headers"]["x-envoy-auth-partial-body"], "true");
    assert_eq!((&http["body"], &http["size"]), (&json!("{\"a\""), &json!(4)));
}

#[test]
fn a_body_that_was_not_asked_for_is_absent() {
    let entries = [("content-type", "application/json"), ("x-envoy-auth-partial-body", "true")];
    let input = post(&entries, BodyView::NotRequested).to_json();
    assert_eq!((&input["parsed_body"], &input["truncated_body"]), (&json!(null), &json!(false)));
    assert_eq!(
        input["attributes"]["request"]["http"]["headers"].get("x-envoy-auth-partial-body"),
        None
    );
}

#[test]
fn form_bodies() {
    let form = ("content-type", "application/x-www-form-urlencoded");
    assert_eq!(parsed_body(&[form], "a=1&a=%20&b"), json!({"a": ["1", " "], "b": [""]}));
    let input = post(&[form], BodyView::Complete(b"a=%zz"));
    assert_eq!(input.problem(), Some(BadInput::Body));
}

#[test]
fn multipart_bodies() {
    let multipart = ("content-type", "multipart/form-data; charset=x; boundary=\"b-1\"");
    let body = "--b-1\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\none\r\n\
        --b-1\r\ncontent-disposition: form-data; filename=\"x\"; name=a\r\n\r\n\r\n\
        --b-1\r\nContent-Disposition: form-data; name=\"j\"\r\nContent-Type: application/json\r\n\r\n{\"k\": 1}\r\n\
        --b-1\r\nContent-Disposition: attachment; name=\"no\"\r\n\r\nx\r\n\
        --b-1--\r\n";
    assert_eq!(parsed_body(&[multipart], body), json!({"a": ["one", ""], "j": [{"k": 1}]}));
    assert_eq!(parsed_body(&[("content-type", "multipart/form-data")], body), json!(null));
    for body in ["--b-1\r\nx", "nothing", "--b-1\r\n\r\nx\r\n", &body.replace("{\"k\": 1}", "{")] {
        let input = post(&[multipart], BodyView::Complete(body.as_bytes()));
        assert_eq!(input.problem(), Some(BadInput::Body), "{body}");
    }
}

#[test]
fn bytes_that_are_no_text_appear_as_envoy_shows_them() {
    let mut headers = HeaderMap::new();
    headers.insert("x-a", HeaderValue::from_bytes(b"a\xff\xfeb").unwrap());
    let body = BodyView::Complete(b"\xc3(");
    let input = RegoInput::builder("POST", "/", &headers).body(body).build().to_json();
    let http = &input["attributes"]["request"]["http"];
    assert_eq!((&http["headers"]["x-a"], &http["body"]), (&json!("a!!b"), &json!("!(")));
}

#[test]
fn sec_rego_5_input_is_bounded() {
    let json_type = [("content-type", "application/json")];
    let too_large = |body: &str| {
        post(&json_type, BodyView::Complete(body.as_bytes())).problem() == Some(BadInput::TooLarge)
    };
    let nested = |depth: usize| format!("{}1{}", "[".repeat(depth), "]".repeat(depth));
    assert!(!too_large(&nested(MAX_INPUT_DEPTH)));
    assert!(too_large(&nested(MAX_INPUT_DEPTH + 1)));
    // A string counts twice: raw and parsed.
    assert!(!too_large(&format!("\"{}\"", "x".repeat(MAX_STRING_BYTES))));
    assert!(too_large(&format!("\"{}\"", "x".repeat(MAX_STRING_BYTES + 1))));
    // Small values count for more than their text.
    assert!(!too_large(&format!("[{}1]", "1,".repeat(1_000))));
    assert!(too_large(&format!("[{}1]", "1,".repeat(MAX_INPUT_BYTES / 16))));

    let long = "x".repeat(MAX_STRING_BYTES + 1);
    assert_eq!(get(&format!("/{long}")).problem(), Some(BadInput::TooLarge));
    assert_eq!(
        post(&[("x-long", &long)], BodyView::NotRequested).problem(),
        Some(BadInput::TooLarge)
    );
    let half = "x".repeat(MAX_STRING_BYTES / 2);
    let many: Vec<_> = (0..20).map(|_| ("x-many", half.as_str())).collect();
    assert_eq!(post(&many, BodyView::NotRequested).problem(), Some(BadInput::TooLarge));
}

#[test]
fn debug_shows_nothing_of_the_request() {
    let input = post(&[("authorization", "Bearer secret")], BodyView::Complete(b"secret"));
    assert!(!format!("{input:?}").contains("secret"));
}
