//! What a slow policy does to its own requests, and does not do to others.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_tower::RegoStage;
use mesh_tower::authz::rego::{RegoOptions, RegoPolicy, RegoPool};

use crate::guarded;

/// A policy that takes seconds for `/c/slow`, however fast the machine is.
fn slow_policy() -> Arc<RegoPolicy> {
    let module = "package envoy.authz\nallow if {\n input.parsed_path[1] == \"slow\"\n\
        xs := numbers.range(1, 9000)\n some x in xs\n some y in xs\n x + y == -1\n}\n\
        allow if input.parsed_path[1] == \"fast\"";
    let options = RegoOptions::default().with_instructions(40_000_000);
    Arc::new(RegoPolicy::compile(&[("p.rego", module)], None, options).unwrap())
}

/// [SEC-REGO-4] A request waits for its answer twice the deadline at most, and others are answered
/// meanwhile; a policy that keeps overrunning is taken out, and comes back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sec_rego_4_a_late_answer_denies_and_a_policy_that_keeps_overrunning_is_taken_out() {
    let deadline = Duration::from_millis(500);
    let pool = Arc::new(RegoPool::start(2, 64).unwrap());
    let stage = RegoStage::new(slow_policy(), pool).with_deadline(deadline);
    let shop = guarded(&stage).await;
    assert_eq!(shop.get("/c/fast").await.status, 200);
    let start = Instant::now();
    let (slow, fast) = tokio::join!(shop.get("/c/slow"), shop.get("/c/fast"));
    assert_eq!((slow.status, fast.status), (403, 200));
    assert!(start.elapsed() < deadline.saturating_mul(2), "{:?}", start.elapsed());
    // Eight in a row.
    for _ in 0..4 {
        let slow = tokio::join!(shop.get("/c/slow"), shop.get("/c/slow"));
        assert_eq!((slow.0.status, slow.1.status), (403, 403));
    }
    let start = Instant::now();
    assert_eq!(shop.get("/c/fast").await.status, 403, "it is taken out");
    assert!(start.elapsed() < deadline, "and not asked");
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert_eq!(shop.get("/c/fast").await.status, 200, "it is tried again");
    assert_eq!(shop.get("/c/fast").await.status, 200, "and is back");
}

/// [SEC-REGO-3] [SEC-REGO-4] Requests that need no policy, or another one, do not feel a pool that
/// is stuck and a queue that is full.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sec_rego_4_others_are_not_slowed() {
    let deadline = Duration::from_secs(1);
    let pool = Arc::new(RegoPool::start(1, 1).unwrap());
    let stuck = RegoStage::new(slow_policy(), pool).with_deadline(deadline);
    let shop = Arc::new(guarded(&stuck).await);
    let other = RegoStage::new(slow_policy(), Arc::new(RegoPool::start(1, 16).unwrap()));
    let other = guarded(&other.with_deadline(Duration::from_secs(5))).await;
    let attack: Vec<_> = (0..8)
        .map(|_| {
            let shop = Arc::clone(&shop);
            tokio::spawn(async move { shop.get("/c/slow").await.status })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(50)).await;
    let start = Instant::now();
    for _ in 0..10 {
        assert_eq!(shop.get("/x").await.status, 200, "no policy selects it");
        assert_eq!(other.get("/c/fast").await.status, 200, "another stage with its own pool");
    }
    assert!(start.elapsed() < deadline, "{:?}", start.elapsed());
    for denied in attack {
        assert_eq!(denied.await.unwrap(), 403);
    }
}
