//! P-521 in pure Rust: ring has no such curve.

use p521::ecdsa::signature::hazmat::PrehashVerifier as _;
use p521::ecdsa::{Signature, VerifyingKey};
use ring::digest;

use super::key::{fixed_len, halves};
use super::options::Tolerance;
use super::token::Algorithm;

/// Bytes of a coordinate and of each half of a signature.
const FIELD_LEN: usize = 66;

/// Bytes of an ES512 signature.
pub(super) const SIGNATURE_LEN: usize = 132;

/// A point of the curve.
pub(super) struct Key {
    key: VerifyingKey,
}

impl Key {
    /// Nothing when the point is not on the curve.
    pub(super) fn parse(x: &[u8], y: &[u8], findings: &mut Vec<Tolerance>) -> Option<Self> {
        if x.len() != FIELD_LEN || y.len() != FIELD_LEN {
            findings.push(Tolerance::LooseKeyEncoding);
        }
        let (x, y) = (fixed_len(x, FIELD_LEN)?, fixed_len(y, FIELD_LEN)?);
        let point = [&[4], &x[..], &y[..]].concat();
        Some(Self { key: VerifyingKey::from_sec1_bytes(&point).ok()? })
    }

    /// The hash is the token's when it is one of the ES family, else SHA-256, as for the other
    /// curves.
    pub(super) fn verify(&self, algorithm: Algorithm, signed: &[u8], signature: &[u8]) -> bool {
        let hash = match algorithm {
            Algorithm::Es512 => &digest::SHA512,
            Algorithm::Es384 => &digest::SHA384,
            Algorithm::Es256
            | Algorithm::EdDsa
            | Algorithm::Hs256
            | Algorithm::Hs384
            | Algorithm::Hs512
            | Algorithm::Ps256
            | Algorithm::Ps384
            | Algorithm::Ps512
            | Algorithm::Rs256
            | Algorithm::Rs384
            | Algorithm::Rs512 => &digest::SHA256,
        };
        let digest = digest::digest(hash, signed);
        let Some((r, s)) = halves(signature, FIELD_LEN) else { return false };
        // The crate refuses hashes shorter than half the field; in front, zeros change nothing.
        let Some(digest) = fixed_len(digest.as_ref(), FIELD_LEN) else { return false };
        Signature::from_slice(&[r, s].concat())
            .is_ok_and(|signature| self.key.verify_prehash(&digest, &signature).is_ok())
    }
}
