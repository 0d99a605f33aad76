//! What an attacker can make a connection cost, and what he cannot make it do.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use mesh_tower::Policies;
use mesh_tower::authn::peer::ClientProtocol;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::support::{
    PATIENCE, STRICT, SetClock, authority, client, connect, hold_both, hold_plain, policies, serve,
};

const HOUR: Duration = Duration::from_secs(3600);

/// A fresh client is served within 100 ms on a quiet machine; this one is not quiet.
const FRESH: Duration = Duration::from_secs(3);

/// Most memory that an attack may cost ([SEC-HTTP-15]).
const MEMORY: usize = 64 * 1024 * 1024;

/// What the server sends until it closes, and how that ends.
async fn answer(mut stream: TcpStream) -> (Vec<u8>, Option<ErrorKind>) {
    let mut read = Vec::new();
    let end = timeout(PATIENCE, stream.read_to_end(&mut read)).await.expect("the server closes");
    (read, end.err().map(|error| error.kind()))
}

async fn send(address: SocketAddr, bytes: &[u8]) -> (Vec<u8>, Option<ErrorKind>) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    answer(stream).await
}

/// Sends one byte every 20 ms until the server has had enough; tells when that was.
async fn drip(address: SocketAddr, bytes: &[u8]) -> Duration {
    let begun = Instant::now();
    let mut stream = TcpStream::connect(address).await.unwrap();
    for byte in bytes.iter().cycle() {
        let closed = async {
            let mut one = [0];
            matches!(stream.read(&mut one).await, Ok(0) | Err(_))
        };
        if timeout(Duration::from_millis(20), closed).await == Ok(true)
            || stream.write_all(&[*byte]).await.is_err()
        {
            return begun.elapsed();
        }
        assert!(begun.elapsed() < PATIENCE, "a dripping client is never closed");
    }
    unreachable!("a cycle has no end")
}

/// How long a stranger waits for an answer now.
async fn fresh(address: SocketAddr) -> Duration {
    let begun = Instant::now();
    let (mut held, _end) = hold_plain(address).await;
    assert_eq!(held.status("/").await, Some(200));
    begun.elapsed()
}

fn memory() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: usize = text.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
    pages * 4096
}

/// [SEC-TLS-7], [SEC-TLS-8], [SEC-TLS-14] PERMISSIVE: what begins with 0x16 stays TLS whatever
/// follows, everything else is plain text without an identity, and waiting has an end.
#[tokio::test(flavor = "multi_thread")]
async fn sec_tls_7_the_sniff_cannot_be_used_against_us() {
    let (authority, clock) = (authority(), SetClock::default());
    let second = Duration::from_secs(1);
    let server = serve(&authority, &clock, Policies::none(), |limits| {
        limits.handshake = second;
        limits.request_head = second;
    })
    .await;
    let request = b"GET /who HTTP/1.1\r\nhost: server\r\nconnection: close\r\n\r\n";
    let (plain, _) = send(server.address, request).await;
    let plain = String::from_utf8(plain).unwrap();
    assert!(plain.starts_with("HTTP/1.1 200") && plain.ends_with(" nobody"), "{plain}");
    for begin in
        [&b"\x16"[..], b"\x16\x03\x01\x00\x00", b"\x16\x03\x01\x00\x05", b"\x16\x03\x03\x40\x00"]
    {
        let (answer, _) = send(server.address, &[begin, request].concat()).await;
        assert!(!answer.windows(5).any(|part| part == b"HTTP/"), "{begin:?} was answered in HTTP");
    }
    // Silence, one byte, a dripped ClientHello, a dripped record that never ends.
    for first in [&b""[..], b"\x16", b"\x16\x03\x01"] {
        let begun = Instant::now();
        send(server.address, first).await;
        let took = begun.elapsed();
        assert!(took > second / 2 && took < second + FRESH, "{first:?}: {took:?}");
    }
    let hello = [&b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..], &[7; 501]].concat();
    let took = drip(server.address, &hello).await;
    assert!(took < second + FRESH, "{took:?}");
    assert!(fresh(server.address).await < FRESH);
}

/// [SEC-TLS-2], interfaces 2.8: plain text under STRICT is reset, as curl's exit 56 shows.
#[tokio::test(flavor = "multi_thread")]
async fn sec_tls_2_plain_text_under_strict_is_reset() {
    let (authority, clock) = (authority(), SetClock::default());
    let server = serve(&authority, &clock, policies(&[STRICT]), |_| {}).await;
    for request in
        [&b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"[..], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\0"]
    {
        let (read, end) = send(server.address, request).await;
        assert_eq!((read.as_slice(), end), (&b""[..], Some(ErrorKind::ConnectionReset)));
    }
    let url = format!("http://{}/", server.address);
    let curl = tokio::process::Command::new("curl").args(["-s", "--max-time", "5", &url]).status();
    if let Ok(status) = curl.await {
        assert_eq!(status.code(), Some(56));
    }
}

/// [SEC-TLS-7] Whoever has not sent a byte yet is waited for in a task of his own: others are
/// accepted meanwhile, in plain text and in TLS.
#[tokio::test(flavor = "multi_thread")]
async fn sec_tls_7_silence_before_the_first_byte_keeps_nobody_out() {
    let (authority, clock) = (authority(), SetClock::default());
    for policy in [Policies::none(), policies(&[STRICT])] {
        let permissive = policy.is_empty();
        let server = serve(&authority, &clock, policy, |_| {}).await;
        let mut silent = Vec::new();
        for _ in 0..64 {
            silent.push(TcpStream::connect(server.address).await.unwrap());
        }
        let begun = Instant::now();
        let connector = client(&authority, HOUR, &server);
        assert_eq!(hold_both(&connector).await[0].0.status("/").await, Some(200));
        if permissive {
            fresh(server.address).await;
        }
        assert!(begun.elapsed() < FRESH, "{:?}", begun.elapsed());
        drop(silent);
    }
}

/// [SEC-TLS-14] Handshakes in flight are bounded: the oldest give way, and a fresh client is served.
#[tokio::test(flavor = "multi_thread")]
async fn sec_tls_14_silent_handshakes_keep_nobody_out() {
    let (authority, clock) = (authority(), SetClock::default());
    let server =
        serve(&authority, &clock, policies(&[STRICT]), |limits| limits.handshakes = 8).await;
    let connector = client(&authority, HOUR, &server);
    let mut silent = Vec::new();
    for _ in 0..64 {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(b"\x16").await.unwrap();
        silent.push(stream);
    }
    let begun = Instant::now();
    assert_eq!(hold_both(&connector).await[0].0.status("/").await, Some(200));
    assert!(begun.elapsed() < FRESH, "{:?}", begun.elapsed());
    let mut closed = 0;
    for mut stream in silent {
        let read = timeout(Duration::from_millis(50), stream.read_u8());
        closed += usize::from(matches!(read.await, Ok(Err(_))));
    }
    assert!(closed >= 64 - 8, "{closed} of 64 gave way");
}

/// [SEC-TLS-14] Of many that arrive while the server is busy, the oldest give way, too: the order is
/// that of arrival, not the one in which their tasks happen to run.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn sec_tls_14_the_oldest_to_arrive_give_way() {
    let (authority, clock) = (authority(), SetClock::default());
    let server =
        serve(&authority, &clock, policies(&[STRICT]), |limits| limits.handshakes = 8).await;
    let connector = client(&authority, HOUR, &server);
    let (busy, done) = std::sync::mpsc::channel::<()>();
    let worker = tokio::spawn(async move { done.recv() });
    let mut silent = Vec::new();
    for _ in 0..64 {
        let mut stream = std::net::TcpStream::connect(server.address).unwrap();
        std::io::Write::write_all(&mut stream, b"\x16").unwrap();
        silent.push(stream);
    }
    // The last one has arrived when it waits for the first time.
    let mut last = std::pin::pin!(hold_both(&connector));
    let arrives = |cx: &mut Context<'_>| Poll::Ready(last.as_mut().poll(cx).is_pending());
    assert!(std::future::poll_fn(arrives).await);
    drop(busy);
    assert!(worker.await.unwrap().is_err());
    assert_eq!(last.await[0].0.status("/").await, Some(200));
}

/// [SEC-TLS-6] Who agrees on one protocol and speaks the other is not answered.
#[tokio::test(flavor = "multi_thread")]
async fn sec_tls_6_what_was_agreed_on_is_spoken() {
    let (authority, clock) = (authority(), SetClock::default());
    let server = serve(&authority, &clock, policies(&[STRICT]), |_| {}).await;
    let connector = client(&authority, HOUR, &server);
    let http1 = b"GET / HTTP/1.1\r\nhost: server\r\n\r\n";
    let http2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    for (protocol, bytes) in
        [(ClientProtocol::Http2, &http1[..]), (ClientProtocol::Http1, &http2[..])]
    {
        let stream = connect(&connector.clone().protocol(protocol)).await.unwrap();
        let mut stream = TokioIo::new(stream);
        stream.write_all(bytes).await.unwrap();
        let mut read = Vec::new();
        // Closing without saying so is an error of TLS, and an end all the same.
        drop(timeout(PATIENCE, stream.read_to_end(&mut read)).await.expect("it is closed"));
        assert!(read.is_empty(), "{protocol:?} was answered");
    }
}

/// [SEC-HTTP-14] Silence and drips after the handshake end: on the version, the head, the preface;
/// a slow body holds nobody else up.
#[tokio::test(flavor = "multi_thread")]
async fn sec_http_14_slow_clients_end() {
    let (authority, clock) = (authority(), SetClock::default());
    let second = Duration::from_secs(1);
    let server =
        serve(&authority, &clock, Policies::none(), |limits| limits.request_head = second).await;
    let stalls: [&[u8]; 4] = [
        b"G",
        b"GET / HTTP/1.1\r\nhost: a\r\n",
        b"PRI * HTTP/2.0\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\n\r\n",
    ];
    for stall in stalls {
        let begun = Instant::now();
        send(server.address, stall).await;
        assert!(begun.elapsed() < second + FRESH, "{stall:?}: {:?}", begun.elapsed());
    }
    let took = drip(server.address, b"a").await;
    assert!(took < second + FRESH, "a dripped head: {took:?}");
    let stream = connect(&client(&authority, HOUR, &server)).await.unwrap();
    let mut silent = TokioIo::new(stream);
    let begun = Instant::now();
    assert!(timeout(PATIENCE, silent.read_u8()).await.expect("it is closed").is_err());
    assert!(begun.elapsed() < second + FRESH, "silence after the handshake");
    let mut bodies = Vec::new();
    for _ in 0..100 {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        let head = b"POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 100000\r\n\r\nx";
        stream.write_all(head).await.unwrap();
        bodies.push(stream);
    }
    assert!(fresh(server.address).await < FRESH);
}

/// [SEC-HTTP-9] `Upgrade: h2c` is an ordinary request: no second connection begins.
#[tokio::test(flavor = "multi_thread")]
async fn sec_http_9_an_upgrade_to_h2c_is_not_taken() {
    let (authority, clock) = (authority(), SetClock::default());
    let server = serve(&authority, &clock, Policies::none(), |_| {}).await;
    let head = b"GET /who HTTP/1.1\r\nhost: a\r\nconnection: Upgrade, HTTP2-Settings\r\n\
        upgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n\r\n";
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    let (read, _) = send(server.address, &[&head[..], preface].concat()).await;
    let read = String::from_utf8_lossy(&read);
    assert!(read.starts_with("HTTP/1.1 200") && !read.contains(" 101 "), "{read}");
    assert!(read.matches("HTTP/1.1").count() <= 2, "{read}");
}

/// [SEC-HTTP-10] Framing that two readers could read differently is refused or ends the connection.
#[tokio::test(flavor = "multi_thread")]
async fn sec_http_10_ambiguous_framing_never_makes_two_requests() {
    let (authority, clock) = (authority(), SetClock::default());
    let server = serve(&authority, &clock, Policies::none(), |limits| {
        limits.request_head = Duration::from_millis(500);
    })
    .await;
    let smuggled = "GET /who HTTP/1.1\r\nhost: a\r\n\r\n";
    let chunked = format!("0\r\n\r\n{smuggled}");
    for head in [
        format!("content-length: {}\r\ntransfer-encoding: chunked\r\n", chunked.len()),
        format!("content-length: 0\r\ncontent-length: {}\r\n", chunked.len()),
        "transfer-encoding: chunked, identity\r\n".to_owned(),
        "transfer-encoding: \x0bchunked\r\n".to_owned(),
        "x: a\r\n folded: b\r\ncontent-length: 0\r\n".to_owned(),
        "content-length: +0\r\n".to_owned(),
        "content-length : 0\r\n".to_owned(),
    ] {
        let bytes = format!("POST /echo HTTP/1.1\r\nhost: a\r\n{head}\r\n{chunked}");
        let (read, _) = send(server.address, bytes.as_bytes()).await;
        let read = String::from_utf8_lossy(&read);
        assert!(!read.contains(" nobody"), "{head:?} smuggled a request: {read}");
    }
}

/// [SEC-HTTP-11] The body of a denied request is not the next request.
#[tokio::test(flavor = "multi_thread")]
async fn sec_http_11_a_denied_body_is_not_the_next_request() {
    let deny = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-echo, namespace: shop}
spec: {action: DENY, rules: [{to: [{operation: {paths: [/echo]}}]}]}
";
    let (authority, clock) = (authority(), SetClock::default());
    let server = serve(&authority, &clock, policies(&[deny]), |limits| {
        limits.request_head = Duration::from_millis(500);
    })
    .await;
    let smuggled = "GET /who HTTP/1.1\r\nhost: a\r\n\r\n".repeat(3000);
    let head =
        format!("POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n", smuggled.len());
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    // The server may close before it has all.
    drop(stream.write_all(smuggled.as_bytes()).await);
    let (read, _) = answer(stream).await;
    let read = String::from_utf8_lossy(&read);
    assert!(!read.contains(" nobody") && read.matches("HTTP/1.1 ").count() <= 1, "{read}");
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// `GET https://a/` in HPACK: all from the static table but the authority.
const HEAD: &[u8] = b"\x82\x87\x84\x41\x01a";

/// What is sent on the n-th stream.
type Flood = (&'static str, Box<dyn Fn(u32) -> Vec<u8> + Send + Sync>);

/// [SEC-HTTP-15] Floods of HTTP/2 frames: memory stays, and a fresh client is served meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn sec_http_15_floods_cost_little_and_keep_nobody_out() {
    let (authority, clock) = (authority(), SetClock::default());
    let server = serve(&authority, &clock, Policies::none(), |_| {}).await;
    let ids = || (1_u32..).step_by(2);
    let floods: [Flood; 6] = [
        (
            "rapid reset",
            Box::new(|id| [frame(1, 5, id, HEAD), frame(3, 0, id, &8_u32.to_be_bytes())].concat()),
        ),
        (
            "CONTINUATION",
            Box::new(|id| match id {
                1 => frame(1, 1, 1, HEAD),
                _ => frame(9, 0, 1, &[0; 1000]),
            }),
        ),
        ("SETTINGS", Box::new(|_| frame(4, 0, 0, &[0, 4, 0, 1, 0, 0]))),
        ("PING", Box::new(|_| frame(6, 0, 0, &[7; 8]))),
        (
            "empty DATA",
            Box::new(|id| match id {
                1 => frame(1, 4, 1, b"\x83\x87\x04\x05/echo\x41\x01a"),
                _ => frame(0, 0, 1, &[]),
            }),
        ),
        (
            "wrong frames",
            Box::new(|id| [frame(1, 5, id, HEAD), frame(8, 0, id, &0_u32.to_be_bytes())].concat()),
        ),
    ];
    fresh(server.address).await;
    for (name, flood) in floods {
        let before = memory();
        let address = server.address;
        let flooding = tokio::spawn(async move {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
            stream.write_all(preface).await.unwrap();
            let mut ids = ids();
            // Nothing of what the server says is read. It may close, or cease to read.
            loop {
                let batch: Vec<u8> = ids.by_ref().take(500).flat_map(&flood).collect();
                if stream.write_all(&batch).await.is_err() {
                    return;
                }
            }
        });
        let mut slowest = Duration::ZERO;
        for _ in 0..8 {
            tokio::time::sleep(Duration::from_millis(50)).await;
            slowest = slowest.max(fresh(server.address).await);
        }
        let grown = memory().saturating_sub(before);
        flooding.abort();
        println!("{name:<14} {grown:>10} bytes, a fresh client within {slowest:?}");
        assert!(slowest < FRESH, "{name}: a fresh client waited {slowest:?}");
        assert!(grown < MEMORY, "{name}: {grown} bytes");
    }
}
