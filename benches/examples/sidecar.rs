//! The processes that `benches/envoy/compare.py` measures: one app, bare or in the mesh, and the load.
//!
//! `sidecar identities DIR` writes what both sides need; `sidecar bare` and `sidecar mesh DIR` serve on
//! a free port, which they print; `sidecar load DIR ADDRESS plain|mtls CONNECTIONS REQUESTS` asks in a
//! closed loop over connections that are kept, and prints the number of requests and their median.
#![expect(
    clippy::arithmetic_side_effects,
    clippy::disallowed_methods,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a measurement that goes wrong must stop"
)]

use std::future::pending;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Empty;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use mesh_benches::files::{connector, mesh, read_token, write_identities};
use mesh_benches::service::{ask, request, router, strict_policies};
use mesh_tower::{Connector, Limits, Policies};
use tokio::net::{TcpListener, TcpStream};
use tower::ServiceExt as _;

/// Requests of each connection that are not measured: they open connections and fill caches.
const WARM_UP: usize = 200;

fn main() {
    // One thread each, as the sidecar has.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    runtime.block_on(async {
        match arguments[..] {
            ["identities", dir] => write_identities(Path::new(dir)),
            ["bare"] => axum::serve(listen().await, router()).await.unwrap(),
            ["mesh", dir] => {
                let mesh = mesh(Path::new(dir), "server", strict_policies(), Limits::default());
                mesh.serve(listen().await, router(), pending()).await.unwrap();
            }
            ["load", dir, address, how, connections, requests] => {
                let (address, dir) = (address.parse().unwrap(), Path::new(dir));
                let each =
                    requests.parse::<usize>().unwrap() / connections.parse::<usize>().unwrap();
                load(dir, address, how, connections.parse().unwrap(), each).await;
            }
            _ => panic!("see the comment at the top of this program"),
        }
    });
}

async fn listen() -> TcpListener {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("{}", listener.local_addr().unwrap());
    listener
}

async fn load(dir: &Path, address: SocketAddr, how: &str, connections: usize, each: usize) {
    let token = read_token(dir);
    let web = mesh(dir, "web", Policies::none(), Limits::default());
    let connector = connector(&web, address);
    let mut open = Vec::new();
    for _ in 0..connections {
        let mut send = match how {
            "plain" => connect_plain(address).await,
            _ => connect_mutual(&connector).await,
        };
        for _ in 0..WARM_UP {
            assert_eq!(ask(&mut send, request(&token)).await, 200);
        }
        open.push(send);
    }
    if how == "mtls" {
        // Whoever is measured must decide. Envoy takes an empty token for none.
        let refused = ask(&mut open[0], request("")).await;
        assert!(matches!(refused, 401 | 403), "{refused} without a token");
    }
    // The script reads the CPU time of the servers now, and says when that is done.
    println!("ready");
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    let begun = Instant::now();
    let asking = open.into_iter().map(|mut send| {
        let token = token.clone();
        tokio::spawn(async move {
            let mut times = Vec::with_capacity(each);
            for _ in 0..each {
                let request = request(&token);
                let begun = Instant::now();
                assert_eq!(ask(&mut send, request).await, 200);
                times.push(begun.elapsed());
            }
            times
        })
    });
    let mut times: Vec<Duration> = Vec::new();
    for one in asking.collect::<Vec<_>>() {
        times.extend(one.await.unwrap());
    }
    let took = begun.elapsed();
    times.sort_unstable();
    let median = times[times.len() / 2];
    println!("{} {} {}", times.len(), median.as_nanos(), took.as_nanos());
}

async fn connect_plain(address: SocketAddr) -> SendRequest<Empty<Bytes>> {
    let stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (send, connection) = handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    send
}

async fn connect_mutual(connector: &Connector) -> SendRequest<Empty<Bytes>> {
    let uri = "https://server/".parse().unwrap();
    let stream = connector.clone().oneshot(uri).await.unwrap();
    let (send, connection) = handshake(stream).await.unwrap();
    tokio::spawn(connection);
    send
}
