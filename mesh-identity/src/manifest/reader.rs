//! Typed access to a manifest's values: what a resource's parser reads with.
//!
//! A [`Reader`] stands at one value. Asking it for the wrong type records a [`Problem`] with the
//! place and goes on, so that one pass reports everything that is wrong. A [`Fields`] must be
//! finished: every field nobody took is a problem, because a lost restriction widens a policy.

use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;

use super::node::{Entry, Node, Place, Value};

/// One thing that is wrong with a manifest: what, where, and what to do.
///
/// Names of fields are shown, cut and escaped; values are not.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Problem {
    /// The file, or whatever the text was read from.
    pub source: Arc<str>,
    /// The document within the file, counted from 1.
    pub document: Option<usize>,
    /// Line and column.
    pub place: Option<Place>,
    /// The field, such as `spec.rules[0].to[1].operation.ports[0]`; empty for the document.
    pub path: String,
    /// What is wrong and what to do.
    pub message: String,
}

impl Problem {
    /// A problem of a text that is no manifest, such as a mesh configuration.
    #[must_use]
    pub fn new(
        source: impl Into<Arc<str>>,
        place: Option<Place>,
        path: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        let (path, message) = (path.into(), message.into());
        Self { source: source.into(), document: None, place, path, message }
    }
}

impl std::error::Error for Problem {}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.source)?;
        if let Some(document) = self.document {
            write!(f, ": document {document}")?;
        }
        if let Some(place) = self.place {
            write!(f, ", {place}")?;
        }
        if !self.path.is_empty() {
            write!(f, ": {}", self.path)?;
        }
        write!(f, ": {}", self.message)
    }
}

/// Everything that is wrong with a set of manifests; at least one [`Problem`].
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Problems {
    /// Invariant: not empty.
    list: Vec<Problem>,
}

impl Problems {
    /// The problems, or nothing when the list is empty.
    #[must_use]
    pub fn from_list(list: Vec<Problem>) -> Option<Self> {
        if list.is_empty() { None } else { Some(Self { list }) }
    }

    /// Each problem in the order it was found.
    #[must_use]
    pub fn list(&self) -> &[Problem] {
        &self.list
    }

    /// Takes the problems out, to join them with others.
    #[must_use]
    pub fn into_list(self) -> Vec<Problem> {
        self.list
    }
}

impl From<Problem> for Problems {
    fn from(problem: Problem) -> Self {
        Self { list: vec![problem] }
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, problem) in self.list.iter().enumerate() {
            if at > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// Collects the problems of one document.
#[derive(Debug)]
pub(super) struct Sink {
    source: Arc<str>,
    document: usize,
    list: RefCell<Vec<Problem>>,
}

impl Sink {
    pub(super) fn new(source: &Arc<str>, document: usize) -> Self {
        Self { source: Arc::clone(source), document, list: RefCell::default() }
    }

    pub(super) fn push(&self, place: Option<Place>, path: &str, message: String) {
        self.list.borrow_mut().push(Problem {
            source: Arc::clone(&self.source),
            document: Some(self.document),
            place,
            path: path.to_owned(),
            message,
        });
    }

    pub(super) fn into_result<T>(self, value: Option<T>) -> Result<T, Problems> {
        match (Problems::from_list(self.list.into_inner()), value) {
            (None, Some(value)) => Ok(value),
            (Some(problems), _) => Err(problems),
            (None, None) => Err(Problems::from(Problem {
                source: self.source,
                document: Some(self.document),
                place: None,
                path: String::new(),
                message: "cannot be read".to_owned(),
            })),
        }
    }
}

/// Stands at one value of a manifest.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    node: &'a Node,
    path: String,
    sink: &'a Sink,
}

impl<'a> Reader<'a> {
    pub(super) fn new(node: &'a Node, path: &str, sink: &'a Sink) -> Self {
        Self { node, path: path.to_owned(), sink }
    }

    /// The field this value stands in, such as `spec.rules[0]`.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    pub(super) fn node(&self) -> &'a Node {
        self.node
    }

    /// Where this value begins.
    #[must_use]
    pub fn place(&self) -> Place {
        self.node.place
    }

    /// Whether the value is an explicit null.
    #[must_use]
    pub fn is_null(&self) -> bool {
        matches!(self.node.value, Value::Null)
    }

    /// Records that this value is wrong. Say what is wrong and what to do; do not quote the value.
    pub fn problem(&self, message: impl fmt::Display) {
        self.sink.push(Some(self.node.place), &self.path, message.to_string());
    }

    /// The text, which a number or boolean is not: those must be written in quotes.
    #[must_use]
    pub fn text(&self) -> Option<&'a str> {
        match &self.node.value {
            Value::Text(text) => Some(text),
            Value::Number(_) | Value::Bool(_) => {
                self.wrong("text", "; write it in quotes");
                None
            }
            Value::Null | Value::List(_) | Value::Map(_) => {
                self.wrong("text", "");
                None
            }
        }
    }

    /// The text, which must not be empty.
    #[must_use]
    pub fn non_empty_text(&self) -> Option<&'a str> {
        let text = self.text()?;
        if text.is_empty() {
            self.problem("must not be empty");
            return None;
        }
        Some(text)
    }

    /// The boolean.
    #[must_use]
    pub fn boolean(&self) -> Option<bool> {
        if let Value::Bool(value) = self.node.value {
            return Some(value);
        }
        self.wrong("true or false", "");
        None
    }

    /// The values of a list; none, with a problem, when this is no list.
    #[must_use]
    pub fn items(&self) -> Vec<Reader<'a>> {
        let Value::List(items) = &self.node.value else {
            self.wrong("a list", "");
            return Vec::new();
        };
        let item =
            |(at, node)| Reader { node, path: format!("{}[{at}]", self.path), sink: self.sink };
        items.iter().enumerate().map(item).collect()
    }

    /// The fields of a map; none, with a problem, when this is no map.
    pub fn fields(&self) -> Fields<'a> {
        let entries: &[Entry] = match &self.node.value {
            Value::Map(entries) => entries,
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::Text(_) | Value::List(_) => {
                self.wrong("a map", "");
                &[]
            }
        };
        Fields { of: self.clone(), entries, taken: vec![false; entries.len()] }
    }

    fn wrong(&self, want: &str, hint: &str) {
        self.problem(format_args!("expected {want}, found {}{hint}", self.node.value.describe()));
    }
}

/// The fields of one map, taken by name. [`Fields::finish`] reports those that nobody took.
#[derive(Debug)]
#[must_use = "call `finish`, or unknown fields go unnoticed"]
pub struct Fields<'a> {
    of: Reader<'a>,
    entries: &'a [Entry],
    taken: Vec<bool>,
}

impl<'a> Fields<'a> {
    /// The value of a field. A field that is missing or null is absent, as in Kubernetes.
    #[must_use]
    pub fn take(&mut self, name: &str) -> Option<Reader<'a>> {
        self.take_or_null(name).filter(|reader| !reader.is_null())
    }

    /// The value of a field, which may be an explicit null.
    #[must_use]
    pub fn take_or_null(&mut self, name: &str) -> Option<Reader<'a>> {
        let (at, entry) = self.entries.iter().enumerate().find(|(_, e)| e.name == name)?;
        if let Some(taken) = self.taken.get_mut(at) {
            *taken = true;
        }
        Some(self.reader(entry))
    }

    /// The value of a field that must be there.
    #[must_use]
    pub fn require(&mut self, name: &str) -> Option<Reader<'a>> {
        let value = self.take(name);
        if value.is_none() {
            self.of.problem(format_args!("field {name} is missing"));
        }
        value
    }

    /// Every field with its name, in the order written: for maps with free keys.
    #[must_use]
    pub fn all(mut self) -> Vec<(&'a str, Reader<'a>)> {
        self.taken.fill(true);
        self.entries.iter().map(|entry| (entry.name.as_str(), self.reader(entry))).collect()
    }

    /// Gives up on the remaining fields: for maps in which unknown ones have no meaning.
    pub fn ignore_rest(mut self) {
        self.taken.fill(true);
        self.finish();
    }

    /// Whether the map has no field at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The reader that stands at the map itself, to record problems of the whole.
    #[must_use]
    pub fn whole(&self) -> &Reader<'a> {
        &self.of
    }

    /// Reports every field that nobody took ([SEM-RES-03]: Kubernetes would prune it, and what it
    /// restricted would be open).
    pub fn finish(self) {
        for (entry, taken) in self.entries.iter().zip(&self.taken) {
            if !taken {
                let path = self.path_of(&entry.name);
                let message = "unknown field; remove it or correct its spelling".to_owned();
                self.of.sink.push(Some(entry.place), &path, message);
            }
        }
    }

    fn reader(&self, entry: &'a Entry) -> Reader<'a> {
        let path = self.path_of(&entry.name);
        Reader { node: &entry.value, path, sink: self.of.sink }
    }

    /// Field names are the author's text: printable and short before they reach a log.
    fn path_of(&self, name: &str) -> String {
        let name: String = name.chars().take(64).flat_map(char::escape_debug).collect();
        if self.of.path.is_empty() { name } else { format!("{}.{name}", self.of.path) }
    }
}
