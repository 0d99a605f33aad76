//! Keys that rotate, and issuers that are down: what becomes of their tokens, and of others'.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use mesh_tower::authn::request::{KeyState, RefreshPolicy};
use mesh_tower::{FetchError, FetchFuture, KeyFetcher};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::support::{TokenKey, World, every_second, fetcher};

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
    world.set_rules("{issuer: tester, jwksUri: \"https://idp.example/keys\"}");
    let (good, next) = (old.token("tester"), new.token("tester"));
    world.accepts(&good).await;
    world.accepts(&next).await;
    assert_eq!(fetcher.0.load(Ordering::SeqCst), 2, "one fetch for many unknown keys");
    assert_eq!(world.status_with(&good).await, 401, "the removed key stops at once, cached or not");
}

/// [SEC-JWT-15] Three hundred unknown keys: one fetch; an issuer whose server hangs or whose
/// fetcher panics costs another issuer's tokens nothing, and is asked again.
#[tokio::test(flavor = "multi_thread")]
async fn sec_jwt_15_one_broken_issuer_hurts_no_other() {
    #[derive(Debug)]
    struct Mixed {
        good: String,
        asked: Mutex<Vec<String>>,
    }
    impl KeyFetcher for Mixed {
        fn fetch<'f>(&'f self, url: &'f str, _: Duration) -> FetchFuture<'f> {
            self.asked.lock().unwrap().push(url.to_owned());
            let body = self.good.clone();
            match url {
                "https://hangs.example/keys" => Box::pin(std::future::pending()),
                "https://panics.example/keys" => Box::pin(async { panic!("a bug of the program") }),
                _ => Box::pin(async move { Ok(body.into()) }),
            }
        }
    }
    let key = TokenKey::generate("a");
    let mixed = Arc::new(Mixed { good: key.jwks(), asked: Mutex::default() });
    let world = World::start().await;
    let mut refresh = every_second();
    refresh.interval = 3600;
    tokio::spawn(world.mesh.clone().keep_keys_fresh(mixed.clone(), refresh));
    let rule = |name: &str| {
        format!("{{issuer: {name}, jwksUri: \"https://{name}.example/keys\", timeout: 1s}}")
    };
    world.set_rules(&["good", "hangs", "panics"].map(rule).join(", "));
    let good = key.token("good");
    world.accepts(&good).await;
    let begun = Instant::now();
    let mut slowest = Duration::ZERO;
    for at in 0..300 {
        let unknown = TokenKey::generate(&format!("unknown-{at}")).token("good");
        assert_eq!(world.status_with(&unknown).await, 401);
        for broken in ["hangs", "panics"] {
            assert_eq!(world.status_with(&key.token(broken)).await, 401);
        }
        let asked = Instant::now();
        assert_eq!(world.status_with(&good).await, 200);
        slowest = slowest.max(asked.elapsed());
    }
    println!("slowest good token beside broken issuers: {slowest:?}");
    assert!(slowest < Duration::from_millis(800), "nobody waits for a fetch");
    while begun.elapsed() < Duration::from_secs(4) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let asked = mixed.asked.lock().unwrap();
    let count = |name: &str| asked.iter().filter(|url| url.contains(name)).count();
    println!(
        "fetches in 4 s: good {}, hangs {}, panics {}",
        count("good"),
        count("hangs"),
        count("panics")
    );
    assert!((2..=3).contains(&count("good")), "the first, and one for all unknown keys");
    assert!((2..=5).contains(&count("hangs")) && (2..=5).contains(&count("panics")), "asked again");
}

/// [SEM-ADV-71] The identity provider goes down after discovery: its keys stay.
#[tokio::test(flavor = "multi_thread")]
async fn sem_adv_71_discovered_keys_stay_while_the_provider_is_down() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let issuer = format!("http://{}", listener.local_addr().unwrap());
    let key = TokenKey::generate("a");
    let document = format!("{{\"issuer\":\"{issuer}\",\"jwks_uri\":\"{issuer}/keys\"}}");
    let asked = Arc::new(AtomicUsize::new(0));
    let (count, set) = (Arc::clone(&asked), key.jwks());
    tokio::spawn(async move {
        loop {
            let Ok((mut stream, _)) = listener.accept().await else { return };
            // Document and keys once; then it is down.
            let body = match count.fetch_add(1, Ordering::SeqCst) {
                0 => &document,
                1 => &set,
                _ => continue,
            };
            let _read = stream.read(&mut [0_u8; 4096]).await;
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
            let _sent = stream.write_all(answer.as_bytes()).await;
        }
    });
    let world = World::start().await;
    tokio::spawn(world.mesh.clone().keep_keys_fresh(Arc::new(fetcher()), every_second()));
    world.set_rules(&format!("{{issuer: \"{issuer}\", timeout: 1s}}"));
    let good = key.token(&issuer);
    world.accepts(&good).await;
    while asked.load(Ordering::SeqCst) < 4 {
        assert_eq!(world.status_with(&good).await, 200);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(world.status_with(&good).await, 200);
    assert!(matches!(world.mesh.key_sets()[0].1, KeyState::Stale { .. }));
}

/// [SEM-ADV-65] Rules with header outputs and remote keys, requests that are reset early: nothing
/// panics, and the next request is answered.
#[tokio::test(flavor = "multi_thread")]
async fn sem_adv_65_requests_reset_before_the_keys_are_there() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/keys", listener.local_addr().unwrap());
    let key = TokenKey::generate("a");
    let set = key.jwks();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::time::sleep(Duration::from_millis(300)).await;
            let _read = stream.read(&mut [0_u8; 4096]).await;
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{set}", set.len());
            let _sent = stream.write_all(answer.as_bytes()).await;
        }
    });
    for wait in [Duration::ZERO, Duration::from_secs(5)] {
        let world = World::start_with(|builder| builder.wait_for_first_keys(wait)).await;
        world.set_rules(&format!(
            "{{issuer: tester, jwksUri: \"{url}\", outputPayloadToHeader: x-payload, \
             outputClaimToHeaders: [{{header: x-sub, claim: sub}}]}}"
        ));
        tokio::spawn(world.mesh.clone().keep_keys_fresh(Arc::new(fetcher()), every_second()));
        let good = key.token("tester");
        for _ in 0..50 {
            let mut stream = TcpStream::connect(world.address).await.unwrap();
            let request = format!(
                "GET / HTTP/1.1\r\nhost: cart\r\nauthorization: Bearer {good}\r\nx-payload: \
                 spoofed\r\ncontent-length: 100\r\n\r\nhalf a bo"
            );
            stream.write_all(request.as_bytes()).await.unwrap();
            #[expect(deprecated, reason = "the reset is what is tested; it waits for nothing")]
            stream.set_linger(Some(Duration::ZERO)).unwrap();
        }
        world.accepts(&good).await;
        assert_eq!(world.status_with(&good).await, 200);
    }
}
