//! Builtins of OPA that regorus lacks, or does without limits.

use std::net::IpAddr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ipnet::IpNet;
use regorus::Value;

use super::Fault;
use crate::rego::input::{MAX_INPUT_BYTES, MAX_STRING_BYTES};
use crate::rego::parse::Budget;

/// The longest text that is read as a number.
const MAX_NUMBER_TEXT: usize = 64;

/// `io.jwt.decode`: header, payload and signature (in hexadecimal) of a token.
///
/// It verifies nothing: whoever sends a request writes what it returns. Claims that are verified
/// are in the input document.
pub(super) fn jwt_decode(args: &[Value]) -> Result<Value, Fault> {
    let token = text(args, 0)?;
    if token.len() > MAX_STRING_BYTES {
        return Err(Fault::TooLarge);
    }
    let mut parts = token.split('.');
    let (Some(header), Some(payload), Some(signature), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(Fault::Failed);
    };
    let signature = decode(signature)?;
    let parts = [json_object(&decode(header)?)?, json_object(&decode(payload)?)?, hex(&signature)];
    Ok(Value::from(parts.to_vec()))
}

fn decode(part: &str) -> Result<Vec<u8>, Fault> {
    URL_SAFE_NO_PAD.decode(part.trim_end_matches('=')).map_err(|_not_base64| Fault::Failed)
}

fn json_object(bytes: &[u8]) -> Result<Value, Fault> {
    let object: serde_json::Map<_, _> =
        serde_json::from_slice(bytes).map_err(|_no_object| Fault::Failed)?;
    Budget::new().json_object(&object).map_err(|_too_large| Fault::TooLarge)
}

fn hex(bytes: &[u8]) -> Value {
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    let digits = digits.filter_map(|digit| char::from_digit(u32::from(digit), 16));
    Value::from(digits.collect::<String>())
}

/// `crypto.sha256`: the digest of a text in hexadecimal.
pub(super) fn sha256(args: &[Value]) -> Result<Value, Fault> {
    let digest = ring::digest::digest(&ring::digest::SHA256, text(args, 0)?.as_bytes());
    Ok(hex(digest.as_ref()))
}

/// `net.cidr_contains(cidr, cidr_or_address)`.
pub(super) fn cidr_contains(args: &[Value]) -> Result<Value, Fault> {
    let (net, inner) = (cidr(text(args, 0)?)?, net_or_address(text(args, 1)?)?);
    Ok(Value::Bool(net.contains(&inner)))
}

/// `net.cidr_intersects(cidr, cidr)`.
pub(super) fn cidr_intersects(args: &[Value]) -> Result<Value, Fault> {
    let (a, b) = (cidr(text(args, 0)?)?, cidr(text(args, 1)?)?);
    Ok(Value::Bool(a.contains(&b) || b.contains(&a)))
}

/// `net.cidr_is_valid(value)`.
pub(super) fn cidr_is_valid(args: &[Value]) -> Value {
    Value::Bool(text(args, 0).and_then(cidr).is_ok())
}

fn cidr(text: &str) -> Result<IpNet, Fault> {
    text.parse().map_err(|_no_net| Fault::Failed)
}

fn net_or_address(text: &str) -> Result<IpNet, Fault> {
    cidr(text)
        .or_else(|_| text.parse::<IpAddr>().map(IpNet::from).map_err(|_no_address| Fault::Failed))
}

/// `json.is_valid`.
pub(super) fn json_is_valid(args: &[Value]) -> Result<Value, Fault> {
    // What is no text is no JSON.
    let text = text(args, 0).unwrap_or_default();
    if text.len() > MAX_INPUT_BYTES {
        return Err(Fault::TooLarge);
    }
    Ok(Value::Bool(serde_json::from_str::<serde_json::Value>(text).is_ok()))
}

/// `json.unmarshal`, within the limits of an input document. regorus' own would write out numbers
/// such as `1e9999999`.
pub(super) fn json_unmarshal(args: &[Value]) -> Result<Value, Fault> {
    let text = text(args, 0)?;
    if text.len() > MAX_INPUT_BYTES {
        return Err(Fault::TooLarge);
    }
    let json: serde_json::Value = serde_json::from_str(text).map_err(|_syntax| Fault::Failed)?;
    Budget::new().json(&json).map_err(|_too_large| Fault::TooLarge)
}

/// `to_number`, for texts of numbers that fit.
pub(super) fn to_number(args: &[Value]) -> Result<Value, Fault> {
    match args {
        [Value::Null | Value::Bool(false)] => Ok(Value::from(0_u64)),
        [Value::Bool(true)] => Ok(Value::from(1_u64)),
        [number @ Value::Number(_)] => Ok(number.clone()),
        [Value::String(text)] if text.len() <= MAX_NUMBER_TEXT => {
            let number: serde_json::Number =
                serde_json::from_str(text).map_err(|_no_number| Fault::Failed)?;
            let json = serde_json::Value::Number(number);
            Budget::new().json(&json).map_err(|_too_large| Fault::TooLarge)
        }
        _ => Err(Fault::Failed),
    }
}

/// What stands for a builtin that compiled code reads as a value instead.
pub(super) fn never() -> Result<Value, Fault> {
    Err(Fault::Failed)
}

fn text(args: &[Value], at: usize) -> Result<&str, Fault> {
    match args.get(at) {
        Some(Value::String(text)) => Ok(text),
        _ => Err(Fault::Failed),
    }
}
