//! An embeddable certificate authority for SPIFFE X.509-SVIDs.
//!
//! An [`Authority`] signs for one trust domain. What it issues has exactly the profile of an
//! X.509-SVID, names only the identity that the caller was authorized for, and has passed the
//! strict verifier before it is handed out. A [`Ca`] puts limits, a policy, a log and the rotation of
//! all keys around it. Time is a parameter; randomness is the system's,
//! through ring.

mod authority;
mod csr;
mod error;
mod issue;
#[cfg(feature = "istio-messages")]
pub mod istio_ca;
mod jwt;
mod key;
mod key_ring;
mod leaf;
mod limits;
mod log;
mod pem;
#[cfg(feature = "persist")]
mod persist;
mod profile;
mod rotate;
mod rotation;
#[cfg(feature = "serve")]
pub mod serve;
mod settings;
mod state;

pub use authority::{Authority, PluggedIn};
pub use csr::CertificateRequest;
pub use error::CaError;
pub use issue::{Ca, IssueRequest};
pub use jwt::{DEFAULT_JWT_TTL, IssuedToken, JwtKey, MAX_JWT_TTL, oidc_discovery, oidc_jwks};
pub use key::{KeyKind, SignError, Signer};
pub use key_ring::{KeyRing, Overlap, RingKey, Step};
pub use limits::{LimitReached, Limits, Rate};
pub use log::{IssueLog, IssueRecord, IssuedKind, JsonLines, NoLog};
#[cfg(feature = "persist")]
pub use persist::{Lost, StateError, StateFile};
pub use profile::{BACKDATE, DEFAULT_TTL, MAX_TTL};
pub use rotate::{RotatedKey, RotationEvent, RotationStep};
pub use rotation::{Next, RotationSchedule};
pub use settings::CaSettings;
