//! Fetches key sets over HTTP: bounded in time and size, no redirects, checked addresses.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, HOST};
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use mesh_authn::request::MAX_KEY_SET_LEN;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::address::AddressPolicy;
use super::keys::{FetchError, FetchFuture, KeyFetcher};

/// Fetches over HTTPS, and over plain HTTP if told so ([SEC-JWT-13]).
///
/// A redirect is an answer other than 200, and so a failure. The name is resolved once, and only
/// addresses that the policy allows are connected to.
#[derive(Clone, Debug)]
pub struct HttpKeyFetcher {
    tls: Arc<ClientConfig>,
    plain: bool,
    addresses: AddressPolicy,
}

impl HttpKeyFetcher {
    /// A fetcher that believes servers with these roots.
    ///
    /// # Errors
    ///
    /// When the provider cannot do TLS 1.2 or 1.3.
    pub fn new(provider: Arc<CryptoProvider>, roots: RootCertStore) -> Result<Self, rustls::Error> {
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let addresses = AddressPolicy::default();
        Ok(Self { tls: Arc::new(tls), plain: false, addresses })
    }

    /// Allows `http` URLs: whoever is on the way to the server can then forge every token.
    #[must_use]
    pub fn allow_plain_http(mut self) -> Self {
        self.plain = true;
        self
    }

    /// Which addresses may be connected to.
    #[must_use]
    pub fn with_address_policy(mut self, addresses: AddressPolicy) -> Self {
        self.addresses = addresses;
        self
    }

    async fn get(&self, url: &str) -> Result<Bytes, FetchError> {
        let uri: Uri = url.parse().map_err(|_detail| FetchError::Url)?;
        let host = uri.host().ok_or(FetchError::Url)?;
        let authority = uri.authority().ok_or(FetchError::Url)?;
        if authority.as_str().contains('@') {
            return Err(FetchError::Url);
        }
        let (secure, default_port) = match uri.scheme_str() {
            Some("https") => (true, 443),
            Some("http") if self.plain => (false, 80),
            Some("http") => return Err(FetchError::PlainHttp),
            Some(_) | None => return Err(FetchError::Url),
        };
        let name = host.trim_start_matches('[').trim_end_matches(']');
        let port = uri.port_u16().unwrap_or(default_port);
        let stream = self.connect(name, port).await?;
        let path = uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
        let request = Request::get(path)
            .header(HOST, authority.as_str())
            .header(ACCEPT, "application/json")
            .body(Empty::<Bytes>::new())
            .map_err(|_detail| FetchError::Url)?;
        if secure {
            let server = ServerName::try_from(name.to_owned());
            let server = server.map_err(|_detail| FetchError::Url)?;
            let tls = TlsConnector::from(Arc::clone(&self.tls));
            let stream = tls.connect(server, stream).await.map_err(FetchError::Connect)?;
            exchange(stream, request).await
        } else {
            exchange(stream, request).await
        }
    }

    /// Connects to the first address that answers, of those that may be asked.
    async fn connect(&self, name: &str, port: u16) -> Result<TcpStream, FetchError> {
        let found = lookup_host((name, port)).await.map_err(FetchError::Connect)?;
        let found: Vec<SocketAddr> = found.collect();
        let mut failure = FetchError::Address;
        for address in found.iter().filter(|one| self.addresses.allows(one.ip())) {
            match TcpStream::connect(address).await {
                Ok(stream) => return Ok(stream),
                Err(error) => failure = FetchError::Connect(error),
            }
        }
        Err(failure)
    }
}

impl KeyFetcher for HttpKeyFetcher {
    fn fetch<'f>(&'f self, url: &'f str, limit: Duration) -> FetchFuture<'f> {
        Box::pin(
            async move { timeout(limit, self.get(url)).await.unwrap_or(Err(FetchError::Deadline)) },
        )
    }
}

/// One request on a connection of its own.
async fn exchange<T>(stream: T, request: Request<Empty<Bytes>>) -> Result<Bytes, FetchError>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(FetchError::Http)?;
    let talk = async {
        let response = sender.send_request(request).await.map_err(FetchError::Http)?;
        if response.status() != StatusCode::OK {
            return Err(FetchError::Status(response.status()));
        }
        let body = Limited::new(response.into_body(), MAX_KEY_SET_LEN);
        // hyper's error or the limit's: neither is more than "the body cannot be had".
        let body = body.collect().await.map_err(|_detail| FetchError::Body)?;
        Ok(body.to_bytes())
    };
    // The connection must be driven while we talk, and dies with us.
    tokio::pin!(talk, connection);
    tokio::select! {
        done = &mut talk => done,
        ended = &mut connection => match ended {
            Ok(()) => talk.await,
            Err(error) => Err(FetchError::Http(error)),
        },
    }
}
