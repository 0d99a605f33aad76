//! The life of connections over real sockets: who is let in, for how long, and what an attacker
//! can make it cost.

#![expect(
    clippy::arithmetic_side_effects,
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::unreachable,
    clippy::unwrap_used,
    reason = "a test fails by panicking, and measures"
)]

mod abandoned;
mod client;
mod end;
mod handshakes;
mod hostile;
mod idle;
mod process;
mod raw;
mod refused;
mod resumed;
mod revoked;
mod rotation;
mod running;
mod seen;
mod support;
