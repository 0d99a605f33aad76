//! What the authority hands out, and what it refuses.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::wildcard_enum_match_arm,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a test fails by panicking"
)]

mod above;
mod issue;
mod load;
mod openssl;
mod requests;
mod service;

use std::time::Duration;

use mesh_ca::Authority;
use mesh_identity::{SpiffeId, TrustDomain};
use rustls_pki_types::UnixTime;

const NOW: u64 = 1_800_000_000;
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
const ID: &str = "spiffe://a.test/ns/shop/sa/cart";

fn at(seconds: u64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(seconds))
}

fn now() -> UnixTime {
    at(NOW)
}

fn domain() -> TrustDomain {
    "a.test".parse().unwrap()
}

fn id() -> SpiffeId {
    ID.parse().unwrap()
}

fn root() -> Authority {
    Authority::new_root(&domain(), 10 * DAY, now()).unwrap()
}
