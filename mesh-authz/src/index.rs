//! Finds, among many patterns, the few that a text can satisfy at all.
//!
//! A key is what every matching text has in common with a pattern: the whole text, its beginning
//! or its end. Candidates are a superset of the matches; whoever asks still checks each one.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// A necessary condition on a text.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) enum Key {
    Exact(Vec<u8>),
    Prefix(Vec<u8>),
    Suffix(Vec<u8>),
}

impl Key {
    /// Whether every text has it.
    pub(crate) fn is_empty(&self) -> bool {
        match self {
            Self::Exact(_) => false,
            Self::Prefix(text) | Self::Suffix(text) => text.is_empty(),
        }
    }
}

/// Beginnings and ends are looked up at no more than this many lengths; a longer key is cut down to
/// the next shorter one, so a lookup costs the same however many patterns there are.
const MAX_LENGTHS: usize = 8;

type Map = HashMap<Box<[u8]>, Vec<u32>, BuildHasherDefault<FastHasher>>;

/// Ids of patterns by their keys. The list of each key is sorted.
#[derive(Debug, Default)]
pub(crate) struct TextIndex {
    exact: Map,
    prefix: Affixes,
    suffix: Affixes,
}

#[derive(Debug, Default)]
struct Affixes {
    lengths: Box<[usize]>,
    map: Map,
}

impl TextIndex {
    /// Numbers the keys in their order.
    pub(crate) fn new(keys: impl Iterator<Item = Key>) -> Self {
        Self::with_ids(keys.zip(0_u32..).collect())
    }

    /// Ids must come in ascending order.
    pub(crate) fn with_ids(keys: Vec<(Key, u32)>) -> Self {
        let mut exact = Map::default();
        let (mut prefixes, mut suffixes) = (Vec::new(), Vec::new());
        for (key, id) in keys {
            match key {
                Key::Exact(text) => push(&mut exact, text, id),
                Key::Prefix(text) => prefixes.push((text, id)),
                Key::Suffix(text) => suffixes.push((text, id)),
            }
        }
        exact.shrink_to_fit();
        let cut_prefix = |text: &mut Vec<u8>, len: usize| text.truncate(len);
        let cut_suffix = |text: &mut Vec<u8>, len: usize| {
            drop(text.drain(..text.len().saturating_sub(len)));
        };
        Self {
            exact,
            prefix: Affixes::new(prefixes, cut_prefix),
            suffix: Affixes::new(suffixes, cut_suffix),
        }
    }

    /// Calls `f` with the ids of each key that the text has.
    pub(crate) fn candidates<'s>(&'s self, text: &[u8], f: &mut impl FnMut(&'s [u32])) {
        if !self.exact.is_empty()
            && let Some(ids) = self.exact.get(text)
        {
            f(ids);
        }
        for len in &self.prefix.lengths {
            let Some(start) = text.get(..*len) else { break };
            if let Some(ids) = self.prefix.map.get(start) {
                f(ids);
            }
        }
        for len in &self.suffix.lengths {
            let Some(from) = text.len().checked_sub(*len) else { break };
            if let Some(ids) = text.get(from..).and_then(|end| self.suffix.map.get(end)) {
                f(ids);
            }
        }
    }

    /// How many times a text is looked up.
    pub(crate) fn lookups(&self) -> usize {
        let affixes = self.prefix.lengths.len().saturating_add(self.suffix.lengths.len());
        affixes.saturating_add(usize::from(!self.exact.is_empty()))
    }

    /// The most candidates that one text can have, or a few more.
    pub(crate) fn most_candidates(&self) -> usize {
        let count = |text: &[u8]| {
            let mut count = 0_usize;
            self.candidates(text, &mut |ids| count = count.saturating_add(ids.len()));
            count
        };
        // No text finds more by its beginning than the longest key that it begins with.
        let exact = self.exact.keys().chain(self.prefix.map.keys()).map(|text| count(text)).max();
        let suffix = self.suffix.map.keys().map(|text| count(text)).max();
        exact.unwrap_or_default().saturating_add(suffix.unwrap_or_default())
    }

    /// Whether `check` accepts any candidate.
    pub(crate) fn any(&self, text: &[u8], check: impl Fn(usize) -> bool) -> bool {
        let mut found = false;
        self.candidates(text, &mut |ids| {
            found = found || ids.iter().any(|id| usize::try_from(*id).is_ok_and(&check));
        });
        found
    }
}

impl Affixes {
    fn new(mut affixes: Vec<(Vec<u8>, u32)>, cut: impl Fn(&mut Vec<u8>, usize)) -> Self {
        let lengths = chosen_lengths(&affixes);
        let mut map = Map::default();
        for (text, id) in &mut affixes {
            let len = lengths.iter().rev().find(|len| **len <= text.len());
            cut(text, len.copied().unwrap_or_default());
            push(&mut map, std::mem::take(text), *id);
        }
        map.shrink_to_fit();
        Self { lengths, map }
    }
}

/// The lengths at which to look up: all that occur, or the shortest and evenly spaced others.
fn chosen_lengths(affixes: &[(Vec<u8>, u32)]) -> Box<[usize]> {
    let mut lengths: Vec<usize> = affixes.iter().map(|(text, _)| text.len()).collect();
    lengths.sort_unstable();
    // Where only few are short, cutting the many down to them would make one long list.
    let step = lengths.len().div_ceil(MAX_LENGTHS.saturating_sub(1)).max(1);
    let mut distinct = lengths.clone();
    distinct.dedup();
    if distinct.len() <= MAX_LENGTHS {
        return distinct.into();
    }
    let first = lengths.first().copied();
    let mut chosen: Vec<usize> =
        first.into_iter().chain(lengths.into_iter().step_by(step)).collect();
    chosen.dedup();
    chosen.into()
}

fn push(map: &mut Map, text: Vec<u8>, id: u32) {
    let ids = map.entry(text.into_boxed_slice()).or_insert_with(|| Vec::with_capacity(1));
    if ids.last() != Some(&id) {
        ids.push(id);
    }
}

/// A quick hash of bytes.
///
/// The keys come from policies, whose author gains nothing from collisions; a request can only ask,
/// and asking costs at most the longest chain that the policies made.
#[derive(Default)]
struct FastHasher {
    state: u64,
}

/// The golden ratio's bits, as in rustc's own hasher.
const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;

impl FastHasher {
    fn add(&mut self, word: u64) {
        self.state = (self.state.rotate_left(26) ^ word).wrapping_mul(MULTIPLIER);
    }
}

impl Hasher for FastHasher {
    #[inline]
    fn write(&mut self, bytes: &[u8]) {
        let word = |at: usize| bytes.get(at..).and_then(<[u8]>::first_chunk::<8>);
        let Some(last) = bytes.last_chunk::<8>() else {
            let mut short = [0; 8];
            if let Some(start) = short.get_mut(..bytes.len()) {
                start.copy_from_slice(bytes);
            }
            self.add(u64::from_le_bytes(short));
            return;
        };
        // The last word may overlap the one before it; the length is part of the hash.
        for at in (0..bytes.len().saturating_sub(8)).step_by(8) {
            if let Some(word) = word(at) {
                self.add(u64::from_le_bytes(*word));
            }
        }
        self.add(u64::from_le_bytes(*last));
    }

    fn write_usize(&mut self, number: usize) {
        self.add(u64::try_from(number).unwrap_or(u64::MAX));
    }

    fn finish(&self) -> u64 {
        // hashbrown takes its tag from the high bits and the bucket from the low ones.
        self.state ^ self.state.rotate_right(32)
    }
}
