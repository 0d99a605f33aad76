//! Our own chain and key, and the authority certificates we are given.

use mesh_identity::x509::SvidError;
use mesh_identity::{SvidLoadError, X509Authority, X509Svid};
use rcgen::{IsCa, KeyPair, KeyUsagePurpose};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};

use crate::mint::{Ca, ID, ca_params, leaf_params, uri};

fn load(chain: Vec<CertificateDer<'static>>, key: &KeyPair) -> Result<X509Svid, SvidLoadError> {
    X509Svid::from_der(chain, &PrivatePkcs8KeyDer::from(key.serialized_der()))
}

#[test]
fn sec_id_12_debug_and_errors_show_no_key() {
    let (ca, key) = (Ca::root("root"), KeyPair::generate().unwrap());
    let leaf = ca.leaf_for(&leaf_params(ID), &key);
    let svid = load(vec![leaf.clone()], &key).unwrap();
    let secret = key.serialized_der();
    assert_eq!(svid.private_key().secret_der(), secret);
    let hex = |bytes: &[u8]| format!("{bytes:02x?}").replace(['[', ']', ',', ' '], "");
    let list = format!("{:?}", &secret[36..44]);
    let list = list.trim_matches(['[', ']']);
    for shown in [format!("{svid:?}"), format!("{svid:#?}")] {
        assert!(shown.contains(ID), "{shown}");
        assert!(!shown.replace(['\n', ' '], "").contains(&list.replace(' ', "")), "{shown}");
        assert!(!shown.to_lowercase().contains(&hex(&secret[36..44])), "{shown}");
    }
    // A key text that is none is not repeated.
    let text = b"-----BEGIN PRIVATE KEY-----\nc2VjcmV0!\n-----END PRIVATE KEY-----\n";
    let pem = pem(&leaf);
    let error = X509Svid::from_pem(pem.as_bytes(), text).unwrap_err();
    assert_eq!(error, SvidLoadError::NoKey);
    assert!(!format!("{error:?} {error}").contains("c2VjcmV0"));
}

fn pem(der: &CertificateDer<'_>) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
}

#[test]
fn sec_id_3_the_own_leaf_keeps_the_rules() {
    let (ca, key) = (Ca::root("root"), KeyPair::generate().unwrap());
    let mut params = leaf_params(ID);
    params.key_usages = vec![KeyUsagePurpose::KeyEncipherment];
    let error = load(vec![ca.leaf_for(&params, &key)], &key).unwrap_err();
    assert_eq!(error, SvidLoadError::Leaf(SvidError::NoDigitalSignature));
    assert_eq!(load(Vec::new(), &key).unwrap_err(), SvidLoadError::NoChain);
    let leaf = ca.leaf_for(&leaf_params(ID), &key);
    let many = vec![leaf; 11];
    let error = load(many, &key).unwrap_err();
    assert_eq!(error, SvidLoadError::Leaf(SvidError::TooManyCertificates));
}

#[test]
fn sec_id_4_the_own_issuers_keep_the_rules() {
    let (root, key) = (Ca::root("root"), KeyPair::generate().unwrap());
    let mut params = ca_params("sub");
    params.subject_alt_names = vec![uri("spiffe://b.test")];
    let sub = root.sub(params);
    let chain = vec![sub.leaf_for(&leaf_params(ID), &key), sub.certificate.clone()];
    let error = load(chain, &key).unwrap_err();
    assert_eq!(error, SvidLoadError::Issuer { at: 1, error: SvidError::IssuerId });
    let sub = root.sub(ca_params("sub"));
    let chain = vec![
        sub.leaf_for(&leaf_params(ID), &key),
        sub.certificate.clone(),
        root.certificate.clone(),
    ];
    let svid = load(chain, &key).unwrap();
    assert_eq!((svid.id().as_str(), svid.chain().len()), (ID, 3));
}

#[test]
fn sec_id_4_what_no_authority_is() {
    let refused = |edit: &dyn Fn(&mut rcgen::CertificateParams)| {
        let mut params = ca_params("root");
        edit(&mut params);
        X509Authority::from_der(Ca::root_with(params).certificate).unwrap_err()
    };
    assert_eq!(refused(&|params| params.is_ca = IsCa::ExplicitNoCa), SvidError::IssuerNotCa);
    assert_eq!(refused(&|params| params.is_ca = IsCa::NoCa), SvidError::IssuerNotCa);
    let usage = |params: &mut rcgen::CertificateParams| {
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    };
    assert_eq!(refused(&usage), SvidError::IssuerUsage);
    let der = CertificateDer::from([Ca::root("root").certificate.to_vec(), vec![0]].concat());
    assert_eq!(X509Authority::from_der(der).unwrap_err(), SvidError::Malformed);
}
