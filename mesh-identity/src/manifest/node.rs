//! A manifest's text as a tree in which every value knows its line and column.
//!
//! The tree keeps what Kubernetes would decide on: a quoted `"80"` is text, a bare `80` is a
//! number, and neither becomes the other.

use std::fmt;

use serde_json::Value as Json;

/// Where a value begins in its file.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[non_exhaustive]
pub struct Place {
    /// Line, counted from 1.
    pub line: usize,
    /// Column in characters, counted from 1.
    pub column: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}", self.line, self.column)
    }
}

/// One value of a manifest, with its place.
#[derive(Clone, Debug)]
pub struct Node {
    pub(super) place: Place,
    pub(super) value: Value,
}

impl Node {
    /// The value without its places. What JSON has no number for, such as `0x10`, becomes text.
    #[must_use]
    pub fn to_json(&self) -> Json {
        match &self.value {
            Value::Null => Json::Null,
            Value::Bool(value) => Json::Bool(*value),
            Value::Number(text) => serde_json::from_str(text)
                .map_or_else(|_none| Json::from(text.as_str()), Json::Number),
            Value::Text(text) => Json::from(text.as_str()),
            Value::List(items) => items.iter().map(Self::to_json).collect(),
            Value::Map(entries) => entries
                .iter()
                .map(|entry| (entry.name.clone(), entry.value.to_json()))
                .collect::<serde_json::Map<_, _>>()
                .into(),
        }
    }

    /// Where the value at a path such as `spec.rules[0].to` stands, or as much of the path as there
    /// is.
    #[must_use]
    pub fn place_of(&self, path: &str) -> Place {
        let mut at = self;
        let mut place = self.place;
        for part in path.split(['.', '[']).map(|part| part.trim_end_matches(']')) {
            let next = match &at.value {
                Value::Map(entries) => entries
                    .iter()
                    .find(|entry| entry.name == part)
                    .map(|entry| (entry.place, &entry.value)),
                Value::List(items) => {
                    let item = part.parse().ok().and_then(|at: usize| items.get(at));
                    item.map(|item| (item.place, item))
                }
                Value::Null | Value::Bool(_) | Value::Number(_) | Value::Text(_) => None,
            };
            let Some((found, node)) = next else { return place };
            (place, at) = (found, node);
        }
        place
    }

    /// The value at a name of a map.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Self> {
        let Value::Map(entries) = &self.value else { return None };
        entries.iter().find(|entry| entry.name == name).map(|entry| &entry.value)
    }

    /// Where the value begins.
    #[must_use]
    pub fn place(&self) -> Place {
        self.place
    }

    /// The value, if it is text.
    #[must_use]
    pub fn as_text(&self) -> Option<&str> {
        if let Value::Text(text) = &self.value { Some(text) } else { None }
    }
}

/// What a [`Node`] holds. Map entries keep their order; a name occurs once.
#[derive(Clone, Debug)]
pub(super) enum Value {
    Null,
    Bool(bool),
    /// A number, as it is written.
    Number(String),
    Text(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// One name and value of a map.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) place: Place,
    pub(super) value: Node,
}

impl Value {
    /// How a person would call this kind of value.
    pub(super) fn describe(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Bool(_) => "a boolean",
            Self::Number(_) => "a number",
            Self::Text(_) => "text",
            Self::List(_) => "a list",
            Self::Map(_) => "a map",
        }
    }
}

/// Why a text is not a manifest at all.
#[derive(Debug)]
pub(super) struct SyntaxError {
    pub(super) place: Option<Place>,
    pub(super) message: String,
}

/// Deepest nesting of lists and maps. Istio's resources need nine levels.
pub(super) const MAX_DEPTH: usize = 64;

/// Most values in one file, aliases expanded: an alias bomb ends here.
pub(super) const MAX_NODES: usize = 1_000_000;
