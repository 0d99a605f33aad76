//! An authority in the same process as a source of identity.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use mesh_ca::{Authority, CaError, Next, RotationSchedule};
use mesh_identity::{BundleError, BundleSet, SpiffeId, TrustBundle};

use super::identity::{Identity, IdentityFuture, IdentitySource, IdentityUpdate};
use crate::backoff::random;
use crate::clock::{Clock, SystemClock};

/// After a failure it is tried again this much later.
const PAUSE: Duration = Duration::from_secs(1);

/// The longest sleep, so that a clock that was set is noticed ([SEC-OPS-5]).
const NAP: Duration = Duration::from_secs(5);

/// Issues one workload's certificates from an [`Authority`] that the program embeds, and renews each
/// at half of its life.
pub struct AuthoritySource {
    authority: Arc<Authority>,
    id: SpiffeId,
    ttl: Duration,
    bundles: Arc<BundleSet>,
    clock: Arc<dyn Clock>,
    schedule: Option<RotationSchedule>,
    failed: bool,
}

impl AuthoritySource {
    /// Certificates for `id`, each for `ttl`; zero is the authority's default. The authority's own
    /// bundle is believed, and those of foreign trust domains that are given.
    ///
    /// # Errors
    ///
    /// Two bundles of one trust domain.
    pub fn new(
        authority: Arc<Authority>,
        id: SpiffeId,
        ttl: Duration,
        foreign: impl IntoIterator<Item = TrustBundle>,
    ) -> Result<Self, BundleError> {
        let bundles = std::iter::once(authority.bundle()).chain(foreign);
        let bundles = Arc::new(BundleSet::from_bundles(bundles)?);
        let clock = Arc::new(SystemClock);
        Ok(Self { authority, id, ttl, bundles, clock, schedule: None, failed: false })
    }

    /// The clock that certificates are issued by.
    #[must_use]
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    fn issue(&mut self) -> Result<Identity, CaError> {
        let now = self.clock.now();
        let svid = self.authority.issue_svid(&self.id, self.ttl, now)?;
        // From now, not from `notBefore`, which lies back for peers whose clock is behind.
        self.schedule = Some(RotationSchedule::new(now, svid.not_after(), random()));
        Ok(Identity::new(Arc::new(svid), Arc::clone(&self.bundles)))
    }
}

impl IdentitySource for AuthoritySource {
    fn next(&mut self) -> IdentityFuture<'_> {
        Box::pin(async move {
            if self.failed {
                tokio::time::sleep(PAUSE).await;
            }
            loop {
                let now = self.clock.now();
                let next = self.schedule.map_or(Next::Renew, |schedule| schedule.next(now));
                let Next::Wait(until) = next else { break };
                let left = Duration::from_secs(until.as_secs().saturating_sub(now.as_secs()));
                tokio::time::sleep(left.min(NAP)).await;
            }
            let issued = self.issue();
            self.failed = issued.is_err();
            match issued {
                Ok(identity) => IdentityUpdate::Identity(identity),
                Err(error) => IdentityUpdate::Failed(Box::new(error)),
            }
        })
    }
}

impl fmt::Debug for AuthoritySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthoritySource").field("id", &self.id).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Renewed at half the life, and before anything has expired.
    #[tokio::test]
    async fn certificates_are_renewed_in_time() {
        let home = "cluster.local".parse().unwrap();
        let now = SystemClock.now();
        let authority = Authority::new_root(&home, Duration::from_secs(86_400), now).unwrap();
        let id: SpiffeId = "spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap();
        let life = Duration::from_secs(4);
        let mut source = AuthoritySource::new(Arc::new(authority), id.clone(), life, []).unwrap();
        let mut ends = Vec::new();
        for _ in 0..2 {
            let IdentityUpdate::Identity(identity) = source.next().await else {
                panic!("the authority issues")
            };
            assert_eq!(identity.svid.id(), &id);
            assert!(identity.bundles.get("cluster.local").is_some());
            ends.push(identity.svid.not_after().as_secs());
        }
        let renewed = SystemClock.now().as_secs();
        assert!(renewed < ends[0] && ends[1] > ends[0], "{renewed} {ends:?}");
    }
}
