//! How long to wait before asking again. Many lose one server at the same moment: none of them may
//! come back together with the others.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
#[cfg(any(feature = "istio-ca", feature = "opa", feature = "workload-api"))]
use std::time::Duration;

/// A number that tells callers apart; it guards no secret.
pub(crate) fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// Up to so long, at random.
#[cfg(any(feature = "istio-ca", feature = "opa", feature = "workload-api"))]
pub(crate) fn spread(most: Duration) -> Duration {
    let nanos = u64::try_from(most.as_nanos()).unwrap_or(u64::MAX);
    Duration::from_nanos(random().checked_rem(nanos.saturating_add(1)).unwrap_or_default())
}

/// `first`, doubled so many times, up to `most`.
#[cfg(any(feature = "istio-ca", feature = "opa", feature = "workload-api"))]
pub(crate) fn doubled(first: Duration, times: u32, most: Duration) -> Duration {
    let factor = 2_u32.checked_pow(times).unwrap_or(u32::MAX);
    first.checked_mul(factor).unwrap_or(most).min(most)
}

/// Waits that double with each failure, for ever.
#[cfg(any(feature = "istio-ca", feature = "workload-api"))]
#[derive(Clone, Debug)]
pub(crate) struct Backoff {
    first: Duration,
    most: Duration,
    /// From a wait to one nearby, at random.
    jitter: fn(Duration) -> Duration,
    pub(crate) failures: u32,
}

#[cfg(any(feature = "istio-ca", feature = "workload-api"))]
impl Backoff {
    pub(crate) fn new(
        (first, most): (Duration, Duration),
        jitter: fn(Duration) -> Duration,
    ) -> Self {
        Self { first, most, jitter, failures: 0 }
    }

    /// It has succeeded.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }

    /// The time to wait after one more failure.
    pub(crate) fn fail(&mut self) -> Duration {
        let wait = (self.jitter)(self.next());
        self.failures = self.failures.saturating_add(1);
        wait
    }

    /// The next wait before it is spread.
    pub(crate) fn next(&self) -> Duration {
        doubled(self.first, self.failures, self.most)
    }
}
