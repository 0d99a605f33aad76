//! Resumption over real sockets: kept where nothing about the peer has changed, and never more than
//! a full handshake would give ([SEC-TLS-10]).

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mesh_tower::authn::peer::ExpectedServer;
use mesh_tower::{Connector, Policies};
use rustls::{ClientConfig, HandshakeKind};

use crate::raw::{RawClient, Shown, TLS12, TLS13, Versions, ask, raw_server, serve_raw};
use crate::revoked::Revoking;
use crate::support::{
    STRICT, Server, SetClock, authority, connect, id, policies, serve, serve_tls12, svid, trust,
};

const HOUR: Duration = Duration::from_secs(3600);
const FULL: HandshakeKind = HandshakeKind::Full;
const RESUMED: HandshakeKind = HandshakeKind::Resumed;

const DENY_CLIENT: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-client, namespace: shop}
spec:
  action: DENY
  rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/client]}}]}]
";

/// How a handshake went, and the answer's status; nothing where there was no answer.
async fn shake(client: &Arc<ClientConfig>, server: &Server) -> Option<(HandshakeKind, u16)> {
    let (kind, status, _) = ask(client, server.address, "/").await.ok()?;
    Some((kind, status))
}

/// A new client that has been let in once and holds a session, which it has just used.
async fn resuming(shown: &Shown, versions: Versions, server: &Server) -> Arc<ClientConfig> {
    let client = RawClient::new(Some(shown.clone()), versions).shared();
    assert_eq!(shake(&client, server).await, Some((FULL, 200)));
    assert_eq!(shake(&client, server).await, Some((RESUMED, 200)));
    client
}

/// [SEC-TLS-10] A change of policies keeps sessions, and what the new ones say holds for the resumed
/// connection too. A change of identity, trust or modes begins with full handshakes.
#[tokio::test(flavor = "multi_thread")]
async fn sec_tls_10_policies_keep_sessions_and_nothing_else_does() {
    for versions in [TLS13, TLS12] {
        let (authority, clock) = (authority(), SetClock::default());
        let server = serve_tls12(&authority, &clock, Policies::none()).await;
        let shown = Shown::svid(&svid(&authority, "client", HOUR));
        let client = resuming(&shown, versions, &server).await;
        server.mesh.set_policies(policies(&[DENY_CLIENT])).unwrap();
        assert_eq!(shake(&client, &server).await, Some((RESUMED, 403)), "the new policy decides");
        server.mesh.set_policies(Policies::none()).unwrap();
        assert_eq!(shake(&client, &server).await, Some((RESUMED, 200)));
        server.mesh.set_policies(policies(&[STRICT])).unwrap();
        assert_eq!(shake(&client, &server).await, Some((FULL, 200)), "a mode has changed");
        assert_eq!(shake(&client, &server).await, Some((RESUMED, 200)));
        server.mesh.set_policies(policies(&[STRICT, DENY_CLIENT])).unwrap();
        assert_eq!(shake(&client, &server).await, Some((RESUMED, 403)));
        server.mesh.set_policies(policies(&[STRICT])).unwrap();
        let own = svid(&authority, "server", HOUR);
        server.mesh.set_identity(own, trust(&[&authority])).unwrap();
        assert_eq!(shake(&client, &server).await, Some((FULL, 200)), "identity has changed");
        assert_eq!(shake(&client, &server).await, Some((RESUMED, 200)));
        server.mesh.withdraw_identity();
        assert_eq!(shake(&client, &server).await, None, "withdrawn");
    }
}

/// [SEC-TLS-10] A peer that a full handshake would refuse is refused with its session, in both
/// versions: expired, root removed, revoked, mode changed. A policy in between, which keeps
/// sessions, revives none of them.
#[tokio::test(flavor = "multi_thread")]
async fn sec_tls_10_whom_a_full_handshake_refuses_no_session_lets_in() {
    for versions in [TLS13, TLS12] {
        let (own, other, clock) = (authority(), authority(), SetClock::default());
        let server = serve_tls12(&own, &clock, Policies::none()).await;
        let leaf = svid(&own, "server", 10 * HOUR);
        server.mesh.set_identity(leaf.clone(), trust(&[&own, &other])).unwrap();
        let client = resuming(&Shown::svid(&svid(&own, "client", HOUR)), versions, &server).await;
        // Reloads keep sessions, but not what time has ended.
        clock.set(7200);
        server.mesh.set_policies(policies(&[DENY_CLIENT])).unwrap();
        server.mesh.set_policies(Policies::none()).unwrap();
        assert_eq!(shake(&client, &server).await, None, "expired");
        clock.set(0);

        let client = resuming(&Shown::svid(&svid(&other, "client", HOUR)), versions, &server).await;
        server.mesh.set_identity(leaf.clone(), trust(&[&own])).unwrap();
        assert_eq!(shake(&client, &server).await, None, "its root was removed");

        let revoking = Revoking::new();
        server.mesh.set_identity(leaf.clone(), revoking.bundle(&own, 0)).unwrap();
        let client = resuming(&Shown::svid(&revoking.client(1)), versions, &server).await;
        server.mesh.set_identity(leaf.clone(), revoking.bundle(&own, 1)).unwrap();
        assert_eq!(shake(&client, &server).await, None, "revoked");

        server.mesh.set_identity(leaf.clone(), trust(&[&own])).unwrap();
        let client = resuming(&Shown::svid(&svid(&own, "client", HOUR)), versions, &server).await;
        let disable = STRICT.replace("STRICT", "DISABLE");
        server.mesh.set_policies(policies(&[&disable])).unwrap();
        assert_eq!(shake(&client, &server).await, None, "the port speaks no TLS now");
    }
}

/// [SEC-TLS-10] Two servers of one process with the same certificate share no session.
#[tokio::test(flavor = "multi_thread")]
async fn sec_tls_10_another_servers_session_is_a_full_handshake() {
    let (authority, clock) = (authority(), SetClock::default());
    let one = serve(&authority, &clock, Policies::none(), |_| {}).await;
    let two = serve(&authority, &clock, Policies::none(), |_| {}).await;
    let shown = Shown::svid(&svid(&authority, "client", HOUR));
    let client = resuming(&shown, TLS13, &one).await;
    assert_eq!(shake(&client, &two).await, Some((FULL, 200)));
}

/// [SEC-TLS-10] Our client resumes, keeps its sessions when policies change, begins anew with its
/// identity or trust, and resumes nothing with a server that it would refuse now.
#[tokio::test(flavor = "multi_thread")]
async fn sec_tls_10_our_client_judges_what_it_resumes() {
    for versions in [TLS13, TLS12] {
        let (own, other) = (authority(), authority());
        let shown = Shown::svid(&svid(&other, "server", HOUR));
        let (address, mut told) = serve_raw(raw_server(shown, versions), b"x").await;
        let clock = SetClock::default();
        let own_svid = || svid(&own, "client", 10 * HOUR);
        let mesh = mesh_tower::Mesh::builder(
            mesh_tower::identity::Workload::new("shop"),
            mesh_tower::identity::MeshSettings::new("cluster.local".parse().unwrap()),
        )
        .clock(Arc::new(clock.clone()))
        .with_tls12()
        .build(own_svid(), trust(&[&own, &other]), Policies::none())
        .unwrap();
        let expected = ExpectedServer::exact(id("server"));
        let connector = Connector::new(mesh.clone()).service("server", address, &expected);
        let mut shake = async || {
            use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
            let stream = connect(&connector).await.map_err(|error| error.to_string())?;
            let mut stream = hyper_util::rt::TokioIo::new(stream);
            stream.write_all(b"a").await.unwrap();
            stream.read_u8().await.unwrap();
            let (kind, _, early) = told.recv().await.unwrap();
            assert!(!early, "[SEC-TLS-9]");
            Ok::<_, String>(kind)
        };
        assert_eq!(shake().await, Ok(FULL));
        assert_eq!(shake().await, Ok(RESUMED));
        mesh.set_policies(policies(&[DENY_CLIENT])).unwrap();
        assert_eq!(shake().await, Ok(RESUMED), "policies say who calls us, not whom we call");
        mesh.set_identity(own_svid(), trust(&[&own, &other])).unwrap();
        assert_eq!(shake().await, Ok(FULL));
        assert_eq!(shake().await, Ok(RESUMED));
        clock.set(7200);
        assert!(shake().await.unwrap_err().contains("expired"));
        clock.set(0);
        assert_eq!(shake().await, Ok(FULL), "what had expired is not kept");
        mesh.set_identity(own_svid(), trust(&[&own])).unwrap();
        assert!(shake().await.unwrap_err().contains("not verified"));
    }
}

/// [SEC-TLS-10] With the system's own clock: a session outlives no certificate, however young it is.
#[tokio::test(flavor = "multi_thread")]
async fn sec_tls_10_a_session_ends_with_its_certificate() {
    for versions in [TLS13, TLS12] {
        let (authority, clock) = (authority(), SetClock::default());
        let server = serve_tls12(&authority, &clock, policies(&[STRICT])).await;
        let short = svid(&authority, "client", Duration::from_secs(3));
        let end = Duration::from_secs(short.not_after().as_secs());
        let client = resuming(&Shown::svid(&short), versions, &server).await;
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap();
        tokio::time::sleep((end + Duration::from_secs(1)).saturating_sub(now)).await;
        assert_eq!(shake(&client, &server).await, None);
    }
}
