//! Conditions on headers and on what Envoy presents as headers ([SEM-AUTHZ-55] to [SEM-AUTHZ-57]).

use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};

use super::asked::Slot;
use super::text::{TextPattern, TextSet};
use super::view::View;

/// What a `request.headers[…]` key names; names ignore case.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) enum HeaderKey {
    Authority,
    Method,
    /// Path with query, normalized.
    Path,
    Scheme,
    Name {
        name: HeaderName,
        join: Join,
    },
    /// No header can have this name.
    Impossible,
}

/// How Envoy treats several lines of one name.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) enum Join {
    /// Each line is compared on its own ([SEM-AUTHZ-56]).
    Never,
    /// Lines are joined with a comma before anything looks at them.
    Comma,
    /// Lines are joined with `; ` in HTTP/2 and later ([SEM-AUTHZ-57]).
    Cookie,
}

/// What a request has of a header.
#[derive(Clone, Copy)]
pub(crate) enum Lines<'a> {
    None,
    One(&'a [u8]),
    Several,
}

impl<'a> Lines<'a> {
    pub(crate) fn of(headers: &'a HeaderMap, name: &HeaderName) -> Self {
        let mut lines = headers.get_all(name).iter();
        match (lines.next(), lines.next()) {
            (None, _) => Self::None,
            (Some(only), None) => Self::One(only.as_bytes()),
            (Some(_), Some(_)) => Self::Several,
        }
    }
}

/// The names of which Envoy keeps a single value (its inline headers), in byte order.
const JOINED: [&str; 42] = [
    "accept",
    "accept-encoding",
    "access-control-request-headers",
    "access-control-request-method",
    "access-control-request-private-network",
    "authorization",
    "cache-control",
    "connection",
    "content-encoding",
    "content-type",
    "expect",
    "grpc-accept-encoding",
    "grpc-timeout",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "keep-alive",
    "origin",
    "pragma",
    "proxy-connection",
    "proxy-status",
    "referer",
    "te",
    "upgrade",
    "user-agent",
    "via",
    "x-client-trace-id",
    "x-envoy-attempt-count",
    "x-envoy-decorator-operation",
    "x-envoy-downstream-service-cluster",
    "x-envoy-downstream-service-node",
    "x-envoy-expected-rq-timeout-ms",
    "x-envoy-external-address",
    "x-envoy-original-path",
    "x-forwarded-client-cert",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-proto",
    "x-request-id",
];

impl HeaderKey {
    pub(crate) fn parse(name: &str) -> Self {
        match name.to_ascii_lowercase().as_str() {
            ":authority" | "host" => Self::Authority,
            ":method" => Self::Method,
            ":path" => Self::Path,
            ":scheme" => Self::Scheme,
            lower => HeaderName::from_bytes(lower.as_bytes()).map_or(Self::Impossible, |name| {
                let join = if lower == "cookie" {
                    Join::Cookie
                } else if JOINED.contains(&lower) {
                    Join::Comma
                } else {
                    Join::Never
                };
                Self::Name { name, join }
            }),
        }
    }

    /// The name, of a real header.
    pub(crate) fn name(&self) -> Option<&str> {
        match self {
            Self::Name { name, .. } => Some(name.as_str()),
            Self::Authority | Self::Method | Self::Path | Self::Scheme | Self::Impossible => None,
        }
    }

    /// Whether any value of the header satisfies any pattern, as Envoy sees the values.
    #[inline]
    pub(crate) fn matches(&self, slot: Slot, set: &TextSet, view: &View<'_>) -> bool {
        match view.lines(slot, self) {
            Lines::None => false,
            // One line needs no joining, and most headers have one.
            Lines::One(line) => set.matches(line),
            Lines::Several => self.several_match(set, view),
        }
    }

    #[inline(never)]
    fn several_match(&self, set: &TextSet, view: &View<'_>) -> bool {
        let Self::Name { name, join } = self else { return false };
        let Some(http) = &view.facts.http else { return false };
        let values = http.headers.get_all(name);
        let lines = || values.iter().map(HeaderValue::as_bytes);
        match join.separator(http.version) {
            Some(separator) => {
                let joined = Joined { lines, separator };
                set.patterns().iter().any(|pattern| joined.matches(pattern))
            }
            None => lines().any(|line| set.matches(line)),
        }
    }

    /// Whether the request has the header at all.
    pub(crate) fn is_present(&self, view: &View<'_>) -> bool {
        match self {
            Self::Name { name, .. } => {
                view.facts.http.as_ref().is_some_and(|http| http.headers.contains_key(name))
            }
            Self::Authority | Self::Method | Self::Path | Self::Scheme | Self::Impossible => {
                self.pseudo(view).is_some()
            }
        }
    }

    /// The value of a name that is no real header.
    pub(crate) fn pseudo<'a>(&self, view: &View<'a>) -> Option<&'a [u8]> {
        let http = view.facts.http.as_ref()?;
        match self {
            Self::Authority => Some(http.authority.as_bytes()),
            Self::Method => Some(http.method.as_bytes()),
            Self::Path => http.path_and_query,
            Self::Scheme => Some(http.scheme.as_bytes()),
            Self::Name { .. } | Self::Impossible => None,
        }
    }

    /// [SEM-STRICT-03] Whether any, and whether every line satisfies the patterns, for a header
    /// that is present.
    pub(crate) fn lines_match(
        &self,
        slot: Slot,
        set: &TextSet,
        view: &View<'_>,
    ) -> Option<(bool, bool)> {
        let Self::Name { name, .. } = self else { return None };
        match view.lines(slot, self) {
            Lines::None => None,
            Lines::One(line) => {
                let matches = set.matches(line);
                Some((matches, matches))
            }
            Lines::Several => {
                let lines = view.facts.http.as_ref()?.headers.get_all(name);
                let matching = || lines.iter().map(|line| set.matches(line.as_bytes()));
                Some((matching().any(|one| one), matching().all(|one| one)))
            }
        }
    }
}

impl Join {
    pub(crate) fn separator(self, version: http::Version) -> Option<&'static [u8]> {
        match self {
            Self::Never => None,
            Self::Comma => Some(b","),
            Self::Cookie => (version >= http::Version::HTTP_2).then_some(b"; "),
        }
    }
}

/// Several lines as the one text that Envoy makes of them, without making it. Empty lines leave no
/// trace in it.
struct Joined<F> {
    lines: F,
    separator: &'static [u8],
}

impl<'v, F, I> Joined<F>
where
    F: Fn() -> I,
    I: DoubleEndedIterator<Item = &'v [u8]>,
{
    fn matches(&self, pattern: &TextPattern) -> bool {
        match pattern {
            TextPattern::Present => true,
            TextPattern::Exact(text) => self.bytes().eq(text.bytes()),
            TextPattern::Prefix(prefix) => starts_with(self.bytes(), prefix.bytes()),
            TextPattern::Suffix(suffix) => starts_with(self.bytes_back(), suffix.bytes().rev()),
        }
    }

    fn bytes(&self) -> impl Iterator<Item = u8> {
        let lines = (self.lines)().filter(|line| !line.is_empty());
        lines.enumerate().flat_map(|(at, line)| {
            let separator = if at == 0 { &[][..] } else { self.separator };
            separator.iter().chain(line).copied()
        })
    }

    fn bytes_back(&self) -> impl Iterator<Item = u8> {
        let lines = (self.lines)().rev().filter(|line| !line.is_empty());
        lines.enumerate().flat_map(|(at, line)| {
            let separator = if at == 0 { &[][..] } else { self.separator };
            separator.iter().rev().chain(line.iter().rev()).copied()
        })
    }
}

fn starts_with(mut text: impl Iterator<Item = u8>, start: impl Iterator<Item = u8>) -> bool {
    let mut start = start;
    start.all(|want| text.next() == Some(want))
}
