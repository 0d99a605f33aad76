//! What issuers and authorities may say.

use mesh_identity::x509::{Role, SvidError, verify_svid};
use mesh_identity::{BundleSet, TrustBundle, X509Authority};
use rcgen::{
    BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose as Usage,
    date_time_ymd,
};
use rustls_pki_types::{
    AlgorithmIdentifier, InvalidSignature, SignatureVerificationAlgorithm, alg_id,
};

use crate::mint::{
    Ca, ID, NOW, algorithms, at, ca_params, copy, extension, leaf_params, rsa, tlv, uri, verify,
};

/// A leaf below an intermediate that an edit of a right one makes.
fn check(name: &str, edit: impl FnOnce(&mut CertificateParams), want: &Result<(), SvidError>) {
    let root = Ca::root("root");
    let mut params = ca_params("intermediate");
    edit(&mut params);
    let intermediate = root.sub(params);
    let chain = [intermediate.leaf(&leaf_params(ID)), intermediate.certificate.clone()];
    assert_eq!(verify(&chain, &root.bundles()).map(drop), *want, "{name}");
}

#[test]
fn sec_id_4_what_an_issuer_says() {
    let path = |error| Err(SvidError::Path(error));
    check("right", |_| {}, &Ok(()));
    check("no usage", |p| p.key_usages.clear(), &Ok(()));
    let usage = |p: &mut CertificateParams| p.key_usages = vec![Usage::DigitalSignature];
    check("usage", usage, &Err(SvidError::IssuerUsage));
    let leaf = |p: &mut CertificateParams| p.is_ca = IsCa::ExplicitNoCa;
    check("no ca", leaf, &path(webpki::Error::EndEntityUsedAsCa));
    check("nothing of ca", |p| p.is_ca = IsCa::NoCa, &path(webpki::Error::EndEntityUsedAsCa));
    let past = |p: &mut CertificateParams| p.not_after = date_time_ymd(2027, 1, 15);
    assert_eq!(run(past), Err(SvidError::Expired));
    let future = |p: &mut CertificateParams| p.not_before = date_time_ymd(2027, 1, 16);
    assert_eq!(run(future), Err(SvidError::NotYetValid));
}

fn run(edit: impl FnOnce(&mut CertificateParams)) -> Result<(), SvidError> {
    let root = Ca::root("root");
    let mut params = ca_params("intermediate");
    edit(&mut params);
    let intermediate = root.sub(params);
    let chain = [intermediate.leaf(&leaf_params(ID)), intermediate.certificate.clone()];
    verify(&chain, &root.bundles()).map(drop)
}

/// Takes every RSA signature for a good one: the key's size is for us to judge.
#[derive(Debug)]
struct Credulous;

impl SignatureVerificationAlgorithm for Credulous {
    fn verify_signature(&self, _: &[u8], _: &[u8], _: &[u8]) -> Result<(), InvalidSignature> {
        Ok(())
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        alg_id::RSA_ENCRYPTION
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        alg_id::RSA_PKCS1_SHA256
    }
}

/// [SEC-ID-6] The rule holds for whoever vouches, too: whatever a provider's algorithms take, an
/// issuer's or an authority's key is not too short, nor too long.
#[test]
fn sec_id_6_keys_of_issuers() {
    let root = Ca::root("root");
    let mut algorithms = algorithms().to_vec();
    algorithms.insert(0, &Credulous);
    for (bits, weak) in [(1024, true), (2047, true), (2048, false), (8192, false), (8193, true)] {
        let issuer = root.leaf_for(&ca_params("intermediate"), &rsa(bits));
        let signs = Issuer::new(ca_params("intermediate"), rsa(bits));
        let key = KeyPair::generate().unwrap();
        let leaf = leaf_params(ID).signed_by(&key, &signs).unwrap().der().clone();
        let chain = [leaf, issuer.clone()];
        let got = verify_svid(&chain, &root.bundles(), at(NOW), Role::Client, &algorithms);
        let want = if weak { Err(SvidError::WeakKey) } else { Ok(()) };
        assert_eq!(got.map(drop), want, "an issuer of {bits} bits");
        assert_eq!(X509Authority::from_der(issuer).map(drop), want, "an authority, {bits} bits");
    }
}

#[test]
fn sec_id_4_the_issuers_own_id() {
    let with = |names: Vec<&'static str>| {
        move |p: &mut CertificateParams| {
            p.subject_alt_names = names.into_iter().map(uri).collect();
        }
    };
    check("own domain", with(vec!["spiffe://a.test"]), &Ok(()));
    check("other", with(vec!["spiffe://b.test"]), &Err(SvidError::IssuerId));
    check("subdomain", with(vec!["spiffe://x.a.test"]), &Err(SvidError::IssuerId));
    check("path", with(vec![ID]), &Err(SvidError::IssuerId));
    check("no SPIFFE ID", with(vec!["https://a.test"]), &Err(SvidError::IssuerId));
    check("two", with(vec!["spiffe://a.test", "spiffe://a.test"]), &Err(SvidError::IssuerId));
}

/// A workload's own certificate signs nothing, whatever its key can do.
#[test]
fn sec_id_4_a_leaf_is_no_issuer() {
    let root = Ca::root("root");
    let mut params = leaf_params("spiffe://a.test/ns/evil/sa/evil");
    params.distinguished_name.push(rcgen::DnType::CommonName, "evil");
    let evil = root.sub(params);
    let chain = [evil.leaf(&leaf_params(ID)), evil.certificate.clone()];
    let want = SvidError::Path(webpki::Error::EndEntityUsedAsCa);
    assert_eq!(verify(&chain, &root.bundles()), Err(want));
}

#[test]
fn sec_id_4_path_lengths() {
    let constrained = |name: &str, most| {
        let mut params = ca_params(name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(most));
        params
    };
    let too_long = Err(SvidError::Path(webpki::Error::PathLenConstraintViolated));
    for (of_root, of_first, want) in [
        (None, Some(1), Ok(())),
        (None, Some(0), too_long.clone()),
        (Some(2), None, Ok(())),
        // webpki knows no path length of an anchor.
        (Some(1), None, too_long.clone()),
        (Some(0), None, too_long),
    ] {
        let params = |name, most: Option<u8>| {
            most.map_or_else(|| ca_params(name), |most| constrained(name, most))
        };
        let root = Ca::root_with(params("root", of_root));
        let first = root.sub(params("first", of_first));
        let second = first.sub(ca_params("second"));
        let chain =
            [second.leaf(&leaf_params(ID)), second.certificate.clone(), first.certificate.clone()];
        let got = verify(&chain, &root.bundles()).map(drop);
        assert_eq!(got, want, "root {of_root:?}, first {of_first:?}");
    }
}

/// A bad path does not hide a good one, in whatever order they come.
#[test]
fn sec_id_4_another_path_is_found() {
    let root = Ca::root("root");
    let key = KeyPair::generate().unwrap();
    let good = root.sub_with_key(ca_params("same"), copy(&key));
    let mut params = ca_params("same");
    params.key_usages = vec![Usage::DigitalSignature];
    let bad = root.sub_with_key(params, copy(&key));
    let leaf = good.leaf(&leaf_params(ID));
    let (good, bad) = (good.certificate, bad.certificate);
    for chain in [[&leaf, &good, &bad], [&leaf, &bad, &good]] {
        verify(&chain.map(Clone::clone), &root.bundles()).unwrap();
    }
    assert_eq!(verify(&[leaf, bad], &root.bundles()), Err(SvidError::IssuerUsage));
}

#[test]
fn sec_id_3_order_and_strangers_in_the_chain() {
    let root = Ca::root("root");
    let first = root.sub(ca_params("first"));
    let second = first.sub(ca_params("second"));
    let leaf = second.leaf(&leaf_params(ID));
    let (stranger, bundles) = (Ca::root("stranger"), root.bundles());
    let chain = [
        leaf.clone(),
        root.certificate.clone(),
        first.certificate.clone(),
        stranger.certificate,
        second.certificate.clone(),
    ];
    let verified = verify(&chain, &bundles).unwrap();
    assert_eq!(verified.authority().der(), &root.certificate);
    let first_is_not_the_leaf = [second.certificate, leaf, first.certificate];
    assert_eq!(verify(&first_is_not_the_leaf, &bundles), Err(SvidError::NoUri));
}

/// An authority of `a.test` that is not valid on the day, with the same key and name as `key`'s.
fn dated(name: &str, key: &KeyPair, from: i32, until: i32) -> Ca {
    let mut params = ca_params(name);
    (params.not_before, params.not_after) = (date_time_ymd(from, 1, 1), date_time_ymd(until, 1, 1));
    Ca::root_with_key(params, copy(key))
}

#[test]
fn sec_id_5_an_authority_expires() {
    let (key, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let past = dated("a", &key, 2020, 2026);
    let future = dated("b", &key, 2028, 2030);
    let good = dated("c", &other, 2020, 2030);
    let bundle = ["a.test"].map(|name| TrustBundle::new(name.parse().unwrap()));
    let [bundle] = bundle;
    let bundle = bundle
        .with_authority(good.authority())
        .with_authority(past.authority())
        .with_authority(future.authority());
    let bundles = BundleSet::from_bundles([bundle]).unwrap();
    let leaf = leaf_params(ID);
    assert!(verify(&[good.leaf(&leaf)], &bundles).is_ok());
    // The error names the authority by its place in the bundle.
    let expired = |at| Err(SvidError::AuthorityExpired { at });
    assert_eq!(verify(&[past.leaf(&leaf)], &bundles), expired(1));
    assert_eq!(verify(&[future.leaf(&leaf)], &bundles), expired(2));
    assert_eq!(verify(&[past.leaf(&leaf)], &past.bundles()), expired(0));
}

/// A root that was renewed under its name and key: whichever certificate is valid counts.
#[test]
fn sec_id_5_a_renewed_authority() {
    let key = KeyPair::generate().unwrap();
    let (past, good) = (dated("a", &key, 2020, 2026), dated("a", &key, 2026, 2030));
    let leaf = [past.leaf(&leaf_params(ID))];
    for order in [[&past, &good], [&good, &past]] {
        let bundle =
            order.iter().fold(TrustBundle::new("a.test".parse().unwrap()), |bundle, ca| {
                bundle.with_authority(ca.authority())
            });
        let bundles = BundleSet::from_bundles([bundle]).unwrap();
        assert_eq!(verify(&leaf, &bundles).unwrap().authority().der(), &good.certificate);
    }
}

#[test]
fn sec_id_5_not_after_is_the_earliest_on_the_path() {
    let mut params = ca_params("root");
    params.not_after = date_time_ymd(2030, 1, 1);
    let root = Ca::root_with(params);
    let mut params = ca_params("intermediate");
    params.not_after = date_time_ymd(2028, 1, 1);
    let intermediate = root.sub(params);
    let mut params = leaf_params(ID);
    params.not_after = date_time_ymd(2029, 1, 1);
    let chain = [intermediate.leaf(&params), intermediate.certificate.clone()];
    let year_2028 = 1_830_297_600;
    assert_eq!(verify(&chain, &root.bundles()).unwrap().not_after(), at(year_2028));
    let late = verify_svid(&chain, &root.bundles(), at(year_2028 + 1), Role::Client, algorithms());
    assert!(late.is_err());
    assert!(year_2028 > NOW);
}

/// [SEC-ID-13] Constraints on URIs refuse, whatever they permit or exclude.
#[test]
fn sec_id_13_uri_constraints_are_closed() {
    let constraint = |tag: u8, name: &str| {
        let subtree = tlv(0x30, &tlv(0x86, name.as_bytes()));
        extension(&[2, 5, 29, 30], true, tlv(0x30, &tlv(tag, &subtree)))
    };
    for host in ["a.test", ".test", "b.test", "", "A.TEST", "*.test", "[::1%25eth0]"] {
        for tag in [0xa0, 0xa1] {
            let mut params = ca_params("intermediate");
            params.custom_extensions = vec![constraint(tag, host)];
            let root = Ca::root("root");
            let intermediate = root.sub(params.clone());
            let chain = [intermediate.leaf(&leaf_params(ID)), intermediate.certificate.clone()];
            let want = SvidError::Path(webpki::Error::NameConstraintViolation);
            assert_eq!(verify(&chain, &root.bundles()), Err(want.clone()), "{tag:x} {host}");
            // The same on the authority itself.
            let root = Ca::root_with(params);
            let chain = [root.leaf(&leaf_params(ID))];
            assert_eq!(verify(&chain, &root.bundles()), Err(want), "{tag:x} {host}");
        }
    }
}
