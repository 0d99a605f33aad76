//! A service that speaks OPA's management APIs, and how it is talked to.

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, Uri};
use http_body_util::Full;
use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::source::{AddressPolicy, Exchange, FetchError};

/// How long an answer may take, unless told otherwise.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// The longest token that is read from a file.
const MAX_TOKEN: u64 = 16 * 1024;

/// A service as OPA's configuration names one: a URL, whom to believe there, and credentials.
///
/// Redirects are not followed, and names lead only to addresses that the [`AddressPolicy`] allows.
/// `Debug` shows no credential.
#[derive(Clone)]
pub struct OpaService {
    exchange: Exchange,
    /// Without a slash at its end.
    url: String,
    headers: HeaderMap,
    token_file: Option<PathBuf>,
    timeout: Duration,
}

/// Why a service cannot be talked to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpaServiceError {
    /// A header's name or value, or a token, has characters that cannot be sent.
    #[error("a header or token cannot be sent")]
    Header,

    /// The provider cannot do TLS 1.2 or 1.3.
    #[error("TLS: {0}")]
    Tls(#[source] rustls::Error),

    /// The URL is not an absolute one without query.
    #[error("not an http or https URL without a query")]
    Url,
}

impl OpaService {
    /// A service at a URL such as `https://control.example/opa`, believed with these roots.
    ///
    /// # Errors
    ///
    /// When the URL is none, or the provider cannot do TLS.
    pub fn new(
        url: &str,
        provider: Arc<CryptoProvider>,
        roots: RootCertStore,
    ) -> Result<Self, OpaServiceError> {
        let parsed: Uri = url.parse().map_err(|_detail| OpaServiceError::Url)?;
        let known = matches!(parsed.scheme_str(), Some("http" | "https"));
        if !known || parsed.query().is_some() || parsed.host().is_none_or(str::is_empty) {
            return Err(OpaServiceError::Url);
        }
        Ok(Self {
            exchange: Exchange::new(provider, roots).map_err(OpaServiceError::Tls)?,
            url: url.trim_end_matches('/').to_owned(),
            headers: HeaderMap::new(),
            token_file: None,
            timeout: DEFAULT_TIMEOUT,
        })
    }

    /// Allows an `http` URL: whoever is on the way can then write the policy, unless bundles must
    /// be signed, and reads decisions and credentials.
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

    /// How long an answer may take (30 s unless set); a long poll may wait so much longer.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sends a token with each request (`credentials.bearer.token`).
    ///
    /// # Errors
    ///
    /// When the token cannot be sent in a header.
    pub fn with_bearer_token(mut self, token: &str) -> Result<Self, OpaServiceError> {
        self.headers.insert(AUTHORIZATION, bearer(token).ok_or(OpaServiceError::Header)?);
        Ok(self)
    }

    /// Sends the token that a file holds, read for each request, so that it may be rotated
    /// (`credentials.bearer.token_path`).
    #[must_use]
    pub fn with_bearer_token_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.token_file = Some(path.into());
        self
    }

    /// Sends a header with each request.
    ///
    /// # Errors
    ///
    /// When name or value cannot be sent.
    pub fn with_header(mut self, name: &str, value: &str) -> Result<Self, OpaServiceError> {
        let name: HeaderName = name.parse().map_err(|_detail| OpaServiceError::Header)?;
        let mut value = HeaderValue::from_str(value).map_err(|_detail| OpaServiceError::Header)?;
        value.set_sensitive(true);
        self.headers.insert(name, value);
        Ok(self)
    }

    /// Sends a request to a path below the URL; the answer may take `wait` longer than usual.
    pub(super) async fn send(
        &self,
        method: Method,
        resource: &str,
        headers: &[(HeaderName, HeaderValue)],
        body: Bytes,
        wait: Duration,
        max: usize,
    ) -> Result<Response<Bytes>, FetchError> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        let url = format!("{}/{}", self.url, resource.trim_start_matches('/'));
        *request.uri_mut() = url.parse().map_err(|_detail| FetchError::Url)?;
        request.headers_mut().extend(self.headers.clone());
        if let Some(path) = &self.token_file {
            request.headers_mut().insert(AUTHORIZATION, token_in(path.clone()).await?);
        }
        request.headers_mut().extend(headers.iter().cloned());
        let sending = self.exchange.send(request, max);
        timeout(self.timeout.saturating_add(wait), sending)
            .await
            .unwrap_or(Err(FetchError::Deadline))
    }
}

async fn token_in(path: PathBuf) -> Result<HeaderValue, FetchError> {
    let read = || -> io::Result<String> {
        let mut token = String::new();
        File::open(path)?.take(MAX_TOKEN).read_to_string(&mut token)?;
        Ok(token)
    };
    let token = spawn_blocking(read).await.map_err(|error| FetchError::Token(error.into()))?;
    let token = token.map_err(FetchError::Token)?;
    let wrong = || FetchError::Token(io::Error::other("it holds no token"));
    Some(token.trim()).filter(|token| !token.is_empty()).and_then(bearer).ok_or_else(wrong)
}

fn bearer(token: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(&format!("Bearer {token}")).ok()?;
    value.set_sensitive(true);
    Some(value)
}

impl fmt::Debug for OpaService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpaService")
            .field("url", &self.url)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}
