//! The server side: accept, sniff, shake hands, speak HTTP, and end connections in time.
//!
//! [`listen::each_connection`] turns a listener into [`accept::Accepted`] connections. What is done with one is its
//! handler's: [`http::serve_http`] drives it itself; whoever moves the stream elsewhere leaves its
//! life to [`life::Life::watch`], which cuts the stream when its time is over.

mod accept;
mod asks;
mod handshakes;
mod http;
mod life;
mod limits;
mod listen;
#[cfg(feature = "axum")]
mod listener;
mod pace;
mod proxy_protocol;
mod requests;
mod rewind;
#[expect(clippy::module_inception, reason = "the one type that users meet has this name")]
mod server;
mod stream;
mod tcp;

#[cfg(feature = "axum")]
pub(crate) use http::WithConnection;
pub(crate) use life::End;
pub use limits::Limits;
#[cfg(feature = "axum")]
pub use listener::{ListenerAddress, MeshIo, MeshListener};
pub use server::Server;
pub use tcp::TcpConnection;
