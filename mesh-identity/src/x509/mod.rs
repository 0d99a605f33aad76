//! X.509-SVID verification: path building by rustls-webpki, and the SVID's half, which it does
//! not look at (X509-SVID sections 3 to 5).
//!
//! There is no cryptography in this crate: the signature algorithms are an argument.

mod error;
mod key;
mod leaf;
#[cfg(test)]
mod limbo;
mod path;
mod profile;
mod search;

use rustls_pki_types::{CertificateDer, SignatureVerificationAlgorithm, UnixTime};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

pub use error::SvidError;
pub use key::check_public_key;
pub use leaf::{SvidIssuers, SvidLeaf};
pub use profile::{CertificateProfile, Validity};

use crate::bundle::{BundleSet, X509Authority};
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
    path: Validity,
    stands: Validity,
    authority: X509Authority,
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
        self.path.not_after()
    }

    /// The time at which the same bundles would say the same of the same chain: every certificate
    /// on the path is valid, and no revocation list has expired. Whoever keeps the verdict keeps it
    /// no longer.
    #[must_use]
    pub fn validity(&self) -> Validity {
        self.stands
    }

    /// The authority that vouched for the chain.
    #[must_use]
    pub fn authority(&self) -> &X509Authority {
        &self.authority
    }
}

/// Takes apart certificates whose DER follows one another, as the SPIFFE Workload API sends chains
/// and bundles. What is in them is not looked at.
///
/// # Errors
///
/// [`SvidError::Malformed`] when a certificate cannot be read, or something else follows it.
pub fn split_certificates(mut der: &[u8]) -> Result<Vec<CertificateDer<'static>>, SvidError> {
    let mut certificates = Vec::new();
    while !der.is_empty() {
        let (rest, _) = X509Certificate::from_der(der).map_err(|_detail| SvidError::Malformed)?;
        let length = der.len().saturating_sub(rest.len());
        let (one, rest) = der.split_at_checked(length).ok_or(SvidError::Malformed)?;
        certificates.push(CertificateDer::from(one.to_vec()));
        der = rest;
    }
    Ok(certificates)
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
    algorithms: &[&dyn SignatureVerificationAlgorithm],
) -> Result<VerifiedSvid, SvidError> {
    let (leaf, intermediates) = chain.split_first().ok_or(SvidError::EmptyChain)?;
    check_size(leaf, intermediates)?;
    let leaf = SvidLeaf::parse(CertificateDer::from(leaf.as_ref()))?;
    leaf.verify(intermediates, bundles, now, role, algorithms)
}

/// [SEC-ID-7] Before anything is read.
fn check_size(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
) -> Result<(), SvidError> {
    if intermediates.len() >= MAX_CHAIN_CERTIFICATES {
        return Err(SvidError::TooManyCertificates);
    }
    let bytes = intermediates.iter().fold(leaf.len(), |sum, one| sum.saturating_add(one.len()));
    if bytes > MAX_CHAIN_BYTES { Err(SvidError::ChainTooLong) } else { Ok(()) }
}
