//! Tokens seen before: a hash, one comparison, and no signature check.
//!
//! The cache belongs to one [`super::RequestAuthenticator`], and dies with it: a changed rule or
//! key set means a new authenticator, so nothing that they no longer accept can be found here
//! ([SEC-JWT-11]).

use std::hash::{BuildHasher as _, BuildHasherDefault, Hash, Hasher, RandomState};
use std::sync::Arc;

use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{Equivalent, Weighter};

use super::authenticator::Accepted;
use super::json::allocated;

/// Most memory that cached tokens may use, in bytes, by an estimate that errs high. A token with
/// 1 kB of claims takes about 10 kB: its text, its claims parsed, and the table.
pub const MAX_CACHE_BYTES: u64 = 32 * 1024 * 1024;

/// Most tokens that are cached at once, by rule; the smallest takes more than 1 KiB.
pub const MAX_CACHED_TOKENS: u64 = MAX_CACHE_BYTES / 1024;

/// Longest time in seconds for which a signature check is believed without a new one.
pub const MAX_CACHE_SECONDS: u64 = 300;

/// Most tokens that are expected at once; only sizes the tables.
const EXPECTED_TOKENS: usize = 4096;

/// What every entry takes: a place in the tables, which grow by doubling and remember entries that
/// had to go; [`Accepted`], and the token in it, which is shared with requests.
const FIXED: usize =
    3 * (size_of::<Key>() + size_of::<Entry>() + 40) + (size_of::<Accepted>() + 32) + 160;

/// Bytes hashed, from the token's end. These are signature, which nobody chooses freely, so that
/// different tokens collide by chance only; and a collision costs one comparison. The rule is
/// compared too, but not hashed: a token is good for few rules.
const HASHED_BYTES: usize = 16;

/// Secret numbers of this cache: nobody outside can tell which tokens collide, and only tokens that
/// were accepted are kept.
struct Seed([u64; 2]);

impl Seed {
    fn new() -> Self {
        let random = RandomState::new();
        Self([random.hash_one(0), random.hash_one(1)])
    }

    /// A product of two secret sums, folded: each bit of the text reaches all bits of the hash.
    fn hash(&self, tail: [u8; HASHED_BYTES]) -> u64 {
        let Self([first, second]) = *self;
        let text = u128::from_le_bytes(tail) ^ (u128::from(first) | u128::from(second) << 64);
        let [low, high] = halves(text);
        let [low, high] = halves(u128::from(low).wrapping_mul(u128::from(high)));
        low ^ high
    }
}

/// The lower half and the upper one.
fn halves(number: u128) -> [u64; 2] {
    // Both always fit.
    [number & u128::from(u64::MAX), number >> 64].map(|half| half.try_into().unwrap_or_default())
}

/// Accepted tokens by rule and text.
pub(super) struct TokenCache {
    entries: Cache<Key, Entry, Weight, Hashed>,
    seed: Seed,
}

/// A token accepted by a rule, and until when the cache may say so.
#[derive(Clone)]
pub(super) struct Entry {
    accepted: Arc<Accepted>,
    until: u64,
    /// Bytes, without the token's text.
    memory: u64,
}

impl Entry {
    /// `memory` is what the accepted token keeps on the heap beside itself and its text.
    pub(super) fn new(accepted: Arc<Accepted>, until: u64, memory: usize) -> Self {
        let memory = memory.saturating_add(FIXED);
        Self { accepted, until, memory: u64::try_from(memory).unwrap_or(u64::MAX) }
    }
}

/// What an entry is kept under. Equal keys have equal hashes; all else is compared.
#[derive(Clone, Eq, PartialEq)]
struct Key {
    hash: u64,
    rule: usize,
    token: Box<[u8]>,
}

/// A [`Key`] that borrows, so that looking up does not allocate.
#[derive(Clone, Copy)]
pub(super) struct Lookup<'a> {
    hash: u64,
    rule: usize,
    token: &'a [u8],
}

impl TokenCache {
    pub(super) fn new() -> Self {
        let hashed = Hashed::default();
        let entries = Cache::with(
            EXPECTED_TOKENS,
            MAX_CACHE_BYTES,
            Weight,
            hashed,
            DefaultLifecycle::default(),
        );
        Self { entries, seed: Seed::new() }
    }

    /// What to look for. The hash is made once, of the token as it came: in its copy, which is
    /// still on its way to memory, reading would have to wait.
    pub(super) fn lookup<'a>(&self, rule: usize, token: &'a [u8]) -> Lookup<'a> {
        // What is shorter is no token.
        let tail = token.last_chunk().copied().unwrap_or_default();
        Lookup { hash: self.seed.hash(tail), rule, token }
    }

    /// The entry of exactly this token under exactly this rule. One that is too old is dropped.
    pub(super) fn get(&self, lookup: &Lookup<'_>, now: u64) -> Option<Arc<Accepted>> {
        let entry = self.entries.get(lookup)?;
        if entry.until < now || now.saturating_add(MAX_CACHE_SECONDS) < entry.until {
            // Expired, or the clock went back by more than an entry lives ([SEC-OPS-5]).
            self.entries.remove(lookup);
            return None;
        }
        Some(entry.accepted)
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn memory(&self) -> u64 {
        self.entries.weight()
    }

    pub(super) fn insert(&self, lookup: &Lookup<'_>, entry: Entry) {
        let Lookup { hash, rule, token } = *lookup;
        self.entries.insert(Key { hash, rule, token: token.into() }, entry);
    }
}

/// The memory of an entry in bytes.
#[derive(Clone)]
struct Weight;

impl Weighter<Key, Entry> for Weight {
    fn weight(&self, key: &Key, entry: &Entry) -> u64 {
        let text = u64::try_from(allocated(key.token.len())).unwrap_or(u64::MAX);
        entry.memory.saturating_add(text)
    }
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

impl Hash for Lookup<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

impl Equivalent<Key> for Lookup<'_> {
    fn equivalent(&self, key: &Key) -> bool {
        self.hash == key.hash && self.rule == key.rule && *self.token == *key.token
    }
}

type Hashed = BuildHasherDefault<AsItIs>;

/// Takes a hash for what it is.
#[derive(Default)]
struct AsItIs(u64);

impl Hasher for AsItIs {
    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    fn write(&mut self, bytes: &[u8]) {
        // Not asked for; still no two texts are taken for each other, which are compared.
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
