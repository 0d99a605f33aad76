//! Builtins of OPA that regorus lacks, or does without limits.

use std::net::IpAddr;

use ipnet::IpNet;
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

/// `net.cidr_contains_matches(cidrs, cidrs_or_addresses)`: the pairs of keys of which the first's
/// net contains the second.
pub(super) fn cidr_contains_matches(args: &[Value]) -> Result<Value, Fault> {
    let (Some(nets), Some(inner)) = (args.first(), args.get(1)) else { return Err(Fault::Failed) };
    let (nets, inner) = (cidr_list(nets, cidr)?, cidr_list(inner, net_or_address)?);
    if nets.len().saturating_mul(inner.len()) > MAX_PAIRS {
        return Err(Fault::TooLarge);
    }
    charge(nets.len().saturating_mul(inner.len()))?;
    let mut pairs = std::collections::BTreeSet::new();
    for (key, net) in &nets {
        for (other, inner) in &inner {
            if net.contains(inner) {
                pairs.insert(Value::from(vec![key.clone(), other.clone()]));
            }
        }
    }
    Ok(Value::from(pairs))
}

/// The most pairs that are compared.
const MAX_PAIRS: usize = 1 << 18;

/// Nets with the key each has in OPA's result: the text itself, an index, an element or a key.
#[expect(clippy::wildcard_enum_match_arm, reason = "whatever else there is, is no list of nets")]
fn cidr_list(
    value: &Value,
    read: impl Fn(&str) -> Result<IpNet, Fault>,
) -> Result<Vec<(Value, IpNet)>, Fault> {
    // An element may be a tuple that begins with the text.
    let net = |value: &Value| match value {
        Value::String(text) => read(text),
        Value::Array(tuple) => match tuple.first() {
            Some(Value::String(text)) => read(text),
            _ => Err(Fault::Failed),
        },
        _ => Err(Fault::Failed),
    };
    match value {
        Value::String(_) => Ok(vec![(value.clone(), net(value)?)]),
        Value::Array(items) => {
            let keyed = items.iter().enumerate();
            keyed.map(|(at, item)| Ok((Value::from(at), net(item)?))).collect()
        }
        Value::Set(items) => items.iter().map(|item| Ok((item.clone(), net(item)?))).collect(),
        Value::Object(entries) => {
            entries.iter().map(|(key, item)| Ok((key.clone(), net(item)?))).collect()
        }
        _ => Err(Fault::Failed),
    }
}

/// `net.cidr_merge(cidrs_or_addresses)`: the fewest nets that cover the same addresses.
pub(super) fn cidr_merge(args: &[Value]) -> Result<Value, Fault> {
    let nets = match args.first() {
        Some(list @ (Value::Array(_) | Value::Set(_))) => cidr_list(list, net_or_address)?,
        _ => return Err(Fault::Failed),
    };
    if nets.len() > MAX_MERGED {
        return Err(Fault::TooLarge);
    }
    charge(nets.len().saturating_mul(8))?;
    let nets: Vec<IpNet> = nets.into_iter().map(|(_, net)| net.trunc()).collect();
    let merged = IpNet::aggregate(&nets).into_iter().map(|net| Value::from(net.to_string()));
    Ok(Value::from(merged.collect::<std::collections::BTreeSet<_>>()))
}

/// The most nets that are merged.
const MAX_MERGED: usize = 4096;

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

pub(super) fn text(args: &[Value], at: usize) -> Result<&str, Fault> {
    match args.get(at) {
        Some(Value::String(text)) => Ok(text),
        _ => Err(Fault::Failed),
    }
}
