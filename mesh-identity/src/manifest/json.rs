//! JSON text to [`Node`]s, on serde_json.
//!
//! Places come from where a raw value lies inside the text; names that occur twice are refused,
//! which serde_json's own map would not do.

use std::collections::HashSet;
use std::fmt;

use serde::de::{Deserializer as _, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::node::{Entry, MAX_DEPTH, MAX_NODES, Node, Place, SyntaxError, Value};

/// Reads one JSON value, which must be all there is.
pub(super) fn parse(text: &str) -> Result<Node, SyntaxError> {
    let raw: &RawValue = serde_json::from_str(text).map_err(|error| SyntaxError {
        place: Some(Place { line: error.line(), column: error.column() }),
        message: format!("not valid JSON: {}", without_place(&error)),
    })?;
    Reader { text, lines: line_starts(text), nodes: 0 }.node(raw, 0)
}

/// serde_json appends the place to its message; ours names it in front.
fn without_place(error: &serde_json::Error) -> String {
    let message = error.to_string();
    message.split_once(" at line ").map_or(message.clone(), |(head, _)| head.to_owned())
}

struct Reader<'a> {
    text: &'a str,
    /// Byte offset at which each line begins.
    lines: Vec<usize>,
    nodes: usize,
}

impl Reader<'_> {
    fn node(&mut self, raw: &RawValue, depth: usize) -> Result<Node, SyntaxError> {
        let place = self.place_of(raw.get());
        let fail = |message: String| SyntaxError { place: Some(place), message };
        self.nodes = self.nodes.saturating_add(1);
        if self.nodes > MAX_NODES {
            return Err(fail(format!("more than {MAX_NODES} values")));
        }
        if depth > MAX_DEPTH {
            return Err(fail(format!("nested deeper than {MAX_DEPTH} levels")));
        }
        let deeper = depth.saturating_add(1);
        let body = raw.get();
        let value = match body.bytes().next() {
            Some(b'{') => {
                let mut entries = Vec::new();
                let mut names = HashSet::new();
                for (name, value) in read_map(body).map_err(|error| fail(error.to_string()))? {
                    let value = self.node(value, deeper)?;
                    if !names.insert(name.clone()) {
                        let name: String = name.chars().take(64).collect();
                        return Err(SyntaxError {
                            place: Some(value.place),
                            message: format!("duplicate field {name:?}"),
                        });
                    }
                    entries.push(Entry { name, place: value.place, value });
                }
                Value::Map(entries)
            }
            Some(b'[') => {
                let items = read_list(body).map_err(|error| fail(error.to_string()))?;
                let items: Result<Vec<Node>, _> =
                    items.into_iter().map(|item| self.node(item, deeper)).collect();
                Value::List(items?)
            }
            Some(b'"') => {
                Value::Text(serde_json::from_str(body).map_err(|error| fail(error.to_string()))?)
            }
            Some(b't') => Value::Bool(true),
            Some(b'f') => Value::Bool(false),
            Some(b'n') | None => Value::Null,
            Some(_) => Value::Number(body.to_owned()),
        };
        Ok(Node { place, value })
    }

    /// Line and column (in bytes) of a part of the text, found by its address.
    fn place_of(&self, part: &str) -> Place {
        let offset = part.as_ptr().addr().saturating_sub(self.text.as_ptr().addr());
        let line = self.lines.partition_point(|&start| start <= offset);
        let start = self.lines.get(line.saturating_sub(1)).copied().unwrap_or_default();
        Place { line, column: offset.saturating_sub(start).saturating_add(1) }
    }
}

fn line_starts(text: &str) -> Vec<usize> {
    let after_breaks = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
    std::iter::once(0).chain(after_breaks.map(|(at, _)| at.saturating_add(1))).collect()
}

fn read_map(body: &str) -> Result<Vec<(String, &RawValue)>, serde_json::Error> {
    struct Entries;
    impl<'de> Visitor<'de> for Entries {
        type Value = Vec<(String, &'de RawValue)>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut entries = Vec::new();
            while let Some(entry) = map.next_entry()? {
                entries.push(entry);
            }
            Ok(entries)
        }
    }
    serde_json::Deserializer::from_str(body).deserialize_map(Entries)
}

fn read_list(body: &str) -> Result<Vec<&RawValue>, serde_json::Error> {
    struct Items;
    impl<'de> Visitor<'de> for Items {
        type Value = Vec<&'de RawValue>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an array")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
            let mut items = Vec::new();
            while let Some(item) = list.next_element()? {
                items.push(item);
            }
            Ok(items)
        }
    }
    serde_json::Deserializer::from_str(body).deserialize_seq(Items)
}
