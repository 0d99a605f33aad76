//! Why a certificate chain is not an acceptable X.509-SVID.

use crate::spiffe_id::SpiffeIdError;

/// The rule that a chain breaks, one variant each. Nothing of the certificate's content is shown.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SvidError {
    /// The authority that the path ends in has expired or is not yet valid ([SEC-ID-5]).
    #[error("authority {at} of the trust domain's bundle has expired or is not yet valid")]
    AuthorityExpired {
        /// Its place among the bundle's X.509 authorities, from 0.
        at: usize,
    },

    /// rustls-webpki cannot read the leaf.
    #[error("certificate cannot be read: {0}")]
    Certificate(#[source] webpki::Error),

    /// More than the chain's limit of bytes ([SEC-ID-7]).
    #[error("chain is longer than {} bytes", super::MAX_CHAIN_BYTES)]
    ChainTooLong,

    /// An extension occurs twice ([SEC-ID-2]).
    #[error("an extension occurs twice")]
    DuplicateExtension,

    /// There is no certificate.
    #[error("chain is empty")]
    EmptyChain,

    /// A certificate of the chain has expired.
    #[error("a certificate of the chain has expired")]
    Expired,

    /// The URI SAN is no SPIFFE ID.
    #[error("URI SAN is not a SPIFFE ID: {0}")]
    Id(#[source] SpiffeIdError),

    /// An issuer's SPIFFE ID has a path or is of another trust domain ([SEC-ID-4]).
    #[error("issuer has a SPIFFE ID that no signing certificate of this trust domain has")]
    IssuerId,

    /// An issuer is no certificate authority ([SEC-ID-4]).
    #[error("issuer is not a certificate authority")]
    IssuerNotCa,

    /// An issuer may not sign certificates ([SEC-ID-4]).
    #[error("issuer's key usage does not include keyCertSign")]
    IssuerUsage,

    /// The leaf may sign certificates or revocation lists ([SEC-ID-3]).
    #[error("leaf's key usage includes keyCertSign or cRLSign")]
    LeafCanSign,

    /// The leaf is a certificate authority ([SEC-ID-3]).
    #[error("leaf is a certificate authority")]
    LeafIsCa,

    /// The leaf does not say whether it is a certificate authority ([SEC-ID-3]).
    #[error("leaf has no basic constraints")]
    LeafWithoutBasicConstraints,

    /// The leaf does not say what its key is for ([SEC-ID-3]).
    #[error("leaf has no key usage")]
    LeafWithoutKeyUsage,

    /// The DER cannot be parsed, or something follows it.
    #[error("certificate is malformed")]
    Malformed,

    /// The bundle of the trust domain has no authority ([SEC-ID-9]).
    #[error("the trust domain has no authorities")]
    NoAuthorities,

    /// The leaf's SPIFFE ID names the trust domain, not a workload ([SEC-ID-3]).
    #[error("SPIFFE ID has no path")]
    NoPath,

    /// A certificate of the chain is not valid yet.
    #[error("a certificate of the chain is not valid yet; compare the clocks")]
    NotYetValid,

    /// The leaf has no URI SAN ([SEC-ID-2]).
    #[error("no URI SAN")]
    NoUri,

    /// The leaf's key may not sign ([SEC-ID-3]).
    #[error("leaf's key usage does not include digitalSignature")]
    NoDigitalSignature,

    /// No path to an authority of the leaf's trust domain.
    #[error("no path to an authority of the trust domain: {0}")]
    Path(#[source] webpki::Error),

    /// The leaf's extended key usage lacks serverAuth or clientAuth ([SEC-ID-3]).
    #[error("leaf's extended key usage does not include both serverAuth and clientAuth")]
    Purpose,

    /// A certificate's issuer has no revocation list in force, or none that its key has signed
    /// ([SEC-ID-14]).
    #[error("revocation status cannot be told: {0}")]
    RevocationUnknown(#[source] webpki::Error),

    /// A certificate of the chain is on a revocation list ([SEC-ID-14]).
    #[error("a certificate of the chain is revoked")]
    Revoked,

    /// More than the chain's limit of certificates ([SEC-ID-7]).
    #[error("more than {} certificates", super::MAX_CHAIN_CERTIFICATES)]
    TooManyCertificates,

    /// More than the limit of extensions ([SEC-ID-7]).
    #[error("more than {} extensions", super::profile::MAX_EXTENSIONS)]
    TooManyExtensions,

    /// More than the limit of names in the SAN ([SEC-ID-7]).
    #[error("more than {} names", super::profile::MAX_NAMES)]
    TooManyNames,

    /// The issuers' names lead upwards in too many ways ([SEC-ID-7]).
    #[error("issuers of the same name allow too many paths; send only the leaf's own issuers")]
    TooManyPaths,

    /// More than one URI SAN ([SEC-ID-2]).
    #[error("more than one URI SAN")]
    TwoUris,

    /// An unknown extension is critical ([SEC-ID-3]).
    #[error("an unknown extension is critical")]
    UnknownCriticalExtension,

    /// No bundle for the leaf's trust domain ([SEC-ID-8]).
    #[error("no bundle for the trust domain")]
    UnknownTrustDomain,

    /// The key is of a kind or size that is not accepted ([SEC-ID-6]).
    #[error("key is not RSA of 2048 to 8192 bits, P-256, P-384 or Ed25519")]
    WeakKey,
}

impl SvidError {
    /// What rustls-webpki says of a path, told apart as far as it helps.
    pub(super) fn of_path(error: webpki::Error) -> Self {
        use webpki::Error as E;
        if matches!(error, E::CertExpired { .. }) {
            Self::Expired
        } else if matches!(error, E::CertNotValidYet { .. }) {
            Self::NotYetValid
        } else if matches!(error, E::CertRevoked) {
            Self::Revoked
        } else if matches!(
            error,
            E::UnknownRevocationStatus
                | E::CrlExpired { .. }
                | E::InvalidCrlSignatureForPublicKey
                | E::IssuerNotCrlSigner
                | E::UnsupportedCrlSignatureAlgorithmContext(_)
                | E::UnsupportedCrlSignatureAlgorithmForPublicKeyContext(_)
        ) {
            Self::RevocationUnknown(error)
        } else {
            Self::Path(error)
        }
    }
}
