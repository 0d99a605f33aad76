//! An issuer for tests: signs tokens with Ed25519 and publishes its key set.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{HeaderMap, HeaderValue, Method};
use mesh_authn::request::{
    Authentication, KeySet, KeySets, Reason, RequestAuthentication, RequestAuthenticator,
    RequestView, TokenOptions,
};
use mesh_identity::{MeshSettings, Workload};
use ring::rand::SystemRandom;
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use rustls_pki_types::UnixTime;
use serde_json::{Value, json};

/// The clock of all tests.
pub(crate) const NOW: u64 = 1_800_000_000;

/// Somebody who signs tokens.
pub(crate) struct Idp {
    pub(crate) issuer: String,
    pub(crate) kid: String,
    pair: Ed25519KeyPair,
}

impl Idp {
    pub(crate) fn new(issuer: &str, kid: &str) -> Self {
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        let pair = Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).unwrap();
        Self { issuer: issuer.to_owned(), kid: kid.to_owned(), pair }
    }

    pub(crate) fn jwk(&self) -> Value {
        let x = URL_SAFE_NO_PAD.encode(self.pair.public_key());
        json!({"kty": "OKP", "crv": "Ed25519", "kid": self.kid, "x": x})
    }

    pub(crate) fn jwks(&self) -> String {
        json!({"keys": [self.jwk()]}).to_string()
    }

    pub(crate) fn keys(&self) -> KeySet {
        KeySet::parse(self.jwks().as_bytes()).unwrap()
    }

    /// A rule with the keys inline.
    pub(crate) fn rule(&self) -> Value {
        json!({"issuer": self.issuer, "jwks": self.jwks()})
    }

    /// A good token of this subject, for an hour.
    pub(crate) fn token(&self, subject: &str) -> String {
        self.sign_claims(&json!({"iss": self.issuer, "sub": subject, "exp": NOW + 3600}))
    }

    pub(crate) fn sign_claims(&self, claims: &Value) -> String {
        let header = json!({"alg": "EdDSA", "kid": self.kid});
        self.sign_parts(header.to_string().as_bytes(), claims.to_string().as_bytes())
    }

    /// Signs whatever is given.
    pub(crate) fn sign_parts(&self, header: &[u8], payload: &[u8]) -> String {
        let signed =
            format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(payload));
        let signature = self.pair.sign(signed.as_bytes());
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

/// One resource with these rules.
pub(crate) fn resource(rules: &[Value]) -> RequestAuthentication {
    let text = json!({
        "apiVersion": "security.istio.io/v1", "kind": "RequestAuthentication",
        "metadata": {"name": "idp", "namespace": "shop"}, "spec": {"jwtRules": rules},
    });
    let read = mesh_identity::manifest::read(&text.to_string(), "idp.json", "shop").unwrap();
    RequestAuthentication::from_manifest(&read.resources[0]).unwrap()
}

pub(crate) fn compile_with(
    rules: &[Value],
    options: TokenOptions,
    keys: &KeySets,
) -> RequestAuthenticator {
    let mesh = MeshSettings::new("cluster.local".parse().unwrap());
    let workload = Workload::new("shop");
    RequestAuthenticator::compile(&[resource(rules)], &workload, &mesh, options, keys).unwrap()
}

/// Strict, with inline keys.
pub(crate) fn compile(rules: &[Value]) -> RequestAuthenticator {
    compile_with(rules, TokenOptions::strict(), &KeySets::new())
}

pub(crate) fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        headers.append(*name, HeaderValue::from_str(value).unwrap());
    }
    headers
}

pub(crate) fn bearer(token: &str) -> HeaderMap {
    headers(&[("authorization", &format!("Bearer {token}"))])
}

pub(crate) fn judge_at(
    authenticator: &RequestAuthenticator,
    headers: &HeaderMap,
    path: &str,
    now: u64,
) -> Authentication {
    let view = RequestView {
        method: &Method::GET,
        scheme: "https",
        host: "shop.example",
        path_and_query: path,
        headers,
    };
    authenticator.authenticate(&view, UnixTime::since_unix_epoch(Duration::from_secs(now)))
}

/// Who the bearer of a token is, or why it is refused.
pub(crate) fn who(
    authenticator: &RequestAuthenticator,
    token: &str,
) -> Result<Option<String>, Reason> {
    verdict(judge_at(authenticator, &bearer(token), "/", NOW))
}

pub(crate) fn verdict(authentication: Authentication) -> Result<Option<String>, Reason> {
    match authentication {
        Authentication::Anonymous(_) => Ok(None),
        Authentication::Authenticated { token, .. } => Ok(token.principal()),
        Authentication::Refused(refusal) => Err(refusal.reason()),
    }
}
