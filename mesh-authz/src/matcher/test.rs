//! One condition of a rule: what it looks at, what satisfies it, and how strict options narrow it.

use std::net::IpAddr;

use serde_json::Value;

use super::address::BlockSet;
use super::asked::{Place, Slot};
use super::header::HeaderKey;
use super::peer::{AccountPattern, NamespacePattern, PrincipalSet, TrustDomainMatch};
use super::request_principal::RequestPrincipalPattern;
use super::template::{Alphabet, Template};
use super::text::TextSet;
use super::view::View;
use crate::semantics::{Semantics, StrictRule};

/// A field or condition of a compiled rule. Small, because a decision may pass over thousands.
#[derive(Debug)]
pub(crate) struct Test {
    pub(crate) matcher: Matcher,
    /// Whether it is a `not…` field.
    pub(crate) negated: bool,
    /// Where its outcome is remembered, when other rules have the same test.
    pub(crate) place: Option<Place>,
}

/// What a matching rule does: strict options narrow what allows and widen what refuses.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) enum Effect {
    Allow,
    /// DENY and CUSTOM.
    Refuse,
    /// AUDIT: as Istio reads it.
    Observe,
}

/// How a set reads conditions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mood {
    pub(crate) semantics: Semantics,
    pub(crate) effect: Effect,
}

/// What satisfies a condition, by what it looks at.
#[derive(Debug)]
pub(crate) enum Matcher {
    Account(Box<[AccountPattern]>),
    Address(AddressOf, BlockSet),
    Claim(Slot, Box<[Box<str>]>, TextSet),
    Header(Slot, Box<HeaderKey>, TextSet),
    /// Patterns in lower case.
    Host(TextSet),
    Metadata(Box<MetadataMatcher>),
    Method(TextSet),
    Namespace(Box<[NamespacePattern]>),
    Path(PathSet),
    Port(Box<[u16]>),
    Principal(PrincipalSet),
    RequestPrincipal(Box<[RequestPrincipalPattern]>),
    Sni(TextSet),
    TrustDomain(Box<[TrustDomainMatch]>),
}

/// Which address a block is compared with.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) enum AddressOf {
    Client,
    Destination,
    Source,
}

/// [SEM-AUTHZ-75]
#[derive(Debug)]
pub(crate) struct MetadataMatcher {
    pub(crate) slot: Slot,
    pub(crate) filter: Box<str>,
    pub(crate) key: Box<str>,
    /// What a string must satisfy.
    pub(crate) text: TextSet,
    /// What an element of a list must satisfy.
    pub(crate) element: TextSet,
}

/// `paths`: plain patterns and templates.
#[derive(Debug)]
pub(crate) struct PathSet {
    pub(crate) texts: TextSet,
    pub(crate) templates: Option<Box<TemplateSet>>,
}

/// Templates, found by the literal text they begin or end with when they are many.
#[derive(Debug)]
pub(crate) struct TemplateSet {
    templates: Box<[Template]>,
    index: Option<Box<crate::index::TextIndex>>,
}

impl TemplateSet {
    pub(crate) fn new(templates: Vec<Template>) -> Self {
        let index = (templates.len() > 8)
            .then(|| Box::new(crate::index::TextIndex::new(templates.iter().map(Template::key))));
        Self { templates: templates.into(), index }
    }

    fn matches(&self, path: &[u8], alphabet: Alphabet) -> bool {
        let Some(index) = &self.index else {
            return self.templates.iter().any(|template| template.matches(path, alphabet));
        };
        index.any(path, |at| {
            self.templates.get(at).is_some_and(|template| template.matches(path, alphabet))
        })
    }
}

/// What the strict readings of a condition say. Refuse-only ([SEM-STRICT-20]): in a rule that
/// allows, Istio's reading and these must agree; in one that refuses, any of them suffices.
struct Readings {
    any: bool,
    all: bool,
}

impl Readings {
    /// Leaves Istio's verdict as it is.
    const NEUTRAL: Self = Self { any: false, all: true };

    fn one(matches: bool) -> Self {
        Self { any: matches, all: matches }
    }
}

impl Test {
    /// Whether the condition holds.
    #[inline]
    pub(crate) fn holds(&self, view: &View<'_>, mood: Mood) -> bool {
        match self.place {
            Some(place) => view.outcomes.get(place, || self.holds_by_itself(view, mood)),
            None => self.holds_by_itself(view, mood),
        }
    }

    /// What its outcome costs: remembered, compared at once, or looked up in the request first.
    pub(crate) fn effort(&self) -> u8 {
        match (self.place, &self.matcher) {
            (Some(_), _) => 0,
            (None, Matcher::Claim(..) | Matcher::Header(..) | Matcher::Metadata(_)) => 2,
            (None, _) => 1,
        }
    }

    #[inline]
    fn holds_by_itself(&self, view: &View<'_>, mood: Mood) -> bool {
        let istio = self.matcher.matches(view);
        let is_final = self.matcher.has_one_reading()
            || mood.semantics.is_istio()
            || mood.effect == Effect::Observe;
        if is_final { istio != self.negated } else { self.holds_strictly(istio, view, mood) }
    }

    #[inline(never)]
    fn holds_strictly(&self, istio: bool, view: &View<'_>, mood: Mood) -> bool {
        let Readings { any, all } = self.matcher.readings(view, mood.semantics);
        match (mood.effect, self.negated) {
            (Effect::Allow, false) => istio && all,
            (Effect::Allow, true) => !istio && !any,
            (Effect::Refuse, false) => istio || any,
            (Effect::Refuse, true) => !istio || !all,
            (Effect::Observe, negated) => istio != negated,
        }
    }
}

impl Matcher {
    /// Istio's reading. An absent attribute matches nothing ([SEM-AUTHZ-03]).
    ///
    /// What most rules ask comes first and short: a pass over many rules is made of this.
    #[inline]
    fn matches(&self, view: &View<'_>) -> bool {
        if let Self::Path(set) = self {
            set.matches(view)
        } else if let Self::Method(set) = self {
            view.method.is_some_and(|method| set.matches(method))
        } else {
            self.matches_out_of_line(view)
        }
    }

    #[inline(never)]
    fn matches_out_of_line(&self, view: &View<'_>) -> bool {
        match self {
            Self::Account(accounts) => {
                view.peer.any(|name| accounts.iter().any(|account| account.matches(name)))
            }
            Self::Address(which, blocks) => which.of(view).is_some_and(|ip| blocks.contains(ip)),
            Self::Claim(slot, path, set) => {
                view.claim(*slot, path).is_some_and(|claim| claim_matches(claim, set))
            }
            Self::Header(slot, key, set) => key.matches(*slot, set, view),
            Self::Host(set) => view.method.is_some() && set.matches(view.host.text()),
            Self::Metadata(metadata) => metadata.matches(view),
            Self::Method(set) => view.method.is_some_and(|method| set.matches(method)),
            Self::Namespace(patterns) => {
                view.peer.any(|name| patterns.iter().any(|pattern| pattern.matches(name)))
            }
            Self::Path(set) => set.matches(view),
            Self::Port(ports) => {
                view.facts.destination.is_some_and(|local| ports.contains(&local.port()))
            }
            Self::Principal(set) => view.peer.any(|name| set.matches(name)),
            Self::RequestPrincipal(patterns) => {
                view.token_principal().is_some_and(|(issuer, subject)| {
                    patterns.iter().any(|pattern| pattern.matches(issuer, subject))
                })
            }
            Self::Sni(set) => set.matches(view.sni.text()),
            Self::TrustDomain(domains) => {
                view.peer.any(|name| domains.iter().any(|domain| domain.matches(name)))
            }
        }
    }

    /// Whether no option reads it more strictly than Istio; [`Self::readings`] is neutral then.
    #[inline]
    fn has_one_reading(&self) -> bool {
        match self {
            Self::Path(set) => set.templates.is_none(),
            Self::Account(_)
            | Self::Header(..)
            | Self::Host(_)
            | Self::Namespace(_)
            | Self::Principal(_)
            | Self::TrustDomain(_) => false,
            Self::Address(..)
            | Self::Claim(..)
            | Self::Metadata(_)
            | Self::Method(_)
            | Self::Port(_)
            | Self::RequestPrincipal(_)
            | Self::Sni(_) => true,
        }
    }

    fn is_identity(&self) -> bool {
        matches!(
            self,
            Self::Account(_) | Self::Namespace(_) | Self::Principal(_) | Self::TrustDomain(_)
        )
    }

    fn readings(&self, view: &View<'_>, semantics: Semantics) -> Readings {
        if self.is_identity() && view.peer.is_nobody() {
            // [SEM-STRICT-05] Unknown: true where that refuses, false where that allows.
            return if semantics.has(StrictRule::PlainTextFailsClosed) {
                Readings { any: true, all: false }
            } else {
                Readings::NEUTRAL
            };
        }
        match self {
            Self::Account(accounts) if semantics.has(StrictRule::StructuralIdentity) => {
                Readings::one(view.peer.any_identity(|identity| {
                    accounts.iter().any(|account| account.matches_identity(identity))
                }))
            }
            Self::Namespace(patterns) if semantics.has(StrictRule::StructuralIdentity) => {
                Readings::one(view.peer.any_identity(|identity| {
                    patterns.iter().any(|pattern| pattern.matches_segment(identity.namespace))
                }))
            }
            Self::Header(slot, key, set) if semantics.has(StrictRule::RepeatedHeaders) => {
                // [SEM-STRICT-03] Each line by itself, also of headers that Envoy joins.
                key.lines_match(*slot, set, view)
                    .map_or(Readings::NEUTRAL, |(any, all)| Readings { any, all })
            }
            Self::Host(set) if semantics.has(StrictRule::HostHygiene) => {
                // [SEM-STRICT-06] A DENY of the bare name also reaches the name with port or dot.
                let any = set.matches(bare_host(view.host.text()));
                Readings { any, all: true }
            }
            Self::Path(set) if semantics.has(StrictRule::TemplateAlphabet) => {
                // [SEM-STRICT-07] The wider alphabet may refuse more, never allow more.
                let any = view.path.is_some_and(|path| set.fits_template(path, Alphabet::Wide));
                Readings { any, all: true }
            }
            Self::Account(_)
            | Self::Address(..)
            | Self::Claim(..)
            | Self::Header(..)
            | Self::Host(_)
            | Self::Metadata(_)
            | Self::Method(_)
            | Self::Namespace(_)
            | Self::Path(_)
            | Self::Port(_)
            | Self::Principal(_)
            | Self::RequestPrincipal(_)
            | Self::Sni(_)
            | Self::TrustDomain(_) => Readings::NEUTRAL,
        }
    }
}

impl AddressOf {
    pub(crate) fn of(self, view: &View<'_>) -> Option<IpAddr> {
        match self {
            Self::Client => view.client_ip,
            Self::Destination => view.facts.destination.map(|local| local.ip()),
            Self::Source => view.facts.source_ip,
        }
    }
}

impl PathSet {
    #[inline]
    fn matches(&self, view: &View<'_>) -> bool {
        let Some(path) = view.path else { return false };
        self.texts.matches(path)
            || (self.templates.is_some() && self.fits_template(path, view.alphabet()))
    }

    #[inline]
    fn fits_template(&self, path: &[u8], alphabet: Alphabet) -> bool {
        self.templates.as_ref().is_some_and(|templates| templates.matches(path, alphabet))
    }

    pub(crate) fn templates(&self) -> &[Template] {
        self.templates.as_ref().map_or(&[], |set| &set.templates)
    }
}

impl MetadataMatcher {
    fn matches(&self, view: &View<'_>) -> bool {
        match view.metadata(self) {
            Some(Value::String(text)) => self.text.matches(text.as_bytes()),
            Some(Value::Array(elements)) => elements
                .iter()
                .filter_map(Value::as_str)
                .any(|element| self.element.matches(element.as_bytes())),
            Some(Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_)) | None => {
                false
            }
        }
    }
}

/// [SEM-AUTHZ-51] A string, or a list with a string that satisfies; nothing else ever does.
fn claim_matches(claim: &Value, set: &TextSet) -> bool {
    match claim {
        Value::String(text) => set.matches(text.as_bytes()),
        Value::Array(elements) => {
            elements.iter().filter_map(Value::as_str).any(|element| set.matches(element.as_bytes()))
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => false,
    }
}

/// A host without port and trailing dot.
pub(crate) fn bare_host(authority: &[u8]) -> &[u8] {
    let (host, _) = split_port(authority);
    host.strip_suffix(b".").unwrap_or(host)
}

/// Host and port text of an authority; brackets of an IPv6 address stay.
pub(crate) fn split_port(authority: &[u8]) -> (&[u8], Option<&[u8]>) {
    let Some(colon) = memchr::memrchr(b':', authority) else { return (authority, None) };
    let (host, port) = authority.split_at_checked(colon).unwrap_or((authority, b""));
    let port = port.get(1..).unwrap_or_default();
    // A bare IPv6 address has more than one colon and no brackets around it.
    let is_bare_v6 = host.contains(&b':') && !host.ends_with(b"]");
    if is_bare_v6 || port.contains(&b']') { (authority, None) } else { (host, Some(port)) }
}
