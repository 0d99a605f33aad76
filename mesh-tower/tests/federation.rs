//! Bundles of other trust domains, fetched over real sockets from endpoints of both profiles
//! ([SEC-ID-10]).

#![expect(
    clippy::arithmetic_side_effects,
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test fails by panicking"
)]

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use http_body_util::Empty;
use hyper::body::Bytes;
use mesh_ca::Authority;
use mesh_tower::authn::peer::ExpectedServer;
use mesh_tower::identity::{
    BundleSet, CrlSet, EndpointProfile, FederatedBundle, FederationEndpoint, MeshSettings,
    TrustBundle, Workload, X509Svid,
};
use mesh_tower::{
    Clock as _, Connector, Federated, Identity, IdentityFuture, IdentitySource, IdentityUpdate,
    Mesh, MeshClient, Policies, SystemClock,
};
use rcgen::{
    CertificateParams, CertificateRevocationListParams, Issuer, KeyIdMethod, KeyPair, SerialNumber,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{RootCertStore, ServerConfig};
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt as _;

const HOUR: Duration = Duration::from_secs(3600);
const PATIENCE: Duration = Duration::from_secs(20);

type Source = Federated<Option<Identity>>;

fn authority(domain: &str) -> Authority {
    Authority::new_root(&domain.parse().unwrap(), 24 * HOUR, SystemClock.now()).unwrap()
}

fn svid(authority: &Authority, id: &str) -> X509Svid {
    authority.issue_svid(&id.parse().unwrap(), HOUR, SystemClock.now()).unwrap()
}

/// The identity of a workload that believes its own domain.
fn home(authority: &Authority) -> Identity {
    let own = svid(authority, "spiffe://home.test/ns/shop/sa/cart");
    let trust = BundleSet::from_bundles([authority.bundle()]).unwrap();
    Identity::new(Arc::new(own), Arc::new(trust))
}

/// A bundle's document with this number.
fn document(authority: &Authority, sequence: u64) -> String {
    authority.bundle().with_sequence(sequence).to_json()
}

/// An endpoint that sends what it is told, over and over.
struct Endpoint {
    address: SocketAddr,
    answer: Arc<Mutex<Vec<u8>>>,
    asked: Arc<AtomicUsize>,
    /// A byte at a time.
    drips: Arc<AtomicBool>,
}

impl Endpoint {
    async fn start(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Self {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let answer: Arc<Mutex<Vec<u8>>> = Arc::default();
        let asked: Arc<AtomicUsize> = Arc::default();
        let drips: Arc<AtomicBool> = Arc::default();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let (told, count, slowly) = (answer.clone(), asked.clone(), drips.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, told, count) = (acceptor.clone(), told.clone(), count.clone());
                let slowly = slowly.load(Ordering::SeqCst);
                tokio::spawn(async move {
                    let Ok(mut stream) = acceptor.accept(stream).await else { return };
                    count.fetch_add(1, Ordering::SeqCst);
                    let mut room = [0; 4096];
                    drop(stream.read(&mut room).await);
                    let answer = told.lock().unwrap().clone();
                    for part in answer.chunks(if slowly { 1 } else { 1024 * 1024 }) {
                        drop(stream.write_all(part).await);
                        drop(stream.flush().await);
                        if slowly {
                            tokio::time::sleep(Duration::from_millis(200)).await;
                        }
                    }
                    drop(stream.shutdown().await);
                });
            }
        });
        Self { address, answer, asked, drips }
    }

    /// With a certificate of the web for `localhost`.
    async fn web() -> (Self, RootCertStore) {
        Self::web_of("localhost").await
    }

    /// With a certificate of the web for some host.
    async fn web_of(host: &str) -> (Self, RootCertStore) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![host.to_owned()]).unwrap();
        let certificate = params.self_signed(&key).unwrap().der().clone();
        let mut roots = RootCertStore::empty();
        roots.add(certificate.clone()).unwrap();
        let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
        (Self::start(vec![certificate], key).await, roots)
    }

    /// With an SVID.
    async fn spiffe(svid: &X509Svid) -> Self {
        Self::start(svid.chain().to_vec(), svid.private_key().clone_key()).await
    }

    fn says(&self, status: &str, more: &str, body: &str) {
        let head = format!("HTTP/1.1 {status}\r\n{more}content-length: {}\r\n\r\n", body.len());
        *self.answer.lock().unwrap() = (head + body).into_bytes();
    }

    fn bundle(&self, domain: &str, profile: EndpointProfile) -> FederationEndpoint {
        let url = format!("https://localhost:{}/bundle.json", self.address.port());
        FederationEndpoint::new(domain.parse().unwrap(), &url, profile).unwrap()
    }
}

/// The next identity and what it believes, by domain with the number of authorities.
async fn next(source: &mut Source) -> Result<Vec<(String, usize)>, String> {
    match timeout(PATIENCE, source.next()).await.expect("news") {
        IdentityUpdate::Identity(Identity { bundles, .. }) => Ok(bundles
            .iter()
            .map(|one| (one.trust_domain().as_str().to_owned(), one.x509_authorities().len()))
            .collect()),
        IdentityUpdate::Failed(error) => Err(error.to_string()),
        other => panic!("{other:?}"),
    }
}

fn domains(of: &[&str]) -> Vec<(String, usize)> {
    of.iter().map(|name| ((*name).to_owned(), 1)).collect()
}

/// [SEC-ID-10] Over the Web's certificates; what is fetched joins what the source delivers, and a
/// bundle that claims to be somebody else's counts for the configured domain alone.
#[tokio::test]
async fn sec_id_10_https_web() {
    let (own, partner) = (authority("home.test"), authority("partner.test"));
    let (endpoint, roots) = Endpoint::web().await;
    endpoint.says("200 OK", "", &document(&partner, 7));
    let of = FederatedBundle::new(endpoint.bundle("partner.test", EndpointProfile::HttpsWeb), None);
    let mut source = Federated::new(Some(home(&own)), [of]).with_web_roots(roots.clone());
    assert_eq!(
        next(&mut source).await.unwrap(),
        domains(&["home.test"]),
        "nobody waits for others"
    );
    assert_eq!(next(&mut source).await.unwrap(), domains(&["home.test", "partner.test"]));
    assert_eq!(endpoint.asked.load(Ordering::SeqCst), 1);
    // Nobody is believed who was not told of.
    let of = FederatedBundle::new(endpoint.bundle("partner.test", EndpointProfile::HttpsWeb), None);
    let mut source = Federated::new(Some(home(&own)), [of]);
    assert_eq!(next(&mut source).await.unwrap(), domains(&["home.test"]));
    let error = next(&mut source).await.unwrap_err();
    assert!(error.contains("cannot connect"), "{error}");
    // Nor whose certificate, though believed, is for another host.
    let (other, other_roots) = Endpoint::web_of("other.localhost").await;
    other.says("200 OK", "", &document(&partner, 7));
    let of = FederatedBundle::new(other.bundle("partner.test", EndpointProfile::HttpsWeb), None);
    let mut source = Federated::new(Some(home(&own)), [of]).with_web_roots(other_roots);
    next(&mut source).await.unwrap();
    let error = next(&mut source).await.unwrap_err();
    assert!(error.contains("cannot connect"), "{error}");
    assert_eq!(other.asked.load(Ordering::SeqCst), 0);
    // The own trust domain is not for others to say.
    let of = FederatedBundle::new(endpoint.bundle("home.test", EndpointProfile::HttpsWeb), None);
    let mut source = Federated::new(Some(home(&own)), [of]).with_web_roots(roots);
    next(&mut source).await.unwrap();
    let IdentityUpdate::Identity(got) = timeout(PATIENCE, source.next()).await.unwrap() else {
        panic!("no identity");
    };
    let home = got.bundles.get("home.test").unwrap();
    assert_eq!(home.x509_authorities(), own.bundle().x509_authorities());
}

/// [SEC-ID-10] By an SVID of the configured ID, under the bundle of its own trust domain.
#[tokio::test]
async fn sec_id_10_https_spiffe() {
    let (own, partner, evil) =
        (authority("home.test"), authority("partner.test"), authority("partner.test"));
    let id = "spiffe://partner.test/bundles";
    let profile = || EndpointProfile::HttpsSpiffe(id.parse().unwrap());
    let configured = || Some(partner.bundle().clone());
    let attempt = async |shown: &X509Svid, configured: Option<TrustBundle>| {
        let endpoint = Endpoint::spiffe(shown).await;
        endpoint.says("200 OK", "", &document(&partner, 9));
        let of = FederatedBundle::new(endpoint.bundle("partner.test", profile()), configured);
        let mut source = Federated::new(Some(home(&own)), [of]);
        next(&mut source).await.unwrap();
        let news = next(&mut source).await;
        (news, endpoint.asked.load(Ordering::SeqCst))
    };
    let (news, asked) = attempt(&svid(&partner, id), configured()).await;
    assert_eq!((news, asked), (Ok(domains(&["home.test", "partner.test"])), 1));
    // Another ID, another authority of the same name, and home's own authority.
    for shown in [
        svid(&partner, "spiffe://partner.test/other"),
        svid(&evil, id),
        svid(&own, "spiffe://home.test/bundles"),
    ] {
        let (news, asked) = attempt(&shown, configured()).await;
        assert!(news.unwrap_err().contains("cannot connect"), "{}", shown.id());
        assert_eq!(asked, 0, "{} was asked", shown.id());
    }
    // Without a bundle to begin with there is nobody to believe.
    let (news, asked) = attempt(&svid(&partner, id), None).await;
    assert!(news.unwrap_err().contains("no bundle to verify it with"));
    assert_eq!(asked, 0);
}

/// [SEC-ID-9], [SEC-ID-10] What is no newer bundle changes nothing: redirects, other statuses,
/// garbage, too much, too old. Nothing is asked again at once.
#[tokio::test]
async fn sec_id_10_bad_answers_change_nothing() {
    let (own, partner) = (authority("home.test"), authority("partner.test"));
    let too_long = " ".repeat(1024 * 1024 + 1);
    let good = document(&partner, 9);
    let cases = [
        ("302 Found", "location: https://localhost/other\r\n", "", "302"),
        ("500 Oh", "", good.as_str(), "500"),
        ("200 OK", "", "{", "not a bundle document"),
        ("200 OK", "", r#"{"keys": 1}"#, "not a bundle document"),
        ("200 OK", "", "", "not a bundle document"),
        ("200 OK", "", too_long.as_str(), "too long"),
    ];
    for (status, more, body, want) in cases {
        let (endpoint, roots) = Endpoint::web().await;
        endpoint.says(status, more, body);
        let of = endpoint.bundle("partner.test", EndpointProfile::HttpsWeb);
        let of = FederatedBundle::new(of, Some(partner.bundle().clone()));
        let mut source = Federated::new(Some(home(&own)), [of]).with_web_roots(roots);
        assert_eq!(next(&mut source).await.unwrap(), domains(&["home.test", "partner.test"]));
        let error = next(&mut source).await.unwrap_err();
        assert!(error.contains(want), "{status}: {error}");
        assert!(timeout(Duration::from_millis(300), source.next()).await.is_err(), "asked again");
        assert_eq!(endpoint.asked.load(Ordering::SeqCst), 1);
    }
    // Too much that does not say how much it will be, and does not end.
    let (endpoint, roots) = Endpoint::web().await;
    let chunk = format!("10000\r\n{}\r\n", " ".repeat(0x10000));
    let endless =
        format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{}", chunk.repeat(17));
    *endpoint.answer.lock().unwrap() = endless.into_bytes();
    let of = endpoint.bundle("partner.test", EndpointProfile::HttpsWeb);
    let of = FederatedBundle::new(of, Some(partner.bundle().clone()));
    let mut source = Federated::new(Some(home(&own)), [of]).with_web_roots(roots);
    next(&mut source).await.unwrap();
    let error = next(&mut source).await.unwrap_err();
    assert!(error.contains("too long"), "{error}");

    let (endpoint, roots) = Endpoint::web().await;
    endpoint.says("200 OK", "", &document(&authority("partner.test"), 3));
    let of = endpoint.bundle("partner.test", EndpointProfile::HttpsWeb);
    let of = FederatedBundle::new(of, Some(partner.bundle().clone().with_sequence(4)));
    let mut source = Federated::new(Some(home(&own)), [of]).with_web_roots(roots);
    next(&mut source).await.unwrap();
    let error = next(&mut source).await.unwrap_err();
    assert!(error.contains("spiffe_sequence is 3"), "{error}");
}

/// [SEC-ID-10] A server that says nothing, or a byte at a time, costs ten seconds and no more, and
/// meanwhile the own identity and other endpoints are served.
#[tokio::test]
async fn sec_id_10_a_silent_endpoint_holds_nobody_up() {
    let (own, partner) = (authority("home.test"), authority("partner.test"));
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://localhost:{}/", silent.local_addr().unwrap().port());
    let silent_one = "silent.test".parse().unwrap();
    let silent_one = FederationEndpoint::new(silent_one, &url, EndpointProfile::HttpsWeb).unwrap();
    let (endpoint, mut roots) = Endpoint::web().await;
    endpoint.says("200 OK", "", &document(&partner, 1));
    let good = endpoint.bundle("partner.test", EndpointProfile::HttpsWeb);
    let (dripping, web_roots) = Endpoint::web().await;
    roots.extend(web_roots.roots.iter().cloned());
    dripping.says("200 OK", "", &document(&authority("dripping.test"), 1));
    dripping.drips.store(true, Ordering::SeqCst);
    let slow = dripping.bundle("dripping.test", EndpointProfile::HttpsWeb);
    let all = [silent_one, slow, good].map(|one| FederatedBundle::new(one, None));
    let mut source = Federated::new(Some(home(&own)), all).with_web_roots(roots);
    let begun = Instant::now();
    assert_eq!(next(&mut source).await.unwrap(), domains(&["home.test"]));
    assert_eq!(next(&mut source).await.unwrap(), domains(&["home.test", "partner.test"]));
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    for _ in 0..2 {
        let error = next(&mut source).await.unwrap_err();
        assert!(error.contains("no answer in time"), "{error}");
    }
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
}

/// What a source tells, one after the other, each after so long.
#[derive(Debug)]
struct Told(VecDeque<(Duration, IdentityUpdate)>);

impl IdentitySource for Told {
    fn next(&mut self) -> IdentityFuture<'_> {
        Box::pin(async move {
            let wait = self.0.front().map(|(wait, _)| *wait);
            let Some(wait) = wait else { return std::future::pending().await };
            tokio::time::sleep(wait).await;
            self.0.pop_front().unwrap().1
        })
    }
}

/// [SEC-OPS-2] A bundle that is fetched does not bring back an identity that was withdrawn.
#[tokio::test]
async fn sec_ops_2_what_is_withdrawn_stays_withdrawn() {
    let (own, partner) = (authority("home.test"), authority("partner.test"));
    let (endpoint, roots) = Endpoint::web().await;
    endpoint.says("200 OK", "", &document(&partner, 1));
    let of = endpoint.bundle("partner.test", EndpointProfile::HttpsWeb);
    let told = [IdentityUpdate::Identity(home(&own)), IdentityUpdate::Withdrawn("gone".into())];
    let told = Told(told.map(|update| (Duration::ZERO, update)).into());
    let mut source = Federated::new(told, [FederatedBundle::new(of, None)]).with_web_roots(roots);
    let first = timeout(PATIENCE, source.next()).await.unwrap();
    assert!(matches!(first, IdentityUpdate::Identity(_)));
    loop {
        // The fetch may be done before.
        match timeout(PATIENCE, source.next()).await.unwrap() {
            IdentityUpdate::Withdrawn(_) => break,
            other => assert!(matches!(other, IdentityUpdate::Identity(_)), "{other:?}"),
        }
    }
    let more = timeout(Duration::from_secs(2), source.next()).await;
    assert!(more.is_err(), "{more:?}");
}

/// [SEC-ID-14] A source that takes longer than our looks at the clock comes to its end.
#[tokio::test]
async fn sec_id_14_a_slow_source_is_heard() {
    let own = authority("home.test");
    let told = [Duration::ZERO, Duration::from_secs(6)];
    let told = told.map(|wait| (wait, IdentityUpdate::Identity(home(&own))));
    let mut source = Federated::new(Told(told.into()), []);
    for _ in 0..2 {
        let update = timeout(PATIENCE, source.next()).await.expect("news");
        assert!(matches!(update, IdentityUpdate::Identity(_)), "{update:?}");
    }
}

/// [SEC-ID-14] The document of an endpoint has no revocation lists; those that the source or the
/// configuration has for the trust domain go on to count.
#[tokio::test]
async fn sec_id_14_a_fetched_bundle_keeps_the_revocation_lists() {
    let (own, partner) = (authority("home.test"), authority("partner.test"));
    let (endpoint, roots) = Endpoint::web().await;
    endpoint.says("200 OK", "", &document(&partner, 1));
    let revoking = partner.bundle().clone().with_crls(revocation_lists());
    for by_source in [true, false] {
        let mut home = home(&own);
        if by_source {
            home.bundles = Arc::new(BundleSet::clone(&home.bundles).with_bundle(revoking.clone()));
        }
        let of = endpoint.bundle("partner.test", EndpointProfile::HttpsWeb);
        let of = FederatedBundle::new(of, (!by_source).then(|| revoking.clone()));
        let mut source = Federated::new(Some(home), [of]).with_web_roots(roots.clone());
        timeout(PATIENCE, source.next()).await.expect("the own one");
        let update = timeout(PATIENCE, source.next()).await;
        // What was configured and what is fetched may differ in their numbers only.
        let Ok(IdentityUpdate::Identity(got)) = update else { panic!("{update:?}") };
        let got = got.bundles.get("partner.test").unwrap();
        assert_eq!(got.sequence(), Some(1), "the fetched one");
        assert!(got.crls().is_some(), "from the source: {by_source}");
    }
}

/// Some list; whose does not matter here.
fn revocation_lists() -> CrlSet {
    let key = KeyPair::generate().unwrap();
    let issuer = Issuer::new(CertificateParams::default(), key);
    let now = OffsetDateTime::now_utc();
    let list = CertificateRevocationListParams {
        this_update: now,
        next_update: now + HOUR,
        crl_number: SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: Vec::new(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    CrlSet::from_der([list.signed_by(&issuer).unwrap().der()]).unwrap()
}

/// [SEC-ID-8], [SEC-ID-10] In a mesh: partners are let in as themselves once their bundle is there.
#[tokio::test]
async fn sec_id_8_a_fetched_bundle_vouches_for_its_domain_alone() {
    let (own, partner) = (authority("home.test"), authority("partner.test"));
    let (endpoint, roots) = Endpoint::web().await;
    endpoint.says("200 OK", "", &document(&partner, 1));
    let of = endpoint.bundle("partner.test", EndpointProfile::HttpsWeb);
    let source = Federated::new(Some(home(&own)), [FederatedBundle::new(of, None)]);
    let mesh =
        Mesh::builder(Workload::new("shop"), MeshSettings::new("home.test".parse().unwrap()))
            .start(source.with_web_roots(roots), Policies::none())
            .await
            .unwrap();
    let begun = Instant::now();
    while mesh.generation() < 2 {
        assert!(begun.elapsed() < PATIENCE, "{:?}", mesh.identity_error());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(mesh.identity_error(), None);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = axum::Router::new().route("/", axum::routing::get(|| async { "hello" }));
    tokio::spawn(async move { mesh.serve(listener, app, std::future::pending()).await });
    let visit = async |authority: &Authority, id: &str| {
        let domain = authority.bundle().trust_domain().clone();
        let trust = BundleSet::from_bundles([own.bundle()]).unwrap();
        let mesh = Mesh::builder(Workload::new("web"), MeshSettings::new(domain))
            .build(Arc::new(svid(authority, id)), Arc::new(trust), Policies::none())
            .unwrap();
        let server = ExpectedServer::member_of("home.test".parse().unwrap());
        let connector = Connector::new(mesh).service("server", address, &server);
        let client: MeshClient<Empty<Bytes>> = connector.client();
        let request = http::Request::get("https://server/").body(Empty::new()).unwrap();
        client.oneshot(request).await.map(|response| response.status().as_u16()).ok()
    };
    assert_eq!(visit(&partner, "spiffe://partner.test/ns/web/sa/web").await, Some(200));
    let stranger = authority("partner.test");
    assert_eq!(visit(&stranger, "spiffe://partner.test/ns/web/sa/web").await, None);
    let unknown = authority("unknown.test");
    assert_eq!(visit(&unknown, "spiffe://unknown.test/ns/web/sa/web").await, None);
}
