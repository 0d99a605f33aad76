//! The certificates themselves.

use std::collections::HashSet;
use std::time::Duration;

use mesh_ca::{Authority, BACKDATE, CaError, CertificateRequest, DEFAULT_TTL, KeyKind, MAX_TTL};
use mesh_identity::x509::{Role, verify_svid};
use mesh_identity::{BundleSet, SpiffeId, X509Svid};
use proptest::prelude::*;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, SignatureVerificationAlgorithm, UnixTime};
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::service::{ca_params, pem};
use crate::{DAY, HOUR, ID, NOW, at, domain, id, now, root};

pub(crate) const ALGORITHMS: &[&dyn SignatureVerificationAlgorithm] = &[
    webpki::ring::ECDSA_P256_SHA256,
    webpki::ring::ECDSA_P384_SHA384,
    webpki::ring::ED25519,
    webpki::ring::RSA_PKCS1_2048_8192_SHA256,
];

/// Both roles accept it as this identity.
pub(crate) fn verify(chain: &[CertificateDer<'_>], from: &Authority, id: &SpiffeId, now: UnixTime) {
    let bundles = BundleSet::from_bundles([from.bundle()]).unwrap();
    for role in [Role::Client, Role::Server] {
        let verified = verify_svid(chain, &bundles, now, role, ALGORITHMS).unwrap();
        assert_eq!(verified.id(), id);
    }
}

/// Exactly the profile of a leaf, and nothing besides.
pub(crate) fn check_profile(leaf: &CertificateDer<'_>, id: &str) {
    let (rest, certificate) = X509Certificate::from_der(leaf).unwrap();
    assert!(rest.is_empty());
    assert_eq!(certificate.version.0, 2);
    assert_eq!(certificate.subject().iter().count(), 0);
    let serial = certificate.raw_serial();
    assert!(serial.len() == 16 && serial[0] < 0x80, "{serial:?}");
    let mut seen = Vec::new();
    for extension in certificate.extensions() {
        let name = match extension.parsed_extension() {
            ParsedExtension::SubjectAlternativeName(san) => {
                assert_eq!(san.general_names, [GeneralName::URI(id)]);
                "san"
            }
            ParsedExtension::BasicConstraints(constraints) => {
                assert!(!constraints.ca && constraints.path_len_constraint.is_none());
                "basic"
            }
            ParsedExtension::KeyUsage(usage) => {
                assert!(usage.digital_signature());
                assert_eq!(usage.flags.count_ones(), 1);
                "usage"
            }
            ParsedExtension::ExtendedKeyUsage(purposes) => {
                assert!(purposes.server_auth && purposes.client_auth && !purposes.any);
                assert!(purposes.other.is_empty() && !purposes.code_signing);
                "purposes"
            }
            ParsedExtension::AuthorityKeyIdentifier(key) => {
                assert!(key.key_identifier.is_some());
                "aki"
            }
            ParsedExtension::SubjectKeyIdentifier(_) => "ski",
            other => panic!("{other:?}"),
        };
        seen.push((name, extension.critical));
    }
    seen.sort_unstable();
    let want = [
        ("aki", false),
        ("basic", true),
        ("purposes", false),
        ("san", true),
        ("ski", false),
        ("usage", true),
    ];
    assert_eq!(seen, want);
}

/// Seconds of validity, from its beginning.
fn life(svid: &X509Svid) -> (u64, u64) {
    (svid.not_before().as_secs(), svid.not_after().as_secs())
}

#[test]
fn sec_ca_3_every_certificate_has_both_key_identifiers() {
    let root = root();
    let intermediate = root.new_intermediate(DAY, now()).unwrap();
    let svid = intermediate.issue_svid(&id(), HOUR, now()).unwrap();
    let mut chain = svid.chain().to_vec();
    chain.push(root.bundle().x509_authorities()[0].der().clone());
    assert_eq!(chain.len(), 3);
    let keys: Vec<_> = chain
        .iter()
        .map(|der| {
            let (_, certificate) = X509Certificate::from_der(der).unwrap();
            let mut keys = (Vec::new(), Vec::new());
            for extension in certificate.extensions() {
                if let ParsedExtension::SubjectKeyIdentifier(key) = extension.parsed_extension() {
                    keys.0 = key.0.to_vec();
                } else if let ParsedExtension::AuthorityKeyIdentifier(key) =
                    extension.parsed_extension()
                {
                    keys.1 = key.key_identifier.as_ref().unwrap().0.to_vec();
                }
            }
            keys
        })
        .collect();
    assert!(keys.iter().all(|(subject, _)| !subject.is_empty()));
    assert_eq!(keys[0].1, keys[1].0);
    assert_eq!(keys[1].1, keys[2].0);
    assert_eq!(keys[2].1, keys[2].0);
}

#[test]
fn sec_ca_3_serials_of_issued_certificates_differ() {
    let root = root();
    let serials: HashSet<Vec<u8>> = (0..500)
        .map(|_| {
            let svid = root.issue_svid(&id(), HOUR, now()).unwrap();
            X509Certificate::from_der(&svid.chain()[0]).unwrap().1.raw_serial().to_vec()
        })
        .collect();
    assert_eq!(serials.len(), 500);
}

#[test]
fn sec_ca_5_life_is_capped() {
    let root = root();
    let lives = |ttl: Duration| life(&root.issue_svid(&id(), ttl, now()).unwrap());
    let begin = NOW - BACKDATE.as_secs();
    assert_eq!(lives(Duration::ZERO), (begin, NOW + DEFAULT_TTL.as_secs()));
    assert_eq!(lives(Duration::from_secs(90)), (begin, NOW + 90));
    assert_eq!(lives(MAX_TTL), (begin, NOW + 86_400));
    assert_eq!(lives(MAX_TTL + Duration::from_secs(1)), (begin, NOW + 86_400));
    assert_eq!(lives(Duration::MAX), (begin, NOW + 86_400));
}

#[test]
fn sec_ca_5_no_leaf_outlives_its_issuer() {
    let root = Authority::new_root(&domain(), 2 * HOUR, now()).unwrap();
    let end = NOW + 7200;
    assert_eq!(root.not_after(), at(end));
    let issue = |seconds| root.issue_svid(&id(), MAX_TTL, at(seconds));
    assert_eq!(life(&issue(NOW).unwrap()).1, end);
    assert_eq!(life(&issue(end - 1800).unwrap()).1, end);
    // Less than half of the default life: refused, not shortened.
    for late in [end - 1799, end, end + 1, u64::MAX / 2] {
        assert!(matches!(issue(late), Err(CaError::RotationDue)), "{late}");
    }
    // A leaf below an intermediate ends with the intermediate.
    let intermediate = root.new_intermediate(HOUR, now()).unwrap();
    assert_eq!(life(&intermediate.issue_svid(&id(), MAX_TTL, now()).unwrap()).1, NOW + 3600);
    let longer = root.new_intermediate(3 * HOUR, now());
    assert!(matches!(longer, Err(CaError::RotationDue)));
}

#[test]
fn sec_ca_4_before_its_time_nothing_is_issued() {
    let early = root().issue_svid(&id(), HOUR, at(NOW - 3600));
    assert!(matches!(early, Err(CaError::Issued(_))), "{early:?}");
}

#[test]
fn sec_ca_4_only_workloads_of_the_own_trust_domain() {
    let root = root();
    for foreign in [
        "spiffe://b.test/ns/shop/sa/cart",
        "spiffe://sub.a.test/x",
        "spiffe://a.test.evil/x",
        "spiffe://a.test",
    ] {
        let got = root.issue_svid(&foreign.parse().unwrap(), HOUR, now());
        assert!(matches!(got, Err(CaError::ForeignIdentity)), "{foreign}");
    }
}

#[test]
fn sec_ca_4_authorities_only_through_the_intermediate_api() {
    let root = root();
    let intermediate = root.new_intermediate(DAY, now()).unwrap();
    // One level: its path length is 0.
    let below = intermediate.new_intermediate(HOUR, now());
    assert!(matches!(below, Err(CaError::NoAuthorityBelow)));
    let svid = intermediate.issue_svid(&id(), HOUR, now()).unwrap();
    let (_, certificate) = X509Certificate::from_der(&svid.chain()[1]).unwrap();
    let constraints = certificate.basic_constraints().unwrap().unwrap();
    assert!(constraints.critical && constraints.value.ca);
    assert_eq!(constraints.value.path_len_constraint, Some(0));
    let names = certificate.subject_alternative_name().unwrap().unwrap();
    assert_eq!(names.value.general_names, [GeneralName::URI("spiffe://a.test")]);
    let usage = certificate.key_usage().unwrap().unwrap();
    assert!(usage.critical && usage.value.key_cert_sign() && !usage.value.digital_signature());
    verify(svid.chain(), &root, &id(), now());
    verify(svid.chain(), &intermediate, &id(), now());
}

#[test]
fn sec_ca_9_debug_shows_no_key() {
    let shown = format!("{:?}", root());
    assert_eq!(
        shown,
        format!("Authority {{ trust_domain: {:?}, not_after: {}, .. }}", domain(), NOW + 864_000)
    );
}

fn segment() -> impl Strategy<Value = String> {
    "[A-Za-z0-9._-]{1,40}".prop_filter("a dot segment", |text| text != "." && text != "..")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Whatever is asked for: what comes passes the strict verifier in both roles, has exactly the
    /// profile, and lives within its bounds.
    #[test]
    fn sec_ca_4_issued_certificates_verify(
        path in prop::collection::vec(segment(), 1..8),
        trust_domain in "[a-z0-9][a-z0-9._-]{0,60}",
        ttl in 0_u64..200_000,
        at_hour in 0_u64..230,
        through_intermediate: bool,
    ) {
        let trust_domain = trust_domain.parse().unwrap();
        let root = Authority::new_root(&trust_domain, 10 * DAY, now()).unwrap();
        let when = at(NOW + at_hour * 3600);
        let id: SpiffeId = format!("spiffe://{trust_domain}/{}", path.join("/")).parse().unwrap();
        let intermediate = root.new_intermediate(10 * DAY, now()).unwrap();
        let authority = if through_intermediate { &intermediate } else { &root };
        let svid = authority.issue_svid(&id, Duration::from_secs(ttl), when).unwrap();
        prop_assert_eq!(svid.id(), &id);
        check_profile(&svid.chain()[0], id.as_str());
        verify(svid.chain(), &root, &id, when);
        let (begin, end) = life(&svid);
        prop_assert_eq!(begin, when.as_secs() - 60);
        prop_assert!(end <= root.not_after().as_secs() && end - when.as_secs() <= 86_400);
        verify(svid.chain(), &root, &id, at(end));
    }
}

/// A root of each kind of key, one that was loaded with an RSA key, and one below a root.
fn every_kind() -> Vec<Authority> {
    let kinds = [KeyKind::P256, KeyKind::P384, KeyKind::Ed25519];
    let made =
        kinds.map(|kind| Authority::new_root_with(&domain(), kind, 10 * DAY, now()).unwrap());
    let below = made[1].new_intermediate(9 * DAY, now()).unwrap();
    let key = include_str!("keys/rsa2048.pem");
    let der = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let pair = rcgen::KeyPair::from_der_and_sign_algo(&der, &rcgen::PKCS_RSA_SHA256).unwrap();
    let certificate = ca_params("rsa").self_signed(&pair).unwrap();
    let certificate = pem("CERTIFICATE", certificate.der());
    let rsa = Authority::from_pem(&domain(), certificate.as_bytes(), key.as_bytes()).unwrap();
    made.into_iter().chain([below, rsa]).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// The first leaf of an authority is verified by its signature, the later ones are known to have
    /// ring's: webpki with ring accepts all of them, from every kind of key, with a key of ours or
    /// that of a request.
    #[test]
    fn sec_ca_4_later_leaves_verify_as_the_first_does(
        leaves in prop::collection::vec((segment(), 0_u64..200_000, 0_u64..100, 0_usize..4), 2..6),
    ) {
        for authority in every_kind() {
            for (name, ttl, hour, kind) in &leaves {
                let (ttl, when) = (Duration::from_secs(*ttl), at(NOW + hour * 3600));
                let id: SpiffeId = format!("spiffe://a.test/{name}").parse().unwrap();
                let kinds: [&rcgen::SignatureAlgorithm; 3] = [
                    &rcgen::PKCS_ECDSA_P256_SHA256,
                    &rcgen::PKCS_ECDSA_P384_SHA384,
                    &rcgen::PKCS_ED25519,
                ];
                let chain = if let Some(kind) = kinds.get(*kind) {
                    let key = rcgen::KeyPair::generate_for(kind).unwrap();
                    let csr = rcgen::CertificateParams::default().serialize_request(&key).unwrap();
                    let request = CertificateRequest::from_der(csr.der()).unwrap();
                    authority.issue_for_request(&id, &request, ttl, when).unwrap()
                } else {
                    authority.issue_svid(&id, ttl, when).unwrap().chain().to_vec()
                };
                check_profile(&chain[0], id.as_str());
                verify(&chain, &authority, &id, when);
            }
        }
    }
}

#[test]
fn sec_ca_4_the_profile_of_the_usual_leaf() {
    check_profile(&root().issue_svid(&id(), HOUR, now()).unwrap().chain()[0], ID);
}
