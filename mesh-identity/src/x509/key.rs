//! Which public keys are accepted ([SEC-ID-6]).

use x509_parser::der_parser::asn1_rs::Oid;
use x509_parser::oid_registry::{
    OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_PKCS1_RSAENCRYPTION,
    OID_SIG_ED25519,
};
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

use super::error::SvidError;

/// RSA below is factored with effort; above, verifying costs too much.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

/// Refuses a subject public key info (DER) unless it is RSA of 2048 to 8192 bits, P-256, P-384 or
/// Ed25519, and its key has the form that its algorithm demands: points are uncompressed, because a
/// compressed one would be a second spelling of a key.
///
/// # Errors
///
/// [`SvidError::Malformed`] or [`SvidError::WeakKey`].
pub fn check_public_key(spki: &[u8]) -> Result<(), SvidError> {
    let (rest, key) =
        SubjectPublicKeyInfo::from_der(spki).map_err(|_detail| SvidError::Malformed)?;
    if rest.is_empty() { check(&key) } else { Err(SvidError::Malformed) }
}

pub(super) fn check(key: &SubjectPublicKeyInfo<'_>) -> Result<(), SvidError> {
    let algorithm = &key.algorithm.algorithm;
    let bits = &key.subject_public_key;
    if *algorithm == OID_PKCS1_RSAENCRYPTION {
        return match key.parsed() {
            Ok(PublicKey::RSA(rsa)) if RSA_BITS.contains(&rsa_bits(rsa.modulus)) => Ok(()),
            _ => Err(SvidError::WeakKey),
        };
    }
    let well_formed = if *algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY {
        let curve = key.algorithm.parameters.as_ref().and_then(|any| Oid::try_from(any).ok());
        let length = match curve {
            Some(curve) if curve == OID_EC_P256 => 65,
            Some(curve) if curve == OID_NIST_EC_P384 => 97,
            _ => return Err(SvidError::WeakKey),
        };
        bits.data.len() == length && bits.data.first() == Some(&4)
    } else if *algorithm == OID_SIG_ED25519 {
        bits.data.len() == 32
    } else {
        return Err(SvidError::WeakKey);
    };
    if well_formed && bits.unused_bits == 0 { Ok(()) } else { Err(SvidError::Malformed) }
}

/// Bits of a big-endian modulus, leading zero bytes not counted.
fn rsa_bits(modulus: &[u8]) -> usize {
    let zeros = modulus.iter().take_while(|byte| **byte == 0).count();
    let significant = modulus.get(zeros..).unwrap_or_default();
    let Some(first) = significant.first() else { return 0 };
    let lead = usize::try_from(first.leading_zeros()).unwrap_or_default();
    significant.len().saturating_mul(8).saturating_sub(lead)
}
