//! The authority: a certificate and key that sign for one trust domain.

use std::fmt;
use std::time::Duration;

use mesh_identity::x509::{CertificateProfile, Role, SvidError, verify_svid};
use mesh_identity::{BundleSet, SpiffeId, TrustBundle, TrustDomain, X509Authority, X509Svid};
use rcgen::{CertificateParams, Issuer, PublicKeyData};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{
    CertificateDer, PrivatePkcs8KeyDer, SignatureVerificationAlgorithm, UnixTime,
};
use zeroize::Zeroize as _;
#[cfg(feature = "export")]
use zeroize::Zeroizing;

use crate::csr::CertificateRequest;
use crate::error::CaError;
use crate::key::{CaKey, generate_pkcs8};
use crate::pem;
use crate::profile::{self, BACKDATE, DEFAULT_TTL, MAX_TTL};

/// An authority with less life than this left does not issue ([SEC-CA-5]): half of [`DEFAULT_TTL`].
const LEAST_LEFT: Duration = Duration::from_secs(30 * 60);

/// The signatures that an issued certificate may carry.
static ALGORITHMS: &[&'static dyn SignatureVerificationAlgorithm] = &[
    webpki::ring::ECDSA_P256_SHA256,
    webpki::ring::ECDSA_P256_SHA384,
    webpki::ring::ECDSA_P384_SHA256,
    webpki::ring::ECDSA_P384_SHA384,
    webpki::ring::ED25519,
];

/// Signs X.509-SVIDs for one trust domain.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use mesh_ca::Authority;
/// use mesh_identity::TrustDomain;
/// use rustls_pki_types::UnixTime;
///
/// let trust_domain: TrustDomain = "cluster.local".parse()?;
/// let now = UnixTime::since_unix_epoch(Duration::from_secs(1_800_000_000));
/// let day = Duration::from_secs(24 * 3600);
/// let authority = Authority::new_root(&trust_domain, 10 * day, now)?;
/// let id = "spiffe://cluster.local/ns/shop/sa/cart".parse()?;
/// let svid = authority.issue_svid(&id, Duration::from_secs(3600), now)?;
/// assert_eq!(svid.id(), &id);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Authority {
    trust_domain: TrustDomain,
    certificate: CertificateDer<'static>,
    not_after: UnixTime,
    issuer: Issuer<'static, CaKey>,
    /// What leaves are sent with: the way up to the root, which is not part of it.
    intermediates: Vec<CertificateDer<'static>>,
    root: X509Authority,
    /// Whether its certificate may sign that of another authority.
    allows_authorities: bool,
}

impl Authority {
    /// Makes a self-signed root with a fresh P-256 key.
    ///
    /// # Errors
    ///
    /// When the system has no randomness or the life cannot be encoded.
    pub fn new_root(
        trust_domain: &TrustDomain,
        life: Duration,
        now: UnixTime,
    ) -> Result<Self, CaError> {
        let params = profile::root(trust_domain, before(now), after(now, life))?;
        let key = CaKey::generate()?;
        let certificate = params.self_signed(&key)?.der().clone();
        let root = X509Authority::from_der(certificate.clone()).map_err(CaError::Authority)?;
        Self::assemble(trust_domain, certificate, key, Vec::new(), root)
    }

    /// Loads a root certificate and its PKCS#8 key from PEM, as Istio's `ca-cert.pem` and
    /// `ca-key.pem` hold them.
    ///
    /// # Errors
    ///
    /// What cannot be read or used, and a key that does not belong to the certificate.
    pub fn from_pem(
        trust_domain: &TrustDomain,
        certificate: &[u8],
        key: &[u8],
    ) -> Result<Self, CaError> {
        let blocks: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(certificate).collect();
        let blocks = blocks.map_err(|_detail| CaError::Authority(SvidError::Malformed))?;
        let [certificate] = blocks.try_into().map_err(|_several: Vec<_>| CaError::NotOne)?;
        let mut pkcs8 = PrivatePkcs8KeyDer::from_pem_slice(key).map_err(|_detail| CaError::Key)?;
        let key = CaKey::from_pkcs8(pkcs8.secret_pkcs8_der());
        pkcs8.zeroize();
        let key = key?;
        let root = X509Authority::from_der(certificate.clone()).map_err(CaError::Authority)?;
        Self::assemble(trust_domain, certificate, key, Vec::new(), root)
    }

    /// Makes an intermediate authority with a fresh key, which may issue leaves and nothing else.
    ///
    /// # Errors
    ///
    /// When this authority may have none below it, or ends before the life asked for.
    pub fn new_intermediate(&self, life: Duration, now: UnixTime) -> Result<Self, CaError> {
        let not_after = after(now, life);
        if !self.allows_authorities {
            return Err(CaError::NoAuthorityBelow);
        }
        if not_after > self.not_after {
            return Err(CaError::RotationDue);
        }
        let params = profile::intermediate(&self.trust_domain, before(now), not_after)?;
        let key = CaKey::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?.der().clone();
        let intermediates = vec![certificate.clone()];
        Self::assemble(&self.trust_domain, certificate, key, intermediates, self.root.clone())
    }

    fn assemble(
        trust_domain: &TrustDomain,
        certificate: CertificateDer<'static>,
        key: CaKey,
        intermediates: Vec<CertificateDer<'static>>,
        root: X509Authority,
    ) -> Result<Self, CaError> {
        let profile = CertificateProfile::parse(&certificate).map_err(CaError::Authority)?;
        profile.check_issuer(trust_domain.as_str()).map_err(CaError::Authority)?;
        if profile.public_key() != key.subject_public_key_info() {
            return Err(CaError::KeyMismatch);
        }
        Ok(Self {
            trust_domain: trust_domain.clone(),
            not_after: profile.validity().not_after(),
            allows_authorities: profile.path_length() != Some(0),
            issuer: Issuer::from_ca_cert_der(&certificate, key)?,
            certificate,
            intermediates,
            root,
        })
    }

    /// Issues an SVID with a fresh P-256 key.
    ///
    /// A life of zero is [`DEFAULT_TTL`]; more than [`MAX_TTL`], or than the authority has itself,
    /// is cut to that ([SEC-CA-5]).
    ///
    /// # Errors
    ///
    /// An identity of another trust domain, an authority that ends too soon, or a certificate that
    /// does not pass our own verifier.
    pub fn issue_svid(
        &self,
        id: &SpiffeId,
        ttl: Duration,
        now: UnixTime,
    ) -> Result<X509Svid, CaError> {
        let pkcs8 = generate_pkcs8()?;
        let key = CaKey::from_pkcs8(&pkcs8)?;
        let chain = self.issue(id, &key, ttl, now)?;
        Ok(X509Svid::from_der(chain, &PrivatePkcs8KeyDer::from(pkcs8.as_slice()))?)
    }

    /// Issues a certificate chain, leaf first, for the key of a request.
    ///
    /// `id` is who the caller has been authenticated as; the request's own names count for
    /// nothing ([SEC-CA-1]).
    ///
    /// # Errors
    ///
    /// As [`Authority::issue_svid`], and a request for the authority's or its root's own key.
    pub fn issue_for_request(
        &self,
        id: &SpiffeId,
        request: &CertificateRequest,
        ttl: Duration,
        now: UnixTime,
    ) -> Result<Vec<CertificateDer<'static>>, CaError> {
        let root = CertificateProfile::parse(self.root.der()).map_err(CaError::Authority)?;
        let own = self.issuer.key().subject_public_key_info();
        if request.spki() == own || request.spki() == root.public_key() {
            return Err(CaError::OwnKey);
        }
        self.issue(id, request.key(), ttl, now)
    }

    fn issue(
        &self,
        id: &SpiffeId,
        key: &impl PublicKeyData,
        ttl: Duration,
        now: UnixTime,
    ) -> Result<Vec<CertificateDer<'static>>, CaError> {
        if id.trust_domain() != self.trust_domain.as_str() || id.path().is_empty() {
            return Err(CaError::ForeignIdentity);
        }
        // [SEC-CA-5] Who has less than half a life to give says so, instead of giving less.
        if after(now, LEAST_LEFT) > self.not_after {
            return Err(CaError::RotationDue);
        }
        let ttl = if ttl.is_zero() { DEFAULT_TTL } else { ttl.min(MAX_TTL) };
        let not_after = after(now, ttl).min(self.not_after);
        let params: CertificateParams = profile::leaf(id, before(now), not_after)?;
        let leaf = params.signed_by(key, &self.issuer)?.der().clone();
        let mut chain = vec![leaf];
        chain.extend(self.intermediates.iter().cloned());
        self.check(&chain, now)?;
        Ok(chain)
    }

    /// [SEC-CA-4] What is handed out passes the verifier that will judge it.
    fn check(&self, chain: &[CertificateDer<'static>], now: UnixTime) -> Result<(), CaError> {
        let bundle = TrustBundle::new(self.trust_domain.clone()).with_authority(self.root.clone());
        let bundles = BundleSet::from_bundles([bundle]);
        let bundles = bundles.map_err(|_detail| CaError::ForeignIdentity)?;
        let verified = verify_svid(chain, &bundles, now, Role::Server, ALGORITHMS);
        verified.map(drop).map_err(CaError::Issued)
    }

    /// The trust bundle that verifies what this authority issues: its root.
    #[must_use]
    pub fn bundle(&self) -> TrustBundle {
        TrustBundle::new(self.trust_domain.clone()).with_authority(self.root.clone())
    }

    /// The trust domain it signs for.
    #[must_use]
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The last second of its own certificate.
    #[must_use]
    pub fn not_after(&self) -> UnixTime {
        self.not_after
    }

    /// Its certificate as PEM.
    #[must_use]
    pub fn certificate_pem(&self) -> String {
        pem::encode("CERTIFICATE", &self.certificate)
    }

    /// Its private key as PKCS#8 PEM: whoever has it is the authority.
    #[cfg(feature = "export")]
    #[must_use]
    pub fn export_key_pem(&self) -> Zeroizing<String> {
        Zeroizing::new(pem::encode("PRIVATE KEY", self.issuer.key().pkcs8()))
    }
}

fn before(now: UnixTime) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(now.as_secs()).saturating_sub(BACKDATE))
}

fn after(now: UnixTime, life: Duration) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(now.as_secs()).saturating_add(life))
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("trust_domain", &self.trust_domain)
            .field("not_after", &self.not_after.as_secs())
            .finish_non_exhaustive()
    }
}
