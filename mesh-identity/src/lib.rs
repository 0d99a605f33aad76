//! Who it is: the nouns that every crate of the family shares.
//!
//! - [`SpiffeId`] and [`TrustDomain`]: names that have passed every rule of the standard.
//! - [`Workload`] and [`MeshSettings`]: whom policies are compiled for, and in which mesh.
//! - [`manifest`]: Istio's resources as they are written, with a place for every problem.
//! - [`workload_api`] (feature): the messages of the SPIFFE Workload API.
//! - [`VerifiedPeer`] and [`VerifiedToken`]: proof that somebody checked.
//!
//! No runtime, no clock, no I/O.

mod bundle;
mod claims;
mod crl;
mod federation;
pub mod manifest;
mod spiffe_id;
mod svid;
mod trust_domain;
mod verified;
mod workload;
#[cfg(feature = "workload-api")]
pub mod workload_api;
pub mod x509;

pub use bundle::{
    BundleError, BundleSet, DEFAULT_REFRESH_HINT, JwtAuthority, MAX_BUNDLE_LEN, TrustBundle,
    X509Authority,
};
pub use claims::{Claims, ClaimsError};
pub use crl::{CrlError, CrlSet, MAX_CRL_LEN, MAX_CRLS};
pub use federation::{
    EndpointProfile, FederatedBundle, FederationEndpoint, FederationError, MAX_FETCH_TIME,
};
pub use spiffe_id::{IstioIdentity, MAX_SPIFFE_ID_LEN, SpiffeId, SpiffeIdError, SpiffeIdRef};
pub use svid::{SvidLoadError, X509Svid};
pub use trust_domain::{MAX_TRUST_DOMAIN_LEN, TrustDomain};
pub use verified::{VerifiedPeer, VerifiedToken};
pub use workload::{GATEWAY_NAME_LABEL, MeshSettings, TrustDomainPattern, Workload};
