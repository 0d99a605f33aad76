//! What can be wrong with a peer, or with TLS settings.

use mesh_identity::SpiffeId;
use mesh_identity::x509::SvidError;
use rustls::CertificateError;

use super::expected::ExpectedServer;

/// Why the other end of a connection is not accepted.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PeerError {
    /// The handshake has not finished, or it carried no certificate.
    #[error("peer presented no certificate")]
    NoCertificate,

    /// The chain breaks a rule.
    #[error("{0}")]
    Svid(#[from] SvidError),

    /// The server is somebody else ([SEC-TLS-5]).
    #[error("server is {seen}, expected {expected}")]
    UnexpectedServer {
        /// Who answered.
        seen: SpiffeId,
        /// Who should have.
        expected: ExpectedServer,
    },
}

impl PeerError {
    /// Our verifier's refusal inside a failed handshake, if that is why it failed.
    #[must_use]
    pub fn of_handshake(error: &(dyn std::error::Error + 'static)) -> Option<Self> {
        let rustls::Error::InvalidCertificate(CertificateError::Other(other)) =
            error.downcast_ref::<rustls::Error>()?
        else {
            return None;
        };
        other.0.downcast_ref::<Self>().cloned()
    }
}

/// Why TLS settings cannot be made.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// The private key does not belong to the certificate, or the provider cannot tell
    /// ([SEC-ID-12]).
    #[error("private key does not belong to the certificate")]
    KeyMismatch,

    /// rustls refuses the key, the chain or the provider.
    #[error("{0}")]
    Rustls(rustls::Error),
}

impl From<rustls::Error> for TlsError {
    fn from(error: rustls::Error) -> Self {
        if matches!(error, rustls::Error::InconsistentKeys(_)) {
            Self::KeyMismatch
        } else {
            Self::Rustls(error)
        }
    }
}
