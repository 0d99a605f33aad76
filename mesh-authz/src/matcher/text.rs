//! Istio's generic string pattern, alone and in lists of any length.

use crate::index::{Key, TextIndex};

/// One value of the form that most fields share ([SEM-AUTHZ-01]).
///
/// Only a single star at the start or the end is special; the start is looked at first.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) enum TextPattern {
    /// `*`
    Present,
    /// `abc*`
    Prefix(Box<str>),
    /// `*abc`
    Suffix(Box<str>),
    /// `abc`
    Exact(Box<str>),
}

impl TextPattern {
    pub(crate) fn parse(value: &str) -> Self {
        if value == "*" {
            Self::Present
        } else if let Some(rest) = value.strip_prefix('*') {
            Self::Suffix(rest.into())
        } else if let Some(rest) = value.strip_suffix('*') {
            Self::Prefix(rest.into())
        } else {
            Self::Exact(value.into())
        }
    }

    /// Whether a text satisfies the pattern; `Present` asks for a non-empty text without line feed.
    #[inline]
    pub(crate) fn matches(&self, text: &[u8]) -> bool {
        match self {
            Self::Present => !text.is_empty() && !text.contains(&b'\n'),
            Self::Prefix(prefix) => text.starts_with(prefix.as_bytes()),
            Self::Suffix(suffix) => text.ends_with(suffix.as_bytes()),
            Self::Exact(exact) => text == exact.as_bytes(),
        }
    }

    /// The pattern for headers and what is treated like one, where `*` is mere presence: an empty
    /// value counts ([SEM-AUTHZ-55]).
    pub(crate) fn into_header(self) -> Self {
        match self {
            Self::Present => Self::Prefix("".into()),
            Self::Prefix(_) | Self::Suffix(_) | Self::Exact(_) => self,
        }
    }

    /// The pattern for texts in ASCII lower case.
    pub(crate) fn into_lowercase(self) -> Self {
        let lower = |text: Box<str>| text.to_ascii_lowercase().into_boxed_str();
        match self {
            Self::Present => Self::Present,
            Self::Prefix(prefix) => Self::Prefix(lower(prefix)),
            Self::Suffix(suffix) => Self::Suffix(lower(suffix)),
            Self::Exact(exact) => Self::Exact(lower(exact)),
        }
    }

    /// What a text that satisfies the pattern has in common with it.
    pub(crate) fn key(&self) -> Key {
        match self {
            Self::Present => Key::Prefix(Vec::new()),
            Self::Prefix(prefix) => Key::Prefix(prefix.as_bytes().to_vec()),
            Self::Suffix(suffix) => Key::Suffix(suffix.as_bytes().to_vec()),
            Self::Exact(exact) => Key::Exact(exact.as_bytes().to_vec()),
        }
    }
}

/// Lists at most this long are compared one by one; longer ones by hash.
const MAX_LINEAR: usize = 8;

/// Several patterns, any of which suffices.
#[derive(Debug)]
pub(crate) enum TextSet {
    /// Kept in place: most conditions have one value.
    One(TextPattern),
    Few(Box<[TextPattern]>),
    Many(Box<(Box<[TextPattern]>, TextIndex)>),
}

impl TextSet {
    pub(crate) fn new(patterns: Vec<TextPattern>) -> Self {
        match <[TextPattern; 1]>::try_from(patterns) {
            Ok([only]) => Self::One(only),
            Err(few) if few.len() <= MAX_LINEAR => Self::Few(few.into()),
            Err(many) => {
                let index = TextIndex::new(many.iter().map(TextPattern::key));
                Self::Many(Box::new((many.into(), index)))
            }
        }
    }

    pub(crate) fn patterns(&self) -> &[TextPattern] {
        match self {
            Self::One(only) => std::slice::from_ref(only),
            Self::Few(few) => few,
            Self::Many(many) => &many.0,
        }
    }

    #[inline]
    pub(crate) fn matches(&self, text: &[u8]) -> bool {
        if let Self::One(only) = self { only.matches(text) } else { self.any_matches(text) }
    }

    #[inline(never)]
    fn any_matches(&self, text: &[u8]) -> bool {
        match self {
            Self::One(only) => only.matches(text),
            Self::Few(few) => few.iter().any(|pattern| pattern.matches(text)),
            Self::Many(many) => {
                let (patterns, index) = &**many;
                index.any(text, |at| patterns.get(at).is_some_and(|pattern| pattern.matches(text)))
            }
        }
    }
}
