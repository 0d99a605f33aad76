//! Readiness from before there is a mesh: what an orchestrator hears on the admin port.

use std::time::Duration;

use mesh_tower::identity::{MeshSettings, Workload};
use mesh_tower::{
    Identity, IdentityFuture, IdentitySource, IdentityUpdate, Mesh, MeshBuilder, NotReady, Policies,
};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::admin::{at, page};
use crate::support::{PATIENCE, authority, svid, trust};
use crate::{HOUR, bind};

/// Delivers what a test sends.
#[derive(Debug)]
struct Sent(mpsc::UnboundedReceiver<IdentityUpdate>);

impl IdentitySource for Sent {
    fn next(&mut self) -> IdentityFuture<'_> {
        Box::pin(async {
            match self.0.recv().await {
                Some(update) => update,
                None => std::future::pending().await,
            }
        })
    }
}

fn builder() -> MeshBuilder {
    Mesh::builder(Workload::new("shop"), MeshSettings::new("cluster.local".parse().unwrap()))
}

/// [SEC-OPS-3] Nothing is served before there is an identity, and the probe says what is waited for;
/// then it is 200, and 503 again when the identity is withdrawn or the mesh is gone.
#[tokio::test]
async fn sec_ops_3_the_probe_answers_before_the_first_identity() {
    let authority = authority();
    let (send, updates) = mpsc::unbounded_channel();
    let builder = builder();
    let readiness = builder.readiness();
    let (listener, admin) = bind().await;
    tokio::spawn(builder.admin().serve(listener, std::future::pending()));
    let starting = tokio::spawn(builder.start(Sent(updates), Policies::none()));

    let probe = || page(admin, at("/readyz", "localhost"));
    let first = probe().await;
    assert_eq!((first.status, &*first.body), (503, "not ready: waiting for the first identity\n"));
    for path in ["/", "/status.json", "/metrics"] {
        assert_eq!(page(admin, at(path, "localhost")).await.status, 503, "{path}");
    }
    assert_eq!(page(admin, at("/readyz", "evil.example")).await.status, 421);
    send.send(IdentityUpdate::Failed("no socket at /run/spire".into())).unwrap();
    let told = async {
        while !probe().await.body.contains("first identity: no socket at /run/spire") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, told).await.unwrap();
    assert!(matches!(readiness.check(), Err(NotReady::Starting(Some(_)))));

    // The one who waits is told when the identity comes.
    let waiting = tokio::spawn({
        let readiness = readiness.clone();
        async move { readiness.ready().await }
    });
    let identity = || Identity::new(svid(&authority, "server", HOUR), trust(&[&authority]));
    send.send(IdentityUpdate::Identity(identity())).unwrap();
    let mesh = timeout(PATIENCE, starting).await.unwrap().unwrap().unwrap();
    timeout(PATIENCE, waiting).await.unwrap().unwrap();
    assert_eq!(probe().await.status, 200);
    assert_eq!(page(admin, at("/", "localhost")).await.status, 200);

    // Withdrawn and back: `ready` is told by a signal.
    send.send(IdentityUpdate::Withdrawn("denied".into())).unwrap();
    let withdrawn = async {
        while mesh.readiness().is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, withdrawn).await.unwrap();
    assert_eq!(probe().await.status, 503);
    let back = tokio::spawn({
        let mesh = mesh.clone();
        async move { mesh.ready().await }
    });
    tokio::task::yield_now().await;
    assert!(!back.is_finished());
    send.send(IdentityUpdate::Identity(identity())).unwrap();
    timeout(PATIENCE, back).await.unwrap().unwrap();
    assert_eq!(probe().await.status, 200);

    // The page keeps no mesh alive.
    drop(mesh);
    let gone = async {
        while readiness.check() != Err(NotReady::Stopped) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, gone).await.unwrap();
    assert_eq!(probe().await.body, "not ready: the mesh has been stopped\n");
}
