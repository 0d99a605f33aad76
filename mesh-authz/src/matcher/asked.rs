//! What is worked out once per decision, however many rules ask.
//!
//! Rules that no index serves are evaluated one by one, and thousands of them may have the same
//! condition, or ask about the same header or claim.

use std::cell::{Cell, OnceCell};

/// Which of the headers, claims or metadata of a policy set a condition asks about.
///
/// Equal slots ask about the same. Beside the number stands a mark of the name, by which most
/// names that a request does not have are told at once.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Slot(u32);

/// Bits for the mark.
const MARK_BITS: u32 = 7;
const MARK_MASK: u32 = 0x7f;

impl Slot {
    /// The slot of the `number`-th name of a set.
    pub(crate) fn new(number: u32, name: &[u8]) -> Self {
        Self(number.wrapping_shl(MARK_BITS) | mark(name))
    }

    #[inline]
    fn mark(self) -> u32 {
        self.0 & MARK_MASK
    }
}

/// A number below 128 that equal names share.
#[inline]
fn mark(name: &[u8]) -> u32 {
    let byte = |byte: Option<&u8>| u32::from(byte.copied().unwrap_or_default());
    let len = u32::try_from(name.len()).unwrap_or_default();
    let (middle, last) = (name.get(name.len() / 2), name.last());
    let sum = byte(last).wrapping_mul(31).wrapping_add(byte(middle).wrapping_mul(7));
    sum.wrapping_add(len) & MARK_MASK
}

/// The marks of the names that a request has: what is not in it is not in the request.
#[derive(Default)]
pub(crate) struct Marks {
    /// Names that were looked up without looking at the marks.
    lookups: Cell<u8>,
    bits: OnceCell<u128>,
}

impl Marks {
    /// So many names are looked up before the marks of all names are worth their making.
    const FREE: u8 = 4;

    /// Whether the name of the slot may be among `names`.
    #[inline]
    pub(crate) fn may_have<'n, N>(&self, slot: Slot, names: impl FnOnce() -> N) -> bool
    where
        N: Iterator<Item = &'n [u8]>,
    {
        let lookups = self.lookups.get();
        if lookups < Self::FREE {
            self.lookups.set(lookups.saturating_add(1));
            return true;
        }
        let bits = self
            .bits
            .get_or_init(|| names().fold(0, |bits, name| bits | 1_u128.wrapping_shl(mark(name))));
        bits.wrapping_shr(slot.mark()) & 1 == 1
    }
}

/// So many answers are kept; another in the same place is looked up again.
const KEPT: usize = 4;

/// Answers by slot. Small, because it is made for every decision.
pub(crate) struct Answers<T> {
    kept: [Cell<Option<(Slot, T)>>; KEPT],
}

impl<T> Default for Answers<T> {
    #[inline]
    fn default() -> Self {
        Self { kept: [const { Cell::new(None) }; KEPT] }
    }
}

impl<T: Copy> Answers<T> {
    /// The answer for the slot, when it is known.
    #[inline]
    pub(crate) fn known(&self, slot: Slot) -> Option<T> {
        let (owner, answer) = self.place(slot)?.get()?;
        (owner == slot).then_some(answer)
    }

    /// Remembers an answer.
    #[inline]
    pub(crate) fn remember(&self, slot: Slot, answer: T) -> T {
        if let Some(place) = self.place(slot) {
            place.set(Some((slot, answer)));
        }
        answer
    }

    #[inline]
    fn place(&self, slot: Slot) -> Option<&Cell<Option<(Slot, T)>>> {
        let number = usize::try_from(slot.0.wrapping_shr(MARK_BITS)).unwrap_or_default();
        self.kept.get(number % KEPT)
    }
}

/// Where the outcome of a test is kept that several rules have.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    word: u8,
    /// Of the bit that says whether the outcome is known; the next one says which it is.
    bit: u8,
}

impl Place {
    /// The `at`-th place, while there are any: more tests than these are not remembered.
    pub(crate) fn new(at: usize) -> Option<Self> {
        let word = u8::try_from(at / 32).ok().filter(|word| usize::from(*word) < WORDS)?;
        let bit = u8::try_from(at % 32).ok()?.checked_mul(2)?;
        Some(Self { word, bit })
    }
}

/// Words of outcomes. Few, because they are made for every decision.
const WORDS: usize = 8;

/// The outcomes of tests that several rules have: two bits each, known and true.
#[derive(Default)]
pub(crate) struct Outcomes {
    bits: [Cell<u64>; WORDS],
}

impl Outcomes {
    /// The outcome, worked out when it is not known.
    #[inline]
    pub(crate) fn get(&self, place: Place, work_out: impl FnOnce() -> bool) -> bool {
        let Some(word) = self.bits.get(usize::from(place.word)) else { return work_out() };
        let bit = u32::from(place.bit);
        let (known, holds) = (1_u64.wrapping_shl(bit), 2_u64.wrapping_shl(bit));
        let seen = word.get();
        if seen & known != 0 {
            return seen & holds != 0;
        }
        let outcome = work_out();
        word.set(word.get() | known | if outcome { holds } else { 0 });
        outcome
    }
}
