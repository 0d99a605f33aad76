//! The latest refusals, kept for a person who asks why.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use mesh_identity::VerifiedToken;

use crate::clock::monotonic;
use crate::mask;
use crate::observe::DecisionEvent;

/// Refusals that are kept.
const KEPT: usize = 50;

/// Between two explanations. They are slow by design, and a stranger can cause refusals.
const PAUSE: Duration = Duration::from_millis(100);

/// Characters of a text that is kept: of a path, or an explanation.
const LONGEST: usize = 4096;

/// One refusal.
#[derive(Clone, Debug)]
pub(super) struct Refused {
    pub(super) time: SystemTime,
    pub(super) generation: u64,
    pub(super) method: String,
    pub(super) path: String,
    pub(super) peer: Option<String>,
    pub(super) user: Option<String>,
    pub(super) reason: String,
    /// Why, rule by rule; nothing where no policy was asked, or another was just explained.
    pub(super) explanation: Option<String>,
}

/// The latest refusals. Nothing is kept until somebody asks for the admin page.
#[derive(Debug, Default)]
pub(crate) struct Recent {
    begun: AtomicBool,
    refused: Mutex<VecDeque<Refused>>,
    explained: Mutex<Option<Instant>>,
}

impl Recent {
    pub(super) fn begin(&self) {
        self.begun.store(true, Ordering::Relaxed);
    }

    /// Makes an explanation, unless nobody will read it or one was made just before.
    pub(crate) fn explain(&self, explain: impl FnOnce() -> String) -> Option<String> {
        if !self.begun.load(Ordering::Relaxed) {
            return None;
        }
        let now = monotonic();
        let mut explained = self.explained.lock().unwrap_or_else(PoisonError::into_inner);
        if explained.is_some_and(|last| now.saturating_duration_since(last) < PAUSE) {
            return None;
        }
        *explained = Some(now);
        drop(explained);
        Some(explain())
    }

    /// Keeps a refusal; the oldest goes for it.
    pub(crate) fn refused(
        &self,
        event: &DecisionEvent<'_>,
        explanation: Option<&str>,
        time: impl FnOnce() -> SystemTime,
    ) {
        if event.allowed || !self.begun.load(Ordering::Relaxed) {
            return;
        }
        let one = Refused {
            time: time(),
            generation: event.generation,
            method: shorten(event.method),
            path: shorten(event.path),
            peer: event.peer.map(ToString::to_string),
            user: event.user.and_then(VerifiedToken::principal).map(|user| shorten(&user)),
            reason: shorten(event.detail),
            explanation: explanation.map(shorten),
        };
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        refused.truncate(KEPT.saturating_sub(1));
        refused.push_front(one);
    }

    /// The newest first.
    pub(super) fn list(&self) -> Vec<Refused> {
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        refused.iter().cloned().collect()
    }
}

/// What is kept of a text: without tokens, and not longer than a person reads.
fn shorten(text: &str) -> String {
    let masked = mask::tokens(text);
    let mut short: String = masked.chars().take(LONGEST).collect();
    if short.len() < masked.len() {
        short.push('…');
    }
    short
}
