//! YAML text to [`Node`]s, on granit-parser's events.
//!
//! Plain scalars are resolved as Kubernetes resolves them (YAML 1.1 words for booleans), because
//! a policy file must mean here what it means to `kubectl apply`. Depth, values and aliases are
//! bounded; tags, merge keys and duplicate names are refused.

use std::collections::{HashMap, HashSet};

use granit_parser::{Event, Marker, Options, Parser, ScalarStyle, StructureStyle};

use super::node::{Entry, MAX_DEPTH, MAX_NODES, Node, Place, SyntaxError, Value};
use super::{MAX_DOCUMENT_LEN, MAX_TEXT_LEN};

/// A list or map whose end has not been read yet.
struct Open {
    place: Place,
    anchor: usize,
    content: Content,
}

enum Content {
    List(Vec<Node>),
    Map { block: bool, entries: Vec<Entry>, names: HashSet<String>, key: Option<(String, Place)> },
}

/// Reads every document of a YAML stream; empty documents are left out.
pub(super) fn parse(text: &str) -> Result<Vec<Node>, SyntaxError> {
    let mut options = Options::default();
    options.flow_nesting_limit = MAX_DEPTH;
    let mut begin = 0;
    let mut builder = Builder { lines: text.lines().collect(), ..Builder::default() };
    for event in Parser::new_from_str_with_options(text, options) {
        let (event, span) = event.map_err(|error| {
            let at = place(*error.marker());
            tab_after(&builder.lines, at).unwrap_or_else(|| SyntaxError {
                place: Some(at),
                message: format!("not valid YAML: {}", error.info()),
            })
        })?;
        if matches!(event, Event::DocumentStart(..)) {
            begin = span.start.index();
        }
        if span.end.index().saturating_sub(begin) > MAX_DOCUMENT_LEN {
            let message = format!("a document has at most {MAX_DOCUMENT_LEN} characters; split it");
            return refuse(place(span.start), &message);
        }
        builder.event(event, place(span.start))?;
    }
    Ok(builder.documents)
}

#[derive(Default)]
struct Builder<'a> {
    lines: Vec<&'a str>,
    documents: Vec<Node>,
    open: Vec<Open>,
    anchors: HashMap<usize, (Node, Size)>,
    nodes: usize,
    /// Bytes of text copied for anchors and aliases.
    copied: usize,
}

impl Builder<'_> {
    fn event(&mut self, event: Event<'_>, place: Place) -> Result<(), SyntaxError> {
        match event {
            Event::DocumentStart(..) => self.anchors.clear(),
            Event::Scalar(text, style, anchor, tag) => {
                let raw = (style == ScalarStyle::Plain).then(|| text.clone().into_owned());
                let value = match tag.as_deref() {
                    None if style == ScalarStyle::Plain => plain(&text),
                    None => Value::Text(text.into_owned()),
                    Some(tag) if tag.suffix() == "str" => Value::Text(text.into_owned()),
                    Some(_) => return refuse(place, "YAML tags are not supported; remove the tag"),
                };
                self.add(Node { place, value }, anchor, raw)?;
            }
            Event::SequenceStart(_, anchor, tag) => {
                no_tag(tag.is_some(), place)?;
                self.begin(place, anchor, Content::List(Vec::new()))?;
            }
            Event::MappingStart(style, anchor, tag) => {
                no_tag(tag.is_some(), place)?;
                let block = style == StructureStyle::Block;
                let (entries, names) = (Vec::new(), HashSet::new());
                let content = Content::Map { block, entries, names, key: None };
                self.begin(place, anchor, content)?;
            }
            Event::SequenceEnd | Event::MappingEnd => {
                if let Some(done) = self.open.pop() {
                    let value = match done.content {
                        Content::List(items) => Value::List(items),
                        Content::Map { entries, .. } => Value::Map(entries),
                    };
                    self.add(Node { place: done.place, value }, done.anchor, None)?;
                }
            }
            Event::Alias(id) => {
                let Some(&(_, size)) = self.anchors.get(&id) else {
                    return refuse(place, "alias of an anchor that is not complete");
                };
                if self.open.len().saturating_add(size.depth) > MAX_DEPTH {
                    return refuse(place, &format!("nested deeper than {MAX_DEPTH} levels"));
                }
                self.charge_copy(size, place)?;
                if let Some(value) = self.anchors.get(&id).map(|(node, _)| node.value.clone()) {
                    self.add(Node { place, value }, 0, None)?;
                }
            }
            Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentEnd
            | Event::Anchor(..)
            | Event::UnresolvedAlias(..)
            | _ => {}
        }
        Ok(())
    }

    fn begin(&mut self, place: Place, anchor: usize, content: Content) -> Result<(), SyntaxError> {
        if self.open.len() >= MAX_DEPTH {
            return refuse(place, &format!("nested deeper than {MAX_DEPTH} levels"));
        }
        self.open.push(Open { place, anchor, content });
        Ok(())
    }

    /// Puts a finished value where it belongs: a key, a list, a map, or a document of its own.
    fn add(&mut self, node: Node, anchor: usize, raw: Option<String>) -> Result<(), SyntaxError> {
        self.count(1, node.place)?;
        if anchor != 0 {
            let size = Size::of(&node);
            self.charge_copy(size, node.place)?;
            self.anchors.insert(anchor, (node.clone(), size));
        }
        let Some(parent) = self.open.last_mut() else {
            if !matches!(node.value, Value::Null) {
                self.documents.push(node);
            }
            return Ok(());
        };
        match &mut parent.content {
            Content::List(items) => items.push(node),
            Content::Map { block, entries, names, key } => match key.take() {
                None => {
                    if *block && is_indented_by_tab(&self.lines, node.place) {
                        return refuse(node.place, "a tab cannot indent YAML; use spaces");
                    }
                    let name = match (raw, node.value) {
                        (Some(raw), _) if raw == "<<" => {
                            return refuse(node.place, "merge keys (<<) are not supported");
                        }
                        (Some(raw), _) => raw,
                        (None, Value::Text(text)) => text,
                        (None, _) => return refuse(node.place, "a field name must be text"),
                    };
                    if !names.insert(name.clone()) {
                        let name: String = name.chars().take(64).collect();
                        return refuse(node.place, &format!("duplicate field {name:?}"));
                    }
                    *key = Some((name, node.place));
                }
                Some((name, place)) => entries.push(Entry { name, place, value: node }),
            },
        }
        Ok(())
    }

    /// [SEC-AUTHZ-10] What a copy will hold counts before it is made.
    fn charge_copy(&mut self, size: Size, place: Place) -> Result<(), SyntaxError> {
        self.count(size.nodes, place)?;
        self.copied = self.copied.saturating_add(size.text);
        if self.copied > MAX_TEXT_LEN {
            let message = format!("anchors and aliases copy more than {MAX_TEXT_LEN} bytes");
            return refuse(place, &message);
        }
        Ok(())
    }

    fn count(&mut self, more: usize, place: Place) -> Result<(), SyntaxError> {
        self.nodes = self.nodes.saturating_add(more);
        if self.nodes > MAX_NODES {
            return refuse(place, &format!("more than {MAX_NODES} values, aliases expanded"));
        }
        Ok(())
    }
}

/// YAML forbids tabs as indentation; the parser lets some pass where Kubernetes does not.
fn is_indented_by_tab(lines: &[&str], place: Place) -> bool {
    let line = lines.get(place.line.saturating_sub(1)).copied().unwrap_or_default();
    let mut before = line.chars().take(place.column.saturating_sub(1));
    before.by_ref().take_while(|c| c.is_whitespace()).any(|c| c == '\t')
}

/// The usual reason for a syntax error, which the parser may notice a line early.
fn tab_after(lines: &[&str], place: Place) -> Option<SyntaxError> {
    let mut near = lines.iter().enumerate().skip(place.line.saturating_sub(1)).take(3);
    let indent =
        |line: &str| line.chars().take_while(|c| c.is_whitespace()).position(|c| c == '\t');
    let (at, column) = near.find_map(|(at, line)| Some((at, indent(line)?)))?;
    Some(SyntaxError {
        place: Some(Place { line: at.saturating_add(1), column: column.saturating_add(1) }),
        message: "a tab cannot indent YAML; use spaces".to_owned(),
    })
}

fn no_tag(tagged: bool, place: Place) -> Result<(), SyntaxError> {
    if tagged { refuse(place, "YAML tags are not supported; remove the tag") } else { Ok(()) }
}

fn refuse<T>(place: Place, message: &str) -> Result<T, SyntaxError> {
    Err(SyntaxError { place: Some(place), message: message.to_owned() })
}

fn place(marker: Marker) -> Place {
    Place { line: marker.line(), column: marker.col().saturating_add(1) }
}

/// What a node holds, itself included. Depth is bounded, so recursion is.
#[derive(Clone, Copy)]
struct Size {
    nodes: usize,
    /// Bytes of names and values.
    text: usize,
    /// Lists and maps within each other.
    depth: usize,
}

impl Size {
    fn of(node: &Node) -> Self {
        match &node.value {
            Value::Null | Value::Bool(_) => Self { nodes: 1, text: 0, depth: 0 },
            Value::Number(text) | Value::Text(text) => {
                Self { nodes: 1, text: text.len(), depth: 0 }
            }
            Value::List(items) => Self::around(items.iter().map(|item| (0, item))),
            Value::Map(entries) => {
                Self::around(entries.iter().map(|entry| (entry.name.len(), &entry.value)))
            }
        }
    }

    /// Of a list or map whose names have these lengths.
    fn around<'n>(inner: impl Iterator<Item = (usize, &'n Node)>) -> Self {
        inner.fold(Self { nodes: 1, text: 0, depth: 1 }, |sum, (name, node)| {
            let size = Self::of(node);
            Self {
                nodes: sum.nodes.saturating_add(size.nodes),
                text: sum.text.saturating_add(name).saturating_add(size.text),
                depth: sum.depth.max(size.depth.saturating_add(1)),
            }
        })
    }
}

/// Resolves a plain scalar as Kubernetes' YAML reader does.
fn plain(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "true" | "True" | "TRUE" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" => Value::Bool(true),
        "false" | "False" | "FALSE" | "no" | "No" | "NO" | "off" | "Off" | "OFF" => {
            Value::Bool(false)
        }
        _ if is_number(text) => Value::Number(text.to_owned()),
        _ => Value::Text(text.to_owned()),
    }
}

/// Whether YAML reads a plain scalar as an integer or a float.
fn is_number(text: &str) -> bool {
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    if matches!(unsigned, ".inf" | ".Inf" | ".INF") || matches!(text, ".nan" | ".NaN" | ".NAN") {
        return true;
    }
    let digits = |text: &str, radix: u32| {
        !text.is_empty() && text.chars().all(|c| c == '_' || c.is_digit(radix))
    };
    for (prefix, radix) in [("0x", 16), ("0o", 8), ("0b", 2)] {
        if let Some(rest) = unsigned.strip_prefix(prefix) {
            return digits(rest, radix);
        }
    }
    let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (unsigned, None),
    };
    let exponent_ok = exponent
        .is_none_or(|exponent| digits(exponent.strip_prefix(['-', '+']).unwrap_or(exponent), 10));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let starts_with_digit = mantissa.starts_with(|c: char| c.is_ascii_digit() || c == '.');
    exponent_ok
        && starts_with_digit
        && (digits(whole, 10) || (whole.is_empty() && digits(fraction, 10)))
        && (fraction.is_empty() || digits(fraction, 10))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_scalars_mean_what_kubernetes_reads() {
        for (text, want) in [
            ("80", "a number"),
            ("-1", "a number"),
            ("1.5", "a number"),
            (".5", "a number"),
            ("1e3", "a number"),
            ("0x50", "a number"),
            ("1_000", "a number"),
            ("yes", "a boolean"),
            ("off", "a boolean"),
            ("~", "nothing"),
            ("GET", "text"),
            ("10.0.0.1", "text"),
            ("10.0.0.0/8", "text"),
            ("*", "text"),
            ("e3", "text"),
            (".", "text"),
            ("-", "text"),
            ("1.2.3", "text"),
            ("v1", "text"),
            ("0x", "text"),
        ] {
            assert_eq!(plain(text).describe(), want, "{text}");
        }
    }
}
