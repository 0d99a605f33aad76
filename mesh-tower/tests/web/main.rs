//! What a program sees of the mesh and sets about it, over real sockets: extractors, open paths,
//! its own denials, forwarded certificates, the PROXY protocol, TCP services, `axum::serve`, logs
//! and metrics.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[cfg(feature = "admin")]
mod admin;
mod catalog;
mod handlers;
mod headers;
#[expect(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    reason = "a line of the wrong form fails the test"
)]
mod logs;
#[expect(clippy::panic, reason = "a metric that never comes fails the test")]
mod metrics;
mod outbound;
#[cfg(feature = "admin")]
mod ready;
mod reload;
#[expect(
    clippy::arithmetic_side_effects,
    clippy::format_collect,
    clippy::too_many_lines,
    reason = "one list of secrets, one list of places"
)]
mod secrets;
#[expect(
    clippy::arithmetic_side_effects,
    clippy::disallowed_methods,
    clippy::expect_used,
    dead_code,
    reason = "shared with the tests of connections' lives"
)]
#[path = "../life/support.rs"]
mod support;
mod tcp;
#[expect(clippy::arithmetic_side_effects, reason = "spans are counted")]
mod trace;
mod upgrade;

use std::net::SocketAddr;

use http::{Request, Response};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_ca::Authority;
use mesh_tower::authn::peer::{ClientProtocol, ExpectedServer};
use mesh_tower::identity::{MeshSettings, Workload};
use mesh_tower::{Connector, Mesh, MeshBuilder, Policies};
use tokio::net::{TcpListener, TcpStream};

use crate::support::{SetClock, client_mesh, connect, id, svid, trust};

const HOUR: std::time::Duration = std::time::Duration::from_secs(3600);

/// A mesh of the workload `server`, with settings of its own.
fn mesh(authority: &Authority, text: &str, set: impl FnOnce(MeshBuilder) -> MeshBuilder) -> Mesh {
    let policies = if text.is_empty() { Policies::none() } else { support::policies(&[text]) };
    set(Mesh::builder(Workload::new("shop"), MeshSettings::new("cluster.local".parse().unwrap())))
        .build(svid(authority, "server", HOUR), trust(&[authority]), policies)
        .unwrap()
}

async fn bind() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// A client with this account's identity.
fn connector(authority: &Authority, account: &str, address: SocketAddr) -> Connector {
    let mesh =
        client_mesh(svid(authority, account, HOUR), trust(&[authority]), &SetClock::default());
    Connector::new(mesh).service("server", address, &ExpectedServer::exact(id("server")))
}

/// One request over mutual TLS, HTTP/1.1.
async fn ask(connector: &Connector, request: Request<Empty<Bytes>>) -> (u16, String) {
    let stream = connect(&connector.clone().protocol(ClientProtocol::Http1)).await.unwrap();
    read(send(stream, request).await).await
}

/// One request over mutual TLS, HTTP/2.
async fn ask_http2(connector: &Connector, request: Request<Empty<Bytes>>) -> (u16, String) {
    let stream = connect(&connector.clone().protocol(ClientProtocol::Http2)).await.unwrap();
    let (mut send, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.unwrap();
    tokio::spawn(connection);
    read(send.send_request(request).await.unwrap()).await
}

/// One request without TLS.
async fn ask_plain(address: SocketAddr, request: Request<Empty<Bytes>>) -> (u16, String) {
    let stream = TcpStream::connect(address).await.unwrap();
    read(send(TokioIo::new(stream), request).await).await
}

async fn send<T>(stream: T, request: Request<Empty<Bytes>>) -> Response<Incoming>
where
    T: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let (mut send, connection) = hyper::client::conn::http1::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    send.send_request(request).await.unwrap()
}

async fn read(response: Response<Incoming>) -> (u16, String) {
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

fn get(path: &str) -> http::request::Builder {
    Request::get(path).header("host", "server")
}

fn done(builder: http::request::Builder) -> Request<Empty<Bytes>> {
    builder.body(Empty::new()).unwrap()
}
