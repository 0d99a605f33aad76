//! Builtins of OPA that regorus lacks, or does without limits.

use md5::{Digest as _, Md5};
use regorus::Value;

use super::Fault;
use super::meter::charge;
use crate::rego::input::MAX_INPUT_BYTES;
use crate::rego::parse::Budget;

/// The longest text that is read as a number.
const MAX_NUMBER_TEXT: usize = 64;

pub(super) fn hex(bytes: &[u8]) -> Value {
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    let digits = digits.filter_map(|digit| char::from_digit(u32::from(digit), 16));
    Value::from(digits.collect::<String>())
}

/// `crypto.sha256`: the digest of a text in hexadecimal.
pub(super) fn sha256(args: &[Value]) -> Result<Value, Fault> {
    let digest = ring::digest::digest(&ring::digest::SHA256, text(args, 0)?.as_bytes());
    Ok(hex(digest.as_ref()))
}

/// `crypto.sha1`: for what others have signed with it long ago.
pub(super) fn sha1(args: &[Value]) -> Result<Value, Fault> {
    let algorithm = &ring::digest::SHA1_FOR_LEGACY_USE_ONLY;
    Ok(hex(ring::digest::digest(algorithm, text(args, 0)?.as_bytes()).as_ref()))
}

/// `crypto.md5`: a checksum that proves nothing.
pub(super) fn md5(args: &[Value]) -> Result<Value, Fault> {
    Ok(hex(&Md5::digest(text(args, 0)?)))
}

/// `crypto.hmac.md5(text, key)`: the tag in hexadecimal (RFC 2104).
pub(super) fn hmac_md5(args: &[Value]) -> Result<Value, Fault> {
    let (message, key) = (text(args, 0)?, text(args, 1)?.as_bytes());
    let mut block = [0; 64];
    let hashed = Md5::digest(key);
    let key = if key.len() > block.len() { &hashed[..] } else { key };
    block.iter_mut().zip(key).for_each(|(byte, key)| *byte = *key);
    let inner = Md5::new().chain_update(block.map(|byte| byte ^ 0x36)).chain_update(message);
    let outer = Md5::new().chain_update(block.map(|byte| byte ^ 0x5C));
    Ok(hex(&outer.chain_update(inner.finalize()).finalize()))
}

/// `crypto.hmac.…(text, key)`: the tag in hexadecimal.
pub(super) fn hmac(algorithm: ring::hmac::Algorithm, args: &[Value]) -> Result<Value, Fault> {
    let key = ring::hmac::Key::new(algorithm, text(args, 1)?.as_bytes());
    Ok(hex(ring::hmac::sign(&key, text(args, 0)?.as_bytes()).as_ref()))
}

/// `crypto.hmac.equal`: compared without telling by the time where they differ.
pub(super) fn hmac_equal(args: &[Value]) -> Result<Value, Fault> {
    let (a, b) = (text(args, 0)?.as_bytes(), text(args, 1)?.as_bytes());
    let differs = a.iter().zip(b).fold(0_u8, |differs, (a, b)| differs | (a ^ b));
    Ok(Value::Bool(a.len() == b.len() && differs == 0))
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
    // Half of the bytes can be values, and each takes as long as a few instructions.
    charge(text.len())?;
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

pub(super) fn text(args: &[Value], at: usize) -> Result<&str, Fault> {
    match args.get(at) {
        Some(Value::String(text)) => Ok(text),
        _ => Err(Fault::Failed),
    }
}
