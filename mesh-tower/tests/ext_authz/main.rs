//! CUSTOM policies against authorizers on real sockets: what is asked, what each answer means,
//! what failures do.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test fails by panicking"
)]
#![expect(clippy::disallowed_methods, reason = "tests measure how long a refusal takes")]
#![expect(clippy::similar_names, reason = "a server has served")]

mod grpc;
mod http_provider;
mod in_process;
mod metadata;
mod tcp;
mod vectors;
mod world;
