//! The certificates of one process, kept fresh for as long as its stream is open.

use std::sync::Arc;
use std::time::Duration;

use mesh_identity::workload_api::NamedSvid;
use mesh_identity::{BundleSet, SpiffeId};
use ring::rand::{SecureRandom as _, SystemRandom};
use rustls_pki_types::UnixTime;
use tokio::sync::watch;
use tonic::Status;

use super::entry::{PeerCredentials, WorkloadEntries, WorkloadEntry};
use super::service::CaService;
use crate::profile::after;
use crate::rotation::{Next, RotationSchedule};

/// The longest sleep, so that a clock that was set is noticed.
const NAP: Duration = Duration::from_secs(5);

/// After a renewal that failed it is tried again this much later; what is held serves meanwhile.
const PAUSE: Duration = Duration::from_secs(5);

/// What a process has at the moment, and when that changes. Its keys belong to this stream alone.
pub(super) struct Identities {
    service: CaService,
    peer: PeerCredentials,
    caller: Arc<str>,
    trust: watch::Receiver<Arc<BundleSet>>,
    entries: watch::Receiver<Arc<WorkloadEntries>>,
    default_id: Option<SpiffeId>,
    svids: Vec<NamedSvid>,
    schedules: Vec<RotationSchedule>,
    /// Nothing is renewed before this time, because something has just failed.
    pause: UnixTime,
}

impl Identities {
    pub(super) fn new(service: &CaService, peer: PeerCredentials) -> Self {
        Self {
            service: service.clone(),
            peer,
            caller: peer.to_string().into(),
            trust: service.trust(),
            entries: service.entries(),
            default_id: None,
            svids: Vec::new(),
            schedules: Vec::new(),
            pause: UnixTime::since_unix_epoch(Duration::ZERO),
        }
    }

    pub(super) fn caller(&self) -> &Arc<str> {
        &self.caller
    }

    /// The identity of its first entry, whether or not a certificate of it is held.
    pub(super) fn default_id(&self) -> Option<&SpiffeId> {
        self.default_id.as_ref()
    }

    /// The identities, the default one first; none before the first [`Identities::refresh`].
    pub(super) fn svids(&self) -> &[NamedSvid] {
        &self.svids
    }

    pub(super) fn bundles(&self) -> Arc<BundleSet> {
        Arc::clone(&self.trust.borrow())
    }

    /// The bundles; a change is one of what comes after them.
    pub(super) fn seen_bundles(&mut self) -> Arc<BundleSet> {
        Arc::clone(&self.trust.borrow_and_update())
    }

    /// Who the process is by now.
    ///
    /// # Errors
    ///
    /// `PermissionDenied` for one that nobody registered.
    pub(super) fn registered(&mut self) -> Result<Vec<WorkloadEntry>, Status> {
        let entries = self.entries.borrow_and_update().of(&self.peer);
        if entries.is_empty() {
            return Err(Status::permission_denied("no identity issued"));
        }
        Ok(entries)
    }

    /// Waits until something has changed or is due for renewal. It may be dropped and called again.
    pub(super) async fn due(&mut self) {
        loop {
            let now = self.service.now();
            let next = self.schedules.iter().map(|schedule| match schedule.next(now) {
                Next::Wait(until) => until,
                Next::Renew => now,
            });
            let left = match next.min() {
                Some(next) => next.max(self.pause).as_secs().saturating_sub(now.as_secs()),
                None => u64::MAX,
            };
            if left == 0 {
                return;
            }
            tokio::select! {
                // The service, which we hold, has the senders.
                _changed = self.trust.changed() => return,
                _changed = self.entries.changed() => return,
                () = tokio::time::sleep(Duration::from_secs(left).min(NAP)) => {}
            }
        }
    }

    /// Issues what is wanted and missing or due, and drops what is withdrawn. `wanted` is asked with
    /// an identity's place, the default one's being 0.
    ///
    /// # Errors
    ///
    /// What the authority answers, when there is nothing valid to fall back on.
    pub(super) async fn refresh(
        &mut self,
        wanted: impl Fn(usize, &SpiffeId) -> bool,
    ) -> Result<(), Status> {
        self.trust.mark_unchanged();
        let entries = self.registered()?;
        self.default_id = entries.first().map(|entry| entry.id.clone());
        let mut old: Vec<_> = self.svids.drain(..).zip(self.schedules.drain(..)).collect();
        let now = self.service.now();
        for (at, entry) in entries.into_iter().enumerate() {
            if !wanted(at, &entry.id) {
                continue;
            }
            let held = old.iter().position(|(held, _)| *held.svid.id() == entry.id);
            let held = held.map(|at| old.swap_remove(at));
            let (mut svid, schedule) = match held {
                Some(fresh) if fresh.1.next(now) != Next::Renew => fresh,
                held => self.renew(&entry, held, now).await?,
            };
            svid.hint = entry.hint;
            self.svids.push(svid);
            self.schedules.push(schedule);
        }
        Ok(())
    }

    async fn renew(
        &mut self,
        entry: &WorkloadEntry,
        held: Option<(NamedSvid, RotationSchedule)>,
        now: UnixTime,
    ) -> Result<(NamedSvid, RotationSchedule), Status> {
        let (caller, id, ttl) = (Arc::clone(&self.caller), entry.id.clone(), entry.ttl);
        let issued =
            self.service.issue(&self.caller, move |ca| ca.issue_svid(&caller, &id, ttl, now));
        match (issued.await, held) {
            (Ok(svid), _) => {
                // From now, not from `notBefore`, which lies back.
                let schedule = RotationSchedule::new(now, svid.not_after(), random());
                Ok((NamedSvid { svid, hint: String::new() }, schedule))
            }
            (Err(_told), Some(held)) if held.0.svid.not_after() > now => {
                self.pause = after(now, PAUSE);
                Ok(held)
            }
            (Err(status), _) => Err(status),
        }
    }
}

/// Spreads renewals.
pub(super) fn random() -> u64 {
    let mut bytes = [0; 8];
    // Without randomness there is no spread, and nothing is issued either.
    SystemRandom::new().fill(&mut bytes).map_or(0, |()| u64::from_ne_bytes(bytes))
}
