//! The Workload API's messages: there and back, and each way in which one is refused.

use std::collections::BTreeMap;

use mesh_identity::workload_api::{
    self, NamedSvid, WorkloadApiError, parse_jwt_bundles, parse_jwt_svids, parse_x509_bundles,
    parse_x509_svids, proto,
};
use mesh_identity::{BundleError, BundleSet, JwtAuthority, SvidLoadError, TrustBundle, X509Svid};
use prost::Message as _;
use rcgen::{
    CertificateParams, CertificateRevocationListParams, KeyIdMethod, KeyPair, PublicKeyData as _,
    SerialNumber,
};
use rustls_pki_types::{CertificateRevocationListDer, PrivatePkcs8KeyDer};

use crate::mint::{Ca, ID, ca_params, copy, leaf_params};

fn svid(ca: &Ca, id: &str) -> X509Svid {
    let key = KeyPair::generate().unwrap();
    let chain = vec![ca.leaf_for(&leaf_params(id), &key), ca.certificate.clone()];
    X509Svid::from_der(chain, &PrivatePkcs8KeyDer::from(key.serialized_der())).unwrap()
}

/// A list without entries of an authority.
fn list(params: &CertificateParams, key: KeyPair) -> CertificateRevocationListDer<'static> {
    let list = CertificateRevocationListParams {
        this_update: rcgen::date_time_ymd(2027, 1, 15),
        next_update: rcgen::date_time_ymd(2027, 1, 16),
        crl_number: SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: Vec::new(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    list.signed_by(&rcgen::Issuer::new(params.clone(), key)).unwrap().der().clone()
}

fn message() -> proto::X509SvidResponse {
    let (home, foreign) = (Ca::root("home"), Ca::root("foreign"));
    let second = Ca::root("second");
    let bundles = BundleSet::from_bundles([
        home.bundle("a.test").with_authority(second.authority()),
        foreign.bundle("b.test"),
    ]);
    let svids = [
        NamedSvid { svid: svid(&home, ID), hint: "internal".to_owned() },
        NamedSvid { svid: svid(&home, "spiffe://a.test/other"), hint: String::new() },
    ];
    workload_api::encode_x509_svids(&svids, &bundles.unwrap(), &[]).unwrap()
}

#[test]
fn identities_and_bundles_survive_the_wire() {
    let sent = message();
    let wire = sent.encode_to_vec();
    let got = parse_x509_svids(proto::X509SvidResponse::decode(wire.as_slice()).unwrap()).unwrap();
    let names: Vec<_> = got.svids.iter().map(|one| (one.svid.id().as_str(), &*one.hint)).collect();
    assert_eq!(names, [(ID, "internal"), ("spiffe://a.test/other", "")]);
    assert_eq!(got.svids[0].svid.chain().len(), 2);
    assert_eq!(got.svids[0].svid.private_key().secret_der(), sent.svids[0].x509_svid_key);
    assert_eq!(got.bundles.get("a.test").unwrap().x509_authorities().len(), 2);
    assert_eq!(got.bundles.get("b.test").unwrap().x509_authorities().len(), 1);
    assert_eq!(sent.federated_bundles.keys().collect::<Vec<_>>(), ["spiffe://b.test"]);

    let bundles = workload_api::encode_x509_bundles(&got.bundles, &[]);
    assert_eq!(parse_x509_bundles(bundles).unwrap().bundles, got.bundles);
}

#[test]
fn sec_id_12_messages_show_no_key_and_no_token() {
    let message = message();
    let key = format!("{:?}", &message.svids[0].x509_svid_key[36..44]);
    assert!(!format!("{message:?}").contains(key.trim_matches(['[', ']'])));
    let secret = || "secret".to_owned();
    let token = proto::JwtSvid { spiffe_id: ID.to_owned(), svid: secret(), hint: String::new() };
    let ask = proto::ValidateJwtSvidRequest { audience: "me".to_owned(), svid: secret() };
    assert!(!format!("{token:?} {ask:?}").contains("secret"));
    let tokens = parse_jwt_svids(proto::JwtSvidResponse { svids: vec![token] }).unwrap();
    assert_eq!(tokens[0].token.as_str(), "secret");
    assert!(!format!("{tokens:?}").contains("secret"));
}

/// Each bad part refuses the whole message, so that the last good state stays.
#[test]
fn one_bad_part_refuses_the_message() {
    let refused = |edit: &dyn Fn(&mut proto::X509SvidResponse)| {
        let mut message = message();
        edit(&mut message);
        parse_x509_svids(message).unwrap_err()
    };
    assert_eq!(refused(&|message| message.svids.clear()), WorkloadApiError::NoSvid);
    let many = refused(&|message| {
        message.svids = (0..129).map(|_| proto::X509Svid::default()).collect();
    });
    assert_eq!(many, WorkloadApiError::TooManySvids);
    let other = refused(&|message| message.svids[1].spiffe_id = ID.to_owned());
    assert_eq!(other, WorkloadApiError::IdMismatch { at: 1 });
    let name = refused(&|message| message.svids[0].spiffe_id = "spiffe://A/b".to_owned());
    assert!(matches!(name, WorkloadApiError::Id { at: 0, .. }));
    // Bytes after the last certificate, and a certificate cut short.
    let malformed =
        |error| matches!(error, WorkloadApiError::Svid { at: 0, error: SvidLoadError::Leaf(_) });
    assert!(malformed(refused(&|message| message.svids[0].x509_svid.push(0))));
    assert!(malformed(refused(&|message| {
        message.svids[0].x509_svid.pop();
    })));
    let long = refused(&|message| message.svids[0].x509_svid = vec![0x30; 64 * 1024 + 1]);
    assert!(malformed(long));
    assert!(matches!(
        refused(&|message| message.svids[0].bundle.push(0)),
        WorkloadApiError::Bundle(BundleError::Authority { .. })
    ));
    let hint = refused(&|message| message.svids[0].hint = "x".repeat(1025));
    assert_eq!(hint, WorkloadApiError::Hint { at: 0 });
    let crl = refused(&|message| message.crl.push(b"no list".to_vec()));
    assert_eq!(crl, WorkloadApiError::Crl { at: 0 });
    // [SEC-ID-8] Two bundles of one domain are not pooled.
    let differing = refused(&|message| message.svids[1].bundle.clear());
    assert_eq!(differing, WorkloadApiError::DifferingBundles);
    let federated = refused(&|message| {
        let bundle = message.federated_bundles["spiffe://b.test"].clone();
        message.federated_bundles.insert("a.test".to_owned(), bundle);
    });
    assert_eq!(federated, WorkloadApiError::DifferingBundles);
    let path = refused(&|message| {
        message.federated_bundles.insert("spiffe://c.test/x".to_owned(), Vec::new());
    });
    assert!(matches!(path, WorkloadApiError::Bundle(BundleError::TrustDomain(_))));
}

#[test]
fn a_repeated_hint_is_passed_over_and_counted() {
    let mut message = message();
    message.svids[1].hint = "internal".to_owned();
    let got = parse_x509_svids(message).unwrap();
    assert_eq!((got.svids.len(), got.repeated_hints), (1, 1));
    assert_eq!(got.svids[0].svid.id().as_str(), ID);
}

/// [SEC-ID-9] A bundle without authorities is there and verifies nothing.
#[test]
fn an_empty_bundle_is_a_bundle() {
    let response =
        proto::X509BundlesResponse { crl: Vec::new(), bundles: [("td".to_owned(), vec![])].into() };
    let got = parse_x509_bundles(response).unwrap();
    assert_eq!(got.bundles.get("td").unwrap().x509_authorities().len(), 0);
}

/// A root on a curve that we refuse, and its empty revocation list.
fn unusable() -> (Vec<u8>, Vec<u8>) {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let params = ca_params("unusable");
    let list = list(&params, copy(&key));
    let root = Ca::root_with_key(params, key);
    // The curve's name becomes secp521r1's.
    let mut der = root.certificate.to_vec();
    let curve = [0x2b, 0x81, 0x04, 0x00, 0x22];
    let at = der.windows(5).position(|window| window == curve).unwrap();
    der[at + 4] = 0x23;
    (der, list.to_vec())
}

/// A partner's root that we refuse leaves our renewals alone: nobody of the partner is believed.
#[test]
fn sec_id_9_an_unusable_foreign_bundle_is_empty_and_holds_nothing_up() {
    let (root, list) = unusable();
    for (bad, crl) in [(root, vec![list]), (b"garbage".to_vec(), Vec::new())] {
        let mut sent = message();
        sent.federated_bundles.insert("spiffe://c.test".to_owned(), bad.clone());
        sent.crl.clone_from(&crl);
        let got = parse_x509_svids(sent).unwrap();
        assert_eq!(got.svids.len(), 2);
        let own = got.bundles.get("a.test").unwrap();
        assert_eq!(own.x509_authorities().len(), 2);
        // The partner's revocation list is not taken for ours: it would refuse everybody.
        assert!(own.crls().is_none());
        assert_eq!(got.bundles.get("b.test").unwrap().x509_authorities().len(), 1);
        assert_eq!(got.bundles.get("c.test"), Some(&TrustBundle::new("c.test".parse().unwrap())));
        let [(domain, BundleError::Authority { at: 0, .. })] = &*got.refused else {
            panic!("{:?}", got.refused)
        };
        assert_eq!(domain.as_str(), "c.test");

        // Our own stays strict, wherever it stands.
        let mut own = message();
        own.federated_bundles.insert("a.test".to_owned(), bad.clone());
        assert!(matches!(parse_x509_svids(own), Err(WorkloadApiError::Bundle(_))));

        let mut sent = workload_api::encode_x509_bundles(&got.bundles, &[]);
        sent.bundles.insert("spiffe://c.test".to_owned(), bad.clone());
        let got = parse_x509_bundles(sent).unwrap();
        assert_eq!(got.bundles.get("a.test").unwrap().x509_authorities().len(), 2);
        assert_eq!(got.bundles.get("c.test").unwrap().x509_authorities().len(), 0);
        assert_eq!(got.refused[0].0.as_str(), "c.test");
        let bundles = BTreeMap::from([("c.test".to_owned(), bad)]);
        let alone = proto::X509BundlesResponse { crl: Vec::new(), bundles };
        assert!(matches!(parse_x509_bundles(alone), Err(WorkloadApiError::Bundle(_))));
    }
}

/// The same of revocation lists: more than a trust domain may have.
#[test]
fn sec_id_9_unusable_foreign_revocation_lists_empty_the_bundle() {
    let key = KeyPair::generate().unwrap();
    let params = ca_params("partner");
    let list = list(&params, copy(&key));
    let partner = Ca::root_with_key(params, key);
    let sent = || {
        let mut sent = message();
        sent.federated_bundles.insert("c.test".to_owned(), partner.certificate.to_vec());
        sent.crl = vec![list.to_vec(); 65];
        sent
    };
    let got = parse_x509_svids(sent()).unwrap();
    assert_eq!(got.bundles.get("c.test").unwrap().x509_authorities().len(), 0);
    assert!(matches!(&*got.refused, [(_, BundleError::Crl(_))]), "{:?}", got.refused);
    // Nobody's lists are the default identity's.
    let mut sent = sent();
    sent.federated_bundles.clear();
    assert!(matches!(parse_x509_svids(sent), Err(WorkloadApiError::Crls(_))));
}

#[test]
fn sec_id_9_an_unusable_key_set_among_others_is_empty() {
    let good = br#"{"keys":[{"kty":"EC","kid":"a"}]}"#.to_vec();
    for bad in [&b"\xff"[..], b"{}", br#"{"keys":[{"kty":"EC"}]}"#] {
        let sets = [("spiffe://a.test", good.clone()), ("spiffe://c.test", bad.to_vec())];
        let bundles = sets.map(|(name, keys)| (name.to_owned(), keys)).into();
        let got = parse_jwt_bundles(&proto::JwtBundlesResponse { bundles }).unwrap();
        assert_eq!(got.bundles.get("a.test").unwrap().jwt_authorities().len(), 1);
        assert_eq!(got.bundles.get("c.test").unwrap().jwt_authorities().len(), 0);
        assert_eq!(got.refused.len(), 1);
        assert_eq!(got.refused[0].0.as_str(), "c.test");
    }
}

#[test]
fn revocation_lists_come_through() {
    let key = KeyPair::generate().unwrap();
    let params = ca_params("root");
    let ca = Ca::root_with_key(params.clone(), copy(&key));
    let list = list(&params, key);
    let bundles = BundleSet::from_bundles([ca.bundle("a.test")]).unwrap();
    let svids = [NamedSvid { svid: svid(&ca, ID), hint: String::new() }];
    let sent =
        workload_api::encode_x509_svids(&svids, &bundles, std::slice::from_ref(&list)).unwrap();
    assert_eq!(parse_x509_svids(sent).unwrap().crls, std::slice::from_ref(&list));

    // [SEC-ID-14] Bundles that come without an identity have the lists of their authorities, too.
    let other = Ca::root_with_key(ca_params("other root"), KeyPair::generate().unwrap());
    let two = BundleSet::from_bundles([ca.bundle("a.test"), other.bundle("b.test")]).unwrap();
    let sent = workload_api::encode_x509_bundles(&two, std::slice::from_ref(&list));
    let got = parse_x509_bundles(sent).unwrap();
    assert_eq!(got.crls, std::slice::from_ref(&list));
    assert!(got.bundles.get("a.test").unwrap().crls().is_some());
    assert!(got.bundles.get("b.test").unwrap().crls().is_none());
    // A list of no authority: of a bundle alone it can only be that bundle's.
    let alone = BundleSet::from_bundles([other.bundle("b.test")]).unwrap();
    let sent = workload_api::encode_x509_bundles(&alone, &[list]);
    assert!(parse_x509_bundles(sent).unwrap().bundles.get("b.test").unwrap().crls().is_some());
}

#[test]
fn token_keys_survive_the_wire() {
    let key = KeyPair::generate().unwrap();
    let authority =
        JwtAuthority::from_public_key("first", "ES256", &key.subject_public_key_info()).unwrap();
    let bundle = TrustBundle::new("a.test".parse().unwrap()).with_jwt_authority(authority);
    let bundles = BundleSet::from_bundles([bundle]).unwrap();
    let sent = workload_api::encode_jwt_bundles(&bundles);
    assert_eq!(parse_jwt_bundles(&sent).unwrap().bundles, bundles);
    // SPIRE leaves `use` out; a key for something else is skipped and counted.
    let document = br#"{"keys":[{"kty":"EC","kid":"a"},{"kty":"EC","use":"sig","kid":"b"}]}"#;
    let bundles = BTreeMap::from([("spiffe://a.test".to_owned(), document.to_vec())]);
    let got = parse_jwt_bundles(&proto::JwtBundlesResponse { bundles }).unwrap();
    let got = got.bundles.get("a.test").unwrap();
    assert_eq!((got.jwt_authorities()[0].kid(), got.skipped()), ("a", 1));
    for document in [&b"\xff"[..], b"{}", br#"{"keys":[{"kty":"EC"}]}"#] {
        let bundles = BTreeMap::from([("a.test".to_owned(), document.to_vec())]);
        assert!(parse_jwt_bundles(&proto::JwtBundlesResponse { bundles }).is_err());
    }
}

/// What a bundle endpoint publishes is read back as the same bundle, keys of every kind.
#[test]
fn bundle_documents_survive() {
    let mut bundle = TrustBundle::new("a.test".parse().unwrap())
        .with_sequence(u64::MAX)
        .with_refresh_hint(std::time::Duration::from_secs(60));
    for (kid, algorithm) in [
        ("p256", &rcgen::PKCS_ECDSA_P256_SHA256),
        ("p384", &rcgen::PKCS_ECDSA_P384_SHA384),
        ("ed25519", &rcgen::PKCS_ED25519),
    ] {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let jwt = JwtAuthority::from_public_key(kid, "x", &key.subject_public_key_info()).unwrap();
        let ca = Ca::root_with_key(ca_params(kid), key);
        bundle = bundle.with_authority(ca.authority()).with_jwt_authority(jwt);
    }
    let back = TrustBundle::from_json("a.test".parse().unwrap(), &bundle.to_json()).unwrap();
    assert_eq!(back, bundle);
}
