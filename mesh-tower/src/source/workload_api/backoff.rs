//! How long to wait before asking again.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher as _, Hasher as _};
use std::time::Duration;

/// Exponential, with full jitter: many workloads lose one agent at the same moment.
#[derive(Clone, Debug)]
pub(super) struct Backoff {
    first: Duration,
    most: Duration,
    failures: u32,
}

impl Default for Backoff {
    fn default() -> Self {
        Self::new(Duration::from_secs(1), Duration::from_secs(30))
    }
}

impl Backoff {
    pub(super) fn new(first: Duration, most: Duration) -> Self {
        Self { first, most, failures: 0 }
    }

    /// A message has come.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }

    /// The time to wait after one more failure.
    pub(super) fn fail(&mut self) -> Duration {
        let random = RandomState::new().build_hasher().finish();
        let longest = self.longest();
        self.failures = self.failures.saturating_add(1);
        let nanos = u64::try_from(longest.as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(random.checked_rem(nanos).unwrap_or(0))
    }

    fn longest(&self) -> Duration {
        let doubled = 2_u32.checked_pow(self.failures).unwrap_or(u32::MAX);
        self.first.checked_mul(doubled).unwrap_or(self.most).min(self.most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 1 s to 30 s, full jitter, reset after a message, for ever.
    #[test]
    fn the_wait_doubles_to_its_limit_is_spread_and_begins_anew() {
        let mut backoff = Backoff::default();
        for want in [1, 2, 4, 8, 16, 30, 30] {
            assert_eq!(backoff.longest(), Duration::from_secs(want));
            assert!(backoff.fail() <= Duration::from_secs(want));
        }
        let waits: Vec<_> = (0..1000).map(|_| backoff.fail()).collect();
        assert!(waits.iter().all(|wait| *wait <= Duration::from_secs(30)));
        for (from, to) in [(0, 10), (10, 20), (20, 30)] {
            let within = Duration::from_secs(from)..Duration::from_secs(to);
            let share = waits.iter().filter(|wait| within.contains(*wait)).count();
            assert!((200..470).contains(&share), "{share} of 1000 within {within:?}");
        }
        backoff.reset();
        assert_eq!(backoff.longest(), Duration::from_secs(1));
        backoff.failures = u32::MAX;
        assert!(backoff.fail() <= Duration::from_secs(30));
    }
}
