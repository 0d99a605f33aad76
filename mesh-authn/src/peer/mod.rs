//! Mutual TLS after PeerAuthentication, on rustls.
//!
//! [`PeerModes`] says which ports demand it. [`ServerTls`] and [`ClientTls`] hold settings for one
//! identity and one set of trust bundles and never change: a rotation makes new ones, so two
//! configurations can share neither sessions nor verifiers nor what these remember
//! ([SEC-TLS-10]).

mod chains;
mod client_tls;
mod error;
mod expected;
mod mode;
mod own_key;
mod resource;
mod server_tls;
mod sessions;
mod verifier;

pub use client_tls::{ClientProtocol, ClientTls, ClientTlsBuilder, endpoint_client_config};
pub use error::{PeerError, TlsError};
pub use expected::ExpectedServer;
pub use mode::{MtlsMode, PeerModes};
pub use resource::PeerAuthentication;
pub use server_tls::{ServerTls, ServerTlsBuilder};
