//! Rotation under load: nobody fails who should not, nobody succeeds who should not.
//!
//! Five seconds here; `MESH_ROTATION_SECONDS=60 cargo test -p mesh-tower --test life rotation --
//! --nocapture` is the long run with its table.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use http::Request;
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Bytes;
use mesh_ca::Authority;
use mesh_tower::{Connector, Mesh, MeshClient};
use tower::ServiceExt as _;

use crate::support::{
    Held, STRICT, Server, SetClock, authority, client_mesh, connect, connector, hold, policies,
    serve, svid, trust,
};

const HOUR: Duration = Duration::from_secs(3600);
const LEAF: Duration = Duration::from_millis(50);

#[derive(Default)]
struct Counts {
    requests: AtomicUsize,
    wrong_failures: AtomicUsize,
    stale_attempts: AtomicUsize,
    wrong_successes: AtomicUsize,
}

impl Counts {
    fn answered(&self, result: Result<(), String>) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        if let Err(error) = result {
            println!("failed: {error}");
            self.wrong_failures.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn stale(&self, succeeded: bool) {
        self.stale_attempts.fetch_add(1, Ordering::Relaxed);
        self.wrong_successes.fetch_add(usize::from(succeeded), Ordering::Relaxed);
    }
}

/// A new connection for each request.
async fn once(connector: &Connector) -> Result<(), String> {
    let stream = connect(connector).await.map_err(|error| error.to_string())?;
    let version = if stream.info().alpn() == Some(b"h2") { 2 } else { 1 };
    let (mut held, _end) = hold(stream, version).await;
    let response = held.get("/").await.map_err(|error| format!("{error:?}"))?;
    expect_ok(response).await
}

async fn pooled(client: &MeshClient<Empty<Bytes>>) -> Result<(), String> {
    let request = Request::get("https://server/").body(Empty::new()).unwrap();
    let response = client.clone().oneshot(request).await.map_err(|error| format!("{error:?}"))?;
    expect_ok(response).await
}

async fn expect_ok(response: http::Response<hyper::body::Incoming>) -> Result<(), String> {
    let status = response.status();
    response.into_body().collect().await.map_err(|error| format!("body: {error:?}"))?;
    if status == 200 { Ok(()) } else { Err(status.to_string()) }
}

/// One second: both roots, then new leaves, then the old root goes; the server's leaf changes all
/// the while. The stale peer keeps an identity of the root that went, and a connection.
async fn one_second(
    (server, client): (&Server, &Mesh),
    (old, new): (&Authority, &Authority),
    counts: &Counts,
) {
    let stale = client_mesh(svid(old, "client", HOUR), trust(&[old, new]), &SetClock::default());
    let stale = connector(&stale, server);
    let (mut kept, _end) = hold(connect(&stale).await.unwrap(), 2).await;
    assert_eq!(kept.status("/").await, Some(200), "valid until its root goes");
    for step in 0_u32..20 {
        let begun = Instant::now();
        let (signer, roots) = match step {
            0..8 => (old, trust(&[old, new])),
            8..14 => (new, trust(&[old, new])),
            _ => (new, trust(&[new])),
        };
        if matches!(step, 0 | 8 | 14) {
            // Clients rotate less often than the server, so that connections are kept.
            client.set_identity(svid(signer, "client", HOUR), Arc::clone(&roots)).unwrap();
        }
        server.mesh.set_identity(svid(signer, "server", HOUR), roots).unwrap();
        if step > 15 {
            counts.stale(once(&stale).await.is_ok());
            counts.stale(kept.status("/").await == Some(200));
        }
        tokio::time::sleep(LEAF.saturating_sub(begun.elapsed())).await;
    }
    drop::<Held>(kept);
}

/// [SEC-TLS-11], [SEC-TLS-13] Leaf every 50 ms, root with overlap every second, eight clients that
/// reconnect for each request and eight that keep connections.
#[tokio::test(flavor = "multi_thread")]
async fn sec_tls_11_rotation_under_load_loses_nothing_and_lets_nobody_in() {
    let seconds = std::env::var("MESH_ROTATION_SECONDS").ok().and_then(|text| text.parse().ok());
    let seconds: u32 = seconds.unwrap_or(5);
    let mut old = authority();
    let server = serve(&old, &SetClock::default(), policies(&[STRICT]), |_| {}).await;
    let client = client_mesh(svid(&old, "client", HOUR), trust(&[&old]), &SetClock::default());
    let counts = [0, 1].map(|_| Arc::new(Counts::default()));
    let stop = Arc::new(AtomicBool::new(false));
    let mut tasks = Vec::new();
    for at in 0..16 {
        let keeps = at % 2 == 1;
        let (counts, stop) = (Arc::clone(&counts[usize::from(keeps)]), Arc::clone(&stop));
        let connector = connector(&client, &server);
        tasks.push(tokio::spawn(async move {
            let pool = connector.client();
            while !stop.load(Ordering::Relaxed) {
                let result = if keeps { pooled(&pool).await } else { once(&connector).await };
                counts.answered(result);
                // Somebody else needs the machine, too.
                tokio::time::sleep(Duration::from_millis(if keeps { 5 } else { 30 })).await;
            }
        }));
    }
    let begun = Instant::now();
    for _ in 0..seconds {
        let new = authority();
        one_second((&server, &client), (&old, &new), &counts[0]).await;
        old = new;
    }
    stop.store(true, Ordering::Relaxed);
    for task in tasks {
        task.await.unwrap();
    }
    println!(
        "rotation for {:.1} s, {} configurations",
        begun.elapsed().as_secs_f64(),
        server.mesh.generation()
    );
    println!("clients       requests  wrong failures  stale attempts  wrong successes");
    for (name, counts) in ["8 reconnect", "8 keep"].iter().zip(&counts) {
        let [requests, failures, stale, successes] = [
            &counts.requests,
            &counts.wrong_failures,
            &counts.stale_attempts,
            &counts.wrong_successes,
        ]
        .map(|count| count.load(Ordering::Relaxed));
        println!("{name:<12} {requests:>9} {failures:>15} {stale:>15} {successes:>16}");
        assert!(requests > 50, "{name}: too few requests to tell");
        assert_eq!((failures, successes), (0, 0), "{name}");
    }
    assert!(counts[0].stale_attempts.load(Ordering::Relaxed) > 10);
}
