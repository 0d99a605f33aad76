//! CUSTOM policies: which external authorizers to ask before token and other policies.

use std::sync::Arc;

use crate::decision::{Decision, DenyReason, RuleRef, Verdict};
use crate::facts::RequestFacts;
use crate::matcher::View;
use crate::rule::Stage;

/// The CUSTOM rules of one provider.
#[derive(Debug)]
pub(crate) struct CustomGroup {
    provider: Arc<str>,
    /// What every rule id of the provider begins with, without the last hyphen.
    mark: Box<str>,
    /// Rules that refuse because the provider cannot be asked ([SEM-EXT-04]).
    refused: Stage,
    asked: Stage,
}

impl CustomGroup {
    pub(crate) fn new(provider: &str, refused: Stage, asked: Stage) -> Self {
        let mark = format!("istio-ext-authz-{provider}").into();
        Self { provider: provider.into(), mark, refused, asked }
    }

    pub(crate) fn stages(&self) -> [&Stage; 2] {
        [&self.refused, &self.asked]
    }
}

/// One thing to do before token verification.
#[derive(Clone, Debug, Eq, PartialEq)]
#[expect(clippy::exhaustive_enums, reason = "a step that a caller ignores is a hole")]
pub enum CustomStep {
    /// Ask this provider; go on only when it allows.
    Ask {
        /// The provider's name.
        provider: Arc<str>,
        /// The rule that asks.
        rule: RuleRef,
    },
    /// Refuse: the provider cannot be asked.
    Refuse(Decision),
}

/// How far the questions about one request have come.
///
/// It borrows nothing, so that a caller may wait for an answer between two steps, and change the
/// request as the answer says before the next rules look at it.
#[derive(Clone, Debug, Default)]
pub struct CustomProgress {
    /// How many providers have been looked at.
    groups: usize,
    /// The rule that asked last.
    last: Option<RuleRef>,
    /// Whether a refusal ended the list.
    is_over: bool,
}

/// The next step for the request as it is now, in Envoy's order.
pub(crate) fn next_step(
    groups: &[CustomGroup],
    facts: &RequestFacts<'_>,
    progress: &mut CustomProgress,
) -> Option<CustomStep> {
    let rest = groups.get(progress.groups..).unwrap_or_default();
    if progress.is_over || rest.is_empty() {
        return None;
    }
    // [SEM-EVAL-04] Tokens are verified later, so no rule sees one.
    let facts = facts.with_token(None);
    let view = View::new(&facts);
    for group in rest {
        progress.groups = progress.groups.saturating_add(1);
        if let Some(rule) = group.refused.first_match(&view) {
            progress.is_over = true;
            let reason = DenyReason::Rule(rule.clone());
            return Some(CustomStep::Refuse(Decision::new(Verdict::Deny(reason))));
        }
        // Envoy asks when the last matching rule's id begins with the provider's mark. So the
        // provider `a-ns` is also asked after a rule of the provider `a` in front of it.
        if let Some(rule) = group.asked.first_match(&view) {
            progress.last = Some(rule.clone());
        }
        if let Some(rule) =
            progress.last.as_ref().filter(|rule| rule.id().starts_with(&*group.mark))
        {
            let provider = Arc::clone(&group.provider);
            return Some(CustomStep::Ask { provider, rule: rule.clone() });
        }
    }
    None
}

/// The steps for one request, in Envoy's order: take each in turn and stop at the first refusal.
///
/// The rules are looked at as the iterator goes. [`crate::PolicySet::next_custom`] gives the same
/// steps to a caller who changes the request in between.
#[derive(Clone, Debug)]
#[must_use = "unasked authorizers protect nothing"]
pub struct CustomSteps<'s> {
    groups: &'s [CustomGroup],
    facts: RequestFacts<'s>,
    progress: CustomProgress,
}

impl<'s> CustomSteps<'s> {
    pub(crate) fn new(groups: &'s [CustomGroup], facts: RequestFacts<'s>) -> Self {
        Self { groups, facts, progress: CustomProgress::default() }
    }
}

impl Iterator for CustomSteps<'_> {
    type Item = CustomStep;

    fn next(&mut self) -> Option<CustomStep> {
        next_step(self.groups, &self.facts, &mut self.progress)
    }
}
