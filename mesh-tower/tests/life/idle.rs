//! [SEC-HTTP-14] Connections without requests, and requests whose bodies stand still.

use std::time::{Duration, Instant};

use http::Request;
use http_body_util::StreamBody;
use hyper::body::{Bytes, Frame};
use hyper::client::conn::http2;
use hyper_util::rt::TokioExecutor;
use mesh_tower::authn::peer::ClientProtocol;
use mesh_tower::{Limits, Policies};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::support::{
    HeldWithEnd, PATIENCE, Server, SetClock, authority, client, connect, gone, hold, serve,
};

const HOUR: Duration = Duration::from_secs(3600);

/// What "at once" means on a busy machine.
const SOON: Duration = Duration::from_secs(3);

const LIMIT: Duration = Duration::from_millis(400);

async fn hold_http2(change: impl FnOnce(&mut Limits)) -> (Server, HeldWithEnd) {
    let (authority, clock) = (authority(), SetClock::default());
    let server = serve(&authority, &clock, Policies::none(), change).await;
    let connector = client(&authority, HOUR, &server).protocol(ClientProtocol::Http2);
    let held = hold(connect(&connector).await.unwrap(), 2).await;
    (server, held)
}

/// A connection that answers every ping, and asks nothing, is ended; one that asks is not.
#[tokio::test(flavor = "multi_thread")]
async fn sec_http_14_http2_without_requests_is_ended() {
    let (_server, (mut held, end)) =
        hold_http2(|limits| limits.connection_idle = Some(LIMIT)).await;
    // Each pause is shorter than the limit, all together are longer.
    for _ in 0..6 {
        assert_eq!(held.status("/").await, Some(200));
        tokio::time::sleep(LIMIT / 4).await;
    }
    let took = gone(end).await;
    assert!(took > LIMIT / 2 && took < LIMIT + SOON, "{took:?}");
}

/// A stream without end is a request for as long as it is read, whatever the limit.
#[tokio::test(flavor = "multi_thread")]
async fn sec_http_14_a_stream_is_not_idle() {
    use http_body_util::BodyExt as _;
    let (_server, (mut held, end)) =
        hold_http2(|limits| limits.connection_idle = Some(LIMIT)).await;
    let mut body = held.get("/stream").await.unwrap().into_body();
    let begun = Instant::now();
    while begun.elapsed() < 3 * LIMIT {
        assert!(body.frame().await.unwrap().is_ok());
    }
    assert!(!end.is_finished());
    drop(body);
    assert!(gone(end).await < LIMIT + SOON);
}

/// Without a limit nothing is ended.
#[tokio::test(flavor = "multi_thread")]
async fn sec_http_14_no_idle_limit_is_any_time() {
    let (_server, (mut held, _end)) = hold_http2(|limits| limits.connection_idle = None).await;
    tokio::time::sleep(3 * LIMIT).await;
    assert_eq!(held.status("/").await, Some(200));
}

/// A body that stands still fails, with or without a length, and the connection is given up; one
/// that goes on may take longer than the limit.
#[tokio::test(flavor = "multi_thread")]
async fn sec_http_14_a_body_that_stands_still() {
    let (authority, clock) = (authority(), SetClock::default());
    let server =
        serve(&authority, &clock, Policies::none(), |l| l.request_body = Some(LIMIT)).await;
    for head in [
        "content-length: 12",
        "transfer-encoding: chunked",
        // The client's word for it makes no stream of gRPC.
        "content-type: application/grpc\r\ncontent-length: 12",
    ] {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        let begun = Instant::now();
        let request = format!("POST /echo HTTP/1.1\r\nhost: server\r\n{head}\r\n\r\n2\r\nab\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("an end").unwrap();
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.starts_with("HTTP/1.1 4"), "{head}: {answer}");
        let took = begun.elapsed();
        assert!(took > LIMIT / 2 && took < LIMIT + SOON, "{head}: {took:?}");
    }
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let head =
        "POST /echo HTTP/1.1\r\nhost: server\r\nconnection: close\r\ncontent-length: 8\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    for _ in 0..8 {
        tokio::time::sleep(LIMIT / 4).await;
        stream.write_all(b"x").await.unwrap();
    }
    let mut answer = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut answer)).await.expect("an end").unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("xxxxxxxx"), "{answer}");
}

/// The same for one stream of HTTP/2, whose connection goes on; gRPC's messages may be far apart.
#[tokio::test(flavor = "multi_thread")]
async fn sec_http_14_a_stream_that_stands_still() {
    let (authority, clock) = (authority(), SetClock::default());
    let server =
        serve(&authority, &clock, Policies::none(), |l| l.request_body = Some(LIMIT)).await;
    let connector = client(&authority, HOUR, &server).protocol(ClientProtocol::Http2);
    let stream = connect(&connector).await.unwrap();
    let (mut send, connection) = http2::handshake(TokioExecutor::new(), stream).await.unwrap();
    tokio::spawn(connection);
    for (kind, ends) in [("text/plain", true), ("application/grpc", false), ("text/html", true)] {
        let still = futures_util::stream::pending::<Result<Frame<Bytes>, std::io::Error>>();
        let request = Request::post("https://server/echo").header("content-type", kind);
        let request = request.body(StreamBody::new(still)).unwrap();
        let answer = timeout(4 * LIMIT, send.send_request(request)).await;
        let status = answer.ok().map(|answer| answer.unwrap().status().as_u16());
        assert_eq!(status.is_some_and(|status| (400..500).contains(&status)), ends, "{kind}");
    }
}
