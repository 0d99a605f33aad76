//! What the mesh reports about each service, kept so that steps can look at it.

use std::sync::{Arc, Mutex, PoisonError};

use mesh_tower::{AccessEntry, ConnectionEvent, DecisionEvent, Observer};

/// A decision, copied out of the event.
#[derive(Clone, Debug)]
struct Decided {
    generation: u64,
    allowed: bool,
    rule: Option<String>,
    detail: String,
    dry_run_allow: Option<bool>,
    shown: String,
}

#[derive(Debug, Default)]
struct Kept {
    decisions: Vec<Decided>,
    access_log: Vec<String>,
}

/// The events of one service.
#[derive(Clone, Debug, Default)]
pub struct Events {
    kept: Arc<Mutex<Kept>>,
}

impl Events {
    /// How many decisions there were.
    #[must_use]
    pub fn len(&self) -> usize {
        self.with(|kept| kept.decisions.len())
    }

    /// Whether there was none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The detail of the newest decision.
    #[must_use]
    pub fn last_detail(&self) -> Option<String> {
        self.with(|kept| kept.decisions.last().map(|decided| decided.detail.clone()))
    }

    /// The rule that made the newest decision.
    #[must_use]
    pub fn last_rule(&self) -> Option<String> {
        self.with(|kept| kept.decisions.last().and_then(|decided| decided.rule.clone()))
    }

    /// What the dry-run ALLOW policies said about the newest request.
    #[must_use]
    pub fn last_dry_run_allow(&self) -> Option<bool> {
        self.with(|kept| kept.decisions.last().and_then(|decided| decided.dry_run_allow))
    }

    /// The newest line of the access log.
    #[must_use]
    pub fn last_access(&self) -> Option<String> {
        self.with(|kept| kept.access_log.last().cloned())
    }

    /// Everything that was reported, as text.
    #[must_use]
    pub fn shown(&self) -> String {
        self.with(|kept| {
            let decisions = kept.decisions.iter().map(|decided| decided.shown.clone());
            decisions.chain(kept.access_log.iter().cloned()).collect::<Vec<_>>().join("\n")
        })
    }

    /// Whether no configuration ever gave two answers to the same question: in section H, whether
    /// each request was decided by exactly one policy set.
    #[must_use]
    pub fn generations_are_consistent(&self) -> bool {
        self.with(|kept| {
            let newest = kept.decisions.iter().rev().take(200).collect::<Vec<_>>();
            newest.iter().all(|one| {
                let same = |other: &&&Decided| other.generation == one.generation;
                newest.iter().filter(same).all(|other| other.allowed == one.allowed)
            })
        })
    }

    fn with<T>(&self, ask: impl FnOnce(&mut Kept) -> T) -> T {
        ask(&mut self.kept.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Observer for Events {
    fn decided(&self, event: &DecisionEvent<'_>) {
        let decided = Decided {
            generation: event.generation,
            allowed: event.allowed,
            rule: event.rule.map(str::to_owned),
            detail: event.detail.to_owned(),
            dry_run_allow: event.dry_run_allow,
            shown: format!("{event:?}"),
        };
        self.with(|kept| kept.decisions.push(decided));
    }

    fn connection_refused(&self, _: &ConnectionEvent) {}

    fn answered(&self, entry: &AccessEntry) {
        self.with(|kept| kept.access_log.push(entry.to_string()));
    }

    fn wants_access_log(&self) -> bool {
        true
    }
}
