//! When to renew a leaf: a schedule, not a timer.

use std::time::Duration;

use rustls_pki_types::UnixTime;

/// Renews at a part of a certificate's life, like Istio's agent: `SECRET_GRACE_PERIOD_RATIO` 0.5
/// with a jitter of 0.01.
///
/// # Examples
///
/// ```
/// use mesh_ca::{Next, RotationSchedule};
/// use rustls_pki_types::UnixTime;
/// use std::time::Duration;
///
/// let at = |seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds));
/// let schedule = RotationSchedule::new(at(1000), at(2000), 0);
/// assert_eq!(schedule.next(at(1200)), Next::Wait(at(1500)));
/// assert_eq!(schedule.next(at(1500)), Next::Renew);
/// ```
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RotationSchedule {
    renew_at: UnixTime,
}

/// What to do now.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[expect(clippy::exhaustive_enums, reason = "a schedule waits or acts")]
pub enum Next {
    /// Nothing before this time.
    Wait(UnixTime),
    /// Renew, and try again until it succeeds.
    Renew,
}

/// The jitter's width to each side, in thousandths of a life.
const JITTER: u64 = 10;

impl RotationSchedule {
    /// For a certificate's validity; `random` spreads the moment over one hundredth of the life to
    /// each side, so that a fleet does not renew at once.
    #[must_use]
    pub fn new(not_before: UnixTime, not_after: UnixTime, random: u64) -> Self {
        let life = not_after.as_secs().saturating_sub(not_before.as_secs());
        // In thousandths of the life: 500, and up to JITTER more or less.
        let width = JITTER.saturating_mul(2).saturating_add(1);
        let offset = random.checked_rem(width).unwrap_or_default();
        let share = if random == 0 { 500 } else { 490_u64.saturating_add(offset) };
        let wait = u64::try_from(u128::from(life).saturating_mul(u128::from(share)) / 1000);
        let renew_at = not_before.as_secs().saturating_add(wait.unwrap_or(life));
        Self { renew_at: UnixTime::since_unix_epoch(Duration::from_secs(renew_at)) }
    }

    /// Waits or renews.
    #[must_use]
    pub fn next(self, now: UnixTime) -> Next {
        if now < self.renew_at { Next::Wait(self.renew_at) } else { Next::Renew }
    }
}

#[cfg(test)]
#[expect(clippy::arithmetic_side_effects, reason = "a test fails by panicking")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Renewal never waits past 51 % of the life, and never begins before 49 % of it.
        #[test]
        fn renewal_is_at_half_the_life(start in 0_u64..1 << 40, life in 100_u64..1 << 30, random: u64) {
            let at = |seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds));
            let schedule = RotationSchedule::new(at(start), at(start + life), random);
            let early = at(start + life * 48 / 100);
            prop_assert!(matches!(schedule.next(early), Next::Wait(_)));
            prop_assert_eq!(schedule.next(at(start + life * 52 / 100)), Next::Renew);
        }
    }
}
