//! Sources: fetch bytes, hand them to a core parser, publish a snapshot.

mod address;
mod http;
mod keys;

pub use address::AddressPolicy;
pub use http::HttpKeyFetcher;
pub use keys::{FetchError, FetchFuture, KeyFetcher};
pub(crate) use keys::{Lacking, keep_fresh};
