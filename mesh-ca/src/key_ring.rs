//! Keys that follow one another without anybody noticing: publish, wait, sign, wait, remove
//! ([SEC-CA-6]).

use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::UnixTime;

use crate::error::CaError;
use crate::profile::after;

/// The clock difference between us and a verifier for which a key stays longer.
const SKEW: Duration = Duration::from_secs(60);

/// How long a key signs, and how long each wait is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Overlap {
    life: Duration,
    spread: Duration,
    longest: Duration,
}

impl Overlap {
    /// `life` of a key; `spread`, after which every verifier has a new bundle (three to five refresh
    /// hints, SPIFFE Trust Domain and Bundle section 4.1); `longest` life of what it signs.
    ///
    /// # Errors
    ///
    /// [`CaError::Overlap`] when a key would end before its successor has taken over and all that it
    /// signed has ended: a life shorter than twice the waits.
    pub fn new(life: Duration, spread: Duration, longest: Duration) -> Result<Self, CaError> {
        let waits = spread.saturating_add(longest).saturating_add(SKEW);
        if life < waits.saturating_mul(2) {
            return Err(CaError::Overlap);
        }
        Ok(Self { life, spread, longest })
    }

    /// How long a key signs.
    #[must_use]
    pub fn life(&self) -> Duration {
        self.life
    }

    /// The longest life of what it signs.
    #[must_use]
    pub fn longest(&self) -> Duration {
        self.longest
    }

    /// When the successor of a key that ends then is published: in the last fifth of its life, as
    /// Istio does, and early enough for the waits.
    fn successor_due(&self, not_after: UnixTime) -> UnixTime {
        let waits = self.spread.saturating_add(self.longest).saturating_add(SKEW);
        let early = waits.max(Duration::from_secs(self.life.as_secs() / 5));
        before(not_after, early)
    }
}

fn before(time: UnixTime, by: Duration) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(time.as_secs()).saturating_sub(by))
}

/// A key that signs, and what verifies it.
pub trait RingKey {
    /// What others verify with.
    type Public: Clone;

    /// What others verify with.
    fn public(&self) -> Self::Public;

    /// When it ends.
    fn not_after(&self) -> UnixTime;
}

/// What to do next.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[expect(clippy::exhaustive_enums, reason = "the steps of a rotation, in their order")]
pub enum Step {
    /// Nothing before this time.
    Wait(UnixTime),
    /// Make a successor and publish it ([`KeyRing::publish`]).
    Publish,
    /// The successor signs from now on ([`KeyRing::sign`]).
    Sign,
    /// All that the oldest key signed has ended: take it out ([`KeyRing::remove`]).
    Remove,
}

/// The key that signs, the one that will, and those that did.
///
/// The private key of one that has stopped signing is gone; only what verifies stays.
#[derive(Debug)]
pub struct KeyRing<K: RingKey> {
    current: Held<K>,
    next: Option<Held<K>>,
    old: Vec<Retired<K::Public>>,
}

#[derive(Debug)]
pub(crate) struct Held<K> {
    pub(crate) key: Arc<K>,
    pub(crate) published: UnixTime,
}

#[derive(Clone, Debug)]
pub(crate) struct Retired<P> {
    pub(crate) public: P,
    pub(crate) retired: UnixTime,
}

impl<K> Clone for Held<K> {
    fn clone(&self) -> Self {
        Self { key: Arc::clone(&self.key), published: self.published }
    }
}

impl<K: RingKey> Clone for KeyRing<K> {
    fn clone(&self) -> Self {
        Self { current: self.current.clone(), next: self.next.clone(), old: self.old.clone() }
    }
}

impl<K: RingKey> KeyRing<K> {
    /// A ring of one key, which signs at once.
    #[must_use]
    pub fn new(key: K, now: UnixTime) -> Self {
        let current = Held { key: Arc::new(key), published: now };
        Self { current, next: None, old: Vec::new() }
    }

    #[cfg(feature = "persist")]
    pub(crate) fn from_parts(
        current: Held<K>,
        next: Option<Held<K>>,
        old: Vec<Retired<K::Public>>,
    ) -> Self {
        Self { current, next, old }
    }

    #[cfg(feature = "persist")]
    #[expect(clippy::type_complexity, reason = "the three fields, borrowed")]
    pub(crate) fn parts(&self) -> (&Held<K>, Option<&Held<K>>, &[Retired<K::Public>]) {
        (&self.current, self.next.as_ref(), &self.old)
    }

    /// The key that signs.
    #[must_use]
    pub fn signing(&self) -> &Arc<K> {
        &self.current.key
    }

    /// What verifiers must believe: all keys, the one that signs first.
    pub fn published(&self) -> impl Iterator<Item = K::Public> {
        let held = std::iter::once(&self.current).chain(&self.next).map(|held| held.key.public());
        held.chain(self.old.iter().map(|old| old.public.clone()))
    }

    /// What is due.
    #[must_use]
    pub fn next_step(&self, overlap: &Overlap, now: UnixTime) -> Step {
        let gone =
            self.old.iter().map(|old| after(old.retired, overlap.longest.saturating_add(SKEW)));
        let gone = gone.min();
        if gone.is_some_and(|gone| now > gone) {
            return Step::Remove;
        }
        let (due, step) = match &self.next {
            Some(next) => (after(next.published, overlap.spread), Step::Sign),
            None => (overlap.successor_due(self.current.key.not_after()), Step::Publish),
        };
        if now >= due {
            return step;
        }
        // `gone` is the last second in which something is valid: the step is one later.
        let gone = gone.map(|gone| after(gone, Duration::from_secs(1)));
        Step::Wait(gone.map_or(due, |gone| gone.min(due)))
    }

    /// Publishes a successor. It signs nothing yet. A second one takes the place of the first.
    pub fn publish(&mut self, key: K, now: UnixTime) {
        self.next = Some(Held { key: Arc::new(key), published: now });
    }

    /// The successor signs; the key before it verifies what it has signed. Without a successor
    /// nothing changes.
    pub fn sign(&mut self, now: UnixTime) {
        if let Some(next) = self.next.take() {
            let old = std::mem::replace(&mut self.current, next);
            self.old.push(Retired { public: old.key.public(), retired: now });
        }
    }

    /// Takes out the keys of which nothing is valid any more.
    pub fn remove(&mut self, overlap: &Overlap, now: UnixTime) {
        let longest = overlap.longest.saturating_add(SKEW);
        self.old.retain(|old| now <= after(old.retired, longest));
    }
}

#[cfg(test)]
#[expect(clippy::arithmetic_side_effects, reason = "a test fails by panicking")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug)]
    struct Key(u32, UnixTime);

    impl RingKey for Key {
        type Public = u32;

        fn public(&self) -> u32 {
            self.0
        }

        fn not_after(&self) -> UnixTime {
            self.1
        }
    }

    fn at(seconds: u64) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_secs(seconds))
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn sec_ca_6_the_steps_in_their_order() {
        let overlap = Overlap::new(seconds(1000), seconds(50), seconds(100)).unwrap();
        let mut ring = KeyRing::new(Key(1, at(2000)), at(1000));
        // The waits are 50 + 100 + 60, more than a fifth of the life.
        assert_eq!(ring.next_step(&overlap, at(1000)), Step::Wait(at(1790)));
        assert_eq!(ring.next_step(&overlap, at(1790)), Step::Publish);
        ring.publish(Key(2, at(2790)), at(1790));
        assert_eq!((ring.signing().0, ring.published().collect()), (1, vec![1, 2]));
        assert_eq!(ring.next_step(&overlap, at(1791)), Step::Wait(at(1840)));
        assert_eq!(ring.next_step(&overlap, at(1840)), Step::Sign);
        ring.sign(at(1840));
        assert_eq!((ring.signing().0, ring.published().collect()), (2, vec![2, 1]));
        assert_eq!(ring.next_step(&overlap, at(2000)), Step::Wait(at(2001)));
        assert_eq!(ring.next_step(&overlap, at(2001)), Step::Remove);
        ring.remove(&overlap, at(2001));
        assert_eq!(ring.published().collect::<Vec<_>>(), [2]);
        assert_eq!(ring.next_step(&overlap, at(2001)), Step::Wait(at(2580)));
    }

    #[test]
    fn sec_ca_6_waits_that_do_not_fit_are_refused() {
        assert!(Overlap::new(seconds(419), seconds(50), seconds(100)).is_err());
        assert!(Overlap::new(seconds(420), seconds(50), seconds(100)).is_ok());
        assert!(Overlap::new(seconds(420), Duration::MAX, seconds(100)).is_err());
    }

    proptest! {
        /// No verifier with a bundle no older than the spread ever refuses what is valid, however
        /// long the life of keys and leaves and however irregular the driver; and no key has ended
        /// while something that it signed is valid.
        #[test]
        fn sec_ca_6_no_verifier_refuses_what_is_valid(
            spread in 1_u64..200,
            longest in 1_u64..300,
            factor in 2_u64..6,
            pauses in prop::collection::vec(1_u64..20, 50..300),
        ) {
            let life = (spread + longest + 60) * factor;
            let overlap = Overlap::new(seconds(life), seconds(spread), seconds(longest)).unwrap();
            let mut now = 10_000;
            let mut ring = KeyRing::new(Key(0, at(now + life)), at(now));
            let mut made = 0;
            // What was signed: by whom, until when. What was published: since when.
            let mut leaves: Vec<(u32, u64)> = Vec::new();
            let mut bundles: Vec<(u64, Vec<u32>)> = vec![(0, vec![0])];
            for pause in pauses {
                now += pause;
                loop {
                    match ring.next_step(&overlap, at(now)) {
                        Step::Wait(until) => {
                            prop_assert!(until > at(now));
                            break;
                        }
                        Step::Publish => {
                            made += 1;
                            ring.publish(Key(made, at(now + life)), at(now));
                        }
                        Step::Sign => ring.sign(at(now)),
                        Step::Remove => ring.remove(&overlap, at(now)),
                    }
                    bundles.push((now, ring.published().collect()));
                }
                leaves.push((ring.signing().0, now + longest));
                prop_assert!(ring.signing().not_after() >= at(now + longest));
                leaves.retain(|(_, end)| *end >= now);
                // Every bundle that was in force at some time in the last `spread` seconds.
                let oldest = bundles.iter().rposition(|(since, _)| *since <= now - spread);
                for (_, bundle) in &bundles[oldest.unwrap_or(0)..] {
                    for (key, _) in &leaves {
                        prop_assert!(bundle.contains(key), "{key} is not in {bundle:?} at {now}");
                    }
                }
            }
            prop_assert!(ring.published().count() <= 3);
        }
    }
}
