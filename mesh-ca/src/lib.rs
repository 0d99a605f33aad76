//! An embeddable certificate authority for SPIFFE X.509-SVIDs.
//!
//! An [`Authority`] signs for one trust domain. What it issues has exactly the profile of an
//! X.509-SVID, names only the identity that the caller was authorized for, and has passed the
//! strict verifier before it is handed out. Time is a parameter; randomness is the system's,
//! through ring.

mod authority;
mod csr;
mod error;
mod key;
mod pem;
mod profile;
mod rotation;

pub use authority::Authority;
pub use csr::CertificateRequest;
pub use error::CaError;
pub use profile::{BACKDATE, DEFAULT_TTL, MAX_TTL};
pub use rotation::{Next, RotationSchedule};
