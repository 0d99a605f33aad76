//! Providers in the process: Rego, and authorizers written in Rust.

use std::sync::Arc;

use http::{HeaderName, HeaderValue, Request, StatusCode};
use mesh_tower::authz::rego::{RegoOptions, RegoPolicy, RegoPool};
use mesh_tower::authz::{CheckBody, Semantics};
use mesh_tower::{
    Authorizer, CheckAnswer, CheckFuture, CheckRequest, Denial, ExtensionProviders, Provider,
    RegoStage, RequestChanges,
};

use crate::world::{World, custom};

const MODULE: &str = r#"
package envoy.authz
default allow := {"allowed": false, "http_status": 401, "body": "no", "headers": {"x-why": "rego"}}
allow := {"allowed": true, "headers": {"x-user": input.parsed_body.user}} if {
    input.attributes.request.http.method == "POST"
    input.parsed_body.user
    input.attributes.request.http.headers.authorization == "Bearer raw"
}
"#;

/// The decision of OPA's Envoy plugin, without OPA.
#[tokio::test]
async fn sem_ext_01_rego_as_a_provider() {
    let policy =
        RegoPolicy::compile(&[("authz.rego", MODULE)], None, RegoOptions::default()).unwrap();
    let pool = Arc::new(RegoPool::start(1, 16).unwrap());
    let provider =
        Provider::new(RegoStage::new(Arc::new(policy), pool)).with_body(CheckBody::new(64));
    let providers = ExtensionProviders::default().with("opa", provider);
    let shop = World::start(providers, &[custom("opa")], Semantics::strict()).await;
    let reply = shop.get("/c").await;
    assert_eq!(
        (reply.status, reply.body.as_str(), reply.lines("x-why")),
        (401, "no", vec!["rego"])
    );
    let request = || {
        Request::post("/c")
            .header("content-type", "application/json")
            .header("authorization", "Bearer raw")
    };
    let reply = shop.send_body(request().header("x-user", "eve"), r#"{"user": "ann"}"#).await;
    assert_eq!(reply.status, 200);
    let served = shop.served().unwrap();
    assert_eq!(
        (&served.headers["x-user"], served.body),
        (&"ann".parse().unwrap(), r#"{"user": "ann"}"#.into())
    );
    let reply = shop.send_body(request(), "{").await;
    assert_eq!(reply.status, 400, "a body that is no JSON");
    assert_eq!(shop.get("/x").await.status, 200);
}

#[derive(Debug)]
struct Scripted;

impl Authorizer for Scripted {
    fn check<'r>(&'r self, request: CheckRequest<'r>) -> CheckFuture<'r> {
        match request.path_and_query() {
            "/c/panic" => panic!("in check"),
            "/c/later" => Box::pin(async { panic!("in the future") }),
            "/c/no" => Box::pin(async {
                Ok(CheckAnswer::Deny(Denial::new(StatusCode::PAYMENT_REQUIRED, "pay")))
            }),
            _ => Box::pin(async { Ok(CheckAnswer::Allow(RequestChanges::default())) }),
        }
    }
}

/// [SEC-HTTP-17] A panic of an authorizer is its failure, in both readings never an allow.
#[tokio::test]
async fn sec_http_17_a_panic_of_an_authorizer_refuses() {
    let provider = Provider::new(Scripted).fail_open();
    let providers = ExtensionProviders::default().with("mine", provider.clone());
    let shop = World::start(providers, &[custom("mine")], Semantics::strict()).await;
    for (path, status) in
        [("/c", 200), ("/c/panic", 403), ("/c/later", 403), ("/c/no", 402), ("/c", 200)]
    {
        assert_eq!(shop.get(path).await.status, status, "{path}");
    }
    let counts = provider.counts();
    assert_eq!((counts.allowed, counts.denied, counts.errors, counts.failed_open), (2, 1, 2, 0));
}

/// [SEM-EXT-02] Two policies with one provider ask once.
#[tokio::test]
async fn sem_ext_02_one_question_for_several_policies() {
    let provider = Provider::new(Scripted);
    let providers = ExtensionProviders::default().with("mine", provider.clone());
    let policies = [custom("mine"), crate::world::policy("other", "mine", "/c")];
    let shop = World::start(providers, &policies, Semantics::strict()).await;
    assert_eq!(shop.get("/c").await.status, 200);
    assert_eq!(provider.counts().allowed, 1);
}

/// Sets what says where messages end, wherever an answer may set anything.
#[derive(Debug)]
struct Smuggler;

impl Authorizer for Smuggler {
    fn check<'r>(&'r self, request: CheckRequest<'r>) -> CheckFuture<'r> {
        let headers = [
            ("content-length", "1"),
            ("transfer-encoding", "chunked"),
            ("connection", "close, x-kept"),
            ("keep-alive", "timeout=1"),
            ("upgrade", "h2c"),
            ("te", "trailers"),
            ("trailer", "x-kept"),
            ("proxy-connection", "keep-alive"),
            ("x-kept", "1"),
        ];
        let headers: Vec<_> = headers
            .into_iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect();
        let denied = request.path_and_query() == "/c/no";
        Box::pin(async move {
            if denied {
                let mut denial = Denial::new(StatusCode::FORBIDDEN, "denied");
                denial.headers = headers;
                return Ok(CheckAnswer::Deny(denial));
            }
            let mut changes = RequestChanges::default();
            changes.headers_to_remove = headers.iter().map(|(name, _)| name.clone()).collect();
            changes.headers_to_set.clone_from(&headers);
            changes.response_headers = headers;
            Ok(CheckAnswer::Allow(changes))
        })
    }
}

/// [SEM-EXT-12] An answer cannot change where a request or a response ends, or which connection it
/// is for: whoever writes authorizers must not be able to split messages.
#[tokio::test]
async fn sem_ext_12_answers_do_not_touch_the_framing() {
    let providers = ExtensionProviders::default().with("mine", Provider::new(Smuggler));
    let shop = World::start(providers, &[custom("mine")], Semantics::strict()).await;
    for (path, status, body) in [("/c", 200, "served"), ("/c/no", 403, "denied")] {
        let request = Request::post(path).header("x-kept", "0");
        let reply = shop.send_body(request, "a longer body").await;
        assert_eq!((reply.status, reply.body.as_str()), (status, body));
        assert_eq!(reply.lines("content-length"), ["6"], "{path}");
        assert_eq!(reply.lines("x-kept"), ["1"], "{path}");
        for name in [
            "transfer-encoding",
            "connection",
            "keep-alive",
            "upgrade",
            "te",
            "trailer",
            "proxy-connection",
        ] {
            assert!(reply.lines(name).is_empty(), "{path}: {name}");
        }
        if let Some(served) = shop.served() {
            assert_eq!(served.body, "a longer body");
            assert_eq!(served.headers["content-length"], "13");
            assert_eq!(served.headers["x-kept"], "1");
            for name in
                ["transfer-encoding", "keep-alive", "upgrade", "te", "trailer", "proxy-connection"]
            {
                assert!(!served.headers.contains_key(name), "{name}");
            }
        }
    }
}
