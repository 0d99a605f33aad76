//! What can go wrong while configuring the mesh.

use mesh_identity::manifest::Problems;

/// Why a configuration was refused. The one in force stays.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
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
