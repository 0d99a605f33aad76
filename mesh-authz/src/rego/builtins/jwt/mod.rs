//! OPA's `io.jwt.*`: decoding, and verification with ring.
//!
//! The algorithm is the one that the function, or the token's header within the constraints, names,
//! and a key of another kind never fits it. What OPA fails for fails here, and what it says no to
//! is a no: `tests/rego_conformance.rs` compares them.

mod constraints;
mod key;
mod key_set;
mod token;

use regorus::Value;

use self::constraints::Constraints;
pub(super) use self::key::Algorithm;
pub(in crate::rego) use self::key::Key;
use self::key_set::SetKey;
pub(in crate::rego) use self::key_set::keys;
use self::token::{Parts, object, value};
use super::Fault;
use super::meter::charge;
use super::supplied::{hex, text};

/// How deep tokens may nest (`cty: JWT`).
const MAX_NESTED: usize = 4;

/// Verifies a compact token's signature with one of OPA's keys; the algorithm is given, never the
/// token's choice.
#[cfg(feature = "bundles")]
pub(in crate::rego) fn verify_compact(token: &str, algorithm: &str, keys: &[Key]) -> bool {
    let parts = Parts::of(token).ok().zip(Algorithm::of(algorithm));
    parts.is_some_and(|(parts, algorithm)| {
        parts.signature().is_ok_and(|signature| {
            keys.iter().any(|key| key.verifies(algorithm, parts.message.as_bytes(), &signature))
        })
    })
}

/// `io.jwt.decode`: header, payload and signature (in hexadecimal) of a token, the innermost one
/// where tokens nest.
///
/// It verifies nothing: whoever sends a request writes what it returns. Claims that are verified
/// are in the input document.
pub(super) fn decode(args: &[Value]) -> Result<Value, Fault> {
    let mut token = text(args, 0)?.to_owned();
    for _ in 0..MAX_NESTED {
        let parts = Parts::of(&token)?;
        let header = parts.header()?;
        let payload = parts.payload()?;
        if header.text("cty")? == "JWT" {
            let nested = String::from_utf8(payload).map_err(|_no_text| Fault::Failed)?;
            nested.trim_matches(['"', '\'']).clone_into(&mut token);
            continue;
        }
        let claims = value(&object(&payload)?)?;
        return Ok(Value::from(vec![header.value()?, claims, hex(&parts.signature()?)]));
    }
    Err(Fault::TooLarge)
}

/// `io.jwt.verify_hs…(token, secret)`.
pub(super) fn verify_secret(algorithm: Algorithm, args: &[Value]) -> Result<Value, Fault> {
    let parts = Parts::of(text(args, 0)?)?;
    let key = Key::Secret(text(args, 1)?.as_bytes().to_vec());
    let valid = key.verifies(algorithm, parts.message.as_bytes(), &parts.signature()?);
    Ok(Value::Bool(valid))
}

/// `io.jwt.verify_rs…(token, certificate)` and its like. The header chooses a key of the set, and
/// passes over those that are for another algorithm than it says.
pub(super) fn verify(algorithm: Algorithm, args: &[Value]) -> Result<Value, Fault> {
    let parts = Parts::of(text(args, 0)?)?;
    let keys = keys(text(args, 1)?)?;
    let (signature, header) = (parts.signature()?, parts.header()?);
    header.check()?;
    let chosen = (header.text("kid")?, header.text("alg")?);
    any_verifies(&keys, chosen, algorithm, &parts, &signature).map(Value::Bool)
}

/// Whether the key that the token names, or else one that is for the token's algorithm, verifies.
fn any_verifies(
    keys: &[SetKey],
    (id, named): (&str, &str),
    algorithm: Algorithm,
    parts: &Parts<'_>,
    signature: &[u8],
) -> Result<bool, Fault> {
    let chosen = keys.iter().find(|key| !id.is_empty() && key.id.as_deref() == Some(id));
    let is_for = |key: &&SetKey| key.algorithm.as_deref().is_none_or(|only| only == named);
    let tried: Vec<&SetKey> = match chosen {
        Some(key) => vec![key],
        None => keys.iter().filter(is_for).collect(),
    };
    for SetKey { key, .. } in tried {
        charge(key.units())?;
        if key.verifies(algorithm, parts.message.as_bytes(), signature) {
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
        header.check()?;
        let named = header.text("alg")?;
        let wanted = &constraints.algorithm;
        if named.is_empty() || header.is_critical() || !(wanted.is_empty() || wanted == named) {
            return Ok(unverified());
        }
        let signature = parts.signature()?;
        let Some(algorithm) = Algorithm::of(named) else { return Ok(unverified()) };
        let chosen = (header.text("kid")?, named);
        if !any_verifies(&constraints.keys, chosen, algorithm, &parts, &signature)? {
            return Ok(unverified());
        }
        let payload = parts.payload()?;
        if header.text("cty")?.eq_ignore_ascii_case("JWT") {
            token = String::from_utf8(payload).map_err(|_no_text| Fault::Failed)?;
            continue;
        }
        let claims = object(&payload)?;
        if !constraints.admit(&claims)? {
            return Ok(unverified());
        }
        return Ok(Value::from(vec![Value::Bool(true), header.value()?, value(&claims)?]));
    }
    Err(Fault::TooLarge)
}

fn unverified() -> Value {
    Value::from(vec![Value::Bool(false), Value::new_object(), Value::new_object()])
}
