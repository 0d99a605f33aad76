//! The operators that compiled code calls instead of the virtual machine's own.

use std::collections::BTreeMap;

use regorus::Value;

use super::Fault;
use super::meter::{charge, charge_all, charge_comparison, charge_search};

/// The most bits of a whole number that arithmetic takes: products double them at each step.
const MAX_NUMBER_BITS: u64 = 4096;

pub(super) fn add(args: &[Value]) -> Result<Value, Fault> {
    match args {
        [Value::Number(a), Value::Number(b)] => {
            check_size(args)?;
            a.add(b).map(Value::from).map_err(|_overflow| Fault::TooLarge)
        }
        _ => Err(Fault::Failed),
    }
}

/// Subtraction of numbers, and difference of sets.
pub(super) fn sub(args: &[Value]) -> Result<Value, Fault> {
    match args {
        [Value::Number(a), Value::Number(b)] => {
            check_size(args)?;
            a.sub(b).map(Value::from).map_err(|_overflow| Fault::TooLarge)
        }
        [Value::Set(a), Value::Set(b)] => {
            charge_all(args)?;
            Ok(a.difference(b).into_value())
        }
        _ => Err(Fault::Failed),
    }
}

pub(super) fn mul(args: &[Value]) -> Result<Value, Fault> {
    match args {
        [Value::Number(a), Value::Number(b)] => {
            check_size(args)?;
            a.mul(b).map(Value::from).map_err(|_overflow| Fault::TooLarge)
        }
        _ => Err(Fault::Failed),
    }
}

pub(super) fn div(args: &[Value]) -> Result<Value, Fault> {
    match args {
        [Value::Number(a), divisor @ Value::Number(b)] if !is_zero(divisor) => {
            check_size(args)?;
            a.clone().divide(b).map(Value::from).map_err(|_overflow| Fault::TooLarge)
        }
        _ => Err(Fault::Failed),
    }
}

pub(super) fn modulo(args: &[Value]) -> Result<Value, Fault> {
    match args {
        [Value::Number(a), divisor @ Value::Number(b)]
            if !is_zero(divisor) && a.is_integer() && b.is_integer() =>
        {
            check_size(args)?;
            a.clone().modulo(b).map(Value::from).map_err(|_overflow| Fault::TooLarge)
        }
        _ => Err(Fault::Failed),
    }
}

fn is_zero(value: &Value) -> bool {
    *value == Value::from(0_u64)
}

/// What calculating with a number costs that needs more than 128 bits.
const BIG: usize = 128;

/// Whether all numbers are small enough to calculate with; what the large ones cost is charged.
pub(super) fn check_size(numbers: &[Value]) -> Result<(), Fault> {
    let big = |value: &&Value| matches!(value, Value::Number(n) if n.as_i128().is_none());
    if numbers.iter().any(|value| big(&value)) {
        charge(BIG)?;
    }
    let small = numbers.iter().filter_map(|value| value.as_number().ok()).all(|number| {
        number.as_i128().is_some()
            || !number.is_integer()
            || number.as_big().is_none_or(|big| big.bits() <= MAX_NUMBER_BITS)
    });
    if small { Ok(()) } else { Err(Fault::TooLarge) }
}

/// The one value in an array of sets; undefined when there is none.
///
/// The sets hold what the definitions of a complete rule or function gave ([SEC-REGO-7]).
pub(super) fn agree(args: &[Value]) -> Result<Value, Fault> {
    let [Value::Array(sets)] = args else { return Err(Fault::Failed) };
    let mut agreed = &Value::Undefined;
    for set in sets.iter() {
        let Value::Set(set) = set else { return Err(Fault::Failed) };
        for value in set.iter() {
            charge_comparison(agreed, value)?;
            if *agreed != Value::Undefined && agreed != value {
                return Err(Fault::Conflict);
            }
            agreed = value;
        }
    }
    Ok(agreed.clone())
}

/// Whether a set has an element.
pub(super) fn not_empty(args: &[Value]) -> Result<Value, Fault> {
    match args {
        [Value::Set(set)] => Ok(Value::Bool(!set.is_empty())),
        _ => Err(Fault::Failed),
    }
}

/// Whether a collection has an element, an object a value. The caller has paid for the search.
pub(super) fn contains(args: &[Value]) -> Result<Value, Fault> {
    let [collection, value] = args else { return Err(Fault::Failed) };
    Ok(Value::Bool(match collection {
        Value::Set(set) => set.contains(value),
        Value::Array(array) => array.contains(value),
        Value::Object(object) => object.values().any(|one| one == value),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Undefined => {
            false
        }
    }))
}

/// A package's object without its undefined rules.
pub(super) fn defined(args: &[Value]) -> Result<Value, Fault> {
    let [value] = args else { return Err(Fault::Failed) };
    charge_all(args)?;
    Ok(if has_undefined(value, PACKAGES) {
        without_undefined(value, PACKAGES)
    } else {
        value.clone()
    })
}

/// How deep packages nest at most that somebody has written.
const PACKAGES: usize = 32;

fn has_undefined(value: &Value, depth: usize) -> bool {
    let (Value::Object(members), Some(depth)) = (value, depth.checked_sub(1)) else { return false };
    members.values().any(|member| *member == Value::Undefined || has_undefined(member, depth))
}

fn without_undefined(value: &Value, depth: usize) -> Value {
    let (Value::Object(members), Some(depth)) = (value, depth.checked_sub(1)) else {
        return value.clone();
    };
    let defined = members.iter().filter(|(_, member)| **member != Value::Undefined);
    let defined = defined.map(|(name, member)| (name.clone(), without_undefined(member, depth)));
    Value::from(defined.collect::<BTreeMap<_, _>>())
}

/// Refuses a second value for the key of an object ([SEC-REGO-7]).
pub(super) fn unique(args: &[Value]) -> Result<Value, Fault> {
    let [Value::Object(object), key, value] = args else { return Err(Fault::Failed) };
    charge_all(std::slice::from_ref(key))?;
    let Some(earlier) = object.get(key) else { return Ok(Value::Bool(true)) };
    charge_comparison(earlier, value)?;
    if earlier == value { Ok(Value::Bool(true)) } else { Err(Fault::Conflict) }
}

/// Charges for values that become part of others, or keys.
pub(super) fn weigh(args: &[Value]) -> Result<Value, Fault> {
    charge_all(args).map(|()| Value::Null)
}

/// Charges for a comparison.
pub(super) fn weigh_comparison(args: &[Value]) -> Result<Value, Fault> {
    let [a, b] = args else { return Err(Fault::Failed) };
    charge_comparison(a, b).map(|()| Value::Null)
}

/// Charges for looking into a collection.
pub(super) fn weigh_search(args: &[Value]) -> Result<Value, Fault> {
    let [collection, value] = args else { return Err(Fault::Failed) };
    charge_search(collection, value).map(|()| Value::Null)
}

/// The time of the evaluation, which fails where it is not known.
pub(super) fn now(args: &[Value]) -> Result<Value, Fault> {
    match args {
        [now @ Value::Number(_)] => Ok(now.clone()),
        _ => Err(Fault::Failed),
    }
}
