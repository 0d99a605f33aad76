//! How much is issued, before any cryptography ([SEC-CA-7]).

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use mesh_identity::SpiffeId;
use rustls_pki_types::UnixTime;

/// Most identities whose rate is remembered. One that has not asked for a while is forgotten: its
/// bucket is full again, which is what a new one would be.
const MAX_IDENTITIES: usize = 100_000;

/// A token bucket: so many at once, and so many more each second.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[expect(clippy::exhaustive_structs, reason = "the two numbers of a token bucket")]
pub struct Rate {
    /// The bucket's size.
    pub burst: u32,
    /// What flows in each second.
    pub per_second: u32,
}

/// How much an authority issues.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[expect(clippy::exhaustive_structs, reason = "the three limits there are")]
pub struct Limits {
    /// For one identity. Asked first, so that one caller's flood empties his own bucket alone.
    pub per_identity: Rate,
    /// For all together.
    pub total: Rate,
    /// How many at the same time.
    pub concurrency: usize,
}

impl Default for Limits {
    /// 30 at once and 1 a second for an identity; 2,000 and 1,000 in all; 64 at the same time.
    fn default() -> Self {
        Self {
            per_identity: Rate { burst: 30, per_second: 1 },
            total: Rate { burst: 2_000, per_second: 1_000 },
            concurrency: 64,
        }
    }
}

/// Which limit is reached.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum LimitReached {
    /// Too many at the same time.
    #[error("too many requests at the same time")]
    Concurrency,
    /// The identity asks too often.
    #[error("this identity asks too often")]
    Identity,
    /// All together ask too often.
    #[error("too many requests")]
    Total,
}

pub(crate) struct Limiter {
    limits: Limits,
    buckets: Mutex<Buckets>,
    running: AtomicUsize,
}

struct Buckets {
    total: Bucket,
    identities: HashMap<SpiffeId, Bucket>,
}

#[derive(Clone, Copy)]
struct Bucket {
    left: u32,
    at: u64,
}

impl Bucket {
    fn full(rate: Rate, now: UnixTime) -> Self {
        Self { left: rate.burst, at: now.as_secs() }
    }

    /// A clock that goes back gives nothing, and takes nothing.
    fn refill(&mut self, rate: Rate, now: UnixTime) {
        let elapsed = now.as_secs().saturating_sub(self.at);
        let more = u64::from(rate.per_second).saturating_mul(elapsed);
        let left = u64::from(self.left).saturating_add(more).min(u64::from(rate.burst));
        self.left = u32::try_from(left).unwrap_or(rate.burst);
        self.at = self.at.max(now.as_secs());
    }

    fn take(&mut self, rate: Rate, now: UnixTime) -> bool {
        self.refill(rate, now);
        let after = self.left.checked_sub(1);
        self.left = after.unwrap_or_default();
        after.is_some()
    }
}

/// One of the places of those that issue at the same time.
pub(crate) struct Place<'a>(&'a AtomicUsize);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Limiter {
    pub(crate) fn new(limits: Limits) -> Self {
        let total = Bucket { left: limits.total.burst, at: 0 };
        let buckets = Buckets { total, identities: HashMap::new() };
        Self { limits, buckets: Mutex::new(buckets), running: AtomicUsize::new(0) }
    }

    /// Whether one more may be issued now.
    pub(crate) fn enter(&self, id: &SpiffeId, now: UnixTime) -> Result<Place<'_>, LimitReached> {
        self.take(id, now)?;
        let place = Place(&self.running);
        if self.running.fetch_add(1, Ordering::AcqRel) >= self.limits.concurrency {
            return Err(LimitReached::Concurrency);
        }
        Ok(place)
    }

    fn take(&self, id: &SpiffeId, now: UnixTime) -> Result<(), LimitReached> {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let Buckets { total, identities } = &mut *buckets;
        let rate = self.limits.per_identity;
        if let Some(bucket) = identities.get_mut(id) {
            if !bucket.take(rate, now) {
                return Err(LimitReached::Identity);
            }
        } else {
            if identities.len() >= MAX_IDENTITIES {
                identities.retain(|_, bucket| {
                    bucket.refill(rate, now);
                    bucket.left < rate.burst
                });
            }
            // Who cannot be counted is not served: all the others are waiting for their refill.
            if identities.len() >= MAX_IDENTITIES {
                return Err(LimitReached::Total);
            }
            let mut bucket = Bucket::full(rate, now);
            let taken = bucket.take(rate, now);
            identities.insert(id.clone(), bucket);
            if !taken {
                return Err(LimitReached::Identity);
            }
        }
        if total.take(self.limits.total, now) { Ok(()) } else { Err(LimitReached::Total) }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(seconds: u64) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_secs(seconds))
    }

    fn limits() -> Limits {
        Limits {
            per_identity: Rate { burst: 3, per_second: 1 },
            total: Rate { burst: 10, per_second: 10 },
            concurrency: 2,
        }
    }

    fn id(name: &str) -> SpiffeId {
        format!("spiffe://td/{name}").parse().unwrap()
    }

    /// A flood of one is stopped at his own bucket: the others still have all of theirs.
    #[test]
    fn sec_ca_7_a_flood_is_the_flooders_own_problem() {
        let limiter = Limiter::new(limits());
        for tick in 0..50 {
            let now = at(1000 + tick);
            let flood = (0..500).filter(|_| limiter.enter(&id("flood"), now).is_ok()).count();
            assert!(flood <= 3, "{flood}");
            for other in ["a", "b", "c", "d", "e"] {
                assert!(limiter.enter(&id(other), now).is_ok(), "{other} at {tick}");
            }
        }
    }

    #[test]
    fn sec_ca_7_rates_and_places() {
        let limiter = Limiter::new(limits());
        let enter = |name: &str, seconds| limiter.enter(&id(name), at(seconds)).map(drop);
        for want in [Ok(()), Ok(()), Ok(()), Err(LimitReached::Identity)] {
            assert_eq!(enter("a", 100), want);
        }
        // A clock that goes back fills nothing.
        assert_eq!(enter("a", 50), Err(LimitReached::Identity));
        assert_eq!(enter("a", 101), Ok(()));
        assert_eq!(enter("a", 101), Err(LimitReached::Identity));
        let many = (0..20).filter(|n| enter(&format!("n{n}"), 101).is_ok()).count();
        assert_eq!((many, enter("m", 101)), (9, Err(LimitReached::Total)));

        let first = limiter.enter(&id("x"), at(200));
        let second = limiter.enter(&id("y"), at(200));
        let third = limiter.enter(&id("z"), at(200));
        assert!(first.is_ok() && second.is_ok());
        assert!(matches!(third, Err(LimitReached::Concurrency)));
        drop(first);
        assert!(limiter.enter(&id("z"), at(200)).is_ok());
        drop(second);
    }

    /// Who asks under ever new names fills no memory, and locks nobody out for longer than it takes
    /// a bucket to fill.
    #[test]
    fn sec_ca_7_memory_is_bounded() {
        let rate = Rate { burst: 1_000_000, per_second: 1_000_000 };
        let limits = Limits { total: rate, ..limits() };
        let limiter = Limiter::new(limits);
        for n in 0..MAX_IDENTITIES {
            assert!(limiter.enter(&id(&format!("n{n}")), at(100)).is_ok());
        }
        let late = |seconds| limiter.enter(&id("late"), at(seconds)).map(drop);
        assert_eq!(late(100), Err(LimitReached::Total));
        assert_eq!(late(101), Ok(()));
        assert_eq!(limiter.buckets.lock().unwrap().identities.len(), 1);
    }
}
