//! One trust domain's authorities vouch for nobody else.

use mesh_identity::x509::SvidError;
use mesh_identity::{BundleSet, TrustBundle};
use proptest::prelude::*;
use rcgen::KeyPair;

use crate::mint::{Ca, ID, ca_params, leaf_params, uri, verify};

const DOMAINS: [&str; 4] = ["a.test", "b.test", "sub.a.test", "a.test.evil"];

fn set(cas: &[Ca]) -> BundleSet {
    let bundles = DOMAINS.iter().zip(cas).map(|(domain, ca)| ca.bundle(domain));
    BundleSet::from_bundles(bundles).unwrap()
}

fn only_the_diagonal_passes(cas: &[Ca], bundles: &BundleSet) {
    for (signing, ca) in cas.iter().enumerate() {
        for (claimed, domain) in DOMAINS.iter().enumerate() {
            let id = format!("spiffe://{domain}/ns/shop/sa/cart");
            // The signer's certificate sent along changes nothing.
            let chain = [ca.leaf(&leaf_params(&id)), ca.certificate.clone()];
            let got = verify(&chain, bundles);
            if signing == claimed {
                assert_eq!(got.unwrap().id().as_str(), id);
            } else {
                assert!(matches!(got, Err(SvidError::Path(_))), "{got:?}");
            }
        }
    }
}

#[test]
fn sec_id_8_matrix_of_signer_and_claim() {
    let named = DOMAINS.map(Ca::root);
    only_the_diagonal_passes(&named, &set(&named));
    let same_name = DOMAINS.map(|_| Ca::root("root"));
    only_the_diagonal_passes(&same_name, &set(&same_name));
    let with_id = DOMAINS.map(|domain| {
        let mut params = ca_params("root");
        params.subject_alt_names = vec![uri(&format!("spiffe://{domain}"))];
        Ca::root_with(params)
    });
    only_the_diagonal_passes(&with_id, &set(&with_id));
}

/// Two domains with one key and name under certificates of their own: the SPIFFE ID of the
/// authority tells them apart.
#[test]
fn sec_id_8_the_wrong_authority_in_a_bundle() {
    let mut params = ca_params("root");
    params.subject_alt_names = vec![uri("spiffe://b.test")];
    let foreign = Ca::root_with(params);
    let bundles = BundleSet::from_bundles([foreign.bundle("a.test")]).unwrap();
    let got = verify(&[foreign.leaf(&leaf_params(ID))], &bundles);
    assert_eq!(got, Err(SvidError::IssuerId));
}

#[test]
fn sec_id_9_no_authorities_verify_nothing() {
    let ca = Ca::root("root");
    let chain = [ca.leaf(&leaf_params(ID))];
    let empty = TrustBundle::new("a.test".parse().unwrap());
    let empty = BundleSet::from_bundles([empty]).unwrap();
    assert_eq!(verify(&chain, &empty), Err(SvidError::NoAuthorities));
    assert_eq!(verify(&chain, &BundleSet::default()), Err(SvidError::UnknownTrustDomain));
    let other = BundleSet::from_bundles([ca.bundle("b.test")]).unwrap();
    assert_eq!(verify(&chain, &other), Err(SvidError::UnknownTrustDomain));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    /// In any federation, a chain verifies exactly when its signer is in the bundle of the domain
    /// that it claims.
    #[test]
    fn sec_id_8_random_federations(
        // For each of four keys, in which of the domains' bundles it is.
        members in prop::array::uniform4(prop::array::uniform4(any::<bool>())),
        signer in 0..4_usize,
        claimed in 0..4_usize,
        through_intermediate: bool,
    ) {
        let keys: [KeyPair; 4] = std::array::from_fn(|_| KeyPair::generate().unwrap());
        let cas = keys.map(|key| Ca::root_with_key(ca_params("root"), key));
        let bundles = DOMAINS.iter().enumerate().map(|(domain, name)| {
            let empty = TrustBundle::new(name.parse().unwrap());
            cas.iter().zip(members).filter(|(_, of)| of[domain]).fold(empty, |bundle, (ca, _)| {
                bundle.with_authority(ca.authority())
            })
        });
        let bundles = BundleSet::from_bundles(bundles).unwrap();
        let leaf = leaf_params(&format!("spiffe://{}/x", DOMAINS[claimed]));
        let chain = if through_intermediate {
            let sub = cas[signer].sub(ca_params("intermediate"));
            vec![sub.leaf(&leaf), sub.certificate]
        } else {
            vec![cas[signer].leaf(&leaf)]
        };
        prop_assert_eq!(verify(&chain, &bundles).is_ok(), members[signer][claimed]);
    }
}
