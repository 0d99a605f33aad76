//! The authority as its APIs share it: clock, trust, workloads, and the driver of its rotation.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mesh_identity::BundleSet;
use rustls_pki_types::UnixTime;
use tokio::sync::watch;
use tonic::Status;

use super::entry::WorkloadEntries;
use crate::error::CaError;
use crate::issue::Ca;

/// Why a token is refused, for the authority's own log: callers are not told.
pub type CheckError = Box<dyn StdError + Send + Sync>;

/// The longest sleep of the driver: so long does it take until streams have a bundle that somebody
/// else changed, or a clock that was set is noticed.
const NAP: Duration = Duration::from_secs(1);

/// After a failure it is tried again this much later.
const PAUSE: Duration = Duration::from_secs(1);

/// A certificate authority and what its APIs need to know. Cloning shares all of it.
#[derive(Clone)]
pub struct CaService {
    inner: Arc<Inner>,
}

struct Inner {
    ca: Arc<Ca>,
    clock: Box<dyn Fn() -> UnixTime + Send + Sync>,
    foreign: Mutex<BundleSet>,
    trust: watch::Sender<Arc<BundleSet>>,
    entries: watch::Sender<Arc<WorkloadEntries>>,
    issuer: Option<String>,
}

impl CaService {
    /// Serves an authority by this clock. `issuer`, an https URL without a trailing slash, becomes
    /// `iss` of its tokens, for OIDC relying parties.
    pub fn new(
        ca: Arc<Ca>,
        issuer: Option<String>,
        clock: impl Fn() -> UnixTime + Send + Sync + 'static,
    ) -> Self {
        let trust = Arc::new(BundleSet::default().with_bundle(ca.bundle()));
        Self {
            inner: Arc::new(Inner {
                ca,
                clock: Box::new(clock),
                foreign: Mutex::new(BundleSet::default()),
                trust: watch::Sender::new(trust),
                entries: watch::Sender::new(Arc::default()),
                issuer,
            }),
        }
    }

    /// The authority.
    #[must_use]
    pub fn ca(&self) -> &Arc<Ca> {
        &self.inner.ca
    }

    /// The bundles of other trust domains, which workloads get as federated ones. One of the
    /// authority's own trust domain is not taken from here.
    pub fn set_foreign_bundles(&self, bundles: BundleSet) {
        *self.inner.foreign.lock().unwrap_or_else(PoisonError::into_inner) = bundles;
        self.publish();
    }

    /// Which process has which identity. Open streams get what has changed; one of a process that
    /// has none any more ends with `PermissionDenied`.
    pub fn set_entries(&self, entries: WorkloadEntries) {
        self.inner.entries.send_replace(Arc::new(entries));
    }

    /// Rotates keys when they are due, for ever, and tells open streams. What was done and what
    /// failed is an event of `tracing`; a step that fails is tried again.
    pub async fn drive(&self) {
        loop {
            let now = self.now();
            let wait = match self.blocking(move |ca| ca.rotate(now)).await {
                Ok((events, until)) => {
                    for event in events {
                        let (key, step) = (event.key, event.step);
                        tracing::info!(?key, ?step, at = event.at.as_secs(), "rotation");
                    }
                    let left = until.as_secs().saturating_sub(now.as_secs());
                    Duration::from_secs(left).min(NAP)
                }
                Err(error) => {
                    tracing::error!(%error, "a step of the rotation failed; it is tried again");
                    PAUSE
                }
            };
            self.publish();
            tokio::time::sleep(wait).await;
        }
    }

    /// Tells open streams whom to believe, when it has changed.
    fn publish(&self) {
        let foreign = self.inner.foreign.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let trust = foreign.with_bundle(self.inner.ca.bundle());
        self.inner.trust.send_if_modified(|held| {
            let changed = **held != trust;
            if changed {
                *held = Arc::new(trust);
            }
            changed
        });
    }

    pub(super) fn now(&self) -> UnixTime {
        (self.inner.clock)()
    }

    pub(super) fn issuer(&self) -> Option<&str> {
        self.inner.issuer.as_deref()
    }

    pub(super) fn trust(&self) -> watch::Receiver<Arc<BundleSet>> {
        self.inner.trust.subscribe()
    }

    pub(super) fn entries(&self) -> watch::Receiver<Arc<WorkloadEntries>> {
        self.inner.entries.subscribe()
    }

    /// Runs what computes, writes the log and may ask a signer elsewhere, where it may block.
    pub(super) async fn blocking<T: Send + 'static>(
        &self,
        run: impl FnOnce(&Ca) -> Result<T, CaError> + Send + 'static,
    ) -> Result<T, CaError> {
        let ca = Arc::clone(&self.inner.ca);
        let joined = tokio::task::spawn_blocking(move || run(&ca)).await;
        // It panics for nobody; a runtime that shuts down runs nothing any more.
        joined.unwrap_or_else(|error| Err(CaError::State(io::Error::other(error))))
    }

    /// Issues with [`CaService::blocking`]; what is refused is recorded, and the caller told.
    pub(super) async fn issue<T: Send + 'static>(
        &self,
        caller: &str,
        run: impl FnOnce(&Ca) -> Result<T, CaError> + Send + 'static,
    ) -> Result<T, Status> {
        self.blocking(run).await.map_err(|error| {
            tracing::warn!(caller, %error, "not issued");
            super::grpc::status(&error)
        })
    }
}

impl fmt::Debug for CaService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CaService").field("ca", &self.inner.ca).finish_non_exhaustive()
    }
}
