//! The demo's token issuer: one RSA key, made at start, and tokens of every kind a step needs.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{KeyPair, RSA_PKCS1_SHA256, RsaKeyPair, RsaPublicKeyComponents};
use rsa::pkcs8::{EncodePrivateKey, LineEnding};
use rsa::rand_core::{TryCryptoRng, TryRng};
use serde_json::{Value, json};

use crate::BoxError;

/// The issuer and subject of the walk-through.
pub const ISSUER: &str = "testing@secure.istio.io";

/// Signs tokens with RS256.
#[derive(Debug)]
pub struct TokenIssuer {
    key: RsaKeyPair,
    kid: String,
    pem: String,
}

impl TokenIssuer {
    /// Makes a key of 2048 bits with a random `kid`.
    ///
    /// # Errors
    ///
    /// When the system has no randomness.
    pub fn generate() -> Result<Self, BoxError> {
        let mut id = [0_u8; 12];
        SystemRandom::new().fill(&mut id).map_err(|_| "no randomness")?;
        let key = rsa::PrivateKey::new(&mut RingRandom(SystemRandom::new()), 2048)?;
        let pem = key.to_pkcs8_pem(LineEnding::LF)?.to_string();
        let key = RsaKeyPair::from_pkcs8(key.to_pkcs8_der()?.as_bytes())
            .map_err(|_| "ring refuses the key")?;
        Ok(Self { key, kid: URL_SAFE_NO_PAD.encode(id), pem })
    }

    /// The private key as PKCS#8 PEM.
    #[must_use]
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// The key set that verifiers need.
    #[must_use]
    pub fn jwks(&self) -> String {
        let public = self.public();
        let part = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let (n, e) = (part(&public.n), part(&public.e));
        let key =
            json!({ "kty": "RSA", "use": "sig", "alg": "RS256", "kid": self.kid, "n": n, "e": e });
        json!({ "keys": [key] }).to_string()
    }

    /// The modulus, which some attackers use as an HMAC key.
    #[must_use]
    pub fn public_modulus(&self) -> Vec<u8> {
        self.public().n
    }

    fn public(&self) -> RsaPublicKeyComponents<Vec<u8>> {
        self.key.public_key().into()
    }

    /// The header that goes with this key.
    #[must_use]
    pub fn header(&self) -> Value {
        json!({ "alg": "RS256", "typ": "JWT", "kid": self.kid })
    }

    /// A signed token.
    ///
    /// # Errors
    ///
    /// When the system has no randomness for the signature.
    pub fn sign(&self, header: &Value, claims: &Value) -> Result<String, BoxError> {
        let text = signing_input(header, claims);
        let mut signature = vec![0; self.key.public().modulus_len()];
        self.key
            .sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), text.as_bytes(), &mut signature)
            .map_err(|_| "signing failed")?;
        Ok(format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }

    /// A valid token with these claims over the usual ones.
    ///
    /// # Errors
    ///
    /// As [`TokenIssuer::sign`].
    pub fn token(&self, now: u64, changes: &Value) -> Result<String, BoxError> {
        self.sign(&self.header(), &claims(now, changes))
    }
}

/// The usual claims, changed; a change to `null` removes a claim.
#[must_use]
pub fn claims(now: u64, changes: &Value) -> Value {
    let mut claims =
        json!({ "iss": ISSUER, "sub": ISSUER, "iat": now, "exp": now.saturating_add(3600) });
    if let (Some(claims), Some(changes)) = (claims.as_object_mut(), changes.as_object()) {
        for (name, value) in changes {
            if value.is_null() {
                claims.remove(name);
            } else {
                claims.insert(name.clone(), value.clone());
            }
        }
    }
    claims
}

/// The part of a token that is signed.
#[must_use]
pub fn signing_input(header: &Value, claims: &Value) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}", part(header), part(claims))
}

/// Lends ring's randomness to the crate that makes the RSA key.
struct RingRandom(SystemRandom);

impl TryRng for RingRandom {
    type Error = rsa::Error;

    fn try_next_u32(&mut self) -> Result<u32, Self::Error> {
        let mut bytes = [0; 4];
        self.try_fill_bytes(&mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn try_next_u64(&mut self) -> Result<u64, Self::Error> {
        let mut bytes = [0; 8];
        self.try_fill_bytes(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Self::Error> {
        self.0.fill(bytes).map_err(|_detail| rsa::Error::Internal)
    }
}

impl TryCryptoRng for RingRandom {}
