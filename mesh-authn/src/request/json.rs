//! Strict JSON: one object, every name once, depth bounded, nothing behind it.
//!
//! serde_json's own map keeps the last of two equal names; a verifier and an application that keep
//! different ones would see different tokens ([SEC-JWT-3]), so both are refused here.

use std::cell::{Cell, RefCell};
use std::fmt;

use serde::Deserialize as _;
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Deepest nesting, the outermost object counted: what Envoy allows ([SEM-JWT-18]). Recursion
/// ends here, so no payload exhausts the stack ([SEM-ADV-66]).
pub(super) const ENVOY_DEPTH: usize = 100;

/// Deepest nesting that a token or a key set has use for ([SEC-JWT-3], [SEC-JWT-13]).
pub(super) const DEPTH: usize = 64;

/// An object, and the memory that it keeps.
pub(super) struct Object {
    pub(super) members: Map<String, Value>,
    /// Bytes on the heap, by an estimate that errs high.
    pub(super) memory: usize,
}

/// Why a text is not read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Unread {
    /// Not one object, or a name occurs twice in it.
    NotAnObject,
    /// Nested deeper than asked for. What comes after the place has not been looked at.
    TooDeep,
}

/// Reads a text that is exactly one JSON object of so many levels, or `null`, which is an object
/// without members to Envoy.
pub(super) fn parse_object(text: &[u8], depth: usize) -> Result<Object, Unread> {
    // Once for all strings in it.
    let Ok(text) = std::str::from_utf8(text) else { return Err(Unread::NotAnObject) };
    let mut json = serde_json::Deserializer::from_str(text);
    let work = Work::new();
    let read = Strict { depth, work: &work }.deserialize(&mut json);
    let read = read.and_then(|value| json.end().map(|()| value));
    let members = match read {
        Ok(Value::Object(object)) => object,
        Ok(Value::Null) => Map::new(),
        Err(_) if work.too_deep.get() => return Err(Unread::TooDeep),
        Ok(Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_)) | Err(_) => {
            return Err(Unread::NotAnObject);
        }
    };
    Ok(Object { members, memory: work.memory.get() })
}

/// What an allocation of so many bytes takes from a common allocator.
pub(super) fn allocated(bytes: usize) -> usize {
    if bytes == 0 {
        return 0;
    }
    // Words of its own, sixteen bytes at a time, and at least two sixteens.
    bytes.saturating_add(31) & !15
}

/// A leaf of the tree in a map: eleven names and values, a parent and two counts.
const LEAF: usize = 11 * (size_of::<String>() + size_of::<Value>()) + 16;

/// The children of a node that is no leaf.
const CHILDREN: usize = 12 * size_of::<usize>();

/// What a map of so many members keeps beside the names' and the values' own memory. A node but
/// the root is at least five elevenths full.
fn map_memory(members: usize) -> usize {
    if members == 0 {
        return 0;
    }
    let leaves = if members <= 11 { 1 } else { members.div_ceil(6) };
    let inner = if leaves == 1 { 0 } else { leaves.div_ceil(6) };
    let leaves = leaves.saturating_mul(allocated(LEAF));
    leaves.saturating_add(inner.saturating_mul(allocated(LEAF.saturating_add(CHILDREN))))
}

/// Items of lists for which there is room from the beginning: a kibibyte, beyond which allocators are
/// slow.
const ITEMS: usize = 31;

/// What is shared by all values of a text while it is read.
struct Work {
    /// Items of lists that are not complete: a list gets memory when its length is known.
    items: RefCell<Vec<Value>>,
    memory: Cell<usize>,
    too_deep: Cell<bool>,
}

impl Work {
    fn new() -> Self {
        let items = RefCell::new(Vec::with_capacity(ITEMS));
        Self { items, memory: Cell::new(0), too_deep: Cell::new(false) }
    }

    fn add(&self, bytes: usize) {
        self.memory.set(self.memory.get().saturating_add(bytes));
    }
}

/// Reads a value that may nest `depth` levels deep.
#[derive(Clone, Copy)]
struct Strict<'w> {
    depth: usize,
    work: &'w Work,
}

impl Strict<'_> {
    fn deeper<E: serde::de::Error>(self) -> Result<Self, E> {
        let Some(depth) = self.depth.checked_sub(1) else {
            self.work.too_deep.set(true);
            return Err(E::custom("nested too deep"));
        };
        Ok(Self { depth, ..self })
    }
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("not finite"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        self.work.add(allocated(value.len()));
        Ok(Value::String(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let deeper = self.deeper()?;
        let Work { items, .. } = self.work;
        let start = items.borrow().len();
        while let Some(item) = list.next_element_seed(deeper)? {
            items.borrow_mut().push(item);
        }
        let items: Vec<Value> = items.borrow_mut().drain(start..).collect();
        self.work.add(allocated(items.len().saturating_mul(size_of::<Value>())));
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let first = map.next_key_seed(NextName);
        if matches!(first, Ok(Some(Name::OfNumber))) {
            let number = map.next_value::<String>()?.parse().map_err(A::Error::custom)?;
            return self.visit_f64(number);
        }
        let deeper = self.deeper()?;
        let mut object = Map::new();
        let mut next = first?;
        while let Some(Name::Written(name)) = next {
            if name.starts_with(PRIVATE) {
                return Err(A::Error::custom("a name is serde_json's own"));
            }
            self.work.add(allocated(name.capacity()));
            let value = map.next_value_seed(deeper)?;
            if object.insert(name, value).is_some() {
                return Err(A::Error::custom("a name occurs twice"));
            }
            next = map.next_key_seed(NextName)?;
        }
        self.work.add(map_memory(object.len()));
        Ok(Value::Object(object))
    }
}

/// Names that begin so mean something else to `serde_json` wherever a text or a tree is read into a
/// type: a number, or a text to be read. No object has them, so that nobody sees another token.
const PRIVATE: &str = "$serde_json::private::";

/// The name of a member.
enum Name {
    /// What `serde_json` makes of a number that is no 64-bit integer, when some crate of the
    /// application turns its feature `arbitrary_precision` on: a map whose only value is the
    /// number's text.
    OfNumber,
    /// In the text.
    Written(String),
}

/// Asks for a name in a way that tells which it is: as one that may be missing. `serde_json` gives
/// the names of a text as something that is there, and its own one as a plain string. Should that
/// change, numbers are refused.
struct NextName;

impl<'de> DeserializeSeed<'de> for NextName {
    type Value = Name;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Name, D::Error> {
        deserializer.deserialize_option(self)
    }
}

impl<'de> Visitor<'de> for NextName {
    type Value = Name;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Name, D::Error> {
        String::deserialize(deserializer).map(Name::Written)
    }

    fn visit_str<E>(self, _number: &str) -> Result<Name, E> {
        Ok(Name::OfNumber)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sec_jwt_3_only_one_strict_object_is_read() {
        assert!(parse_object(br#" {"a": [1, {"b": null}]} "#, DEPTH).is_ok());
        let bad: [&[u8]; 12] = [
            b"",
            b"[]",
            b"1",
            b"{} {}",
            b"{}x",
            br#"{"a":1,"a":2}"#,
            br#"{"a":{"b":1,"b":1}}"#,
            br#"{"a":[{"b":1,"\u0062":1}]}"#,
            br#"{"a":1,}"#,
            br"{'a':1}",
            br#"{"a":1e999}"#,
            b"{\"a\":\"\xff\"}",
        ];
        for text in bad {
            let read = parse_object(text, DEPTH).err();
            assert_eq!(read, Some(Unread::NotAnObject), "{}", String::from_utf8_lossy(text));
        }
    }

    #[test]
    fn sec_jwt_3_names_that_serde_json_reads_as_something_else_are_refused() {
        for name in ["Number", "RawValue", "Other", ""] {
            for text in [
                format!(r#"{{"$serde_json::private::{name}":"1"}}"#),
                format!(r#"{{"a":{{"$serde_json::private::{name}":"{{}}"}}}}"#),
                format!(r#"{{"a":[{{"b":1,"\u0024serde_json::private::{name}":"1"}}]}}"#),
            ] {
                let read = parse_object(text.as_bytes(), DEPTH).err();
                assert_eq!(read, Some(Unread::NotAnObject), "{text}");
            }
        }
        assert!(
            parse_object(br#"{"$serde_json":1,"a":"$serde_json::private::Number"}"#, 1).is_ok()
        );
    }

    #[test]
    fn sec_jwt_3_numbers_are_numbers_whatever_features_serde_json_has() {
        // Also where nothing may nest any deeper.
        let text = br#"{"a":1.5,"b":-1e3,"c":18446744073709551616,"d":-0,"e":7}"#;
        let read = parse_object(text, 1).unwrap().members;
        let numbers = ["a", "b", "c", "d", "e"].map(|name| read[name].as_f64());
        assert_eq!(numbers, [1.5, -1000.0, 18_446_744_073_709_551_616.0, 0.0, 7.0].map(Some));
        assert!(parse_object(br#"{"a":-1e999}"#, 1).is_err());
    }

    #[test]
    fn sem_adv_66_deep_nesting_is_refused() {
        let nested =
            |depth: usize| format!("{{\"a\":{}1{}}}", "[".repeat(depth), "]".repeat(depth));
        for depth in [DEPTH, ENVOY_DEPTH] {
            let read = |levels| parse_object(nested(levels).as_bytes(), depth).err();
            assert_eq!(read(depth - 1), None);
            assert_eq!(read(depth), Some(Unread::TooDeep));
            assert_eq!(read(10_000), Some(Unread::TooDeep));
        }
    }
}
