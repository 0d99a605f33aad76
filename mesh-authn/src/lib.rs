//! Proves who it is: mutual TLS for rustls, and JWT request authentication.

pub mod peer;
pub mod request;
