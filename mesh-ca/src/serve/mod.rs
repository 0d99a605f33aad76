//! The authority's network APIs, and the timer that rotates its keys.
//!
//! A [`CaService`] holds a [`crate::Ca`] and serves it:
//!
//! | API | where | who may ask |
//! |---|---|---|
//! | SPIFFE Workload API, Envoy's SDS | Unix socket, [`CaService::serve_workloads`] | processes, by the credentials that the kernel tells ([`WorkloadEntry`]) |
//! | Istio's `CreateCertificate` | TLS, [`CaService::serve_istio`] | a service account's token, or a certificate of this authority |
//! | SPIFFE bundle endpoint, OIDC documents | HTTPS, [`CaService::serve_bundle`] | everybody: it is public |
//!
//! [`CaService::drive`] rotates root, intermediate and token keys when they are due; every open
//! stream gets what has changed. Which tokens are good is told by what the program passes in:
//! mesh-tower has [`JwtSvidCheck`] and [`CallerTokens`] on mesh-authn's verifiers.

mod bundle;
mod entry;
mod grpc;
mod identities;
mod istio;
mod lenient;
mod places;
mod sds;
mod service;
mod tls;
mod workload;

pub use bundle::BundleEndpoint;
pub use entry::{EntryError, PeerCredentials, Selector, WorkloadEntries, WorkloadEntry};
pub use istio::{CallerTokens, IstioSettings};
pub use service::{CaService, CheckError};
pub use tls::ServerName;
pub use workload::{CheckedJwtSvid, JwtSvidCheck};
