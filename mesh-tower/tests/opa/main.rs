//! OPA's management APIs on real sockets and files: bundles that come, break and recover, and
//! decisions that are uploaded.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]
#![expect(clippy::disallowed_methods, reason = "tests measure how long something takes")]

mod bundles;
mod control;
mod limits;
mod stage;
mod upload;
#[path = "../ext_authz/world.rs"]
#[expect(dead_code, reason = "the tests of external authorizers use all of it")]
mod world;

use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_tower::authz::Semantics;
use mesh_tower::authz::rego::RegoPool;
use mesh_tower::{ExtensionProviders, Provider, RegoStage};
use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;

use crate::world::{World, custom};

/// A stage without a policy.
fn waiting() -> RegoStage {
    let stage = RegoStage::waiting(Arc::new(RegoPool::start(2, 64).unwrap()));
    // Generous: the machine is busy, and these tests are not about deadlines.
    stage.with_deadline(Duration::from_secs(5))
}

/// A service whose `/c…` a stage guards.
async fn guarded(stage: &RegoStage) -> World {
    let providers = ExtensionProviders::default().with("opa", Provider::new(stage.clone()));
    World::start(providers, &[custom("opa")], Semantics::strict()).await
}

/// Waits for something that must come soon.
async fn until(what: &str, mut there: impl FnMut() -> bool) {
    let start = Instant::now();
    while !there() {
        assert!(start.elapsed() < Duration::from_secs(20), "{what} did not come");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn tls() -> (Arc<CryptoProvider>, RootCertStore) {
    (Arc::new(rustls::crypto::ring::default_provider()), RootCertStore::empty())
}
