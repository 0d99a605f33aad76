//! The authority's own TLS servers: who they are, and who may call with a certificate.

use std::fmt;
use std::io;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use mesh_identity::x509::{Role, verify_svid};
use mesh_identity::{BundleSet, SpiffeId};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, ServerConfig,
    SignatureScheme,
};
use rustls_pki_types::{CertificateDer, DnsName, UnixTime};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::identities::random;
use super::places::{Place, Places};
use super::service::CaService;
use crate::authority::ALGORITHMS;
use crate::error::CaError;
use crate::rotation::{Next, RotationSchedule};

/// From the first byte to the end of the handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Most connections of one server.
const MAX_CONNECTIONS: usize = 4096;

/// Callers from the network share all places.
const EVERYBODY: u32 = 0;

/// The longest sleep, so that a clock that was set is noticed.
const NAP: Duration = Duration::from_secs(5);

/// After a renewal that failed it is tried again this much later.
const PAUSE: Duration = Duration::from_secs(1);

/// Who one of the authority's own servers is: an identity of its trust domain, and the DNS names that
/// clients look it up by.
#[derive(Clone, Debug)]
pub struct ServerName {
    pub(super) id: SpiffeId,
    pub(super) dns_names: Vec<DnsName<'static>>,
}

impl ServerName {
    /// A server's identity and names. Istio's agents expect `istiod.istio-system.svc`.
    pub fn new(id: SpiffeId, dns_names: impl IntoIterator<Item = DnsName<'static>>) -> Self {
        Self { id, dns_names: dns_names.into_iter().collect() }
    }
}

/// The server's own certificate, which the authority issues to itself.
pub(super) struct OwnCertificate {
    service: CaService,
    name: ServerName,
    provider: Arc<CryptoProvider>,
    held: RwLock<Option<Held>>,
}

struct Held {
    key: Arc<CertifiedKey>,
    not_after: UnixTime,
    schedule: RotationSchedule,
}

impl OwnCertificate {
    /// Issues the first one.
    pub(super) async fn new(
        service: &CaService,
        name: ServerName,
        provider: &Arc<CryptoProvider>,
    ) -> io::Result<Arc<Self>> {
        let own = Self {
            service: service.clone(),
            name,
            provider: Arc::clone(provider),
            held: RwLock::new(None),
        };
        own.renew().await?;
        Ok(Arc::new(own))
    }

    /// Renews it for ever; what is held serves until it ends.
    pub(super) async fn keep(&self) {
        loop {
            let now = self.service.now();
            let schedule = {
                let held = self.held.read().unwrap_or_else(PoisonError::into_inner);
                held.as_ref().map(|held| held.schedule)
            };
            match schedule.map_or(Next::Renew, |schedule| schedule.next(now)) {
                Next::Wait(until) => {
                    let left = until.as_secs().saturating_sub(now.as_secs());
                    tokio::time::sleep(Duration::from_secs(left).min(NAP)).await;
                }
                Next::Renew => {
                    if let Err(error) = self.renew().await {
                        tracing::error!(%error, "a server's own certificate is not renewed");
                        tokio::time::sleep(PAUSE).await;
                    }
                }
            }
        }
    }

    async fn renew(&self) -> io::Result<()> {
        let (name, now) = (self.name.clone(), self.service.now());
        let issued = self.service.blocking(move |ca| {
            ca.issue_server_svid("self", &name.id, &name.dns_names, Duration::ZERO, now)
        });
        let svid = issued.await.map_err(|error: CaError| io::Error::other(error))?;
        let (chain, key) = (svid.chain().to_vec(), svid.private_key().clone_key());
        let key = CertifiedKey::from_der(chain, key, &self.provider).map_err(io::Error::other)?;
        let held = Held {
            key: Arc::new(key),
            not_after: svid.not_after(),
            schedule: RotationSchedule::new(now, svid.not_after(), random()),
        };
        *self.held.write().unwrap_or_else(PoisonError::into_inner) = Some(held);
        Ok(())
    }
}

impl ResolvesServerCert for OwnCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let held = self.held.read().unwrap_or_else(PoisonError::into_inner);
        // One that has ended would be refused by whoever looks; nobody needs to.
        let valid = held.as_ref().filter(|held| held.not_after > self.service.now());
        valid.map(|held| Arc::clone(&held.key))
    }
}

impl fmt::Debug for OwnCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnCertificate").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Callers with a certificate of this authority; callers without one must have a token.
struct Callers {
    service: CaService,
    provider: Arc<CryptoProvider>,
}

/// Whom a chain names, if it verifies now with the authority's own bundle and no other.
pub(super) fn caller_of(
    service: &CaService,
    chain: &[CertificateDer<'_>],
    now: UnixTime,
) -> Result<SpiffeId, mesh_identity::x509::SvidError> {
    let own = BundleSet::default().with_bundle(service.ca().bundle());
    verify_svid(chain, &own, now, Role::Client, ALGORITHMS).map(|verified| verified.id().clone())
}

impl ClientCertVerifier for Callers {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let chain: Vec<_> = std::iter::once(end_entity).chain(intermediates).cloned().collect();
        match caller_of(&self.service, &chain, self.service.now()) {
            Ok(_) => Ok(ClientCertVerified::assertion()),
            Err(error) => {
                let error = CertificateError::Other(OtherError(Arc::new(error)));
                Err(rustls::Error::InvalidCertificate(error))
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl fmt::Debug for Callers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Callers").finish_non_exhaustive()
    }
}

pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// A server that asks for a certificate and takes callers without one.
pub(super) fn with_callers(
    service: &CaService,
    own: Arc<OwnCertificate>,
    provider: &Arc<CryptoProvider>,
) -> io::Result<ServerConfig> {
    let callers = Callers { service: service.clone(), provider: Arc::clone(provider) };
    let config =
        builder(provider)?.with_client_cert_verifier(Arc::new(callers)).with_cert_resolver(own);
    Ok(without_sessions(config))
}

/// A server for everybody.
pub(super) fn public(
    certificates: Arc<dyn ResolvesServerCert>,
    provider: &Arc<CryptoProvider>,
) -> io::Result<ServerConfig> {
    let config = builder(provider)?.with_no_client_auth().with_cert_resolver(certificates);
    Ok(without_sessions(config))
}

fn builder(
    provider: &Arc<CryptoProvider>,
) -> io::Result<rustls::ConfigBuilder<ServerConfig, rustls::WantsVerifier>> {
    ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)
}

/// A resumed session would not be verified again; calls are rare enough for whole handshakes.
fn without_sessions(mut config: ServerConfig) -> ServerConfig {
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config
}

/// Accepts and shakes hands until `until` is done; `serve` has what came of it.
pub(super) async fn accept<F, R>(
    listener: TcpListener,
    config: ServerConfig,
    until: impl Future<Output = ()>,
    serve: F,
) where
    F: Fn(TlsStream<TcpStream>, Place, watch::Receiver<bool>) -> R + Clone + Send + 'static,
    R: Future<Output = ()> + Send,
{
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let places = Places::new(MAX_CONNECTIONS);
    let (stop, stopped) = watch::channel(false);
    tokio::pin!(until);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut until => break,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let Some(place) = places.take(EVERYBODY) else {
            tracing::warn!(%address, "too many connections");
            continue;
        };
        let (acceptor, serve, stopped) = (acceptor.clone(), serve.clone(), stopped.clone());
        tokio::spawn(async move {
            let handshake = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream));
            let shaken = tokio::select! {
                shaken = handshake => shaken,
                () = place.evicted() => return,
            };
            match shaken {
                Ok(Ok(stream)) => serve(stream, place, stopped).await,
                Ok(Err(error)) => tracing::debug!(%address, %error, "no handshake"),
                Err(_elapsed) => tracing::debug!(%address, "no handshake in time"),
            }
        });
    }
    stop.send_replace(true);
}
