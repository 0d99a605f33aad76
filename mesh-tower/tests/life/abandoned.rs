//! A client's request ends with its connection, in whatever moment that is.

use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use http::Request;
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Bytes;
use mesh_tower::authn::peer::ClientProtocol;
use mesh_tower::{MeshClient, Policies};
use tower::ServiceExt as _;

use crate::support::{SetClock, authority, client_mesh, connector, serve, svid, trust};

const HOUR: Duration = Duration::from_secs(3600);

/// A request whose connection ends is answered or fails in this time, on a busy machine, too.
const SOON: Duration = Duration::from_secs(6);

/// What a client has seen.
#[derive(Debug, Default)]
struct Seen {
    answers: usize,
    errors: usize,
}

/// Asks without a pause.
async fn ask(client: MeshClient<Empty<Bytes>>, until: Instant) -> Seen {
    let mut seen = Seen::default();
    while Instant::now() < until {
        let request = Request::get("https://server/").body(Empty::new()).unwrap();
        let asked = async {
            let answer = client.clone().oneshot(request).await.ok()?;
            answer.into_body().collect().await.ok()
        };
        let asked = tokio::time::timeout(SOON, asked).await;
        match asked.expect("neither an answer nor an error in time") {
            Some(_) => seen.answers += 1,
            None => seen.errors += 1,
        }
    }
    seen
}

/// A server that ends all connections a hundred times a second, and six clients.
async fn storm(time: Duration) {
    let (own, other, clock) = (authority(), authority(), SetClock::default());
    let server = serve(&own, &clock, Policies::none(), |_| {}).await;
    let until = Instant::now() + time;
    let protocols = [ClientProtocol::Http1, ClientProtocol::Http2];
    let clients = protocols.into_iter().cycle().take(6).map(|protocol| {
        let mesh = client_mesh(svid(&own, "client", HOUR), trust(&[&own]), &clock);
        let client = connector(&mesh, &server).protocol(protocol).client();
        tokio::spawn(ask(client, until))
    });
    let clients: Vec<_> = clients.collect();
    let leaf = svid(&own, "server", HOUR);
    let mut trusted = [trust(&[&other]), trust(&[&own])].into_iter().cycle();
    while Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(10)).await;
        server.mesh.set_identity(leaf.clone(), trusted.next().unwrap()).unwrap();
    }
    for client in clients {
        let seen = client.await.unwrap();
        println!("{seen:?}");
        assert!(seen.answers > 0 && seen.errors > 0, "{seen:?}");
    }
}

/// hyper can keep a request that is sent in the moment in which its connection ends; on a machine
/// that had other things to do, one in some thousand waited for ever.
#[tokio::test(flavor = "multi_thread")]
async fn no_request_waits_for_a_connection_that_is_gone() {
    storm(Duration::from_secs(3)).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a minute: cargo test -p mesh-tower --test life -- --ignored --nocapture"]
async fn no_request_waits_for_a_connection_that_is_gone_for_a_minute() {
    storm(Duration::from_secs(60)).await;
}

/// Between a client and a server, one connection after the other: the first is broken off when it is
/// told so, and each later one begins after a pause.
fn break_off(to: SocketAddr, pause: Duration, told: mpsc::Receiver<()>) -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let forward = |near: &TcpStream| {
            let far = TcpStream::connect(to).unwrap();
            for (mut from, mut into) in [(near, &far), (&far, near)]
                .map(|(from, into)| (from.try_clone().unwrap(), into.try_clone().unwrap()))
            {
                std::thread::spawn(move || std::io::copy(&mut from, &mut into));
            }
            far
        };
        let (near, _) = listener.accept().unwrap();
        let far = forward(&near);
        told.recv().unwrap();
        near.shutdown(Shutdown::Both).unwrap();
        far.shutdown(Shutdown::Both).ok();
        while let Ok((near, _)) = listener.accept() {
            std::thread::sleep(pause);
            forward(&near);
        }
    });
    address
}

/// What a connection gives back unsent goes over another one, which may take its time: it is not lost.
#[tokio::test]
async fn a_request_that_waits_for_another_connection_is_not_lost() {
    let (own, clock) = (authority(), SetClock::default());
    let mut server = serve(&own, &clock, Policies::none(), |_| {}).await;
    let pause = Duration::from_secs(4);
    let (tell, told) = mpsc::channel();
    server.address = break_off(server.address, pause, told);
    let mesh = client_mesh(svid(&own, "client", HOUR), trust(&[&own]), &clock);
    let client: MeshClient<Empty<Bytes>> =
        connector(&mesh, &server).protocol(ClientProtocol::Http1).client();
    let get = || Request::get("https://server/").body(Empty::new()).unwrap();
    let answer = client.clone().oneshot(get()).await.unwrap();
    answer.into_body().collect().await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    // The runtime has other things to do while the connection breaks; then it hears of that and of the
    // next request together.
    tell.send(()).unwrap();
    tokio::spawn(async { std::thread::sleep(Duration::from_millis(300)) });
    tokio::time::sleep(Duration::from_millis(10)).await;
    let begun = Instant::now();
    let answer = client.oneshot(get()).await.unwrap();
    assert_eq!(answer.status(), 200);
    assert!(begun.elapsed() >= pause, "another connection was to be made");
}
