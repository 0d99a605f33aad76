//! When to fetch a key set, and which one counts: a schedule without clock, randomness or I/O.
//!
//! ```text
//!  due(now) ──Fetch──▶ somebody fetches ──fetched(now, body)──▶ keys(now)
//!     ▲                                └──failed(now)──┐
//!     └──────────────── missing_key(now) ◀─────────────┴── a token names a key that is not there
//! ```

use std::fmt;
use std::sync::Arc;

use ring::digest::{self, Digest};
use rustls_pki_types::UnixTime;

use super::key_set::{KeySet, KeySetError};

/// How a key set is kept fresh.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct RefreshPolicy {
    /// Seconds between two fetches that succeed ([SEC-JWT-16]). Default: 300.
    pub interval: u64,
    /// Fewest seconds between two fetches, whatever asks for one ([SEC-JWT-15]). Default: 30.
    pub cool_down: u64,
    /// Seconds for which a set counts after its last successful fetch ([SEC-JWT-14]). 0 closes
    /// with the first failure. Default: one day.
    pub max_age: u64,
}

impl Default for RefreshPolicy {
    fn default() -> Self {
        Self { interval: 300, cool_down: 30, max_age: 86_400 }
    }
}

/// The key set of one source over time.
///
/// A failed, empty or unreadable answer changes nothing ([SEC-JWT-14], [SEM-ADV-71]): the last
/// good set counts until it is too old. There is one fetch at a time, and at most one per
/// cool-down; fruitless ones move further apart, up to the interval ([SEC-JWT-15]).
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use mesh_authn::request::{KeyRefresh, RefreshPolicy};
/// use rustls_pki_types::UnixTime;
///
/// let at = |second| UnixTime::since_unix_epoch(Duration::from_secs(second));
/// let mut refresh = KeyRefresh::new(RefreshPolicy::default());
/// assert!(refresh.begin(at(1000), 0));
/// assert!(!refresh.begin(at(1000), 0), "one at a time");
/// refresh.failed(at(1001));
/// assert!(refresh.keys(at(1001)).is_none());
/// assert!(!refresh.begin(at(1010), 0), "not before the cool-down is over");
/// assert!(refresh.begin(at(1040), 0));
/// ```
#[derive(Clone, Debug)]
pub struct KeyRefresh {
    policy: RefreshPolicy,
    held: Option<Held>,
    in_flight: bool,
    /// When the last fetch began.
    began: Option<u64>,
    /// Not before this second.
    next: u64,
    /// Fetches in a row that failed, or brought nothing new when a key was missing.
    fruitless: u32,
    /// A token named a key that is not there, and no fetch has begun since.
    asked: bool,
    failures: u32,
    /// The set was found too old, and no fetch has succeeded since.
    too_old: bool,
}

#[derive(Clone)]
struct Held {
    keys: Arc<KeySet>,
    /// Of the bytes it was read from.
    digest: Digest,
    fetched: u64,
}

/// The digest of a set of shared secrets could be guessed at, so it is not shown.
impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Held").field("fetched", &self.fetched).finish_non_exhaustive()
    }
}

/// How a source is doing, for a metric or a health page.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum KeyState {
    /// No fetch has succeeded yet.
    Missing {
        /// Failures in a row.
        failures: u32,
    },
    /// The last fetch succeeded.
    Fresh {
        /// Seconds since.
        age: u64,
    },
    /// The last fetch failed; the set before it still counts.
    Stale {
        /// Seconds since the last success.
        age: u64,
        /// Failures in a row.
        failures: u32,
    },
    /// The last good set is too old to count.
    TooOld {
        /// Seconds since the last success.
        age: u64,
    },
}

/// What a fetched set is worth.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[expect(clippy::exhaustive_enums, reason = "there is no third case")]
pub enum Fetched {
    /// Other keys than before: compile anew, and every cached token is forgotten.
    Changed,
    /// The same bytes as before.
    Same,
}

impl KeyRefresh {
    /// A source that nobody has fetched yet: a fetch is due at once.
    #[must_use]
    pub fn new(policy: RefreshPolicy) -> Self {
        Self {
            policy,
            held: None,
            in_flight: false,
            began: None,
            next: 0,
            fruitless: 0,
            asked: false,
            failures: 0,
            too_old: false,
        }
    }

    /// Begins a fetch when one is due; then tell [`Self::fetched`] or [`Self::failed`].
    ///
    /// `random` is any number; it spreads the next regular fetch over a tenth of the interval, so
    /// that a fleet does not fetch at the same second.
    pub fn begin(&mut self, now: UnixTime, random: u64) -> bool {
        let now = now.as_secs();
        if self.in_flight || !self.is_due(now) {
            return false;
        }
        self.in_flight = true;
        self.began = Some(now);
        let spread = self.policy.interval.checked_div(10).unwrap_or(0).saturating_add(1);
        let early = random.checked_rem(spread).unwrap_or(0);
        self.next = now.saturating_add(self.policy.interval.saturating_sub(early));
        true
    }

    /// The next second at which [`Self::begin`] may say yes, if nothing happens before.
    #[must_use]
    pub fn due(&self) -> UnixTime {
        let earliest = if self.asked { self.earliest() } else { self.next };
        UnixTime::since_unix_epoch(std::time::Duration::from_secs(earliest))
    }

    /// The answer of a fetch. Bytes that are no usable key set change nothing.
    ///
    /// # Errors
    ///
    /// [`KeySetError`] as [`KeySet::parse`]; it counts as a failed fetch.
    pub fn fetched(&mut self, now: UnixTime, body: &[u8]) -> Result<Fetched, KeySetError> {
        let keys = match KeySet::parse(body) {
            Ok(keys) => keys,
            Err(error) => {
                self.failed(now);
                return Err(error);
            }
        };
        let digest = digest::digest(&digest::SHA256, body);
        let fruitless = std::mem::take(&mut self.fruitless);
        let asked = std::mem::take(&mut self.asked);
        (self.in_flight, self.failures, self.too_old) = (false, 0, false);
        let fetched = now.as_secs();
        match &mut self.held {
            Some(held) if held.digest.as_ref() == digest.as_ref() => {
                held.fetched = fetched;
                // A missing key that is still missing: ask less often.
                self.fruitless = if asked { fruitless.saturating_add(1) } else { fruitless };
                Ok(Fetched::Same)
            }
            Some(_) | None => {
                self.held = Some(Held { keys: Arc::new(keys), digest, fetched });
                Ok(Fetched::Changed)
            }
        }
    }

    /// A fetch has failed: the next one comes after the cool-down, later each time, but not later
    /// than the interval.
    pub fn failed(&mut self, now: UnixTime) {
        (self.in_flight, self.asked) = (false, false);
        self.fruitless = self.fruitless.saturating_add(1);
        self.failures = self.failures.saturating_add(1);
        self.next = now.as_secs().saturating_add(self.pause());
    }

    /// A token names a key that the set lacks. At most one fetch per cool-down follows, whatever
    /// the number of tokens ([SEC-JWT-15]).
    pub fn missing_key(&mut self) {
        self.asked = true;
    }

    /// The set that counts now; nothing when there is none or it is too old.
    ///
    /// What was too old once stays so until a fetch succeeds, also when the clock goes back
    /// ([SEC-OPS-5]).
    #[must_use]
    pub fn keys(&mut self, now: UnixTime) -> Option<&Arc<KeySet>> {
        let held = self.held.as_ref()?;
        let age = now.as_secs().saturating_sub(held.fetched);
        let closed = self.failures > 0 && age >= self.policy.max_age;
        self.too_old |= closed || age > self.policy.max_age.max(self.policy.interval);
        (!self.too_old).then_some(&held.keys)
    }

    /// How the source is doing.
    #[must_use]
    pub fn state(&mut self, now: UnixTime) -> KeyState {
        let counts = self.keys(now).is_some();
        let failures = self.failures;
        let Some(held) = &self.held else { return KeyState::Missing { failures } };
        let age = now.as_secs().saturating_sub(held.fetched);
        match (counts, failures) {
            (false, _) => KeyState::TooOld { age },
            (true, 0) => KeyState::Fresh { age },
            (true, _) => KeyState::Stale { age, failures },
        }
    }

    fn is_due(&self, now: u64) -> bool {
        // A clock that went back must not stop refreshes ([SEC-OPS-5]).
        let went_back = self.began.is_some_and(|began| now < began);
        went_back || now >= self.next || (self.asked && now >= self.earliest())
    }

    /// The earliest second for a fetch that is not a regular one.
    fn earliest(&self) -> u64 {
        self.began.map_or(0, |began| began.saturating_add(self.pause())).min(self.next)
    }

    /// The cool-down, doubled for every fruitless fetch, up to the interval.
    fn pause(&self) -> u64 {
        let doubled = 1_u64.checked_shl(self.fruitless.saturating_sub(1).min(32)).unwrap_or(1);
        let pause = self.policy.cool_down.saturating_mul(doubled);
        pause.min(self.policy.interval).max(self.policy.cool_down)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const SET: &[u8] = br#"{"keys":[{"kty":"oct","k":"AAAA","kid":"a"}]}"#;
    const OTHER: &[u8] = br#"{"keys":[{"kty":"oct","k":"AAAB","kid":"b"}]}"#;

    fn at(second: u64) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_secs(second))
    }

    fn fresh() -> KeyRefresh {
        let mut refresh = KeyRefresh::new(RefreshPolicy::default());
        assert!(refresh.begin(at(1000), 0));
        assert_eq!(refresh.fetched(at(1000), SET), Ok(Fetched::Changed));
        refresh
    }

    #[test]
    fn sec_jwt_14_a_bad_answer_changes_nothing_until_the_age_limit() {
        // [SEM-ADV-71]
        let mut refresh = fresh();
        let mut now = 1000;
        for body in [&b""[..], b"{}", br#"{"keys":[]}"#, b"<html>", &SET[..20]] {
            now += 400;
            assert!(refresh.begin(at(now), 0));
            assert!(refresh.fetched(at(now), body).is_err());
            assert!(refresh.keys(at(now)).unwrap().has_kid("a"));
            assert!(matches!(refresh.state(at(now)), KeyState::Stale { .. }));
        }
        assert!(refresh.keys(at(1000 + 86_399)).is_some());
        assert!(refresh.keys(at(1000 + 86_400)).is_none());
        assert_eq!(refresh.state(at(90_000)), KeyState::TooOld { age: 89_000 });
        // And back.
        assert!(refresh.begin(at(90_000), 0));
        assert_eq!(refresh.fetched(at(90_000), SET), Ok(Fetched::Same));
        assert!(refresh.keys(at(90_000)).is_some());
    }

    #[test]
    fn sec_jwt_14_an_age_limit_of_zero_closes_with_the_first_failure() {
        let policy = RefreshPolicy { max_age: 0, ..RefreshPolicy::default() };
        let mut refresh = KeyRefresh::new(policy);
        assert!(refresh.begin(at(1000), 0));
        assert_eq!(refresh.fetched(at(1000), SET), Ok(Fetched::Changed));
        assert!(refresh.keys(at(1299)).is_some());
        assert!(refresh.begin(at(1300), 0));
        refresh.failed(at(1300));
        assert!(refresh.keys(at(1300)).is_none());
    }

    #[test]
    fn sec_jwt_15_three_hundred_unknown_ids_cause_one_fetch_per_cool_down() {
        let mut refresh = fresh();
        let mut fetches = 0;
        for second in 1001..1300 {
            refresh.missing_key();
            if refresh.begin(at(second), 0) {
                fetches += 1;
                assert!(!refresh.begin(at(second), 0));
                assert_eq!(refresh.fetched(at(second), SET), Ok(Fetched::Same));
            }
        }
        // After 30 s, then 30, 60, 120 s later: the pauses grow while nothing new comes.
        assert_eq!(fetches, 4);
        // A key that does come ends the wait, and the pauses begin anew.
        refresh.missing_key();
        assert!(refresh.begin(at(1700), 0));
        assert_eq!(refresh.fetched(at(1700), OTHER), Ok(Fetched::Changed));
        refresh.missing_key();
        assert!(!refresh.begin(at(1729), 0));
        assert!(refresh.begin(at(1730), 0));
    }

    #[test]
    fn sec_jwt_15_also_while_the_endpoint_fails() {
        let mut refresh = fresh();
        let mut fetches: Vec<u64> = Vec::new();
        for second in 1001..3000 {
            refresh.missing_key();
            if refresh.begin(at(second), 0) {
                fetches.push(second);
                refresh.failed(at(second));
            }
        }
        assert!(fetches.windows(2).all(|pair| pair[1] - pair[0] >= 30), "{fetches:?}");
        assert!(fetches.len() < 15, "{fetches:?}");
    }

    #[test]
    fn sec_jwt_16_regular_fetches_come_within_the_interval() {
        for random in [0, 7, 30, u64::MAX] {
            let mut refresh = fresh();
            let mut last = 1000;
            for second in 1001..10_000 {
                if refresh.begin(at(second), random) {
                    assert!((270..=300).contains(&(second - last)), "{second}");
                    assert_eq!(refresh.fetched(at(second), SET), Ok(Fetched::Same));
                    last = second;
                }
            }
            assert!(last > 9_000);
        }
    }

    #[test]
    fn sec_ops_5_and_sec_jwt_14_a_clock_that_goes_back_revives_no_set() {
        // Too old because fetches fail, or because nobody could even ask.
        for failures in [0, 1] {
            let mut refresh = fresh();
            for _ in 0..failures {
                assert!(refresh.begin(at(1400), 0));
                refresh.failed(at(1400));
            }
            assert!(refresh.keys(at(1000 + 86_401)).is_none());
            for second in [1401, 1000, 0] {
                assert!(refresh.keys(at(second)).is_none(), "{second}");
                assert!(matches!(refresh.state(at(second)), KeyState::TooOld { .. }));
            }
            assert!(refresh.begin(at(900), 0));
            refresh.failed(at(900));
            assert!(refresh.keys(at(900)).is_none());
            // The next success ends it.
            assert!(refresh.begin(at(2000), 0));
            assert_eq!(refresh.fetched(at(2000), SET), Ok(Fetched::Same));
            assert!(refresh.keys(at(2000)).is_some());
        }
    }

    #[test]
    fn sec_ops_5_a_clock_that_jumps_does_not_stop_refreshes() {
        for second in [0, 1, 900, u64::MAX] {
            let mut refresh = fresh();
            assert!(refresh.begin(at(second), 0), "{second}");
            refresh.failed(at(second));
            assert!(matches!(
                refresh.state(at(second)),
                KeyState::Stale { .. } | KeyState::TooOld { .. }
            ));
        }
    }
}
