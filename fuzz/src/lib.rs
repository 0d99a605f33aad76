//! Fuzz targets: one function each, called by libFuzzer (`targets/`) and, with the seeds of
//! `corpus/`, by `cargo test`.
//!
//! A target has an opinion: it compares with a second implementation or checks a property, and
//! does not only wait for a panic.

mod authz;
mod identity;
pub mod model;
mod policy;
mod rego;
mod tokens;

pub use authz::{authz, judge};
pub use identity::{bundle_json, certificate, spiffe_id};
pub use policy::{path, policy_text};
pub use rego::{bundle, rego_answer, rego_input};
pub use tokens::{jwks, token, token_places};

/// A target's name, which is also the name of its folder of seeds, and what it does with one.
pub type Target = (&'static str, fn(&[u8]));

/// Every target.
pub const TARGETS: &[Target] = &[
    ("authz", authz),
    ("bundle", bundle),
    ("bundle_json", bundle_json),
    ("certificate", certificate),
    ("jwks", jwks),
    ("path", path),
    ("policy_text", policy_text),
    ("rego_answer", rego_answer),
    ("rego_input", rego_input),
    ("spiffe_id", spiffe_id),
    ("token", token),
    ("token_places", token_places),
];
