//! Compiled rules of one action, and the index that finds those which can match.

use std::collections::{HashMap, HashSet};

use crate::decision::RuleRef;
use crate::index::{Key, TextIndex};
use crate::matcher::{Anchor, Coverage, Mood, Test, View};
use crate::semantics::Semantics;

/// A rule: a source, an operation and every condition must match ([SEM-EVAL-10]).
#[derive(Debug)]
pub(crate) struct Rule {
    pub(crate) reference: RuleRef,
    /// Alternatives; none at all is any source.
    pub(crate) sources: Vec<Vec<Placed>>,
    /// Alternatives; none at all is any operation.
    pub(crate) operations: Vec<Vec<Placed>>,
    pub(crate) conditions: Vec<Placed>,
}

/// A test, and where it stands in its rule, such as `to[0].operation.methods`.
#[derive(Debug)]
pub(crate) struct Placed {
    pub(crate) test: Test,
    pub(crate) path: Box<str>,
    /// The number that equal tests of the set share.
    pub(crate) number: usize,
}

/// All rules of one action, in byte order of their ids ([SEM-EVAL-31]).
///
/// What a decision reads lies together, rule after rule, so that a pass over many rules waits for
/// memory as little as possible; names and places, which only answers need, lie apart.
#[derive(Debug)]
pub(crate) struct Stage {
    rules: Box<[Spans]>,
    /// The alternatives of sources and operations.
    lists: Box<[Span]>,
    tests: Box<[Test]>,
    references: Box<[RuleRef]>,
    /// Where each test stands in its rule.
    written: Box<[Written]>,
    index: RuleIndex,
    mood: Mood,
}

/// Where a test stands in its rule, and after how many others of its list it was written.
#[derive(Debug)]
struct Written {
    path: Box<str>,
    after: usize,
}

/// One rule's share of a stage.
#[derive(Clone, Copy, Debug)]
struct Spans {
    /// In `lists`.
    sources: Span,
    /// In `lists`.
    operations: Span,
    /// In `tests`.
    conditions: Span,
}

impl Spans {
    #[inline]
    fn has_no_alternatives(&self) -> bool {
        self.sources.is_empty() && self.operations.is_empty()
    }
}

#[derive(Clone, Copy, Debug)]
struct Span {
    start: u32,
    end: u32,
}

impl Span {
    /// What was pushed to a list since it was `start` long.
    fn since<T>(start: usize, list: &[T]) -> Self {
        let narrow = |at: usize| u32::try_from(at).unwrap_or(u32::MAX);
        Self { start: narrow(start), end: narrow(list.len()) }
    }

    #[inline]
    fn is_empty(self) -> bool {
        self.start == self.end
    }

    #[inline]
    fn of<T>(self, list: &[T]) -> &[T] {
        let wide = |at: u32| usize::try_from(at).unwrap_or(usize::MAX);
        list.get(wide(self.start)..wide(self.end)).unwrap_or_default()
    }
}

/// A test of a rule with its place, for explanations.
pub(crate) type PlacedTests<'s> = Vec<(&'s Test, &'s str)>;

/// A rule of a stage, for explanations.
pub(crate) struct StagedRule<'s> {
    pub(crate) reference: &'s RuleRef,
    pub(crate) sources: Vec<PlacedTests<'s>>,
    pub(crate) operations: Vec<PlacedTests<'s>>,
    pub(crate) conditions: PlacedTests<'s>,
}

impl Stage {
    pub(crate) fn new(mut rules: Vec<Rule>, mood: Mood) -> Self {
        rules.sort_by(|one, other| one.reference.id().cmp(other.reference.id()));
        let index = RuleIndex::new(&rules);
        let (mut tests, mut written, mut lists) = (Vec::new(), Vec::new(), Vec::new());
        let mut references = Vec::with_capacity(rules.len());
        let mut spans = Vec::with_capacity(rules.len());
        for rule in rules {
            let mut place = |placed: Vec<Placed>| {
                let start = tests.len();
                // All must hold, so what says no at the least cost is asked first.
                let mut placed: Vec<_> = placed.into_iter().enumerate().collect();
                placed.sort_by_key(|(_, one)| one.test.effort());
                for (after, Placed { test, path, number: _ }) in placed {
                    tests.push(test);
                    written.push(Written { path, after });
                }
                Span::since(start, &tests)
            };
            let conditions = place(rule.conditions);
            let mut list = |alternatives: Vec<Vec<Placed>>| {
                let start = lists.len();
                lists.extend(alternatives.into_iter().map(&mut place));
                Span::since(start, &lists)
            };
            let (sources, operations) = (list(rule.sources), list(rule.operations));
            spans.push(Spans { sources, operations, conditions });
            references.push(rule.reference);
        }
        Self {
            rules: spans.into(),
            lists: lists.into(),
            tests: tests.into(),
            references: references.into(),
            written: written.into(),
            index,
            mood,
        }
    }

    /// Every rule in parts, in the order of ids; tests in the order in which they are written.
    pub(crate) fn rules(&self) -> impl Iterator<Item = StagedRule<'_>> {
        let placed = |span: Span| -> PlacedTests<'_> {
            let mut tests: Vec<_> =
                span.of(&self.tests).iter().zip(span.of(&self.written)).collect();
            tests.sort_by_key(|(_, written)| written.after);
            tests.into_iter().map(|(test, written)| (test, &*written.path)).collect()
        };
        let lists =
            move |span: Span| span.of(&self.lists).iter().map(|list| placed(*list)).collect();
        self.rules.iter().zip(&self.references).map(move |(rule, reference)| StagedRule {
            reference,
            sources: lists(rule.sources),
            operations: lists(rule.operations),
            conditions: placed(rule.conditions),
        })
    }

    pub(crate) fn mood(&self) -> Mood {
        self.mood
    }

    #[inline]
    fn matches(&self, rule: &Spans, view: &View<'_>) -> bool {
        self.every(rule.conditions, view)
            && (rule.has_no_alternatives() || self.alternatives_match(rule, view))
    }

    #[inline]
    fn every(&self, tests: Span, view: &View<'_>) -> bool {
        tests.of(&self.tests).iter().all(|test| test.holds(view, self.mood))
    }

    #[inline(never)]
    fn alternatives_match(&self, rule: &Spans, view: &View<'_>) -> bool {
        let any = |span: Span| {
            let alternatives = span.of(&self.lists);
            alternatives.is_empty() || alternatives.iter().any(|list| self.every(*list, view))
        };
        any(rule.sources) && any(rule.operations)
    }

    /// The first rule that matches, in the order of ids.
    pub(crate) fn first_match(&self, view: &View<'_>) -> Option<&RuleRef> {
        if self.index.anchored.is_empty() {
            return self.first_of_all(view);
        }
        let mut best = usize::MAX;
        let mut found = Lists::default();
        self.index.candidates(view, self.mood.semantics, &mut |ids| {
            if !found.add(ids) {
                self.first_of_lists(&mut found, view, &mut best);
                found.add(ids);
            }
        });
        // Where most rules are candidates, the way through all of them in their order is shorter.
        if found.total.saturating_add(self.index.always.len()) >= self.rules.len() {
            return self.first_of_all(view);
        }
        self.first_of_lists(&mut found, view, &mut best);
        self.first_of(&self.index.always, view, &mut best);
        self.references.get(best)
    }

    /// A straight pass over the rules.
    pub(crate) fn first_of_all(&self, view: &View<'_>) -> Option<&RuleRef> {
        let at = self.rules.iter().position(|rule| self.matches(rule, view))?;
        self.references.get(at)
    }

    /// Likewise for lists, which it takes.
    fn first_of_lists(&self, found: &mut Lists<'_>, view: &View<'_>, best: &mut usize) {
        for ids in found.kept.iter().take(found.used) {
            self.first_of(ids, view, best);
        }
        found.used = 0;
    }

    /// Makes `best` the first rule of the list that matches, when it comes before.
    fn first_of(&self, ids: &[u32], view: &View<'_>, best: &mut usize) {
        for id in ids {
            let at = usize::try_from(*id).unwrap_or(usize::MAX);
            if *best <= at {
                return;
            }
            if self.rules.get(at).is_some_and(|rule| self.matches(rule, view)) {
                *best = at;
                return;
            }
        }
    }
}

/// Lists of candidates before any of them is evaluated.
#[derive(Default)]
struct Lists<'s> {
    kept: [&'s [u32]; 4],
    used: usize,
    /// The length of all lists that were ever added.
    total: usize,
}

impl<'s> Lists<'s> {
    /// Adds a list; no when there is no room.
    #[inline]
    fn add(&mut self, ids: &'s [u32]) -> bool {
        let Some(place) = self.kept.get_mut(self.used) else { return false };
        *place = ids;
        self.used = self.used.saturating_add(1);
        self.total = self.total.saturating_add(ids.len());
        true
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

impl Anchored {
    fn new(anchor: &Anchor, keys: &[(Key, u32)]) -> Self {
        let mut all: Vec<u32> = keys.iter().map(|(_, id)| *id).collect();
        all.dedup();
        Self { anchor: anchor.clone(), index: TextIndex::with_ids(keys.to_vec()), all: all.into() }
    }

    /// Whether finding candidates and evaluating them costs no more than evaluating every rule,
    /// even for the text that finds most.
    fn is_worth_it(&self) -> bool {
        let rules = self.all.len();
        let lookups = self.index.lookups().saturating_mul(LOOKUP);
        lookups.saturating_add(self.index.most_candidates().min(rules))
            <= rules.saturating_add(rules / 64)
    }
}

/// What a lookup costs, in rules evaluated.
const LOOKUP: usize = 3;

/// The keys that find a rule: one of them is true of every request that the rule matches.
type Way = Vec<(Anchor, Key)>;

/// An anchor that fewer rules than this would use costs more than looking at the rules themselves.
const MIN_ANCHORED: usize = 4;

impl RuleIndex {
    fn new(rules: &[Rule]) -> Self {
        // How many rules share a key decides which condition of a rule tells it apart best.
        let mut shares: HashMap<(Anchor, Key), usize> = HashMap::new();
        let mut users: HashMap<Anchor, usize> = HashMap::new();
        for rule in rules {
            let mut anchors = HashSet::new();
            for tests in all_tests(rule) {
                for (anchor, keys) in tests.anchors() {
                    for key in keys {
                        let share = shares.entry((anchor.clone(), key)).or_default();
                        *share = share.saturating_add(1);
                    }
                    anchors.insert(anchor);
                }
            }
            for anchor in anchors {
                let users = users.entry(anchor).or_default();
                *users = users.saturating_add(1);
            }
        }
        let costs = Costs { shares, users };
        let mut always = Vec::new();
        let mut by_anchor: Vec<(Anchor, Vec<(Key, u32)>)> = Vec::new();
        let mut places: HashMap<Anchor, usize> = HashMap::new();
        for (rule, id) in rules.iter().zip(0_u32..) {
            let Some(way) = best_way(rule, &costs) else {
                always.push(id);
                continue;
            };
            for (anchor, key) in without_implied(way) {
                let place = *places.entry(anchor.clone()).or_insert_with(|| {
                    by_anchor.push((anchor, Vec::new()));
                    by_anchor.len().saturating_sub(1)
                });
                if let Some((_, keys)) = by_anchor.get_mut(place) {
                    keys.push((key, id));
                }
            }
        }
        let build = |by_anchor: &[(Anchor, Vec<(Key, u32)>)]| -> Vec<Anchored> {
            by_anchor.iter().map(|(anchor, keys)| Anchored::new(anchor, keys)).collect()
        };
        let mut anchored = build(&by_anchor);
        // What is no quicker than its rules goes, with the keys of these rules at other anchors.
        let slow = anchored.iter().filter(|anchored| !anchored.is_worth_it());
        let slow: HashSet<u32> = slow.flat_map(|anchored| anchored.all.iter().copied()).collect();
        if !slow.is_empty() {
            for (_, keys) in &mut by_anchor {
                keys.retain(|(_, id)| !slow.contains(id));
            }
            by_anchor.retain(|(_, keys)| !keys.is_empty());
            anchored = build(&by_anchor);
            always.extend(slow);
            always.sort_unstable();
        }
        Self { anchored: anchored.into(), always: always.into() }
    }

    /// Calls `f` with sorted lists that, with `always`, hold every rule that can match.
    fn candidates<'s>(
        &'s self,
        view: &View<'_>,
        semantics: Semantics,
        f: &mut impl FnMut(&'s [u32]),
    ) {
        for Anchored { anchor, index, all } in &self.anchored {
            // Names are the request's to choose, and rules are quick to find that one is missing.
            if anchor.names(view) > all.len() {
                f(all);
                continue;
            }
            let coverage = anchor.texts(view, semantics, &mut |text| index.candidates(text, f));
            if coverage == Coverage::Unknown {
                f(all);
            }
        }
    }
}

fn all_tests(rule: &Rule) -> impl Iterator<Item = &Test> {
    let placed = rule.sources.iter().chain(&rule.operations).flatten().chain(&rule.conditions);
    placed.map(|placed| &placed.test)
}

/// What finding a rule by a key costs.
struct Costs {
    /// How many rules share a key.
    shares: HashMap<(Anchor, Key), usize>,
    /// How many rules could be found by an anchor.
    users: HashMap<Anchor, usize>,
}

impl Costs {
    /// Nothing when the anchor is worth no look: too few rules have it.
    fn of(&self, anchor: &Anchor, keys: &[Key]) -> Option<usize> {
        if self.users.get(anchor).is_none_or(|users| *users < MIN_ANCHORED) {
            return None;
        }
        Some(keys.iter().fold(0_usize, |sum, key| {
            let share = self.shares.get(&(anchor.clone(), key.clone())).copied().unwrap_or(1);
            // An exact key admits fewer requests than a beginning, an empty one nearly all.
            let vague = match key {
                Key::Exact(_) => 0,
                Key::Prefix(_) | Key::Suffix(_) if key.is_empty() => 3,
                Key::Prefix(_) | Key::Suffix(_) => 1,
            };
            sum.saturating_add(share.saturating_mul(4).saturating_add(vague))
        }))
    }
}

/// The cheapest of the ways: by every source, by every operation, or by one condition.
fn best_way(rule: &Rule, costs: &Costs) -> Option<Way> {
    let cheapest = |tests: &[Placed]| {
        let ways = tests.iter().flat_map(|placed| placed.test.anchors());
        let ways =
            ways.filter_map(|(anchor, keys)| Some((costs.of(&anchor, &keys)?, anchor, keys)));
        ways.min_by_key(|(cost, ..)| *cost)
    };
    let pairs =
        |(anchor, keys): (Anchor, Vec<Key>)| keys.into_iter().map(move |key| (anchor.clone(), key));
    // Each alternative must have a key of its own.
    let joined = |alternatives: &[Vec<Placed>]| {
        let ways: Option<Vec<_>> = alternatives.iter().map(|tests| cheapest(tests)).collect();
        let ways = ways.filter(|ways| !ways.is_empty())?;
        let cost = ways.iter().fold(0_usize, |sum, (cost, ..)| sum.saturating_add(*cost));
        let way = ways.into_iter().flat_map(|(_, anchor, keys)| pairs((anchor, keys)));
        Some((cost, way.collect::<Way>()))
    };
    let condition = cheapest(&rule.conditions)
        .map(|(cost, anchor, keys)| (cost, pairs((anchor, keys)).collect::<Way>()));
    let ways = condition.into_iter().chain(joined(&rule.sources)).chain(joined(&rule.operations));
    ways.min_by_key(|(cost, _)| *cost).map(|(_, way)| way)
}

/// Without the keys that are true only where a shorter one of the same rule is.
fn without_implied(way: Way) -> Way {
    let implies = |(anchor, longer): &(Anchor, Key), (other, shorter): &(Anchor, Key)| {
        anchor == other
            && match (longer, shorter) {
                (Key::Exact(text), Key::Prefix(start)) => text.starts_with(start),
                (Key::Exact(text), Key::Suffix(end)) => text.ends_with(end),
                (Key::Prefix(text), Key::Prefix(start)) => text != start && text.starts_with(start),
                (Key::Suffix(text), Key::Suffix(end)) => text != end && text.ends_with(end),
                (Key::Exact(_) | Key::Prefix(_) | Key::Suffix(_), _) => false,
            }
    };
    // Long lists would make this slow, and they are nearly always of one kind and length.
    if way.len() > MAX_COMPARED {
        return way;
    }
    let kept = way.iter().filter(|one| !way.iter().any(|other| implies(one, other)));
    kept.cloned().collect()
}

/// Ways longer than this keep all their keys.
const MAX_COMPARED: usize = 32;
