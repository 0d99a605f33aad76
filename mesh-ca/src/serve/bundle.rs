//! The SPIFFE bundle endpoint (SPIFFE Federation section 5), and the documents of OIDC discovery.

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use http::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use mesh_identity::SpiffeId;
use rustls::crypto::CryptoProvider;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::server::TlsStream;

use super::places::Place;
use super::service::CaService;
use super::tls::{self, OwnCertificate, ServerName};
use crate::jwt::{oidc_discovery, oidc_jwks};

/// How often the files of `https_web` are looked at.
const LOOK: Duration = Duration::from_secs(60);

/// A client that says nothing, and one that keeps a connection open.
const SILENCE: Duration = Duration::from_secs(30);

/// How the bundle endpoint proves itself (SPIFFE Federation section 5.2).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum BundleEndpoint {
    /// `https_spiffe`: with an SVID of this identity, which the authority issues.
    Spiffe(SpiffeId),
    /// `https_web`: with a certificate of the public web, in PEM files that somebody else renews.
    /// They are read again when they change; what cannot be used changes nothing.
    Web {
        /// The chain, leaf first.
        chain: PathBuf,
        /// Its private key.
        key: PathBuf,
    },
}

impl CaService {
    /// Serves the bundle document at `/` until `until` is done; where tokens have an issuer, also
    /// `/.well-known/openid-configuration` and `/keys`.
    ///
    /// # Errors
    ///
    /// When there is no certificate to begin with. An accept that fails is tried again.
    pub async fn serve_bundle(
        &self,
        listener: TcpListener,
        endpoint: BundleEndpoint,
        until: impl Future<Output = ()>,
    ) -> io::Result<()> {
        let provider = tls::provider();
        let service = self.clone();
        let serve =
            move |stream, place, stopped| connection(service.clone(), stream, place, stopped);
        match endpoint {
            BundleEndpoint::Spiffe(id) => {
                let own = OwnCertificate::new(self, ServerName::new(id, []), &provider).await?;
                let config = tls::public(own.clone(), &provider)?;
                tokio::select! {
                    () = tls::accept(listener, config, until, serve) => {}
                    () = own.keep() => {}
                }
            }
            BundleEndpoint::Web { chain, key } => {
                let files = WebFiles::new(chain, key, &provider)?;
                let config = tls::public(files.clone(), &provider)?;
                tokio::select! {
                    () = tls::accept(listener, config, until, serve) => {}
                    () = files.keep() => {}
                }
            }
        }
        Ok(())
    }
}

async fn connection(
    service: CaService,
    stream: TlsStream<TcpStream>,
    place: Place,
    stop: watch::Receiver<bool>,
) {
    let requests = place.requests();
    let answer = service_fn(move |request| {
        // It is over when it is answered: documents are short, and who does not read one is idle.
        drop(requests.begin());
        let answer = answer(&service, &request);
        async move { Ok::<_, Infallible>(answer) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(SILENCE);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(SILENCE)
        .max_concurrent_streams(16)
        .max_header_list_size(16 * 1024);
    place.drive(builder.serve_connection(TokioIo::new(stream), answer), stop).await;
}

fn answer(service: &CaService, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let bundle = || service.ca().bundle();
    let document = match (request.uri().path(), service.issuer()) {
        ("/", _) => bundle().to_json(),
        ("/.well-known/openid-configuration", Some(issuer)) => oidc_discovery(issuer),
        ("/keys", Some(_)) => oidc_jwks(bundle().jwt_authorities()),
        _ => return status(StatusCode::NOT_FOUND),
    };
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = status(StatusCode::METHOD_NOT_ALLOWED);
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    let mut response = Response::new(Full::new(document.into()));
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}

fn status(status: StatusCode) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = status;
    response
}

/// A certificate of the public web.
struct WebFiles {
    chain: PathBuf,
    key: PathBuf,
    provider: Arc<CryptoProvider>,
    held: RwLock<Arc<CertifiedKey>>,
}

impl WebFiles {
    fn new(chain: PathBuf, key: PathBuf, provider: &Arc<CryptoProvider>) -> io::Result<Arc<Self>> {
        let held = RwLock::new(read(&chain, &key, provider)?);
        Ok(Arc::new(Self { chain, key, provider: Arc::clone(provider), held }))
    }

    async fn keep(&self) {
        loop {
            tokio::time::sleep(LOOK).await;
            match read(&self.chain, &self.key, &self.provider) {
                Ok(new) => *self.held.write().unwrap_or_else(PoisonError::into_inner) = new,
                // Chain and key are written one after the other: the next look may find a pair.
                Err(error) => tracing::warn!(%error, "the certificate in force stays"),
            }
        }
    }
}

fn read(
    chain: &PathBuf,
    key: &PathBuf,
    provider: &CryptoProvider,
) -> io::Result<Arc<CertifiedKey>> {
    let named = |path: &PathBuf, error: &dyn fmt::Display| {
        io::Error::other(format!("{}: {error}", path.display()))
    };
    let certificates = CertificateDer::pem_file_iter(chain)
        .and_then(Iterator::collect)
        .map_err(|error| named(chain, &error))?;
    let private = PrivateKeyDer::from_pem_file(key).map_err(|error| named(key, &error))?;
    let pair = CertifiedKey::from_der(certificates, private, provider);
    let pair = pair.map_err(|error| named(key, &error))?;
    pair.keys_match().map_err(|error| named(key, &error))?;
    Ok(Arc::new(pair))
}

impl ResolvesServerCert for WebFiles {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.held.read().unwrap_or_else(PoisonError::into_inner)))
    }
}

impl fmt::Debug for WebFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebFiles").field("chain", &self.chain).finish_non_exhaustive()
    }
}
