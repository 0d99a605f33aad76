//! A certificate service that lies: nothing of it is taken, the last good identity stays, and the
//! failure shows.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_ca::istio_ca::{IstioCertificateRequest, IstioCertificateResponse};
use mesh_ca::{Authority, CertificateRequest};
use mesh_tower::identity::SpiffeId;
use mesh_tower::{Clock as _, IdentitySource as _, IdentityUpdate, IstioCa, SystemClock};
use prost::Message as _;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, IsCa, KeyPair,
    PublicKeyData as _, SanType, SubjectPublicKeyInfo,
};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{
    CertificateDer, CertificateSigningRequestDer, PrivatePkcs8KeyDer, UnixTime,
};
use tokio::net::TcpListener;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsAcceptor;

use crate::istio::pem;
use crate::support::{PATIENCE, domain, frame, id};

const ISTIOD: &str = "istiod.istio-system.svc";
const HOUR: Duration = Duration::from_secs(3600);

/// What the service does with a call.
enum Does {
    Answers(Vec<String>),
    /// Bytes in the place of a message.
    Says(Vec<u8>),
    /// An error of gRPC, with its words.
    Refuses(&'static str, &'static str),
    /// An error of HTTP.
    Fails(StatusCode),
    Hangs,
}

type Script = Box<dyn FnMut(&CertificateRequest) -> Does + Send>;

struct Liar {
    address: SocketAddr,
    folder: PathBuf,
    script: Arc<Mutex<Script>>,
    calls: Arc<Mutex<Vec<Instant>>>,
}

impl Liar {
    /// A server that TLS proves: what it says inside is another matter.
    async fn start(script: Script) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let own = CertificateParams::new([ISTIOD.to_owned()]).unwrap();
        let own = own.signed_by(&key, &root).unwrap().der().clone();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![own], PrivatePkcs8KeyDer::from(key.serialize_der()).into())
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let folder = std::env::temp_dir().join(format!("mesh-liar-{}", address.port()));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("root-cert.pem"), pem("CERTIFICATE", root.der())).unwrap();
        std::fs::write(folder.join("token"), "a.b.c").unwrap();
        let script = Arc::new(Mutex::new(script));
        let calls = Arc::new(Mutex::new(Vec::new()));
        let liar = Self { address, folder, script, calls };
        let (script, calls) = (Arc::clone(&liar.script), Arc::clone(&liar.calls));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (script, calls) = (Arc::clone(&script), Arc::clone(&calls));
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let service = service_fn(move |request| {
                        calls.lock().unwrap().push(Instant::now());
                        answer(Arc::clone(&script), request)
                    });
                    let server = http2::Builder::new(TokioExecutor::new());
                    drop(server.serve_connection(TokioIo::new(stream), service).await);
                });
            }
        });
        liar
    }

    fn does(&self, script: impl FnMut(&CertificateRequest) -> Does + Send + 'static) {
        *self.script.lock().unwrap() = Box::new(script);
    }

    fn client(&self) -> IstioCa {
        let quick = Duration::from_millis(20);
        IstioCa::new(id("cart"), &self.address.to_string())
            .unwrap()
            .roots_file(self.folder.join("root-cert.pem"))
            .token_file(self.folder.join("token"))
            .retry(quick, quick)
    }
}

impl Drop for Liar {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.folder));
    }
}

async fn answer(
    script: Arc<Mutex<Script>>,
    request: Request<Incoming>,
) -> Result<Response<http_body_util::combinators::UnsyncBoxBody<Bytes, Infallible>>, Infallible> {
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let question = IstioCertificateRequest::decode(&body[5..]).unwrap();
    let csr = CertificateSigningRequestDer::from_pem_slice(question.csr.as_bytes()).unwrap();
    let request = CertificateRequest::from_der(&csr).unwrap();
    let does = (script.lock().unwrap())(&request);
    let (message, code, words) = match does {
        Does::Answers(cert_chain) => {
            (frame(&IstioCertificateResponse { cert_chain }.encode_to_vec()), "0", "")
        }
        Does::Says(bytes) => (frame(&bytes), "0", ""),
        Does::Refuses(code, words) => (Bytes::new(), code, words),
        Does::Fails(status) => {
            let empty = Full::new(Bytes::new()).boxed_unsync();
            return Ok(Response::builder().status(status).body(empty).unwrap());
        }
        Does::Hangs => std::future::pending().await,
    };
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static(code));
    trailers.insert("grpc-message", HeaderValue::from_static(words));
    let body = Full::new(message).with_trailers(async move { Some(Ok(trailers)) });
    let response = Response::builder().header("content-type", "application/grpc");
    Ok(response.body(body.boxed_unsync()).unwrap())
}

fn now() -> UnixTime {
    SystemClock.now()
}

fn ago(hours: u64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(now().as_secs() - hours * 3600))
}

fn authority() -> Authority {
    Authority::new_root(&domain(), 100 * HOUR, ago(10)).unwrap()
}

fn roots(authority: &Authority) -> String {
    authority.certificate_pem()
}

fn chain(chain: &[CertificateDer<'_>], roots: String) -> Does {
    let chain = chain.iter().map(|der| pem("CERTIFICATE", der));
    Does::Answers(chain.chain([roots]).collect())
}

/// A chain for the key of the request, and these roots.
fn issue(
    authority: &Authority,
    whom: &SpiffeId,
    request: &CertificateRequest,
    life: Duration,
    roots: String,
) -> Does {
    chain(&authority.issue_for_request(whom, request, life, now()).unwrap(), roots)
}

/// A leaf by somebody who keeps none of the rules, for the key of a request.
fn loose(request: &CertificateRequest, change: impl Fn(&mut CertificateParams)) -> Does {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    // The key of the request, out of a certificate for it.
    let honest = authority().issue_for_request(&id("cart"), request, HOUR, now()).unwrap();
    let (_, honest) = x509_parser::parse_x509_certificate(&honest[0]).unwrap();
    let key = SubjectPublicKeyInfo::from_der(honest.public_key().raw).unwrap();
    assert_eq!(key.subject_public_key_info(), honest.public_key().raw);
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(id("cart").as_str().try_into().unwrap())];
    change(&mut params);
    let leaf = params.signed_by(&key, &root).unwrap();
    chain(&[leaf.der().clone()], pem("CERTIFICATE", root.der()))
}

/// A lie of an authority.
type Told = Box<dyn Fn(&Authority, &CertificateRequest) -> Does + Send>;
type Lie = Box<dyn FnMut(&CertificateRequest) -> Does + Send>;

/// Each lie, and what is said of it.
#[expect(clippy::too_many_lines, reason = "a table")]
fn lies() -> Vec<(&'static str, Lie, &'static str)> {
    let (ca, other) = (Arc::new(authority()), authority());
    let strangers = roots(&other);
    let with = |run: Told| -> Lie {
        let ca = Arc::clone(&ca);
        Box::new(move |request| run(&ca, request))
    };
    let no_path = "does not verify: no path to an authority";
    vec![
        (
            "for another key",
            with(Box::new(|ca, _| {
                let svid = ca.issue_svid(&id("cart"), HOUR, now()).unwrap();
                chain(svid.chain(), roots(ca))
            })),
            "issued for another key",
        ),
        (
            "another identity",
            with(Box::new(|ca, request| issue(ca, &id("admin"), request, HOUR, roots(ca)))),
            "issued spiffe://cluster.local/ns/shop/sa/admin, not",
        ),
        (
            "another trust domain",
            Box::new(|request| {
                let evil = "evil.example".parse().unwrap();
                let ca = Authority::new_root(&evil, 100 * HOUR, ago(10)).unwrap();
                let whom = "spiffe://evil.example/ns/shop/sa/cart".parse().unwrap();
                issue(&ca, &whom, request, HOUR, roots(&ca))
            }),
            "issued spiffe://evil.example/ns/shop/sa/cart, not",
        ),
        (
            "expired",
            with(Box::new(|ca, request| {
                let old = ca.issue_for_request(&id("cart"), request, HOUR, ago(2)).unwrap();
                chain(&old, roots(ca))
            })),
            "a certificate of the chain has expired",
        ),
        (
            "not yet valid",
            with(Box::new(|ca, request| {
                let later = UnixTime::since_unix_epoch(Duration::from_secs(now().as_secs() + 7200));
                let early = ca.issue_for_request(&id("cart"), request, HOUR, later).unwrap();
                chain(&early, roots(ca))
            })),
            "not valid yet",
        ),
        ("nothing", Box::new(|_| Does::Answers(vec![])), "no certificate with a root"),
        (
            "roots alone",
            with(Box::new(|ca, _| Does::Answers(vec![roots(ca)]))),
            "no certificate with a root",
        ),
        (
            "an empty chain",
            with(Box::new(|ca, _| Does::Answers(vec![String::new(), roots(ca)]))),
            "no readable certificate chain",
        ),
        (
            "no roots",
            with(Box::new(|ca, request| issue(ca, &id("cart"), request, HOUR, String::new()))),
            "not taken",
        ),
        (
            "garbage",
            Box::new(|_| Does::Answers(vec!["garbage".to_owned(), "garbage".to_owned()])),
            "not taken",
        ),
        (
            "a broken block",
            with(Box::new(|ca, _| {
                let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n".to_owned();
                Does::Answers(vec![broken, roots(ca)])
            })),
            "not taken",
        ),
        (
            "a block that is no certificate",
            with(Box::new(|ca, _| Does::Answers(vec![pem("CERTIFICATE", &[48, 0]), roots(ca)]))),
            "certificate is malformed",
        ),
        ("no message", Box::new(|_| Does::Says(vec![0xff; 40])), "answers Internal"),
        (
            "other roots",
            with(Box::new(move |ca, request| {
                issue(ca, &id("cart"), request, HOUR, strangers.clone())
            })),
            no_path,
        ),
        (
            "without the intermediate",
            with(Box::new(|ca, request| {
                let below = ca.new_intermediate(10 * HOUR, now()).unwrap();
                let chain_ = below.issue_for_request(&id("cart"), request, HOUR, now()).unwrap();
                chain(&chain_[..1], roots(ca))
            })),
            no_path,
        ),
        (
            "eleven certificates",
            with(Box::new(|ca, request| {
                let leaf = ca.issue_for_request(&id("cart"), request, HOUR, now()).unwrap();
                let many: Vec<_> = std::iter::repeat_n(&leaf[0], 11).cloned().collect();
                chain(&many, roots(ca))
            })),
            "more than 10 certificates",
        ),
        (
            "an authority's certificate",
            Box::new(|request| {
                loose(request, |params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained))
            }),
            "leaf is a certificate authority",
        ),
        (
            "two identities",
            Box::new(|request| {
                loose(request, |params| {
                    params.is_ca = IsCa::ExplicitNoCa;
                    let more = id("admin").as_str().try_into().unwrap();
                    params.subject_alt_names.push(SanType::URI(more));
                })
            }),
            "more than one URI SAN",
        ),
        (
            "too much",
            with(Box::new(|ca, request| {
                issue(ca, &id("cart"), request, HOUR, roots(ca).repeat(1000))
            })),
            "answers OutOfRange",
        ),
        (
            "a refusal",
            Box::new(|_| Does::Refuses("7", "go away")),
            "answers PermissionDenied: go away",
        ),
        ("an outage", Box::new(|_| Does::Refuses("14", "later")), "answers Unavailable: later"),
        (
            "HTTP 503",
            Box::new(|_| Does::Fails(StatusCode::SERVICE_UNAVAILABLE)),
            "answers Unavailable",
        ),
        ("HTTP 404", Box::new(|_| Does::Fails(StatusCode::NOT_FOUND)), "answers Unimplemented"),
    ]
}

/// One lie after the other: each is refused for its own reason, and what was good stays in force.
#[tokio::test]
async fn sec_id_12_nothing_of_a_lie_is_taken() {
    let ca = Arc::new(authority());
    let honest = |ca: &Arc<Authority>, life| -> Script {
        let ca = Arc::clone(ca);
        Box::new(move |request| issue(&ca, &id("cart"), request, life, roots(&ca)))
    };
    let liar = Liar::start(honest(&ca, Duration::from_secs(4))).await;
    let mut source = liar.client().source();
    let state = source.state();
    let IdentityUpdate::Identity(good) = timeout(PATIENCE, source.next()).await.unwrap() else {
        panic!("{state:?}")
    };
    let held = format!("{:?}", good.svid.not_after());
    for (failures, (name, lie, want)) in (1..).zip(lies()) {
        liar.does(lie);
        let update = timeout(PATIENCE, source.next()).await.unwrap();
        let IdentityUpdate::Failed(error) = update else { panic!("{name}: {update:?}") };
        let error = error.to_string();
        assert!(error.contains(want), "{name}: {error}");
        assert_eq!((state.failures(), state.last_error()), (failures, Some(error)), "{name}");
        assert!(format!("{state:?}").contains(&held), "{name}: the good one is in force");
    }
    // And when it says the truth again, that is taken; several roots, all of them.
    let other = roots(&authority());
    liar.does(move |request| {
        issue(&ca, &id("cart"), request, HOUR, format!("{}{other}", roots(&ca)))
    });
    let IdentityUpdate::Identity(next) = timeout(PATIENCE, source.next()).await.unwrap() else {
        panic!("{state:?}")
    };
    assert_eq!((state.failures(), state.last_error()), (0, None));
    assert_ne!(next.svid.public_key(), good.svid.public_key());
    assert_eq!(next.bundles.get("cluster.local").unwrap().x509_authorities().len(), 2);
}

/// A service that takes the call and never answers costs ten seconds, not a task for ever.
#[tokio::test]
async fn a_service_that_never_answers() {
    let liar = Liar::start(Box::new(|_| Does::Hangs)).await;
    let mut source = liar.client().source();
    let begun = Instant::now();
    let update = timeout(PATIENCE, source.next()).await.unwrap();
    let IdentityUpdate::Failed(error) = update else { panic!("{update:?}") };
    assert_eq!(error.to_string(), "the certificate service does not answer");
    assert!((10..15).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
    assert_eq!(source.state().failures(), 1);
}

/// Who refuses is not asked in a loop: the waits double.
#[tokio::test]
async fn a_service_that_refuses_is_asked_ever_more_seldom() {
    let liar = Liar::start(Box::new(|_| Does::Refuses("14", "later"))).await;
    let first = Duration::from_millis(40);
    let mut source = liar.client().retry(first, HOUR).source();
    for _ in 0..5 {
        let update = timeout(PATIENCE, source.next()).await.unwrap();
        assert!(matches!(update, IdentityUpdate::Failed(_)), "{update:?}");
    }
    let calls = liar.calls.lock().unwrap().clone();
    let waits: Vec<_> = calls.windows(2).map(|two| two[1] - two[0]).collect();
    for (wait, times) in waits.iter().zip([1, 2, 4, 8]) {
        assert!(*wait >= first * times * 4 / 5, "{waits:?}");
    }
}
