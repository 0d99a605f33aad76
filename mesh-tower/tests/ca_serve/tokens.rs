//! Service account tokens as a cluster makes them.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use serde_json::{Value, json};

pub(crate) const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

pub(crate) struct Cluster(EcdsaKeyPair);

impl Cluster {
    pub(crate) fn new() -> Self {
        let random = SystemRandom::new();
        let signing = &ECDSA_P256_SHA256_FIXED_SIGNING;
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(signing, &random).unwrap();
        Self(EcdsaKeyPair::from_pkcs8(signing, pkcs8.as_ref(), &random).unwrap())
    }

    pub(crate) fn jwks(&self) -> String {
        let point = self.0.public_key().as_ref();
        let part = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        json!({ "keys": [{
            "kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": "cluster",
            "x": part(&point[1..33]), "y": part(&point[33..]),
        }] })
        .to_string()
    }

    pub(crate) fn sign(&self, claims: &Value) -> String {
        let header = json!({ "alg": "ES256", "kid": "cluster" });
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(&header), part(claims));
        let signature = self.0.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref()))
    }
}

/// The claims of a projected token.
pub(crate) fn claims(account: &str, now: u64) -> Value {
    json!({
        "iss": ISSUER,
        "sub": format!("system:serviceaccount:shop:{account}"),
        "aud": ["istio-ca"],
        "iat": now, "nbf": now, "exp": now + 43_200,
        "kubernetes.io": { "namespace": "shop", "serviceaccount": { "name": account } },
    })
}
