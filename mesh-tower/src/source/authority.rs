//! An authority in the same process as a source of identity.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use mesh_ca::{Authority, Ca, CaError, Next, RotationSchedule};
use mesh_identity::{BundleError, BundleSet, SpiffeId, TrustBundle, X509Svid};
use rustls::pki_types::UnixTime;

use super::identity::{Identity, IdentityFuture, IdentitySource, IdentityUpdate};
use crate::backoff::random;
use crate::clock::{Clock, SystemClock};

/// After a failure it is tried again this much later.
const PAUSE: Duration = Duration::from_secs(1);

/// The longest sleep, so that a clock that was set is noticed ([SEC-OPS-5]).
const NAP: Duration = Duration::from_secs(5);

/// How soon a change of the authority's bundle is noticed: long before it matters, since a new root
/// is published fifteen minutes before it signs.
const LOOK: Duration = Duration::from_secs(1);

/// Who the record says has asked.
const CALLER: &str = "in process";

/// Issues one workload's certificates from an authority that the program embeds, and renews each
/// at half of its life.
pub struct AuthoritySource {
    issuer: Issuer,
    id: SpiffeId,
    ttl: Duration,
    foreign: BundleSet,
    /// What was delivered last.
    held: Option<Held>,
    clock: Arc<dyn Clock>,
    failed: bool,
}

enum Issuer {
    /// It never changes.
    Fixed(Arc<Authority>),
    /// Its keys rotate, and it limits and records.
    Rotating(Arc<Ca>),
}

struct Held {
    svid: Arc<X509Svid>,
    schedule: RotationSchedule,
    home: TrustBundle,
}

impl AuthoritySource {
    /// Certificates of an authority that stays as it is, for `id`, each for `ttl`; zero is the
    /// authority's default. Its own bundle is believed, and those of foreign trust domains that are
    /// given.
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
        Self::with(Issuer::Fixed(authority), id, ttl, foreign)
    }

    /// As [`AuthoritySource::new`], from an authority whose keys rotate: what has changed in its
    /// bundle is delivered within a second, with the certificate that is in force. Its limits, its
    /// policy and its record apply; the caller is `in process`.
    ///
    /// # Errors
    ///
    /// As [`AuthoritySource::new`].
    pub fn following(
        ca: Arc<Ca>,
        id: SpiffeId,
        ttl: Duration,
        foreign: impl IntoIterator<Item = TrustBundle>,
    ) -> Result<Self, BundleError> {
        Self::with(Issuer::Rotating(ca), id, ttl, foreign)
    }

    fn with(
        issuer: Issuer,
        id: SpiffeId,
        ttl: Duration,
        foreign: impl IntoIterator<Item = TrustBundle>,
    ) -> Result<Self, BundleError> {
        let foreign: Vec<_> = foreign.into_iter().collect();
        BundleSet::from_bundles(foreign.iter().cloned().chain([issuer.bundle()]))?;
        let foreign = BundleSet::from_bundles(foreign)?;
        let clock = Arc::new(SystemClock);
        Ok(Self { issuer, id, ttl, foreign, held: None, clock, failed: false })
    }

    /// The clock that certificates are issued by.
    #[must_use]
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Until a certificate is due or the bundle has changed.
    async fn wait(&self) {
        if self.failed {
            tokio::time::sleep(PAUSE).await;
        }
        while let Some(held) = &self.held {
            let now = self.clock.now();
            let Next::Wait(until) = held.schedule.next(now) else { return };
            let most = match &self.issuer {
                Issuer::Fixed(_) => NAP,
                Issuer::Rotating(ca) if ca.bundle() != held.home => return,
                Issuer::Rotating(_) => LOOK,
            };
            let left = Duration::from_secs(until.as_secs().saturating_sub(now.as_secs()));
            tokio::time::sleep(left.min(most)).await;
        }
    }

    fn deliver(&mut self) -> Result<Identity, CaError> {
        let now = self.clock.now();
        let held = match self.held.take() {
            Some(held) if held.schedule.next(now) != Next::Renew => {
                Held { home: self.issuer.bundle(), ..held }
            }
            due => match self.issuer.issue(&self.id, self.ttl, now) {
                Ok(svid) => {
                    // From now, not from `notBefore`, which lies back for peers whose clock is behind.
                    let schedule = RotationSchedule::new(now, svid.not_after(), random());
                    Held { svid: Arc::new(svid), schedule, home: self.issuer.bundle() }
                }
                Err(error) => {
                    self.held = due;
                    return Err(error);
                }
            },
        };
        let bundles = self.foreign.clone().with_bundle(held.home.clone());
        let identity = Identity::new(Arc::clone(&held.svid), Arc::new(bundles));
        self.held = Some(held);
        Ok(identity)
    }
}

impl Issuer {
    fn bundle(&self) -> TrustBundle {
        match self {
            Self::Fixed(authority) => authority.bundle(),
            Self::Rotating(ca) => ca.bundle(),
        }
    }

    fn issue(&self, id: &SpiffeId, ttl: Duration, now: UnixTime) -> Result<X509Svid, CaError> {
        match self {
            Self::Fixed(authority) => authority.issue_svid(id, ttl, now),
            Self::Rotating(ca) => ca.issue_svid(CALLER, id, ttl, now),
        }
    }
}

impl IdentitySource for AuthoritySource {
    fn next(&mut self) -> IdentityFuture<'_> {
        Box::pin(async move {
            self.wait().await;
            let delivered = self.deliver();
            self.failed = delivered.is_err();
            match delivered {
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
    use mesh_ca::{CaSettings, NoLog};

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

    /// A new root is believed before it signs, with the certificate that is in force; what it signs
    /// comes when that is due.
    #[tokio::test]
    async fn sec_ca_6_a_rotation_is_followed() {
        let home = "cluster.local".parse().unwrap();
        let now = SystemClock.now();
        let ca = Ca::new(&home, CaSettings::new().unwrap(), NoLog, now).unwrap();
        let ca = Arc::new(ca);
        let id: SpiffeId = "spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap();
        let life = Duration::from_secs(600);
        let partner = TrustBundle::new("partner.example".parse().unwrap());
        let twice = [partner.clone(), ca.bundle()];
        assert!(AuthoritySource::following(Arc::clone(&ca), id.clone(), life, twice).is_err());
        let source = AuthoritySource::following(Arc::clone(&ca), id, life, [partner]);
        let mut source = source.unwrap();
        let mut next = async || {
            let IdentityUpdate::Identity(identity) = source.next().await else {
                panic!("the authority issues")
            };
            identity
        };
        let roots = |identity: &Identity| {
            assert!(identity.bundles.get("partner.example").is_some());
            identity.bundles.get("cluster.local").unwrap().x509_authorities().len()
        };
        let first = next().await;
        assert_eq!(roots(&first), 1);
        ca.rotate_root_now(now).unwrap();
        let second = next().await;
        assert_eq!(roots(&second), 2);
        assert!(Arc::ptr_eq(&first.svid, &second.svid), "nothing was due");
    }
}
