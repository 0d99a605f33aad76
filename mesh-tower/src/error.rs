//! What can go wrong while configuring the mesh.

use mesh_identity::manifest::Problems;
use mesh_identity::{BundleError, CrlError};

/// Why a configuration was refused. The one in force stays.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A bundle that is older than the one held, or of another trust domain ([SEC-ID-9]).
    #[error("bundle: {0}")]
    Bundle(#[from] BundleError),

    /// Revocation lists that are older than those held.
    #[error("revocation lists: {0}")]
    Crl(#[from] CrlError),

    /// The own certificate's validity has ended.
    #[error("own certificate has expired already")]
    Expired,

    /// Policies that cannot be compiled, each problem with its place.
    #[error("policies: {0}")]
    Policies(#[from] Problems),

    /// RequestAuthentications that do not fit together, or a key set without a usable key.
    #[error("tokens: {0}")]
    Tokens(#[from] mesh_authn::request::CompileProblems),

    /// A certificate, key or trust bundle that TLS cannot use.
    #[error("TLS: {0}")]
    Tls(#[from] mesh_authn::peer::TlsError),
}
