//! JWT-SVIDs, and the documents that let others verify them.

use std::fmt;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use mesh_identity::{JwtAuthority, SpiffeId};
use rcgen::{PKCS_ECDSA_P256_SHA256, PublicKeyData, SignatureAlgorithm};
use ring::rand::{SecureRandom as _, SystemRandom};
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use rustls_pki_types::UnixTime;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::error::CaError;
use crate::key::{KeyKind, generate_pkcs8};
use crate::log::hex;
use crate::profile::after;

/// The life of a token when nobody asks for another, as SPIRE has it.
pub const DEFAULT_JWT_TTL: Duration = Duration::from_secs(5 * 60);

/// The longest life of a token.
pub const MAX_JWT_TTL: Duration = Duration::from_secs(60 * 60);

/// Most audiences of one token.
const MAX_AUDIENCES: usize = 32;

/// A P-256 key that signs tokens (ES256). There is no way to read it but `persist`.
pub struct JwtKey {
    pair: EcdsaKeyPair,
    authority: JwtAuthority,
    not_after: UnixTime,
    #[cfg(feature = "persist")]
    pkcs8: Zeroizing<Vec<u8>>,
}

/// A signed token; zeroed on drop, and `Debug` does not show it.
pub struct IssuedToken {
    pub(crate) token: Zeroizing<String>,
    pub(crate) jti: [u8; 16],
    pub(crate) not_after: UnixTime,
}

impl IssuedToken {
    /// The token, JWS compact serialization.
    #[must_use]
    pub fn token(&self) -> &str {
        &self.token
    }

    /// Its `exp`.
    #[must_use]
    pub fn not_after(&self) -> UnixTime {
        self.not_after
    }
}

impl fmt::Debug for IssuedToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IssuedToken")
            .field("not_after", &self.not_after.as_secs())
            .finish_non_exhaustive()
    }
}

struct Public<'a>(&'a [u8]);

impl PublicKeyData for Public<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

impl JwtKey {
    /// Makes a key that signs until `now + life`.
    ///
    /// # Errors
    ///
    /// When the system has no randomness.
    pub fn generate(life: Duration, now: UnixTime) -> Result<Self, CaError> {
        Self::from_pkcs8(&generate_pkcs8(KeyKind::P256)?, after(now, life))
    }

    /// Its id is the SHA-256 of the public key (RFC 7638 would be of the JWK; any unique one does).
    pub(crate) fn from_pkcs8(pkcs8: &[u8], not_after: UnixTime) -> Result<Self, CaError> {
        let random = SystemRandom::new();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8, &random);
        let pair = pair.map_err(|_detail| CaError::Key)?;
        let spki = Public(pair.public_key().as_ref()).subject_public_key_info();
        let digest = ring::digest::digest(&ring::digest::SHA256, &spki);
        let kid = hex(digest.as_ref().get(..16).unwrap_or_default());
        let authority = JwtAuthority::from_public_key(&kid, "ES256", &spki);
        Ok(Self {
            authority: authority.map_err(|_detail| CaError::Key)?,
            pair,
            not_after,
            #[cfg(feature = "persist")]
            pkcs8: Zeroizing::new(pkcs8.to_vec()),
        })
    }

    #[cfg(feature = "persist")]
    pub(crate) fn pkcs8(&self) -> &[u8] {
        &self.pkcs8
    }

    /// What others verify its tokens with.
    #[must_use]
    pub fn authority(&self) -> &JwtAuthority {
        &self.authority
    }

    /// Until when it signs.
    #[must_use]
    pub fn not_after(&self) -> UnixTime {
        self.not_after
    }

    /// Signs a JWT-SVID (JWT-SVID section 3). `issuer` becomes `iss`, for OIDC relying parties.
    ///
    /// # Errors
    ///
    /// No audience, an empty one, or too many.
    pub fn issue(
        &self,
        id: &SpiffeId,
        audience: &[String],
        ttl: Duration,
        issuer: Option<&str>,
        now: UnixTime,
    ) -> Result<IssuedToken, CaError> {
        if audience.is_empty()
            || audience.len() > MAX_AUDIENCES
            || audience.iter().any(String::is_empty)
        {
            return Err(CaError::Audience);
        }
        let random = SystemRandom::new();
        let mut jti = [0_u8; 16];
        random.fill(&mut jti).map_err(|_detail| CaError::Random)?;
        let ttl = if ttl.is_zero() { DEFAULT_JWT_TTL } else { ttl.min(MAX_JWT_TTL) };
        let not_after = after(now, ttl);
        let mut claims = json!({
            "sub": id.as_str(),
            "aud": audience,
            "iat": now.as_secs(),
            "exp": not_after.as_secs(),
            "jti": hex(&jti),
        });
        if let (Some(issuer), Some(claims)) = (issuer, claims.as_object_mut()) {
            claims.insert("iss".to_owned(), json!(issuer));
        }
        let header = json!({ "alg": "ES256", "kid": self.authority.kid(), "typ": "JWT" });
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let mut token = Zeroizing::new(format!("{}.{}", part(&header), part(&claims)));
        let signature = self.pair.sign(&random, token.as_bytes());
        let signature = signature.map_err(|_detail| CaError::Random)?;
        token.push('.');
        token.push_str(&URL_SAFE_NO_PAD.encode(signature.as_ref()));
        Ok(IssuedToken { token, jti, not_after })
    }
}

impl fmt::Debug for JwtKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JwtKey").field("kid", &self.authority.kid()).finish_non_exhaustive()
    }
}

/// `/.well-known/openid-configuration` (OpenID Connect Discovery section 3), as SPIRE's discovery
/// provider writes it: there is nothing to log in to.
///
/// `issuer` is an https URL without a trailing slash; the key set lies at `{issuer}/keys`.
#[must_use]
pub fn oidc_discovery(issuer: &str) -> String {
    json!({
        "issuer": issuer,
        "jwks_uri": format!("{issuer}/keys"),
        "authorization_endpoint": "",
        "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["ES256"],
    })
    .to_string()
}

/// The key set for OIDC relying parties: `use` is `sig`, where a SPIFFE bundle says `jwt-svid`.
#[must_use]
pub fn oidc_jwks(keys: &[JwtAuthority]) -> String {
    let keys: Vec<Value> = keys
        .iter()
        .map(|key| {
            let mut jwk = key.jwk().clone();
            if let Some(jwk) = jwk.as_object_mut() {
                jwk.insert("use".to_owned(), json!("sig"));
            }
            jwk
        })
        .collect();
    json!({ "keys": keys }).to_string()
}
