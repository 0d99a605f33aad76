//! The admin page: what it shows, to whom, and that it shows no secret.

use std::net::SocketAddr;

use axum::Router;
use axum::routing::get as get_route;
use http::Request;
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioIo;
use mesh_tower::Mesh;
use tokio::net::{TcpListener, TcpStream};

use crate::support::authority;
use crate::{ask, bind, connector, done, get, mesh};

const POLICIES: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: readers, namespace: shop}
spec:
  rules:
  - from: [{source: {principals: [cluster.local/ns/shop/sa/web]}}]
    to: [{operation: {methods: [GET], paths: ['/cart*']}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-admin, namespace: shop}
spec:
  action: DENY
  rules: [{to: [{operation: {paths: ['/admin*']}}]}]
";

pub(crate) struct Answer {
    pub(crate) status: u16,
    policy: String,
    pub(crate) body: String,
}

pub(crate) async fn page(address: SocketAddr, request: http::request::Builder) -> Answer {
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut send, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = request.body(Empty::<bytes::Bytes>::new()).unwrap();
    let response = send.send_request(request).await.unwrap();
    let status = response.status().as_u16();
    let policy = response.headers()["content-security-policy"].to_str().unwrap().to_owned();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    Answer { status, policy, body: String::from_utf8(body.to_vec()).unwrap() }
}

async fn serve(mesh: &Mesh) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(mesh.admin().host("admin.shop").serve(listener, std::future::pending()));
    address
}

pub(crate) fn at(path: &str, host: &str) -> http::request::Builder {
    Request::get(path).header("host", host)
}

/// Policies with hits, certificates, refusals with their reason; markup and tokens of requests are
/// neither. [SEC-AUTHZ-12], [SEC-OPS-4]
#[tokio::test]
async fn sec_ops_4_the_page_shows_what_is_in_force_and_no_secret() {
    let authority = authority();
    let mesh = mesh(&authority, POLICIES, |builder| builder);
    let admin = serve(&mesh).await;
    let (listener, address) = bind().await;
    let serving = mesh.clone();
    let app = Router::new().fallback(get_route(|| async { "hello" }));
    tokio::spawn(async move { serving.serve(listener, app, std::future::pending()).await });
    let web = connector(&authority, "web", address);
    let secret = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJzZWNyZXQifQ.c2VjcmV0";
    assert_eq!(ask(&web, done(get("/cart"))).await.0, 200);
    let path = format!("/admin/<script>alert(1)</script>/{secret}?q={secret}");
    let asked = get(&path.replace('<', "%3C").replace('>', "%3E"));
    assert_eq!(ask(&web, done(asked.header("cookie", secret))).await.0, 403);
    tokio::time::sleep(std::time::Duration::from_millis(150)).await;
    let asked = get("/other").header("authorization", format!("Bearer {secret}"));
    assert_eq!(ask(&web, done(asked)).await.0, 403);

    let html = page(admin, at("/", "localhost")).await;
    assert_eq!(html.status, 200);
    for wanted in
        ["readers", "no-admin", "spiffe://cluster.local/ns/shop/sa/server", "nearest miss"]
    {
        assert!(html.body.contains(wanted), "{wanted}");
    }
    let json = page(admin, at("/status.json", "127.0.0.1:15000")).await;
    let status: serde_json::Value = serde_json::from_str(&json.body).unwrap();
    assert_eq!(status["ready"], true);
    assert_eq!(status["policies"][0]["name"], "readers");
    assert_eq!(status["policies"][0]["hits"], 1);
    assert_eq!(status["policies"][1]["hits"], 1);
    assert_eq!(status["recent_denials"][0]["path"], "/other");
    let why = status["recent_denials"][0]["explanation"].as_str().unwrap();
    assert!(why.contains("nearest miss: ns[shop]-policy[readers]-rule[0]"), "{why}");
    assert_eq!(status["certificates"][0]["kind"], "own");
    let caller = &status["callers"][0];
    assert_eq!(caller["principal"], "spiffe://cluster.local/ns/shop/sa/web");
    assert_eq!((&caller["requests"], &caller["answers"][1]["code"]), (&3.into(), &403.into()));
    let metrics = page(admin, at("/metrics", "[::1]")).await;
    assert!(metrics.body.contains("istio_requests_total{"));
    assert_eq!(page(admin, at("/readyz", "localhost")).await.body, "ready\n");
    for answer in [&html, &json, &metrics] {
        for part in secret.split('.').skip(1) {
            assert!(!answer.body.contains(part));
        }
        assert!(!answer.body.contains("<script"));
        assert!(answer.policy.starts_with("default-src 'none'; style-src 'sha256-"));
    }

    // Not ready, and visibly so.
    mesh.withdraw_identity();
    let answer = page(admin, at("/readyz", "localhost")).await;
    assert_eq!(answer.status, 503);
    assert!(answer.body.contains("withdrawn"), "{}", answer.body);
}

/// A page of somebody else's reads nothing, by whatever name it reaches the address.
#[tokio::test]
async fn the_page_is_for_its_own_host_only() {
    let authority = authority();
    let mesh = mesh(&authority, POLICIES, |builder| builder);
    let admin = serve(&mesh).await;
    for (host, want) in [
        ("localhost:15000", 200),
        ("LOCALHOST", 200),
        ("127.0.0.1", 200),
        ("[::1]:15000", 200),
        ("admin.shop:15000", 200),
        ("evil.example", 421),
        ("evil.example:15000", 421),
        ("127.0.0.1.evil.example", 421),
        ("localhost.evil.example", 421),
        ("localhost@evil.example", 421),
        ("user@localhost", 421),
        ("10.0.0.1", 421),
        ("", 421),
    ] {
        assert_eq!(page(admin, at("/status.json", host)).await.status, want, "{host:?}");
    }
    let two = at("/", "localhost").header("host", "evil.example");
    assert_eq!(page(admin, two).await.status, 421);
    let cross = at("/status.json", "localhost").header("sec-fetch-site", "cross-site");
    assert_eq!(page(admin, cross).await.status, 403);
    let post = Request::post("/").header("host", "localhost");
    assert_eq!(page(admin, post).await.status, 405);
    assert_eq!(page(admin, at("/elsewhere", "localhost")).await.status, 404);
}

/// Only loopback, unless the program says otherwise.
#[tokio::test]
async fn the_page_is_served_on_loopback_only() {
    let authority = authority();
    let mesh = mesh(&authority, POLICIES, |builder| builder);
    let bind = || TcpListener::bind("0.0.0.0:0");
    let refused = mesh.admin().serve(bind().await.unwrap(), std::future::ready(())).await;
    assert_eq!(refused.unwrap_err().kind(), std::io::ErrorKind::InvalidInput);
    let allowed = mesh.admin().on_any_address();
    allowed.serve(bind().await.unwrap(), std::future::ready(())).await.unwrap();
}
