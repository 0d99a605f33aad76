//! How long a connection to a server is used, and how it ends.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper_util::client::legacy::connect::CaptureConnection;
use mesh_identity::VerifiedPeer;
use mesh_identity::x509::CertificateProfile;
use rustls::pki_types::UnixTime;
use tokio::sync::watch;

use crate::cut::Cutter;
use crate::expiry::Expiry;
use crate::mesh::Mesh;
use crate::snapshot::Snapshot;

/// Whether further requests may go over a connection.
#[derive(Debug)]
pub(super) struct Reuse {
    retired: AtomicBool,
    /// The pool's handle of the connection, with which the pool is told.
    pooled: Mutex<Option<CaptureConnection>>,
    /// Closed when the connection is gone.
    lives: watch::Receiver<()>,
}

impl Reuse {
    /// For a connection that lives as long as the sender.
    pub(super) fn new() -> (Arc<Self>, watch::Sender<()>) {
        let (alive, lives) = watch::channel(());
        let reuse = Self { retired: AtomicBool::new(false), pooled: Mutex::default(), lives };
        (Arc::new(reuse), alive)
    }

    /// Resolves when the connection is gone.
    pub(super) async fn gone(&self) {
        // Nothing is ever sent.
        self.lives.clone().changed().await.ok();
    }

    pub(super) fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Acquire)
    }

    /// Takes the pool's handle, known with the connection's first answer.
    pub(super) fn pooled(&self, connection: &CaptureConnection) {
        let mut pooled = self.pooled.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_retired() {
            poison(connection);
        } else if pooled.is_none() {
            *pooled = Some(connection.clone());
        }
    }

    fn retire(&self) {
        let mut pooled = self.pooled.lock().unwrap_or_else(PoisonError::into_inner);
        self.retired.store(true, Ordering::Release);
        if let Some(connection) = pooled.take() {
            poison(&connection);
        }
    }
}

/// The pool gives a poisoned connection to nobody; what is being asked on it goes on.
fn poison(connection: &CaptureConnection) {
    if let Some(connection) = connection.connection_metadata().as_ref() {
        connection.poison();
    }
}

/// Watches over one connection to a server ([SEC-TLS-12], [SEC-TLS-13]).
pub(super) struct ClientLife {
    mesh: Mesh,
    peer: VerifiedPeer,
    reuse: Arc<Reuse>,
    /// Dropped with the life, which ends with the connection.
    _alive: watch::Sender<()>,
    /// The trust that the server's chain was last verified with, and our own identity shown.
    verified_with: u64,
    retire: Expiry,
    end: Expiry,
}

impl ClientLife {
    pub(super) fn new(
        mesh: Mesh,
        snapshot: &Snapshot,
        peer: VerifiedPeer,
        (reuse, alive): (Arc<Reuse>, watch::Sender<()>),
    ) -> Self {
        let own = nearly_over(snapshot.svid.not_before(), snapshot.svid.not_after());
        let leaf = peer.chain().first().map(|leaf| CertificateProfile::parse(leaf));
        let servers = match (leaf, peer.not_after()) {
            (Some(Ok(leaf)), Some(end)) => nearly_over(leaf.validity().not_before(), end),
            // A verified chain parses; were it not so, the connection is used once.
            (Some(Err(_)) | None, _) | (_, None) => own,
        };
        let retire = Expiry::new(Some(own.min(servers)));
        let end = Expiry::new(peer.not_after());
        let verified_with = snapshot.trust;
        Self { mesh, peer, reuse, _alive: alive, verified_with, retire, end }
    }

    /// Retires the connection when it should not be used again, cuts it when it must not be used.
    pub(super) async fn watch(mut self, mut cutter: Cutter) {
        let drain = tokio::select! {
            drain = self.over() => drain,
            () = cutter.gone() => return,
        };
        tracing::debug!(server = %self.peer.id(), "connection is being ended");
        self.reuse.retire();
        tokio::select! {
            () = tokio::time::sleep(drain) => cutter.cut(),
            () = cutter.gone() => {}
        }
    }

    /// Resolves when the connection must end, with the time it has left.
    async fn over(&mut self) -> Duration {
        let mut changes = self.mesh.changes();
        let limits = self.mesh.limits();
        let (drain, distrusted) = (limits.drain, limits.distrusted_drain);
        loop {
            let snapshot = self.mesh.snapshot();
            if snapshot.withdrawn {
                return drain;
            }
            if self.verified_with != snapshot.trust {
                // New material is for new connections; this one may finish what it is doing.
                self.reuse.retire();
                let now = self.mesh.clock().now();
                if snapshot.recheck_server(&self.peer, now).is_err() {
                    return distrusted;
                }
                self.verified_with = snapshot.trust;
            }
            drop(snapshot);
            let retired = self.reuse.is_retired();
            tokio::select! {
                () = self.retire.reached(&self.mesh), if !retired => self.reuse.retire(),
                () = self.end.reached(&self.mesh) => return drain,
                // The sender lives as long as our mesh.
                _ = changes.changed() => {}
            }
        }
    }
}

/// Whatever ends a connection, nobody takes it from the pool any more; and what the pool knows of it
/// holds it, so that both would stay for ever.
impl Drop for ClientLife {
    fn drop(&mut self) {
        self.reuse.retire();
    }
}

/// When less than a tenth of a life is left.
fn nearly_over(begin: UnixTime, end: UnixTime) -> UnixTime {
    let life = end.as_secs().saturating_sub(begin.as_secs());
    UnixTime::since_unix_epoch(Duration::from_secs(end.as_secs().saturating_sub(life / 10)))
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::Weak;

    use bytes::Bytes;
    use http::{Request, Response};
    use http_body_util::{BodyExt as _, Empty};
    use mesh_authn::peer::ExpectedServer;
    use mesh_identity::{BundleSet, MeshSettings, TrustBundle, Workload};
    use tower::ServiceExt as _;

    use super::*;
    use crate::{Clock as _, Connector, MeshClient, Policies, ServerInfo, SystemClock};

    /// What is known of a connection that its server has closed is forgotten: the pool and we know of
    /// each other, and would keep each other.
    #[tokio::test]
    async fn a_connection_that_is_closed_is_forgotten() {
        let (now, hour) = (SystemClock.now(), Duration::from_secs(3600));
        let home = "cluster.local".parse().unwrap();
        let authority = mesh_ca::Authority::new_root(&home, 2 * hour, now).unwrap();
        let id = "spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap();
        let svid = Arc::new(authority.issue_svid(&id, hour, now).unwrap());
        let pem = authority.certificate_pem();
        let trust = TrustBundle::from_pem(home.clone(), pem.as_bytes()).unwrap();
        let trust = Arc::new(BundleSet::from_bundles([trust]).unwrap());
        let mesh = Mesh::builder(Workload::new("shop"), MeshSettings::new(home))
            .build(svid, trust, Policies::none())
            .unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let service = tower::service_fn(|_request| async {
            let answer = Response::builder().header("connection", "close");
            Ok::<_, Infallible>(answer.body(Empty::<Bytes>::new()).unwrap())
        });
        let serving = mesh.clone();
        tokio::spawn(async move { serving.serve(listener, service, std::future::pending()).await });
        let client: MeshClient<Empty<Bytes>> = Connector::new(mesh)
            .service("cart", address, &ExpectedServer::exact(id))
            .protocol(mesh_authn::peer::ClientProtocol::Http1)
            .client();
        let request = Request::get("https://cart/").body(Empty::new()).unwrap();
        let answer = client.oneshot(request).await.unwrap();
        let reuse = Arc::downgrade(&answer.extensions().get::<ServerInfo>().unwrap().reuse);
        answer.into_body().collect().await.unwrap();
        let forgotten = async {
            while Weak::strong_count(&reuse) > 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let forgotten = tokio::time::timeout(Duration::from_secs(10), forgotten).await;
        assert!(forgotten.is_ok(), "{} hold it", Weak::strong_count(&reuse));
    }

    /// [SEC-TLS-12]
    #[test]
    fn sec_tls_12_a_tenth_of_the_life_is_kept_in_reserve() {
        let at = |seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        for (begin, end, want) in [(0, 3600, 3240), (100, 105, 105), (100, 200, 190), (5, 1, 1)] {
            assert_eq!(nearly_over(at(begin), at(end)), at(want), "{begin} to {end}");
        }
    }
}
