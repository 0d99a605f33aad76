//! A client's request ends with its connection, in whatever moment that is.

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
