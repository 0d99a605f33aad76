//! One public key, and how it verifies: the key chooses the primitive, never the token.

use std::fmt;

use ring::{hmac, rsa, signature};

use super::curve::Curve;
use super::options::Tolerance;
use super::token::Algorithm;

/// A usable key of a key set, parsed once.
pub(super) struct Key {
    /// Invariant: not empty.
    pub(super) kid: Option<String>,
    /// Invariant: not empty. Any text, also one that no token can have.
    pub(super) algorithm: Option<String>,
    pub(super) material: Material,
    /// What a strict reader would not have accepted.
    pub(super) findings: Vec<Tolerance>,
}

/// A key never prints its material: it may be a shared secret.
impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").field("kid", &self.kid).finish_non_exhaustive()
    }
}

/// What verifies.
pub(super) enum Material {
    /// The uncompressed point.
    Ec(Curve, Vec<u8>),
    #[cfg(feature = "es512")]
    P521(super::es512::Key),
    Ed25519([u8; 32]),
    /// Modulus and exponent without leading zeros.
    Rsa {
        n: Vec<u8>,
        e: Vec<u8>,
    },
    Symmetric(Box<Symmetric>),
}

/// A shared secret, ready for each hash.
pub(super) struct Symmetric {
    pub(super) len: usize,
    pub(super) sha256: hmac::Key,
    pub(super) sha384: hmac::Key,
    pub(super) sha512: hmac::Key,
}

/// What a key says about a signature.
pub(super) enum Answer {
    /// It verifies, though a strict reader might have objections.
    Good(Vec<Tolerance>),
    Bad,
    /// Envoy ends its search at such a key ([SEM-JWT-23]).
    WrongLength,
}

impl Key {
    /// [SEM-JWT-70]: a `kid` excludes only when both sides have one; an `alg` of the key must be
    /// the token's.
    pub(super) fn fits(&self, kid: Option<&str>, algorithm: Algorithm) -> bool {
        let kid = kid.filter(|kid| !kid.is_empty());
        let same_kid = match (&self.kid, kid) {
            (Some(own), Some(kid)) => own == kid,
            (None, _) | (_, None) => true,
        };
        same_kid && self.algorithm.as_deref().is_none_or(|own| own == algorithm.name())
    }

    pub(super) fn verify(&self, algorithm: Algorithm, signed: &[u8], signature: &[u8]) -> Answer {
        let mut findings = self.findings.clone();
        if !self.material.makes(algorithm) {
            findings.push(Tolerance::AlgorithmMismatch);
        }
        let good = match &self.material {
            Material::Ec(curve, point) => {
                if signature.len() != curve.len().saturating_mul(2) {
                    findings.push(Tolerance::LooseSignatureLength);
                }
                verify_ec(*curve, point, algorithm, signed, signature)
            }
            #[cfg(feature = "es512")]
            Material::P521(key) => {
                if signature.len() != super::es512::SIGNATURE_LEN {
                    findings.push(Tolerance::LooseSignatureLength);
                }
                key.verify(algorithm, signed, signature)
            }
            Material::Ed25519(point) => {
                if signature.len() != 64 {
                    return Answer::WrongLength;
                }
                signature::UnparsedPublicKey::new(&signature::ED25519, point)
                    .verify(signed, signature)
                    .is_ok()
            }
            Material::Rsa { n, e } => verify_rsa(n, e, algorithm, signed, signature),
            Material::Symmetric(key) => {
                let (hmac, len) = match algorithm {
                    Algorithm::Hs384 => (&key.sha384, 48),
                    Algorithm::Hs512 => (&key.sha512, 64),
                    Algorithm::Es256
                    | Algorithm::Es384
                    | Algorithm::Es512
                    | Algorithm::EdDsa
                    | Algorithm::Hs256
                    | Algorithm::Ps256
                    | Algorithm::Ps384
                    | Algorithm::Ps512
                    | Algorithm::Rs256
                    | Algorithm::Rs384
                    | Algorithm::Rs512 => (&key.sha256, 32),
                };
                if key.len < len {
                    findings.push(Tolerance::WeakKey);
                }
                // Constant-time inside ring ([SEC-OPS-6]).
                hmac::verify(hmac, signed, signature).is_ok()
            }
        };
        if good { Answer::Good(findings) } else { Answer::Bad }
    }
}

impl Material {
    /// Whether a key of this type and curve makes signatures of this algorithm ([SEC-JWT-1]).
    pub(super) fn makes(&self, algorithm: Algorithm) -> bool {
        match algorithm {
            Algorithm::Es256 => matches!(self, Self::Ec(Curve::P256, _)),
            Algorithm::Es384 => matches!(self, Self::Ec(Curve::P384, _)),
            #[cfg(feature = "es512")]
            Algorithm::Es512 => matches!(self, Self::P521(_)),
            #[cfg(not(feature = "es512"))]
            Algorithm::Es512 => false,
            Algorithm::EdDsa => matches!(self, Self::Ed25519(_)),
            Algorithm::Hs256 | Algorithm::Hs384 | Algorithm::Hs512 => {
                matches!(self, Self::Symmetric(_))
            }
            Algorithm::Ps256
            | Algorithm::Ps384
            | Algorithm::Ps512
            | Algorithm::Rs256
            | Algorithm::Rs384
            | Algorithm::Rs512 => matches!(self, Self::Rsa { .. }),
        }
    }
}

/// [SEM-JWT-75]. The hash is the token's when it is one of the ES family, else SHA-256.
fn verify_ec(
    curve: Curve,
    point: &[u8],
    algorithm: Algorithm,
    signed: &[u8],
    signature: &[u8],
) -> bool {
    let Some((r, s)) = halves(signature, curve.len()) else { return false };
    let fixed = |alg: &'static signature::EcdsaVerificationAlgorithm| {
        signature::UnparsedPublicKey::new(alg, point).verify(signed, &[&r[..], &s[..]].concat())
    };
    let der = |alg: &'static signature::EcdsaVerificationAlgorithm| {
        signature::UnparsedPublicKey::new(alg, point).verify(signed, &der_of(&r, &s))
    };
    let answer = match (curve, algorithm) {
        // ring has no SHA-512 for these curves. Only a token whose header lies about its key
        // asks for it (see `Tolerance::AlgorithmMismatch`).
        (Curve::P256 | Curve::P384, Algorithm::Es512) => return false,
        (Curve::P256, Algorithm::Es384) => der(&signature::ECDSA_P256_SHA384_ASN1),
        (Curve::P256, _) => fixed(&signature::ECDSA_P256_SHA256_FIXED),
        (Curve::P384, Algorithm::Es384) => fixed(&signature::ECDSA_P384_SHA384_FIXED),
        (Curve::P384, _) => der(&signature::ECDSA_P384_SHA256_ASN1),
    };
    answer.is_ok()
}

/// Both numbers of an ECDSA signature, each as long as the curve's field. Envoy splits in the
/// middle and reads what it finds as numbers.
pub(super) fn halves(signature: &[u8], len: usize) -> Option<(Vec<u8>, Vec<u8>)> {
    let middle = signature.len().checked_div(2)?;
    let (r, rest) = signature.split_at_checked(middle)?;
    let s = rest.get(..middle)?;
    Some((fixed_len(r, len)?, fixed_len(s, len)?))
}

/// A number in exactly `len` bytes, if it fits.
pub(super) fn fixed_len(number: &[u8], len: usize) -> Option<Vec<u8>> {
    let number = without_leading_zeros(number);
    let padding = len.checked_sub(number.len())?;
    let mut fixed = vec![0; padding];
    fixed.extend_from_slice(number);
    Some(fixed)
}

pub(super) fn without_leading_zeros(number: &[u8]) -> &[u8] {
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    number.get(zeros..).unwrap_or_default()
}

/// `SEQUENCE { INTEGER r, INTEGER s }`. Both are at most 49 bytes, so each length is one byte.
fn der_of(r: &[u8], s: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    for number in [r, s] {
        let number = without_leading_zeros(number);
        let sign = if number.first().is_none_or(|byte| byte & 0x80 != 0) { &[0][..] } else { &[] };
        body.push(2);
        body.push(u8::try_from(sign.len().saturating_add(number.len())).unwrap_or(u8::MAX));
        body.extend_from_slice(sign);
        body.extend_from_slice(number);
    }
    let mut der = vec![0x30, u8::try_from(body.len()).unwrap_or(u8::MAX)];
    der.append(&mut body);
    der
}

/// RSA keys demand RS or PS in the token's header ([SEM-JWT-72]).
fn verify_rsa(n: &[u8], e: &[u8], algorithm: Algorithm, signed: &[u8], signature: &[u8]) -> bool {
    // Keys below 2048 bits carry the finding `WeakKey`; ring has the algorithms only with SHA-256
    // and SHA-512.
    let short = n.len() < 256;
    let parameters: &'static signature::RsaParameters = match algorithm {
        Algorithm::Rs256 if short => &signature::RSA_PKCS1_1024_8192_SHA256_FOR_LEGACY_USE_ONLY,
        Algorithm::Rs512 if short => &signature::RSA_PKCS1_1024_8192_SHA512_FOR_LEGACY_USE_ONLY,
        Algorithm::Rs256 => &signature::RSA_PKCS1_2048_8192_SHA256,
        Algorithm::Rs384 => &signature::RSA_PKCS1_2048_8192_SHA384,
        Algorithm::Rs512 => &signature::RSA_PKCS1_2048_8192_SHA512,
        Algorithm::Ps256 => &signature::RSA_PSS_2048_8192_SHA256,
        Algorithm::Ps384 => &signature::RSA_PSS_2048_8192_SHA384,
        Algorithm::Ps512 => &signature::RSA_PSS_2048_8192_SHA512,
        Algorithm::Es256
        | Algorithm::Es384
        | Algorithm::Es512
        | Algorithm::EdDsa
        | Algorithm::Hs256
        | Algorithm::Hs384
        | Algorithm::Hs512 => return false,
    };
    rsa::PublicKeyComponents { n, e }.verify(parameters, signed, signature).is_ok()
}
