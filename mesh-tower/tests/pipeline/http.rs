//! What else of a request could be read in two ways: headers that pretend, methods, hosts, requests
//! that follow each other, and what a refusal tells.

use std::convert::Infallible;
use std::net::SocketAddr;

use axum::Router;
use axum::extract::Request;
use bytes::Bytes;
use http::Response;
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use mesh_tower::authz::Semantics;
use mesh_tower::identity::{MeshSettings, Workload};
use mesh_tower::{Mesh, Policies};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tower::ServiceExt as _;
use tower_layer::Layer as _;

use crate::wire::{Dial, Reply, ask_http1, ask_http2, latin1};
use crate::world::{Identities, LOCALHOST, bind};

fn mesh(policies: &[Value]) -> Mesh {
    let identities = Identities::default();
    let home = "cluster.local".parse().unwrap();
    let own = "spiffe://cluster.local/ns/shop/sa/server".parse().unwrap();
    let texts: Vec<String> = policies.iter().map(Value::to_string).collect();
    let files = texts.iter().map(|text| ("p.json", text.as_str()));
    Mesh::builder(Workload::new("shop"), MeshSettings::new("cluster.local".parse().unwrap()))
        .semantics(Semantics::istio())
        .build(
            identities.svid(&own).unwrap(),
            identities.trust([&home]),
            Policies::read(files, "shop").unwrap(),
        )
        .unwrap()
}

fn policy(name: &str, action: &str, rule: &Value) -> Value {
    json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {"action": action, "rules": [rule]},
    })
}

fn to(operation: &Value) -> Value {
    json!({"to": [{"operation": operation}]})
}

/// Tells what it was asked.
async fn seen(request: Request) -> String {
    let role = request.headers().get("x-role").map(|value| latin1(value.as_bytes()));
    format!("{} {} {}", request.method(), request.uri().path(), role.unwrap_or_default())
}

async fn serve(policies: &[Value]) -> SocketAddr {
    let mesh = mesh(policies);
    let (listener, address) = bind(LOCALHOST).await.unwrap();
    let app = Router::new().fallback(seen);
    tokio::spawn(async move { mesh.serve(listener, app, std::future::pending()).await });
    address
}

async fn ask(address: SocketAddr, request: &str) -> Option<Reply> {
    let mut stream = Dial::default().connect(address).await.unwrap();
    let is_head = request.starts_with("HEAD");
    ask_http1(&mut *stream, request.as_bytes(), is_head).await
}

async fn status(address: SocketAddr, request: &str) -> u16 {
    ask(address, request).await.map_or(0, |reply| reply.status)
}

/// [SEC-HTTP-2], [SEM-PATH-04] No header says what the path is.
#[tokio::test]
async fn sec_http_2_no_header_is_the_path() {
    let admin = to(&json!({"paths": ["/admin*"]}));
    let denied = serve(&[policy("d", "DENY", &admin)]).await;
    let allowed = serve(&[policy("a", "ALLOW", &admin)]).await;
    for name in [
        "x-original-url",
        "x-rewrite-url",
        "x-envoy-original-path",
        "x-forwarded-prefix",
        "x-forwarded-uri",
        "x-original-uri",
        "x-envoy-original-url",
        "forwarded",
    ] {
        let with = |path: &str, claimed: &str| {
            format!("GET {path} HTTP/1.1\r\nHost: shop\r\n{name}: {claimed}\r\n\r\n")
        };
        assert_eq!(status(denied, &with("/admin", "/public")).await, 403, "{name}");
        assert_eq!(status(denied, &with("/public", "/admin")).await, 200, "{name}");
        assert_eq!(status(allowed, &with("/admin", "/public")).await, 200, "{name}");
        assert_eq!(status(allowed, &with("/public", "/admin")).await, 403, "{name}");
    }
}

/// [SEC-HTTP-4] The method is the request line's, compared exactly, and none has a way past policies.
#[tokio::test]
async fn sec_http_4_the_method_is_the_request_lines() {
    let address = serve(&[policy("a", "ALLOW", &to(&json!({"methods": ["GET"]})))]).await;
    let deny = serve(&[policy("d", "DENY", &to(&json!({"methods": ["DELETE"]})))]).await;
    for name in ["x-http-method-override", "x-http-method", "x-method-override"] {
        let with = |method: &str, claimed: &str| {
            format!(
                "{method} / HTTP/1.1\r\nHost: shop\r\n{name}: {claimed}\r\nContent-Length: 0\r\n\r\n"
            )
        };
        assert_eq!(status(address, &with("DELETE", "GET")).await, 403, "{name}");
        assert_eq!(status(deny, &with("DELETE", "GET")).await, 403, "{name}");
        let reply = ask(address, &with("GET", "DELETE")).await.unwrap();
        assert_eq!(latin1(&reply.body), "GET / ", "{name}");
    }
    for method in ["HEAD", "POST", "PUT", "PATCH", "OPTIONS", "TRACE", "PURGE", "MKCOL"] {
        let request = format!("{method} / HTTP/1.1\r\nHost: shop\r\nContent-Length: 0\r\n\r\n");
        assert_eq!(status(address, &request).await, 403, "{method}");
    }
    assert_eq!(status(address, "CONNECT shop:80 HTTP/1.1\r\nHost: shop:80\r\n\r\n").await, 403);
    for method in ["get", "Get", "GETS", "QUERY", "CONNECT"] {
        let mut fields: Vec<(&[u8], &[u8])> =
            vec![(b":method", method.as_bytes()), (b":authority", b"shop")];
        if method != "CONNECT" {
            fields.extend([(&b":scheme"[..], &b"http"[..]), (b":path", b"/")]);
        }
        let mut stream = Dial::default().connect(address).await.unwrap();
        let reply = ask_http2(&mut *stream, &fields).await;
        assert!(reply.is_none_or(|reply| reply.status >= 400), "HTTP/2 {method}");
    }
}

/// [SEC-HTTP-5] One host, in whatever way a request manages to name two.
#[tokio::test]
async fn sec_http_5_a_request_has_one_host() {
    let address = serve(&[policy("a", "ALLOW", &to(&json!({"hosts": ["shop"]})))]).await;
    for (request, want) in [
        ("GET / HTTP/1.1\r\nHost: shop\r\n\r\n", 200),
        ("GET / HTTP/1.1\r\nHost: SHOP\r\n\r\n", 200),
        ("GET http://shop/ HTTP/1.1\r\nHost: shop\r\n\r\n", 200),
        ("GET / HTTP/1.1\r\nHost: other\r\n\r\n", 403),
        ("GET / HTTP/1.1\r\nHost: other\r\nX-Forwarded-Host: shop\r\n\r\n", 403),
        ("GET / HTTP/1.1\r\nHost: shop\r\nHost: other\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: shop\r\nHost: shop\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: shop, other\r\n\r\n", 400),
        ("GET http://shop/ HTTP/1.1\r\nHost: other\r\n\r\n", 400),
        ("GET http://other/ HTTP/1.1\r\nHost: shop\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: shop@other\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost:\r\n\r\n", 400),
    ] {
        assert_eq!(status(address, request).await, want, "{request:?}");
    }
    for (host, want) in [(&b"shop"[..], Some(200)), (b"other", None)] {
        let fields: [(&[u8], &[u8]); 5] = [
            (b":method", b"GET"),
            (b":scheme", b"http"),
            (b":authority", b"shop"),
            (b":path", b"/"),
            (b"host", host),
        ];
        let mut stream = Dial::default().connect(address).await.unwrap();
        let reply = ask_http2(&mut *stream, &fields).await;
        let status = reply.map(|reply| reply.status).filter(|status| *status != 400);
        assert_eq!(status, want, "{host:?}");
    }
}

/// [SEC-HTTP-7] `Connection` takes no header from the policies that the application still sees, nor
/// the other way round.
#[tokio::test]
async fn sec_http_7_connection_hides_no_header() {
    let role =
        |values: &str| json!({"when": [{"key": "request.headers[x-role]", values: ["admin"]}]});
    let denied = serve(&[policy("d", "DENY", &role("values"))]).await;
    let allowed = serve(&[policy("a", "ALLOW", &role("values"))]).await;
    for connection in
        ["x-role", "keep-alive, X-Role", "close, x-role", "x-role\r\nConnection: close"]
    {
        let request = format!(
            "GET / HTTP/1.1\r\nHost: shop\r\nConnection: {connection}\r\nx-role: admin\r\n\r\n"
        );
        assert_eq!(status(denied, &request).await, 403, "{connection:?}");
        let reply = ask(allowed, &request).await.unwrap();
        // Whoever was let in for the header is known to the application by it.
        assert_eq!(
            (reply.status, latin1(&reply.body)),
            (200, "GET / admin".to_owned()),
            "{connection:?}"
        );
    }
}

/// [SEC-HTTP-8] Requests in one write are decided one by one.
#[tokio::test]
async fn sec_http_8_pipelined_requests_are_decided_one_by_one() {
    let address = serve(&[policy("d", "DENY", &to(&json!({"paths": ["/admin"]})))]).await;
    let mut stream = Dial::default().connect(address).await.unwrap();
    let get = |path: &str, more: &str| format!("GET {path} HTTP/1.1\r\nHost: shop\r\n{more}\r\n");
    let all =
        [get("/a", ""), get("/admin", ""), get("/b", ""), get("/admin", "Connection: close\r\n")];
    stream.write_all(all.concat().as_bytes()).await.unwrap();
    let mut answers = Vec::new();
    stream.read_to_end(&mut answers).await.unwrap();
    let text = latin1(&answers);
    let statuses: Vec<&str> =
        text.split("HTTP/1.1 ").skip(1).filter_map(|answer| answer.split(' ').next()).collect();
    assert_eq!(statuses, ["200", "403", "200", "403"], "{text}");
}

/// [SEC-HTTP-13] On a server that is not the mesh's own, the layer refuses: plain text is what the
/// mesh has seen to be plain, never what nobody knows anything about.
#[tokio::test]
async fn sec_http_13_the_layer_on_another_server_refuses() {
    let service = mesh(&[]).layer().layer(tower::service_fn(|_| async {
        Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"served"))))
    }));
    let (listener, address) = bind(LOCALHOST).await.unwrap();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let service = service_fn(move |request| service.clone().oneshot(request));
        auto::Builder::new(TokioExecutor::new())
            .serve_connection(TokioIo::new(stream), service)
            .await
    });
    let reply = ask(address, "GET / HTTP/1.1\r\nHost: shop\r\n\r\n").await.unwrap();
    assert_eq!((reply.status, latin1(&reply.body)), (500, String::new()));
}

/// [SEC-HTTP-16], [SEM-RESP-03] A refusal is the same whichever rule made it, and says no more.
#[tokio::test]
async fn sec_http_16_refusals_are_alike() {
    let first = serve(&[
        policy("secret-name", "DENY", &to(&json!({"paths": ["/admin"]}))),
        policy("other-name", "DENY", &to(&json!({"methods": ["DELETE"]}))),
        policy("third-name", "ALLOW", &to(&json!({"paths": ["/public"]}))),
    ])
    .await;
    let mut refusals = Vec::new();
    for line in ["GET /admin", "DELETE /public", "GET /nowhere"] {
        let reply = ask(first, &format!("{line} HTTP/1.1\r\nHost: shop\r\n\r\n")).await.unwrap();
        let mut headers = reply.headers.clone();
        headers.retain(|(name, _)| name != "date");
        refusals.push((reply.status, headers, latin1(&reply.body)));
    }
    let headers = [("content-type", "text/plain"), ("content-length", "19")];
    let headers: Vec<_> = headers.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    for refusal in refusals {
        assert_eq!(refusal, (403, headers.clone(), "RBAC: access denied".to_owned()));
    }
}

/// Cookies in thousands of crumbs are bounded by size and number (CVE-2026-47774), and a few of them
/// are the one value that policies ask about ([SEM-AUTHZ-57]).
#[tokio::test]
async fn sem_adv_35_cookie_crumbs_are_bounded() {
    let cookie = json!({"when": [{"key": "request.headers[cookie]", "values": ["a=1; b=2"]}]});
    let address = serve(&[policy("d", "DENY", &cookie)]).await;
    let with = |crumbs: &[&'static [u8]]| {
        let head: [(&[u8], &[u8]); 4] = [
            (b":method", b"GET"),
            (b":scheme", b"http"),
            (b":authority", b"shop"),
            (b":path", b"/"),
        ];
        let crumbs = crumbs.iter().map(|crumb| (&b"cookie"[..], *crumb));
        head.into_iter().chain(crumbs).collect::<Vec<(&[u8], &[u8])>>()
    };
    for (crumbs, passes) in [
        (vec![&b"a=1"[..]], true),
        (vec![b"a=1", b"b=2"], false),
        (vec![b"a"; 90], true),
        (vec![b"a"; 150], false),
        (vec![b"a"; 1_600], false),
    ] {
        let mut stream = Dial::default().connect(address).await.unwrap();
        let reply = ask_http2(&mut *stream, &with(&crumbs)).await;
        let status = reply.map_or(431, |reply| reply.status);
        let want = match (passes, crumbs.len()) {
            (true, _) => 200,
            (false, 2) => 403,
            (false, _) => 431,
        };
        assert_eq!(status, want, "{} crumbs", crumbs.len());
    }
}
