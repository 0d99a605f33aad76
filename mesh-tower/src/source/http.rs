//! Fetches key sets over HTTP: bounded in time and size, no redirects, checked addresses.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::ACCEPT;
use http::{Request, StatusCode};
use http_body_util::Full;
use mesh_authn::request::MAX_KEY_SET_LEN;
use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use tokio::time::timeout;

use super::address::AddressPolicy;
use super::exchange::Exchange;
use super::keys::{FetchError, FetchFuture, KeyFetcher};

/// Fetches over HTTPS, and over plain HTTP if told so ([SEC-JWT-13]).
///
/// A redirect is an answer other than 200, and so a failure. The name is resolved once, and only
/// addresses that the policy allows are connected to.
///
/// # Examples
///
/// ```
/// use std::sync::Arc;
///
/// use mesh_tower::authn::request::RefreshPolicy;
/// use mesh_tower::{HttpKeyFetcher, Mesh};
/// use rustls::RootCertStore;
///
/// # fn follow(mesh: &Mesh, roots: RootCertStore) -> Result<(), rustls::Error> {
/// let provider = Arc::new(rustls::crypto::ring::default_provider());
/// let fetcher = Arc::new(HttpKeyFetcher::new(provider, roots)?);
/// tokio::spawn(mesh.clone().keep_keys_fresh(fetcher, RefreshPolicy::default()));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct HttpKeyFetcher {
    exchange: Exchange,
}

impl HttpKeyFetcher {
    /// A fetcher that believes servers with these roots.
    ///
    /// # Errors
    ///
    /// When the provider cannot do TLS 1.2 or 1.3.
    pub fn new(provider: Arc<CryptoProvider>, roots: RootCertStore) -> Result<Self, rustls::Error> {
        Ok(Self { exchange: Exchange::new(provider, roots)? })
    }

    /// Allows `http` URLs: whoever is on the way to the server can then forge every token.
    #[must_use]
    pub fn allow_plain_http(mut self) -> Self {
        self.exchange.plain = true;
        self
    }

    /// Which addresses may be connected to.
    #[must_use]
    pub fn with_address_policy(mut self, addresses: AddressPolicy) -> Self {
        self.exchange.addresses = addresses;
        self
    }

    async fn get(&self, url: &str) -> Result<Bytes, FetchError> {
        let request = Request::get(url).header(ACCEPT, "application/json").body(Full::default());
        let request = request.map_err(|_detail| FetchError::Url)?;
        let response = self.exchange.send(request, MAX_KEY_SET_LEN).await?;
        match response.status() {
            StatusCode::OK => Ok(response.into_body()),
            other => Err(FetchError::Status(other)),
        }
    }
}

impl KeyFetcher for HttpKeyFetcher {
    fn fetch<'f>(&'f self, url: &'f str, limit: Duration) -> FetchFuture<'f> {
        Box::pin(
            async move { timeout(limit, self.get(url)).await.unwrap_or(Err(FetchError::Deadline)) },
        )
    }
}
