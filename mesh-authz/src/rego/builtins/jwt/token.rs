//! A compact token, read as OPA reads it.

use base64::Engine as _;
use base64::alphabet::URL_SAFE;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use regorus::Value;
use serde_json::{Map, Value as Json};

use super::Fault;
use crate::rego::input::MAX_STRING_BYTES;
use crate::rego::parse::Budget;

/// Base64url as Go reads it: bits that the last character has too many are passed over.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::RequireCanonical),
);

/// A compact token in its parts, none of them read yet.
pub(super) struct Parts<'t> {
    /// What is signed.
    pub(super) message: &'t str,
    header: &'t str,
    payload: &'t str,
    signature: &'t str,
}

impl<'t> Parts<'t> {
    pub(super) fn of(token: &'t str) -> Result<Self, Fault> {
        if token.len() > MAX_STRING_BYTES {
            return Err(Fault::TooLarge);
        }
        let (message, signature) = token.rsplit_once('.').ok_or(Fault::Failed)?;
        let (header, payload) = message.split_once('.').ok_or(Fault::Failed)?;
        if payload.contains('.') {
            return Err(Fault::Failed);
        }
        Ok(Self { message, header, payload, signature })
    }

    pub(super) fn header(&self) -> Result<Header, Fault> {
        Header::of(object(&base64url(self.header)?)?)
    }

    pub(super) fn payload(&self) -> Result<Vec<u8>, Fault> {
        base64url(self.payload)
    }

    pub(super) fn signature(&self) -> Result<Vec<u8>, Fault> {
        base64url(self.signature)
    }
}

/// The header of a token that is signed, not encrypted.
pub(super) struct Header(Map<String, Json>);

impl Header {
    fn of(header: Map<String, Json>) -> Result<Self, Fault> {
        if header.contains_key("enc") { Err(Fault::Failed) } else { Ok(Self(header)) }
    }

    /// Fails when a member that means something has the wrong type.
    pub(super) fn check(&self) -> Result<(), Fault> {
        for name in ["alg", "kid", "typ", "cty"] {
            self.text(name)?;
        }
        match self.0.get("crit") {
            None => Ok(()),
            Some(Json::Array(names)) if names.first().is_some_and(Json::is_string) => Ok(()),
            Some(_) => Err(Fault::Failed),
        }
    }

    /// A member that must be a text where it is; empty where it is not.
    pub(super) fn text(&self, name: &str) -> Result<&str, Fault> {
        match self.0.get(name) {
            None => Ok(""),
            Some(value) => value.as_str().ok_or(Fault::Failed),
        }
    }

    /// Whether `crit` names a member that is there and that OPA does not know (RFC 7515 section
    /// 4.1.11).
    pub(super) fn is_critical(&self) -> bool {
        let known = ["alg", "kid", "typ", "cty", "crit"];
        let names = self.0.get("crit").and_then(Json::as_array);
        let mut names = names.into_iter().flatten().map_while(Json::as_str);
        names.any(|name| !known.contains(&name) && self.0.contains_key(name))
    }

    pub(super) fn value(&self) -> Result<Value, Fault> {
        value(&self.0)
    }
}

/// Padded or not, as OPA takes it; line breaks are passed over.
fn base64url(part: &str) -> Result<Vec<u8>, Fault> {
    let padding = match part.len() % 4 {
        _ if part.ends_with('=') => "",
        0 => "",
        2 => "==",
        3 => "=",
        _ => return Err(Fault::Failed),
    };
    let padded: String = part.chars().filter(|c| !matches!(c, '\r' | '\n')).collect();
    LENIENT.decode(padded + padding).map_err(|_no_base64| Fault::Failed)
}

pub(super) fn object(bytes: &[u8]) -> Result<Map<String, Json>, Fault> {
    serde_json::from_slice(bytes).map_err(|_no_object| Fault::Failed)
}

pub(super) fn value(object: &Map<String, Json>) -> Result<Value, Fault> {
    Budget::new().json_object(object).map_err(|_too_large| Fault::TooLarge)
}
