//! Key sets under failing servers: tokens that were valid stay valid, and the server is spared.

#![expect(
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test fails by panicking"
)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use mesh_tower::authn::request::{KeySource, RefreshPolicy};
use mesh_tower::{FetchError, FetchFuture, HttpKeyFetcher, KeyFetcher, Policies};
use rustls::RootCertStore;
use support::{TokenKey, World};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// How the server answers once it has answered well.
#[derive(Clone, Copy, Debug)]
enum Mode {
    Empty,
    Garbage,
    Gone,
    Huge,
    NoUsableKey,
    Redirect,
    ServerError,
    Slow,
    Truncated,
}

const MODES: &[Mode] = &[
    Mode::Empty,
    Mode::Garbage,
    Mode::Gone,
    Mode::Huge,
    Mode::NoUsableKey,
    Mode::Redirect,
    Mode::ServerError,
    Mode::Slow,
    Mode::Truncated,
];

/// Serves a key set well once, then in its mode; counts what it is asked.
async fn server(jwks: String, mode: Mode) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    tokio::spawn(async move {
        loop {
            let Ok((mut stream, _)) = listener.accept().await else { return };
            let first = count.fetch_add(1, Ordering::SeqCst) == 0;
            let jwks = jwks.clone();
            tokio::spawn(async move {
                let _read = stream.read(&mut [0_u8; 4096]).await;
                let ok = |body: &str| {
                    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len())
                };
                let answer = match mode {
                    _ if first => ok(&jwks),
                    Mode::Empty => ok(""),
                    Mode::Garbage => ok("<html>maintenance</html>"),
                    Mode::Gone => return,
                    Mode::Huge => {
                        let head = "HTTP/1.1 200 OK\r\ncontent-length: 100000000\r\n\r\n";
                        let _sent = stream.write_all(head.as_bytes()).await;
                        let chunk = vec![b' '; 64 * 1024];
                        while stream.write_all(&chunk).await.is_ok() {}
                        return;
                    }
                    Mode::NoUsableKey => ok("{\"keys\":[]}"),
                    Mode::Redirect => {
                        format!(
                            "HTTP/1.1 302 Found\r\nlocation: http://{address}/\r\ncontent-length: 0\r\n\r\n"
                        )
                    }
                    Mode::ServerError => "HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n".to_owned(),
                    Mode::Slow => {
                        tokio::time::sleep(Duration::from_secs(60)).await;
                        return;
                    }
                    Mode::Truncated => {
                        format!("HTTP/1.1 200 OK\r\ncontent-length: 9999\r\n\r\n{jwks}")
                    }
                };
                let _sent = stream.write_all(answer.as_bytes()).await;
            });
        }
    });
    (format!("http://{address}/jwks"), asked)
}

fn fetcher() -> Arc<dyn KeyFetcher> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let fetcher = HttpKeyFetcher::new(provider, RootCertStore::empty()).unwrap();
    Arc::new(fetcher.allow_plain_http())
}

fn policy(url: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\n\
         metadata: {{name: jwt, namespace: shop}}\n\
         spec: {{jwtRules: [{{issuer: tester, jwksUri: \"{url}\", timeout: 1s}}]}}\n"
    )
}

/// [SEC-JWT-14], [SEC-JWT-15], [SEM-ADV-71]: 400 good tokens and 100 with unknown keys in each
/// mode. No good token is refused after the first success, and the server is asked at most once
/// per cool-down.
#[tokio::test(flavor = "multi_thread")]
async fn sec_jwt_14_known_keys_survive_a_failing_server() {
    let key = TokenKey::generate("known");
    let unknown = TokenKey::generate("unknown");
    let mut refresh = RefreshPolicy::default();
    (refresh.interval, refresh.cool_down) = (1, 1);
    println!("mode         good refused  fetches  seconds");
    for mode in MODES {
        let (url, asked) = server(key.jwks(), *mode).await;
        let world = World::start().await;
        tokio::spawn(world.mesh.clone().keep_keys_fresh(fetcher(), refresh));
        world.mesh.set_policies(Policies::read([("p", &*policy(&url))], "shop").unwrap()).unwrap();
        let good = key.token("tester");
        let begun = Instant::now();
        while world.status_with(&good).await != 200 {
            assert!(begun.elapsed() < Duration::from_secs(5), "{mode:?}: never accepted");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let mut refused = 0;
        for at in 0..500 {
            if at % 5 == 4 {
                let forged = unknown.token("tester");
                assert_eq!(world.status_with(&forged).await, 401, "{mode:?}");
            } else if world.status_with(&good).await != 200 {
                refused += 1;
            }
            if at % 50 == 0 {
                // Let the refresh interval pass, so that the failing server is really asked.
                tokio::time::sleep(Duration::from_millis(150)).await;
            }
        }
        let seconds = usize::try_from(begun.elapsed().as_secs()).unwrap();
        let fetches = asked.load(Ordering::SeqCst);
        println!("{:<12} {refused:>12} {fetches:>8}  {seconds}", format!("{mode:?}"));
        assert_eq!(refused, 0, "{mode:?}");
        assert!(fetches >= 2, "{mode:?}: the failing server was never asked");
        assert!(fetches <= seconds + 3, "{mode:?}: {fetches} fetches in {seconds} s");
        let states = world.mesh.key_sets();
        assert_eq!(states.len(), 1, "the state can be read");
        assert_eq!(states[0].0, KeySource::Url(url));
    }
}

/// [SEC-JWT-16] A new key works after one fetch for an unknown key, not after the interval.
#[tokio::test(flavor = "multi_thread")]
async fn sec_jwt_16_an_unknown_key_causes_one_fetch() {
    #[derive(Debug)]
    struct Rotating(AtomicUsize, [String; 2]);
    impl KeyFetcher for Rotating {
        fn fetch<'f>(&'f self, _: &'f str, _: Duration) -> FetchFuture<'f> {
            let at = self.0.fetch_add(1, Ordering::SeqCst).min(1);
            let body = self.1[at].clone();
            Box::pin(async move { Ok::<_, FetchError>(body.into()) })
        }
    }
    let (old, new) = (TokenKey::generate("old"), TokenKey::generate("new"));
    let fetcher = Arc::new(Rotating(AtomicUsize::new(0), [old.jwks(), new.jwks()]));
    let world = World::start().await;
    let mut refresh = RefreshPolicy::default();
    (refresh.interval, refresh.cool_down) = (3600, 1);
    tokio::spawn(world.mesh.clone().keep_keys_fresh(fetcher.clone(), refresh));
    let text = policy("https://idp.example/keys");
    world.mesh.set_policies(Policies::read([("p", &*text)], "shop").unwrap()).unwrap();
    let (good, next) = (old.token("tester"), new.token("tester"));
    while world.status_with(&good).await != 200 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let begun = Instant::now();
    while world.status_with(&next).await != 200 {
        assert!(begun.elapsed() < Duration::from_secs(10), "the new key never worked");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(fetcher.0.load(Ordering::SeqCst), 2, "one fetch for many unknown keys");
    assert_eq!(world.status_with(&good).await, 401, "the removed key stops at once, cached or not");
}
