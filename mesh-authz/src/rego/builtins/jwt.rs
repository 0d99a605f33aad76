//! OPA's `io.jwt.*`: decoding, and verification with ring.
//!
//! Keys come as OPA takes them: a certificate or public key in PEM, or a JWKS. The algorithm is the
//! one that the function, or the token's header within the constraints, names, and a key of another
//! kind never fits it. ES512 and MD5 are left out: ring has neither.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use regorus::Value;
use ring::hmac;
use ring::signature::{self, RsaPublicKeyComponents, UnparsedPublicKey};
use serde_json::{Map, Value as Json};

use super::Fault;
use super::meter::charge;
use super::supplied::{hex, text};
use crate::rego::input::{MAX_INPUT_BYTES, MAX_STRING_BYTES};
use crate::rego::parse::Budget;

/// The most keys of a set that are tried.
const MAX_KEYS: usize = 32;

/// How deep tokens may nest (`cty: JWT`).
const MAX_NESTED: usize = 4;

/// A JSON Web Algorithm that ring verifies.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Algorithm {
    Rs256,
    Rs384,
    Rs512,
    Ps256,
    Ps384,
    Ps512,
    Es256,
    Es384,
    EdDsa,
    Hs256,
    Hs384,
    Hs512,
}

impl Algorithm {
    fn of(name: &str) -> Option<Self> {
        Some(match name {
            "RS256" => Self::Rs256,
            "RS384" => Self::Rs384,
            "RS512" => Self::Rs512,
            "PS256" => Self::Ps256,
            "PS384" => Self::Ps384,
            "PS512" => Self::Ps512,
            "ES256" => Self::Es256,
            "ES384" => Self::Es384,
            "EdDSA" => Self::EdDsa,
            "HS256" => Self::Hs256,
            "HS384" => Self::Hs384,
            "HS512" => Self::Hs512,
            _ => return None,
        })
    }

    fn hmac(self) -> Option<hmac::Algorithm> {
        match self {
            Self::Hs256 => Some(hmac::HMAC_SHA256),
            Self::Hs384 => Some(hmac::HMAC_SHA384),
            Self::Hs512 => Some(hmac::HMAC_SHA512),
            Self::Rs256
            | Self::Rs384
            | Self::Rs512
            | Self::Ps256
            | Self::Ps384
            | Self::Ps512
            | Self::Es256
            | Self::Es384
            | Self::EdDsa => None,
        }
    }

    fn rsa(self) -> Option<&'static signature::RsaParameters> {
        match self {
            Self::Rs256 => Some(&signature::RSA_PKCS1_2048_8192_SHA256),
            Self::Rs384 => Some(&signature::RSA_PKCS1_2048_8192_SHA384),
            Self::Rs512 => Some(&signature::RSA_PKCS1_2048_8192_SHA512),
            Self::Ps256 => Some(&signature::RSA_PSS_2048_8192_SHA256),
            Self::Ps384 => Some(&signature::RSA_PSS_2048_8192_SHA384),
            Self::Ps512 => Some(&signature::RSA_PSS_2048_8192_SHA512),
            Self::Es256 | Self::Es384 | Self::EdDsa | Self::Hs256 | Self::Hs384 | Self::Hs512 => {
                None
            }
        }
    }
}

/// One key, of the one kind it is.
pub(in crate::rego) enum Key {
    /// A PKCS#1 public key.
    RsaDer(Vec<u8>),
    Rsa {
        n: Vec<u8>,
        e: Vec<u8>,
    },
    P256(Vec<u8>),
    P384(Vec<u8>),
    Ed25519(Vec<u8>),
    Secret(Vec<u8>),
    /// Of a kind or curve that is not known here: it verifies nothing.
    Unknown,
}

impl Key {
    /// What verifying a signature with it costs, on the meter of an evaluation.
    fn units(&self) -> usize {
        // RSA is quadratic in the modulus: about 25 µs for 2,048 bits.
        let rsa = |bytes: usize| bytes.saturating_mul(bytes) / 64;
        match self {
            Self::RsaDer(der) => rsa(der.len()),
            Self::Rsa { n, .. } => rsa(n.len()),
            Self::P256(_) | Self::Ed25519(_) => 2_000,
            Self::P384(_) => 8_000,
            Self::Secret(_) => 50,
            Self::Unknown => 0,
        }
    }

    fn verifies(&self, algorithm: Algorithm, message: &[u8], signature: &[u8]) -> bool {
        if let Some(mac) = algorithm.hmac() {
            let Self::Secret(secret) = self else { return false };
            return hmac::verify(&hmac::Key::new(mac, secret), message, signature).is_ok();
        }
        if let Some(rsa) = algorithm.rsa() {
            return match self {
                Self::RsaDer(der) => {
                    UnparsedPublicKey::new(rsa, der).verify(message, signature).is_ok()
                }
                Self::Rsa { n, e } => {
                    RsaPublicKeyComponents { n, e }.verify(rsa, message, signature).is_ok()
                }
                Self::P256(_)
                | Self::P384(_)
                | Self::Ed25519(_)
                | Self::Secret(_)
                | Self::Unknown => false,
            };
        }
        let parameters: &dyn signature::VerificationAlgorithm = match (algorithm, self) {
            (Algorithm::Es256, Self::P256(_)) => &signature::ECDSA_P256_SHA256_FIXED,
            (Algorithm::Es384, Self::P384(_)) => &signature::ECDSA_P384_SHA384_FIXED,
            (Algorithm::EdDsa, Self::Ed25519(_)) => &signature::ED25519,
            _ => return false,
        };
        match self {
            Self::P256(point) | Self::P384(point) | Self::Ed25519(point) => {
                UnparsedPublicKey::new(parameters, point).verify(message, signature).is_ok()
            }
            Self::RsaDer(_) | Self::Rsa { .. } | Self::Secret(_) | Self::Unknown => false,
        }
    }
}

/// Verifies a compact token's signature with one of OPA's keys; the algorithm is given, never the
/// token's choice.
#[cfg(feature = "bundles")]
pub(in crate::rego) fn verify_compact(token: &str, algorithm: &str, keys: &[Key]) -> bool {
    let parts = Parts::of(token).ok().zip(Algorithm::of(algorithm));
    parts.is_some_and(|(parts, algorithm)| {
        keys.iter().any(|key| key.verifies(algorithm, parts.message.as_bytes(), &parts.signature))
    })
}

/// `io.jwt.decode`: header, payload and signature (in hexadecimal) of a token.
///
/// It verifies nothing: whoever sends a request writes what it returns. Claims that are verified
/// are in the input document.
pub(super) fn decode(args: &[Value]) -> Result<Value, Fault> {
    let parts = Parts::of(text(args, 0)?)?;
    let payload = parts.payload()?;
    let triple = [value(&parts.header()?)?, value(&object(&payload)?)?, hex(&parts.signature)];
    Ok(Value::from(triple.to_vec()))
}

/// `io.jwt.verify_hs…(token, secret)`.
pub(super) fn verify_secret(algorithm: Algorithm, args: &[Value]) -> Result<Value, Fault> {
    let parts = Parts::of(text(args, 0)?)?;
    let key = Key::Secret(text(args, 1)?.as_bytes().to_vec());
    let valid = key.verifies(algorithm, parts.message.as_bytes(), &parts.signature);
    Ok(Value::Bool(valid))
}

/// `io.jwt.verify_rs…(token, certificate)` and its like.
pub(super) fn verify(algorithm: Algorithm, args: &[Value]) -> Result<Value, Fault> {
    let parts = Parts::of(text(args, 0)?)?;
    let keys = keys(text(args, 1)?)?;
    let kid = parts.header()?.get("kid").and_then(Json::as_str).map(str::to_owned);
    Ok(Value::Bool(any_verifies(&keys, kid.as_deref(), algorithm, &parts)?))
}

fn any_verifies(
    keys: &[(Option<String>, Key)],
    kid: Option<&str>,
    algorithm: Algorithm,
    parts: &Parts<'_>,
) -> Result<bool, Fault> {
    let named = kid.and_then(|kid| keys.iter().find(|(id, _)| id.as_deref() == Some(kid)));
    for (_, key) in named.map_or(keys, std::slice::from_ref) {
        charge(key.units())?;
        if key.verifies(algorithm, parts.message.as_bytes(), &parts.signature) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// `io.jwt.decode_verify(token, constraints)`; `now` is when the request came, in nanoseconds.
pub(super) fn decode_verify(args: &[Value], now: Option<&Value>) -> Result<Value, Fault> {
    let (mut token, constraints) = (text(args, 0)?.to_owned(), Constraints::of(args, now)?);
    for _ in 0..MAX_NESTED {
        let parts = Parts::of(&token)?;
        let header = parts.header()?;
        let named = header.get("alg").and_then(Json::as_str);
        let algorithm = named
            .filter(|named| constraints.algorithm.as_ref().is_none_or(|wanted| wanted == named));
        let Some(algorithm) = algorithm.and_then(Algorithm::of) else { return Ok(unverified()) };
        let kid = header.get("kid").and_then(Json::as_str);
        if !any_verifies(&constraints.keys, kid, algorithm, &parts)? {
            return Ok(unverified());
        }
        let payload = parts.payload()?;
        let nested = header.get("cty").and_then(Json::as_str);
        if nested.is_some_and(|cty| cty.eq_ignore_ascii_case("JWT")) {
            token = String::from_utf8(payload).map_err(|_no_text| Fault::Failed)?;
            continue;
        }
        let claims = object(&payload)?;
        if !constraints.admit(&claims)? {
            return Ok(unverified());
        }
        return Ok(Value::from(vec![Value::Bool(true), value(&header)?, value(&claims)?]));
    }
    Err(Fault::TooLarge)
}

fn unverified() -> Value {
    Value::from(vec![Value::Bool(false), Value::new_object(), Value::new_object()])
}

/// What `io.jwt.decode_verify` demands.
struct Constraints {
    keys: Vec<(Option<String>, Key)>,
    algorithm: Option<String>,
    issuer: Option<String>,
    audience: Option<String>,
    /// Nanoseconds.
    time: f64,
}

impl Constraints {
    fn of(args: &[Value], now: Option<&Value>) -> Result<Self, Fault> {
        let Some(Value::Object(object)) = args.get(1) else { return Err(Fault::Failed) };
        let (mut given, mut secret) = (None, None);
        let (mut algorithm, mut issuer, mut audience, mut time) = (None, None, None, None);
        for (name, value) in object.iter() {
            let name = name.as_string().map_err(|_no_text| Fault::Failed)?;
            if &**name == "time" {
                time = Some(float(value)?).filter(|nanos| *nanos >= 0.0);
                if time.is_none() {
                    return Err(Fault::Failed);
                }
                continue;
            }
            let text = value.as_string().map_err(|_no_text| Fault::Failed)?.to_string();
            match &**name {
                "cert" => given = Some(keys(&text)?),
                "secret" => secret = Some(Key::Secret(text.into_bytes())),
                "alg" => algorithm = Some(text),
                "iss" => issuer = Some(text),
                "aud" => audience = Some(text),
                _ => return Err(Fault::Failed),
            }
        }
        let keys = match (given, secret) {
            (Some(keys), None) => keys,
            (None, Some(secret)) => vec![(None, secret)],
            (None, None) | (Some(_), Some(_)) => return Err(Fault::Failed),
        };
        let time = match (time, now) {
            (Some(time), _) => time,
            (None, Some(now)) => float(now)?,
            (None, None) => return Err(Fault::Failed),
        };
        Ok(Self { keys, algorithm, issuer, audience, time })
    }

    fn admit(&self, claims: &Map<String, Json>) -> Result<bool, Fault> {
        if let Some(issuer) = &self.issuer
            && claims.get("iss").and_then(Json::as_str) != Some(issuer)
        {
            return Ok(false);
        }
        // A token for somebody is not for everybody: `aud` without a constraint refuses.
        let meant = |wanted: &str| match claims.get("aud") {
            Some(Json::String(one)) => one == wanted,
            Some(Json::Array(many)) => many.iter().any(|one| one == wanted),
            _ => false,
        };
        match &self.audience {
            Some(wanted) if !meant(wanted) => return Ok(false),
            None if claims.contains_key("aud") => return Ok(false),
            _ => {}
        }
        let seconds = self.time / 1e9;
        let number = |name: &str| match claims.get(name) {
            None => Ok(None),
            Some(value) => value.as_f64().ok_or(Fault::Failed).map(Some),
        };
        let (expiry, begin) = (number("exp")?, number("nbf")?);
        Ok(expiry.is_none_or(|expiry| expiry > seconds)
            && begin.is_none_or(|begin| begin <= seconds))
    }
}

/// A number, rounded: regorus gives only those that need no rounding.
fn float(value: &Value) -> Result<f64, Fault> {
    match value.as_i64() {
        Ok(whole) => whole.to_string().parse().map_err(|_no_number| Fault::Failed),
        Err(_) => value.as_f64().map_err(|_no_number| Fault::Failed),
    }
}

/// A compact token in its parts.
struct Parts<'t> {
    message: &'t str,
    header: &'t str,
    payload: &'t str,
    signature: Vec<u8>,
}

impl<'t> Parts<'t> {
    fn of(token: &'t str) -> Result<Self, Fault> {
        if token.len() > MAX_STRING_BYTES {
            return Err(Fault::TooLarge);
        }
        let mut parts = token.split('.');
        let (Some(header), Some(payload), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(Fault::Failed);
        };
        let (message, _) = token.rsplit_once('.').ok_or(Fault::Failed)?;
        Ok(Self { message, header, payload, signature: base64url(signature)? })
    }

    fn header(&self) -> Result<Map<String, Json>, Fault> {
        object(&base64url(self.header)?)
    }

    fn payload(&self) -> Result<Vec<u8>, Fault> {
        base64url(self.payload)
    }
}

fn base64url(part: &str) -> Result<Vec<u8>, Fault> {
    URL_SAFE_NO_PAD.decode(part.trim_end_matches('=')).map_err(|_not_base64| Fault::Failed)
}

fn object(bytes: &[u8]) -> Result<Map<String, Json>, Fault> {
    serde_json::from_slice(bytes).map_err(|_no_object| Fault::Failed)
}

fn value(object: &Map<String, Json>) -> Result<Value, Fault> {
    Budget::new().json_object(object).map_err(|_too_large| Fault::TooLarge)
}

/// The keys of a text as OPA takes it: PEM, or JSON of a key or a set.
pub(in crate::rego) fn keys(text: &str) -> Result<Vec<(Option<String>, Key)>, Fault> {
    if text.len() > MAX_INPUT_BYTES {
        return Err(Fault::TooLarge);
    }
    if text.trim_start().starts_with("-----BEGIN") {
        return pem_key(text).map(|key| vec![(None, key)]).ok_or(Fault::Failed);
    }
    let json: Json = serde_json::from_str(text).map_err(|_no_json| Fault::Failed)?;
    let entries = match json.get("keys") {
        Some(Json::Array(entries)) => entries.as_slice(),
        Some(_) => return Err(Fault::Failed),
        None => std::slice::from_ref(&json),
    };
    if entries.len() > MAX_KEYS {
        return Err(Fault::TooLarge);
    }
    // A key of a kind or curve that is not known here keeps its place: a token that names it is not
    // judged by the others.
    let keys = entries.iter().map(|entry| {
        let kid = entry.get("kid").and_then(Json::as_str).map(str::to_owned);
        (kid, jwk(entry).unwrap_or(Key::Unknown))
    });
    Ok(keys.collect())
}

fn jwk(entry: &Json) -> Option<Key> {
    let member = |name: &str| {
        let text = entry.get(name).and_then(Json::as_str)?;
        URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).ok()
    };
    let point = |size: usize| {
        let (x, y) = (member("x")?, member("y")?);
        (x.len() == size && y.len() == size).then(|| [&[4][..], &x, &y].concat())
    };
    match (entry.get("kty")?.as_str()?, entry.get("crv").and_then(Json::as_str)) {
        ("RSA", _) => Some(Key::Rsa { n: member("n")?, e: member("e")? }),
        ("EC", Some("P-256")) => point(32).map(Key::P256),
        ("EC", Some("P-384")) => point(48).map(Key::P384),
        ("OKP", Some("Ed25519")) => member("x").map(Key::Ed25519),
        ("oct", _) => member("k").map(Key::Secret),
        _ => None,
    }
}

/// The key of the first PEM block: a certificate, a SubjectPublicKeyInfo or a PKCS#1 key.
fn pem_key(text: &str) -> Option<Key> {
    let (label, rest) = text.trim_start().strip_prefix("-----BEGIN ")?.split_once("-----")?;
    let (body, _) = rest.split_once("-----END ")?;
    let der = STANDARD.decode(body.split_ascii_whitespace().collect::<String>()).ok()?;
    match label {
        "CERTIFICATE" => {
            let mut certificate = Der(Der(&der).sequence()?);
            let mut tbs = Der(certificate.sequence()?);
            // version (explicit, optional), serial, signature, issuer, validity, subject
            let (tag, _) = tbs.any()?;
            for _ in 0..(if tag == 0xA0 { 5 } else { 4 }) {
                tbs.any()?;
            }
            public_key(Der(tbs.sequence()?))
        }
        "PUBLIC KEY" => public_key(Der(Der(&der).sequence()?)),
        "RSA PUBLIC KEY" => Some(Key::RsaDer(der)),
        _ => None,
    }
}

/// The content of a SubjectPublicKeyInfo (RFC 5280 section 4.1).
fn public_key(mut info: Der<'_>) -> Option<Key> {
    let mut algorithm = Der(info.sequence()?);
    let (_, name) = algorithm.any()?;
    let curve = algorithm.any().map(|(_, curve)| curve).unwrap_or_default();
    let (_, bits) = info.any()?;
    let key = bits.strip_prefix(&[0])?.to_vec();
    match (name, curve) {
        // rsaEncryption
        ([0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 1, 1, 1], _) => Some(Key::RsaDer(key)),
        // id-ecPublicKey with prime256v1 or secp384r1
        ([0x2A, 0x86, 0x48, 0xCE, 0x3D, 2, 1], [0x2A, 0x86, 0x48, 0xCE, 0x3D, 3, 1, 7]) => {
            Some(Key::P256(key))
        }
        ([0x2A, 0x86, 0x48, 0xCE, 0x3D, 2, 1], [0x2B, 0x81, 4, 0, 0x22]) => Some(Key::P384(key)),
        // id-Ed25519
        ([0x2B, 0x65, 0x70], _) => Some(Key::Ed25519(key)),
        _ => None,
    }
}

/// What is left of a DER text.
struct Der<'d>(&'d [u8]);

impl<'d> Der<'d> {
    /// The next element: its tag and content.
    fn any(&mut self) -> Option<(u8, &'d [u8])> {
        let (tag, rest) = self.0.split_first()?;
        let (first, rest) = rest.split_first()?;
        let (length, rest) = if *first < 0x80 {
            (usize::from(*first), rest)
        } else {
            let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7F))?;
            if bytes.is_empty() || bytes.len() > 4 {
                return None;
            }
            let length = bytes.iter().try_fold(0_usize, |length, byte| {
                length.checked_mul(256)?.checked_add(usize::from(*byte))
            });
            (length?, rest)
        };
        let (content, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((*tag, content))
    }

    fn sequence(&mut self) -> Option<&'d [u8]> {
        self.any().filter(|(tag, _)| *tag == 0x30).map(|(_, content)| content)
    }
}
