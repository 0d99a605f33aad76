//! What an evaluation may spend on work that instructions do not count ([SEC-REGO-4]).
//!
//! One instruction may compare two values or call a builtin, and take ten nanoseconds or a second
//! for it. So each such instruction is charged for what it may cost, in units of about one plain
//! instruction (30 ns), against a budget as large as that of instructions. Texts cost a unit for
//! eight bytes, so the same budget bounds the memory that an evaluation takes.
//!
//! The virtual machine calls builtins through plain function pointers, so the budget lies with the
//! thread, and only while an evaluation runs on it. Outside there is none: everything fails.

use std::cell::Cell;

use regorus::Value;

use super::Fault;
use super::cost::elements;

thread_local! {
    static LEFT: Cell<usize> = const { Cell::new(0) };
}

/// The bytes of a text that cost one unit.
const BYTES_PER_UNIT: usize = 8;

/// Runs an evaluation that may spend so many units.
pub(in crate::rego) fn metered<T>(units: usize, evaluate: impl FnOnce() -> T) -> T {
    LEFT.set(units);
    let result = evaluate();
    LEFT.set(0);
    result
}

/// Spends units.
pub(super) fn charge(units: usize) -> Result<(), Fault> {
    let left = LEFT.get().checked_sub(units);
    LEFT.set(left.unwrap_or(0));
    left.map(drop).ok_or(Fault::TooLarge)
}

/// What cannot be spent any more.
fn too_much() -> usize {
    LEFT.get().saturating_add(1)
}

/// What so many bytes of text cost.
pub(super) const fn text_units(bytes: usize) -> usize {
    bytes / BYTES_PER_UNIT
}

/// Spends what it costs to walk through all of the values.
pub(super) fn charge_all(values: &[Value]) -> Result<(), Fault> {
    charge(values.iter().fold(0, |sum: usize, value| sum.saturating_add(weight(value, too_much()))))
}

/// Spends what a comparison costs at most: the lighter of the two values.
pub(super) fn charge_comparison(a: &Value, b: &Value) -> Result<(), Fault> {
    charge(lighter(a, b))
}

/// Spends what it costs to look for a value among the elements of a collection.
pub(super) fn charge_search(collection: &Value, value: &Value) -> Result<(), Fault> {
    let elements = match collection {
        Value::Array(array) => array.len(),
        Value::Object(object) => object.len(),
        // A set is searched by comparing with a few elements.
        Value::Set(_) => return charge(weight(value, too_much()).saturating_mul(8)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Undefined => {
            return Ok(());
        }
    };
    let of_each = elements.saturating_mul(weight(value, too_much()));
    charge((elements / 4).saturating_add(if is_plain(value) { 0 } else { of_each }))
}

/// Whether nothing is in it.
const fn is_plain(value: &Value) -> bool {
    !matches!(value, Value::Array(_) | Value::Set(_) | Value::Object(_))
}

/// The weight of the lighter value, at about its own cost however heavy the other is.
fn lighter(a: &Value, b: &Value) -> usize {
    if is_plain(a) || is_plain(b) {
        return match (a, b) {
            (Value::String(a), Value::String(b)) if a.len() == b.len() => text_units(a.len()),
            _ => 0,
        };
    }
    let mut most = 64_usize;
    loop {
        let weight = weight(a, most).min(weight(b, most));
        if weight < most || most > LEFT.get() {
            return weight;
        }
        most = most.saturating_mul(4);
    }
}

/// A unit for each value within, wherever it appears, and what texts cost; `most` when it is more.
fn weight(value: &Value, most: usize) -> usize {
    let text = |value: &Value| if let Value::String(text) = value { text.len() } else { 0 };
    if is_plain(value) {
        return text_units(text(value)).saturating_add(1).min(most);
    }
    let mut weight = 0_usize;
    let mut pending = vec![value];
    while let Some(value) = pending.pop() {
        weight = weight.saturating_add(text_units(text(value))).saturating_add(1);
        if weight.saturating_add(pending.len()).saturating_add(elements(value)) >= most {
            return most;
        }
        match value {
            Value::Array(array) => pending.extend(array.iter()),
            Value::Set(set) => pending.extend(set.iter()),
            Value::Object(object) => {
                pending.extend(object.iter().flat_map(|(key, value)| [key, value]));
            }
            Value::Null
            | Value::Bool(_)
            | Value::Number(_)
            | Value::String(_)
            | Value::Undefined => {}
        }
    }
    weight.min(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sec_rego_4_shared_values_weigh_what_they_look_like() {
        let mut doubled = Value::from(vec![Value::Null]);
        for _ in 0..60 {
            doubled = Value::from(vec![doubled.clone(), doubled]);
        }
        metered(1_000_000, || {
            assert_eq!(charge_all(&[doubled.clone()]), Err(Fault::TooLarge));
            assert_eq!(charge(1), Err(Fault::TooLarge), "what is overspent stays so");
        });
        let small = Value::from(vec![Value::Null; 4]);
        metered(100, || {
            charge_comparison(&small, &doubled).unwrap();
            assert_eq!(LEFT.get(), 95);
            charge_comparison(&Value::Null, &doubled).unwrap();
            assert_eq!(charge_comparison(&doubled, &doubled), Err(Fault::TooLarge));
        });
        assert_eq!(charge(1), Err(Fault::TooLarge), "no budget outside of an evaluation");
    }
}
