//! Upgrades are requests like any other.

use axum::Router;
use axum::routing;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::support::{PATIENCE, authority};
use crate::{bind, mesh};

const ONLY_OPEN: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: only-open, namespace: shop}
spec: {rules: [{to: [{operation: {methods: [GET], paths: [/open]}}]}]}
";

/// [SEC-HTTP-8], [SEC-HTTP-9] Policies judge a request that asks for another protocol, and what
/// comes after it is judged by itself: nothing opens a second, unguarded connection.
#[tokio::test]
async fn sec_http_9_an_upgrade_opens_nothing() {
    let authority = authority();
    let mesh = mesh(&authority, ONLY_OPEN, |builder| builder);
    let (listener, address) = bind().await;
    let app = Router::new()
        .route("/open", routing::any(|| async { "open" }))
        .route("/closed", routing::any(|| async { "closed" }));
    tokio::spawn(async move { mesh.serve(listener, app, std::future::pending()).await });

    let h2c = "connection: upgrade, http2-settings\r\nupgrade: h2c\r\n\
               http2-settings: AAMAAABkAAQAAP__\r\n";
    let websocket = "connection: upgrade\r\nupgrade: websocket\r\n\
                     sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n";
    for (method, path, more, want) in [
        ("GET", "/open", h2c, "200"),
        ("GET", "/closed", h2c, "403"),
        ("GET", "/open", websocket, "200"),
        ("GET", "/closed", websocket, "403"),
        ("CONNECT", "server:443", "", "403"),
    ] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let host = if method == "CONNECT" { path } else { "server" };
        let first = format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\n{more}\r\n");
        let then = "GET /closed HTTP/1.1\r\nhost: server\r\nconnection: close\r\n\r\n";
        stream.write_all((first + then).as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        drop(timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("an end"));
        let answer = String::from_utf8_lossy(&answer);
        let statuses: Vec<_> =
            answer.split("HTTP/1.1 ").skip(1).filter_map(|rest| rest.get(..3)).collect();
        assert_eq!(statuses, [want, "403"], "{method} {path} {more}: {answer}");
    }
}
