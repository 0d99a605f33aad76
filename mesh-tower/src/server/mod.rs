//! The server side: accept, sniff, shake hands, speak HTTP, and end connections in time.

mod accept;
mod handshakes;
mod limits;
mod rewind;
mod serve;

pub use limits::Limits;
pub(crate) use serve::serve;
