//! Path templates: `{*}` for one segment, `{**}` for the rest ([SEM-AUTHZ-67]).

use crate::index::Key;

/// A compiled template.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) enum Template {
    /// What validation accepts: operators that are whole segments, `{**}` at most once and last.
    Segments {
        /// The segments before `{**}`, behind the leading slash.
        head: Box<[Segment]>,
        /// The literal text behind `{**}`; nothing without `{**}`.
        rest: Option<Box<str>>,
    },
    /// What Envoy makes of the others, for comparing with it only.
    Free(Box<[Unit]>),
}

/// A segment of a template.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) enum Segment {
    Literal(Box<str>),
    /// `{*}`
    One,
}

/// A piece of a template that validation refuses.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) enum Unit {
    Byte(u8),
    /// A byte that Envoy's regex repeats, because a literal star stands behind it.
    Repeated(u8),
    /// One or more characters of a segment.
    One,
    /// Any number of characters, slashes too.
    Any,
}

/// Which bytes operators cover.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Alphabet {
    /// Envoy's: unreserved and sub-delimiters, `%`, `:`, `@`, `*`.
    Envoy,
    /// Every byte ([SEM-STRICT-07]); `{*}` still ends at a slash.
    Wide,
}

impl Alphabet {
    /// Whether operators cover every byte of the text, slashes aside.
    pub(crate) fn covers_all(self, text: &[u8]) -> bool {
        self == Self::Wide || text.iter().all(|byte| *byte == b'/' || self.covers(*byte))
    }

    fn covers(self, byte: u8) -> bool {
        self == Self::Wide
            || OPERATOR_BYTES.checked_shr(byte.into()).is_some_and(|bits| bits & 1 == 1)
    }
}

/// What Envoy's operators cover: a bit for each byte of ASCII.
const OPERATOR_BYTES: u128 = {
    let mut bits = 0;
    let mut bytes: &[u8] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz\
        -._~%!$&'()+,;:@=*";
    while let [byte, rest @ ..] = bytes {
        bits |= 1 << *byte;
        bytes = rest;
    }
    bits
};

/// Whether a path value is a template ([SEM-AUTHZ-66]).
pub(crate) fn is_template(value: &str) -> bool {
    value.contains("{*}") || value.contains("{**}")
}

impl Template {
    /// Reads a template by the rules of [SEM-VAL-14], or says which is broken.
    pub(crate) fn parse(value: &str) -> Result<Self, &'static str> {
        let inner = value.strip_prefix('/').ok_or("a path template begins with a slash")?;
        if value.replace("{**}", "**").replace("{*}", "*").len() > MAX_TEMPLATE_LEN {
            return Err("a path template has at most 256 characters");
        }
        if value.ends_with("//") {
            return Err("Envoy refuses a path template that ends in two slashes");
        }
        let mut head = Vec::new();
        let mut rest: Option<String> = None;
        for segment in inner.split('/') {
            match (segment, &mut rest) {
                ("{*}" | "{**}", Some(_)) => return Err("no operator can follow {**}"),
                ("{*}", None) => head.push(Segment::One),
                ("{**}", None) => rest = Some(String::new()),
                (literal, rest) => {
                    check_literal(literal, inner.ends_with('/'))?;
                    match rest {
                        Some(rest) => {
                            rest.push('/');
                            rest.push_str(literal);
                        }
                        None => head.push(Segment::Literal(literal.into())),
                    }
                }
            }
        }
        let empty =
            |segment: &Segment| matches!(segment, Segment::Literal(text) if text.is_empty());
        let inner_head = head.get(..head.len().saturating_sub(1)).unwrap_or_default();
        if inner_head.iter().any(empty) || rest.as_ref().is_some_and(|rest| rest.contains("//")) {
            return Err("a path template has no empty segment");
        }
        Ok(Self::Segments { head: head.into(), rest: rest.map(Into::into) })
    }

    /// What Envoy makes of a template that validation refuses.
    pub(crate) fn parse_leniently(value: &str) -> Self {
        Self::parse(value).unwrap_or_else(|_| {
            let text = value.replace("{**}", "**").replace("{*}", "*");
            Self::Free(free_units(text.as_bytes()).into())
        })
    }

    /// The text that every matching path begins with.
    fn literal_start(&self) -> Vec<u8> {
        let mut start = Vec::new();
        match self {
            Self::Segments { head, .. } => {
                for segment in head {
                    start.push(b'/');
                    match segment {
                        Segment::Literal(text) => start.extend_from_slice(text.as_bytes()),
                        Segment::One => break,
                    }
                }
            }
            Self::Free(units) => {
                start.extend(units.iter().map_while(|unit| match unit {
                    Unit::Byte(byte) => Some(*byte),
                    Unit::Repeated(_) | Unit::One | Unit::Any => None,
                }));
            }
        }
        start
    }

    /// The text that every matching path ends with.
    fn literal_end(&self) -> Vec<u8> {
        match self {
            Self::Segments { rest: Some(rest), .. } => rest.as_bytes().to_vec(),
            Self::Segments { head, rest: None } => {
                let literals = head.iter().rev().map_while(|segment| match segment {
                    Segment::Literal(text) => Some(text),
                    Segment::One => None,
                });
                let mut end: Vec<u8> =
                    literals.flat_map(|text| text.bytes().rev().chain([b'/'])).collect();
                end.reverse();
                end
            }
            Self::Free(_) => Vec::new(),
        }
    }

    /// The longer of the texts that every matching path begins or ends with.
    pub(crate) fn key(&self) -> Key {
        let (start, end) = (self.literal_start(), self.literal_end());
        if start.len() < end.len() { Key::Suffix(end) } else { Key::Prefix(start) }
    }

    /// Whether the whole path fits. Linear in its length.
    pub(crate) fn matches(&self, path: &[u8], alphabet: Alphabet) -> bool {
        match self {
            Self::Segments { head, rest } => {
                matches_segments(head, rest.as_deref(), path, alphabet)
            }
            Self::Free(units) => matches_units(units, path, alphabet),
        }
    }
}

/// The longest template that Envoy loads.
const MAX_TEMPLATE_LEN: usize = 256;

fn check_literal(literal: &str, trailing_slash: bool) -> Result<(), &'static str> {
    if literal.contains(['{', '}']) {
        return Err("a segment with braces must be exactly {*} or {**}");
    }
    if literal.is_empty() && !trailing_slash {
        return Err("a path template has no empty segment");
    }
    let plain = |byte: u8| byte != b'*' && Alphabet::Envoy.covers(byte);
    if !literal.bytes().all(plain) {
        return Err("a literal segment of a path template has a forbidden character");
    }
    Ok(())
}

fn matches_segments(head: &[Segment], rest: Option<&str>, path: &[u8], alphabet: Alphabet) -> bool {
    let Some(mut left) = path.strip_prefix(b"/") else { return false };
    for (at, segment) in head.iter().enumerate() {
        let is_last = rest.is_none() && at.saturating_add(1) == head.len();
        let end = memchr::memchr(b'/', left);
        let (this, next) = match end {
            Some(_) if is_last => return false,
            Some(slash) => (left.get(..slash), left.get(slash.saturating_add(1)..)),
            None if is_last => (Some(left), Some(&[][..])),
            None => return false,
        };
        let (this, next) = (this.unwrap_or_default(), next.unwrap_or_default());
        let fits = match segment {
            Segment::Literal(text) => this == text.as_bytes(),
            Segment::One => !this.is_empty() && alphabet.covers_all(this),
        };
        if !fits {
            return false;
        }
        left = next;
    }
    let Some(rest) = rest else { return true };
    let Some(covered) = left.strip_suffix(rest.as_bytes()) else { return false };
    alphabet.covers_all(covered)
}

/// Envoy reads operators at the start of a segment only; a star behind other text is a literal one,
/// which its regex then takes for a repetition.
fn free_units(text: &[u8]) -> Vec<Unit> {
    let mut units = Vec::new();
    let mut rest = text;
    let mut at_start = true;
    while let Some((byte, tail)) = rest.split_first() {
        rest = tail;
        match byte {
            b'/' => {
                units.push(Unit::Byte(b'/'));
                at_start = true;
                continue;
            }
            b'*' if at_start => match rest.strip_prefix(b"*") {
                Some(next) => {
                    units.push(Unit::Any);
                    rest = next;
                }
                None => units.push(Unit::One),
            },
            byte => match rest.strip_prefix(b"*") {
                Some(next) => {
                    units.push(Unit::Repeated(*byte));
                    rest = next;
                }
                None => units.push(Unit::Byte(*byte)),
            },
        }
        at_start = false;
    }
    units
}

/// Steps all positions that can be reached, byte by byte: linear in path times template.
fn matches_units(units: &[Unit], path: &[u8], alphabet: Alphabet) -> bool {
    let len = units.len();
    let mut now = vec![false; len.saturating_add(1)];
    if let Some(first) = now.first_mut() {
        *first = true;
    }
    skip_optional(units, &mut now);
    for byte in path {
        let mut next = vec![false; len.saturating_add(1)];
        for (at, unit) in units.iter().enumerate() {
            if now.get(at) != Some(&true) {
                continue;
            }
            let (stays, goes) = match unit {
                Unit::Byte(want) => (false, byte == want),
                Unit::Repeated(want) => (byte == want, false),
                Unit::One => {
                    let covers = *byte != b'/' && alphabet.covers(*byte);
                    (covers, covers)
                }
                Unit::Any => (*byte == b'/' || alphabet.covers(*byte), false),
            };
            if let (true, Some(to)) = (stays, next.get_mut(at)) {
                *to = true;
            }
            if let (true, Some(to)) = (goes, next.get_mut(at.saturating_add(1))) {
                *to = true;
            }
        }
        skip_optional(units, &mut next);
        now = next;
    }
    now.last() == Some(&true)
}

/// Units that may cover nothing let the position behind them be reached too.
fn skip_optional(units: &[Unit], reached: &mut [bool]) {
    for (at, unit) in units.iter().enumerate() {
        let optional = matches!(unit, Unit::Any | Unit::Repeated(_));
        if optional
            && reached.get(at) == Some(&true)
            && let Some(next) = reached.get_mut(at.saturating_add(1))
        {
            *next = true;
        }
    }
}
