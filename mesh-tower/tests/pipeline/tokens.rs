//! Tokens that verify: signed by a key of this test.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use serde_json::{Map, Value, json};

pub(crate) struct Issuer {
    key: EcdsaKeyPair,
    random: SystemRandom,
}

impl Issuer {
    pub(crate) fn new() -> Self {
        let random = SystemRandom::new();
        let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
        let key = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
        let key = EcdsaKeyPair::from_pkcs8(algorithm, key.as_ref(), &random).unwrap();
        Self { key, random }
    }

    /// The key set as text.
    pub(crate) fn jwks(&self) -> String {
        let point = self.key.public_key().as_ref();
        let text = |at: std::ops::Range<usize>| URL_SAFE_NO_PAD.encode(&point[at]);
        json!({"keys": [{"kty": "EC", "crv": "P-256", "alg": "ES256", "x": text(1..33), "y": text(33..65)}]})
            .to_string()
    }

    pub(crate) fn sign(&self, claims: &Map<String, Value>) -> String {
        let encode = |text: &str| URL_SAFE_NO_PAD.encode(text);
        let claims = serde_json::to_string(claims).unwrap();
        let signed = format!("{}.{}", encode(r#"{"alg":"ES256","typ":"JWT"}"#), encode(&claims));
        let signature = self.key.sign(&self.random, signed.as_bytes()).unwrap();
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}
