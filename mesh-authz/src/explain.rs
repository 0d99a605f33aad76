//! Why a decision came out as it did: every rule that applies, and where it failed first.

use std::fmt;

use serde::Serialize;

use crate::custom::CustomGroup;
use crate::decision::{Decision, DenyReason, PolicyName, RuleRef, Verdict};
use crate::facts::RequestFacts;
use crate::matcher::{Mood, Test, View};
use crate::policy_set::PolicySet;
use crate::rule::{PlacedTests, Stage, StagedRule};

/// A decision with the reason of every rule of every policy that applies.
///
/// Made on demand, by a straight pass over all rules that shares nothing with the index. Holds no
/// values of headers and claims, and escapes what it shows of the request ([SEC-AUTHZ-12]).
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Explanation {
    /// What [`PolicySet::decide`] says.
    pub decision: Decision,
    /// For a denial because no rule allows: the ALLOW rule of which most conditions hold.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nearest_miss: Option<RuleExplanation>,
    /// The policies that apply, in the order given to [`PolicySet::compile`].
    pub policies: Vec<PolicyExplanation>,
}

/// One policy that applies.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct PolicyExplanation {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its action as written, such as `ALLOW`.
    pub action: &'static str,
    /// Whether it is evaluated without effect.
    pub dry_run: bool,
    /// Its rules that exist on this transport, by their ids in byte order.
    pub rules: Vec<RuleExplanation>,
}

/// One rule.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct RuleExplanation {
    /// The rule.
    pub rule: RuleRef,
    /// The number of its conditions that hold, along the best of its alternatives.
    pub held: usize,
    /// The number of conditions along that alternative; all held means that the rule matches.
    pub of: usize,
    /// The first condition that failed; nothing when the rule matches.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed: Option<FailedCondition>,
}

/// The condition that kept a rule from matching.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct FailedCondition {
    /// Where it stands in the rule, such as `to[0].operation.methods`.
    pub field: String,
    /// For an entry of `when`, its key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// What it asks for, shortened.
    pub wants: String,
    /// What the request has, without secrets.
    pub found: String,
}

impl PolicySet {
    /// Decides, and says of every rule where it failed.
    ///
    /// Slow by design: for a person who asks why. The CUSTOM rules are evaluated as
    /// [`PolicySet::custom`] would, without a token.
    #[must_use]
    pub fn explain(&self, facts: &RequestFacts<'_>) -> Explanation {
        let (without_token, decision) = (facts.with_token(None), self.decide(facts));
        let (early, late) = (View::new(&without_token), View::new(facts));
        let stages = [&self.audit, &self.shadow_deny, &self.deny, &self.shadow_allow, &self.allow];
        let late_stages = stages.into_iter().flatten().map(|stage| (stage, &late));
        let custom = self.custom.iter().flat_map(CustomGroup::stages).map(|stage| (stage, &early));
        let rules: Vec<RuleExplanation> = custom
            .chain(late_stages)
            .flat_map(|(stage, view)| explain_stage(stage, view))
            .collect();
        let policies = self.applied.iter().map(|applied| PolicyExplanation {
            namespace: applied.name.namespace.to_string(),
            name: applied.name.name.to_string(),
            action: applied.action,
            dry_run: applied.dry_run,
            rules: rules.iter().filter(|one| is_of(&one.rule, &applied.name)).cloned().collect(),
        });
        let policies = policies.collect();
        let is_miss = matches!(decision.verdict, Verdict::Deny(DenyReason::NoRuleAllows));
        let allow = self.allow.as_ref().filter(|_| is_miss);
        let misses = allow.into_iter().flat_map(|allow| explain_stage(allow, &late));
        // Ties go to the first id: `min_by_key` keeps the first.
        let nearest_miss = misses.min_by_key(|one| one.of.saturating_sub(one.held));
        Explanation { decision, nearest_miss, policies }
    }
}

fn is_of(rule: &RuleRef, name: &PolicyName) -> bool {
    rule.namespace() == &*name.namespace && rule.policy() == &*name.name
}

fn explain_stage<'s>(
    stage: &'s Stage,
    view: &'s View<'_>,
) -> impl Iterator<Item = RuleExplanation> {
    stage.rules().map(move |rule| explain_rule(&rule, view, stage.mood()))
}

/// How far a list of conditions got.
struct Progress<'r> {
    held: usize,
    of: usize,
    failed: Option<(&'r Test, &'r str)>,
}

fn explain_rule(rule: &StagedRule<'_>, view: &View<'_>, mood: Mood) -> RuleExplanation {
    let parts = [
        best_alternative(&rule.sources, view, mood),
        best_alternative(&rule.operations, view, mood),
        Some(progress(&rule.conditions, view, mood)),
    ];
    let mut whole = Progress { held: 0, of: 0, failed: None };
    for part in parts.into_iter().flatten() {
        whole.held = whole.held.saturating_add(part.held);
        whole.of = whole.of.saturating_add(part.of);
        whole.failed = whole.failed.or(part.failed);
    }
    let Progress { held, of, failed } = whole;
    let failed = failed.map(|(test, path)| FailedCondition {
        field: path.to_owned(),
        key: test.matcher.key().filter(|_| path.starts_with("when")),
        wants: test.wants(),
        found: test.found(view),
    });
    RuleExplanation { rule: rule.reference.clone(), held, of, failed }
}

/// The alternative with the fewest failures; nothing when there are no alternatives.
fn best_alternative<'r>(
    alternatives: &[PlacedTests<'r>],
    view: &View<'_>,
    mood: Mood,
) -> Option<Progress<'r>> {
    let all = alternatives.iter().map(|tests| progress(tests, view, mood));
    all.min_by_key(|one| one.of.saturating_sub(one.held))
}

fn progress<'r>(tests: &PlacedTests<'r>, view: &View<'_>, mood: Mood) -> Progress<'r> {
    let held = tests.iter().filter(|(test, _)| test.holds(view, mood)).count();
    let failed = tests.iter().find(|(test, _)| !test.holds(view, mood)).copied();
    Progress { held, of: tests.len(), failed }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.decision)?;
        if let Some(nearest) = &self.nearest_miss {
            write!(f, "\nnearest miss: {} ({nearest})", nearest.rule)?;
        }
        if self.policies.is_empty() {
            f.write_str("\nno policy applies to this workload")?;
        }
        for policy in &self.policies {
            write!(f, "\n{policy}")?;
        }
        Ok(())
    }
}

impl fmt::Display for PolicyExplanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { namespace, name, action, dry_run, rules } = self;
        let dry_run = if *dry_run { " (dry run)" } else { "" };
        write!(f, "{action} {namespace}/{name}{dry_run}")?;
        if rules.is_empty() {
            f.write_str(": no rule, so nothing matches")?;
        }
        for rule in rules {
            write!(f, "\n  rule {}: {rule}", rule.rule.index())?;
        }
        Ok(())
    }
}

impl fmt::Display for RuleExplanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rule: _, held, of, failed } = self;
        match failed {
            None => f.write_str("matches"),
            Some(FailedCondition { field, key, wants, found }) => {
                write!(f, "{held} of {of} hold; {field} ")?;
                if let Some(key) = key {
                    write!(f, "({key}) ")?;
                }
                write!(f, "wants {wants}, the request has {found}")
            }
        }
    }
}
