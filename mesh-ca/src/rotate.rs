//! The rotation of all keys: what is due is done, first on disk, then in force.

use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::UnixTime;

use crate::authority::Authority;
use crate::error::CaError;
use crate::issue::Ca;
use crate::profile::after;
use crate::state::{Advance, Roots, State, View};

/// A step of a rotation that was taken.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct RotationEvent {
    /// When.
    pub at: UnixTime,
    /// Whose keys.
    pub key: RotatedKey,
    /// What happened.
    pub step: RotationStep,
}

/// Which keys are rotated.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum RotatedKey {
    /// The authority below the root that signs leaves.
    Intermediate,
    /// The root.
    Root,
    /// The key that signs tokens.
    Token,
}

/// What happened to them.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum RotationStep {
    /// A new one is in every bundle from now on; it signs nothing yet.
    Published,
    /// An old one has left the bundle: nothing that it signed is valid.
    Removed,
    /// The new one signs.
    Signs,
}

impl Ca {
    /// Takes all steps of rotations that are due, and says when to come back.
    ///
    /// # Errors
    ///
    /// When a key cannot be made or the state cannot be written: then that step has not happened and
    /// is due still. Steps that were taken before it are told first, with `now` as the time to come
    /// back; the next call tries again, and fails if it does.
    pub fn rotate(&self, now: UnixTime) -> Result<(Vec<RotationEvent>, UnixTime), CaError> {
        let mut events = Vec::new();
        match self.take_steps(now, &mut events) {
            Ok(until) => Ok((events, until)),
            Err(_) if !events.is_empty() => Ok((events, now)),
            Err(error) => Err(error),
        }
    }

    fn take_steps(
        &self,
        now: UnixTime,
        events: &mut Vec<RotationEvent>,
    ) -> Result<UnixTime, CaError> {
        let mut state = self.state();
        loop {
            let mut new = state.clone();
            let (key, step) = match new.advance(&self.trust_domain, &self.settings, now)? {
                Advance::Wait(until) => {
                    return self.renew_intermediate(&state, until, now, events);
                }
                Advance::Took(key, step) => (key, step),
            };
            self.enforce(&mut state, new, now)?;
            events.push(RotationEvent { at: now, key, step });
        }
    }

    /// Publishes a successor of the root now, whatever the schedule says; [`Ca::rotate`] takes the
    /// steps after it. With roots that an operator rotates it does nothing.
    ///
    /// # Errors
    ///
    /// As [`Ca::rotate`].
    pub fn rotate_root_now(&self, now: UnixTime) -> Result<Option<RotationEvent>, CaError> {
        let mut state = self.state();
        let mut new = state.clone();
        let Roots::Own(ring) = &mut new.roots else { return Ok(None) };
        let life = self.settings.roots.life();
        ring.publish(Authority::new_root(&self.trust_domain, life, now)?, now);
        new.sequence = new.sequence.saturating_add(1);
        self.enforce(&mut state, new, now)?;
        let (key, step) = (RotatedKey::Root, RotationStep::Published);
        Ok(Some(RotationEvent { at: now, key, step }))
    }

    /// First on disk, then in force: no certificate is ever signed by what the disk does not know.
    fn enforce(&self, state: &mut State, new: State, now: UnixTime) -> Result<(), CaError> {
        let root_changes = !state.same_root(&new);
        let held = Arc::clone(&self.view().signing);
        let signing = if root_changes { new.signing(&self.settings, now)? } else { held };
        if let Some(store) = &self.store {
            store.save(&self.trust_domain, &new).map_err(CaError::State)?;
        }
        *state = new;
        self.publish(View::new(&self.trust_domain, &self.settings, state, signing));
        Ok(())
    }

    /// Leaves carry their intermediate, so a new one signs at once, at half of the old one's life.
    fn renew_intermediate(
        &self,
        state: &State,
        until: UnixTime,
        now: UnixTime,
        events: &mut Vec<RotationEvent>,
    ) -> Result<UnixTime, CaError> {
        let Roots::Own(ring) = &state.roots else { return Ok(until) };
        let half = Duration::from_secs(self.settings.intermediate_life.as_secs() / 2);
        let held = self.view().signing.not_after();
        let due =
            UnixTime::since_unix_epoch(Duration::from_secs(held.as_secs()).saturating_sub(half));
        if now < due || held >= ring.signing().not_after() {
            return Ok(if now < due { until.min(due) } else { until });
        }
        let signing = state.signing(&self.settings, now)?;
        let due = UnixTime::since_unix_epoch(
            Duration::from_secs(signing.not_after().as_secs()).saturating_sub(half),
        );
        self.publish(View::new(&self.trust_domain, &self.settings, state, signing));
        let (key, step) = (RotatedKey::Intermediate, RotationStep::Signs);
        events.push(RotationEvent { at: now, key, step });
        Ok(until.min(due.max(after(now, Duration::from_secs(1)))))
    }
}
