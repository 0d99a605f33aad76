//! One request over HTTP or HTTPS: a connection of its own, checked addresses, a bounded answer.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{HOST, HeaderValue};
use http::uri::PathAndQuery;
use http::{Request, Response, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, lookup_host};
use tokio_rustls::TlsConnector;

use super::address::AddressPolicy;
use super::keys::FetchError;

/// Whom to believe, and whom to connect to.
#[derive(Clone, Debug)]
pub(crate) struct Exchange {
    tls: Arc<ClientConfig>,
    /// Whether `http` URLs are taken.
    pub(crate) plain: bool,
    pub(crate) addresses: AddressPolicy,
}

impl Exchange {
    /// Believes servers with these roots.
    pub(crate) fn new(
        provider: Arc<CryptoProvider>,
        roots: RootCertStore,
    ) -> Result<Self, rustls::Error> {
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self::with_tls(Arc::new(tls)))
    }

    /// Believes whom these settings believe.
    pub(crate) fn with_tls(tls: Arc<ClientConfig>) -> Self {
        Self { tls, plain: false, addresses: AddressPolicy::default() }
    }

    /// Sends a request to the absolute URL that it names; the answer's body may have `max` bytes.
    ///
    /// The name is resolved once, and only addresses that the policy allows are connected to.
    pub(crate) async fn send(
        &self,
        mut request: Request<Full<Bytes>>,
        max: usize,
    ) -> Result<Response<Bytes>, FetchError> {
        let uri = request.uri().clone();
        let host = uri.host().ok_or(FetchError::Url)?;
        let authority = uri.authority().ok_or(FetchError::Url)?.as_str();
        if authority.contains('@') {
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
        let host = HeaderValue::from_str(authority).map_err(|_detail| FetchError::Url)?;
        request.headers_mut().insert(HOST, host);
        let path = uri.path_and_query().map_or("/", PathAndQuery::as_str);
        *request.uri_mut() = path.parse::<Uri>().map_err(|_detail| FetchError::Url)?;
        let stream = self.connect(name, port).await?;
        if secure {
            let server = ServerName::try_from(name.to_owned());
            let server = server.map_err(|_detail| FetchError::Url)?;
            let tls = TlsConnector::from(Arc::clone(&self.tls));
            let stream = tls.connect(server, stream).await.map_err(FetchError::Connect)?;
            exchange(stream, request, max).await
        } else {
            exchange(stream, request, max).await
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

/// One request on a connection of its own.
async fn exchange<T>(
    stream: T,
    request: Request<Full<Bytes>>,
    max: usize,
) -> Result<Response<Bytes>, FetchError>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(FetchError::Http)?;
    let talk = async {
        let response = sender.send_request(request).await.map_err(FetchError::Http)?;
        let (parts, body) = response.into_parts();
        // hyper's error or the limit's: neither is more than "the body cannot be had".
        let body = Limited::new(body, max).collect().await.map_err(|_detail| FetchError::Body)?;
        Ok(Response::from_parts(parts, body.to_bytes()))
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
