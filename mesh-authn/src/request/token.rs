//! One token: three parts, header and payload, checked in Envoy's order; not yet its signature.

use std::borrow::Cow;
use std::sync::Arc;

use mesh_identity::Claims;
use serde_json::{Map, Value};

use super::base64url;
use super::json;
use super::options::{TokenLimits, Tolerance};
use super::refusal::{Reason, StringClaim, TimeClaim};

/// A token whose form is right. Nobody has looked at its signature.
pub(super) struct ParsedToken<'t> {
    pub(super) header: Arc<Header>,
    /// The header part as it was in the token.
    header_part: &'t [u8],
    pub(super) claims: Claims,
    /// Bytes that the claims keep on the heap.
    pub(super) claims_memory: usize,
    pub(super) times: Times,
    pub(super) audiences: Vec<String>,
    /// The payload part as it was in the token.
    pub(super) payload_part: &'t [u8],
    /// What is signed: header, dot, payload.
    pub(super) signed: Cow<'t, [u8]>,
    pub(super) signature: Vec<u8>,
    /// What a strict reader would not have accepted.
    pub(super) findings: Vec<Tolerance>,
}

/// The signature algorithms of RFC 7518 and RFC 8037 that Envoy knows.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Algorithm {
    Es256,
    Es384,
    Es512,
    EdDsa,
    Hs256,
    Hs384,
    Hs512,
    Ps256,
    Ps384,
    Ps512,
    Rs256,
    Rs384,
    Rs512,
}

impl Algorithm {
    pub(super) fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "ES256" => Self::Es256,
            "ES384" => Self::Es384,
            "ES512" => Self::Es512,
            "EdDSA" => Self::EdDsa,
            "HS256" => Self::Hs256,
            "HS384" => Self::Hs384,
            "HS512" => Self::Hs512,
            "PS256" => Self::Ps256,
            "PS384" => Self::Ps384,
            "PS512" => Self::Ps512,
            "RS256" => Self::Rs256,
            "RS384" => Self::Rs384,
            "RS512" => Self::Rs512,
            _ => return None,
        })
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Es256 => "ES256",
            Self::Es384 => "ES384",
            Self::Es512 => "ES512",
            Self::EdDsa => "EdDSA",
            Self::Hs256 => "HS256",
            Self::Hs384 => "HS384",
            Self::Hs512 => "HS512",
            Self::Ps256 => "PS256",
            Self::Ps384 => "PS384",
            Self::Ps512 => "PS512",
            Self::Rs256 => "RS256",
            Self::Rs384 => "RS384",
            Self::Rs512 => "RS512",
        }
    }
}

/// The times of a token in seconds, fractions cut off.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Times {
    pub(super) not_before: u64,
    /// 0 is never ([SEM-JWT-20]).
    pub(super) expires: u64,
}

/// How far clocks may differ, in seconds; Istio has no setting for it ([SEM-JWT-20]).
pub(super) const SKEW: u64 = 60;

impl Times {
    /// [SEM-JWT-20]
    pub(super) fn check(self, now: u64, skew: u64) -> Result<(), Reason> {
        if self.not_before > now.saturating_add(skew) {
            return Err(Reason::NotYetValid);
        }
        if self.expires != 0 && self.expires.saturating_add(skew) < now {
            return Err(Reason::Expired);
        }
        Ok(())
    }
}

/// Payloads up to this size are decoded on the stack: allocators are slow beyond a kibibyte.
const PAYLOAD_BUFFER: usize = 2048;

/// The three parts of a JWS in compact form ([SEM-JWT-15]).
pub(super) struct Parts<'t> {
    pub(super) header: &'t [u8],
    pub(super) payload: &'t [u8],
    pub(super) signature: &'t [u8],
    /// Header, dot, payload.
    pub(super) signed: Cow<'t, [u8]>,
    /// There are no empty parts.
    pub(super) exact: bool,
}

impl<'t> Parts<'t> {
    pub(super) fn split(token: &'t [u8]) -> Option<Self> {
        Self::split_exactly(token).or_else(|| Self::split_as_envoy(token))
    }

    /// Two dots, and something on either side of each.
    fn split_exactly(token: &'t [u8]) -> Option<Self> {
        let mut dots = memchr::memchr_iter(b'.', token);
        let (first, second) = (dots.next()?, dots.next()?);
        if dots.next().is_some() {
            return None;
        }
        let header = token.get(..first)?;
        let payload = token.get(first.checked_add(1)?..second)?;
        let signature = token.get(second.checked_add(1)?..)?;
        if header.is_empty() || payload.is_empty() || signature.is_empty() {
            return None;
        }
        let signed = Cow::Borrowed(token.get(..second)?);
        Some(Self { header, payload, signature, signed, exact: true })
    }

    /// Empty parts do not count.
    fn split_as_envoy(token: &'t [u8]) -> Option<Self> {
        let mut parts = token.split(|byte| *byte == b'.').filter(|part| !part.is_empty());
        let (header, payload, signature) = (parts.next()?, parts.next()?, parts.next()?);
        if parts.next().is_some() {
            return None;
        }
        let signed = Cow::Owned([header, b".", payload].concat());
        Some(Self { header, payload, signature, signed, exact: false })
    }
}

/// The header of a token ([SEM-JWT-17]).
pub(super) struct Header {
    pub(super) algorithm: Algorithm,
    /// As written; a key's `kid` is compared with it.
    pub(super) kid: Option<String>,
    /// Only JWT-SVIDs look at it.
    pub(super) typ: Option<Value>,
}

/// A header part that has been read, without findings: nearly all tokens of a key begin with the
/// same bytes.
pub(super) struct KnownHeader {
    part: Box<[u8]>,
    header: Arc<Header>,
}

impl Header {
    pub(super) fn parse(
        part: &[u8],
        limits: TokenLimits,
        findings: &mut Vec<Tolerance>,
    ) -> Result<Self, Reason> {
        if part.len() > limits.header {
            return Err(Reason::TooLong);
        }
        let text = base64url::decode(part, findings).ok_or(Reason::HeaderBase64)?;
        let mut header = object(&text, limits, Reason::HeaderJson)?.members;
        let Some(Value::String(algorithm)) = header.get("alg") else {
            return Err(Reason::AlgorithmMissing);
        };
        let algorithm = Algorithm::parse(algorithm).ok_or(Reason::AlgorithmUnknown)?;
        let kid = match header.remove("kid") {
            None => None,
            Some(Value::String(kid)) if kid.len() > limits.kid => return Err(Reason::TooLong),
            Some(Value::String(kid)) => Some(kid),
            Some(_) => return Err(Reason::KidType),
        };
        if header.contains_key("crit") || header.contains_key("b64") {
            findings.push(Tolerance::CriticalHeader);
        }
        Ok(Self { algorithm, kid, typ: header.remove("typ") })
    }
}

impl<'t> ParsedToken<'t> {
    /// The first problem wins; the order is Envoy's.
    pub(super) fn parse(
        token: &'t [u8],
        limits: TokenLimits,
        known: Option<&KnownHeader>,
    ) -> Result<Self, Reason> {
        if token.len() > limits.token {
            return Err(Reason::TooLong);
        }
        let mut findings = Vec::new();
        let parts = Parts::split(token).ok_or(Reason::Parts)?;
        if !parts.exact {
            findings.push(Tolerance::EmptySegments);
        }
        let header = match known {
            Some(known) if *known.part == *parts.header => Arc::clone(&known.header),
            Some(_) | None => Arc::new(Header::parse(parts.header, limits, &mut findings)?),
        };
        let mut buffer = [0; PAYLOAD_BUFFER];
        let payload = base64url::decode_in(&mut buffer, parts.payload, &mut findings)
            .ok_or(Reason::PayloadBase64)?;
        let json::Object { members, memory } = object(&payload, limits, Reason::PayloadJson)?;
        if payload.trim_ascii() == b"null" {
            findings.push(Tolerance::NullPayload);
        }
        let registered = Registered::of(&members);
        string(registered.issuer, StringClaim::Issuer)?;
        string(registered.subject, StringClaim::Subject)?;
        time(registered.issued_at, TimeClaim::IssuedAt)?;
        let not_before = time(registered.not_before, TimeClaim::NotBefore)?.unwrap_or(0);
        let expires = time(registered.expires, TimeClaim::Expires)?.unwrap_or(0);
        if expires == 0 {
            findings.push(Tolerance::NoExpiry);
        }
        string(registered.token_id, StringClaim::TokenId)?;
        let audiences = audiences(registered.audience)?;
        let signature =
            base64url::decode(parts.signature, &mut findings).ok_or(Reason::SignatureBase64)?;
        Ok(Self {
            header,
            header_part: parts.header,
            claims: Claims::new(members),
            claims_memory: memory,
            times: Times { not_before, expires },
            audiences,
            payload_part: parts.payload,
            signed: parts.signed,
            signature,
            findings,
        })
    }

    /// Its header, for the tokens that have the same; only when there are no findings.
    pub(super) fn known_header(&self) -> KnownHeader {
        KnownHeader { part: self.header_part.into(), header: Arc::clone(&self.header) }
    }
}

/// Reads a part's JSON. What Envoy would not read either is refused in its words.
fn object(text: &[u8], limits: TokenLimits, not_json: Reason) -> Result<json::Object, Reason> {
    json::parse_object(text, limits.depth).map_err(|unread| match unread {
        json::Unread::TooDeep if limits.depth < TokenLimits::ENVOY.depth => Reason::TooDeep,
        json::Unread::TooDeep | json::Unread::NotAnObject => not_json,
    })
}

/// The claims of RFC 7519, section 4.1, found in one walk.
#[derive(Default)]
struct Registered<'c> {
    issuer: Option<&'c Value>,
    subject: Option<&'c Value>,
    audience: Option<&'c Value>,
    expires: Option<&'c Value>,
    not_before: Option<&'c Value>,
    issued_at: Option<&'c Value>,
    token_id: Option<&'c Value>,
}

impl<'c> Registered<'c> {
    fn of(claims: &'c Map<String, Value>) -> Self {
        let mut found = Self::default();
        for (name, value) in claims {
            let place = match name.as_str() {
                "iss" => &mut found.issuer,
                "sub" => &mut found.subject,
                "aud" => &mut found.audience,
                "exp" => &mut found.expires,
                "nbf" => &mut found.not_before,
                "iat" => &mut found.issued_at,
                "jti" => &mut found.token_id,
                _ => continue,
            };
            *place = Some(value);
        }
        found
    }
}

fn string(value: Option<&Value>, claim: StringClaim) -> Result<(), Reason> {
    match value {
        None | Some(Value::String(_)) => Ok(()),
        Some(_) => Err(Reason::ClaimNotString(claim)),
    }
}

/// A time is a number x with 0 <= x < 2^64; anything else is an error, never an absence
/// ([SEC-JWT-5], [SEM-ADV-67]).
fn time(value: Option<&Value>, claim: TimeClaim) -> Result<Option<u64>, Reason> {
    let number = match value {
        None => return Ok(None),
        Some(Value::Number(number)) => number,
        Some(_) => return Err(Reason::ClaimNotNumber(claim)),
    };
    if let Some(seconds) = number.as_f64().and_then(whole_seconds) {
        return Ok(Some(number.as_u64().unwrap_or(seconds)));
    }
    Err(Reason::ClaimOutOfRange(claim))
}

/// The whole part of a number x with 0 <= x < 2^64.
pub(super) fn whole_seconds(value: f64) -> Option<u64> {
    const LIMIT: f64 = 18_446_744_073_709_551_616.0;
    if !(0.0..LIMIT).contains(&value) {
        return None;
    }
    #[expect(
        clippy::as_conversions,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the line above bounds it to what a u64 holds; std has no other conversion"
    )]
    Some(value.trunc() as u64)
}

/// `aud`: a string, or a list of strings ([SEC-JWT-6]).
fn audiences(value: Option<&Value>) -> Result<Vec<String>, Reason> {
    match value {
        None => Ok(Vec::new()),
        Some(Value::String(one)) => Ok(vec![one.clone()]),
        Some(Value::Array(list)) => list
            .iter()
            .map(|item| item.as_str().map(str::to_owned).ok_or(Reason::AudienceType))
            .collect(),
        Some(_) => Err(Reason::AudienceType),
    }
}
