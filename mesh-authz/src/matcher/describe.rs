//! Conditions in words: what they want, and what a request has, without secrets.

use std::fmt::Display;

use super::header::HeaderKey;
use super::template::{Segment, Template, Unit};
use super::test::{AddressOf, Matcher, MetadataMatcher, Test};
use super::text::TextPattern;
use super::view::View;

/// More values than this are counted, not shown.
const MAX_SHOWN: usize = 3;

/// Longer texts of a request are cut.
const MAX_TEXT: usize = 120;

impl Test {
    /// What the condition asks for.
    pub(crate) fn wants(&self) -> String {
        let values = self.matcher.wants();
        if self.negated { format!("none of {values}") } else { values }
    }

    /// What the request has. Values of headers and claims may be secrets and stay out.
    pub(crate) fn found(&self, view: &View<'_>) -> String {
        self.matcher.found(view, if self.negated { "one of these" } else { "another value" })
    }
}

impl Matcher {
    /// The attribute as a `when` key ([SEM-AUTHZ-04]); nothing for those that are no key.
    pub(crate) fn key(&self) -> Option<String> {
        let fixed = match self {
            Self::Account(_) => "source.serviceAccount",
            Self::Address(AddressOf::Client, _) => "remote.ip",
            Self::Address(AddressOf::Destination, _) => "destination.ip",
            Self::Address(AddressOf::Source, _) => "source.ip",
            Self::Claim(_, path, _) => {
                return Some(shown(&format!("request.auth.claims[{}]", path.join("]["))));
            }
            Self::Header(_, key, _) => return Some(format!("request.headers[{key}]")),
            Self::Metadata(metadata) => {
                let MetadataMatcher { filter, key, .. } = &**metadata;
                return Some(shown(&format!("experimental.{filter}[{key}]")));
            }
            Self::Host(_) | Self::Method(_) | Self::Path(_) => return None,
            Self::Namespace(_) => "source.namespace",
            Self::Port(_) => "destination.port",
            Self::Principal(_) => "source.principal",
            Self::RequestPrincipal(_) => "request.auth.principal",
            Self::Sni(_) => "connection.sni",
            Self::TrustDomain(_) => "source.trustDomain",
        };
        Some(fixed.to_owned())
    }

    /// The values of the condition as its author wrote them, the first few.
    fn wants(&self) -> String {
        match self {
            Self::Account(accounts) => list(accounts.iter()),
            Self::Address(_, blocks) => list(blocks.blocks().iter()),
            Self::Claim(_, _, set)
            | Self::Header(_, _, set)
            | Self::Host(set)
            | Self::Method(set)
            | Self::Sni(set) => list(set.patterns().iter()),
            Self::Metadata(metadata) => {
                list(metadata.text.patterns().iter().chain(metadata.element.patterns()))
            }
            Self::Namespace(patterns) => list(patterns.iter()),
            Self::Path(set) => {
                let texts = set.texts.patterns().iter().map(ToString::to_string);
                let templates = set.templates().iter().map(ToString::to_string);
                list(texts.chain(templates))
            }
            Self::Port(ports) => list(ports.iter()),
            Self::Principal(set) => list(set.patterns()),
            Self::RequestPrincipal(patterns) => list(patterns.iter()),
            Self::TrustDomain(domains) => list(domains.iter()),
        }
    }

    fn found(&self, view: &View<'_>, secret: &str) -> String {
        let facts = view.facts;
        let or_none = |text: Option<String>, none: &str| text.unwrap_or_else(|| none.to_owned());
        match self {
            Self::Account(_) | Self::Namespace(_) | Self::Principal(_) | Self::TrustDomain(_) => {
                let names: Vec<String> = facts.peer.names().map(shown).collect();
                if names.is_empty() { "no verified peer".to_owned() } else { names.join(", ") }
            }
            Self::Address(which, _) => {
                or_none(which.of(view).map(|ip| ip.to_string()), "no IP address")
            }
            Self::Claim(..) | Self::RequestPrincipal(_) if facts.token.is_none() => {
                "no verified token".to_owned()
            }
            Self::Claim(_, path, _) => {
                let claims = facts.token.map(mesh_identity::VerifiedToken::view);
                let claim = claims.and_then(|claims| claims.at(path.iter().map(|name| &**name)));
                if claim.is_some() { secret } else { "no such claim" }.to_owned()
            }
            Self::Header(_, key, _) => {
                if key.is_present(view) { secret } else { "no such header" }.to_owned()
            }
            Self::Host(_) => or_none(facts.http.map(|http| shown(http.authority)), "no host"),
            Self::Metadata(_) => "other metadata".to_owned(),
            Self::Method(_) => or_none(facts.http.map(|http| shown(http.method)), "no method"),
            Self::Path(_) => {
                let path = view.path.map(|path| shown(&String::from_utf8_lossy(path)));
                or_none(path, "no path")
            }
            Self::Port(_) => {
                let port = facts.destination.map(|local| local.port().to_string());
                or_none(port, "no port")
            }
            Self::RequestPrincipal(_) => secret.to_owned(),
            Self::Sni(_) => {
                if facts.sni.is_empty() {
                    "no server name".to_owned()
                } else {
                    shown(facts.sni)
                }
            }
        }
    }
}

fn list(values: impl Iterator<Item = impl Display>) -> String {
    let mut shown_values = Vec::new();
    let mut more = 0_usize;
    for value in values {
        if shown_values.len() < MAX_SHOWN {
            shown_values.push(shown(&value.to_string()));
        } else {
            more = more.saturating_add(1);
        }
    }
    let text = shown_values.join(" or ");
    if more == 0 { text } else { format!("{text} or {more} more") }
}

/// A text cut and escaped, fit for a log line.
fn shown(text: &str) -> String {
    let mut shown: String = text.chars().take(MAX_TEXT).flat_map(char::escape_debug).collect();
    if text.chars().nth(MAX_TEXT).is_some() {
        shown.push('…');
    }
    shown
}

impl Display for TextPattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Present => f.write_str("*"),
            Self::Prefix(prefix) => write!(f, "{prefix}*"),
            Self::Suffix(suffix) => write!(f, "*{suffix}"),
            Self::Exact(exact) => f.write_str(exact),
        }
    }
}

impl Display for HeaderKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Authority => ":authority",
            Self::Method => ":method",
            Self::Path => ":path",
            Self::Scheme => ":scheme",
            Self::Name { name, .. } => name.as_str(),
            Self::Impossible => "?",
        })
    }
}

impl Display for Template {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Segments { head, rest } => {
                for segment in head {
                    match segment {
                        Segment::Literal(text) => write!(f, "/{text}")?,
                        Segment::One => f.write_str("/{*}")?,
                    }
                }
                rest.iter().try_for_each(|rest| write!(f, "/{{**}}{rest}"))
            }
            Self::Free(units) => units.iter().try_for_each(|unit| match unit {
                Unit::Byte(byte) => write!(f, "{}", char::from(*byte)),
                Unit::Repeated(byte) => write!(f, "{}*", char::from(*byte)),
                Unit::One => f.write_str("{*}"),
                Unit::Any => f.write_str("{**}"),
            }),
        }
    }
}
