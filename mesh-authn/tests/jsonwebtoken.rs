//! The ring provider for jsonwebtoken: what one side signs the other verifies, for every algorithm.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::{Jwk, JwkSet, ThumbprintHash};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, encode};
use mesh_authn::request::{JSONWEBTOKEN_ON_RING, KeySet, TokenOptions};
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair,
};
use serde_json::{Value, json};

/// The keys of RFC 7515 appendix A.2, as PKCS#1.
fn rsa() -> EncodingKey {
    let pkcs1 = include_str!("jwt_support/rfc7515-a2.pkcs1.b64").replace('\n', "");
    EncodingKey::from_rsa_der(&base64::engine::general_purpose::STANDARD.decode(pkcs1).unwrap())
}

fn ec(with: &'static ring::signature::EcdsaSigningAlgorithm) -> EncodingKey {
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(with, &SystemRandom::new()).unwrap();
    EncodingKey::from_ec_der(pkcs8.as_ref())
}

/// PKCS#8 as OpenSSL writes it, without the public key: jsonwebtoken counts its bytes.
fn ed() -> EncodingKey {
    let header = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
    EncodingKey::from_ed_der(&[&header[..], &[9; 32]].concat())
}

/// The default provider belongs to the process, so one test does all.
#[test]
fn every_algorithm_signs_and_verifies_on_ring() {
    JSONWEBTOKEN_ON_RING.install_default().unwrap();
    let claims = json!({"iss": "i", "sub": "alice", "exp": 4_000_000_000_u64});
    for (algorithm, key) in [
        (Algorithm::HS256, EncodingKey::from_secret(&[7; 64])),
        (Algorithm::HS384, EncodingKey::from_secret(&[7; 64])),
        (Algorithm::HS512, EncodingKey::from_secret(&[7; 64])),
        (Algorithm::RS256, rsa()),
        (Algorithm::RS384, rsa()),
        (Algorithm::RS512, rsa()),
        (Algorithm::PS256, rsa()),
        (Algorithm::PS384, rsa()),
        (Algorithm::PS512, rsa()),
        (Algorithm::ES256, ec(&ECDSA_P256_SHA256_FIXED_SIGNING)),
        (Algorithm::ES384, ec(&ECDSA_P384_SHA384_FIXED_SIGNING)),
        (Algorithm::EdDSA, ed()),
    ] {
        let token = encode(&Header::new(algorithm), &claims, &key).unwrap();
        // The private key tells the public one, and the types of jsonwebtoken are ours too.
        let jwk = Jwk::from_encoding_key(&key, algorithm).unwrap();
        assert!(!jwk.thumbprint(ThumbprintHash::SHA256).unwrap().is_empty());
        let set = KeySet::try_from(&JwkSet { keys: vec![jwk.clone()] }).unwrap();
        let ours = set.verify_jws(&token, &TokenOptions::strict()).unwrap();
        assert_eq!(serde_json::from_slice::<Value>(&ours).unwrap(), claims, "{algorithm:?}");

        let decoding = DecodingKey::from_jwk(&jwk).unwrap();
        let validation = Validation::new(algorithm);
        let theirs = decode::<Value>(&token, &decoding, &validation).unwrap();
        assert_eq!(theirs.claims, claims, "{algorithm:?}");

        // Another payload, and another key, are refused.
        let mut parts: Vec<&str> = token.split('.').collect();
        let other = URL_SAFE_NO_PAD.encode(r#"{"sub":"admin","exp":4000000000}"#);
        parts[1] = &other;
        assert!(decode::<Value>(parts.join("."), &decoding, &validation).is_err());
        let stranger = Validation::new(Algorithm::EdDSA);
        let wrong = decode::<Value>(&token, &DecodingKey::from_ed_der(&[9; 32]), &stranger);
        assert!(wrong.is_err(), "{algorithm:?}");
    }
    // Keys that are none, and keys of another family.
    let garbage = EncodingKey::from_ec_der(b"garbage");
    for algorithm in [Algorithm::ES256, Algorithm::ES384, Algorithm::RS256, Algorithm::EdDSA] {
        assert!(encode(&Header::new(algorithm), &claims, &garbage).is_err());
    }
}
