//! TCP services and the PROXY protocol.

use std::time::Duration;

use axum::Router;
use axum::routing;
use mesh_tower::TcpConnection;
use mesh_tower::authn::peer::ClientProtocol;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::support::{PATIENCE, authority, connect};
use crate::{bind, connector, mesh};

const READERS: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: readers, namespace: shop}
spec:
  rules:
  - from: [{source: {principals: [cluster.local/ns/shop/sa/reader]}}]
";

/// Speaks first, as many databases do, and then repeats what it hears.
async fn greet_and_echo(mut connection: TcpConnection) {
    if connection.write_all(b"hello\n").await.is_err() {
        return;
    }
    let mut heard = [0; 64];
    while let Ok(count @ 1..) = connection.read(&mut heard).await {
        let Some(heard) = heard.get(..count) else { return };
        if connection.write_all(heard).await.is_err() {
            return;
        }
    }
}

/// [SEM-STRICT-09], [SEM-TCP-10] A connection is judged before anybody speaks: who is refused does
/// not even get the greeting.
#[tokio::test]
async fn sem_strict_09_a_refused_connection_hears_nothing() {
    let authority = authority();
    let mesh = mesh(&authority, READERS, |builder| builder);
    let (listener, address) = bind().await;
    let serving = mesh.clone();
    tokio::spawn(async move {
        serving.serve_tcp(listener, greet_and_echo, std::future::pending()).await
    });

    let reader = connector(&authority, "reader", address).protocol(ClientProtocol::Http1);
    let mut admitted = hyper_util::rt::TokioIo::new(connect(&reader).await.unwrap());
    let mut greeting = [0; 6];
    timeout(PATIENCE, admitted.read_exact(&mut greeting)).await.unwrap().unwrap();
    assert_eq!(&greeting, b"hello\n");
    admitted.write_all(b"ping!\n").await.unwrap();
    timeout(PATIENCE, admitted.read_exact(&mut greeting)).await.unwrap().unwrap();
    assert_eq!(&greeting, b"ping!\n");

    let other = connector(&authority, "other", address).protocol(ClientProtocol::Http1);
    let mut heard = Vec::new();
    if let Ok(stream) = connect(&other).await {
        let mut stream = hyper_util::rt::TokioIo::new(stream);
        drop(timeout(PATIENCE, stream.read_to_end(&mut heard)).await.expect("it is closed"));
    }
    assert_eq!(heard, b"");
    let mut plain = TcpStream::connect(address).await.unwrap();
    drop(timeout(PATIENCE, plain.read_to_end(&mut heard)).await);
    assert_eq!(heard, b"", "without an identity nobody is a reader");

    drop(admitted);
    for _ in 0..200 {
        if mesh.telemetry().tcp_connections() == (1, 1) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(mesh.telemetry().tcp_connections(), (1, 1), "only what was admitted is opened");
    assert_eq!(mesh.telemetry().tcp_bytes(), (6, 12));
}

/// [SEM-STRICT-10] A DENY that would widen on TCP is a configuration error there, at the start and
/// with every later change.
#[tokio::test]
async fn sem_strict_10_policies_for_http_do_not_widen_on_tcp() {
    let deny = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-post, namespace: shop}
spec: {action: DENY, rules: [{to: [{operation: {methods: [POST]}}]}]}
";
    let authority = authority();
    let http_only = mesh(&authority, deny, |builder| builder);
    let (listener, _) = bind().await;
    let refused = http_only.serve_tcp(listener, greet_and_echo, std::future::ready(())).await;
    assert!(refused.is_err(), "the policies do not fit a TCP service");

    let served = mesh(&authority, READERS, |builder| builder);
    let (listener, _) = bind().await;
    served.serve_tcp(listener, greet_and_echo, std::future::ready(())).await.unwrap();
    assert!(served.set_policies(crate::support::policies(&[deny])).is_err());
}

/// [SEM-AUTHZ-32], [SEM-AUTHZ-33] A listed load balancer says who the client is, and must; nobody
/// else's PROXY header is read.
#[tokio::test]
async fn sem_authz_32_only_a_listed_balancer_names_the_client() {
    let text = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: office, namespace: shop}
spec: {rules: [{from: [{source: {ipBlocks: [9.8.7.6/32]}}]}]}
";
    let authority = authority();
    for (balancers, header, want) in [
        ("127.0.0.0/8", "PROXY TCP4 9.8.7.6 1.2.3.4 1000 80\r\n", Some("200")),
        ("127.0.0.0/8", "PROXY TCP4 9.8.7.7 1.2.3.4 1000 80\r\n", Some("403")),
        ("127.0.0.0/8", "PROXY UNKNOWN\r\n", Some("403")),
        ("127.0.0.0/8", "", None),
        ("10.0.0.0/8", "PROXY TCP4 9.8.7.6 1.2.3.4 1000 80\r\n", Some("400")),
        ("10.0.0.0/8", "", Some("403")),
    ] {
        let mesh = mesh(&authority, text, |builder| builder);
        let (listener, address) = bind().await;
        let app = Router::new().route("/", routing::get(|| async { "in" }));
        let server = mesh.server(listener).proxy_protocol_from([balancers.parse().unwrap()]);
        tokio::spawn(async move { server.serve(app, std::future::pending()).await });
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("{header}GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        drop(timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("an end"));
        let answer = String::from_utf8_lossy(&answer);
        let status = answer.split(' ').nth(1);
        assert_eq!(status, want, "{balancers}: {header:?}: {answer}");
    }
}
