//! The whole pipeline over real sockets: what Envoy answered to the same bytes, and what no spelling
//! of a request may reach.

#![expect(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod authz;
mod head;
mod http;
mod http2;
mod jwt;
#[path = "../../../mesh-authn/tests/jwt_support/mod.rs"]
mod jwt_support;
mod paths;
mod tally;
mod tokens;
mod vector;
mod wire;
mod world;
