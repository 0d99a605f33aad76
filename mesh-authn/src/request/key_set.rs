//! A JSON Web Key Set, every key parsed once ([SEM-JWT-73]).
//!
//! A key that cannot be used is passed over and listed; a set without any usable key is an error,
//! as it is for Envoy ([SEM-JWT-74]).

use std::fmt;

use ring::hmac;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde_json::{Map, Value};
use x509_parser::prelude::FromDer as _;
use x509_parser::public_key::PublicKey;

use super::base64url;
use super::curve::Curve;
use super::json;
use super::key::{Answer, Key, Material, Symmetric, fixed_len, without_leading_zeros};
use super::options::{TokenOptions, Tolerance};
use super::refusal::Reason;
use super::token::{Algorithm, Header, Parts};

/// Largest key set that is read, in bytes ([SEC-JWT-13]).
pub const MAX_KEY_SET_LEN: usize = 1024 * 1024;

/// Most keys of a set: a token without `kid` is tried on each ([SEC-JWT-13]).
pub const MAX_KEYS: usize = 100;

/// The public keys of an issuer.
///
/// # Examples
///
/// ```
/// use mesh_authn::request::KeySet;
///
/// let text = r#"{"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": "a",
///     "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}, {"kty": "XX"}]}"#;
/// let keys = KeySet::parse(text.as_bytes())?;
/// assert_eq!(keys.len(), 1);
/// assert_eq!(keys.skipped().len(), 1);
/// assert!(KeySet::parse(br#"{"keys": []}"#).is_err());
/// # Ok::<(), mesh_authn::request::KeySetError>(())
/// ```
#[derive(Debug)]
pub struct KeySet {
    /// Invariant: not empty.
    keys: Vec<Key>,
    skipped: Vec<SkippedKey>,
}

/// A key of a set that cannot be used.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct SkippedKey {
    /// Its position in the set, counted from 0.
    pub index: usize,
    /// Why.
    pub problem: KeyProblem,
}

/// Why a key cannot be used.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyProblem {
    /// `alg` is not one of the key type's.
    #[error("alg does not fit the key type")]
    Algorithm,

    /// A certificate of the `{"kid": "PEM"}` form has no RSA key.
    #[error("not a certificate with an RSA key")]
    Certificate,

    /// `crv` is unknown, or is not the one that `alg` needs.
    #[error("curve is not supported")]
    Curve,

    /// A member is missing, no string, or not base64url.
    #[error("member {0} is missing or malformed")]
    Member(&'static str),

    /// The numbers do not make a key.
    #[error("not a valid public key")]
    NotAKey,

    /// `kty` is missing or unknown.
    #[error("key type is not supported")]
    Type,
}

/// Why a text is not a usable key set.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum KeySetError {
    /// There is no member `keys`.
    #[error("key set has no member keys")]
    NoKeys,

    /// `keys` is no list.
    #[error("member keys of the key set is not a list")]
    NotAList,

    /// Not one JSON object without duplicate names.
    #[error("key set is not a JSON object with unique names")]
    NotJson,

    /// Nested deeper than 64 levels ([SEC-JWT-13]).
    #[error("key set is nested deeper than 64 levels")]
    TooDeep,

    /// No key can be used; this is what the first one lacks.
    #[error("key set has no usable key: {0}")]
    NoUsableKey(KeyProblem),

    /// The list is empty.
    #[error("key set is empty")]
    Empty,

    /// More than [`MAX_KEYS`].
    #[error("key set has more than {MAX_KEYS} keys")]
    TooManyKeys,

    /// More than [`MAX_KEY_SET_LEN`].
    #[error("key set is longer than {MAX_KEY_SET_LEN} bytes")]
    TooLong,
}

impl KeySet {
    /// Reads a JWKS, or Google's older form `{"kid": "PEM certificate"}`.
    ///
    /// # Errors
    ///
    /// [`KeySetError`] when the text is no key set or no key of it can be used.
    pub fn parse(text: &[u8]) -> Result<Self, KeySetError> {
        if text.len() > MAX_KEY_SET_LEN {
            return Err(KeySetError::TooLong);
        }
        let object = json::parse_object(text, json::DEPTH).map_err(|unread| match unread {
            json::Unread::NotAnObject => KeySetError::NotJson,
            json::Unread::TooDeep => KeySetError::TooDeep,
        })?;
        let object = object.members;
        let parsed: Vec<Result<Key, KeyProblem>> = match object.get("keys") {
            // Counted before any is read: reading a key takes long.
            Some(Value::Array(list)) if list.len() > MAX_KEYS => {
                return Err(KeySetError::TooManyKeys);
            }
            Some(Value::Array(list)) => list.iter().map(parse_key).collect(),
            Some(_) => return Err(KeySetError::NotAList),
            None if object.len() > MAX_KEYS => return Err(KeySetError::TooManyKeys),
            None => certificates(&object).ok_or(KeySetError::NoKeys)?,
        };
        let (mut keys, mut skipped) = (Vec::new(), Vec::new());
        for (index, key) in parsed.into_iter().enumerate() {
            match key {
                Ok(key) => keys.push(key),
                Err(problem) => skipped.push(SkippedKey { index, problem }),
            }
        }
        if keys.is_empty() {
            return Err(match skipped.first() {
                Some(first) => KeySetError::NoUsableKey(first.problem),
                None => KeySetError::Empty,
            });
        }
        Ok(Self { keys, skipped })
    }

    /// How many keys can be used; at least one.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a key set is never empty")]
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// The keys that were passed over, and why.
    #[must_use]
    pub fn skipped(&self) -> &[SkippedKey] {
        &self.skipped
    }

    /// Whether a key has this `kid`. A fetcher asks before it fetches again ([SEC-JWT-15]).
    #[must_use]
    pub fn has_kid(&self, kid: &str) -> bool {
        self.keys.iter().any(|key| key.kid.as_deref() == Some(kid))
    }

    /// Verifies a compact JWS whose payload may be anything, and returns the payload.
    ///
    /// This is the signature layer alone: for tokens use [`super::RequestAuthenticator`], which
    /// checks issuer, audience and times as well. `options` say what is tolerated.
    ///
    /// # Errors
    ///
    /// The first problem, in the order in which tokens are checked.
    pub fn verify_jws(&self, jws: &str, options: &TokenOptions) -> Result<Vec<u8>, Reason> {
        let limits = options.limits();
        if jws.len() > limits.token {
            return Err(Reason::TooLong);
        }
        let mut findings = Vec::new();
        let parts = Parts::split(jws.as_bytes()).ok_or(Reason::Parts)?;
        if !parts.exact {
            findings.push(Tolerance::EmptySegments);
        }
        let header = Header::parse(parts.header, limits, &mut findings)?;
        let payload =
            base64url::decode(parts.payload, &mut findings).ok_or(Reason::PayloadBase64)?;
        let signature =
            base64url::decode(parts.signature, &mut findings).ok_or(Reason::SignatureBase64)?;
        let (kid, signed) = (header.kid.as_deref(), &parts.signed);
        let of_key = self.verify(kid, header.algorithm, signed, &signature, false, options)?;
        findings.extend(of_key);
        match options.objection(&findings) {
            Some(objection) => Err(Reason::NotTolerated(objection)),
            None => Ok(payload),
        }
    }

    /// Whether some key may be used under these options, whatever the token.
    pub(super) fn is_acceptable(&self, options: &TokenOptions, shared: bool) -> bool {
        self.keys.iter().any(|key| {
            let shared = shared && matches!(key.material, Material::Symmetric(_));
            options.objection(&key.findings).is_none()
                && (!shared || options.tolerates(Tolerance::SharedSecret))
        })
    }

    /// Tries every key that fits, in order ([SEM-JWT-70]).
    ///
    /// The verdict is Envoy's. Its findings are those of the good key with the fewest objections,
    /// so a strict reader refuses what only a key verifies that it would not use.
    pub(super) fn verify(
        &self,
        kid: Option<&str>,
        algorithm: Algorithm,
        signed: &[u8],
        signature: &[u8],
        fetched: bool,
        options: &TokenOptions,
    ) -> Result<Vec<Tolerance>, Reason> {
        let mut verdict = Err(Reason::NoMatchingKey);
        for key in self.keys.iter().filter(|key| key.fits(kid, algorithm)) {
            match key.verify(algorithm, signed, signature) {
                Answer::Good(mut findings) => {
                    if fetched && matches!(key.material, Material::Symmetric(_)) {
                        findings.push(Tolerance::SharedSecret);
                    }
                    let clean = options.objection(&findings).is_none();
                    if clean || verdict.is_err() {
                        verdict = Ok(findings);
                    }
                    if clean {
                        return verdict;
                    }
                }
                Answer::Bad => verdict = verdict.or(Err(Reason::Signature)),
                Answer::WrongLength => return verdict.or(Err(Reason::SignatureLength)),
            }
        }
        verdict
    }
}

/// The types that users of jsonwebtoken know.
impl TryFrom<&jsonwebtoken::jwk::JwkSet> for KeySet {
    type Error = KeySetError;

    fn try_from(set: &jsonwebtoken::jwk::JwkSet) -> Result<Self, KeySetError> {
        let text = serde_json::to_vec(set).map_err(|error| {
            // Its own types always print; there is nothing in the error worth keeping.
            drop(error);
            KeySetError::NotJson
        })?;
        Self::parse(&text)
    }
}

/// One entry of `keys`.
pub(super) fn parse_key(entry: &Value) -> Result<Key, KeyProblem> {
    let jwk = entry.as_object().ok_or(KeyProblem::Type)?;
    let mut findings = Vec::new();
    let mut name = |member: &str| {
        let text = jwk.get(member).and_then(Value::as_str);
        if text == Some("") {
            findings.push(Tolerance::LooseKeyEncoding);
        }
        text.filter(|text| !text.is_empty()).map(str::to_owned)
    };
    let (algorithm, kid) = (name("alg"), jwk.get("kid").and_then(Value::as_str));
    let kid = kid.filter(|kid| !kid.is_empty()).map(str::to_owned);
    if is_not_for_signatures(jwk) {
        findings.push(Tolerance::KeyUse);
    }
    let reader = Members { jwk, algorithm: algorithm.as_deref() };
    let material = match jwk.get("kty").and_then(Value::as_str) {
        Some("EC") => reader.ec(&mut findings)?,
        Some("OKP") => reader.okp(&mut findings)?,
        Some("RSA") => reader.rsa(&mut findings)?,
        Some("oct") => reader.oct(&mut findings)?,
        Some(_) | None => return Err(KeyProblem::Type),
    };
    Ok(Key { kid, algorithm, material, findings })
}

/// `use: enc`, or `key_ops` that does not list `verify` (RFC 7517 sections 4.2 and 4.3).
fn is_not_for_signatures(jwk: &Map<String, Value>) -> bool {
    let for_encryption = jwk.get("use").and_then(Value::as_str) == Some("enc");
    let operations = jwk.get("key_ops").and_then(Value::as_array);
    let without_verify = operations.is_some_and(|operations| {
        !operations.is_empty() && !operations.iter().any(|name| name.as_str() == Some("verify"))
    });
    for_encryption || without_verify
}

/// Reads the members of one JWK.
struct Members<'a> {
    jwk: &'a Map<String, Value>,
    algorithm: Option<&'a str>,
}

impl Members<'_> {
    fn bytes(
        &self,
        name: &'static str,
        findings: &mut Vec<Tolerance>,
    ) -> Result<Vec<u8>, KeyProblem> {
        let text = self.jwk.get(name).and_then(Value::as_str).ok_or(KeyProblem::Member(name))?;
        let mut loose = Vec::new();
        let bytes = base64url::decode(text.as_bytes(), &mut loose);
        if !loose.is_empty() {
            findings.push(Tolerance::LooseKeyEncoding);
        }
        bytes.ok_or(KeyProblem::Member(name))
    }

    fn ec(&self, findings: &mut Vec<Tolerance>) -> Result<Material, KeyProblem> {
        if self.algorithm.is_some_and(|algorithm| !algorithm.starts_with("ES")) {
            return Err(KeyProblem::Algorithm);
        }
        let curve = match self.jwk.get("crv") {
            None => "",
            Some(Value::String(curve)) => {
                if curve.is_empty() {
                    findings.push(Tolerance::LooseKeyEncoding);
                }
                curve
            }
            Some(_) => return Err(KeyProblem::Member("crv")),
        };
        let (x, y) = (self.bytes("x", findings), self.bytes("y", findings));
        let point = |curve: Curve, x: &[u8], y: &[u8], findings: &mut Vec<Tolerance>| {
            if x.len() != curve.len() || y.len() != curve.len() {
                findings.push(Tolerance::LooseKeyEncoding);
            }
            let x = fixed_len(x, curve.len()).ok_or(KeyProblem::NotAKey)?;
            let y = fixed_len(y, curve.len()).ok_or(KeyProblem::NotAKey)?;
            if !curve.contains(&x, &y) {
                return Err(KeyProblem::NotAKey);
            }
            Ok(Material::Ec(curve, [&[4], &x[..], &y[..]].concat()))
        };
        match (curve, self.algorithm) {
            ("" | "P-256", Some("ES256") | None) => point(Curve::P256, &x?, &y?, findings),
            ("" | "P-384", Some("ES384")) | ("P-384", None) => {
                point(Curve::P384, &x?, &y?, findings)
            }
            #[cfg(feature = "es512")]
            ("" | "P-521", Some("ES512")) | ("P-521", None) => {
                super::es512::Key::parse(&x?, &y?, findings)
                    .map(Material::P521)
                    .ok_or(KeyProblem::NotAKey)
            }
            _ => Err(KeyProblem::Curve),
        }
    }

    fn okp(&self, findings: &mut Vec<Tolerance>) -> Result<Material, KeyProblem> {
        if self.algorithm.is_some_and(|algorithm| algorithm != "EdDSA") {
            return Err(KeyProblem::Algorithm);
        }
        if self.jwk.get("crv").and_then(Value::as_str) != Some("Ed25519") {
            return Err(KeyProblem::Curve);
        }
        let point = self.bytes("x", findings)?;
        let point = <[u8; 32]>::try_from(point).or(Err(KeyProblem::Member("x")))?;
        if has_small_order(point) {
            findings.push(Tolerance::WeakKey);
        }
        Ok(Material::Ed25519(point))
    }

    fn rsa(&self, findings: &mut Vec<Tolerance>) -> Result<Material, KeyProblem> {
        if self.algorithm.is_some_and(|alg| !alg.starts_with("RS") && !alg.starts_with("PS")) {
            return Err(KeyProblem::Algorithm);
        }
        // Padding and leading zeros occur in the wild and change nothing.
        let mut harmless = Vec::new();
        let (n, e) = (self.bytes("n", &mut harmless)?, self.bytes("e", &mut harmless)?);
        rsa(&n, &e, findings)
    }

    fn oct(&self, findings: &mut Vec<Tolerance>) -> Result<Material, KeyProblem> {
        if self.algorithm.is_some_and(|algorithm| !algorithm.starts_with("HS")) {
            return Err(KeyProblem::Algorithm);
        }
        let secret = self.bytes("k", findings)?;
        if secret.is_empty() {
            return Err(KeyProblem::Member("k"));
        }
        Ok(Material::Symmetric(Box::new(Symmetric {
            len: secret.len(),
            sha256: hmac::Key::new(hmac::HMAC_SHA256, &secret),
            sha384: hmac::Key::new(hmac::HMAC_SHA384, &secret),
            sha512: hmac::Key::new(hmac::HMAC_SHA512, &secret),
        })))
    }
}

/// An RSA key from modulus and exponent.
fn rsa(n: &[u8], e: &[u8], findings: &mut Vec<Tolerance>) -> Result<Material, KeyProblem> {
    let (n, e) = (without_leading_zeros(n), without_leading_zeros(e));
    let odd = n.last().is_some_and(|byte| byte & 1 == 1);
    // 64 bytes: the smallest modulus that anybody ever called RSA.
    if !odd || n.len() < 64 || !matches!(e, [3] | [1, 0, 1]) {
        return Err(KeyProblem::NotAKey);
    }
    let short = n.len() < 256 || (n.len() == 256 && n.first().is_some_and(|byte| *byte < 0x80));
    if short {
        findings.push(Tolerance::WeakKey);
    }
    Ok(Material::Rsa { n: n.to_vec(), e: e.to_vec() })
}

/// `{"kid": "PEM certificate", …}`; nothing when a member is something else. The certificates'
/// dates and signatures mean nothing here.
fn certificates(object: &Map<String, Value>) -> Option<Vec<Result<Key, KeyProblem>>> {
    let form = |text: &str| {
        text.starts_with("-----BEGIN CERTIFICATE-----\n")
            && text.ends_with("\n-----END CERTIFICATE-----\n")
    };
    if object.is_empty() {
        return None;
    }
    let entries: Option<Vec<(&String, &str)>> = object
        .iter()
        .map(|(kid, value)| Some((kid, value.as_str().filter(|text| form(text))?)))
        .collect();
    Some(entries?.into_iter().map(|(kid, pem)| certificate(kid, pem)).collect())
}

fn certificate(kid: &str, pem: &str) -> Result<Key, KeyProblem> {
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).or(Err(KeyProblem::Certificate))?;
    let (_, certificate) = x509_parser::certificate::X509Certificate::from_der(&der)
        .or(Err(KeyProblem::Certificate))?;
    let mut findings = Vec::new();
    let material = match certificate.public_key().parsed() {
        Ok(PublicKey::RSA(key)) => rsa(key.modulus, key.exponent, &mut findings)?,
        Ok(_) | Err(_) => return Err(KeyProblem::Certificate),
    };
    let kid = (!kid.is_empty()).then(|| kid.to_owned());
    Ok(Key { kid, algorithm: None, material, findings })
}

/// Whether an Ed25519 public key is one of the points whose order divides 8, in any encoding: a
/// fixed signature then verifies every message.
fn has_small_order(mut point: [u8; 32]) -> bool {
    const ORDER_8: [[u8; 32]; 2] = [
        [
            0x26, 0xe8, 0x95, 0x8f, 0xc2, 0xb2, 0x27, 0xb0, 0x45, 0xc3, 0xf4, 0x89, 0xf2, 0xef,
            0x98, 0xf0, 0xd5, 0xdf, 0xac, 0x05, 0xd3, 0xc6, 0x33, 0x39, 0xb1, 0x38, 0x02, 0x88,
            0x6d, 0x53, 0xfc, 0x05,
        ],
        [
            0xc7, 0x17, 0x6a, 0x70, 0x3d, 0x4d, 0xd8, 0x4f, 0xba, 0x3c, 0x0b, 0x76, 0x0d, 0x10,
            0x67, 0x0f, 0x2a, 0x20, 0x53, 0xfa, 0x2c, 0x39, 0xcc, 0xc6, 0x4e, 0xc7, 0xfd, 0x77,
            0x92, 0xac, 0x03, 0x7a,
        ],
    ];
    if let Some(last) = point.last_mut() {
        // The sign of x.
        *last &= 0x7f;
    }
    let [first, middle @ .., last] = &point;
    // y = 0 and y = 1; y = -1, and y = 0 and y = 1 written as p and p + 1.
    let small = matches!(first, 0 | 1) && *last == 0 && middle.iter().all(|byte| *byte == 0);
    let large =
        (0xec..=0xee).contains(first) && *last == 0x7f && middle.iter().all(|byte| *byte == 0xff);
    small || large || ORDER_8.contains(&point)
}

impl fmt::Display for SkippedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "key {}: {}", self.index, self.problem)
    }
}
