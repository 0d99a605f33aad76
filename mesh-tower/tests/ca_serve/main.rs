//! The authority's network APIs over real sockets, against this workspace's own clients and against
//! hand-written ones that do what no client should.

#![cfg(unix)]
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::disallowed_methods,
    clippy::wildcard_enum_match_arm,
    reason = "a test fails by panicking"
)]

mod bundle;
mod federation;
mod istio;
mod liar;
mod sds;
mod sds_streams;
mod support;
mod tokens;
mod workload;
