//! X.509-SVID verification: path building by rustls-webpki, and the SVID's half, which it does
//! not look at (X509-SVID sections 3 to 5).
//!
//! There is no cryptography in this crate: the signature algorithms are an argument.

mod error;
mod key;
mod profile;

use std::cell::Cell;

use rustls_pki_types::{CertificateDer, SignatureVerificationAlgorithm, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, ExtendedKeyUsageValidator, KeyPurposeIdIter, KeyUsage, VerifiedPath};

pub use error::SvidError;
pub use key::check_public_key;
pub use profile::{CertificateProfile, Validity};

use crate::bundle::BundleSet;
use crate::spiffe_id::SpiffeId;

/// Most certificates in a chain, the leaf included ([SEC-ID-7]). Meshes use two or three.
pub const MAX_CHAIN_CERTIFICATES: usize = 10;

/// Most bytes in a chain ([SEC-ID-7]).
pub const MAX_CHAIN_BYTES: usize = 64 * 1024;

/// The role in which a peer presents its SVID.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[expect(clippy::exhaustive_enums, reason = "TLS has two ends")]
pub enum Role {
    /// It connected to us.
    Client,
    /// We connected to it.
    Server,
}

/// A chain that has passed every check; who presents it must still prove possession of the key.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct VerifiedSvid {
    id: SpiffeId,
    not_after: UnixTime,
    authority: CertificateDer<'static>,
}

impl VerifiedSvid {
    /// Who the leaf names.
    #[must_use]
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// The earliest end of validity on the path, the authority included.
    #[must_use]
    pub fn not_after(&self) -> UnixTime {
        self.not_after
    }

    /// The authority that vouched for the chain.
    #[must_use]
    pub fn authority(&self) -> &CertificateDer<'static> {
        &self.authority
    }
}

/// Verifies a chain, leaf first, by every rule of X509-SVID and [SEC-ID-2] to [SEC-ID-9].
///
/// Only the authorities of the leaf's own trust domain are asked ([SEC-ID-8]).
///
/// # Errors
///
/// The first rule that is broken; each has its own variant.
pub fn verify_svid(
    chain: &[CertificateDer<'_>],
    bundles: &BundleSet,
    now: UnixTime,
    role: Role,
    algorithms: &[&'static dyn SignatureVerificationAlgorithm],
) -> Result<VerifiedSvid, SvidError> {
    let (leaf, intermediates) = chain.split_first().ok_or(SvidError::EmptyChain)?;
    if chain.len() > MAX_CHAIN_CERTIFICATES {
        return Err(SvidError::TooManyCertificates);
    }
    let bytes = chain.iter().fold(0_usize, |sum, one| sum.saturating_add(one.len()));
    if bytes > MAX_CHAIN_BYTES {
        return Err(SvidError::ChainTooLong);
    }
    let profile = CertificateProfile::parse(leaf)?;
    let id = profile.leaf_id()?;

    // [SEC-ID-8] The trust domain that the leaf claims chooses whom to ask, and nothing else does.
    let bundle = bundles.get(id.trust_domain()).ok_or(SvidError::UnknownTrustDomain)?;
    if bundle.x509_authorities().is_empty() {
        return Err(SvidError::NoAuthorities);
    }
    // [SEC-ID-5] webpki looks at no date of an anchor.
    let authorities = bundle.x509_authorities().iter();
    let valid: Vec<_> = authorities.filter(|one| one.validity().contains(now)).collect();
    if valid.is_empty() {
        return Err(SvidError::AuthoritiesExpired);
    }
    let anchors: Vec<TrustAnchor<'_>> = valid.iter().map(|one| one.anchor().clone()).collect();

    let end_entity = EndEntityCert::try_from(leaf).map_err(SvidError::Certificate)?;
    let issuers = IssuerCheck { trust_domain: id.trust_domain(), objection: Cell::new(None) };
    let check = |path: &VerifiedPath<'_>| issuers.check(path);
    let path = end_entity
        .verify_for_usage(
            algorithms,
            &anchors,
            intermediates,
            now,
            purpose(role),
            None,
            Some(&check),
        )
        .map_err(|error| issuers.objection.take().unwrap_or(SvidError::Path(error)))?;

    let mut not_after = profile.validity().not_after();
    for issuer in path.intermediate_certificates() {
        let issuer = CertificateProfile::parse(&issuer.der())?;
        not_after = not_after.min(issuer.validity().not_after());
    }
    let anchor = path.anchor();
    let authority =
        valid.iter().find(|one| one.anchor() == anchor).ok_or(SvidError::NoAuthorities)?;
    Ok(VerifiedSvid {
        id,
        not_after: not_after.min(authority.validity().not_after()),
        authority: authority.der().clone(),
    })
}

/// [SEC-ID-3] webpki accepts a leaf without extended key usage; one that has it must have both
/// purposes, which the profile checks, so here the role in use is enough.
fn purpose(role: Role) -> impl ExtendedKeyUsageValidator {
    match role {
        Role::Client => Purpose(KeyUsage::client_auth()),
        Role::Server => Purpose(KeyUsage::server_auth()),
    }
}

struct Purpose(KeyUsage);

impl ExtendedKeyUsageValidator for Purpose {
    fn validate(&self, purposes: KeyPurposeIdIter<'_, '_>) -> Result<(), webpki::Error> {
        self.0.validate(purposes)
    }
}

/// What SPIFFE asks of issuers and webpki does not ([SEC-ID-4]). Part of path building, so that
/// another path may still be found.
struct IssuerCheck<'a> {
    trust_domain: &'a str,
    objection: Cell<Option<SvidError>>,
}

impl IssuerCheck<'_> {
    fn check(&self, path: &VerifiedPath<'_>) -> Result<(), webpki::Error> {
        for issuer in path.intermediate_certificates() {
            let checked = CertificateProfile::parse(&issuer.der())
                .and_then(|profile| profile.check_issuer(self.trust_domain));
            if let Err(objection) = checked {
                self.objection.set(Some(objection));
                return Err(webpki::Error::UnknownIssuer);
            }
        }
        Ok(())
    }
}
