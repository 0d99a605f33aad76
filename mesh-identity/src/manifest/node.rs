//! A manifest's text as a tree in which every value knows its line and column.
//!
//! The tree keeps what Kubernetes would decide on: a quoted `"80"` is text, a bare `80` is a
//! number, and neither becomes the other.

use std::fmt;

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

/// What a [`Node`] holds. Map entries keep their order; a name occurs once.
#[derive(Clone, Debug)]
pub(super) enum Value {
    Null,
    Bool(bool),
    /// A number: no field of a policy is one, so its value is not kept.
    Number,
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
            Self::Number => "a number",
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
