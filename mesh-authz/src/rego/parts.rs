//! Which parts of the input a policy reads, so that no others are built.

use std::collections::BTreeSet;

use http::HeaderName;

/// The parts of the input document that a policy can tell from absent ones.
///
/// [`super::RegoPolicy::reads`] finds them in the modules' text: constant references such as
/// `input.parsed_path[0]` name what they read; anything else that begins with `input` reads all
/// that lies below the constant part of it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct InputParts {
    parts: u32,
    headers: Headers,
}

/// Which headers are read.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Headers {
    All,
    /// These, by their names in lower case; pseudo headers among them.
    Named(Vec<String>),
}

/// A part that is built or left out as a whole.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Part {
    Version,
    ParsedPath,
    ParsedQuery,
    ParsedBody,
    TruncatedBody,
    SourcePrincipal,
    Source,
    Destination,
    Metadata,
    Time,
    Id,
    Method,
    Path,
    Host,
    Scheme,
    Protocol,
    Size,
    Body,
    Headers,
}

const HTTP: [&str; 3] = ["attributes", "request", "http"];

impl Part {
    const ALL: [Self; 19] = [
        Self::Version,
        Self::ParsedPath,
        Self::ParsedQuery,
        Self::ParsedBody,
        Self::TruncatedBody,
        Self::SourcePrincipal,
        Self::Source,
        Self::Destination,
        Self::Metadata,
        Self::Time,
        Self::Id,
        Self::Method,
        Self::Path,
        Self::Host,
        Self::Scheme,
        Self::Protocol,
        Self::Size,
        Self::Body,
        Self::Headers,
    ];

    const fn bit(self) -> u32 {
        // Nineteen variants fit into thirty-two bits.
        match self {
            Self::Version => 1,
            Self::ParsedPath => 1 << 1,
            Self::ParsedQuery => 1 << 2,
            Self::ParsedBody => 1 << 3,
            Self::TruncatedBody => 1 << 4,
            Self::SourcePrincipal => 1 << 5,
            Self::Source => 1 << 6,
            Self::Destination => 1 << 7,
            Self::Metadata => 1 << 8,
            Self::Time => 1 << 9,
            Self::Id => 1 << 10,
            Self::Method => 1 << 11,
            Self::Path => 1 << 12,
            Self::Host => 1 << 13,
            Self::Scheme => 1 << 14,
            Self::Protocol => 1 << 15,
            Self::Size => 1 << 16,
            Self::Body => 1 << 17,
            Self::Headers => 1 << 18,
        }
    }

    /// Where the part lies below `input`.
    fn path(self) -> Vec<&'static str> {
        let http = |name| [&HTTP[..], &[name]].concat();
        match self {
            Self::Version => vec!["version"],
            Self::ParsedPath => vec!["parsed_path"],
            Self::ParsedQuery => vec!["parsed_query"],
            Self::ParsedBody => vec!["parsed_body"],
            Self::TruncatedBody => vec!["truncated_body"],
            Self::SourcePrincipal => vec!["source_principal"],
            Self::Source => vec!["attributes", "source"],
            Self::Destination => vec!["attributes", "destination"],
            Self::Metadata => vec!["attributes", "metadataContext"],
            Self::Time => vec!["attributes", "request", "time"],
            Self::Id => http("id"),
            Self::Method => http("method"),
            Self::Path => http("path"),
            Self::Host => http("host"),
            Self::Scheme => http("scheme"),
            Self::Protocol => http("protocol"),
            Self::Size => http("size"),
            Self::Body => http("body"),
            Self::Headers => http("headers"),
        }
    }
}

impl InputParts {
    /// The whole document.
    pub const ALL: Self = Self { parts: u32::MAX, headers: Headers::All };

    /// What references with these constant paths below `input` read.
    pub(super) fn of(reads: &BTreeSet<Vec<String>>) -> Self {
        let mut parts = 0;
        for part in Part::ALL {
            let path = part.path();
            let meets = |read: &Vec<String>| read.iter().zip(&path).all(|(a, b)| a == b);
            if reads.iter().any(meets) {
                parts |= part.bit();
            }
        }
        let headers = Part::Headers.path();
        let mut named = BTreeSet::new();
        for read in reads {
            let meets = read.iter().zip(&headers).all(|(a, b)| a == b);
            match read.get(headers.len()) {
                // The whole map, or more than it.
                None if meets => return Self { parts, headers: Headers::All },
                Some(name) if meets => {
                    named.insert(name.clone());
                }
                _ => {}
            }
        }
        Self { parts, headers: Headers::Named(named.into_iter().collect()) }
    }

    pub(super) const fn has(&self, part: Part) -> bool {
        self.parts & part.bit() != 0
    }

    pub(super) const fn headers(&self) -> &Headers {
        &self.headers
    }

    /// Whether the request's body is looked at: what nobody reads need not be waited for.
    #[must_use]
    pub fn has_body(&self) -> bool {
        let body = [Part::ParsedBody, Part::TruncatedBody, Part::Size, Part::Body];
        body.into_iter().any(|part| self.has(part)) || self.has_header(super::input::PARTIAL_BODY)
    }

    /// Whether a header is looked at.
    pub(super) fn has_header(&self, name: &str) -> bool {
        match &self.headers {
            Headers::All => self.has(Part::Headers),
            Headers::Named(names) => names.iter().any(|other| other == name),
        }
    }
}

impl Headers {
    /// Whether a header is looked at.
    pub(super) fn has(&self, name: &HeaderName) -> bool {
        match self {
            Self::All => true,
            Self::Named(names) => names.iter().any(|other| other == name.as_str()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(reads: &[&[&str]]) -> InputParts {
        let read = |path: &&[&str]| path.iter().map(|part| (*part).to_owned()).collect();
        InputParts::of(&reads.iter().map(read).collect())
    }

    #[test]
    fn a_reference_reads_what_lies_above_and_below_it() {
        let http = of(&[&["attributes", "request", "http"]]);
        assert!(http.has(Part::Method) && http.has(Part::Headers) && http.has_body());
        assert!(!http.has(Part::Time) && !http.has(Part::ParsedPath));
        let method = of(&[&["attributes", "request", "http", "method"], &["parsed_path"]]);
        assert!(method.has(Part::Method) && method.has(Part::ParsedPath));
        assert!(!method.has(Part::Path) && !method.has(Part::Headers) && !method.has_body());
        let header = of(&[&["attributes", "request", "http", "headers", "x-a"]]);
        assert!(header.has(Part::Headers) && header.has_header("x-a") && !header.has_header("x-b"));
        let issuer = ["attributes", "metadataContext", "filterMetadata", "f", "payload", "iss"];
        assert!(of(&[&issuer]).has(Part::Metadata));
        assert!(Part::ALL.into_iter().all(|part| of(&[&[]]).has(part)));
        assert_eq!(of(&[&["nosuch"]]).parts, 0);
        let bits: BTreeSet<u32> = Part::ALL.into_iter().map(Part::bit).collect();
        assert_eq!(bits.len(), Part::ALL.len());
    }
}
