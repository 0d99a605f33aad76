//! Header names as Istio's providers list them: exact, `prefix*`, `*suffix`, in any case.

use http::HeaderName;

/// A list of header names and patterns; see [`HeaderList::matches`].
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct HeaderList {
    patterns: Vec<Pattern>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
enum Pattern {
    Exact(String),
    Prefix(String),
    Suffix(String),
}

/// Why a list is not one: Istio rejects a lone `*` and empty names ([SEM-EXT-04]).
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum HeaderListError {
    /// A lone `*` would send everything.
    #[error("a lone * is no pattern")]
    Lone,

    /// The text is no header name, with or without one `*` at an end.
    #[error("entry {at} is no header name")]
    Name {
        /// Which entry, from 0.
        at: usize,
    },
}

impl HeaderList {
    /// Parses a list.
    ///
    /// # Errors
    ///
    /// The first entry that is no pattern.
    pub fn parse<'t>(texts: impl IntoIterator<Item = &'t str>) -> Result<Self, HeaderListError> {
        let pattern = |(at, text): (usize, &str)| {
            if text == "*" {
                return Err(HeaderListError::Lone);
            }
            let text = text.to_ascii_lowercase();
            let name = text.trim_start_matches('*').trim_end_matches('*');
            let stars = text.len().saturating_sub(name.len());
            if stars > 1 || HeaderName::from_bytes(name.as_bytes()).is_err() || name.contains('*') {
                return Err(HeaderListError::Name { at });
            }
            let name = name.to_owned();
            Ok(match (text.starts_with('*'), text.ends_with('*')) {
                (true, _) => Pattern::Suffix(name),
                (false, true) => Pattern::Prefix(name),
                (false, false) => Pattern::Exact(name),
            })
        };
        let patterns = texts.into_iter().enumerate().map(pattern);
        Ok(Self { patterns: patterns.collect::<Result<_, _>>()? })
    }

    /// Whether a name is on the list.
    #[must_use]
    pub fn matches(&self, name: &HeaderName) -> bool {
        let name = name.as_str();
        self.patterns.iter().any(|pattern| match pattern {
            Pattern::Exact(exact) => name == exact,
            Pattern::Prefix(prefix) => name.starts_with(prefix.as_str()),
            Pattern::Suffix(suffix) => name.ends_with(suffix.as_str()),
        })
    }

    /// Whether nothing is listed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sem_ext_04_lists_match_as_istio_says() {
        let list = HeaderList::parse(["X-User", "x-ext-*", "*-Id"]).unwrap();
        for (name, want) in [
            ("x-user", true),
            ("x-users", false),
            ("x-ext-a", true),
            ("x-ext", false),
            ("request-id", true),
            ("id", false),
        ] {
            assert_eq!(list.matches(&HeaderName::from_static(name)), want, "{name}");
        }
        for bad in ["*", "", "**", "*a*", "a*b", "a b"] {
            assert!(HeaderList::parse([bad]).is_err(), "{bad}");
        }
        assert!(!HeaderList::default().matches(&HeaderName::from_static("a")));
    }
}
