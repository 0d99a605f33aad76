//! Bundles as documents: what a trust domain publishes about itself.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Map, Value, json};
use x509_parser::der_parser::asn1_rs::Oid;
use x509_parser::oid_registry::{OID_EC_P256, OID_NIST_EC_P384};
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

use super::{BundleError, JwtAuthority, TrustBundle, parse_document};
use crate::trust_domain::TrustDomain;

impl TrustBundle {
    /// The bundle document: a JWKS with SPIFFE's members (SPIFFE Trust Domain and Bundle section
    /// 4), as a bundle endpoint serves it and [`TrustBundle::from_json`] reads it.
    #[must_use]
    pub fn to_json(&self) -> String {
        let certificates = self.x509_authorities.iter().map(|authority| {
            let mut jwk = public_jwk(authority.profile().public_key());
            jwk.insert("use".to_owned(), json!("x509-svid"));
            jwk.insert("x5c".to_owned(), json!([STANDARD.encode(authority.der())]));
            Value::Object(jwk)
        });
        let tokens = self.jwt_authorities.iter().map(|authority| authority.jwk.clone());
        let mut document = Map::new();
        document.insert("keys".to_owned(), certificates.chain(tokens).collect());
        if let Some(sequence) = self.sequence {
            document.insert("spiffe_sequence".to_owned(), json!(sequence));
        }
        if let Some(hint) = self.refresh_hint {
            document.insert("spiffe_refresh_hint".to_owned(), json!(hint.as_secs()));
        }
        Value::Object(document).to_string()
    }

    /// The keys that verify JWT-SVIDs, as a JWKS document without SPIFFE's own members: what
    /// `FetchJWTBundles` of the Workload API and the `jwks_uri` of OIDC discovery give.
    #[must_use]
    pub fn jwks(&self) -> String {
        let keys: Vec<&Value> = self.jwt_authorities.iter().map(JwtAuthority::jwk).collect();
        json!({ "keys": keys }).to_string()
    }

    /// Reads a JWKS document of JWT authorities, as `FetchJWTBundles` gives it: SPIRE leaves out
    /// `use`, so a key without one counts as `jwt-svid` here. Others are skipped.
    ///
    /// # Errors
    ///
    /// What is not of the right shape, or a key that breaks the rules for its use.
    pub fn from_jwks(trust_domain: TrustDomain, json: &str) -> Result<Self, BundleError> {
        let mut document = parse_document(json)?;
        let keys = document.get_mut("keys").and_then(Value::as_array_mut);
        for key in keys.into_iter().flatten().filter_map(Value::as_object_mut) {
            key.entry("use").or_insert_with(|| json!("jwt-svid"));
        }
        let mut bundle = Self::from_object(trust_domain, &document)?;
        bundle.skipped = bundle.skipped.saturating_add(bundle.x509_authorities.len());
        bundle.x509_authorities.clear();
        Ok(bundle)
    }

    /// Adds a key that verifies JWT-SVIDs; in place of one with the same id.
    #[must_use]
    pub fn with_jwt_authority(mut self, authority: JwtAuthority) -> Self {
        self.jwt_authorities.retain(|held| held.kid != authority.kid);
        self.jwt_authorities.push(authority);
        self
    }

    /// Sets `spiffe_sequence`, which grows with every change.
    #[must_use]
    pub fn with_sequence(mut self, sequence: u64) -> Self {
        self.sequence = Some(sequence);
        self
    }

    /// Sets how often to ask for a new one; the document says it in whole seconds.
    #[must_use]
    pub fn with_refresh_hint(mut self, hint: std::time::Duration) -> Self {
        self.refresh_hint = Some(hint);
        self
    }
}

impl JwtAuthority {
    /// A public key (subject public key info, DER) under an id. `alg` says which algorithm its
    /// tokens are signed with, such as `ES256`.
    ///
    /// # Errors
    ///
    /// A key that is not accepted ([SEC-ID-6]), or an empty id.
    pub fn from_public_key(kid: &str, alg: &str, spki: &[u8]) -> Result<Self, BundleError> {
        let error = |error| BundleError::Authority { at: 0, error };
        crate::x509::check_public_key(spki).map_err(error)?;
        if kid.is_empty() {
            return Err(BundleError::Key { at: 0, message: "kid is missing" });
        }
        let mut jwk = public_jwk(spki);
        jwk.insert("use".to_owned(), json!("jwt-svid"));
        jwk.insert("kid".to_owned(), json!(kid));
        jwk.insert("alg".to_owned(), json!(alg));
        Ok(Self { kid: kid.to_owned(), jwk: Value::Object(jwk) })
    }
}

/// A public key as the members of a JWK (RFC 7518 section 6, RFC 8037 section 2). Only keys that
/// have been accepted come here, so each has a kind.
fn public_jwk(spki: &[u8]) -> Map<String, Value> {
    let text = |bytes: &[u8]| json!(URL_SAFE_NO_PAD.encode(bytes));
    let parsed = SubjectPublicKeyInfo::from_der(spki).ok();
    let Some((_, info)) = parsed else { return Map::new() };
    let members = match info.parsed() {
        Ok(PublicKey::RSA(rsa)) => {
            // JWK integers have no leading zero byte, DER ones may.
            let plain = |bytes: &[u8]| {
                let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
                text(bytes.get(zeros..).unwrap_or_default())
            };
            vec![("kty", json!("RSA")), ("n", plain(rsa.modulus)), ("e", plain(rsa.exponent))]
        }
        Ok(PublicKey::EC(point)) => {
            let curve = info.algorithm.parameters.as_ref().and_then(|any| Oid::try_from(any).ok());
            let curve = match curve {
                Some(curve) if curve == OID_EC_P256 => "P-256",
                Some(curve) if curve == OID_NIST_EC_P384 => "P-384",
                Some(_) | None => return Map::new(),
            };
            // 0x04, then both coordinates (SEC 1 section 2.3.3).
            let both = point.data().get(1..).unwrap_or_default();
            let (x, y) = both.split_at(both.len() / 2);
            vec![("kty", json!("EC")), ("crv", json!(curve)), ("x", text(x)), ("y", text(y))]
        }
        Ok(_) | Err(_) => {
            let x = text(&info.subject_public_key.data);
            vec![("kty", json!("OKP")), ("crv", json!("Ed25519")), ("x", x)]
        }
    };
    members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}
