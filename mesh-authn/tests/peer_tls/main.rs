//! Mutual TLS in memory: who is let in, who is refused, and by whom.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a test fails by panicking"
)]

mod floods;
mod handshake;
mod mint;
mod own;
mod possession;
mod refused;
mod resumption;
mod seen;
mod settings;
