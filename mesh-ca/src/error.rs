//! Why the authority does not issue.

use mesh_identity::x509::SvidError;
use mesh_identity::{BundleError, SpiffeIdError, SvidLoadError};

use crate::limits::LimitReached;

/// What can go wrong. No variant tells whether an identity exists ([SEC-CA-8]) or shows a key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CaError {
    /// A token without audience, with an empty one, or with too many.
    #[error("a token needs between 1 and 32 audiences, none of them empty")]
    Audience,

    /// The authority's certificate breaks a rule for authorities.
    #[error("authority certificate: {0}")]
    Authority(#[source] SvidError),

    /// The roots that were given are not acceptable.
    #[error("roots: {0}")]
    Bundle(#[from] BundleError),

    /// A certificate that leaves would be sent with breaks a rule for issuers.
    #[error("the authority's chain, counted from a leaf: {0}")]
    Chain(#[source] SvidLoadError),

    /// The certificate request is not PKCS#10, something follows it, or it is too long.
    #[error("certificate request cannot be read")]
    Csr,

    /// The request's key is of a kind or size that is not accepted ([SEC-CA-2]).
    #[error("certificate request: {0}")]
    CsrKey(#[source] SvidError),

    /// The request does not prove possession of its key ([SEC-CA-2]).
    #[error("certificate request is not signed by its own key")]
    CsrSignature,

    /// rcgen cannot encode the certificate.
    #[error("certificate cannot be made: {0}")]
    Encode(#[from] rcgen::Error),

    /// The identity is not one that this authority may name.
    #[error("identity is not a workload of this authority's trust domain")]
    ForeignIdentity,

    /// A name is no SPIFFE ID.
    #[error("identity: {0}")]
    Id(#[from] SpiffeIdError),

    /// An intermediate's life that would shorten leaves, or that its root does not have.
    #[error(
        "half the life of an intermediate must be a minute more than the longest life of a \
         certificate, 31 minutes at least, and the whole no longer than that of a root"
    )]
    IntermediateLife,

    /// What was made does not pass our own verifier: it is not handed out ([SEC-CA-4]).
    #[error("issued certificate does not verify: {0}")]
    Issued(#[source] SvidError),

    /// The private key cannot be read, or is of a kind that is not supported.
    #[error(
        "private key cannot be used; expected PKCS#8 of P-256, P-384, Ed25519 or RSA of 2048 to \
         4096 bits (openssl pkcs8 -topk8 -nocrypt converts others)"
    )]
    Key,

    /// The private key does not belong to the certificate.
    #[error("private key does not belong to the authority's certificate")]
    KeyMismatch,

    /// A limit is reached; nothing was looked at ([SEC-CA-7]).
    #[error("{0}")]
    Limit(#[from] LimitReached),

    /// The issued chain and key do not make an SVID.
    #[error("issued identity: {0}")]
    Load(#[from] SvidLoadError),

    /// The record of what was issued could not be written: it is not handed out ([SEC-CA-10]).
    #[error("the issue log cannot be written: {0}")]
    Log(#[source] std::io::Error),

    /// The authority's certificate allows no authority below it ([SEC-CA-4]).
    #[error("the authority's certificate allows no authority below it")]
    NoAuthorityBelow,

    /// Not exactly one certificate where the authority's is expected.
    #[error("expected exactly one PEM block CERTIFICATE, the authority's")]
    NotOne,

    /// A rotation whose waits do not fit into the life of a key.
    #[error("the life of a key must be twice as long as all the waits of its rotation")]
    Overlap,

    /// The request's key is the authority's own ([SEC-CA-2]).
    #[error("certificate request asks for the authority's own key")]
    OwnKey,

    /// The policy of this authority does not let this caller have it ([SEC-CA-8]).
    #[error("refused by the authority's policy")]
    Policy,

    /// The system has no randomness.
    #[error("the system has no randomness")]
    Random,

    /// The authority's certificate ends too soon; rotate it ([SEC-CA-5]).
    #[error("the authority's certificate ends too soon to issue; rotate it")]
    RotationDue,

    /// Whoever holds the authority's key does not sign.
    #[error("the authority's key does not sign")]
    Signer,

    /// The state could not be written: what it describes has not happened.
    #[error("the state cannot be written: {0}")]
    State(#[source] std::io::Error),

    /// A time is outside what a certificate can say.
    #[error("time cannot be encoded")]
    Time,
}
