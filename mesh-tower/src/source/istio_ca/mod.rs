//! The client of Istio's certificate service: identity from istiod, or from whoever else serves
//! `CreateCertificate`.

mod call;
mod state;

use std::env;
use std::fmt;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use mesh_ca::{Next, RotationSchedule};
use mesh_identity::{BundleError, BundleSet, SpiffeId, SvidLoadError, TrustBundle};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::ServerName;
use tokio::time::{Sleep, sleep, timeout};
use tonic::metadata::{AsciiMetadataKey, AsciiMetadataValue};

pub use self::state::IstioCaState;
use super::identity::{Identity, IdentityFuture, IdentitySource, IdentityUpdate};
use crate::backoff::{Backoff, random, spread};
use crate::clock::{Clock, SystemClock};

/// From name resolution to the answer's end.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// The first and the longest wait after a failure, as ztunnel has them (src/identity/manager.rs).
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(150));

/// The longest sleep, so that a clock that was set is noticed ([SEC-OPS-5]).
const NAP: Duration = Duration::from_secs(5);

/// What istiod's certificate names, for who reaches it under another name.
const ISTIOD: &str = "istiod.istio-system.svc";

/// What Istio's agent asks for (`SECRET_TTL`).
const DEFAULT_TTL: Duration = Duration::from_secs(24 * 3600);

/// A certificate service of Istio, and how one workload asks it.
///
/// The key is made here and never leaves the process. Token, roots and certificates are read from
/// their files for every call, because others rotate them; every call has a connection of its own.
///
/// # Examples
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
/// use mesh_tower::identity::{MeshSettings, Workload};
/// use mesh_tower::{IstioCa, Mesh, Policies};
///
/// // Where Istio's injection puts token and root certificate.
/// let ca = IstioCa::from_env("spiffe://cluster.local/ns/shop/sa/cart".parse()?)?;
/// let settings = MeshSettings::new("cluster.local".parse()?);
/// let mesh = Mesh::builder(Workload::new("shop"), settings)
///     .start(ca.source(), Policies::none())
///     .await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct IstioCa {
    id: SpiffeId,
    address: String,
    server_name: ServerName<'static>,
    roots: PathBuf,
    credentials: Credentials,
    headers: Vec<(AsciiMetadataKey, AsciiMetadataValue)>,
    ttl: Duration,
    foreign: Vec<TrustBundle>,
    backoff: Backoff,
    provider: Arc<CryptoProvider>,
    clock: Arc<dyn Clock>,
}

/// How the workload proves itself to the service.
#[derive(Clone, Debug)]
enum Credentials {
    Token(PathBuf),
    Certificate { chain: PathBuf, key: PathBuf },
}

/// Why a service cannot be asked as it is configured.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum IstioCaError {
    /// Not `host:port`.
    #[error("address of the certificate service is not of the form host:port")]
    Address,

    /// A header's name or value that gRPC does not carry.
    #[error("header {0} of the certificate service is not text that gRPC carries")]
    Header(&'static str),

    /// A server name that is none.
    #[error("server name of the certificate service is not a DNS name or IP address")]
    ServerName,
}

/// Why a call brought no identity. The one in force stays until it expires.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IstioCaFailure {
    /// The answer's roots are not acceptable.
    #[error("the certificate service's roots are not taken: {0}")]
    Bundle(#[from] BundleError),

    /// Less than a certificate and a root.
    #[error("the certificate service's answer has no certificate with a root")]
    Chain,

    /// Nobody answers at the address, or the handshake fails.
    #[error("cannot reach the certificate service: {0}")]
    Connect(Box<dyn std::error::Error + Send + Sync>),

    /// A file cannot be used.
    #[error("{path}: {message}")]
    File {
        /// Which file.
        path: PathBuf,
        /// What is wrong; nothing of its content.
        message: String,
    },

    /// The certificate names another identity than the one that was asked for.
    #[error("the certificate service issued {got}, not the identity asked for")]
    Identity {
        /// Whom it names.
        got: SpiffeId,
    },

    /// The certificate is for another key than the one that was made for it.
    #[error("the certificate service issued for another key")]
    Key,

    /// No key or request can be made.
    #[error("certificate request cannot be made: {0}")]
    Request(#[from] rcgen::Error),

    /// The service refuses.
    #[error("the certificate service answers {code}: {message}")]
    Status {
        /// The code of gRPC.
        code: String,
        /// The service's words.
        message: String,
    },

    /// The certificate breaks a rule.
    #[error("the certificate service's answer is not taken: {0}")]
    Svid(#[from] SvidLoadError),

    /// No answer in time.
    #[error("the certificate service does not answer")]
    Timeout,

    /// The certificate does not verify with the roots that came with it.
    #[error("the issued certificate does not verify: {0}")]
    Verify(#[from] mesh_identity::x509::SvidError),
}

impl IstioCa {
    /// A service at `host:port`, which proves itself with a certificate for `host` (for a loopback
    /// address `istiod.istio-system.svc`). Files are where Istio's injection has them, below
    /// `./var/run/secrets`; the token's is used.
    ///
    /// # Errors
    ///
    /// [`IstioCaError::Address`].
    pub fn new(id: SpiffeId, address: &str) -> Result<Self, IstioCaError> {
        let (host, port) = address.rsplit_once(':').ok_or(IstioCaError::Address)?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        port.parse::<u16>().map_err(|_detail| IstioCaError::Address)?;
        let local = matches!(host, "localhost" | "127.0.0.1" | "::1");
        let name = if local { ISTIOD } else { host };
        let server_name = ServerName::try_from(name.to_owned());
        let token = PathBuf::from("./var/run/secrets/tokens/istio-token");
        Self {
            id,
            address: address.to_owned(),
            server_name: server_name.map_err(|_detail| IstioCaError::Address)?,
            roots: PathBuf::from("./var/run/secrets/istio/root-cert.pem"),
            credentials: Credentials::Token(token),
            headers: Vec::new(),
            ttl: DEFAULT_TTL,
            foreign: Vec::new(),
            backoff: Backoff::new(RETRY, near),
            provider: Arc::new(rustls::crypto::ring::default_provider()),
            clock: Arc::new(SystemClock),
        }
        .cluster("Kubernetes")
    }

    /// The service at the address in `CA_ADDR`, or at `istiod.istio-system.svc:15012`. `ISTIOD_SAN`
    /// names it otherwise; `ISTIO_META_CLUSTER_ID` is the cluster.
    ///
    /// # Errors
    ///
    /// A variable that cannot be used.
    pub fn from_env(id: SpiffeId) -> Result<Self, IstioCaError> {
        let address = env::var("CA_ADDR").ok().filter(|address| !address.is_empty());
        let mut ca = Self::new(id, address.as_deref().unwrap_or("istiod.istio-system.svc:15012"))?;
        if let Ok(name) = env::var("ISTIOD_SAN") {
            ca = ca.server_name(&name)?;
        }
        match env::var("ISTIO_META_CLUSTER_ID") {
            Ok(cluster) => ca.cluster(&cluster),
            Err(_absent) => Ok(ca),
        }
    }

    /// The name in the service's certificate.
    ///
    /// # Errors
    ///
    /// [`IstioCaError::ServerName`].
    pub fn server_name(mut self, name: &str) -> Result<Self, IstioCaError> {
        let name = ServerName::try_from(name.to_owned());
        self.server_name = name.map_err(|_detail| IstioCaError::ServerName)?;
        Ok(self)
    }

    /// The roots of the service's own certificate, PEM.
    #[must_use]
    pub fn roots_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.roots = path.into();
        self
    }

    /// Proves itself with the service account's token in this file.
    #[must_use]
    pub fn token_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.credentials = Credentials::Token(path.into());
        self
    }

    /// Proves itself with a certificate it has already, PEM (`PROV_CERT` of Istio's agent).
    #[must_use]
    pub fn certificate_files(mut self, chain: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        self.credentials = Credentials::Certificate { chain: chain.into(), key: key.into() };
        self
    }

    /// The cluster it says it is of; `Kubernetes` by default.
    ///
    /// # Errors
    ///
    /// [`IstioCaError::Header`].
    pub fn cluster(self, id: &str) -> Result<Self, IstioCaError> {
        self.header("clusterid", id)
    }

    /// One more header of each call, or another value (`CA_HEADER_*` of Istio's agent).
    ///
    /// # Errors
    ///
    /// [`IstioCaError::Header`].
    pub fn header(mut self, name: &'static str, value: &str) -> Result<Self, IstioCaError> {
        let wrong = IstioCaError::Header(name);
        let key = AsciiMetadataKey::from_bytes(name.as_bytes()).map_err(|_detail| wrong)?;
        let value = AsciiMetadataValue::try_from(value).map_err(|_detail| wrong)?;
        self.headers.retain(|(other, _)| *other != key);
        self.headers.push((key, value));
        Ok(self)
    }

    /// The life asked for; 24 hours by default, as Istio's agent does. The service may give less.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    /// Believes these trust domains, too.
    #[must_use]
    pub fn foreign(mut self, bundles: impl IntoIterator<Item = TrustBundle>) -> Self {
        self.foreign = bundles.into_iter().collect();
        self
    }

    /// After a failure it waits `first`, doubled with each further one up to `most`, ±20 %. One second
    /// and 150 by default, as ztunnel does; for ever.
    #[must_use]
    pub fn retry(mut self, first: Duration, most: Duration) -> Self {
        self.backoff = Backoff::new((first, most), near);
        self
    }

    /// The clock that renewal goes by.
    #[must_use]
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// The cryptography of connection and verification; ring's by default.
    #[must_use]
    pub fn provider(mut self, provider: Arc<CryptoProvider>) -> Self {
        self.provider = provider;
        self
    }

    /// As a source for a mesh.
    #[must_use]
    pub fn source(self) -> IstioCaSource {
        IstioCaSource { ca: self, state: IstioCaState::default(), schedule: None, pause: None }
    }

    fn bundles(&self, home: TrustBundle) -> Result<BundleSet, BundleError> {
        BundleSet::from_bundles(self.foreign.iter().cloned().chain([home]))
    }
}

impl fmt::Debug for IstioCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the headers, which may be secrets.
        f.debug_struct("IstioCa")
            .field("id", &self.id)
            .field("address", &self.address)
            .field("credentials", &self.credentials)
            .finish_non_exhaustive()
    }
}

/// A certificate service as a source of identity; made by [`IstioCa::source`].
///
/// A certificate is renewed at half of its life, 1 % earlier or later. When that fails, it is tried
/// again for ever, and what is in force stays until it expires.
pub struct IstioCaSource {
    ca: IstioCa,
    state: IstioCaState,
    schedule: Option<RotationSchedule>,
    pause: Option<Pin<Box<Sleep>>>,
}

impl IstioCaSource {
    /// How it stands; the handle follows the source wherever it goes.
    #[must_use]
    pub fn state(&self) -> IstioCaState {
        self.state.clone()
    }

    /// Until something is to be done. It may be dropped and called again.
    async fn wait(&mut self) {
        if let Some(pause) = &mut self.pause {
            pause.as_mut().await;
            self.pause = None;
            return;
        }
        loop {
            let now = self.ca.clock.now();
            let next = self.schedule.map_or(Next::Renew, |schedule| schedule.next(now));
            let Next::Wait(until) = next else { return };
            let left = Duration::from_secs(until.as_secs().saturating_sub(now.as_secs()));
            sleep(left.min(NAP)).await;
        }
    }

    async fn renew(&mut self) -> Result<Identity, IstioCaFailure> {
        let call = timeout(CALL_TIMEOUT, call::create(&self.ca));
        let (svid, roots) = call.await.unwrap_or(Err(IstioCaFailure::Timeout))?;
        let bundles = self.ca.bundles(roots)?;
        let (now, end) = (self.ca.clock.now(), svid.not_after());
        // From now, not from `notBefore`, which lies back for peers whose clock is behind.
        self.schedule = Some(RotationSchedule::new(now, end, random()));
        Ok(Identity::new(Arc::new(svid), Arc::new(bundles)))
    }
}

impl IdentitySource for IstioCaSource {
    fn next(&mut self) -> IdentityFuture<'_> {
        Box::pin(async move {
            self.wait().await;
            match self.renew().await {
                Ok(identity) => {
                    self.ca.backoff.reset();
                    self.state.renewed(identity.svid.not_after());
                    IdentityUpdate::Identity(identity)
                }
                Err(failure) => {
                    let left = self.state.seconds_to_expiry(self.ca.clock.now());
                    let wait = self.ca.backoff.fail();
                    // Never past the end of what is in force, as long as it has one.
                    let left = left.filter(|left| *left > 0).map(Duration::from_secs);
                    let wait = left.map_or(wait, |left| wait.min(left));
                    self.pause = Some(Box::pin(sleep(wait)));
                    self.state.failed(&failure);
                    IdentityUpdate::Failed(Box::new(failure))
                }
            }
        })
    }
}

impl fmt::Debug for IstioCaSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IstioCaSource").field("ca", &self.ca).finish_non_exhaustive()
    }
}

/// A fifth more or less.
fn near(wait: Duration) -> Duration {
    let fifth = wait.checked_div(5).unwrap_or_default();
    wait.saturating_sub(fifth).saturating_add(spread(fifth.saturating_mul(2)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_second_doubled_to_150_with_a_fifth_more_or_less_for_ever() {
        for _ in 0..50 {
            let mut backoff = Backoff::new(RETRY, near);
            for want in [1, 2, 4, 8, 16, 32, 64, 128, 150, 150, 150] {
                let (got, want) = (backoff.fail(), Duration::from_secs(want));
                assert!(got >= want * 4 / 5 && got <= want * 6 / 5, "{got:?} for {want:?}");
            }
            backoff.failures = u32::MAX;
            assert!(backoff.fail() <= Duration::from_secs(180));
            backoff.reset();
            assert!(backoff.fail() < Duration::from_secs(2));
        }
    }
}
