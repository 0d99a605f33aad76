//! The client of the SPIFFE Workload API against a double over a Unix socket: what each message,
//! code and lost connection does to a mesh.

#![cfg(unix)]
#![expect(clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

mod double;

use std::time::Duration;

use mesh_ca::Authority;
use mesh_tower::authn::peer::ExpectedServer;
use mesh_tower::identity::workload_api::{NamedSvid, encode_x509_svids, proto};
use mesh_tower::identity::{BundleSet, MeshSettings, TrustBundle, Workload};
use mesh_tower::{
    Clock as _, Connector, Mesh, Policies, SystemClock, WorkloadApi, WorkloadApiUpdate,
};
use tokio::net::TcpListener;
use tokio::time::timeout;
use tower::ServiceExt as _;

use self::double::{Double, Step};

const PATIENCE: Duration = Duration::from_secs(20);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

fn authority(trust_domain: &str) -> Authority {
    Authority::new_root(&trust_domain.parse().unwrap(), DAY, SystemClock.now()).unwrap()
}

fn named(authority: &Authority, account: &str) -> NamedSvid {
    let id = format!("spiffe://{}/ns/shop/sa/{account}", authority.trust_domain());
    let svid = authority.issue_svid(&id.parse().unwrap(), HOUR, SystemClock.now()).unwrap();
    NamedSvid { svid, hint: String::new() }
}

/// What the API sends about `account`: its identity, its domain's bundle and the others'.
fn message(
    authority: &Authority,
    account: &str,
    bundles: &[&Authority],
) -> proto::X509SvidResponse {
    let bundles = BundleSet::from_bundles(bundles.iter().map(|one| one.bundle())).unwrap();
    encode_x509_svids(&[named(authority, account)], &bundles, &[]).unwrap()
}

fn good(authority: &Authority) -> Step {
    Step::svids(&message(authority, "server", &[authority]))
}

fn api(double: &Double) -> WorkloadApi {
    let quick = Duration::from_millis(5);
    WorkloadApi::new(double.endpoint()).retry(quick, quick)
}

async fn mesh(double: &Double) -> Mesh {
    let settings = MeshSettings::new("cluster.local".parse().unwrap());
    let mesh = Mesh::builder(Workload::new("shop"), settings);
    let started = mesh.start(api(double).x509_source(), Policies::none());
    timeout(PATIENCE, started).await.unwrap().unwrap()
}

/// Waits until something holds of the mesh.
async fn until(mesh: &Mesh, what: &str, holds: impl Fn(&Mesh) -> bool) {
    for _ in 0..2000 {
        if holds(mesh) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never: {what}; last error {:?}", mesh.last_error());
}

/// A message is the whole state: what is missing in the next one is withdrawn.
#[tokio::test]
async fn what_is_missing_in_the_next_message_is_withdrawn() {
    let (home, foreign) = (authority("cluster.local"), authority("other.example"));
    let with = Step::svids(&message(&home, "server", &[&home, &foreign]));
    let double = Double::start([vec![with, good(&home), Step::Hang]]);
    let mut contexts = api(&double).x509_contexts();
    for want in [2, 1] {
        let WorkloadApiUpdate::Taken(context) = timeout(PATIENCE, contexts.next()).await.unwrap()
        else {
            panic!("a good message was not taken")
        };
        assert_eq!(context.bundles.iter().count(), want);
        assert_eq!(context.svids[0].svid.id().as_str(), "spiffe://cluster.local/ns/shop/sa/server");
    }
}

/// [SEC-OPS-2], [SEC-OPS-3] A mesh starts with the first identity that can be used, and keeps the
/// last good one while messages are bad: garbage, empty, a key or a name that does not match, bytes
/// behind the certificates, a leaf without a path.
#[tokio::test]
async fn sec_ops_2_a_bad_message_leaves_the_last_good_in_force() {
    let home = authority("cluster.local");
    let spoil = |change: &dyn Fn(&mut proto::X509Svid)| {
        let mut message = message(&home, "server", &[&home]);
        change(message.svids.first_mut().unwrap());
        Step::svids(&message)
    };
    let other = message(&home, "server", &[&home]);
    let other_key = other.svids[0].x509_svid_key.clone();
    let root = home.bundle().x509_authorities()[0].der().to_vec();
    let bad = [
        ("cannot be parsed", Step::Raw(b"\xff\xff\xff".to_vec())),
        ("no identity", Step::svids(&proto::X509SvidResponse::default())),
        ("belong", spoil(&|svid| svid.x509_svid_key.clone_from(&other_key))),
        ("", spoil(&|svid| svid.x509_svid_key = b"no key".to_vec())),
        ("another identity", spoil(&|svid| svid.spiffe_id.push('x'))),
        ("", spoil(&|svid| svid.x509_svid.extend_from_slice(b"\0\0"))),
        ("", spoil(&|svid| svid.x509_svid.clone_from(&root))),
        ("", spoil(&|svid| svid.x509_svid.truncate(100))),
        ("", spoil(&|svid| svid.bundle = b"no bundle".to_vec())),
    ];
    for (want, step) in bad {
        let double = Double::start([
            vec![good(&home), step.clone(), Step::Wait, good(&home), Step::Hang],
            // What is no message at all ends the stream.
            vec![Step::Wait, good(&home), Step::Hang],
        ]);
        let mesh = mesh(&double).await;
        until(&mesh, want, |mesh| mesh.identity_error().is_some()).await;
        assert_eq!(mesh.generation(), 1, "{want}: the bad message was taken");
        let error = mesh.identity_error().unwrap();
        let parsed = want != "cannot be parsed";
        assert!(!parsed || error.contains(want), "{want}: {error}");
        double.go_on();
        until(&mesh, want, |mesh| mesh.generation() == 2 && mesh.last_error().is_none()).await;
        // As the first thing it hears, a bad message is passed over.
        let double =
            Double::start([vec![step, good(&home), Step::Hang], vec![good(&home), Step::Hang]]);
        assert!(self::mesh(&double).await.identity_ends().is_some());
    }
}

/// A partner's bundle that cannot be used holds up none of our renewals.
#[tokio::test]
async fn sec_id_9_a_bad_foreign_bundle_holds_up_no_renewal() {
    let home = authority("cluster.local");
    let mut renewed = message(&home, "server", &[&home]);
    renewed.federated_bundles.insert("spiffe://other.example".to_owned(), b"no bundle".to_vec());
    let double = Double::start([vec![good(&home), Step::svids(&renewed), Step::Hang]]);
    let mesh = mesh(&double).await;
    until(&mesh, "renewed", |mesh| mesh.generation() == 2).await;
    assert_eq!(mesh.identity_error(), None);
}

/// PermissionDenied withdraws: nothing is used any more until the registration is back.
#[tokio::test]
async fn permission_denied_withdraws_and_a_new_registration_brings_it_back() {
    let home = authority("cluster.local");
    let double = Double::start([
        vec![good(&home), Step::Wait, Step::End(7)],
        vec![Step::End(7)],
        vec![Step::End(7)],
        vec![Step::Wait, good(&home), Step::Hang],
    ]);
    let mesh = mesh(&double).await;
    double.go_on();
    until(&mesh, "withdrawn", |mesh| mesh.identity_ends().is_none()).await;
    assert!(mesh.last_error().unwrap().contains("denies"));
    let address = "127.0.0.1:1".parse().unwrap();
    let expected = ExpectedServer::member_of("cluster.local".parse().unwrap());
    let connector = Connector::new(mesh.clone()).service("a", address, &expected);
    let error = connector.oneshot("https://a/".parse().unwrap()).await.unwrap_err();
    assert!(error.to_string().contains("withdrawn"), "{error}");
    double.go_on();
    until(&mesh, "back", |mesh| mesh.identity_ends().is_some()).await;
    assert_eq!(mesh.last_error(), None);
}

/// Unavailable, a cut stream, an ended one and a missing socket keep what is there, and are tried
/// again.
#[tokio::test]
async fn a_lost_stream_keeps_the_identity_and_is_opened_again() {
    let home = authority("cluster.local");
    for end in [Step::End(14), Step::End(2), Step::End(0), Step::Cut] {
        let double = Double::start([
            vec![good(&home), Step::Wait, end],
            vec![Step::Wait, good(&home), Step::Hang],
        ]);
        let mesh = mesh(&double).await;
        double.go_on();
        until(&mesh, "told", |mesh| mesh.last_error().is_some()).await;
        assert!(mesh.identity_ends().is_some(), "kept");
        assert_eq!(mesh.generation(), 1);
        double.go_on();
        until(&mesh, "again", |mesh| mesh.generation() == 2).await;
        assert_eq!(mesh.last_error(), None);
    }
    // Nobody there yet: the mesh starts when somebody is.
    let double = Double::bound_later([vec![good(&home), Step::Hang]], Duration::from_millis(200));
    assert!(mesh(&double).await.identity_ends().is_some());
}

/// InvalidArgument, Canceled and Unimplemented: asking again would not help.
#[tokio::test]
async fn final_codes_end_the_asking() {
    let home = authority("cluster.local");
    for code in [3, 1, 12] {
        let double = Double::start([vec![good(&home), Step::End(code)], vec![good(&home)]]);
        let mut contexts = api(&double).x509_contexts();
        assert!(matches!(contexts.next().await, WorkloadApiUpdate::Taken(_)));
        let WorkloadApiUpdate::Failed(failure) = contexts.next().await else {
            panic!("code {code} is no state")
        };
        assert!(failure.is_final() && !failure.withdraws(), "code {code}: {failure}");
        assert!(timeout(Duration::from_millis(200), contexts.next()).await.is_err());
        assert_eq!(double.connections(), 1, "code {code}");
    }
}

/// A rotation arrives in open meshes at once, and two workloads of the API reach each other. A
/// bundle without authorities lets nobody in ([SEC-ID-9]).
#[tokio::test]
async fn sec_id_9_a_rotation_arrives_and_an_empty_bundle_believes_nobody() {
    let (old, new) = (authority("cluster.local"), authority("cluster.local"));
    let pem = [&old, &new].map(Authority::certificate_pem).concat();
    let both = TrustBundle::from_pem("cluster.local".parse().unwrap(), pem.as_bytes()).unwrap();
    let both = BundleSet::from_bundles([both]).unwrap();
    let rotated = encode_x509_svids(&[named(&new, "server")], &both, &[]).unwrap();
    let mut nobody = message(&new, "server", &[&new]);
    nobody.svids[0].bundle.clear();
    let double = Double::start([vec![
        good(&old),
        Step::Wait,
        Step::svids(&rotated),
        Step::Wait,
        Step::svids(&nobody),
        Step::Hang,
    ]]);
    let server = mesh(&double).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = server.clone();
    let app = axum::Router::new();
    tokio::spawn(async move { serving.serve(listener, app, std::future::pending()).await });

    let api = Double::start([vec![
        Step::svids(&encode_x509_svids(&[named(&old, "client")], &both, &[]).unwrap()),
        Step::Hang,
    ]]);
    let client = mesh(&api).await;
    let expected =
        ExpectedServer::exact("spiffe://cluster.local/ns/shop/sa/server".parse().unwrap());
    let connector = Connector::new(client).service("a", address, &expected);
    let connect = || connector.clone().oneshot("https://a/".parse().unwrap());
    let root = |stream: &mesh_tower::MeshStream| {
        stream.info().peer().authority().map(|root| root.der().to_vec())
    };
    let before = connect().await.unwrap();
    double.go_on();
    until(&server, "rotated", |mesh| mesh.generation() == 2).await;
    let after = connect().await.unwrap();
    assert_ne!(root(&before), root(&after), "new handshakes use the new material");
    double.go_on();
    until(&server, "emptied", |mesh| mesh.generation() == 3).await;
    // In TLS 1.3 the client has finished before it hears that the server refuses it.
    if let Ok(mut stream) = connect().await {
        use hyper::rt::Read as _;
        let mut byte = [std::mem::MaybeUninit::uninit(); 1];
        let mut byte = hyper::rt::ReadBuf::uninit(&mut byte);
        let read = std::future::poll_fn(|cx| {
            std::pin::Pin::new(&mut stream).poll_read(cx, byte.unfilled())
        });
        assert!(timeout(PATIENCE, read).await.unwrap().is_err(), "a peer that nobody vouches for");
    }
}

/// 1,000 lost connections, each after a message: each is followed by another, none leaks.
#[tokio::test]
async fn a_thousand_reconnects() {
    let home = authority("cluster.local");
    let message = good(&home);
    let double = Double::start((0..1000).map(|_| vec![message.clone(), Step::Cut]));
    let mut contexts =
        api(&double).retry(Duration::from_millis(1), Duration::from_millis(1)).x509_contexts();
    let (mut taken, mut failed) = (0, 0);
    while taken < 1000 {
        match timeout(PATIENCE, contexts.next()).await.unwrap() {
            WorkloadApiUpdate::Taken(_) => taken += 1,
            WorkloadApiUpdate::Failed(_) => failed += 1,
        }
    }
    assert_eq!((failed, double.connections()), (999, 1000));
    assert!(double::open_descriptors() < 64, "{}", double::open_descriptors());
}

/// Tokens are asked for and judged; JWT bundles are followed.
#[tokio::test]
async fn tokens_and_their_keys() {
    let double = Double::start([vec![], vec![], vec![], vec![Step::jwt_bundles(), Step::Hang]]);
    let api = api(&double);
    let id = "spiffe://cluster.local/ns/shop/sa/server".parse().unwrap();
    let svids = api.fetch_jwt_svids(&["a", "b"], Some(&id)).await.unwrap();
    assert_eq!((svids[0].id.as_str(), &**svids[0].token), (id.as_str(), "token for a,b"));
    let (who, claims) = api.validate_jwt_svid("a", "good").await.unwrap();
    assert_eq!((who, claims["aud"].as_str()), (id, Some("a")));
    let error = api.validate_jwt_svid("a", "bad").await.unwrap_err();
    assert!(error.is_final() && error.to_string().contains("InvalidArgument"), "{error}");
    let mut bundles = api.jwt_bundles();
    let WorkloadApiUpdate::Taken(state) = timeout(PATIENCE, bundles.next()).await.unwrap() else {
        panic!("a good key set was not taken")
    };
    assert_eq!(state.bundles.get("cluster.local").unwrap().jwt_authorities()[0].kid(), "one");
}
