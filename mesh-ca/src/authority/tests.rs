//! What an authority asks of its own leaves before they leave it.

use super::*;
use crate::key::Generated;

const HOUR: Duration = Duration::from_secs(3600);

fn now() -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(1_800_000_000))
}

/// A root of each kind of key, and an authority below one.
fn authorities() -> Vec<Authority> {
    let domain: TrustDomain = "a.test".parse().unwrap();
    let kinds = [KeyKind::P256, KeyKind::P384, KeyKind::Ed25519];
    let roots =
        kinds.map(|kind| Authority::new_root_with(&domain, kind, 99 * HOUR, now()).unwrap());
    let below = roots[1].new_intermediate(50 * HOUR, now()).unwrap();
    let rsa = include_bytes!("../../tests/ca/keys/rsa2048.pem");
    let rsa = Authority::self_signed(&domain, CaKey::from_pem(rsa).unwrap(), 99 * HOUR, now());
    roots.into_iter().chain([below, rsa.unwrap()]).collect()
}

fn to_be_signed(authority: &Authority) -> Vec<u8> {
    let leaf = Leaf {
        id: &"spiffe://a.test/ns/shop/sa/cart".parse().unwrap(),
        dns_names: &[],
        spki: &Generated::new().unwrap().spki(),
        serial: profile::serial().unwrap(),
        not_before: backdated(now()),
        not_after: after(now(), HOUR),
    };
    authority.leaves.to_be_signed(&leaf).unwrap()
}

/// The certificate of what was signed, as the authority judges it.
fn judge(
    authority: &Authority,
    der: CertificateDer<'_>,
    signed: &Signed<'_>,
) -> Result<(), SvidError> {
    authority.check(&SvidLeaf::parse(der)?, signed, true, now())
}

/// The first leaf of an authority is verified by cryptography: a proof alone counts for nothing.
#[test]
fn sec_ca_4_the_first_leaf_is_verified_by_its_signature() {
    for authority in authorities() {
        let (key, message) = (authority.issuer.key(), to_be_signed(&authority));
        let mut signature = key.sign(&message).unwrap().signature().to_vec();
        *signature.last_mut().unwrap() ^= 1;
        let forged = Signed::forged(key, &message, signature);
        let leaf = authority.leaves.certificate(&message, forged.signature());
        let got = judge(&authority, leaf, &forged);
        assert!(matches!(got, Err(SvidError::Path(_))), "{got:?}");
        assert!(authority.above.get().is_none(), "nothing has been verified yet");
        let signed = key.sign(&message).unwrap();
        let leaf = authority.leaves.certificate(&message, signed.signature());
        assert_eq!(judge(&authority, leaf, &signed), Ok(()));
        assert!(authority.above.get().is_some());
    }
}

/// Whatever is changed in a leaf after it was signed, its proof does not fit it any more.
#[test]
fn sec_ca_4_a_changed_leaf_is_refused() {
    for authority in authorities() {
        let id = "spiffe://a.test/first".parse().unwrap();
        authority.issue_svid(&id, HOUR, now()).unwrap();
        let (key, message) = (authority.issuer.key(), to_be_signed(&authority));
        let signed = key.sign(&message).unwrap();
        let leaf = authority.leaves.certificate(&message, signed.signature());
        assert_eq!(judge(&authority, leaf.clone(), &signed), Ok(()));
        for at in 0..leaf.len() {
            for bit in [1, 4, 0x80] {
                let mut changed = leaf.to_vec();
                changed[at] ^= bit;
                assert!(judge(&authority, changed.into(), &signed).is_err(), "octet {at}");
            }
        }
        let longer = [leaf.as_ref(), &[0]].concat();
        assert!(judge(&authority, longer.into(), &signed).is_err());
        // Nor does another leaf's.
        let other = to_be_signed(&authority);
        let other = key.sign(&other).unwrap();
        assert!(judge(&authority, leaf, &other).is_err());
    }
}

/// Another authority's proof is worth nothing, whatever it calls itself.
#[test]
fn sec_ca_4_a_proof_of_another_key_is_refused() {
    let (one, other) = (authorities(), authorities());
    for (one, other) in one.iter().zip(&other).take(4) {
        let id = "spiffe://a.test/first".parse().unwrap();
        one.issue_svid(&id, HOUR, now()).unwrap();
        let message = to_be_signed(other);
        let signed = other.issuer.key().sign(&message).unwrap();
        let leaf = other.leaves.certificate(&message, signed.signature());
        assert!(judge(one, leaf, &signed).is_err());
    }
}
