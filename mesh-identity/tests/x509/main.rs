//! X.509-SVIDs and trust bundles: each rule with the certificate that breaks it.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a test fails by panicking"
)]

mod bundle;
mod chain;
mod cost;
mod federation;
mod leaf;
mod load;
mod mint;
mod revocation;
mod table;
mod third_party;
#[cfg(feature = "workload-api")]
mod workload_api;
