//! The authority: a certificate and key that sign for one trust domain.

mod load;
#[cfg(test)]
#[expect(clippy::arithmetic_side_effects, reason = "a test fails by panicking")]
mod tests;

use std::fmt;
use std::sync::OnceLock;
use std::time::Duration;

use mesh_identity::x509::{
    CertificateProfile, MAX_CHAIN_BYTES, Role, SvidError, SvidIssuers, SvidLeaf, Validity,
};
use mesh_identity::{BundleSet, SpiffeId, TrustBundle, TrustDomain, X509Authority, X509Svid};
use rcgen::{Issuer, PublicKeyData as _};
use rustls_pki_types::{CertificateDer, DnsName, SignatureVerificationAlgorithm, UnixTime};
#[cfg(feature = "export")]
use zeroize::Zeroizing;

pub use self::load::PluggedIn;
use crate::csr::CertificateRequest;
use crate::error::CaError;
use crate::key::{CaKey, Generated, KeyKind, SignError, Signed, Signer};
use crate::leaf::{Leaf, LeafWriter};
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
/// A key that it has made or loaded is in ring's hands, in this process's memory. Copies of ours are
/// zeroed when they are dropped; ring's own is not, because ring offers no way to: a memory image of
/// the process may show it, even after the authority is gone ([SEC-CA-9]). For a key that must not be
/// in this memory there is [`Signer`].
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
    leaves: LeafWriter,
    /// What leaves are sent with: the way up to the root, which is not part of it.
    issuers: SvidIssuers,
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
        intermediates.extend_from_slice(self.issuers.certificates());
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
            leaves: LeafWriter::new(&certificate, &key)?,
            issuer: Issuer::from_ca_cert_der(&certificate, key)?,
            own: BundleSet::from_bundles([own])?,
            above: OnceLock::new(),
            anchor,
            certificate,
            issuers: SvidIssuers::parse(trust_domain.as_str(), intermediates)
                .map_err(CaError::Chain)?,
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
    ) -> Result<(X509Svid, IssuedLife), CaError> {
        let key = Generated::new()?;
        let issued = self.issue(id, dns_names, &key.spki(), ttl, now)?;
        let svid = X509Svid::from_parts(issued.leaf, &self.issuers, &key.pkcs8())?;
        Ok((svid, issued.record))
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
        Ok(self.issue_to(id, request, ttl, now)?.0)
    }

    /// The chain, and what the issue log says of it.
    pub(crate) fn issue_to(
        &self,
        id: &SpiffeId,
        request: &CertificateRequest,
        ttl: Duration,
        now: UnixTime,
    ) -> Result<(Vec<CertificateDer<'static>>, IssuedLife), CaError> {
        // [SEC-CA-2] Whoever got this would be taken for the authority.
        let roots = self.roots.iter().flat_map(TrustBundle::x509_authorities);
        let mut authorities = roots.chain([&self.anchor]);
        if authorities.any(|authority| authority.public_key() == request.spki()) {
            return Err(CaError::OwnKey);
        }
        let issued = self.issue(id, &[], request.spki(), ttl, now)?;
        let mut chain = vec![issued.leaf.into_der()];
        chain.extend_from_slice(self.issuers.certificates());
        Ok((chain, issued.record))
    }

    fn issue(
        &self,
        id: &SpiffeId,
        dns_names: &[DnsName<'_>],
        spki: &[u8],
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
        let serial = profile::serial()?;
        let leaf = Leaf { id, dns_names, spki, serial, not_before, not_after };
        let to_be_signed = self.leaves.to_be_signed(&leaf)?;
        let signed = self.issuer.key().sign(&to_be_signed);
        let signed = signed.map_err(|SignError| CaError::Signer)?;
        let leaf = self.leaves.certificate(&to_be_signed, signed.signature());
        let leaf = SvidLeaf::parse(leaf).map_err(CaError::Issued)?;
        self.check(&leaf, &signed, dns_names.is_empty(), now).map_err(CaError::Issued)?;
        Ok(Issued { leaf, record: IssuedLife { serial, not_before, not_after } })
    }

    /// [SEC-CA-4] What is handed out passes the verifier that will judge it: each leaf, as it is, by
    /// every rule.
    ///
    /// Two things are not computed for each of them. The way above, which no leaf changes, is verified
    /// once for as long as all of it is valid. And that a signature verifies is shown by
    /// [`Signed::proof`] where ring has made it in this process: the verifier finds this authority's
    /// key, the message that ring was given and the signature that ring returned, or refuses. (It
    /// would not notice a processor that computes wrong; the first leaf is verified in full, and so
    /// is every one whose key somebody else holds.)
    ///
    /// `identity_only`: the leaf has no DNS names. For such names a constraint above may admit one
    /// leaf and not the next; where one applies to URIs, the verifier refuses all leaves alike
    /// ([SEC-ID-13]).
    fn check(
        &self,
        leaf: &SvidLeaf<'_>,
        signed: &Signed<'_>,
        identity_only: bool,
        now: UnixTime,
    ) -> Result<(), SvidError> {
        let stands = self.above.get().is_some_and(|above| above.contains(now));
        if identity_only && stands {
            let proof = signed.proof();
            let proof = proof.as_ref().map_or(ALGORITHMS, std::slice::from_ref);
            leaf.verify(&[], &self.own, now, Role::Server, proof)?;
            return Ok(());
        }
        let issuers = self.issuers.certificates();
        let verified = leaf.verify(issuers, &self.roots, now, Role::Server, ALGORITHMS)?;
        // [SEC-ID-7] Beside a chain of half the limit there is room for any leaf.
        let length = issuers.iter().fold(0_usize, |sum, one| sum.saturating_add(one.len()));
        if length <= MAX_CHAIN_BYTES / 2 {
            let root = verified.authority().validity();
            let above = self.issuers.validity().map_or(root, |above| above.intersection(root));
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

/// A leaf that may be handed out once it is recorded.
struct Issued {
    leaf: SvidLeaf<'static>,
    record: IssuedLife,
}

/// What the issue log says of a certificate.
pub(crate) struct IssuedLife {
    pub(crate) serial: [u8; profile::SERIAL],
    pub(crate) not_before: UnixTime,
    pub(crate) not_after: UnixTime,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("trust_domain", &self.trust_domain)
            .field("not_after", &self.not_after.as_secs())
            .finish_non_exhaustive()
    }
}
