//! How an authority that rotates its own keys lives.

use std::time::Duration;

use crate::authority::LEAST_LEFT;
use crate::error::CaError;
use crate::key_ring::Overlap;
use crate::limits::Limits;

/// How late a driver may call [`crate::Ca::rotate`] without anybody noticing.
const LATE: Duration = Duration::from_secs(60);

/// How an authority that rotates its own keys lives.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct CaSettings {
    /// The roots. Its longest life is also the cap on certificates.
    pub roots: Overlap,
    /// The life of an intermediate; the next one signs at half of it. So that it never shortens a
    /// leaf, half of it is a minute more than the longest life of a certificate, and than the half
    /// hour that [SEC-CA-5] asks of whoever issues: so late may the driver be.
    pub intermediate_life: Duration,
    /// The keys for tokens. Its longest life is also the cap on tokens.
    pub tokens: Overlap,
    /// What bundles say about how often to ask for them.
    pub refresh_hint: Duration,
    /// How much is issued.
    pub limits: Limits,
}

impl CaSettings {
    /// Roots of ten years, intermediates of a week, token keys of a day; certificates of at most
    /// 24 hours, tokens of at most one; bundles asked for every five minutes and spread in 15.
    ///
    /// # Errors
    ///
    /// None: the waits fit. [`Overlap::new`] says it.
    pub fn new() -> Result<Self, CaError> {
        let hour = Duration::from_secs(3600);
        let spread = mesh_identity::DEFAULT_REFRESH_HINT.saturating_mul(3);
        Ok(Self {
            roots: Overlap::new(hour.saturating_mul(24 * 3650), spread, crate::MAX_TTL)?,
            intermediate_life: hour.saturating_mul(24 * 7),
            tokens: Overlap::new(hour.saturating_mul(24), spread, crate::MAX_JWT_TTL)?,
            refresh_hint: mesh_identity::DEFAULT_REFRESH_HINT,
            limits: Limits::default(),
        })
    }

    /// # Errors
    ///
    /// [`CaError::IntermediateLife`].
    pub(crate) fn check(&self) -> Result<(), CaError> {
        let half = Duration::from_secs(self.intermediate_life.as_secs() / 2);
        let enough = half >= self.roots.longest().max(LEAST_LEFT).saturating_add(LATE);
        let within = self.intermediate_life <= self.roots.life();
        if enough && within { Ok(()) } else { Err(CaError::IntermediateLife) }
    }
}
