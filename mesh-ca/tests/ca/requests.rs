//! Hostile certificate requests: refused, or without effect.

use mesh_ca::{Authority, CaError, CertificateRequest};
use mesh_identity::x509::{CertificateProfile, SvidError};
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519,
    PublicKeyData as _, SanType, SigningKey as _,
};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer};

use crate::issue::{check_profile, verify};
use crate::{HOUR, ID, id, now, root};

fn read(der: &[u8]) -> Result<CertificateRequest, CaError> {
    CertificateRequest::from_der(der)
}

/// A request with this content, signed by its key.
fn request(edit: impl FnOnce(&mut CertificateParams)) -> (Vec<u8>, KeyPair) {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    edit(&mut params);
    let key = KeyPair::generate().unwrap();
    (params.serialize_request(&key).unwrap().der().to_vec(), key)
}

/// What a request asks for does not come back; its key does.
fn is_neutralized(edit: impl FnOnce(&mut CertificateParams)) {
    let (der, key) = request(edit);
    let authority = root();
    let chain = authority.issue_for_request(&id(), &read(&der).unwrap(), HOUR, now()).unwrap();
    check_profile(&chain[0], ID);
    verify(&chain, &authority, &id(), now());
    let profile = CertificateProfile::parse(&chain[0]).unwrap();
    assert_eq!(profile.public_key(), key.subject_public_key_info());
}

fn fixture(pem: &[u8]) -> Result<CertificateRequest, CaError> {
    read(&CertificateSigningRequestDer::from_pem_slice(pem).unwrap())
}

#[test]
fn sec_ca_1_another_identity_is_neutralized() {
    is_neutralized(|params| {
        let other = "spiffe://a.test/ns/kube-system/sa/admin".try_into().unwrap();
        params.subject_alt_names = vec![SanType::URI(other)];
    });
}

#[test]
fn sec_ca_1_ca_flag_is_neutralized() {
    is_neutralized(|params| {
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(9));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Any];
    });
}

#[test]
fn sec_ca_1_wildcard_dns_and_subject_are_neutralized() {
    is_neutralized(|params| {
        params.subject_alt_names = vec![SanType::DnsName("*.bank.test".try_into().unwrap())];
        params.distinguished_name.push(DnType::CommonName, "*");
        params.distinguished_name.push(DnType::OrganizationName, "a.test");
    });
}

#[test]
fn sec_ca_1_unknown_critical_extensions_are_neutralized() {
    is_neutralized(|params| {
        let mut unknown =
            CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99_999], vec![5, 0]);
        unknown.set_criticality(true);
        let second = CustomExtension::from_oid_content(&[2, 5, 29, 17], vec![0x30, 0]);
        params.custom_extensions = vec![unknown, second];
    });
}

#[test]
fn sec_ca_2_keys_that_are_accepted() {
    let authority = root();
    for algorithm in [&PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P384_SHA384, &PKCS_ED25519] {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let der = CertificateParams::default().serialize_request(&key).unwrap();
        let chain = authority.issue_for_request(&id(), &read(der.der()).unwrap(), HOUR, now());
        verify(&chain.unwrap(), &authority, &id(), now());
    }
    for pem in [&include_bytes!("csr/rsa2048.pem")[..], include_bytes!("csr/p384.pem")] {
        let chain = authority.issue_for_request(&id(), &fixture(pem).unwrap(), HOUR, now());
        verify(&chain.unwrap(), &authority, &id(), now());
    }
}

#[test]
fn sec_ca_2_weak_rsa_is_refused() {
    let got = fixture(include_bytes!("csr/rsa1024.pem"));
    assert!(matches!(got, Err(CaError::CsrKey(SvidError::WeakKey))), "{got:?}");
    let got = fixture(include_bytes!("csr/p521.pem"));
    assert!(matches!(got, Err(CaError::CsrKey(SvidError::WeakKey))), "{got:?}");
}

#[test]
fn sec_ca_2_a_proof_by_sha1_is_refused() {
    for pem in [&include_bytes!("csr/rsa2048_sha1.pem")[..], include_bytes!("csr/p256_sha1.pem")] {
        let got = fixture(pem);
        assert!(matches!(got, Err(CaError::CsrSignature)), "{got:?}");
    }
}

#[test]
fn sec_ca_2_broken_signature_is_refused() {
    let (mut der, _) = request(|_| {});
    *der.last_mut().unwrap() ^= 1;
    let got = read(&der);
    assert!(matches!(got, Err(CaError::CsrSignature)), "{got:?}");
}

/// Another's key with our signature: possession is not proven.
#[test]
fn sec_ca_2_anothers_key_is_refused() {
    let (der, own) = request(|_| {});
    let other = KeyPair::generate().unwrap();
    let start = der.windows(65).position(|window| window == own.public_key_raw()).unwrap();
    let mut forged = der;
    forged[start..start + 65].copy_from_slice(other.public_key_raw());
    let got = read(&forged);
    assert!(matches!(got, Err(CaError::CsrSignature)), "{got:?}");
}

/// A request that says Ed25519, with an RSA key as the key's bits and a proof by that key: whoever
/// reads the certificate would not see the key that was proven.
#[test]
fn sec_ca_2_a_proof_by_another_kind_of_key_is_refused() {
    let key = PrivateKeyDer::from_pem_slice(include_bytes!("keys/rsa2048.pem")).unwrap();
    let key = KeyPair::try_from(&key).unwrap();
    let mut der = CertificateParams::default().serialize_request(&key).unwrap().der().to_vec();
    assert!(read(&der).is_ok());
    let rsa = [&[0x30, 13, 6, 9][..], b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01", &[5, 0]].concat();
    // As long as RSA's, so that no length changes: parameters fill it up.
    let ed25519 = [&[0x30, 13, 6, 3][..], b"\x2b\x65\x70", &[4, 6, 0, 0, 0, 0, 0, 0]].concat();
    let start = der.windows(15).position(|window| window == rsa).unwrap();
    der[start..start + 15].copy_from_slice(&ed25519);
    let info = 4..8 + usize::from(der[6]) * 256 + usize::from(der[7]);
    let proof = key.sign(&der[info]).unwrap();
    let end = der.len() - proof.len();
    der[end..].copy_from_slice(&proof);
    let got = read(&der);
    assert!(matches!(got, Err(CaError::CsrKey(SvidError::Malformed))), "{got:?}");
}

/// A flipped bit is refused, or lies outside of what is signed and changes nothing.
#[test]
fn sec_ca_2_no_flipped_bit_brings_another_key() {
    let (der, key) = request(|_| {});
    let authority = root();
    for position in 0..der.len() * 8 {
        let mut bytes = der.clone();
        bytes[position / 8] ^= 1 << (position % 8);
        if let Ok(request) = read(&bytes) {
            let chain = authority.issue_for_request(&id(), &request, HOUR, now()).unwrap();
            let profile = CertificateProfile::parse(&chain[0]).unwrap();
            assert_eq!(profile.public_key(), key.subject_public_key_info(), "bit {position}");
        }
    }
}

#[test]
fn sec_ca_1_a_megabyte_is_refused() {
    assert!(matches!(read(&vec![0x30; 1 << 20]), Err(CaError::Csr)));
    // A well-formed one as well, before it is read.
    let (der, _) = request(|params| {
        let big = CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 9], vec![0; 1 << 20]);
        params.custom_extensions = vec![big];
    });
    assert!(matches!(read(&der), Err(CaError::Csr)));
}

#[test]
fn sec_ca_1_trailing_data_is_refused() {
    let (mut der, _) = request(|_| {});
    der.push(0);
    assert!(matches!(read(&der), Err(CaError::Csr)));
    assert!(matches!(read(&[]), Err(CaError::Csr)));
    der.truncate(der.len() / 2);
    assert!(matches!(read(&der), Err(CaError::Csr)));
    let certificate = root().certificate_pem();
    let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
    assert!(read(&certificate).is_err());
}

/// The authority's and the root's keys are nobody's workload key.
#[test]
fn sec_ca_2_the_authoritys_own_key_is_refused() {
    let key = KeyPair::generate().unwrap();
    let root = crate::load::with_key(&key);
    let der = CertificateParams::default().serialize_request(&key).unwrap();
    let own = read(der.der()).unwrap();
    let refuses = |authority: &Authority| {
        let got = authority.issue_for_request(&id(), &own, HOUR, now());
        assert!(matches!(got, Err(CaError::OwnKey)));
    };
    refuses(&root);
    refuses(&root.new_intermediate(HOUR, now()).unwrap());
}

#[test]
fn sec_ca_8_errors_say_nothing_of_identities() {
    let (der, _) = request(|_| {});
    let own = read(&der).unwrap();
    let foreign = "spiffe://b.test/ns/a/sa/b".parse().unwrap();
    let error = root().issue_for_request(&foreign, &own, HOUR, now()).unwrap_err();
    assert!(matches!(error, CaError::ForeignIdentity));
    assert!(!error.to_string().contains("b.test"));
}
