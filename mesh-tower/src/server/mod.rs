//! The server side: accept, sniff, shake hands, speak HTTP, and end connections in time.
//!
//! [`each_connection`] turns a listener into [`accept::Accepted`] connections. What is done with one is its
//! handler's: [`serve_http`] drives it itself; whoever moves the stream elsewhere leaves its
//! life to [`life::Life::watch`], which cuts the stream when its time is over.

mod accept;
mod handshakes;
mod http;
mod life;
mod limits;
mod listen;
mod rewind;
mod stream;

pub(crate) use http::serve_http;
pub(crate) use life::End;
pub use limits::Limits;
pub(crate) use listen::each_connection;
