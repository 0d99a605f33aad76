//! The messages of the SPIFFE Workload API, and what they mean.
//!
//! No I/O: [`proto`] holds the messages as they are on the wire, the functions here turn them into
//! identities and bundles and back. Every streamed message is the *whole* state: what was in the
//! last one and is missing now is withdrawn (SPIFFE Workload API section 5.2.1). A message that
//! does not parse changes nothing; the last good state stays. Only a foreign trust domain's bundle
//! that cannot be used holds up nothing of ours: it is empty then, and reported.

mod encode;
mod parse;
pub mod proto;
mod values;

pub use encode::{encode_jwt_bundles, encode_x509_bundles, encode_x509_svids};
pub use parse::{
    JwtBundles, JwtSvid, NamedSvid, WorkloadApiError, X509Bundles, X509Context, parse_jwt_bundles,
    parse_jwt_svids, parse_x509_bundles, parse_x509_svids,
};
pub use values::{ClaimsError, encode_claims, parse_claims};

/// The service's name in a gRPC path: the proto declares no package.
pub const SERVICE: &str = "SpiffeWorkloadAPI";

/// The metadata that every call carries, with the value `true`, so that no browser or proxy can be
/// made to ask for keys (SPIFFE Workload Endpoint section 6).
pub const SECURITY_HEADER: &str = "workload.spiffe.io";

/// Environment variable with the endpoint's address (SPIFFE Workload Endpoint section 4).
pub const ENDPOINT_VARIABLE: &str = "SPIFFE_ENDPOINT_SOCKET";

/// Most bytes of a hint (SPIFFE Workload API section 5.2.1).
pub const MAX_HINT_LEN: usize = 1024;

/// Most identities in one answer; workloads have one or two.
pub const MAX_SVIDS: usize = 128;
