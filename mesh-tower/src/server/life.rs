//! How long an accepted connection may live, and how it ends.

use std::fmt;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::limits::Limits;
use crate::clock::monotonic;
use crate::connection::{ConnectionInfo, Security};
use crate::custom::Answers;
use crate::cut::Cutter;
use crate::expiry::Expiry;
use crate::guard;
use crate::mesh::Mesh;
use crate::snapshot::Snapshot;

/// Why a connection is ended from our side.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum End {
    /// The peer's certificate has ended ([SEC-TLS-12]).
    Expired,
    /// The bundle lost the authority that vouched for the peer, or a certificate of its chain was
    /// revoked ([SEC-TLS-13]).
    Distrusted,
    /// The port's mode no longer admits such connections ([SEM-STRICT-18]).
    Mode,
    /// The policies no longer admit what the connection is used for ([SEM-STRICT-18]).
    Denied,
    /// Our own identity was withdrawn.
    Withdrawn,
    /// The connection is as old as connections may get.
    Age,
    /// No request has been on the connection for long.
    Idle,
    /// The server stops.
    Stop,
}

impl End {
    /// Whether requests that come in from now on are refused. Otherwise they are served until the
    /// connection is gone.
    fn refuses_requests(self) -> bool {
        match self {
            Self::Expired | Self::Distrusted | Self::Mode | Self::Denied | Self::Withdrawn => true,
            Self::Age | Self::Idle | Self::Stop => false,
        }
    }

    /// From the wish to end the connection to its forced end.
    pub(super) fn drain(self, limits: &Limits) -> Duration {
        match self {
            Self::Distrusted => limits.distrusted_drain,
            Self::Denied => limits.denied_drain.unwrap_or_default(),
            Self::Expired | Self::Mode | Self::Withdrawn | Self::Age | Self::Idle | Self::Stop => {
                limits.drain
            }
        }
    }
}

/// The reason, for logs and response code details.
impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Expired => "peer_certificate_expired",
            Self::Distrusted => "peer_no_longer_trusted",
            Self::Mode => "mtls_mode_changed",
            Self::Denied => "denied_by_new_policies",
            Self::Withdrawn => "identity_withdrawn",
            Self::Age => "max_connection_age",
            Self::Idle => "connection_idle",
            Self::Stop => "server_stops",
        })
    }
}

/// Watches over one accepted connection: says when it must begin to end.
#[derive(Debug)]
pub(crate) struct Life {
    mesh: Mesh,
    info: ConnectionInfo,
    expiry: Expiry,
    age: Option<Instant>,
    /// The trust that the peer's chain was last verified with.
    verified_with: u64,
    /// The configuration that last admitted the connection as a whole, where it is judged as one.
    admitted_by: Option<u64>,
    /// What external authorizers have said of it.
    answers: Answers,
    /// When the next token ends of those that requests run on.
    token: Expiry,
    stopped: watch::Receiver<bool>,
    /// Nothing once somebody cuts with it.
    cutter: Option<Cutter>,
}

impl Life {
    /// Begins with a connection that `snapshot` has admitted.
    pub(super) fn new(
        mesh: &Mesh,
        snapshot: &Snapshot,
        info: ConnectionInfo,
        cutter: Cutter,
        stopped: watch::Receiver<bool>,
    ) -> Self {
        let age = mesh.limits().connection_age;
        Self {
            mesh: mesh.clone(),
            expiry: Expiry::new(info.ends()),
            info,
            age: age.and_then(|age| monotonic().checked_add(age)),
            verified_with: snapshot.trust,
            admitted_by: None,
            answers: Answers::default(),
            token: Expiry::new(None),
            stopped,
            cutter: Some(cutter),
        }
    }

    /// The connection was admitted as a whole, and is judged as one from now on ([SEM-TCP-10]).
    /// External authorizers are not asked again; one that was not asked at all ends it
    /// ([SEM-EXT-15]).
    pub(super) fn admitted_by(&mut self, snapshot: &Snapshot, answers: Answers) {
        self.admitted_by = Some(snapshot.generation);
        self.answers = answers;
    }

    /// Resolves when the connection must begin to end. Where the reason is one, the layer refuses
    /// every request on it from then on. It may be dropped and called again.
    pub(crate) async fn over(&mut self) -> End {
        let end = self.wait().await;
        if end.refuses_requests() {
            self.info.end(end);
        }
        tracing::debug!(peer = %self.info.peer_address(), %end, "connection is being ended");
        end
    }

    /// Watches over a connection that somebody else drives, until it is gone; cuts it when it has
    /// not ended in time by itself.
    pub(crate) async fn watch(mut self) {
        let Some(mut cutter) = self.cutter.take() else { return };
        let end = tokio::select! {
            end = self.over() => end,
            () = cutter.gone() => return,
        };
        let drain = tokio::time::sleep(end.drain(self.mesh.limits()));
        tokio::select! {
            () = drain => cutter.cut(),
            () = cutter.gone() => {}
        }
    }

    async fn wait(&mut self) -> End {
        let mut changes = self.mesh.changes();
        loop {
            // What changed since the handshake began, or while nobody waited, counts too.
            if let Some(end) = self.judge() {
                return end;
            }
            self.token.set(self.info.running().next_end());
            tokio::select! {
                _ = self.stopped.wait_for(|stops| *stops) => return End::Stop,
                () = self.expiry.reached(&self.mesh) => return End::Expired,
                () = sleep_until(self.age) => return End::Age,
                () = self.token.reached(&self.mesh) => {}
                () = self.info.running().added() => {}
                // The sender lives as long as our mesh.
                _ = changes.changed() => {}
            }
        }
    }

    /// Whether the configuration in force still admits the connection.
    fn judge(&mut self) -> Option<End> {
        let snapshot = self.mesh.snapshot();
        let mode = snapshot.modes.mode(self.info.local_address().port());
        if !self.info.fits(mode) {
            return Some(End::Mode);
        }
        if let Some(end) = self.judge_proof(&snapshot) {
            return Some(end);
        }
        if self.info.running().judge(&self.mesh, &snapshot, &self.info) {
            return Some(End::Denied);
        }
        if self.admitted_by.is_some_and(|by| by != snapshot.generation)
            && self.mesh.limits().denied_drain.is_some()
        {
            let admitted =
                guard::admit_connection(&self.mesh, &snapshot, &self.info, &self.answers);
            if let Err(detail) = admitted {
                let peer = self.info.peer_address();
                tracing::info!(%peer, detail, "open connection is no longer admitted");
                return Some(End::Denied);
            }
            self.admitted_by = Some(snapshot.generation);
        }
        None
    }

    /// Whether the peer's proof still counts.
    fn judge_proof(&mut self, snapshot: &Snapshot) -> Option<End> {
        if matches!(self.info.security(), Security::Plaintext) {
            return None;
        }
        if snapshot.withdrawn {
            return Some(End::Withdrawn);
        }
        if self.verified_with != snapshot.trust {
            let peer = self.info.peer()?;
            // The certificate's own end has its time and grace; here others' changes count.
            let now = self.mesh.clock().now();
            let now = peer.not_after().map_or(now, |end| now.min(end));
            if snapshot.server_tls.recheck(peer, now).is_err() {
                return Some(End::Distrusted);
            }
            self.verified_with = snapshot.trust;
        }
        None
    }
}

async fn sleep_until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment.into()).await,
        None => std::future::pending().await,
    }
}
