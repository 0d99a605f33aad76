//! The authority: a certificate and key that sign for one trust domain.

use std::fmt;
use std::sync::OnceLock;
use std::time::Duration;

use mesh_identity::x509::{
    CertificateProfile, MAX_CHAIN_BYTES, Role, SvidError, Validity, verify_svid,
};
use mesh_identity::{BundleSet, SpiffeId, TrustBundle, TrustDomain, X509Authority, X509Svid};
use rcgen::{Issuer, PublicKeyData};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{
    CertificateDer, DnsName, PrivatePkcs8KeyDer, SignatureVerificationAlgorithm, UnixTime,
};
#[cfg(feature = "export")]
use zeroize::Zeroizing;

use crate::csr::CertificateRequest;
use crate::error::CaError;
use crate::key::{CaKey, KeyKind, Signer, generate_pkcs8};
use crate::pem;
use crate::profile::{self, DEFAULT_TTL, MAX_TTL, after, backdated};

/// An authority with less life than this left does not issue ([SEC-CA-5]): half of [`DEFAULT_TTL`].
pub(crate) const LEAST_LEFT: Duration = Duration::from_secs(30 * 60);

/// The signatures that an issued certificate may carry.
pub(crate) static ALGORITHMS: &[&'static dyn SignatureVerificationAlgorithm] = &[
    webpki::ring::ECDSA_P256_SHA256,
    webpki::ring::ECDSA_P256_SHA384,
    webpki::ring::ECDSA_P384_SHA256,
    webpki::ring::ECDSA_P384_SHA384,
    webpki::ring::ED25519,
    webpki::ring::RSA_PKCS1_2048_8192_SHA256,
    webpki::ring::RSA_PKCS1_2048_8192_SHA384,
    webpki::ring::RSA_PKCS1_2048_8192_SHA512,
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
    roots: BundleSet,
    /// Its own certificate as the only authority: what a leaf is checked against once the way above
    /// has been verified.
    own: BundleSet,
    /// While the way above, once verified, stays valid: all of it, the root included.
    above: OnceLock<Validity>,
    anchor: X509Authority,
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
        Self::new_root_with(trust_domain, KeyKind::default(), life, now)
    }

    /// Makes a self-signed root with a fresh key of a kind.
    ///
    /// # Errors
    ///
    /// As [`Authority::new_root`].
    pub fn new_root_with(
        trust_domain: &TrustDomain,
        kind: KeyKind,
        life: Duration,
        now: UnixTime,
    ) -> Result<Self, CaError> {
        Self::self_signed(trust_domain, CaKey::generate(kind)?, life, now)
    }

    /// Makes a self-signed root for a key that somebody else holds.
    ///
    /// # Errors
    ///
    /// As [`Authority::new_root`], a key that is not accepted ([SEC-ID-6]), or a signer that does
    /// not sign.
    pub fn new_root_for(
        trust_domain: &TrustDomain,
        signer: Box<dyn Signer>,
        life: Duration,
        now: UnixTime,
    ) -> Result<Self, CaError> {
        Self::self_signed(trust_domain, CaKey::from_signer(signer)?, life, now)
    }

    fn self_signed(
        trust_domain: &TrustDomain,
        key: CaKey,
        life: Duration,
        now: UnixTime,
    ) -> Result<Self, CaError> {
        let params = profile::root(trust_domain, backdated(now), after(now, life))?;
        let certificate = params.self_signed(&key)?.der().clone();
        Self::assemble_root(trust_domain, certificate, key)
    }

    fn assemble_root(
        trust_domain: &TrustDomain,
        certificate: CertificateDer<'static>,
        key: CaKey,
    ) -> Result<Self, CaError> {
        let root = X509Authority::from_der(certificate.clone()).map_err(CaError::Authority)?;
        let roots = TrustBundle::new(trust_domain.clone()).with_authority(root);
        Self::assemble(trust_domain, certificate, key, Vec::new(), roots)
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
        let certificate = one_certificate(certificate)?;
        Self::assemble_root(trust_domain, certificate, CaKey::from_pem(key)?)
    }

    /// Loads a certificate authority as an operator plugs it into Istio.
    ///
    /// # Errors
    ///
    /// What cannot be read or used, a key that does not belong to the certificate, and a chain that
    /// does not lead to one of the roots.
    pub fn from_plugged_in(
        trust_domain: &TrustDomain,
        files: &PluggedIn<'_>,
        now: UnixTime,
    ) -> Result<Self, CaError> {
        Self::plug_in(trust_domain, files, CaKey::from_pem(files.key)?, now)
    }

    /// As [`Authority::from_plugged_in`], with the key in somebody else's hands; `files.key` is not
    /// looked at.
    ///
    /// # Errors
    ///
    /// As [`Authority::from_plugged_in`].
    pub fn from_plugged_in_with(
        trust_domain: &TrustDomain,
        files: &PluggedIn<'_>,
        signer: Box<dyn Signer>,
        now: UnixTime,
    ) -> Result<Self, CaError> {
        Self::plug_in(trust_domain, files, CaKey::from_signer(signer)?, now)
    }

    fn plug_in(
        trust_domain: &TrustDomain,
        files: &PluggedIn<'_>,
        key: CaKey,
        now: UnixTime,
    ) -> Result<Self, CaError> {
        // cert-manager's tls.crt goes on with the chain.
        let certificate = CertificateDer::pem_slice_iter(files.certificate).next();
        let certificate = certificate.ok_or(CaError::NotOne)?;
        let certificate =
            certificate.map_err(|_detail| CaError::Authority(SvidError::Malformed))?;
        let roots = TrustBundle::from_pem(trust_domain.clone(), files.roots)?;
        let is_root = |der: &CertificateDer<'_>| {
            roots.x509_authorities().iter().any(|root| root.der() == der)
        };
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(files.chain).collect();
        let chain = chain.map_err(|_detail| CaError::Authority(SvidError::Malformed))?;
        // The chain file may begin with the authority itself, and may end with the root: leaves are
        // sent with the first and without the second.
        let mut intermediates = Vec::new();
        if !is_root(&certificate) {
            intermediates.push(certificate.clone());
            let above = chain.into_iter().filter(|der| *der != certificate && !is_root(der));
            intermediates.extend(above);
        }
        let authority = Self::assemble(trust_domain, certificate, key, intermediates, roots)?;
        // What it would issue is what shows whether the chain leads to a root.
        let probe = format!("spiffe://{trust_domain}/probe").parse()?;
        let key = CaKey::generate(KeyKind::P256)?;
        authority.issue(&probe, &[], &key, DEFAULT_TTL, now)?;
        Ok(authority)
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
        let params = profile::intermediate(&self.trust_domain, backdated(now), not_after)?;
        let key = CaKey::generate(KeyKind::P256)?;
        let certificate = params.signed_by(&key, &self.issuer)?.der().clone();
        let mut intermediates = vec![certificate.clone()];
        intermediates.extend(self.intermediates.iter().cloned());
        Self::assemble(&self.trust_domain, certificate, key, intermediates, self.bundle())
    }

    fn assemble(
        trust_domain: &TrustDomain,
        certificate: CertificateDer<'static>,
        key: CaKey,
        intermediates: Vec<CertificateDer<'static>>,
        roots: TrustBundle,
    ) -> Result<Self, CaError> {
        let profile = CertificateProfile::parse(&certificate).map_err(CaError::Authority)?;
        profile.check_issuer(trust_domain.as_str()).map_err(CaError::Authority)?;
        if profile.public_key() != key.subject_public_key_info() {
            return Err(CaError::KeyMismatch);
        }
        let anchor = X509Authority::from_der(certificate.clone()).map_err(CaError::Authority)?;
        let own = TrustBundle::new(trust_domain.clone()).with_authority(anchor.clone());
        Ok(Self {
            trust_domain: trust_domain.clone(),
            not_after: profile.validity().not_after(),
            allows_authorities: profile.path_length() != Some(0),
            issuer: Issuer::from_ca_cert_der(&certificate, key)?,
            own: BundleSet::from_bundles([own])?,
            above: OnceLock::new(),
            anchor,
            certificate,
            intermediates,
            roots: BundleSet::from_bundles([roots])?,
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
        Ok(self.issue_with_key(id, &[], ttl, now)?.0)
    }

    /// The SVID, and what the issue log says of it.
    pub(crate) fn issue_with_key(
        &self,
        id: &SpiffeId,
        dns_names: &[DnsName<'_>],
        ttl: Duration,
        now: UnixTime,
    ) -> Result<(X509Svid, Issued), CaError> {
        let pkcs8 = generate_pkcs8(KeyKind::P256)?;
        let issued = self.issue(id, dns_names, &Generated::from_pkcs8(&pkcs8)?, ttl, now)?;
        let key = PrivatePkcs8KeyDer::from(pkcs8.as_slice());
        let svid = X509Svid::from_der(issued.chain.clone(), &key)?;
        Ok((svid, issued))
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
        Ok(self.issue_to(id, request, ttl, now)?.chain)
    }

    pub(crate) fn issue_to(
        &self,
        id: &SpiffeId,
        request: &CertificateRequest,
        ttl: Duration,
        now: UnixTime,
    ) -> Result<Issued, CaError> {
        // [SEC-CA-2] Whoever got this would be taken for the authority.
        let own = [self.issuer.key().subject_public_key_info()];
        let roots = self.roots.iter().flat_map(TrustBundle::x509_authorities);
        let roots = roots.map(|root| root.public_key().to_vec());
        if own.into_iter().chain(roots).any(|key| key == request.spki()) {
            return Err(CaError::OwnKey);
        }
        self.issue(id, &[], request.key(), ttl, now)
    }

    fn issue(
        &self,
        id: &SpiffeId,
        dns_names: &[DnsName<'_>],
        key: &impl PublicKeyData,
        ttl: Duration,
        now: UnixTime,
    ) -> Result<Issued, CaError> {
        if id.trust_domain() != self.trust_domain.as_str() || id.path().is_empty() {
            return Err(CaError::ForeignIdentity);
        }
        // [SEC-CA-5] Who has less than half a life to give says so, instead of giving less.
        if after(now, LEAST_LEFT) > self.not_after {
            return Err(CaError::RotationDue);
        }
        let ttl = if ttl.is_zero() { DEFAULT_TTL } else { ttl.min(MAX_TTL) };
        let not_before = backdated(now);
        let not_after = after(now, ttl).min(self.not_after);
        let (params, serial) = profile::leaf(id, dns_names, not_before, not_after)?;
        let leaf = params.signed_by(key, &self.issuer)?.der().clone();
        let mut chain = vec![leaf];
        chain.extend(self.intermediates.iter().cloned());
        self.check(&chain, dns_names.is_empty(), now).map_err(CaError::Issued)?;
        Ok(Issued { chain, serial, not_before, not_after })
    }

    /// [SEC-CA-4] What is handed out passes the verifier that will judge it: the leaf each time, its
    /// signature included, whoever made it; the way above, which no leaf changes, once for as long
    /// as all of it is valid.
    ///
    /// `identity_only`: the leaf has no DNS names. For such names a constraint above may admit one
    /// leaf and not the next; where one applies to URIs, the verifier refuses all leaves alike
    /// ([SEC-ID-13]).
    fn check(
        &self,
        chain: &[CertificateDer<'_>],
        identity_only: bool,
        now: UnixTime,
    ) -> Result<(), SvidError> {
        let stands = self.above.get().is_some_and(|above| above.contains(now));
        if let ([leaf, ..], true, true) = (chain, identity_only, stands) {
            let leaf = std::slice::from_ref(leaf);
            verify_svid(leaf, &self.own, now, Role::Server, ALGORITHMS)?;
            return Ok(());
        }
        let verified = verify_svid(chain, &self.roots, now, Role::Server, ALGORITHMS)?;
        // [SEC-ID-7] Beside a chain of half the limit there is room for any leaf.
        let length =
            self.intermediates.iter().fold(0_usize, |sum, one| sum.saturating_add(one.len()));
        if length <= MAX_CHAIN_BYTES / 2 {
            let mut above = verified.authority().validity();
            for intermediate in &self.intermediates {
                above = above.intersection(CertificateProfile::parse(intermediate)?.validity());
            }
            // Whoever was first has said the same.
            self.above.get_or_init(|| above);
        }
        Ok(())
    }

    /// The trust bundle that verifies what this authority issues: its roots.
    #[must_use]
    pub fn bundle(&self) -> TrustBundle {
        let roots = self.roots.get(self.trust_domain.as_str()).cloned();
        roots.unwrap_or_else(|| TrustBundle::new(self.trust_domain.clone()))
    }

    /// Its certificate as an authority of a bundle: that of a root is its own root.
    pub(crate) fn root(&self) -> X509Authority {
        self.anchor.clone()
    }

    /// Its certificate.
    #[cfg(feature = "persist")]
    pub(crate) fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
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

    /// Its private key as PKCS#8 PEM: whoever has it is the authority. Nothing when a [`Signer`]
    /// holds it, or it was not loaded from PKCS#8.
    #[cfg(feature = "export")]
    #[must_use]
    pub fn export_key_pem(&self) -> Option<Zeroizing<String>> {
        let pkcs8 = self.issuer.key().pkcs8()?;
        Some(Zeroizing::new(pem::encode("PRIVATE KEY", pkcs8)))
    }

    #[cfg(feature = "persist")]
    pub(crate) fn pkcs8(&self) -> Option<&[u8]> {
        self.issuer.key().pkcs8()
    }

    /// A root from its own certificate and PKCS#8 key, as the state holds them.
    #[cfg(feature = "persist")]
    pub(crate) fn from_der(
        trust_domain: &TrustDomain,
        certificate: CertificateDer<'static>,
        pkcs8: &[u8],
    ) -> Result<Self, CaError> {
        Self::assemble_root(trust_domain, certificate, CaKey::from_pkcs8(pkcs8)?)
    }
}

/// A certificate authority's files as an operator plugs them into Istio, each as PEM text:
/// `ca-cert.pem`, `ca-key.pem`, `cert-chain.pem`, `root-cert.pem`; or cert-manager's `tls.crt`,
/// `tls.key`, `tls.crt` once more, `ca.crt`.
#[derive(Clone, Copy)]
#[expect(clippy::exhaustive_structs, reason = "the layout has these four files")]
pub struct PluggedIn<'a> {
    /// The certificate that signs.
    pub certificate: &'a [u8],
    /// Its private key.
    pub key: &'a [u8],
    /// The way from it up to the root, with or without both ends. May be empty.
    pub chain: &'a [u8],
    /// The roots that verify all of it; several during a rotation.
    pub roots: &'a [u8],
}

impl fmt::Debug for PluggedIn<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PluggedIn").finish_non_exhaustive()
    }
}

/// A chain that may be handed out once it is recorded.
pub(crate) struct Issued {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) serial: Vec<u8>,
    pub(crate) not_before: UnixTime,
    pub(crate) not_after: UnixTime,
}

/// The public half of a fresh P-256 key. ring's PKCS#8 ends in it (RFC 5915: an uncompressed
/// point), so that it need not be computed a second time.
struct Generated<'a>(&'a [u8]);

impl<'a> Generated<'a> {
    const POINT: usize = 65;

    fn from_pkcs8(pkcs8: &'a [u8]) -> Result<Self, CaError> {
        let start = pkcs8.len().checked_sub(Self::POINT).ok_or(CaError::Key)?;
        let point = pkcs8.get(start..).filter(|point| point.first() == Some(&4));
        point.map(Self).ok_or(CaError::Key)
    }
}

impl PublicKeyData for Generated<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.0
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

fn one_certificate(pem: &[u8]) -> Result<CertificateDer<'static>, CaError> {
    let blocks: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let blocks = blocks.map_err(|_detail| CaError::Authority(SvidError::Malformed))?;
    let [certificate] = blocks.try_into().map_err(|_several: Vec<_>| CaError::NotOne)?;
    Ok(certificate)
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("trust_domain", &self.trust_domain)
            .field("not_after", &self.not_after.as_secs())
            .finish_non_exhaustive()
    }
}
