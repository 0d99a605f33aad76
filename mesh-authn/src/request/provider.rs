//! jsonwebtoken's cryptography on ring, for applications that use that crate as well.
//!
//! Never installed by us: the default of jsonwebtoken belongs to the process, and so to the
//! application.

use jsonwebtoken::crypto::{CryptoProvider, JwtSigner, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::{Error, ErrorKind, Result};
use jsonwebtoken::jwk::{EllipticCurve, ThumbprintHash};
use jsonwebtoken::signature::{Error as SignatureError, Signer, Verifier};
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey, DecodingKeyKind, EncodingKey};
use ring::rand::SystemRandom;
use ring::{digest, hmac, rsa, signature};

/// A provider for jsonwebtoken without any of its back ends: HMAC, RSA, ECDSA on P-256 and P-384,
/// and Ed25519, as ring has them.
///
/// Install it once, at the start of `main`: `mesh_authn::request::JSONWEBTOKEN_ON_RING
/// .install_default()`. Thumbprints work; making a `Jwk` out of a private key is answered with an
/// error, except for Ed25519.
pub static JSONWEBTOKEN_ON_RING: CryptoProvider = CryptoProvider {
    signer_factory: signer,
    verifier_factory: verifier,
    key_utils: KeyUtils {
        rsa_pub_components_from_private_key,
        rsa_pub_components_from_public_key,
        ec_pub_components_from_private_key,
        ed_pub_components_from_private_key,
        compute_digest,
    },
};

fn no<E>(_: E) -> SignatureError {
    SignatureError::new()
}

fn invalid(kind: ErrorKind) -> Error {
    Error::from(kind)
}

fn signer(algorithm: &Algorithm, key: &EncodingKey) -> Result<Box<dyn JwtSigner>> {
    if key.family() != algorithm.family() {
        return Err(invalid(ErrorKind::InvalidAlgorithm));
    }
    let bytes = key.as_bytes();
    let ecdsa = |with: &'static signature::EcdsaSigningAlgorithm| {
        signature::EcdsaKeyPair::from_pkcs8(with, bytes, &SystemRandom::new())
            .map(|pair| SigningKey::Ecdsa(Box::new(pair)))
            .map_err(|rejected| drop_detail(&rejected, ErrorKind::InvalidEcdsaKey))
    };
    let rsa = |padding: &'static dyn signature::RsaEncoding| {
        // jsonwebtoken's keys are PKCS#1.
        signature::RsaKeyPair::from_der(bytes)
            .map(|pair| SigningKey::Rsa(Box::new(pair), padding))
            .map_err(|rejected| {
                let reason = rejected.to_string();
                invalid(ErrorKind::InvalidRsaKey(reason))
            })
    };
    let hmac = |with: hmac::Algorithm| Ok(SigningKey::Hmac(hmac::Key::new(with, bytes)));
    let key = match algorithm {
        Algorithm::HS256 => hmac(hmac::HMAC_SHA256),
        Algorithm::HS384 => hmac(hmac::HMAC_SHA384),
        Algorithm::HS512 => hmac(hmac::HMAC_SHA512),
        Algorithm::ES256 => ecdsa(&signature::ECDSA_P256_SHA256_FIXED_SIGNING),
        Algorithm::ES384 => ecdsa(&signature::ECDSA_P384_SHA384_FIXED_SIGNING),
        Algorithm::RS256 => rsa(&signature::RSA_PKCS1_SHA256),
        Algorithm::RS384 => rsa(&signature::RSA_PKCS1_SHA384),
        Algorithm::RS512 => rsa(&signature::RSA_PKCS1_SHA512),
        Algorithm::PS256 => rsa(&signature::RSA_PSS_SHA256),
        Algorithm::PS384 => rsa(&signature::RSA_PSS_SHA384),
        Algorithm::PS512 => rsa(&signature::RSA_PSS_SHA512),
        Algorithm::EdDSA => ed25519(bytes).map(|pair| SigningKey::Ed25519(Box::new(pair))),
        _ => Err(invalid(ErrorKind::InvalidAlgorithm)),
    }?;
    Ok(Box::new(RingSigner { algorithm: *algorithm, key }))
}
