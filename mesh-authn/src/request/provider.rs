//! jsonwebtoken's cryptography on ring, for applications that use that crate as well.
//!
//! Never installed by us: the default of jsonwebtoken belongs to the process, and so to the
//! application.

#![expect(
    clippy::trivially_copy_pass_by_ref,
    clippy::needless_pass_by_value,
    reason = "the signatures are jsonwebtoken's"
)]

use jsonwebtoken::crypto::{CryptoProvider, JwtSigner, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::{Error, ErrorKind, Result};
use jsonwebtoken::jwk::{EllipticCurve, ThumbprintHash};
use jsonwebtoken::signature::{Error as SignatureError, Signer, Verifier};
use jsonwebtoken::{Algorithm, DecodingKey, DecodingKeyKind, EncodingKey};
use ring::rand::SystemRandom;
use ring::signature::{EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RsaKeyPair};
use ring::{digest, hmac, rsa, signature};
use x509_parser::prelude::FromDer as _;
use x509_parser::public_key::RSAPublicKey;

/// A provider for jsonwebtoken without any of its back ends: HMAC, RSA from 2048 bits, ECDSA on
/// P-256 and P-384, and Ed25519, as ring has them.
///
/// Install it once, at the start of `main`. This crate neither installs nor needs it.
///
/// # Examples
///
/// ```
/// use jsonwebtoken::{DecodingKey, EncodingKey, Header, Validation, decode, encode};
/// use mesh_authn::request::JSONWEBTOKEN_ON_RING;
///
/// JSONWEBTOKEN_ON_RING.install_default().expect("nobody else has installed one");
/// let claims = serde_json::json!({"sub": "alice", "exp": 4_000_000_000_u64});
/// let token = encode(&Header::default(), &claims, &EncodingKey::from_secret(b"secret"))?;
/// let key = DecodingKey::from_secret(b"secret");
/// let read = decode::<serde_json::Value>(&token, &key, &Validation::default())?;
/// assert_eq!(read.claims, claims);
/// # Ok::<(), jsonwebtoken::errors::Error>(())
/// ```
pub static JSONWEBTOKEN_ON_RING: CryptoProvider = CryptoProvider {
    signer_factory: signer,
    verifier_factory: verifier,
    key_utils: KeyUtils {
        rsa_pub_components_from_private_key: rsa_of_private_key,
        rsa_pub_components_from_public_key: rsa_of_public_key,
        ec_pub_components_from_private_key: ec_of_private_key,
        ed_pub_components_from_private_key: ed_of_private_key,
        compute_digest,
    },
};

fn signer(algorithm: &Algorithm, key: &EncodingKey) -> Result<Box<dyn JwtSigner>> {
    if key.family() != algorithm.family() {
        return Err(ErrorKind::InvalidAlgorithm.into());
    }
    let bytes = key.as_bytes();
    let hmac = |with: hmac::Algorithm| Ok(SigningKey::Hmac(hmac::Key::new(with, bytes)));
    let ecdsa = |with: &'static signature::EcdsaSigningAlgorithm| {
        Ok(SigningKey::Ecdsa(Box::new(ecdsa_pair(with, bytes)?)))
    };
    let rsa = |padding: &'static dyn signature::RsaEncoding| {
        Ok(SigningKey::Rsa(Box::new(rsa_pair(bytes)?), padding))
    };
    let key = match *algorithm {
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
        Algorithm::EdDSA => Ok(SigningKey::Ed25519(Box::new(ed25519_pair(bytes)?))),
        _ => Err(Error::from(ErrorKind::UnsupportedAlgorithm)),
    }?;
    Ok(Box::new(RingSigner { algorithm: *algorithm, key }))
}

/// A private key with all that its signatures need.
enum SigningKey {
    Ecdsa(Box<EcdsaKeyPair>),
    Ed25519(Box<Ed25519KeyPair>),
    Hmac(hmac::Key),
    Rsa(Box<RsaKeyPair>, &'static dyn signature::RsaEncoding),
}

struct RingSigner {
    algorithm: Algorithm,
    key: SigningKey,
}

impl Signer<Vec<u8>> for RingSigner {
    fn try_sign(&self, message: &[u8]) -> std::result::Result<Vec<u8>, SignatureError> {
        let random = SystemRandom::new();
        match &self.key {
            SigningKey::Hmac(key) => Ok(hmac::sign(key, message).as_ref().to_vec()),
            SigningKey::Ed25519(pair) => Ok(pair.sign(message).as_ref().to_vec()),
            SigningKey::Ecdsa(pair) => {
                let signed = pair.sign(&random, message).map_err(SignatureError::from_source)?;
                Ok(signed.as_ref().to_vec())
            }
            SigningKey::Rsa(pair, padding) => {
                let mut signed = vec![0; pair.public().modulus_len()];
                pair.sign(*padding, &random, message, &mut signed)
                    .map_err(SignatureError::from_source)?;
                Ok(signed)
            }
        }
    }
}

impl JwtSigner for RingSigner {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}

fn verifier(algorithm: &Algorithm, key: &DecodingKey) -> Result<Box<dyn JwtVerifier>> {
    if key.family() != algorithm.family() {
        return Err(ErrorKind::InvalidAlgorithm.into());
    }
    let key = match *algorithm {
        Algorithm::HS256 => VerifyingKey::hmac(hmac::HMAC_SHA256, key),
        Algorithm::HS384 => VerifyingKey::hmac(hmac::HMAC_SHA384, key),
        Algorithm::HS512 => VerifyingKey::hmac(hmac::HMAC_SHA512, key),
        Algorithm::ES256 => VerifyingKey::raw(&signature::ECDSA_P256_SHA256_FIXED, key),
        Algorithm::ES384 => VerifyingKey::raw(&signature::ECDSA_P384_SHA384_FIXED, key),
        Algorithm::EdDSA => VerifyingKey::raw(&signature::ED25519, key),
        Algorithm::RS256 => Ok(VerifyingKey::rsa(&signature::RSA_PKCS1_2048_8192_SHA256, key)),
        Algorithm::RS384 => Ok(VerifyingKey::rsa(&signature::RSA_PKCS1_2048_8192_SHA384, key)),
        Algorithm::RS512 => Ok(VerifyingKey::rsa(&signature::RSA_PKCS1_2048_8192_SHA512, key)),
        Algorithm::PS256 => Ok(VerifyingKey::rsa(&signature::RSA_PSS_2048_8192_SHA256, key)),
        Algorithm::PS384 => Ok(VerifyingKey::rsa(&signature::RSA_PSS_2048_8192_SHA384, key)),
        Algorithm::PS512 => Ok(VerifyingKey::rsa(&signature::RSA_PSS_2048_8192_SHA512, key)),
        _ => Err(ErrorKind::UnsupportedAlgorithm.into()),
    }?;
    Ok(Box::new(RingVerifier { algorithm: *algorithm, key }))
}

/// A public key, or a shared secret, with the algorithm it is used for.
enum VerifyingKey {
    Hmac(hmac::Key),
    /// As ring reads it: a point, or the DER of an RSA key.
    Raw(&'static dyn signature::VerificationAlgorithm, Vec<u8>),
    Rsa(&'static signature::RsaParameters, rsa::PublicKeyComponents<Vec<u8>>),
}

impl VerifyingKey {
    fn hmac(with: hmac::Algorithm, key: &DecodingKey) -> Result<Self> {
        Ok(Self::Hmac(hmac::Key::new(with, bytes_of(key)?)))
    }

    fn raw(with: &'static dyn signature::VerificationAlgorithm, key: &DecodingKey) -> Result<Self> {
        Ok(Self::Raw(with, bytes_of(key)?.to_vec()))
    }

    fn rsa(with: &'static signature::RsaParameters, key: &DecodingKey) -> Self {
        match key.kind() {
            DecodingKeyKind::SecretOrDer(der) => Self::Raw(with, der.clone()),
            DecodingKeyKind::RsaModulusExponent { n, e } => {
                Self::Rsa(with, rsa::PublicKeyComponents { n: n.clone(), e: e.clone() })
            }
        }
    }
}

fn bytes_of(key: &DecodingKey) -> Result<&[u8]> {
    match key.kind() {
        DecodingKeyKind::SecretOrDer(bytes) => Ok(bytes),
        DecodingKeyKind::RsaModulusExponent { .. } => Err(ErrorKind::InvalidKeyFormat.into()),
    }
}

struct RingVerifier {
    algorithm: Algorithm,
    key: VerifyingKey,
}

impl Verifier<Vec<u8>> for RingVerifier {
    fn verify(
        &self,
        message: &[u8],
        signature: &Vec<u8>,
    ) -> std::result::Result<(), SignatureError> {
        match &self.key {
            VerifyingKey::Hmac(key) => hmac::verify(key, message, signature),
            VerifyingKey::Raw(with, key) => {
                signature::UnparsedPublicKey::new(*with, key).verify(message, signature)
            }
            VerifyingKey::Rsa(with, key) => key.verify(with, message, signature),
        }
        .map_err(SignatureError::from_source)
    }
}

impl JwtVerifier for RingVerifier {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}

/// jsonwebtoken's RSA keys are PKCS#1.
fn rsa_pair(der: &[u8]) -> Result<RsaKeyPair> {
    RsaKeyPair::from_der(der)
        .map_err(|rejected| ErrorKind::InvalidRsaKey(rejected.to_string()).into())
}

fn ecdsa_pair(
    with: &'static signature::EcdsaSigningAlgorithm,
    pkcs8: &[u8],
) -> Result<EcdsaKeyPair> {
    EcdsaKeyPair::from_pkcs8(with, pkcs8, &SystemRandom::new())
        .map_err(|_detail| ErrorKind::InvalidEcdsaKey.into())
}

/// OpenSSL writes PKCS#8 without the public key, which ring then computes.
fn ed25519_pair(pkcs8: &[u8]) -> Result<Ed25519KeyPair> {
    Ed25519KeyPair::from_pkcs8_maybe_unchecked(pkcs8)
        .map_err(|_detail| ErrorKind::InvalidEddsaKey.into())
}

fn rsa_of_private_key(der: &[u8]) -> Result<(Vec<u8>, Vec<u8>)> {
    let parts: rsa::PublicKeyComponents<Vec<u8>> = rsa_pair(der)?.public().into();
    Ok((parts.n, parts.e))
}

fn rsa_of_public_key(der: &[u8]) -> Result<(Vec<u8>, Vec<u8>)> {
    let (_, key) = RSAPublicKey::from_der(der)
        .map_err(|error| Error::from(ErrorKind::InvalidRsaKey(error.to_string())))?;
    let number = |bytes: &[u8]| super::key::without_leading_zeros(bytes).to_vec();
    Ok((number(key.modulus), number(key.exponent)))
}

fn ec_of_private_key(
    pkcs8: &[u8],
    algorithm: Algorithm,
) -> Result<(EllipticCurve, Vec<u8>, Vec<u8>)> {
    let (curve, len, with) = match algorithm {
        Algorithm::ES256 => (EllipticCurve::P256, 32, &signature::ECDSA_P256_SHA256_FIXED_SIGNING),
        Algorithm::ES384 => (EllipticCurve::P384, 48, &signature::ECDSA_P384_SHA384_FIXED_SIGNING),
        Algorithm::HS256
        | Algorithm::HS384
        | Algorithm::HS512
        | Algorithm::RS256
        | Algorithm::RS384
        | Algorithm::RS512
        | Algorithm::PS256
        | Algorithm::PS384
        | Algorithm::PS512
        | Algorithm::EdDSA
        | _ => return Err(ErrorKind::InvalidEcdsaKey.into()),
    };
    let pair = ecdsa_pair(with, pkcs8)?;
    // An uncompressed point: 4, x, y.
    let point = pair.public_key().as_ref().get(1..).and_then(|both| both.split_at_checked(len));
    let (x, y) = point.ok_or(ErrorKind::InvalidEcdsaKey)?;
    Ok((curve, x.to_vec(), y.to_vec()))
}

fn ed_of_private_key(pkcs8: &[u8], curve: &EllipticCurve) -> Result<Vec<u8>> {
    if *curve != EllipticCurve::Ed25519 {
        return Err(ErrorKind::InvalidAlgorithm.into());
    }
    Ok(ed25519_pair(pkcs8)?.public_key().as_ref().to_vec())
}

fn compute_digest(data: &[u8], hash: ThumbprintHash) -> Result<Vec<u8>> {
    let with = match hash {
        ThumbprintHash::SHA256 => &digest::SHA256,
        ThumbprintHash::SHA384 => &digest::SHA384,
        ThumbprintHash::SHA512 => &digest::SHA512,
        _ => return Err(ErrorKind::UnsupportedAlgorithm.into()),
    };
    Ok(digest::digest(with, data).as_ref().to_vec())
}
