//! Says what it may do: Istio's AuthorizationPolicy and Rego, decided in process.
//!
//! - [`AuthorizationPolicy`]: a policy as its author wrote it, every value parsed.
//! - [`PolicySet`]: the policies of one [`Scope`], compiled and indexed.
//! - [`RequestFacts`]: what is known of a request, borrowed.
//! - [`Decision`]: allow or deny, and the rule that said so.
//!
//! Two calls per request, because token verification lies between them:
//! [`PolicySet::custom`], then [`PolicySet::decide`]. Both read [`Semantics`] that equal Istio's,
//! or stricter ones that never allow what Istio refuses.
//!
//! No runtime, no clock, no I/O.

mod attribute;
mod byte_search;
mod client_address;
mod compile;
mod custom;
mod decision;
mod explain;
mod facts;
mod head;
mod index;
mod matcher;
mod normalize;
mod policy_set;
mod provider;
#[cfg(feature = "rego")]
pub mod rego;
mod resource;
mod rule;
mod scope;
mod semantics;
mod strict;
mod trust_domain;

pub use client_address::{
    ClientAddress, MAX_TRUSTED_HOPS, TrustedProxies, XffTrust, client_address,
};
pub use custom::{CustomProgress, CustomStep, CustomSteps};
pub use decision::{
    AllowReason, Audit, Decision, DenyReason, RuleRef, Shadow, ShadowResult, Verdict,
};
pub use explain::{Explanation, FailedCondition, PolicyExplanation, RuleExplanation};
pub use facts::{HttpFacts, PeerIdentity, PeerNames, RequestFacts};
pub use head::{HeadError, check_head};
pub use normalize::{NormalizeError, NormalizedPath, PathNormalization};
pub use policy_set::PolicySet;
pub use provider::{
    CheckBody, CheckSettings, ExtensionProvider, HeaderList, HeaderListError, HttpCheck,
    MeshConfigError, ProviderConfig, ProviderError,
};
pub use resource::{Action, AuthorizationPolicy};
pub use scope::{ProviderKind, Providers, Scope, Transport};
pub use semantics::{Semantics, StrictRule};
