//! How long to wait before asking again: as ztunnel does (src/identity/manager.rs).

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher as _, Hasher as _};
use std::time::Duration;

/// Exponential, with a fifth more or less.
#[derive(Clone, Debug)]
pub(super) struct Backoff {
    first: Duration,
    most: Duration,
    failures: u32,
}

impl Default for Backoff {
    fn default() -> Self {
        Self::new(Duration::from_secs(1), Duration::from_secs(150))
    }
}

impl Backoff {
    pub(super) fn new(first: Duration, most: Duration) -> Self {
        Self { first, most, failures: 0 }
    }

    /// A call has succeeded.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }

    /// The time to wait after one more failure.
    pub(super) fn fail(&mut self) -> Duration {
        let doubled = 2_u32.checked_pow(self.failures).unwrap_or(u32::MAX);
        let base = self.first.checked_mul(doubled).unwrap_or(self.most).min(self.most);
        self.failures = self.failures.saturating_add(1);
        // 800 to 1200 thousandths.
        let share = random().checked_rem(401).unwrap_or_default().saturating_add(800);
        let nanos = base.as_nanos().saturating_mul(u128::from(share)) / 1000;
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

/// Spreads what many do at once.
pub(super) fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_second_doubled_to_150_with_a_fifth_more_or_less_for_ever() {
        for _ in 0..50 {
            let mut backoff = Backoff::default();
            for want in [1, 2, 4, 8, 16, 32, 64, 128, 150, 150, 150] {
                let (got, want) = (backoff.fail(), Duration::from_secs(want));
                assert!(got >= want * 4 / 5 && got <= want * 6 / 5, "{got:?} for {want:?}");
            }
            backoff.failures = u32::MAX;
            assert!(backoff.fail() <= Duration::from_secs(180));
            backoff.reset();
            assert!(backoff.fail() < Duration::from_secs(2));
        }
    }
}
