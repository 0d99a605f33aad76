//! OPA's management APIs (feature `opa`): bundles are followed, decisions are uploaded.
//!
//! A [`BundleSource`] says where a bundle lies: a file, a folder, or an [`OpaService`] that is
//! asked with ETags and long polling. [`Bundles`] are those of one policy;
//! [`crate::RegoStage::follow`] keeps them in force. A bundle is in force as a whole or not at
//! all, and what cannot be had, read, verified or compiled leaves the last good one where it is;
//! [`crate::RegoStage::bundles`] tells.
//!
//! [`LogUpload`] is a sink of the decision log that sends events to a service in batches.

mod follow;
mod service;
mod source;
mod upload;

pub use follow::{BundleState, Bundles};
pub use service::{OpaService, OpaServiceError};
pub use source::{BundleSource, BundleSourceError};
pub use upload::{LogUpload, LogUploadCounts, LogUploader};
