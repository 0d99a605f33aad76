//! Chains verified before: a hash, one comparison, and no signature check.
//!
//! The cache belongs to one [`super::verifier::PeerVerifier`] and dies with it, so an entry is
//! never found under another set of bundles, another revocation list or the other role
//! ([SEC-TLS-4]). It says that a chain is good, never that somebody possesses its key: rustls
//! checks the peer's signature, or the secret of a resumed session, at every handshake.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use mesh_identity::x509::VerifiedSvid;
use quick_cache::sync::Cache;
use quick_cache::{Equivalent, Weighter};
use rustls::pki_types::{CertificateDer, UnixTime};

/// Most memory that verified chains may use, in bytes, by an estimate that errs high: some
/// thousand peers.
const MAX_BYTES: u64 = 4 * 1024 * 1024;

/// Most chains that are expected at once; only sizes the tables.
const EXPECTED_CHAINS: usize = 1024;

/// What an entry costs beside its certificates: the id, the table.
const ENTRY_COST: u64 = 512;

/// Chains that one verifier has accepted.
pub(super) struct Chains {
    seen: Cache<Key, Arc<SeenChain>, Weight>,
}

/// A chain and what its verification said.
#[derive(Debug)]
pub(super) struct SeenChain {
    pub(super) chain: Arc<[CertificateDer<'static>]>,
    pub(super) svid: VerifiedSvid,
}

/// A chain as a handshake presents it, in two parts.
#[derive(Clone, Copy)]
pub(super) struct Presented<'a> {
    pub(super) leaf: &'a CertificateDer<'a>,
    pub(super) intermediates: &'a [CertificateDer<'a>],
}

#[derive(Clone)]
struct Key(Arc<[CertificateDer<'static>]>);

impl Chains {
    pub(super) fn new() -> Self {
        Self { seen: Cache::with_weighter(EXPECTED_CHAINS, MAX_BYTES, Weight) }
    }

    /// The verdict on exactly these certificates in this order, if it still stands.
    ///
    /// It stands while every certificate of the path is valid; outside that time, on either side,
    /// the entry is dropped, so that a clock that is set does not revive it ([SEC-OPS-5]).
    pub(super) fn get(&self, chain: Presented<'_>, now: UnixTime) -> Option<Arc<SeenChain>> {
        let seen = self.seen.get(&chain)?;
        if seen.svid.validity().contains(now) {
            return Some(seen);
        }
        self.seen.remove(&chain);
        None
    }

    pub(super) fn insert(&self, seen: &Arc<SeenChain>) {
        self.seen.insert(Key(Arc::clone(&seen.chain)), Arc::clone(seen));
    }
}

impl fmt::Debug for Chains {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chains").field("seen", &self.seen.len()).finish_non_exhaustive()
    }
}

/// The hash, which the table seeds, only finds the place; [`Equivalent`] compares every byte. It is
/// of all certificates: many chains for one leaf must not meet in one place.
impl Hash for Presented<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(self.leaf);
        self.intermediates.iter().for_each(|one| state.write(one));
    }
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.iter().for_each(|one| state.write(one));
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl Eq for Key {}

impl Equivalent<Key> for Presented<'_> {
    fn equivalent(&self, key: &Key) -> bool {
        key.0.split_first().is_some_and(|(leaf, intermediates)| {
            leaf == self.leaf && intermediates == self.intermediates
        })
    }
}

/// Memory of an entry: its certificates, once.
#[derive(Clone)]
struct Weight;

impl Weighter<Key, Arc<SeenChain>> for Weight {
    fn weight(&self, key: &Key, _: &Arc<SeenChain>) -> u64 {
        let bytes = key.0.iter().fold(0_usize, |sum, one| sum.saturating_add(one.len()));
        u64::try_from(bytes).unwrap_or(u64::MAX).saturating_add(ENTRY_COST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A hash may be met by chance; what is found must still be the same, byte by byte.
    #[test]
    fn sec_tls_4_every_certificate_is_compared() {
        let der = |byte: u8| CertificateDer::from(vec![byte; 4]);
        let key = Key(Arc::from([der(1), der(2)]));
        let same = |leaf: u8, intermediates: &[u8]| {
            let intermediates: Vec<_> = intermediates.iter().map(|byte| der(*byte)).collect();
            Presented { leaf: &der(leaf), intermediates: &intermediates }.equivalent(&key)
        };
        assert!(same(1, &[2]));
        for (leaf, intermediates) in
            [(1, &[][..]), (1, &[3]), (1, &[2, 2]), (2, &[2]), (2, &[1]), (3, &[2])]
        {
            assert!(!same(leaf, intermediates), "{leaf} {intermediates:?}");
        }
        assert!(!same(1, &[1, 2]));
    }
}
