//! Sources: fetch bytes, hand them to a core parser, publish a snapshot.

mod address;
#[cfg(feature = "ca")]
mod authority;
#[cfg(any(feature = "istio-ca", feature = "workload-api"))]
mod channel;
mod exchange;
mod federation;
mod files;
mod http;
mod identity;
#[cfg(feature = "istio-ca")]
mod istio_ca;
mod key_files;
mod keys;
#[cfg(feature = "workload-api")]
mod workload_api;

pub use address::AddressPolicy;
#[cfg(feature = "ca")]
pub use authority::AuthoritySource;
#[cfg(feature = "opa")]
pub(crate) use exchange::Exchange;
pub use federation::Federated;
pub(crate) use files::keep_policies;
pub use files::{FileError, IdentityFileSource, IdentityFiles};
pub use http::HttpKeyFetcher;
pub(crate) use identity::follow;
pub use identity::{Identity, IdentityFuture, IdentitySource, IdentityUpdate};
#[cfg(feature = "istio-ca")]
pub use istio_ca::{IstioCa, IstioCaError, IstioCaFailure, IstioCaSource, IstioCaState};
pub use key_files::KeyFiles;
pub use keys::{FetchError, FetchFuture, KeyFetcher};
pub(crate) use keys::{Lacking, first_keys, keep_fresh};
#[cfg(feature = "workload-api")]
pub use workload_api::{
    EndpointError, WorkloadApi, WorkloadApiFailure, WorkloadApiSource, WorkloadApiStream,
    WorkloadApiUpdate, WorkloadEndpoint,
};
