//! Sources: fetch bytes, hand them to a core parser, publish a snapshot.

mod address;
mod files;
mod http;
mod keys;

pub use address::AddressPolicy;
pub use files::{FileError, IdentityFiles};
pub(crate) use files::{keep_identity, keep_policies};
pub use http::HttpKeyFetcher;
pub use keys::{FetchError, FetchFuture, KeyFetcher};
pub(crate) use keys::{Lacking, keep_fresh};
