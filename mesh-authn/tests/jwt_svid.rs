//! JWT-SVIDs of several trust domains ([SEC-ID-11]).

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use mesh_authn::request::{JwtSvidError, JwtSvidVerifier, Reason, Tolerance};
use mesh_identity::{BundleSet, TrustBundle};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use rustls_pki_types::UnixTime;
use serde_json::{Value, json};

const NOW: u64 = 1_800_000_000;
const DOMAINS: [&str; 3] = ["a.test", "b.test", "a.test.b.test"];

/// What signs the tokens of a trust domain. All keys have the same id.
struct Signer(EcdsaKeyPair);

impl Signer {
    fn new() -> Self {
        let (with, random) = (&ECDSA_P256_SHA256_FIXED_SIGNING, SystemRandom::new());
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(with, &random).unwrap();
        Self(EcdsaKeyPair::from_pkcs8(with, pkcs8.as_ref(), &random).unwrap())
    }

    fn bundle(&self, domain: &str) -> TrustBundle {
        let (x, y) = self.0.public_key().as_ref().get(1..).unwrap().split_at(32);
        let [x, y] = [x, y].map(|part| URL_SAFE_NO_PAD.encode(part));
        let key =
            json!({"kty": "EC", "crv": "P-256", "kid": "k", "use": "jwt-svid", "x": x, "y": y});
        let text = json!({"keys": [key]}).to_string();
        TrustBundle::from_json(domain.parse().unwrap(), &text).unwrap()
    }

    fn token(&self, header: &Value, claims: &Value) -> String {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(header), part(claims));
        let signature = self.0.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

fn header() -> Value {
    json!({"alg": "ES256", "kid": "k", "typ": "JWT"})
}

fn claims(domain: &str) -> Value {
    json!({"sub": format!("spiffe://{domain}/x"), "aud": ["me"], "exp": NOW + 60})
}

fn now() -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(NOW))
}

/// A key of one domain verifies no token of another, also where both keys have one id.
#[test]
fn sec_id_11_a_key_vouches_for_its_own_domain() {
    let signers = DOMAINS.map(|domain| (domain, Signer::new()));
    let bundles = signers.iter().map(|(domain, signer)| signer.bundle(domain));
    let bundles = BundleSet::from_bundles(bundles).unwrap();
    let (verifier, unusable) = JwtSvidVerifier::compile(&bundles, ["me"]);
    assert_eq!(unusable, []);
    for (own, signer) in &signers {
        for claimed in DOMAINS {
            let got = verifier.verify(&signer.token(&header(), &claims(claimed)), now());
            let got = got.map(|svid| svid.id.to_string());
            let want = if *own == claimed {
                Ok(format!("spiffe://{claimed}/x"))
            } else {
                Err(JwtSvidError::Token(Reason::Signature))
            };
            assert_eq!(got, want, "signed by {own}, of {claimed}");
        }
        let stranger = verifier.verify(&signer.token(&header(), &claims("c.test")), now());
        assert_eq!(stranger.unwrap_err(), JwtSvidError::UnknownTrustDomain);
    }
}

/// What a header demands and we do not do, and what a claim must be.
#[test]
fn sec_id_11_headers_and_claims() {
    let signer = Signer::new();
    let bundles = BundleSet::from_bundles([signer.bundle("a.test")]).unwrap();
    let (verifier, _) = JwtSvidVerifier::compile(&bundles, ["me"]);
    let with = |mut base: Value, name: &str, value: Value| {
        base.as_object_mut().unwrap().insert(name.to_owned(), value);
        base
    };
    let good = claims("a.test");
    let critical = JwtSvidError::NotAcceptable(Tolerance::CriticalHeader);
    for (header, claims, want) in [
        (header(), good.clone(), None),
        (with(header(), "typ", json!("JOSE")), good.clone(), None),
        (with(header(), "crit", json!(["exp"])), good.clone(), Some(critical)),
        (with(header(), "crit", json!([])), good.clone(), Some(critical)),
        (with(header(), "b64", json!(false)), good.clone(), Some(critical)),
        (with(header(), "typ", json!("wit+jwt")), good.clone(), Some(JwtSvidError::Type)),
        (with(header(), "alg", json!("HS256")), good.clone(), Some(JwtSvidError::Algorithm)),
        (with(header(), "alg", json!("ES384")), good.clone(), Some(JwtSvidError::Algorithm)),
        (with(header(), "kid", json!("other")), good.clone(), Some(JwtSvidError::UnknownKey)),
        (header(), with(good.clone(), "aud", json!([])), Some(JwtSvidError::Audience)),
        (header(), with(good.clone(), "aud", json!("me")), None),
        (header(), with(good, "exp", json!(0)), Some(JwtSvidError::MissingExpiry)),
    ] {
        let got = verifier.verify(&signer.token(&header, &claims), now()).err();
        assert_eq!(got, want, "{header} {claims}");
    }
}
