//! Istio's `CreateCertificate`: our server, our client, and callers that are neither.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mesh_ca::istio_ca::{CREATE_CERTIFICATE, IstioCertificateRequest, IstioCertificateResponse};
use mesh_ca::serve::{IstioSettings, ServerName};
use mesh_tower::identity::x509::{Role, verify_svid};
use mesh_tower::identity::{BundleSet, TrustBundle};
use mesh_tower::{Identity, IdentitySource as _, IdentityUpdate, IstioCa, ServiceAccounts};
use prost::Message as _;
use rcgen::{
    BasicConstraints, CertificateParams, IsCa, KeyPair, KeyUsagePurpose, PublicKeyData as _,
    SanType,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer};
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use crate::support::{PATIENCE, Raw, World, ends, id};
use crate::tokens::{Cluster, ISSUER, claims};

const ISTIOD: &str = "istiod.istio-system.svc";
const UNAUTHENTICATED: i32 = 16;
const INVALID: i32 = 3;

struct Istiod {
    world: World,
    cluster: Cluster,
    address: SocketAddr,
    folder: PathBuf,
}

impl Istiod {
    async fn start() -> Self {
        Self::with(World::start(), |settings| settings).await
    }

    async fn with(world: World, change: impl FnOnce(IstioSettings) -> IstioSettings) -> Self {
        let cluster = Cluster::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let folder = std::env::temp_dir().join(format!("mesh-istiod-{}", address.port()));
        std::fs::create_dir_all(&folder).unwrap();
        let this = Self { world, cluster, address, folder };
        this.serve(listener, change);
        this.write("root-cert.pem", &this.roots());
        this
    }

    fn serve(
        &self,
        listener: TcpListener,
        change: impl FnOnce(IstioSettings) -> IstioSettings,
    ) -> tokio::task::JoinHandle<std::io::Result<()>> {
        let own = "spiffe://cluster.local/ns/istio-system/sa/istiod".parse().unwrap();
        let home = "cluster.local".parse().unwrap();
        let tokens = ServiceAccounts::new(home, ISSUER, &self.cluster.jwks(), ["istio-ca"]);
        let name = ServerName::new(own, [ISTIOD.try_into().unwrap()]);
        let settings = change(IstioSettings::new(name).with_tokens(tokens.unwrap()));
        let service = self.world.service.clone();
        tokio::spawn(async move {
            service.serve_istio(listener, settings, std::future::pending()).await
        })
    }

    fn roots(&self) -> String {
        let bundle = self.world.service.ca().bundle();
        bundle.x509_authorities().iter().map(|root| pem("CERTIFICATE", root.der())).collect()
    }

    fn now(&self) -> u64 {
        self.world.clock.now().as_secs()
    }

    fn token(&self, account: &str) -> String {
        self.cluster.sign(&claims(account, self.now()))
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    fn client(&self, account: &str) -> IstioCa {
        let quick = Duration::from_millis(20);
        IstioCa::new(id(account), &self.address.to_string())
            .unwrap()
            .roots_file(self.folder.join("root-cert.pem"))
            .token_file(self.write(&format!("{account}-token"), &self.token(account)))
            .retry(quick, quick)
    }

    async fn raw(&self) -> Raw {
        Raw::new(self.stream().await).await
    }

    async fn stream(&self) -> TlsStream<TcpStream> {
        let mut roots = RootCertStore::empty();
        let bundle = self.world.service.ca().bundle();
        for root in bundle.x509_authorities() {
            roots.add(root.der().clone()).unwrap();
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let stream = TcpStream::connect(self.address).await.unwrap();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        connector.connect(ISTIOD.try_into().unwrap(), stream).await.unwrap()
    }

    /// One call with a good token.
    async fn create(
        &self,
        request: &IstioCertificateRequest,
    ) -> Result<IstioCertificateResponse, (i32, String)> {
        let bearer = format!("Bearer {}", self.token("cart"));
        let headers = [("authorization", bearer.as_str())];
        self.raw().await.call(CREATE_CERTIFICATE, &headers, &request.encode_to_vec()).await
    }

    async fn create_for(&self, csr: &str) -> Result<IstioCertificateResponse, (i32, String)> {
        self.create(&request(csr)).await
    }
}

impl Drop for Istiod {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.folder));
    }
}

pub(crate) fn pem(label: &str, der: &[u8]) -> String {
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", STANDARD.encode(der))
}

fn request(csr: &str) -> IstioCertificateRequest {
    IstioCertificateRequest { csr: csr.to_owned(), ..Default::default() }
}

/// A request for this key, after a change of what it says.
fn csr(key: &KeyPair, change: impl FnOnce(&mut CertificateParams)) -> String {
    let mut params = CertificateParams::default();
    change(&mut params);
    pem("CERTIFICATE REQUEST", params.serialize_request(key).unwrap().der())
}

async fn identity(source: &mut mesh_tower::IstioCaSource) -> Identity {
    match timeout(PATIENCE, source.next()).await.unwrap() {
        IdentityUpdate::Identity(identity) => identity,
        other => panic!("{other:?}"),
    }
}

async fn failure(source: &mut mesh_tower::IstioCaSource) -> String {
    match timeout(PATIENCE, source.next()).await.unwrap() {
        IdentityUpdate::Failed(error) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

fn key_id(leaf: &str) -> Vec<u8> {
    let der = CertificateDer::from_pem_slice(leaf.as_bytes()).unwrap();
    X509Certificate::from_der(&der).unwrap().1.public_key().raw.to_vec()
}

/// [SEC-CA-8] By a service account's token, then by the certificate that it brought; the record says
/// who asked.
#[tokio::test]
async fn sec_ca_8_callers_by_token_and_by_certificate() {
    let istiod = Istiod::start().await;
    let mut source = istiod.client("cart").source();
    let state = source.state();
    assert_eq!(
        (state.last_error(), state.seconds_to_expiry(istiod.world.clock.now())),
        (None, None)
    );
    let first = identity(&mut source).await;
    assert_eq!(first.svid.id(), &id("cart"));
    assert_eq!(first.svid.chain().len(), 2, "leaf and intermediate; the root is not in the chain");
    let left = state.seconds_to_expiry(istiod.world.clock.now()).unwrap();
    assert!((86_390..=86_400).contains(&left), "{left}");
    let roots = first.bundles.get("cluster.local").unwrap().x509_authorities().to_vec();
    assert_eq!(roots, istiod.world.service.ca().bundle().x509_authorities());

    let chain: String = first.svid.chain().iter().map(|der| pem("CERTIFICATE", der)).collect();
    let key = pem("PRIVATE KEY", first.svid.private_key().secret_der());
    let files = (istiod.write("cert-chain.pem", &chain), istiod.write("key.pem", &key));
    let by_certificate = istiod.client("cart").certificate_files(&files.0, &files.1);
    let second = identity(&mut by_certificate.source()).await;
    assert_eq!(second.svid.id(), &id("cart"));
    assert_ne!(second.svid.public_key(), first.svid.public_key());
    // Whom the certificate names counts, whatever the workload believes to be.
    let other = istiod.client("other").certificate_files(&files.0, &files.1);
    let refused = failure(&mut other.source()).await;
    assert!(refused.contains("issued spiffe://cluster.local/ns/shop/sa/cart, not"), "{refused}");
    let callers: Vec<Value> =
        istiod.world.log.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let cart = callers.iter().filter(|line| line["caller"] == id("cart").as_str()).count();
    assert_eq!(cart, 3, "{callers:?}");
}

/// [SEC-CA-8] Whatever is wrong with a token, the answer is the same, and nothing is issued.
#[tokio::test]
async fn sec_ca_8_callers_that_are_not_authenticated() {
    let istiod = Istiod::start().await;
    let key = KeyPair::generate().unwrap();
    let question = request(&csr(&key, |_| {})).encode_to_vec();
    let now = istiod.now();
    let with = |name: &str, value: Value| {
        let mut claims = claims("cart", now);
        claims[name] = value;
        istiod.cluster.sign(&claims)
    };
    let without_expiry = {
        let mut claims = claims("cart", now);
        claims.as_object_mut().unwrap().remove("exp");
        istiod.cluster.sign(&claims)
    };
    let bearer = |token: String| vec![format!("Bearer {token}")];
    let good = istiod.token("cart");
    let bad: Vec<(&str, Vec<String>)> = vec![
        ("none", vec![]),
        ("basic", vec!["Basic dTpw".to_owned()]),
        ("no scheme", vec![good.clone()]),
        ("two", vec![format!("Bearer {good}"), format!("Bearer {good}")]),
        ("garbage", bearer("a.b.c".to_owned())),
        ("expired", bearer(with("exp", json!(now - 3600)))),
        ("no expiry", bearer(without_expiry)),
        ("not yet", bearer(with("nbf", json!(now + 3600)))),
        ("audience", bearer(with("aud", json!(["vault"])))),
        ("no audience", bearer(with("aud", json!([])))),
        ("issuer", bearer(with("iss", json!("https://evil.example")))),
        ("a user", bearer(with("sub", json!("admin")))),
        ("a node", bearer(with("sub", json!("system:node:one")))),
        ("slash", bearer(with("sub", json!("system:serviceaccount:shop:a/b")))),
        ("empty", bearer(with("sub", json!("system:serviceaccount:shop:")))),
        ("dots", bearer(with("sub", json!("system:serviceaccount:..:x")))),
        ("other key", bearer(Cluster::new().sign(&claims("cart", now)))),
    ];
    let mut raw = istiod.raw().await;
    for (name, values) in &bad {
        let headers: Vec<_> =
            values.iter().map(|value| ("authorization", value.as_str())).collect();
        let got =
            raw.call::<IstioCertificateResponse>(CREATE_CERTIFICATE, &headers, &question).await;
        assert_eq!(got, Err((UNAUTHENTICATED, "request authenticate failure".into())), "{name}");
    }
    assert!(!istiod.world.log.text().contains("/sa/cart"));
    // The same connection and the same request with a good token, at last.
    let headers = [("authorization", &*format!("Bearer {good}"))];
    let got = raw.call::<IstioCertificateResponse>(CREATE_CERTIFICATE, &headers, &question).await;
    assert!(got.is_ok(), "{got:?}");
}

/// [SEC-CA-8] Without an audience a token made for any other service would do, so there is no such
/// authority.
#[test]
fn sec_ca_8_service_accounts_need_an_audience() {
    let home = "cluster.local".parse().unwrap();
    let none = ServiceAccounts::new(home, ISSUER, &Cluster::new().jwks(), [""; 0]);
    assert!(none.unwrap_err().to_string().contains("audience"));
}

/// [SEC-CA-8] Nobody asks in another's name, but where a rule names both.
#[tokio::test]
async fn sec_ca_8_impersonation_needs_a_rule() {
    let asking = |whom: &str| {
        let whom = prost_types::value::Kind::StringValue(whom.to_owned());
        let value = prost_types::Value { kind: Some(whom) };
        let fields = [("ImpersonatedIdentity".to_owned(), value)].into();
        let csr = csr(&KeyPair::generate().unwrap(), |_| {});
        IstioCertificateRequest { metadata: Some(prost_types::Struct { fields }), ..request(&csr) }
    };
    let leaf_id = |answer: &IstioCertificateResponse| {
        let der = CertificateDer::from_pem_slice(answer.cert_chain[0].as_bytes()).unwrap();
        let (_, leaf) = X509Certificate::from_der(&der).unwrap();
        let names = leaf.subject_alternative_name().unwrap().unwrap().value.general_names.clone();
        let [GeneralName::URI(uri)] = names.as_slice() else { panic!("{names:?}") };
        (*uri).to_owned()
    };
    let strict = Istiod::start().await;
    for whom in [id("web").as_str(), "spiffe://evil.example/x", "nonsense", ""] {
        let got = strict.create(&asking(whom)).await;
        assert_eq!(got.unwrap_err().0, UNAUTHENTICATED, "{whom}");
    }
    assert!(strict.create(&asking(id("cart").as_str())).await.is_ok(), "its own name");
    let node = Istiod::with(World::start(), |settings| {
        settings.with_impersonation(|caller, whom| *caller == id("cart") && *whom == id("web"))
    })
    .await;
    let answer = node.create(&asking(id("web").as_str())).await.unwrap();
    assert_eq!(leaf_id(&answer), id("web").as_str());
    assert_eq!(node.create(&asking(id("db").as_str())).await.unwrap_err().0, UNAUTHENTICATED);
    let line = node.world.log.text();
    let line: Value = serde_json::from_str(line.lines().last().unwrap()).unwrap();
    assert_eq!(
        (&line["caller"], &line["identity"]),
        (&json!(id("cart").as_str()), &json!(id("web").as_str()))
    );
}

/// [SEC-CA-1], [SEC-CA-2] Hostile requests over the wire: what they ask for is not in the
/// certificate; what is broken or weak is refused.
#[tokio::test]
async fn sec_ca_1_hostile_requests_over_the_wire() {
    let istiod = Istiod::start().await;
    let key = KeyPair::generate().unwrap();
    let neutralized: [(&str, String); 4] = [
        (
            "another identity",
            csr(&key, |params| {
                params.subject_alt_names =
                    vec![SanType::URI(id("admin").as_str().try_into().unwrap())];
            }),
        ),
        (
            "two identities and a wildcard",
            csr(&key, |params| {
                params.subject_alt_names = vec![
                    SanType::URI(id("cart").as_str().try_into().unwrap()),
                    SanType::URI(id("admin").as_str().try_into().unwrap()),
                    SanType::DnsName("*.cluster.local".try_into().unwrap()),
                ];
            }),
        ),
        (
            "a CA's usages",
            csr(&key, |params| {
                params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
            }),
        ),
        (
            "a subject",
            csr(&key, |params| {
                params.distinguished_name.push(rcgen::DnType::CommonName, "admin");
            }),
        ),
    ];
    for (name, csr) in &neutralized {
        let answer = istiod.create_for(csr).await.unwrap();
        let der = CertificateDer::from_pem_slice(answer.cert_chain[0].as_bytes()).unwrap();
        let (_, leaf) = X509Certificate::from_der(&der).unwrap();
        assert_eq!(leaf.public_key().raw, key.subject_public_key_info(), "{name}");
        let names = leaf.subject_alternative_name().unwrap().unwrap().value.general_names.clone();
        assert_eq!(names, [GeneralName::URI(id("cart").as_str())], "{name}");
        assert_eq!(leaf.subject().iter().count(), 0, "{name}");
        assert!(!leaf.is_ca(), "{name}");
        let usage = leaf.key_usage().unwrap().unwrap().value;
        assert!(usage.digital_signature() && !usage.key_cert_sign(), "{name}");
    }

    let good = csr(&key, |_| {});
    let der = CertificateSigningRequestDer::from_pem_slice(good.as_bytes()).unwrap();
    let mut broken = der.to_vec();
    *broken.last_mut().unwrap() ^= 1;
    let trailing = [&der[..], b"\x05\x00"].concat();
    let file = |name: &str| {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../mesh-ca/tests/ca/csr");
        std::fs::read_to_string(format!("{folder}/{name}.pem")).unwrap()
    };
    let self_signed = {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        pem("CERTIFICATE", params.self_signed(&key).unwrap().der())
    };
    let refused = [
        ("broken signature", pem("CERTIFICATE REQUEST", &broken)),
        ("trailing data", pem("CERTIFICATE REQUEST", &trailing)),
        ("weak RSA key", file("rsa1024")),
        ("SHA-1", file("p256_sha1")),
        ("P-521", file("p521")),
        ("two requests", good.repeat(2)),
        ("nothing", String::new()),
        ("not PEM", "-----BEGIN".to_owned()),
        ("a certificate", self_signed),
        ("another label", good.replace("CERTIFICATE REQUEST", "NEW CERTIFICATE REQUEST")),
    ];
    for (name, csr) in &refused {
        let got = istiod.create_for(csr).await.map_err(|(code, _)| code);
        assert_eq!(got, Err(INVALID), "{name}");
    }
    // What is beyond the limit is not even read.
    let huge = istiod.create_for(&good.repeat(3000)).await.unwrap_err();
    assert!(matches!(huge.0, 8 | 11), "{huge:?}");
    assert!(istiod.create_for(&good).await.is_ok());
}

/// interfaces 2.1: leaf, each intermediate, and all roots in the last element; the life is the
/// default for zero and less, and the cap for more ([SEC-CA-5]).
#[tokio::test]
async fn sec_ca_5_the_answer_has_istiods_shape_and_a_capped_life() {
    let istiod = Istiod::start().await;
    let key = KeyPair::generate().unwrap();
    let csr = csr(&key, |_| {});
    let count = |text: &str| CertificateDer::pem_slice_iter(text.as_bytes()).count();
    for (asked, hours) in [(0, 1), (-5, 1), (7200, 2), (86_400, 24), (86_401, 24), (i64::MAX, 24)] {
        let question = IstioCertificateRequest { validity_duration: asked, ..request(&csr) };
        let answer = istiod.create(&question).await.unwrap();
        let [leaf, intermediate, roots] = answer.cert_chain.as_slice() else {
            panic!("{}", answer.cert_chain.len())
        };
        assert_eq!((count(leaf), count(intermediate), count(roots)), (1, 1, 1));
        assert_eq!(key_id(leaf), key.subject_public_key_info());
        let der = CertificateDer::from_pem_slice(leaf.as_bytes()).unwrap();
        let life = X509Certificate::from_der(&der).unwrap().1.validity().not_after.timestamp();
        let left = life - i64::try_from(istiod.now()).unwrap();
        assert!((hours * 3600 - 5..=hours * 3600).contains(&left), "{asked}: {left}");
    }
    istiod.world.service.ca().rotate_root_now(istiod.world.clock.now()).unwrap();
    let answer = istiod.create_for(&csr).await.unwrap();
    assert_eq!(count(&answer.cert_chain[2]), 2);
    assert_eq!(answer.cert_chain.len(), 3);
}

/// Several roots in the answer are all believed, and what the new one signs verifies before the
/// source has been renewed.
#[tokio::test]
async fn sec_ca_6_the_client_believes_all_roots_of_the_answer() {
    let istiod = Istiod::start().await;
    istiod.world.service.ca().rotate_root_now(istiod.world.clock.now()).unwrap();
    let partner = TrustBundle::new("partner.example".parse().unwrap());
    let source = &mut istiod.client("cart").foreign([partner]).source();
    let held = identity(source).await;
    assert_eq!(held.bundles.get("cluster.local").unwrap().x509_authorities().len(), 2);
    assert!(held.bundles.get("partner.example").is_some());
    istiod.world.clock.forward(900);
    istiod.world.service.ca().rotate(istiod.world.clock.now()).unwrap();
    let now = istiod.world.clock.now();
    let ca = istiod.world.service.ca();
    let newer = ca.issue_svid("test", &id("web"), Duration::from_secs(60), now).unwrap();
    let newest = ca.bundle().x509_authorities()[0].clone();
    let home = TrustBundle::new("cluster.local".parse().unwrap()).with_authority(newest);
    let algorithms = rustls::crypto::ring::default_provider().signature_verification_algorithms.all;
    for bundles in [&*held.bundles, &BundleSet::from_bundles([home]).unwrap()] {
        verify_svid(newer.chain(), bundles, now, Role::Client, algorithms).unwrap();
    }
}

/// Renewed at half of its life; while the service is away the last good one stays, the failure is
/// visible, and it is tried again for ever. The token is read for each call.
#[tokio::test]
async fn a_service_that_comes_and_goes() {
    let mut istiod = Istiod::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    istiod.address = listener.local_addr().unwrap();
    drop(listener);
    let life = Duration::from_secs(4);
    let mut source = istiod.client("cart").ttl(life).source();
    let state = source.state();
    for failures in 1..4 {
        let told = failure(&mut source).await;
        assert!(told.contains("cannot reach the certificate service"), "{told}");
        assert_eq!((state.failures(), state.last_error()), (failures, Some(told)));
    }
    let listener = TcpListener::bind(istiod.address).await.unwrap();
    let server = istiod.serve(listener, |settings| settings);
    let first = loop {
        if let IdentityUpdate::Identity(identity) = source.next().await {
            break identity;
        }
    };
    assert_eq!((state.failures(), state.last_error()), (0, None));
    // A token that is refused, then a good one in the same file.
    istiod.write("cart-token", "a.b.c");
    let refused = failure(&mut source).await;
    assert!(refused.contains("Unauthenticated"), "{refused}");
    let left = state.seconds_to_expiry(istiod.world.clock.now()).unwrap();
    assert!((1..=3).contains(&left), "renewal began at half of four seconds: {left}");
    istiod.write("cart-token", &istiod.token("cart"));
    let second = loop {
        if let IdentityUpdate::Identity(identity) = source.next().await {
            break identity;
        }
    };
    assert_ne!(second.svid.public_key(), first.svid.public_key(), "a key for each request");
    assert!(second.svid.not_after() > first.svid.not_after());
    server.abort();
}

/// What cannot be used names its file; what would be somebody else's is not taken.
#[tokio::test]
async fn what_the_client_refuses() {
    let istiod = Istiod::start().await;
    let missing = istiod.client("cart").token_file("/nonexistent/token");
    assert!(failure(&mut missing.source()).await.starts_with("/nonexistent/token: "));
    let garbage = istiod.write("garbage.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n");
    let roots = istiod.client("cart").roots_file(&garbage);
    let told = failure(&mut roots.source()).await;
    assert!(told.contains("garbage.pem: no certificate that can be read"), "{told}");
    let strangers = World::start();
    let stranger = strangers.service.ca().bundle().x509_authorities()[0].clone();
    let other = istiod.write("other.pem", &pem("CERTIFICATE", stranger.der()));
    let told = failure(&mut istiod.client("cart").roots_file(other).source()).await;
    assert!(
        told.contains("cannot reach the certificate service: invalid peer certificate"),
        "{told}"
    );
    let name = istiod.client("cart").server_name("other.example").unwrap();
    assert!(failure(&mut name.source()).await.contains("invalid peer certificate"));
    for bad in ["", "istiod", "istiod:", "istiod:x", "istiod:99999", "a b:1", ":1"] {
        assert!(IstioCa::new(id("cart"), bad).is_err(), "{bad}");
    }
    let shown = format!("{:?}", istiod.client("cart").header("x-key", "secret").unwrap());
    assert!(!shown.contains("secret"), "{shown}");
}

/// [SEC-HTTP-14] Who has shaken hands and asks nothing keeps no place for long.
#[tokio::test]
async fn sec_http_14_a_silent_caller_is_sent_away() {
    let istiod = Istiod::start().await;
    let (on_tls, on_socket) = (istiod.stream().await, istiod.world.stream().await);
    tokio::join!(ends(on_tls), ends(on_socket));
}
