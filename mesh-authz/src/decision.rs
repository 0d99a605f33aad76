//! What a policy set says about a request, and which rule said it.

use std::fmt;
use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use serde::ser::{Serialize, SerializeStruct, Serializer};

use crate::semantics::StrictRule;

/// The verdict with everything that audit and access logs want to know.
///
/// Cloning and making one allocates nothing: rules are shared with the policy set.
#[derive(Clone, Debug, Eq, PartialEq, serde::Serialize)]
#[must_use = "a decision that nobody looks at protects nothing"]
#[non_exhaustive]
pub struct Decision {
    /// Allow or deny, and why.
    #[serde(flatten)]
    pub verdict: Verdict,
    /// What the AUDIT policies said; nothing when there are none ([SEM-EVAL-33]).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub audit: Option<Audit>,
    /// What the dry-run DENY policies would have said ([SEM-EVAL-42]).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shadow_deny: Option<Shadow>,
    /// What the dry-run ALLOW policies would have said; nothing when a DENY came before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shadow_allow: Option<Shadow>,
}

/// Allow or deny.
#[derive(Clone, Debug, Eq, PartialEq, serde::Serialize)]
#[serde(tag = "verdict", content = "reason", rename_all = "snake_case")]
#[expect(clippy::exhaustive_enums, reason = "a new verdict must break every caller")]
pub enum Verdict {
    /// The request may go on.
    Allow(AllowReason),
    /// The request is refused.
    Deny(DenyReason),
}

/// Why a request may go on.
#[derive(Clone, Debug, Eq, PartialEq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[expect(clippy::exhaustive_enums, reason = "a new reason must break every reader")]
pub enum AllowReason {
    /// No ALLOW policy applies, and no DENY rule matched ([SEM-EVAL-02]).
    NoAllowPolicy,
    /// This ALLOW rule matched.
    Rule(RuleRef),
}

/// Why a request is refused.
#[derive(Clone, Debug, Eq, PartialEq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[expect(clippy::exhaustive_enums, reason = "a new reason must break every reader")]
pub enum DenyReason {
    /// ALLOW policies apply and none of their rules matched ([SEM-EVAL-03]).
    NoRuleAllows,
    /// This rule refuses: a DENY rule, or a CUSTOM rule that cannot be asked about.
    Rule(RuleRef),
    /// The strict reading refuses the request whatever the policies say.
    Strict(StrictRule),
}

/// Whether a rule of the AUDIT policies matched.
#[derive(Clone, Debug, Eq, PartialEq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[expect(clippy::exhaustive_enums, reason = "there is no third answer")]
pub enum Audit {
    /// This rule matched: log the request.
    Matched(RuleRef),
    /// None did.
    NotMatched,
}

/// What dry-run policies of one action would have said alone ([SEM-EVAL-42]).
#[derive(Clone, Debug, Eq, PartialEq, serde::Serialize)]
#[non_exhaustive]
pub struct Shadow {
    /// `allowed` or `denied`.
    pub result: ShadowResult,
    /// The rule that matched.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<RuleRef>,
}

/// The outcome of a dry run.
#[derive(Clone, Copy, Debug, Eq, PartialEq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[expect(clippy::exhaustive_enums, reason = "there is no third outcome")]
pub enum ShadowResult {
    /// The policies would have let the request go on.
    Allowed,
    /// The policies would have refused it.
    Denied,
}

impl fmt::Display for ShadowResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Allowed => "allowed",
            Self::Denied => "denied",
        })
    }
}

impl Decision {
    pub(crate) fn new(verdict: Verdict) -> Self {
        Self { verdict, audit: None, shadow_deny: None, shadow_allow: None }
    }

    /// Whether the request may go on.
    #[must_use]
    pub fn is_allow(&self) -> bool {
        match self.verdict {
            Verdict::Allow(_) => true,
            Verdict::Deny(_) => false,
        }
    }

    /// The rule that decided, if one did.
    #[must_use]
    pub fn rule(&self) -> Option<&RuleRef> {
        match &self.verdict {
            Verdict::Allow(AllowReason::Rule(rule)) | Verdict::Deny(DenyReason::Rule(rule)) => {
                Some(rule)
            }
            Verdict::Allow(AllowReason::NoAllowPolicy)
            | Verdict::Deny(DenyReason::NoRuleAllows | DenyReason::Strict(_)) => None,
        }
    }

    /// The name of the rule that decided: `ns[..]-policy[..]-rule[..]` ([SEM-EVAL-30]).
    #[must_use]
    pub fn rule_id(&self) -> Option<&str> {
        self.rule().map(RuleRef::id)
    }

    /// Envoy's response code detail of a refusal ([SEM-RESP-01]), such as
    /// `rbac_access_denied_matched_policy[none]`; nothing for an allow. Allocates.
    #[must_use]
    pub fn envoy_detail(&self) -> Option<String> {
        let id = match &self.verdict {
            Verdict::Allow(_) => return None,
            Verdict::Deny(DenyReason::NoRuleAllows | DenyReason::Strict(_)) => "none".to_owned(),
            Verdict::Deny(DenyReason::Rule(rule)) => {
                let clean = |c: char| if c.is_ascii_whitespace() { '_' } else { c };
                rule.id().chars().map(clean).collect()
            }
        };
        Some(format!("rbac_access_denied_matched_policy[{id}]"))
    }
}

/// As a person wants to read it: the verdict first, then why.
impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.verdict {
            Verdict::Allow(AllowReason::NoAllowPolicy) => {
                f.write_str("ALLOW: no ALLOW policy applies and no DENY rule matches")
            }
            Verdict::Allow(AllowReason::Rule(rule)) => write!(f, "ALLOW by {rule}"),
            Verdict::Deny(DenyReason::NoRuleAllows) => {
                f.write_str("DENY: ALLOW policies apply and no rule of them matches")
            }
            Verdict::Deny(DenyReason::Rule(rule)) => write!(f, "DENY by {rule}"),
            Verdict::Deny(DenyReason::Strict(rule)) => {
                write!(f, "DENY: {} ({rule}, strict)", rule.reason())
            }
        }?;
        if let Some(Audit::Matched(rule)) = &self.audit {
            write!(f, "; audited by {rule}")?;
        }
        let shadows = [("DENY", &self.shadow_deny), ("ALLOW", &self.shadow_allow)];
        for (action, shadow) in shadows {
            let Some(shadow) = shadow else { continue };
            write!(f, "; dry-run {action}: {}", shadow.result)?;
            if let Some(rule) = &shadow.rule {
                write!(f, " by {rule}")?;
            }
        }
        Ok(())
    }
}

/// A rule of a policy: shared with the set that it came from. It may key a table that every
/// request looks into: its hash is made once, and it is equal to itself without a comparison.
#[derive(Clone)]
pub struct RuleRef {
    named: Arc<Named>,
}

#[derive(Debug, Eq, PartialEq)]
struct Named {
    /// Of the id.
    hash: u64,
    /// The rule's name in Envoy.
    id: Box<str>,
    policy: Arc<PolicyName>,
    index: usize,
}

#[derive(Debug, Eq, PartialEq)]
pub(crate) struct PolicyName {
    pub(crate) namespace: Box<str>,
    pub(crate) name: Box<str>,
}

impl RuleRef {
    /// A rule by its policy and index, named as in [SEM-EVAL-30].
    pub(crate) fn new(policy: &Arc<PolicyName>, index: usize, prefix: &str, suffix: &str) -> Self {
        let PolicyName { namespace, name } = &**policy;
        let id = format!("{prefix}ns[{namespace}]-policy[{name}]-rule[{index}]{suffix}");
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(&id);
        let named = Named { hash, id: id.into(), policy: Arc::clone(policy), index };
        Self { named: Arc::new(named) }
    }

    /// The rule's name in Envoy: `ns[..]-policy[..]-rule[..]`, with prefix and suffix for CUSTOM.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.named.id
    }

    /// The namespace of the policy.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.named.policy.namespace
    }

    /// The name of the policy.
    #[must_use]
    pub fn policy(&self) -> &str {
        &self.named.policy.name
    }

    /// The rule's place in `spec.rules`, counted from 0.
    #[must_use]
    pub fn index(&self) -> usize {
        self.named.index
    }
}

impl PartialEq for RuleRef {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.named, &other.named) || self.named == other.named
    }
}

impl Eq for RuleRef {}

impl Hash for RuleRef {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.named.hash);
    }
}

impl fmt::Display for RuleRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.id())
    }
}

impl fmt::Debug for RuleRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.id())
    }
}

impl Serialize for RuleRef {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut out = serializer.serialize_struct("RuleRef", 4)?;
        out.serialize_field("id", self.id())?;
        out.serialize_field("namespace", self.namespace())?;
        out.serialize_field("policy", self.policy())?;
        out.serialize_field("rule", &self.index())?;
        out.end()
    }
}
