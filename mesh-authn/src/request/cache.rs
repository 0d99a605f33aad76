//! Tokens seen before: a hash, one comparison, and no signature check.
//!
//! The cache belongs to one [`super::RequestAuthenticator`], and dies with it: a changed rule or
//! key set means a new authenticator, so nothing that they no longer accept can be found here
//! ([SEC-JWT-11]).

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use quick_cache::sync::Cache;
use quick_cache::{Equivalent, Weighter};

use super::authenticator::Accepted;

/// Most memory that cached tokens may use, in bytes, by an estimate that errs high.
pub const MAX_CACHE_BYTES: u64 = 16 * 1024 * 1024;

/// Most tokens that are cached at once, by rule: each weighs more than 1 KiB.
pub const MAX_CACHED_TOKENS: u64 = MAX_CACHE_BYTES / ENTRY_COST;

/// Longest time in seconds for which a signature check is believed without a new one.
pub const MAX_CACHE_SECONDS: u64 = 300;

/// Most tokens that are expected at once; only sizes the tables.
const EXPECTED_TOKENS: usize = 4096;

/// What an entry costs beside its text: claims parsed, the policy's view of them, the table.
const ENTRY_COST: u64 = 1024;

/// Bytes hashed, from the token's end. These are signature, which nobody chooses freely, so that
/// different tokens collide by chance only; and a collision costs one comparison.
const HASHED_BYTES: usize = 32;

/// Accepted tokens by rule and text.
pub(super) struct TokenCache {
    entries: Cache<Key, Entry, Weight>,
}

/// A token accepted by a rule, and until when the cache may say so.
#[derive(Clone)]
pub(super) struct Entry {
    pub(super) accepted: Arc<Accepted>,
    pub(super) until: u64,
}

#[derive(Clone, Eq, PartialEq)]
struct Key {
    rule: usize,
    token: Box<[u8]>,
}

/// A [`Key`] that borrows, so that looking up does not allocate.
struct Lookup<'a> {
    rule: usize,
    token: &'a [u8],
}

impl TokenCache {
    pub(super) fn new() -> Self {
        Self { entries: Cache::with_weighter(EXPECTED_TOKENS, MAX_CACHE_BYTES, Weight) }
    }

    /// The entry of exactly this token under exactly this rule. One that is too old is dropped.
    pub(super) fn get(&self, rule: usize, token: &[u8], now: u64) -> Option<Arc<Accepted>> {
        let lookup = Lookup { rule, token };
        let entry = self.entries.get(&lookup)?;
        if entry.until < now || now.saturating_add(MAX_CACHE_SECONDS) < entry.until {
            // Expired, or the clock went back by more than an entry lives ([SEC-OPS-5]).
            self.entries.remove(&lookup);
            return None;
        }
        Some(entry.accepted)
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn insert(&self, rule: usize, token: &[u8], entry: Entry) {
        self.entries.insert(Key { rule, token: token.into() }, entry);
    }
}

/// Memory of an entry: its text, and three times that for the claims in it.
#[derive(Clone)]
struct Weight;

impl Weighter<Key, Entry> for Weight {
    fn weight(&self, key: &Key, _: &Entry) -> u64 {
        let text = u64::try_from(key.token.len()).unwrap_or(u64::MAX);
        text.saturating_mul(4).saturating_add(ENTRY_COST)
    }
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Lookup { rule: self.rule, token: &self.token }.hash(state);
    }
}

impl Hash for Lookup<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.rule.hash(state);
        let start = self.token.len().saturating_sub(HASHED_BYTES);
        self.token.get(start..).unwrap_or_default().hash(state);
    }
}

impl Equivalent<Key> for Lookup<'_> {
    fn equivalent(&self, key: &Key) -> bool {
        self.rule == key.rule && *self.token == *key.token
    }
}
