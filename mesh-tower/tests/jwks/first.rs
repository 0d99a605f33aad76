//! The first request may wait for the first fetch, if the program says so.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use mesh_tower::{FetchError, FetchFuture, KeyFetcher};

use super::support::{TokenKey, World, every_second};

/// Answers after a while, or fails after it, or never does.
#[derive(Debug)]
struct After(Duration, Option<String>);

impl KeyFetcher for After {
    fn fetch<'f>(&'f self, _: &'f str, limit: Duration) -> FetchFuture<'f> {
        let Self(after, answer) = self;
        Box::pin(async move {
            tokio::time::timeout(limit, tokio::time::sleep(*after))
                .await
                .map_err(|_elapsed| FetchError::Deadline)?;
            answer.clone().map(Bytes::from).ok_or(FetchError::Body)
        })
    }
}

/// Status and time of the first request, with the fetch under way.
async fn first(wait: Duration, fetcher: After, token: Option<&str>) -> (u16, Duration) {
    let world = World::start_with(|builder| builder.wait_for_first_keys(wait)).await;
    world.set_rules("{issuer: tester, jwksUri: \"https://idp.example/keys\", timeout: 20s}");
    tokio::spawn(world.mesh.clone().keep_keys_fresh(Arc::new(fetcher), every_second()));
    let begun = Instant::now();
    let status = world.status_with(token.unwrap_or_default()).await;
    (status, begun.elapsed())
}

#[tokio::test(flavor = "multi_thread")]
async fn sec_jwt_15_only_the_first_request_waits_and_only_if_told() {
    let key = TokenKey::generate("a");
    let (token, set) = (key.token("tester"), Some(key.jwks()));
    let (half, long) = (Duration::from_millis(500), Duration::from_secs(20));
    let after = |time: Duration, set: &Option<String>| After(time, set.clone());

    // Nobody waits by default.
    let (status, took) = first(Duration::ZERO, after(half, &set), Some(&token)).await;
    assert_eq!(status, 401);
    assert!(took < half, "{took:?}");
    // It waits until the keys are there; until a fetch has failed; as long as it may.
    let (status, took) = first(long, after(half, &set), Some(&token)).await;
    assert_eq!(status, 200);
    assert!(took >= Duration::from_millis(300) && took < long, "{took:?}");
    let (status, took) = first(long, after(half, &None), Some(&token)).await;
    assert_eq!(status, 401);
    assert!(took < Duration::from_secs(5), "{took:?}");
    let (status, took) = first(half, after(long, &set), Some(&token)).await;
    assert_eq!(status, 401);
    assert!(took >= half && took < Duration::from_secs(5), "{took:?}");
    // A request without token never waits. (`Bearer` and nothing more is refused at once.)
    let (status, took) = first(long, after(long, &set), None).await;
    assert_eq!(status, 401);
    assert!(took < half, "{took:?}");

    // After a failed fetch nobody waits any more.
    let world = World::start_with(|builder| builder.wait_for_first_keys(long)).await;
    world.set_rules("{issuer: tester, jwksUri: \"https://idp.example/keys\"}");
    let failing = Arc::new(After(Duration::ZERO, None));
    tokio::spawn(world.mesh.clone().keep_keys_fresh(failing, every_second()));
    assert_eq!(world.status_with(&token).await, 401);
    let begun = Instant::now();
    assert_eq!(world.status_with(&token).await, 401);
    assert!(begun.elapsed() < Duration::from_secs(5));
}
