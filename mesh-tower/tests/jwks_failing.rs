//! A key server that fails in every way once it has answered well. Alone in its process: what is
//! allocated is counted.

#![expect(
    clippy::arithmetic_side_effects,
    clippy::disallowed_methods,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

#[path = "jwks/support.rs"]
mod support;

use std::alloc::System;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use mesh_tower::authn::request::{KeySource, KeyState};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use support::{TokenKey, World, every_second, fetcher, jwks};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Requests in each mode.
const REQUESTS: usize = 2000;

/// How the server answers once it has answered well.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Mode {
    Empty,
    Garbage,
    /// Closes the connection without an answer.
    Gone,
    /// A body of 100 MB.
    Huge,
    NoUsableKey,
    /// A redirection to itself.
    RedirectLoop,
    /// Another key every second, published before it is used and a while after.
    Rotating,
    ServerError,
    /// No answer for a minute.
    Slow,
    Truncated,
}

const MODES: &[Mode] = &[
    Mode::Empty,
    Mode::Garbage,
    Mode::Gone,
    Mode::Huge,
    Mode::NoUsableKey,
    Mode::RedirectLoop,
    Mode::Rotating,
    Mode::ServerError,
    Mode::Slow,
    Mode::Truncated,
];

/// Serves key sets, and counts what it is asked.
struct Server {
    url: String,
    asked: Arc<AtomicUsize>,
    begun: Instant,
    keys: Arc<Vec<TokenKey>>,
    mode: Mode,
}

impl Server {
    async fn start(mode: Mode, seconds: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (asked, begun) = (Arc::new(AtomicUsize::new(0)), Instant::now());
        let keys = (0..seconds * 4 + 60).map(|n| TokenKey::generate(&format!("key-{n}")));
        let keys: Arc<Vec<TokenKey>> = Arc::new(keys.collect());
        let (count, published) = (Arc::clone(&asked), Arc::clone(&keys));
        tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else { return };
                let first = count.fetch_add(1, Ordering::SeqCst) == 0;
                let set = if mode == Mode::Rotating {
                    let now = current(begun);
                    jwks(&published[now.saturating_sub(3)..now + 4])
                } else {
                    published[0].jwks()
                };
                tokio::spawn(answer(stream, (!first).then_some(mode), set));
            }
        });
        Self { url: format!("http://{address}/jwks"), asked, begun, keys, mode }
    }

    /// The key that signs now.
    fn key(&self) -> usize {
        if self.mode == Mode::Rotating { current(self.begun) } else { 0 }
    }
}

/// The number of the key that signs now.
fn current(begun: Instant) -> usize {
    usize::try_from(begun.elapsed().as_secs()).unwrap()
}

async fn answer(mut stream: TcpStream, mode: Option<Mode>, jwks: String) {
    let _read = stream.read(&mut [0_u8; 4096]).await;
    let ok =
        |body: &str| format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    let text = match mode {
        None | Some(Mode::Rotating) => ok(&jwks),
        Some(Mode::Empty) => ok(""),
        Some(Mode::Garbage) => ok("<html>maintenance</html>"),
        Some(Mode::Gone) => return,
        Some(Mode::Huge) => {
            let head = "HTTP/1.1 200 OK\r\ncontent-length: 100000000\r\n\r\n";
            let _sent = stream.write_all(head.as_bytes()).await;
            let chunk = vec![b' '; 64 * 1024];
            for _ in 0..100_000_000 / chunk.len() {
                if stream.write_all(&chunk).await.is_err() {
                    return;
                }
            }
            return;
        }
        Some(Mode::NoUsableKey) => ok("{\"keys\":[]}"),
        Some(Mode::RedirectLoop) => {
            let own = stream.local_addr().unwrap();
            format!(
                "HTTP/1.1 302 Found\r\nlocation: http://{own}/jwks\r\ncontent-length: 0\r\n\r\n"
            )
        }
        Some(Mode::ServerError) => "HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n".to_owned(),
        Some(Mode::Slow) => {
            tokio::time::sleep(Duration::from_secs(60)).await;
            return;
        }
        Some(Mode::Truncated) => {
            format!("HTTP/1.1 200 OK\r\ncontent-length: 9999\r\n\r\n{jwks}")
        }
    };
    let _sent = stream.write_all(text.as_bytes()).await;
}

fn held(region: &Region<'_, System>) -> usize {
    let change = region.change();
    change.bytes_allocated.saturating_sub(change.bytes_deallocated)
}

/// [SEC-JWT-14], [SEC-JWT-15], [SEM-ADV-71]: 2,000 requests in each mode, a fifth of them with
/// keys that nobody knows. No valid token is refused after the first success, the server is asked
/// at most once per cool-down, and memory does not grow.
///
/// `MESH_JWKS_SECONDS=60 cargo test --release -p mesh-tower --test jwks_failing -- --nocapture`
/// spreads the requests of each mode over a minute instead of two seconds.
#[tokio::test(flavor = "multi_thread")]
async fn sec_jwt_14_known_keys_survive_a_failing_server() {
    let given = std::env::var("MESH_JWKS_SECONDS").ok().and_then(|text| text.parse::<f64>().ok());
    let lasts = Duration::from_secs_f64(given.unwrap_or(2.2));
    println!("mode          accepted  valid refused  unknown refused  fetches  seconds  peak KiB");
    for mode in MODES {
        let server = Server::start(*mode, lasts.as_secs()).await;
        let world = World::start().await;
        tokio::spawn(world.mesh.clone().keep_keys_fresh(Arc::new(fetcher()), every_second()));
        world.set_rules(&format!("{{issuer: tester, jwksUri: \"{}\", timeout: 1s}}", server.url));
        let mut signs = server.key();
        let mut token = server.keys[signs].token("tester");
        world.accepts(&token).await;

        let region = Region::new(ALLOCATOR);
        let begun = Instant::now();
        let [mut accepted, mut valid_refused, mut unknown_refused, mut peak] = [0_usize; 4];
        for at in 0..REQUESTS {
            if at % 100 == 0 {
                let due = lasts.mul_f64(f64::from(u32::try_from(at).unwrap()) / 1900.0);
                tokio::time::sleep(due.saturating_sub(begun.elapsed())).await;
            }
            if at % 5 == 4 {
                let unknown = TokenKey::generate(&format!("unknown-{at}")).token("tester");
                assert_eq!(world.status_with(&unknown).await, 401, "{mode:?}");
                unknown_refused += 1;
            } else {
                if signs != server.key() {
                    signs = server.key();
                    token = server.keys[signs].token("tester");
                }
                match world.status_with(&token).await {
                    200 => accepted += 1,
                    _ => valid_refused += 1,
                }
            }
            peak = peak.max(held(&region));
        }
        let seconds = begun.elapsed().as_secs_f64();
        let fetches = server.asked.load(Ordering::SeqCst);
        println!(
            "{:<14} {accepted:>7} {valid_refused:>14} {unknown_refused:>16} {fetches:>8} \
             {seconds:>8.1} {:>9}",
            format!("{mode:?}"),
            peak / 1024
        );
        assert_eq!((accepted, valid_refused), (REQUESTS / 5 * 4, 0), "{mode:?}");
        assert!(fetches >= 2, "{mode:?}: the failing server was never asked");
        let most = usize::try_from(server.begun.elapsed().as_secs()).unwrap() + 2;
        assert!(fetches <= most, "{mode:?}: {fetches} fetches, {most} cool-downs");
        assert!(peak < 8 << 20, "{mode:?}: {peak} bytes more than before");
        let states = world.mesh.key_sets();
        assert_eq!(states[0].0, KeySource::Url(server.url.clone()));
        let fails = *mode != Mode::Rotating;
        // A slow answer may still be waited for.
        if fails && *mode != Mode::Slow {
            assert!(matches!(states[0].1, KeyState::Stale { failures: 1.., .. }), "{states:?}");
        }
    }
}
