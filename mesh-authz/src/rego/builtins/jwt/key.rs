//! The algorithms of JSON Web Signatures, and keys for them.

#[cfg(feature = "es512")]
use p521::ecdsa::{Signature, VerifyingKey, signature::hazmat::PrehashVerifier as _};
use ring::hmac;
use ring::signature::{self, RsaPublicKeyComponents, UnparsedPublicKey};

/// A JSON Web Algorithm.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(in crate::rego::builtins) enum Algorithm {
    Rs256,
    Rs384,
    Rs512,
    Ps256,
    Ps384,
    Ps512,
    Es256,
    Es384,
    Es512,
    EdDsa,
    Hs256,
    Hs384,
    Hs512,
}

impl Algorithm {
    pub(super) fn of(name: &str) -> Option<Self> {
        Some(match name {
            "RS256" => Self::Rs256,
            "RS384" => Self::Rs384,
            "RS512" => Self::Rs512,
            "PS256" => Self::Ps256,
            "PS384" => Self::Ps384,
            "PS512" => Self::Ps512,
            "ES256" => Self::Es256,
            "ES384" => Self::Es384,
            "ES512" => Self::Es512,
            "EdDSA" => Self::EdDsa,
            "HS256" => Self::Hs256,
            "HS384" => Self::Hs384,
            "HS512" => Self::Hs512,
            _ => return None,
        })
    }

    fn hmac(self) -> Option<hmac::Algorithm> {
        match self {
            Self::Hs256 => Some(hmac::HMAC_SHA256),
            Self::Hs384 => Some(hmac::HMAC_SHA384),
            Self::Hs512 => Some(hmac::HMAC_SHA512),
            Self::Rs256
            | Self::Rs384
            | Self::Rs512
            | Self::Ps256
            | Self::Ps384
            | Self::Ps512
            | Self::Es256
            | Self::Es384
            | Self::Es512
            | Self::EdDsa => None,
        }
    }

    fn rsa(self) -> Option<&'static signature::RsaParameters> {
        match self {
            Self::Rs256 => Some(&signature::RSA_PKCS1_2048_8192_SHA256),
            Self::Rs384 => Some(&signature::RSA_PKCS1_2048_8192_SHA384),
            Self::Rs512 => Some(&signature::RSA_PKCS1_2048_8192_SHA512),
            Self::Ps256 => Some(&signature::RSA_PSS_2048_8192_SHA256),
            Self::Ps384 => Some(&signature::RSA_PSS_2048_8192_SHA384),
            Self::Ps512 => Some(&signature::RSA_PSS_2048_8192_SHA512),
            Self::Es256
            | Self::Es384
            | Self::Es512
            | Self::EdDsa
            | Self::Hs256
            | Self::Hs384
            | Self::Hs512 => None,
        }
    }
}

/// One key, of the one kind it is.
pub(in crate::rego) enum Key {
    /// A PKCS#1 public key.
    RsaDer(Vec<u8>),
    Rsa {
        n: Vec<u8>,
        e: Vec<u8>,
    },
    P256(Vec<u8>),
    P384(Vec<u8>),
    #[cfg(feature = "es512")]
    P521(VerifyingKey),
    Ed25519(Vec<u8>),
    Secret(Vec<u8>),
    /// Of a kind or curve that nothing here verifies with.
    Unusable,
}

impl Key {
    /// What verifying a signature with it costs, on the meter of an evaluation.
    pub(super) fn units(&self) -> usize {
        // RSA is quadratic in the modulus: about 25 µs for 2,048 bits.
        let rsa = |bytes: usize| bytes.saturating_mul(bytes) / 64;
        match self {
            Self::RsaDer(der) => rsa(der.len()),
            Self::Rsa { n, .. } => rsa(n.len()),
            Self::P256(_) | Self::Ed25519(_) => 2_000,
            Self::P384(_) => 8_000,
            #[cfg(feature = "es512")]
            Self::P521(_) => 40_000,
            Self::Secret(_) => 50,
            Self::Unusable => 0,
        }
    }

    /// Whether the signature is the key's over the message. A key of another kind or curve than the
    /// algorithm's (RFC 7518 section 3.1) never fits.
    pub(super) fn verifies(&self, algorithm: Algorithm, message: &[u8], signature: &[u8]) -> bool {
        let unparsed = |parameters: &'static dyn signature::VerificationAlgorithm, key: &[u8]| {
            UnparsedPublicKey::new(parameters, key).verify(message, signature).is_ok()
        };
        match self {
            Self::Secret(secret) => algorithm.hmac().is_some_and(|mac| {
                hmac::verify(&hmac::Key::new(mac, secret), message, signature).is_ok()
            }),
            Self::RsaDer(der) => algorithm.rsa().is_some_and(|rsa| unparsed(rsa, der)),
            Self::Rsa { n, e } => algorithm.rsa().is_some_and(|rsa| {
                RsaPublicKeyComponents { n, e }.verify(rsa, message, signature).is_ok()
            }),
            Self::P256(point) => {
                algorithm == Algorithm::Es256
                    && unparsed(&signature::ECDSA_P256_SHA256_FIXED, point)
            }
            Self::P384(point) => {
                algorithm == Algorithm::Es384
                    && unparsed(&signature::ECDSA_P384_SHA384_FIXED, point)
            }
            #[cfg(feature = "es512")]
            Self::P521(key) => {
                let digest = ring::digest::digest(&ring::digest::SHA512, message);
                algorithm == Algorithm::Es512
                    && Signature::from_slice(signature).is_ok_and(|signature| {
                        key.verify_prehash(digest.as_ref(), &signature).is_ok()
                    })
            }
            Self::Ed25519(point) => {
                algorithm == Algorithm::EdDsa && unparsed(&signature::ED25519, point)
            }
            Self::Unusable => false,
        }
    }

    /// A point of P-521; nothing when it is not on the curve.
    #[cfg(feature = "es512")]
    pub(super) fn p521(point: &[u8]) -> Option<Self> {
        VerifyingKey::from_sec1_bytes(point).ok().map(Self::P521)
    }

    /// A point of P-521, which only feature `es512` can use; nothing when it has not the shape of a
    /// point (SEC 1, section 2.3.3: compressed or not).
    #[cfg(not(feature = "es512"))]
    pub(super) const fn p521(point: &[u8]) -> Option<Self> {
        match point {
            [2 | 3, x @ ..] if x.len() == 66 => Some(Self::Unusable),
            [4, xy @ ..] if xy.len() == 132 => Some(Self::Unusable),
            _ => None,
        }
    }
}
