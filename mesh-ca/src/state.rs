//! All that changes in the life of an authority, and what follows from it.

use std::sync::Arc;
use std::time::Duration;

use mesh_identity::{JwtAuthority, TrustBundle, TrustDomain, X509Authority};
use rustls_pki_types::UnixTime;

use crate::authority::Authority;
use crate::error::CaError;
use crate::jwt::JwtKey;
use crate::key_ring::{KeyRing, Overlap, RingKey, Step};
use crate::rotate::{RotatedKey, RotationStep};
use crate::settings::CaSettings;

impl RingKey for Authority {
    type Public = X509Authority;

    fn public(&self) -> X509Authority {
        // A root has itself as its only root.
        self.root()
    }

    fn not_after(&self) -> UnixTime {
        self.not_after()
    }
}

impl RingKey for JwtKey {
    type Public = JwtAuthority;

    fn public(&self) -> JwtAuthority {
        self.authority().clone()
    }

    fn not_after(&self) -> UnixTime {
        self.not_after()
    }
}

/// Where an authority's roots come from.
#[derive(Clone, Debug)]
pub(crate) enum Roots {
    /// It makes them and rotates them.
    Own(KeyRing<Authority>),
    /// An operator does: the authority signs as it was given.
    Given(Arc<Authority>),
}

/// All that changes in the life of an authority.
#[derive(Clone, Debug)]
pub(crate) struct State {
    pub(crate) roots: Roots,
    pub(crate) tokens: KeyRing<JwtKey>,
    pub(crate) sequence: u64,
}

/// Takes the state before it comes into force, so that it survives the process.
pub(crate) trait Store: Send + Sync {
    fn save(&self, trust_domain: &TrustDomain, state: &State) -> std::io::Result<()>;
}

/// What signs and what is published, at one moment.
pub(crate) struct View {
    pub(crate) signing: Arc<Authority>,
    pub(crate) token_key: Arc<JwtKey>,
    pub(crate) bundle: TrustBundle,
}

pub(crate) enum Advance {
    Wait(UnixTime),
    Took(RotatedKey, RotationStep),
}

impl State {
    pub(crate) fn new(
        trust_domain: &TrustDomain,
        settings: &CaSettings,
        now: UnixTime,
    ) -> Result<Self, CaError> {
        let root = Authority::new_root(trust_domain, settings.roots.life(), now)?;
        let token = JwtKey::generate(settings.tokens.life(), now)?;
        let roots = Roots::Own(KeyRing::new(root, now));
        // A sequence that begins with the time is newer than that of any state that was lost.
        Ok(Self { roots, tokens: KeyRing::new(token, now), sequence: now.as_secs() })
    }

    /// What signs leaves: a fresh intermediate below the root, or what the operator gave.
    pub(crate) fn signing(
        &self,
        settings: &CaSettings,
        now: UnixTime,
    ) -> Result<Arc<Authority>, CaError> {
        match &self.roots {
            Roots::Given(authority) => Ok(Arc::clone(authority)),
            Roots::Own(ring) => {
                let root = ring.signing();
                let left = root.not_after().as_secs().saturating_sub(now.as_secs());
                let life = settings.intermediate_life.min(Duration::from_secs(left));
                Ok(Arc::new(root.new_intermediate(life, now)?))
            }
        }
    }

    pub(crate) fn same_root(&self, other: &Self) -> bool {
        match (&self.roots, &other.roots) {
            (Roots::Own(one), Roots::Own(other)) => Arc::ptr_eq(one.signing(), other.signing()),
            (_, _) => true,
        }
    }

    /// One step, the roots' before the tokens'.
    pub(crate) fn advance(
        &mut self,
        trust_domain: &TrustDomain,
        settings: &CaSettings,
        now: UnixTime,
    ) -> Result<Advance, CaError> {
        let mut until = UnixTime::since_unix_epoch(Duration::from_secs(u64::MAX));
        if let Roots::Own(ring) = &mut self.roots {
            let overlap = &settings.roots;
            let make = || Authority::new_root(trust_domain, overlap.life(), now);
            match step(ring, overlap, make, now)? {
                Ok(step) => {
                    self.sequence = self.sequence.saturating_add(1);
                    return Ok(Advance::Took(RotatedKey::Root, step));
                }
                Err(wait) => until = wait,
            }
        }
        let overlap = &settings.tokens;
        let make = || JwtKey::generate(overlap.life(), now);
        match step(&mut self.tokens, overlap, make, now)? {
            Ok(step) => {
                self.sequence = self.sequence.saturating_add(1);
                Ok(Advance::Took(RotatedKey::Token, step))
            }
            Err(wait) => Ok(Advance::Wait(until.min(wait))),
        }
    }
}

/// Takes the step that is due; otherwise says until when to wait.
fn step<K: RingKey>(
    ring: &mut KeyRing<K>,
    overlap: &Overlap,
    make: impl FnOnce() -> Result<K, CaError>,
    now: UnixTime,
) -> Result<Result<RotationStep, UnixTime>, CaError> {
    Ok(Ok(match ring.next_step(overlap, now) {
        Step::Wait(until) => return Ok(Err(until)),
        Step::Publish => {
            ring.publish(make()?, now);
            RotationStep::Published
        }
        Step::Sign => {
            ring.sign(now);
            RotationStep::Signs
        }
        Step::Remove => {
            ring.remove(overlap, now);
            RotationStep::Removed
        }
    }))
}

impl View {
    pub(crate) fn new(
        trust_domain: &TrustDomain,
        settings: &CaSettings,
        state: &State,
        signing: Arc<Authority>,
    ) -> Self {
        let mut bundle = match &state.roots {
            Roots::Given(authority) => authority.bundle(),
            Roots::Own(ring) => ring
                .published()
                .fold(TrustBundle::new(trust_domain.clone()), TrustBundle::with_authority),
        };
        bundle = state.tokens.published().fold(bundle, TrustBundle::with_jwt_authority);
        bundle = bundle.with_sequence(state.sequence).with_refresh_hint(settings.refresh_hint);
        Self { signing, token_key: Arc::clone(state.tokens.signing()), bundle }
    }
}
