//! The list of metrics is the truth: what it names is reported, with these labels, and nothing else.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mesh_tower::authn::peer::ClientProtocol;
use mesh_tower::authn::request::RefreshPolicy;
use mesh_tower::{FetchFuture, KeyFetcher, MetricKind, TcpConnection, Telemetry};
use tokio::io::AsyncWriteExt as _;

use crate::metrics::{app, until};
use crate::support::{authority, connect};
use crate::{ask, bind, connector, done, get};

const TOKENS: &str = "
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: tokens, namespace: shop}
spec: {jwtRules: [{issuer: a, jwksUri: 'https://keys.example/jwks'}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: all, namespace: shop}
spec: {rules: [{}]}
";

/// A set of one key.
#[derive(Debug)]
struct Keys;

const SET: &[u8] = br#"{"keys": [{"kty": "EC", "kid": "one", "crv": "P-256",
    "x": "MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4",
    "y": "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"}]}"#;

impl KeyFetcher for Keys {
    fn fetch<'f>(&'f self, _: &'f str, _: Duration) -> FetchFuture<'f> {
        Box::pin(async { Ok(Bytes::from_static(SET)) })
    }
}

/// A metric's name and the names of its labels, as a line of a scrape has them.
fn parse(line: &str) -> (&str, Vec<&str>) {
    let end = line.find(['{', ' ']).unwrap();
    let (name, mut rest) = line.split_at(end);
    let mut labels = Vec::new();
    while rest.starts_with(['{', ',']) {
        let (label, value) = rest.get(1..).unwrap().split_once("=\"").unwrap();
        labels.push(label);
        let mut escaped = false;
        let close = value.find(|c| {
            let ends = c == '"' && !escaped;
            escaped = c == '\\' && !escaped;
            ends
        });
        rest = value.split_at(close.unwrap()).1.get(1..).unwrap();
    }
    (name, labels)
}

async fn greet(mut connection: TcpConnection) {
    drop(connection.write_all(b"hello").await);
}

/// Traffic of every kind, so that each metric has a value.
async fn scrapes() -> Vec<String> {
    let authority = authority();
    let mesh = crate::mesh(&authority, TOKENS, |builder| builder);
    tokio::spawn(mesh.clone().keep_keys_fresh(Arc::new(Keys), RefreshPolicy::default()));
    let (listener, address) = bind().await;
    let serving = mesh.clone();
    tokio::spawn(async move { serving.serve(listener, app(), std::future::pending()).await });
    let web = connector(&authority, "web", address);
    assert_eq!(ask(&web, done(get("/hello"))).await.0, 200);
    let grpc =
        http::Request::post("https://server/Shop/List").header("content-type", "application/grpc");
    let grpc_client = web.clone().protocol(ClientProtocol::Http2);
    crate::ask_http2(&grpc_client, done(grpc)).await;
    until(&mesh, "istio_request_messages_total").await;
    until(&mesh, "mesh_jwks_fetched_timestamp_seconds").await;

    let tcp = crate::mesh(&authority, "", |builder| builder);
    let (listener, address) = bind().await;
    let serving = tcp.clone();
    tokio::spawn(async move { serving.serve_tcp(listener, greet, std::future::pending()).await });
    drop(connect(&connector(&authority, "web", address)).await.unwrap());
    until(&tcp, "istio_tcp_connections_closed_total").await;
    [mesh, tcp].map(|mesh| mesh.telemetry().prometheus()).into()
}

/// Both directions: no metric or label that is not listed, and none listed that is never there.
#[tokio::test]
async fn the_catalog_is_what_is_reported() {
    let mut seen = BTreeSet::new();
    for line in scrapes().await.iter().flat_map(|text| text.lines()) {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            let listed = Telemetry::catalog().iter().find(|one| one.name == name);
            assert_eq!(listed.unwrap().kind.as_str(), kind, "{name}");
            continue;
        }
        if let Some(rest) = line.strip_prefix("# HELP ") {
            assert!(rest.split_once(' ').unwrap().1.ends_with('.'), "{rest}");
            continue;
        }
        let (name, labels) = parse(line);
        let listed = Telemetry::catalog().iter().find(|one| {
            let is_histogram = one.kind == MetricKind::Histogram;
            let parts: &[&str] = if is_histogram { &["_bucket", "_sum", "_count"] } else { &[""] };
            let rest = name.strip_prefix(one.name);
            rest.is_some_and(|rest| parts.contains(&rest))
        });
        let listed = listed.unwrap_or_else(|| panic!("{name} is not listed"));
        let mut wanted = listed.labels.to_vec();
        wanted.extend(name.ends_with("_bucket").then_some("le"));
        assert_eq!(labels, wanted, "{name}");
        seen.insert(listed.name);
    }
    let listed: BTreeSet<&str> = Telemetry::catalog().iter().map(|one| one.name).collect();
    assert_eq!(seen, listed);
}
