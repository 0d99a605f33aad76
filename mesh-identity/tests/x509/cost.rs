//! What is expensive is refused before it costs ([SEC-ID-7]).

use std::time::{Duration, Instant};

use mesh_identity::x509::{
    MAX_CHAIN_BYTES, MAX_CHAIN_CERTIFICATES, Role, SvidError, VerifiedSvid, verify_svid,
};
use mesh_identity::{BundleSet, TrustBundle};
use rcgen::{GeneralSubtree, KeyPair, NameConstraints, SanType};
use rustls_pki_types::CertificateDer;

use crate::mint::{
    Ca, ID, NOW, algorithms, at, ca_params, copy, extension, leaf_params, rsa, uri, verify,
};

/// Without optimization, and beside other tests, the same takes some times as long.
const LIMIT: Duration = Duration::from_millis(if cfg!(debug_assertions) { 200 } else { 50 });

/// The answer, which must come in time at least once in twenty; the machine may be busy.
#[expect(clippy::disallowed_methods, reason = "the test measures")]
fn timed(
    name: &str,
    chain: &[CertificateDer<'_>],
    bundles: &BundleSet,
) -> Result<VerifiedSvid, SvidError> {
    let mut best = Duration::MAX;
    let mut answer = Err(SvidError::EmptyChain);
    for _ in 0..20 {
        let start = Instant::now();
        answer = verify_svid(chain, bundles, at(NOW), Role::Client, algorithms());
        best = best.min(start.elapsed());
        if best < LIMIT {
            break;
        }
    }
    println!("{name}: {best:?}, {:?}", answer.as_ref().map(drop));
    assert!(best < LIMIT, "{name} took {best:?}");
    answer
}

/// Issuers that all have one name, so that each may have signed each.
fn same_named(count: usize) -> (Ca, Vec<CertificateDer<'static>>) {
    let root = Ca::root("same");
    let subs: Vec<Ca> = (0..count).map(|_| root.sub(ca_params("same"))).collect();
    let certificates = subs.iter().map(|sub| sub.certificate.clone()).collect();
    (root, certificates)
}

#[test]
fn sec_id_7_issuers_of_one_name() {
    let (root, issuers) = same_named(40);
    let stranger = Ca::root("same");
    let leaf = stranger.leaf(&leaf_params(ID));
    let chain = [vec![leaf.clone()], issuers.clone()].concat();
    let bundles = root.bundles();
    assert_eq!(timed("41 of one name", &chain, &bundles), Err(SvidError::TooManyCertificates));
    let nine = &chain[..MAX_CHAIN_CERTIFICATES];
    assert!(timed("10 of one name", nine, &bundles).is_err());
    // Strangers, which sign each other in a ring, and a bundle of as many roots of the name.
    let many = (0..40).map(|_| Ca::root("same"));
    let bundle = many.fold(TrustBundle::new("a.test".parse().unwrap()), |bundle, ca| {
        bundle.with_authority(ca.authority())
    });
    let bundles = BundleSet::from_bundles([bundle]).unwrap();
    assert!(timed("10 of one name, 40 roots of it", nine, &bundles).is_err());
}

/// A modulus that takes seconds to verify with is refused unused, wherever it stands.
#[test]
fn sec_id_7_a_huge_modulus() {
    let root = Ca::root("root");
    let huge = root.leaf_for(&leaf_params(ID), &rsa(16384));
    assert_eq!(timed("leaf of 16384 bits", &[huge], &root.bundles()), Err(SvidError::WeakKey));
    // Each of them may have signed the leaf.
    let below = Ca::root("same").leaf(&leaf_params(ID));
    let chain = [vec![below], vec![root.leaf_for(&ca_params("same"), &rsa(16384)); 9]].concat();
    let chain = &chain[..MAX_CHAIN_CERTIFICATES];
    assert!(timed("issuers of 16384 bits", chain, &root.bundles()).is_err());
}

/// Every issuer signed every other, so that paths multiply.
#[test]
fn sec_id_7_paths_multiply() {
    let keys: Vec<KeyPair> = (0..9).map(|_| KeyPair::generate().unwrap()).collect();
    let root = Ca::root("root");
    let mut issuer = root.sub_with_key(ca_params("same"), copy(&keys[0]));
    let mut chain = Vec::new();
    for key in keys.iter().cycle().skip(1).take(9) {
        let next = issuer.sub_with_key(ca_params("same"), copy(key));
        chain.push(next.certificate.clone());
        issuer = next;
    }
    chain.insert(0, issuer.leaf(&leaf_params(ID)));
    let stranger = Ca::root("same");
    for bundles in [stranger.bundles(), root.bundles()] {
        assert_eq!(timed("ring of nine", &chain, &bundles), Err(SvidError::TooManyPaths));
    }
    // What is let through costs as little, however long webpki reads each certificate.
    let mut fat = ca_params("same");
    let tiny = |at| extension(&[1, 3, 6, 1, at], false, Vec::new());
    fat.custom_extensions = (0..1400).map(tiny).collect();
    let subs: Vec<Ca> = (0..4).map(|_| stranger.sub(fat.clone())).collect();
    let thin: Vec<Ca> = (0..4).map(|_| stranger.sub(ca_params("same"))).collect();
    let leaf = [subs[0].leaf(&leaf_params(ID))];
    for issuers in [subs, thin] {
        let issuers = issuers.iter().map(|sub| sub.certificate.clone());
        let chain: Vec<_> = leaf.iter().cloned().chain(issuers).collect();
        println!("{} bytes", chain.iter().map(|one| one.len()).sum::<usize>());
        assert!(timed("ring of four", &chain, &root.bundles()).is_err());
        assert!(
            timed("ring of four, root of its name", &chain, &Ca::root("same").bundles()).is_err()
        );
    }
}

/// Nested authorities that were all given one name.
#[test]
fn sec_id_7_a_few_of_one_name_are_fine() {
    let root = Ca::root("same");
    let mut issuers = vec![root.sub(ca_params("same"))];
    for _ in 0..3 {
        issuers.push(issuers[issuers.len() - 1].sub(ca_params("same")));
    }
    let mut chain: Vec<_> = issuers.iter().map(|issuer| issuer.certificate.clone()).collect();
    chain.reverse();
    chain.insert(0, issuers[3].leaf(&leaf_params(ID)));
    assert!(timed("four nested of one name", &chain, &root.bundles()).is_ok());
}

#[test]
fn sec_id_7_bytes() {
    let ca = Ca::root("root");
    let mut params = leaf_params(ID);
    let padding = extension(&[1, 3, 6, 1, 4, 1, 99_999, 2], false, vec![0; MAX_CHAIN_BYTES]);
    params.custom_extensions = vec![padding];
    let leaf = ca.leaf(&params);
    assert_eq!(timed("long leaf", &[leaf], &ca.bundles()), Err(SvidError::ChainTooLong));
    let zeros = CertificateDer::from(vec![0x30; MAX_CHAIN_BYTES]);
    assert_eq!(timed("nesting", &[zeros], &ca.bundles()), Err(SvidError::Malformed));
}

#[test]
fn sec_id_7_names() {
    let ca = Ca::root("root");
    let with_names = |count: usize| {
        let mut params = leaf_params(ID);
        let names = (1..count).map(|at| SanType::DnsName(format!("h{at}").try_into().unwrap()));
        params.subject_alt_names = std::iter::once(uri(ID)).chain(names).collect();
        [ca.leaf(&params)]
    };
    assert!(timed("32 names", &with_names(32), &ca.bundles()).is_ok());
    for count in [33, 1500, 4000] {
        let got = timed(&format!("{count} names"), &with_names(count), &ca.bundles());
        assert_eq!(got, Err(SvidError::TooManyNames), "{count}");
    }
}

#[test]
fn sec_id_7_name_constraints() {
    let constrained = |name: &str, count: usize| {
        let mut params = ca_params(name);
        let names = (0..count).map(|at| GeneralSubtree::DnsName(format!("h{at}.test")));
        params.name_constraints = Some(NameConstraints {
            permitted_subtrees: Vec::new(),
            excluded_subtrees: names.collect(),
        });
        params
    };
    let mut params = leaf_params(ID);
    let names = (1..32).map(|at| SanType::DnsName(format!("n{at}.other").try_into().unwrap()));
    params.subject_alt_names = std::iter::once(uri(ID)).chain(names).collect();
    // In the chain as many as its bytes allow; in an authority, which we are given, many more.
    let root = Ca::root("root");
    let sub = root.sub(constrained("sub", 3000));
    let chain = [sub.leaf(&params), sub.certificate.clone()];
    let bytes: usize = chain.iter().map(|one| one.len()).sum();
    assert!(bytes <= MAX_CHAIN_BYTES, "{bytes}");
    assert!(timed("32 names, 3000 constraints", &chain, &root.bundles()).is_ok());
    // The most names that an issuer can have below the most constraints.
    let sub = Ca::root_with(constrained("sub", 3000));
    let mut many = ca_params("many");
    let names = (0..1000).map(|at| SanType::DnsName(format!("n{at}.other").try_into().unwrap()));
    many.subject_alt_names = names.collect();
    let many = sub.sub(many);
    let chain = [many.leaf(&params), many.certificate.clone()];
    let got = timed("1000 names, 3000 constraints", &chain, &sub.bundles());
    let exceeded = webpki::Error::MaximumNameConstraintComparisonsExceeded;
    assert_eq!(got, Err(SvidError::Path(exceeded)));
}

/// Most certificates and bytes that pass are still cheap.
#[test]
fn sec_id_7_the_longest_good_chain() {
    let root = Ca::root("root");
    // webpki allows six issuers below an anchor.
    let mut issuers = vec![root.sub(ca_params("0"))];
    for name in ["1", "2", "3", "4", "5"] {
        issuers.push(issuers[issuers.len() - 1].sub(ca_params(name)));
    }
    let leaf = issuers[5].leaf(&leaf_params(ID));
    let mut chain: Vec<_> = issuers.iter().map(|issuer| issuer.certificate.clone()).collect();
    chain.insert(0, leaf);
    assert!(timed("seven certificates", &chain, &root.bundles()).is_ok());
    assert!(verify(&chain, &root.bundles()).is_ok());
}
