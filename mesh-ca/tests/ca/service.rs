//! The authority as a service: limits, policy, log, rotation, tokens.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use mesh_ca::{
    Authority, Ca, CaError, CaSettings, IssueLog, IssueRecord, JsonLines, LimitReached, Limits,
    NoLog, Overlap, PluggedIn, Rate, RotatedKey, RotationStep, SignError, Signer, oidc_discovery,
    oidc_jwks,
};
use mesh_identity::x509::{Role, SvidError, verify_svid};
use mesh_identity::{BundleSet, SpiffeId, X509Svid};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PublicKeyData as _, SigningKey as _, date_time_ymd,
};
use ring::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use serde_json::{Value, json};

use crate::issue::{ALGORITHMS, verify};
use crate::{DAY, HOUR, ID, NOW, at, domain, id, now};

fn settings() -> CaSettings {
    CaSettings::new().unwrap()
}

fn ca() -> Ca {
    Ca::new(&domain(), settings(), NoLog, now()).unwrap()
}

fn logging(log: impl IssueLog + 'static) -> Ca {
    Ca::new(&domain(), settings(), log, now()).unwrap()
}

fn verified(ca: &Ca, svid: &X509Svid, when: u64) {
    let bundles = BundleSet::from_bundles([ca.bundle()]).unwrap();
    let id = verify_svid(svid.chain(), &bundles, at(when), Role::Client, ALGORITHMS).unwrap();
    assert_eq!(id.id(), svid.id());
}

/// A writer whose lines can be read, and that can be made to fail.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<(Vec<u8>, bool)>>);

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut inner = self.0.lock().unwrap();
        if inner.1 {
            return Err(io::Error::other("disk full"));
        }
        inner.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn sec_ca_10_recorded_before_it_is_returned() {
    let lines = Lines::default();
    let ca = logging(JsonLines::new(lines.clone()));
    let svid = ca.issue_svid("uid:1000", &id(), HOUR, now()).unwrap();
    ca.issue_jwt_svid("uid:1000", &id(), &["x".to_owned()], HOUR, None, now()).unwrap();
    let text = String::from_utf8(lines.0.lock().unwrap().0.clone()).unwrap();
    let records: Vec<Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let serial = x509_parser::parse_x509_certificate(&svid.chain()[0]).unwrap().1.raw_serial();
    let serial = serial.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"));
    let want = json!({
        "time": NOW, "kind": "x509", "caller": "uid:1000", "identity": ID, "serial": serial,
        "not_before": NOW - 60, "not_after": NOW + 3600,
    });
    assert_eq!((records.len(), &records[0]), (2, &want));
    assert_eq!((&records[1]["kind"], &records[1]["identity"]), (&json!("jwt"), &json!(ID)));
    // What cannot be recorded is not handed out.
    lines.0.lock().unwrap().1 = true;
    let got = ca.issue_svid("uid:1000", &id(), HOUR, now());
    assert!(matches!(got, Err(CaError::Log(_))));
    let got = ca.issue_jwt_svid("uid:1000", &id(), &["x".to_owned()], HOUR, None, now());
    assert!(matches!(got, Err(CaError::Log(_))));
}

/// Counts records, so that a test can tell whether something was signed.
struct Count(Arc<AtomicUsize>);

impl IssueLog for Count {
    fn record(&self, _record: &IssueRecord<'_>) -> io::Result<()> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

/// The limits come before the request is looked at: garbage beyond the limit is not even parsed.
#[test]
fn sec_ca_7_limits_before_any_cryptography() {
    let rate = Rate { burst: 2, per_second: 1 };
    let mut settings = settings();
    settings.limits = Limits { per_identity: rate, ..Limits::default() };
    let asked = Arc::new(AtomicUsize::new(0));
    let policy = Arc::clone(&asked);
    let ca = Ca::new(&domain(), settings, NoLog, now()).unwrap().with_policy(move |_request| {
        policy.fetch_add(1, Ordering::SeqCst);
        true
    });
    let garbage = || ca.issue_for_csr("x", &id(), b"garbage", HOUR, now());
    for _ in 0..2 {
        assert!(matches!(garbage(), Err(CaError::Csr)));
    }
    assert!(matches!(garbage(), Err(CaError::Limit(LimitReached::Identity))));
    assert_eq!(asked.load(Ordering::SeqCst), 2);
    let other: SpiffeId = "spiffe://a.test/other".parse().unwrap();
    assert!(ca.issue_svid("x", &other, HOUR, now()).is_ok());
}

/// The policy decides on the identity that was authenticated; its refusal says nothing about
/// whether an identity exists.
#[test]
fn sec_ca_8_the_policy_decides_and_tells_nothing() {
    let count = Arc::new(AtomicUsize::new(0));
    let ca = logging(Count(Arc::clone(&count)))
        .with_policy(|request| request.caller == "node" || request.identity.as_str() == ID);
    assert!(ca.issue_svid("anybody", &id(), HOUR, now()).is_ok());
    let refused: Vec<String> = ["spiffe://a.test/known", "spiffe://a.test/unknown"]
        .iter()
        .map(|name| {
            let got = ca.issue_svid("anybody", &name.parse().unwrap(), HOUR, now());
            assert!(matches!(got, Err(CaError::Policy)));
            got.unwrap_err().to_string()
        })
        .collect();
    assert_eq!(refused[0], refused[1]);
    assert_eq!(count.load(Ordering::SeqCst), 1);
    assert!(ca.issue_svid("node", &"spiffe://a.test/known".parse().unwrap(), HOUR, now()).is_ok());
}

/// A whole rotation of the root under issuance: what was issued before, during and after each step
/// verifies with the bundle of every moment in which it is valid.
#[test]
fn sec_ca_6_root_rotation_with_overlap() {
    let seconds = Duration::from_secs;
    let overlap = Overlap::new(20 * HOUR, seconds(900), HOUR).unwrap();
    let mut settings = settings();
    (settings.roots, settings.intermediate_life) = (overlap, 4 * HOUR);
    let ca = Ca::new(&domain(), settings, NoLog, now()).unwrap();
    let mut issued: Vec<X509Svid> = Vec::new();
    let mut steps = Vec::new();
    let mut sequence = ca.bundle().sequence();
    let mut at_second = NOW;
    while at_second < NOW + 60 * 3600 {
        let (events, until) = ca.rotate(at(at_second)).unwrap();
        assert!(until > at(at_second));
        if events.iter().any(|event| event.key != RotatedKey::Intermediate) {
            assert!(ca.bundle().sequence() > sequence);
            sequence = ca.bundle().sequence();
        }
        steps.extend(events.iter().filter(|event| event.key == RotatedKey::Root).map(|e| e.step));
        let svid = ca.issue_svid("x", &id(), seconds(0), at(at_second)).unwrap();
        assert_eq!(svid.not_after(), at(at_second + 3600), "never shortened");
        issued.push(svid);
        issued.retain(|svid| svid.not_after() >= at(at_second));
        for svid in &issued {
            verified(&ca, svid, at_second);
        }
        at_second += 600;
    }
    let cycle = [RotationStep::Published, RotationStep::Signs, RotationStep::Removed];
    assert!(steps.len() >= 9, "{steps:?}");
    for (at, step) in steps.iter().enumerate() {
        assert_eq!(*step, cycle[at % 3]);
    }
}

/// An intermediate that would shorten leaves, refuse to issue before its successor signs, or outlive
/// its root is a mistake in the settings, told before anything is issued.
#[test]
fn sec_ca_5_an_intermediates_life_is_checked_at_construction() {
    let overlap = Overlap::new(20 * HOUR, Duration::from_secs(900), HOUR).unwrap();
    let make = |roots, intermediate_life| {
        let mut settings = settings();
        (settings.roots, settings.intermediate_life) = (roots, intermediate_life);
        Ca::new(&domain(), settings, NoLog, now())
    };
    let second = Duration::from_secs(1);
    let (enough, just_too_short) = (2 * HOUR + 120 * second, 2 * HOUR + 119 * second);
    for good in [enough, 20 * HOUR] {
        assert!(make(overlap, good).is_ok(), "{good:?}");
    }
    for bad in [Duration::ZERO, just_too_short, 20 * HOUR + second] {
        assert!(matches!(make(overlap, bad), Err(CaError::IntermediateLife)), "{bad:?}");
    }
    // Whatever leaves live, who issues has half an hour left.
    let short = Overlap::new(20 * HOUR, Duration::from_secs(900), second).unwrap();
    assert!(matches!(make(short, HOUR + 119 * second), Err(CaError::IntermediateLife)));
    assert!(make(short, HOUR + 120 * second).is_ok());
}

#[test]
fn sec_ca_6_a_rotation_on_demand() {
    let ca = ca();
    let before = ca.issue_svid("x", &id(), HOUR, now()).unwrap();
    assert!(ca.rotate_root_now(now()).unwrap().is_some());
    assert_eq!(ca.bundle().x509_authorities().len(), 2);
    let (events, _) = ca.rotate(at(NOW + 899)).unwrap();
    assert!(events.is_empty());
    let (events, _) = ca.rotate(at(NOW + 900)).unwrap();
    assert_eq!((events[0].key, events[0].step), (RotatedKey::Root, RotationStep::Signs));
    let after = ca.issue_svid("x", &id(), HOUR, at(NOW + 900)).unwrap();
    verified(&ca, &before, NOW + 900);
    verified(&ca, &after, NOW + 900);
}

/// JWT-SVID section 3: exactly the header and claims that it asks for, and a signature that the
/// published key verifies.
#[test]
fn sec_id_11_tokens_are_jwt_svids() {
    let ca = ca();
    let audience = ["shop".to_owned(), "bank".to_owned()];
    let issuer = Some("https://ca.a.test");
    let token = ca.issue_jwt_svid("x", &id(), &audience, Duration::ZERO, issuer, now()).unwrap();
    let parts: Vec<&str> = token.token().split('.').collect();
    let json = |part: &str| -> Value {
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
    };
    let bundle = ca.bundle();
    let key = bundle.jwt_authorities()[0].jwk();
    assert_eq!(json(parts[0]), json!({ "alg": "ES256", "kid": key["kid"], "typ": "JWT" }));
    let claims = json(parts[1]);
    assert_eq!(claims["sub"], json!(ID));
    assert_eq!(claims["aud"], json!(audience));
    assert_eq!((&claims["iat"], &claims["exp"]), (&json!(NOW), &json!(NOW + 300)));
    assert_eq!(claims["iss"], json!("https://ca.a.test"));
    let coordinate = |name: &str| URL_SAFE_NO_PAD.decode(key[name].as_str().unwrap()).unwrap();
    let point = [vec![4], coordinate("x"), coordinate("y")].concat();
    let signed = format!("{}.{}", parts[0], parts[1]);
    let signature = URL_SAFE_NO_PAD.decode(parts[2]).unwrap();
    let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point);
    public.verify(signed.as_bytes(), &signature).unwrap();
    // A life beyond the cap gets the cap; no audience is no token; nor is another domain's name.
    let long = ca.issue_jwt_svid("x", &id(), &audience, DAY, None, now()).unwrap();
    assert_eq!(long.not_after(), at(NOW + 3600));
    for bad in [vec![], vec![String::new()], vec!["x".to_owned(); 33]] {
        let got = ca.issue_jwt_svid("x", &id(), &bad, HOUR, None, now());
        assert!(matches!(got, Err(CaError::Audience)));
    }
    let foreign = "spiffe://b.test/x".parse().unwrap();
    let got = ca.issue_jwt_svid("x", &foreign, &audience, HOUR, None, now());
    assert!(matches!(got, Err(CaError::ForeignIdentity)));
    assert!(!format!("{token:?}").contains(parts[2]));
}

#[test]
fn documents_for_oidc() {
    let keys: Value = serde_json::from_str(&oidc_jwks(ca().bundle().jwt_authorities())).unwrap();
    assert_eq!(
        (&keys["keys"][0]["use"], &keys["keys"][0]["alg"]),
        (&json!("sig"), &json!("ES256"))
    );
    let document: Value = serde_json::from_str(&oidc_discovery("https://ca.a.test")).unwrap();
    assert_eq!(document["issuer"], "https://ca.a.test");
    assert_eq!(document["jwks_uri"], "https://ca.a.test/keys");
}

/// A key that somebody else holds, and that can refuse.
struct Kms(KeyPair, Vec<u8>, bool);

impl Kms {
    fn new(works: bool) -> Self {
        let key = KeyPair::generate().unwrap();
        let public = key.subject_public_key_info();
        Self(key, public, works)
    }
}

impl Signer for Kms {
    fn public_key(&self) -> &[u8] {
        &self.1
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignError> {
        if self.2 { self.0.sign(message).map_err(|_detail| SignError) } else { Err(SignError) }
    }
}

/// Returns a signature of something else.
struct Liar(Kms);

impl Signer for Liar {
    fn public_key(&self) -> &[u8] {
        self.0.public_key()
    }

    fn sign(&self, _message: &[u8]) -> Result<Vec<u8>, SignError> {
        self.0.sign(b"something else")
    }
}

#[test]
fn sec_ca_9_a_key_in_other_hands_signs() {
    let root = Authority::new_root_for(&domain(), Box::new(Kms::new(true)), DAY, now()).unwrap();
    let svid = root.issue_svid(&id(), HOUR, now()).unwrap();
    verify(svid.chain(), &root, &id(), now());
    assert!(Authority::new_root_for(&domain(), Box::new(Kms::new(false)), DAY, now()).is_err());
    // [SEC-CA-4] A signer that signs something else is found out before anything is handed out.
    let liar = Liar(Kms::new(true));
    let root = Authority::new_root_for(&domain(), Box::new(liar), DAY, now()).unwrap();
    let got = root.issue_svid(&id(), HOUR, now());
    assert!(matches!(got, Err(CaError::Issued(_))), "{got:?}");
}

/// A key that counts what it signs.
struct Counting(Kms, Arc<AtomicUsize>);

impl Signer for Counting {
    fn public_key(&self) -> &[u8] {
        self.0.public_key()
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignError> {
        self.1.fetch_add(1, Ordering::SeqCst);
        self.0.sign(message)
    }
}

/// Counted, not timed: of a thousand requests a second from one caller, as many are worked on as
/// from one who asks once a second, so that he waits for one signature besides his own.
#[test]
fn sec_ca_7_a_flood_at_most_doubles_what_is_done() {
    let signatures = Arc::new(AtomicUsize::new(0));
    let signer = Counting(Kms::new(true), Arc::clone(&signatures));
    let root = Authority::new_root_for(&domain(), Box::new(signer), DAY, now()).unwrap();
    let ca = Ca::with_authority(root, settings(), NoLog, now()).unwrap();
    let other: SpiffeId = "spiffe://a.test/other".parse().unwrap();
    let second = |when| {
        let before = signatures.load(Ordering::SeqCst);
        for _ in 0..1000 {
            if let Err(error) = ca.issue_svid("flood", &id(), HOUR, when) {
                assert!(matches!(error, CaError::Limit(LimitReached::Identity)), "{error:?}");
            }
        }
        ca.issue_svid("other", &other, HOUR, when).unwrap();
        signatures.load(Ordering::SeqCst) - before
    };
    // What it may have at once is gone with the first second.
    let burst = usize::try_from(Limits::default().per_identity.burst).unwrap();
    assert_eq!(second(now()), burst + 1);
    for later in 1..20 {
        assert_eq!(second(at(NOW + later)), 2, "{later}");
    }
}

pub(crate) fn ca_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.use_authority_key_identifier_extension = true;
    params.not_before = date_time_ymd(2026, 1, 1);
    params.not_after = date_time_ymd(2036, 1, 1);
    params
}

pub(crate) fn pem(label: &str, der: &[u8]) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n")
}

/// `ca-cert.pem`, `ca-key.pem`, `cert-chain.pem`, `root-cert.pem`, the chain with or without its
/// ends, and cert-manager's `tls.crt`.
#[test]
fn an_authority_plugged_in_as_into_istio() {
    let (root_key, middle_key, key) =
        (KeyPair::generate().unwrap(), KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let root = ca_params("root").self_signed(&root_key).unwrap().der().clone();
    let root_issuer = Issuer::new(ca_params("root"), root_key);
    let middle = ca_params("middle").signed_by(&middle_key, &root_issuer).unwrap().der().clone();
    let middle_issuer = Issuer::new(ca_params("middle"), middle_key);
    let own = ca_params("own").signed_by(&key, &middle_issuer).unwrap().der().clone();
    let key_pem = pem("PRIVATE KEY", key.serialized_der());
    let [root, middle, own] = [root, middle, own].map(|der| pem("CERTIFICATE", &der));
    let other = pem(
        "CERTIFICATE",
        ca_params("other").self_signed(&KeyPair::generate().unwrap()).unwrap().der(),
    );
    let roots = format!("{root}{other}");
    let load = |certificate: &str, chain: &str, roots: &str| {
        let files = PluggedIn {
            certificate: certificate.as_bytes(),
            key: key_pem.as_bytes(),
            chain: chain.as_bytes(),
            roots: roots.as_bytes(),
        };
        Authority::from_plugged_in(&domain(), &files, now())
    };
    let bundle = format!("{own}{middle}");
    for (certificate, chain) in [
        (&own, &format!("{own}{middle}{root}")),
        (&own, &middle),
        (&own, &format!("{middle}{root}")),
        (&bundle, &bundle),
    ] {
        let authority = load(certificate, chain, &roots).unwrap();
        let svid = authority.issue_svid(&id(), HOUR, now()).unwrap();
        assert_eq!(svid.chain().len(), 3, "leaf, own, middle; never the root");
        assert_eq!(authority.bundle().x509_authorities().len(), 2);
        verify(svid.chain(), &authority, &id(), now());
        let below = authority.new_intermediate(HOUR, now()).unwrap();
        let svid = below.issue_svid(&id(), HOUR, now()).unwrap();
        verify(svid.chain(), &authority, &id(), now());
        let ca = Ca::with_authority(authority, settings(), NoLog, now()).unwrap();
        verified(&ca, &ca.issue_svid("x", &id(), HOUR, now()).unwrap(), NOW);
        assert!(ca.rotate_root_now(now()).unwrap().is_none());
    }
    // The way up is missing, or leads elsewhere.
    assert!(matches!(load(&own, "", &roots), Err(CaError::Issued(_))));
    assert!(matches!(load(&own, &middle, &other), Err(CaError::Issued(_))));
    assert!(matches!(load(&own, &middle, ""), Err(CaError::Bundle(_))));
}

/// A bare public key is judged as that of a request.
#[test]
fn sec_ca_2_public_keys_are_judged() {
    let ca = ca();
    let key = KeyPair::generate().unwrap().subject_public_key_info();
    let chain = ca.issue_for_public_key("x", &id(), &key, HOUR, now()).unwrap();
    crate::issue::check_profile(&chain[0], ID);
    let own = ca.bundle().x509_authorities()[0].public_key().to_vec();
    let got = ca.issue_for_public_key("x", &id(), &own, HOUR, now());
    assert!(matches!(got, Err(CaError::OwnKey)));
    // The same key, its point compressed: another spelling is no way around.
    let (curve, point) = (&own[2..23], &own[26..]);
    let sign = 2 + (point[64] & 1);
    let compressed = [&[0x30, 0x39], curve, &[3, 0x22, 0, sign], &point[1..33]].concat();
    let got = ca.issue_for_public_key("x", &id(), &compressed, HOUR, now());
    assert!(matches!(got, Err(CaError::CsrKey(SvidError::Malformed))), "{got:?}");
    for bad in [&b""[..], b"garbage", &[&key[..], b"x"].concat(), &vec![0x30; 20_000]] {
        assert!(ca.issue_for_public_key("x", &id(), bad, HOUR, now()).is_err());
    }
}
