//! Rotation under load: nobody fails who should not, nobody succeeds who should not.
//!
//! Five seconds here; `MESH_ROTATION_SECONDS=60 cargo test -p mesh-tower --test life rotation --
//! --nocapture` is the long run with its table.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use http::Request;
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Bytes;
use mesh_ca::{Authority, Ca, CaSettings, NoLog, Overlap, Rate, RotatedKey, RotationStep};
use mesh_tower::identity::{BundleSet, TrustBundle};
use mesh_tower::{Clock as _, Connector, Mesh, MeshClient, SystemClock};
use rustls::pki_types::{CertificateDer, UnixTime};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tower::ServiceExt as _;

use crate::raw::{RawClient, Shown, TLS13, open};
use crate::support::{
    Held, PATIENCE, STRICT, Server, SetClock, authority, client_mesh, connect, connector, hold, id,
    policies, serve, svid, trust,
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

/// The requests that are under way, by the identity of the clients that they began with.
#[derive(Default)]
struct UnderWay {
    identity: AtomicUsize,
    began_with: Mutex<Vec<usize>>,
}

impl UnderWay {
    fn begins(&self) -> usize {
        let identity = self.identity.load(Ordering::SeqCst);
        self.began_with.lock().unwrap().push(identity);
        identity
    }

    fn ends(&self, identity: usize) {
        let mut began = self.began_with.lock().unwrap();
        let at = began.iter().position(|one| *one == identity).unwrap();
        began.swap_remove(at);
    }

    fn rotated(&self) {
        self.identity.fetch_add(1, Ordering::SeqCst);
    }

    /// Two roots overlap for longer than any request takes, also where the machine is busy.
    async fn is_of_one_identity(&self) {
        let identity = self.identity.load(Ordering::SeqCst);
        while self.began_with.lock().unwrap().iter().any(|one| *one < identity) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

/// A new connection for each request.
async fn once(connector: &Connector) -> Result<(), String> {
    let stream = connect(connector).await.map_err(|error| error.to_string())?;
    let version = if stream.info().alpn() == Some(b"h2") { 2 } else { 1 };
    let (mut held, _end) = hold(stream, version).await;
    let response = held.get("/").await?;
    expect_ok(response).await
}

async fn pooled(client: &MeshClient<Empty<Bytes>>) -> Result<(), String> {
    let request = Request::get("https://server/").body(Empty::new()).unwrap();
    let response = client.clone().oneshot(request).await.map_err(|error| format!("{error:?}"))?;
    expect_ok(response).await
}

async fn expect_ok<B>(response: http::Response<B>) -> Result<(), String>
where
    B: http_body::Body,
    B::Error: std::fmt::Debug,
{
    let status = response.status();
    response.into_body().collect().await.map_err(|error| format!("body: {error:?}"))?;
    if status == 200 { Ok(()) } else { Err(status.to_string()) }
}

/// One second: both roots, then new leaves, then the old root goes; the server's leaf changes all
/// the while. The stale peer keeps an identity of the root that went, and a connection.
async fn one_second(
    (server, client): (&Server, &Mesh),
    (old, new): (&Authority, &Authority),
    (counts, under_way): (&Counts, &UnderWay),
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
        if step == 14 {
            under_way.is_of_one_identity().await;
        }
        if matches!(step, 0 | 8 | 14) {
            // Clients rotate less often than the server, so that connections are kept.
            client.set_identity(svid(signer, "client", HOUR), Arc::clone(&roots)).unwrap();
            under_way.rotated();
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
    let under_way = Arc::new(UnderWay::default());
    let mut tasks = Vec::new();
    for at in 0..16 {
        let keeps = at % 2 == 1;
        let (counts, stop) = (Arc::clone(&counts[usize::from(keeps)]), Arc::clone(&stop));
        let (connector, under_way) = (connector(&client, &server), Arc::clone(&under_way));
        tasks.push(tokio::spawn(async move {
            let pool = connector.client();
            while !stop.load(Ordering::Relaxed) {
                let identity = under_way.begins();
                let result = if keeps { pooled(&pool).await } else { once(&connector).await };
                under_way.ends(identity);
                counts.answered(result);
                // Somebody else needs the machine, too.
                tokio::time::sleep(Duration::from_millis(if keeps { 5 } else { 30 })).await;
            }
        }));
    }
    let begun = Instant::now();
    for _ in 0..seconds {
        let new = authority();
        one_second((&server, &client), (&old, &new), (&counts[0], &under_way)).await;
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

/// What one mesh of the authority's holds, and whether another is due.
struct Member {
    mesh: Mesh,
    account: &'static str,
    renew_at: u64,
    sequence: Option<u64>,
}

impl Member {
    fn follow(&mut self, ca: &Ca, bundle: &TrustBundle, now: u64) {
        if now < self.renew_at && bundle.sequence() == self.sequence {
            return;
        }
        let at = UnixTime::since_unix_epoch(Duration::from_secs(now));
        let svid = ca.issue_svid("test", &id(self.account), Duration::ZERO, at).unwrap();
        self.renew_at = now + (svid.not_after().as_secs() - now) / 2;
        self.sequence = bundle.sequence();
        let bundles = BundleSet::from_bundles([bundle.clone()]).unwrap();
        self.mesh.set_identity(Arc::new(svid), Arc::new(bundles)).unwrap();
    }
}

/// [SEC-CA-6], [SEC-TLS-11] The authority rotates root and intermediate by its schedule while clients
/// reconnect and others keep their connections; one side learns of each bundle a refresh hint later than
/// the other. A minute, which is the hint, passes every 40 ms: a handshake takes some.
#[tokio::test(flavor = "multi_thread")]
async fn sec_ca_6_a_root_rotates_under_load_and_nobody_fails() {
    let seconds = std::env::var("MESH_ROTATION_SECONDS").ok().and_then(|text| text.parse().ok());
    let seconds: u64 = seconds.unwrap_or(9);
    let (spread, longest) = (Duration::from_secs(5 * 60), Duration::from_secs(30 * 60));
    let mut settings = CaSettings::new().unwrap();
    settings.roots = Overlap::new(2 * HOUR, spread, longest).unwrap();
    settings.intermediate_life = Duration::from_secs(62 * 60);
    settings.limits.per_identity = Rate { burst: 1000, per_second: 1000 };
    let begin = SystemClock.now();
    let home = "cluster.local".parse().unwrap();
    let ca = Ca::new(&home, settings, NoLog, begin).unwrap();
    let clock = SetClock::default();
    let first = |account| Arc::new(ca.issue_svid("test", &id(account), longest, begin).unwrap());
    let trust = Arc::new(BundleSet::from_bundles([ca.bundle()]).unwrap());
    let server = serve(&authority(), &clock, policies(&[STRICT]), |_| {}).await;
    server.mesh.set_identity(first("server"), Arc::clone(&trust)).unwrap();
    let client = client_mesh(first("client"), trust, &clock);
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
                tokio::time::sleep(Duration::from_millis(if keeps { 5 } else { 30 })).await;
            }
        }));
    }
    let member =
        |mesh: &Mesh, account| Member { mesh: mesh.clone(), account, renew_at: 0, sequence: None };
    let (mut prompt, mut late) = (member(&server.mesh, "server"), member(&client, "client"));
    let mut timeline = Vec::new();
    let mut before = ca.bundle();
    for minute in 0..seconds * 25 {
        clock.set(i64::try_from(minute * 60).unwrap());
        // The steps' own second, whatever the machine's clock says by now.
        let now = clock.now();
        late.follow(&ca, &before, now.as_secs());
        let (events, _) = ca.rotate(now).unwrap();
        timeline.extend(events.into_iter().map(|event| (minute, event)));
        prompt.follow(&ca, &ca.bundle(), now.as_secs());
        before = ca.bundle();
        tokio::time::sleep(Duration::from_millis(40)).await;
    }
    stop.store(true, Ordering::Relaxed);
    for task in tasks {
        task.await.unwrap();
    }
    for (minute, event) in timeline.iter().filter(|(_, event)| event.key == RotatedKey::Root) {
        println!("minute {minute:>4}: root {:?}", event.step);
    }
    for (name, counts) in ["8 reconnect", "8 keep"].iter().zip(&counts) {
        let requests = counts.requests.load(Ordering::Relaxed);
        let failures = counts.wrong_failures.load(Ordering::Relaxed);
        println!("{name:<12} {requests:>9} requests {failures:>5} failures");
        assert!(requests > 50, "{name}: too few requests to tell");
        assert_eq!(failures, 0, "{name}");
    }
    let steps = |want| {
        let root = timeline.iter().filter(|(_, event)| event.key == RotatedKey::Root);
        root.filter(|(_, event)| event.step == want).count()
    };
    assert!(steps(RotationStep::Signs) >= 2 && steps(RotationStep::Removed) >= 2);
}

/// [SEC-TLS-11] A handshake that has begun ends with the identity with which it began; one that
/// begins after a change has the new one.
#[tokio::test(flavor = "multi_thread")]
async fn sec_tls_11_a_running_handshake_ends_with_what_it_began_with() {
    let (own, clock) = (authority(), SetClock::default());
    let server = serve(&own, &clock, policies(&[STRICT]), |_| {}).await;
    let leaf = |account| svid(&own, account, HOUR);
    let config = RawClient::new(Some(Shown::svid(&leaf("client"))), TLS13).shared();
    let name = rustls::pki_types::ServerName::try_from("server").unwrap();
    let (first, second) = (leaf("server"), leaf("server"));
    server.mesh.set_identity(Arc::clone(&first), trust(&[&own])).unwrap();
    let mut client = rustls::ClientConnection::new(Arc::clone(&config), name).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    let (head, tail) = hello.split_at(hello.len() / 2);
    let mut socket = TcpStream::connect(server.address).await.unwrap();
    socket.write_all(head).await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    server.mesh.set_identity(Arc::clone(&second), trust(&[&own])).unwrap();
    let after = open(&config, server.address).await.unwrap();
    let shown = |certificates: Option<&[CertificateDer<'_>]>| certificates.unwrap()[0].to_vec();
    assert_eq!(shown(after.get_ref().1.peer_certificates()), second.chain()[0].to_vec());
    socket.write_all(tail).await.unwrap();
    while client.is_handshaking() {
        let mut room = [0; 16 * 1024];
        let read = timeout(PATIENCE, socket.read(&mut room)).await.expect("bytes").unwrap();
        assert!(read > 0, "the handshake was broken off");
        client.read_tls(&mut &room[..read]).unwrap();
        client.process_new_packets().unwrap();
    }
    assert_eq!(shown(client.peer_certificates()), first.chain()[0].to_vec());
}
