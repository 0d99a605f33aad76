//! The compiled policies of one workload: asked twice per request.

use std::sync::Arc;

use mesh_identity::manifest::Problems;

use crate::attribute::Attribute;
use crate::client_address::ClientAddress;
use crate::custom::{CustomGroup, CustomProgress, CustomStep, CustomSteps, next_step};
use crate::decision::{
    AllowReason, Audit, Decision, DenyReason, PolicyName, Shadow, ShadowResult, Verdict,
};
use crate::facts::{PeerIdentity, RequestFacts};
use crate::matcher::{HeaderKey, View};
use crate::normalize::is_ambiguous;
use crate::resource::AuthorizationPolicy;
use crate::rule::Stage;
use crate::scope::{Scope, Transport};
use crate::semantics::{Semantics, StrictRule};
use crate::strict::{is_odd_host, is_odd_identity};

/// The authorization policies that apply to one workload, compiled for one transport.
///
/// Immutable; share it behind an `Arc` and replace it whole. [`Self::custom`] comes before token
/// verification, [`Self::decide`] after it.
///
/// # Examples
///
/// ```
/// use http::HeaderMap;
/// use mesh_authz::{
///     AuthorizationPolicy, HttpFacts, NormalizedPath, PolicySet, RequestFacts, Scope, Transport,
/// };
/// use mesh_identity::{MeshSettings, Workload};
///
/// let text = r#"{
///   "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
///   "metadata": {"name": "no-admin", "namespace": "shop"},
///   "spec": {"action": "DENY", "rules": [{"to": [{"operation": {"paths": ["/admin*"]}}]}]}
/// }"#;
/// let manifests = mesh_identity::manifest::read(text, "shop.json", "default")?;
/// let policy = AuthorizationPolicy::from_manifest(&manifests.resources[0])?;
/// let scope = Scope::new(Workload::new("shop"), MeshSettings::new("cluster.local".parse()?));
/// let set = PolicySet::compile(&[policy], &scope, Transport::Http)?;
///
/// let (path, headers) = (scope.normalize(b"/x/../admin")?, HeaderMap::new());
/// let http = HttpFacts::new("GET", "shop.example", &headers).with_path(&path);
/// let decision = set.decide(&RequestFacts::http(None, None, http));
/// assert_eq!(decision.rule_id(), Some("ns[shop]-policy[no-admin]-rule[0]"));
/// assert!(!decision.is_allow());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct PolicySet {
    pub(crate) applied: Vec<Applied>,
    pub(crate) semantics: Semantics,
    pub(crate) transport: Transport,
    pub(crate) custom: Vec<CustomGroup>,
    pub(crate) audit: Option<Stage>,
    pub(crate) shadow_deny: Option<Stage>,
    pub(crate) deny: Option<Stage>,
    pub(crate) shadow_allow: Option<Stage>,
    pub(crate) allow: Option<Stage>,
    pub(crate) reads: Reads,
}

impl PolicySet {
    /// Picks the policies that apply to the scope's workload and compiles them.
    ///
    /// # Errors
    ///
    /// Two policies of one namespace and name, and what the scope's strict options refuse; each
    /// problem with resource and field. Keep the set that was in force.
    pub fn compile(
        policies: &[AuthorizationPolicy],
        scope: &Scope,
        transport: Transport,
    ) -> Result<Self, Problems> {
        crate::compile::compile(policies, scope, transport)
    }

    /// What the CUSTOM policies ask for, before token verification ([SEM-EVAL-04]).
    ///
    /// A token in the facts is ignored.
    pub fn custom<'s>(&'s self, facts: &RequestFacts<'s>) -> CustomSteps<'s> {
        CustomSteps::new(&self.custom, *facts)
    }

    /// The next step of [`Self::custom`] for a request that earlier answers may have changed: the
    /// rules of a later provider see what an earlier one made of it, as Envoy's filters do.
    pub fn next_custom(
        &self,
        facts: &RequestFacts<'_>,
        progress: &mut CustomProgress,
    ) -> Option<CustomStep> {
        next_step(&self.custom, facts, progress)
    }

    /// Whether any request is asked about at all: whether a CUSTOM policy applies.
    #[must_use]
    pub fn asks_custom(&self) -> bool {
        !self.custom.is_empty()
    }

    /// Decides by the AUDIT, DENY and ALLOW policies ([SEM-EVAL-01], steps 4 to 6).
    ///
    /// Total, linear in the size of the policies, and without allocation, unless a host of more
    /// than 256 bytes comes in capitals.
    pub fn decide(&self, facts: &RequestFacts<'_>) -> Decision {
        if let Some(rule) = self.strict_refusal(facts) {
            return Decision::new(Verdict::Deny(DenyReason::Strict(rule)));
        }
        let view = View::new(facts);
        // The verdict of a request that nothing refuses and no ALLOW policy asks about.
        let mut decision = Decision::new(Verdict::Allow(AllowReason::NoAllowPolicy));
        decision.audit = self.audit.as_ref().map(|audit| match audit.first_match(&view) {
            Some(rule) => Audit::Matched(rule.clone()),
            None => Audit::NotMatched,
        });
        decision.shadow_deny = self.shadow_deny.as_ref().map(|shadow| {
            let rule = shadow.first_match(&view).cloned();
            let result = if rule.is_some() { ShadowResult::Denied } else { ShadowResult::Allowed };
            Shadow { result, rule }
        });
        // DENY before ALLOW.
        if let Some(rule) = self.deny.as_ref().and_then(|deny| deny.first_match(&view)) {
            decision.verdict = Verdict::Deny(DenyReason::Rule(rule.clone()));
            return decision;
        }
        decision.shadow_allow = self.shadow_allow.as_ref().map(|shadow| {
            let rule = shadow.first_match(&view).cloned();
            let result = if rule.is_some() { ShadowResult::Allowed } else { ShadowResult::Denied };
            Shadow { result, rule }
        });
        // [SEM-EVAL-02], [SEM-EVAL-03] One ALLOW policy refuses whatever none of them matches.
        if let Some(allow) = &self.allow {
            decision.verdict = match allow.first_match(&view) {
                Some(rule) => Verdict::Allow(AllowReason::Rule(rule.clone())),
                None => Verdict::Deny(DenyReason::NoRuleAllows),
            };
        }
        decision
    }

    /// How the set reads policies.
    #[must_use]
    pub fn semantics(&self) -> Semantics {
        self.semantics
    }

    /// What traffic the set judges.
    #[must_use]
    pub fn transport(&self) -> Transport {
        self.transport
    }

    /// The option that refuses a request whatever the policies say, because what they ask about is
    /// not clear in it.
    fn strict_refusal(&self, facts: &RequestFacts<'_>) -> Option<StrictRule> {
        if self.semantics.is_istio() {
            return None;
        }
        let reads = self.reads;
        let refuses = |rule, reads, is_odd: &dyn Fn() -> bool| {
            (self.semantics.has(rule) && reads && is_odd()).then_some(rule)
        };
        let is_odd_method = || {
            facts.http.is_some_and(|http| http.method.bytes().any(|byte| byte.is_ascii_lowercase()))
        };
        let has_odd_path = || facts.path().is_some_and(|path| path != b"*" && is_ambiguous(path));
        let has_peer = !matches!(facts.peer, PeerIdentity::None);
        let is_claim_untrusted = || facts.client.is_some_and(ClientAddress::is_claim_untrusted);
        refuses(StrictRule::LowerCaseMethod, true, &is_odd_method)
            .or_else(|| refuses(StrictRule::AmbiguousPath, reads.path, &has_odd_path))
            .or_else(|| refuses(StrictRule::HostHygiene, reads.host, &|| is_odd_host(facts)))
            .or_else(|| {
                let reads = reads.identity && has_peer;
                refuses(StrictRule::StructuralIdentity, reads, &|| is_odd_identity(facts.peer))
            })
            .or_else(|| {
                refuses(StrictRule::ClientAddress, reads.client_address, &is_claim_untrusted)
            })
    }
}

/// A policy that applies, for explanations.
#[derive(Debug)]
pub(crate) struct Applied {
    pub(crate) name: Arc<PolicyName>,
    pub(crate) action: &'static str,
    pub(crate) dry_run: bool,
}

/// What the enforced policies of a set ask about at all.
#[derive(Clone, Copy, Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "four independent answers to yes-no questions")]
pub(crate) struct Reads {
    client_address: bool,
    host: bool,
    identity: bool,
    path: bool,
}

impl Reads {
    pub(crate) fn add(&mut self, attribute: &Attribute) {
        self.client_address |= *attribute == Attribute::RemoteIp;
        self.host |= matches!(attribute, Attribute::Host | Attribute::Header(HeaderKey::Authority));
        self.identity |= attribute.is_identity();
        self.path |= matches!(attribute, Attribute::Path | Attribute::Header(HeaderKey::Path));
    }
}
