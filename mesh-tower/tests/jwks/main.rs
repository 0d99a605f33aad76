//! Key sets from servers and files: what is fetched, when, and whose tokens it concerns.

#![expect(
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test fails by panicking"
)]

mod fetch;
mod files;
mod first;
mod issuers;
mod support;
