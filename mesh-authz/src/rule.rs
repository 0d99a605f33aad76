//! Compiled rules of one action, and the index that finds those which can match.

use std::collections::HashMap;

use crate::decision::RuleRef;
use crate::index::{Key, TextIndex};
use crate::matcher::{Anchor, Coverage, Mood, Test, View};
use crate::semantics::Semantics;

/// A rule: a source, an operation and every condition must match ([SEM-EVAL-10]).
#[derive(Debug)]
pub(crate) struct Rule {
    pub(crate) reference: RuleRef,
    /// Alternatives; none at all is any source.
    pub(crate) sources: Box<[Box<[Test]>]>,
    /// Alternatives; none at all is any operation.
    pub(crate) operations: Box<[Box<[Test]>]>,
    pub(crate) conditions: Box<[Test]>,
}

impl Rule {
    pub(crate) fn matches(&self, view: &View<'_>, mood: Mood) -> bool {
        let every = |tests: &[Test]| tests.iter().all(|test| test.holds(view, mood));
        let any = |alternatives: &[Box<[Test]>]| {
            alternatives.is_empty() || alternatives.iter().any(|tests| every(tests))
        };
        any(&self.sources) && any(&self.operations) && every(&self.conditions)
    }
}

/// All rules of one action, in byte order of their ids ([SEM-EVAL-31]).
#[derive(Debug)]
pub(crate) struct Stage {
    rules: Box<[Rule]>,
    index: RuleIndex,
    mood: Mood,
}

impl Stage {
    pub(crate) fn new(mut rules: Vec<Rule>, mood: Mood) -> Self {
        rules.sort_by(|one, other| one.reference.id().cmp(other.reference.id()));
        let index = RuleIndex::new(&rules);
        Self { rules: rules.into(), index, mood }
    }

    pub(crate) fn rules(&self) -> &[Rule] {
        &self.rules
    }

    pub(crate) fn mood(&self) -> Mood {
        self.mood
    }

    /// The first rule that matches, in the order of ids.
    pub(crate) fn first_match(&self, view: &View<'_>) -> Option<&RuleRef> {
        let mut best: Option<(u32, &Rule)> = None;
        self.index.candidates(view, self.mood.semantics, &mut |ids| {
            for id in ids {
                if best.is_some_and(|(found, _)| found <= *id) {
                    return;
                }
                let rule = usize::try_from(*id).ok().and_then(|at| self.rules.get(at));
                if let Some(rule) = rule.filter(|rule| rule.matches(view, self.mood)) {
                    best = Some((*id, rule));
                    return;
                }
            }
        });
        best.map(|(_, rule)| &rule.reference)
    }
}

/// Rules by what they discriminate on: each by the one condition that fewest others share.
///
/// What it offers is a superset of the rules that match: every candidate is still evaluated.
#[derive(Debug)]
struct RuleIndex {
    anchored: Box<[Anchored]>,
    /// Rules with nothing to find them by.
    always: Box<[u32]>,
}

#[derive(Debug)]
struct Anchored {
    anchor: Anchor,
    index: TextIndex,
    /// Every rule of the index, for requests whose texts do not say enough.
    all: Box<[u32]>,
}

/// The keys that find a rule: one of them is true of every request that the rule matches.
type Way = Vec<(Anchor, Key)>;

impl RuleIndex {
    fn new(rules: &[Rule]) -> Self {
        // How many rules share a key decides which condition of a rule tells it apart best.
        let mut shares: HashMap<(Anchor, Key), usize> = HashMap::new();
        for rule in rules {
            for tests in all_tests(rule) {
                for (anchor, keys) in tests.anchors() {
                    for key in keys {
                        let share = shares.entry((anchor.clone(), key)).or_default();
                        *share = share.saturating_add(1);
                    }
                }
            }
        }
        let mut always = Vec::new();
        let mut by_anchor: Vec<(Anchor, Vec<(Key, u32)>)> = Vec::new();
        let mut places: HashMap<Anchor, usize> = HashMap::new();
        for (rule, id) in rules.iter().zip(0_u32..) {
            let Some(way) = best_way(rule, &shares) else {
                always.push(id);
                continue;
            };
            for (anchor, key) in way {
                let place = *places.entry(anchor.clone()).or_insert_with(|| {
                    by_anchor.push((anchor, Vec::new()));
                    by_anchor.len().saturating_sub(1)
                });
                if let Some((_, keys)) = by_anchor.get_mut(place) {
                    keys.push((key, id));
                }
            }
        }
        let anchored = by_anchor.into_iter().map(|(anchor, keys)| {
            let mut all: Vec<u32> = keys.iter().map(|(_, id)| *id).collect();
            all.dedup();
            Anchored { anchor, index: TextIndex::with_ids(keys), all: all.into() }
        });
        Self { anchored: anchored.collect(), always: always.into() }
    }

    /// Calls `f` with sorted lists that together hold every rule that can match.
    fn candidates(&self, view: &View<'_>, semantics: Semantics, f: &mut impl FnMut(&[u32])) {
        for Anchored { anchor, index, all } in &self.anchored {
            let coverage = anchor.texts(view, semantics, &mut |text| index.candidates(text, f));
            if coverage == Coverage::Unknown {
                f(all);
            }
        }
        f(&self.always);
    }
}

fn all_tests(rule: &Rule) -> impl Iterator<Item = &Test> {
    rule.sources.iter().chain(&rule.operations).flatten().chain(&rule.conditions)
}

/// The cheapest of the ways: by every source, by every operation, or by one condition.
fn best_way(rule: &Rule, shares: &HashMap<(Anchor, Key), usize>) -> Option<Way> {
    let cost = |(anchor, keys): &(Anchor, Vec<Key>)| -> usize {
        keys.iter().fold(0_usize, |sum, key| {
            let share = shares.get(&(anchor.clone(), key.clone())).copied().unwrap_or(1);
            // An exact key admits fewer requests than a beginning, an empty one nearly all.
            let vague = match key {
                Key::Exact(_) => 0,
                Key::Prefix(_) | Key::Suffix(_) if key.is_empty() => 3,
                Key::Prefix(_) | Key::Suffix(_) => 1,
            };
            sum.saturating_add(share.saturating_mul(4).saturating_add(vague))
        })
    };
    let cheapest = |tests: &[Test]| {
        let ways = tests.iter().flat_map(Test::anchors).map(|way| (cost(&way), way));
        ways.min_by_key(|(cost, _)| *cost)
    };
    // Each alternative must have a key of its own.
    let joined = |alternatives: &[Box<[Test]>]| {
        let ways: Option<Vec<_>> = alternatives.iter().map(|tests| cheapest(tests)).collect();
        let ways = ways.filter(|ways| !ways.is_empty())?;
        let cost = ways.iter().fold(0_usize, |sum, (cost, _)| sum.saturating_add(*cost));
        let pairs = ways
            .into_iter()
            .flat_map(|(_, (anchor, keys))| keys.into_iter().map(move |key| (anchor.clone(), key)));
        Some((cost, pairs.collect::<Way>()))
    };
    let conditions = rule.conditions.iter().filter_map(|test| {
        let (cost, (anchor, keys)) = cheapest(std::slice::from_ref(test))?;
        Some((cost, keys.into_iter().map(|key| (anchor.clone(), key)).collect::<Way>()))
    });
    let ways = joined(&rule.sources).into_iter().chain(joined(&rule.operations)).chain(conditions);
    ways.min_by_key(|(cost, _)| *cost).map(|(_, way)| way)
}
