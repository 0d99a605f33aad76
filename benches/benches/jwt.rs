//! What a token costs: ring's bare signature check, the first verification, a token seen before,
//! and jsonwebtoken 11 on the same ring, all in one run.
//!
//! `cargo bench -p mesh-benches --bench jwt` prints a table; `-- RS256` only this row. The contenders take turns, token by
//! token, so that a busy machine is as unfair to one as to the other. Allocations are counted in
//! mesh-authn/tests/jwt_allocations.rs, because a counting allocator would be measured too.

#![expect(
    clippy::arithmetic_side_effects,
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a program that measures, and ends by panicking when something is wrong"
)]

use std::hint::black_box;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{HeaderMap, Method};
use mesh_authn::request::{
    Authentication, JSONWEBTOKEN_ON_RING, KeySets, RequestAuthentication, RequestAuthenticator,
    RequestView, TokenOptions,
};
use mesh_benches::service::{key_set, rsa_key};
use mesh_identity::{MeshSettings, Workload};
use ring::rand::SystemRandom;
use ring::signature::{
    self, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _,
    RSA_PKCS1_SHA256, RsaKeyPair, UnparsedPublicKey,
};
use rustls_pki_types::UnixTime;
use serde_json::{Value, json};

const ISSUER: &str = "https://idp.example";
const NOW: u64 = 1_800_000_000;

/// Tokens of a round, each verified for the first time once. They fit the cache.
const TOKENS: usize = 500;
const ROUNDS: usize = 20;
/// Lookups of a sample.
const SEEN: u32 = 16;

fn main() {
    JSONWEBTOKEN_ON_RING.install_default().expect("nobody else installs a provider");
    println!("1 kB of claims; {ROUNDS} rounds of {TOKENS} tokens, in turns; first decile");
    println!("alg     token  ring bare      first  ratio  jsonwebtoken  seen before");
    let wanted: Vec<String> = std::env::args().skip(1).filter(|one| one != "--bench").collect();
    for signer in [Signer::rs256(), Signer::es256(), Signer::eddsa()] {
        if wanted.is_empty() || wanted.iter().any(|one| one == signer.algorithm) {
            signer.measure();
        }
    }
}

/// Somebody who signs tokens with one algorithm.
struct Signer {
    algorithm: &'static str,
    key: Key,
    jwk: Value,
    /// As ring wants it.
    public: Vec<u8>,
}

enum Key {
    Rsa(Box<RsaKeyPair>),
    Ec(Box<EcdsaKeyPair>),
    Ed(Box<Ed25519KeyPair>),
}

/// A token, and its parts as a bare check needs them.
struct Token {
    text: String,
    headers: HeaderMap,
    signed: Vec<u8>,
    signature: Vec<u8>,
}

impl Signer {
    fn rs256() -> Self {
        let (key, jwks) = (rsa_key(), key_set());
        let jwks: Value = serde_json::from_str(&jwks).unwrap();
        let jwk = json!({"kty": "RSA", "alg": "RS256", "n": jwks["keys"][0]["n"], "e": jwks["keys"][0]["e"]});
        let public = key.public_key().as_ref().to_vec();
        Self { algorithm: "RS256", key: Key::Rsa(Box::new(key)), jwk, public }
    }

    fn es256() -> Self {
        let (with, random) = (&ECDSA_P256_SHA256_FIXED_SIGNING, SystemRandom::new());
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(with, &random).unwrap();
        let key = EcdsaKeyPair::from_pkcs8(with, pkcs8.as_ref(), &random).unwrap();
        let public = key.public_key().as_ref().to_vec();
        let [x, y] = [1..33, 33..65].map(|part| URL_SAFE_NO_PAD.encode(&public[part]));
        let jwk = json!({"kty": "EC", "crv": "P-256", "alg": "ES256", "x": x, "y": y});
        Self { algorithm: "ES256", key: Key::Ec(Box::new(key)), jwk, public }
    }

    fn eddsa() -> Self {
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        let key = Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).unwrap();
        let public = key.public_key().as_ref().to_vec();
        let x = URL_SAFE_NO_PAD.encode(&public);
        let jwk = json!({"kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "x": x});
        Self { algorithm: "EdDSA", key: Key::Ed(Box::new(key)), jwk, public }
    }

    fn sign(&self, text: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match &self.key {
            Key::Rsa(key) => {
                let mut signature = vec![0; key.public().modulus_len()];
                key.sign(&RSA_PKCS1_SHA256, &random, text, &mut signature).unwrap();
                signature
            }
            Key::Ec(key) => key.sign(&random, text).unwrap().as_ref().to_vec(),
            Key::Ed(key) => key.sign(text).as_ref().to_vec(),
        }
    }

    fn token(&self, number: usize) -> Token {
        let header = json!({"alg": self.algorithm, "typ": "JWT", "kid": "k"}).to_string();
        let signed = signed_part(&header, number);
        let signature = self.sign(signed.as_bytes());
        let text = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(&signature));
        Token { headers: bearer(&text), text, signed: signed.into_bytes(), signature }
    }

    fn authenticator(&self) -> RequestAuthenticator {
        let mut jwk = self.jwk.clone();
        jwk["kid"] = json!("k");
        authenticator(&json!({"keys": [jwk]}))
    }

    fn bare(&self, token: &Token) {
        let with: &'static dyn signature::VerificationAlgorithm = match &self.key {
            Key::Rsa(_) => &signature::RSA_PKCS1_2048_8192_SHA256,
            Key::Ec(_) => &signature::ECDSA_P256_SHA256_FIXED,
            Key::Ed(_) => &signature::ED25519,
        };
        UnparsedPublicKey::new(with, &self.public).verify(&token.signed, &token.signature).unwrap();
    }

    fn measure(&self) {
        let tokens: Vec<Token> = (0..TOKENS).map(|number| self.token(number)).collect();
        let jwk: jsonwebtoken::jwk::Jwk = serde_json::from_value(self.jwk.clone()).unwrap();
        let decoding = jsonwebtoken::DecodingKey::from_jwk(&jwk).unwrap();
        let mut validation =
            jsonwebtoken::Validation::new(self.algorithm.parse().expect("it knows these"));
        validation.set_issuer(&[ISSUER]);
        let [mut bare, mut first, mut other, mut seen]: [Vec<Duration>; 4] = Default::default();
        let warm = self.token(TOKENS);
        for _ in 0..ROUNDS {
            // A new one knows no token; the first token pays for its tables.
            let ours = self.authenticator();
            authenticate(&ours, &warm.headers);
            for token in &tokens {
                bare.push(time(|| self.bare(token)));
                first.push(time(|| authenticate(&ours, &token.headers)));
                other.push(time(|| {
                    let read = jsonwebtoken::decode::<Value>(&token.text, &decoding, &validation);
                    drop(black_box(read.unwrap()));
                }));
                let batch = time(|| (0..SEEN).for_each(|_| authenticate(&ours, &token.headers)));
                seen.push(batch / SEEN);
            }
        }
        let micros = |time: Duration| format!("{:.2} µs", time.as_secs_f64() * 1e6);
        let [bare, first, other, seen] = [bare, first, other, seen].map(quick);
        println!(
            "{} {:>6} B {:>10} {:>10}  {:>5.3}  {:>13} {:>9.0} ns",
            self.algorithm,
            tokens[0].text.len(),
            micros(bare),
            micros(first),
            first.as_secs_f64() / bare.as_secs_f64(),
            micros(other),
            seen.as_secs_f64() * 1e9,
        );
    }
}

fn time(run: impl FnOnce()) -> Duration {
    let begun = Instant::now();
    run();
    begun.elapsed()
}

/// What one of ten samples is quicker than: a busy machine makes the slow ones, not the code.
fn quick(mut samples: Vec<Duration>) -> Duration {
    samples.sort();
    samples[samples.len() / 10]
}

/// Header and 1 kB of claims that no other number has, encoded.
fn signed_part(header: &str, number: usize) -> String {
    let mut claims = json!({
        "iss": ISSUER, "sub": format!("user-{number}"), "iat": NOW, "exp": NOW + 3600,
        "scope": "openid profile email", "email": format!("user-{number}@idp.example"),
        "realm_access": {"roles": ["reader", "writer", "offline_access"]}, "groups": [],
    });
    let mut at = 0;
    while claims.to_string().len() < 1000 {
        let group = json!(format!("team-{at:03}-of-department-{:02}", at % 7));
        claims["groups"].as_array_mut().unwrap().push(group);
        at += 1;
    }
    let [header, claims] = [header, &claims.to_string()].map(|part| URL_SAFE_NO_PAD.encode(part));
    format!("{header}.{claims}")
}

fn bearer(token: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert("accept", "application/json".parse().unwrap());
    headers.insert("authorization", format!("Bearer {token}").parse().unwrap());
    headers
}

fn authenticator(jwks: &Value) -> RequestAuthenticator {
    let text = json!({
        "apiVersion": "security.istio.io/v1", "kind": "RequestAuthentication",
        "metadata": {"name": "idp", "namespace": "shop"},
        "spec": {"jwtRules": [{"issuer": ISSUER, "jwks": jwks.to_string()}]},
    });
    let read = mesh_identity::manifest::read(&text.to_string(), "idp.json", "shop").unwrap();
    let resource = RequestAuthentication::from_manifest(&read.resources[0]).unwrap();
    let mesh = MeshSettings::new("cluster.local".parse().unwrap());
    let (workload, options) = (Workload::new("shop"), TokenOptions::strict());
    RequestAuthenticator::compile(&[resource], &workload, &mesh, options, &KeySets::new()).unwrap()
}

/// A request with these headers, which must be let in with a user.
fn authenticate(ours: &RequestAuthenticator, headers: &HeaderMap) {
    let view = RequestView {
        method: &Method::GET,
        scheme: "https",
        host: "shop.example",
        path_and_query: "/orders?page=2",
        headers,
    };
    let now = UnixTime::since_unix_epoch(Duration::from_secs(NOW));
    match black_box(ours.authenticate(&view, now)) {
        Authentication::Authenticated { .. } => {}
        other @ (Authentication::Anonymous(_) | Authentication::Refused(_)) => panic!("{other:?}"),
    }
}
