//! Rego, decided as OPA's Envoy plugin would, inside the process.
//!
//! Three steps: [`RegoPolicy::compile`] reads modules and data and refuses what could not be
//! evaluated safely; [`RegoInput`] builds the plugin's input document from what mesh-authn has
//! verified; [`RegoPolicy::decide`] is total, and whatever goes wrong in it is a denial.
//!
//! # Limits
//!
//! Work is bounded without a clock: [`RegoOptions`] sets how many instructions an evaluation may
//! execute, and as much again it may spend on what they do not count, which is comparing and
//! building large values and calling builtins. Recursion is refused at load, and builtins whose cost
//! does not follow from their input are left out or check their arguments ([`builtin_names`] lists
//! what exists). Wall-clock limits belong to the caller, who waits for a [`RegoPool`] as long as it
//! likes: regorus' own timer needs a clock that can be set once for the whole process, so it is
//! not used.
//!
//! # Threads
//!
//! Evaluation recurses in proportion to the chain of rules ([`MAX_RULE_CHAIN`]), so
//! [`RegoPolicy::decide`] wants a large stack. A [`RegoPool`] has it ([SEC-REGO-3]).
//!
//! # Which engine
//!
//! regorus' compiled form (RVM), after a pass over the text (see `plain`) and one over the program
//! (see `harden`) that give it OPA's meaning where version 0.14.1 has another one. Its interpreter
//! serves the tests as a second opinion and never sees a request; OPA itself judges policies made by
//! chance (`examples/interop/opa/random_policies.py`).
//!
//! # Examples
//!
//! ```
//! use mesh_authz::rego::{RegoInput, RegoOptions, RegoPolicy};
//!
//! let module = r#"
//!     package envoy.authz
//!     default allow := false
//!     allow if input.parsed_path[0] == "details"
//! "#;
//! let policy = RegoPolicy::compile(&[("authz.rego", module)], None, RegoOptions::default())?;
//! let headers = http::HeaderMap::new();
//! let details = RegoInput::builder("GET", "/details/1", &headers).build();
//! let admin = RegoInput::builder("GET", "/admin", &headers).build();
//! assert!(policy.decide(&details).is_allow());
//! assert!(!policy.decide(&admin).is_allow());
//! # Ok::<(), mesh_authz::rego::RegoLoadError>(())
//! ```

mod builtins;
#[cfg(feature = "bundles")]
mod bundle;
mod check;
#[cfg(test)]
mod cross_check;
mod decision;
mod error;
mod harden;
mod input;
mod log;
mod parse;
mod parts;
mod plain;
mod policy;
mod pool;
mod scan;
mod syntax;

pub use builtins::builtin_names;
#[cfg(feature = "bundles")]
pub use bundle::{Bundle, BundleError, BundleKey, BundleLimits, BundleVerification};
pub use check::MAX_RULE_CHAIN;
pub use decision::{RegoDecision, RegoDenyReason};
pub use error::{RegoLoadError, RegoPlace};
pub use input::{
    BodyView, MAX_INPUT_BYTES, MAX_INPUT_DEPTH, MAX_STRING_BYTES, RegoInput, RegoInputBuilder,
};
pub use log::{DEFAULT_MASKS, DecisionLogEvent, LogPolicy, Masked};
pub use parse::BadInput;
pub use parts::InputParts;
pub use policy::{
    BuiltinErrors, DEFAULT_INSTRUCTIONS, DEFAULT_QUERY, RegoAnswer, RegoEvaluator, RegoOptions,
    RegoPolicy,
};
pub use pool::{PoolFull, RegoPool, RegoTicket, on_large_stack};
pub use scan::{MAX_MODULE_BYTES, MAX_NESTING, MAX_OPERATORS};
