//! Authorities from PEM.

use mesh_ca::{Authority, CaError};
use mesh_identity::x509::SvidError;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P384_SHA384, PKCS_ED25519, SanType, date_time_ymd,
};

use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject as _;

use crate::issue::verify;
use crate::{HOUR, domain, id, now};

fn pem(label: &str, der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n")
}

fn params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "a.test");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.not_before = date_time_ymd(2026, 1, 1);
    params.not_after = date_time_ymd(2036, 1, 1);
    params
}

fn load(params: &CertificateParams, key: &KeyPair) -> Result<Authority, CaError> {
    let certificate = pem("CERTIFICATE", params.self_signed(key).unwrap().der());
    Authority::from_pem(&domain(), certificate.as_bytes(), key_pem(key).as_bytes())
}

fn key_pem(key: &KeyPair) -> String {
    pem("PRIVATE KEY", key.serialized_der())
}

pub(crate) fn with_key(key: &KeyPair) -> Authority {
    load(&params(), key).unwrap()
}

#[test]
fn sec_ca_4_loaded_authorities_issue() {
    for algorithm in [&rcgen::PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P384_SHA384, &PKCS_ED25519] {
        let authority = with_key(&KeyPair::generate_for(algorithm).unwrap());
        let svid = authority.issue_svid(&id(), HOUR, now()).unwrap();
        verify(svid.chain(), &authority, &id(), now());
        let below = authority.new_intermediate(HOUR, now()).unwrap();
        let svid = below.issue_svid(&id(), HOUR, now()).unwrap();
        verify(svid.chain(), &authority, &id(), now());
    }
}

/// An authority of an RSA key, as many operators have one: PKCS#8, and PKCS#1 as older tools write
/// it. Below 2048 bits it is refused ([SEC-ID-6]).
#[test]
fn sec_ca_4_rsa_authorities_issue() {
    let pkcs8 = include_str!("keys/rsa2048.pem");
    let der = PrivateKeyDer::from_pem_slice(pkcs8.as_bytes()).unwrap();
    let key = KeyPair::from_der_and_sign_algo(&der, &rcgen::PKCS_RSA_SHA256).unwrap();
    let certificate = pem("CERTIFICATE", params().self_signed(&key).unwrap().der());
    for text in [pkcs8, include_str!("keys/rsa2048_pkcs1.pem")] {
        let authority =
            Authority::from_pem(&domain(), certificate.as_bytes(), text.as_bytes()).unwrap();
        let svid = authority.issue_svid(&id(), HOUR, now()).unwrap();
        verify(svid.chain(), &authority, &id(), now());
        let below = authority.new_intermediate(HOUR, now()).unwrap();
        verify(below.issue_svid(&id(), HOUR, now()).unwrap().chain(), &authority, &id(), now());
    }
    let weak = include_str!("keys/rsa1024.pem");
    let got = Authority::from_pem(&domain(), certificate.as_bytes(), weak.as_bytes());
    assert!(matches!(got, Err(CaError::Key)), "{got:?}");
}

#[test]
fn sec_id_12_a_key_that_does_not_belong_is_refused_on_loading() {
    let (key, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let certificate = pem("CERTIFICATE", params().self_signed(&key).unwrap().der());
    let got = Authority::from_pem(&domain(), certificate.as_bytes(), key_pem(&other).as_bytes());
    assert!(matches!(got, Err(CaError::KeyMismatch)));
    let garbage = "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n";
    let error = Authority::from_pem(&domain(), certificate.as_bytes(), garbage.as_bytes());
    let error = error.unwrap_err();
    assert!(matches!(error, CaError::Key));
    assert!(!format!("{error} {error:?}").contains("c2VjcmV0"));
}

#[test]
fn sec_ca_4_certificates_that_are_no_authority_of_the_domain() {
    let key = KeyPair::generate().unwrap();
    let refused = |edit: &dyn Fn(&mut CertificateParams)| {
        let mut params = params();
        edit(&mut params);
        load(&params, &key).unwrap_err()
    };
    let leaf = refused(&|params| params.is_ca = IsCa::ExplicitNoCa);
    assert!(matches!(leaf, CaError::Authority(SvidError::IssuerNotCa)));
    let usage = refused(&|params| params.key_usages = vec![KeyUsagePurpose::DigitalSignature]);
    assert!(matches!(usage, CaError::Authority(SvidError::IssuerUsage)));
    let foreign = refused(&|params| {
        params.subject_alt_names = vec![SanType::URI("spiffe://b.test".try_into().unwrap())];
    });
    assert!(matches!(foreign, CaError::Authority(SvidError::IssuerId)));
    let mut constrained = params();
    constrained.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let authority = load(&constrained, &key).unwrap();
    assert!(authority.issue_svid(&id(), HOUR, now()).is_ok());
    let below = authority.new_intermediate(HOUR, now());
    assert!(matches!(below, Err(CaError::NoAuthorityBelow)));
}

#[test]
fn sec_ca_4_exactly_one_certificate_is_loaded() {
    let key = KeyPair::generate().unwrap();
    let one = pem("CERTIFICATE", params().self_signed(&key).unwrap().der());
    for text in [String::new(), one.repeat(2)] {
        let got = Authority::from_pem(&domain(), text.as_bytes(), key_pem(&key).as_bytes());
        assert!(matches!(got, Err(CaError::NotOne)));
    }
}

/// [SEC-CA-9] Only with the feature does the key leave the authority; then it comes back the same.
#[cfg(feature = "export")]
#[test]
fn sec_ca_9_export_and_load() {
    let first = crate::root();
    let (certificate, key) = (first.certificate_pem(), first.export_key_pem());
    let second =
        Authority::from_pem(&domain(), certificate.as_bytes(), key.unwrap().as_bytes()).unwrap();
    let svid = second.issue_svid(&id(), HOUR, now()).unwrap();
    verify(svid.chain(), &first, &id(), now());
}
