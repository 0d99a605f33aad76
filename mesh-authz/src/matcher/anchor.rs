//! Where the rule index looks: the texts of a request that a condition's keys are about.

use mesh_identity::VerifiedToken;

use super::address::{AddressBits, block_key};
use super::header::HeaderKey;
use super::peer::{
    ACCOUNT_MARK, AccountPattern, NAMESPACE_MARK, NamespacePattern, TrustDomainMatch, after_marks,
    behind_scheme,
};
use super::request_principal::RequestPrincipalPattern;
use super::template::Template;
use super::test::{AddressOf, Matcher, Test, bare_host};
use super::text::TextPattern;
use super::view::View;
use crate::index::Key;
use crate::semantics::{Semantics, StrictRule};

/// A kind of text that a request offers to the index.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) enum Anchor {
    /// What stands behind each `sa/` of the peer's names.
    Account,
    Address(AddressOf),
    Claim(Box<[Box<str>]>),
    /// The names of the token's claims: where hardly two rules ask about the same one.
    ClaimName,
    Header(HeaderKey),
    /// The names of the request's headers, likewise.
    HeaderName,
    Host,
    Issuer,
    Method,
    /// What stands behind each `/ns/` of the peer's names.
    Namespace,
    Path,
    Port,
    /// The peer's names behind the scheme.
    Principal,
    Sni,
    Subject,
}

/// Whether a request's texts say everything about an anchor.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Coverage {
    Complete,
    /// Any rule of the anchor may match.
    Unknown,
}

impl Test {
    /// The ways to find a rule by this condition: one of the keys is true of every request that
    /// satisfies it. Negations and metadata offer none.
    pub(crate) fn anchors(&self) -> Vec<(Anchor, Vec<Key>)> {
        if self.negated {
            return Vec::new();
        }
        let texts = |patterns: &[TextPattern]| patterns.iter().map(TextPattern::key).collect();
        let one = |anchor: Anchor, keys: Vec<Key>| vec![(anchor, keys)];
        match &self.matcher {
            Matcher::Account(accounts) => {
                one(Anchor::Account, accounts.iter().map(AccountPattern::key).collect())
            }
            Matcher::Address(which, blocks) => {
                let keys = blocks.blocks().iter().copied().map(block_key).collect();
                one(Anchor::Address(*which), keys)
            }
            Matcher::Claim(_, path, set) => {
                let value = (Anchor::Claim(path.clone()), texts(set.patterns()));
                let exact = |name: &str| vec![Key::Exact(name.as_bytes().to_vec())];
                let name = path.first().map(|name| (Anchor::ClaimName, exact(name)));
                [value].into_iter().chain(name).collect()
            }
            Matcher::Header(_, key, _) if **key == HeaderKey::Impossible => {
                one(Anchor::Method, Vec::new())
            }
            Matcher::Header(_, key, set) => {
                let value = (Anchor::Header((**key).clone()), texts(set.patterns()));
                let exact = |name: &str| vec![Key::Exact(name.as_bytes().to_vec())];
                let name = key.name().map(|name| (Anchor::HeaderName, exact(name)));
                [value].into_iter().chain(name).collect()
            }
            Matcher::Host(set) => one(Anchor::Host, texts(set.patterns())),
            Matcher::Metadata(_) => Vec::new(),
            Matcher::Method(set) => one(Anchor::Method, texts(set.patterns())),
            Matcher::Namespace(patterns) => {
                one(Anchor::Namespace, patterns.iter().map(NamespacePattern::key).collect())
            }
            Matcher::Path(set) => {
                let mut keys: Vec<Key> = texts(set.texts.patterns());
                keys.extend(set.templates().iter().map(Template::key));
                one(Anchor::Path, keys)
            }
            Matcher::Port(ports) => {
                let keys = ports.iter().map(|port| Key::Exact(port.to_be_bytes().to_vec()));
                one(Anchor::Port, keys.collect())
            }
            Matcher::Principal(set) => {
                set.keys().map(|keys| (Anchor::Principal, keys)).into_iter().collect()
            }
            Matcher::RequestPrincipal(patterns) => vec![
                (
                    Anchor::Subject,
                    patterns.iter().map(RequestPrincipalPattern::subject_key).collect(),
                ),
                (
                    Anchor::Issuer,
                    patterns.iter().map(RequestPrincipalPattern::issuer_key).collect(),
                ),
            ],
            Matcher::Sni(set) => one(Anchor::Sni, texts(set.patterns())),
            Matcher::TrustDomain(domains) => {
                one(Anchor::Principal, domains.iter().map(TrustDomainMatch::key).collect())
            }
        }
    }
}

impl Anchor {
    /// For the names of headers or claims, how many the request has.
    pub(crate) fn names(&self, view: &View<'_>) -> usize {
        match self {
            Self::HeaderName => view.facts.http.as_ref().map_or(0, |http| http.headers.keys_len()),
            Self::ClaimName => view.facts.token.map_or(0, |token| token.view().object().len()),
            Self::Account
            | Self::Address(_)
            | Self::Claim(_)
            | Self::Header(_)
            | Self::Host
            | Self::Issuer
            | Self::Method
            | Self::Namespace
            | Self::Path
            | Self::Port
            | Self::Principal
            | Self::Sni
            | Self::Subject => 0,
        }
    }

    /// Calls `f` with each text of the request that keys of this anchor are about.
    pub(crate) fn texts(
        &self,
        view: &View<'_>,
        semantics: Semantics,
        f: &mut impl FnMut(&[u8]),
    ) -> Coverage {
        let facts = view.facts;
        match self {
            Self::Account | Self::Namespace | Self::Principal => {
                return self.identity_texts(view, semantics, f);
            }
            Self::Address(which) => {
                if let Some(ip) = which.of(view) {
                    f(AddressBits::new(ip).text());
                }
            }
            Self::Claim(path) => {
                let claims = facts.token.map(VerifiedToken::view);
                let claim = claims.and_then(|claims| claims.at(path.iter().map(|name| &**name)));
                if let Some(text) = claim.and_then(serde_json::Value::as_str) {
                    f(text.as_bytes());
                }
                let elements = claim.and_then(serde_json::Value::as_array).into_iter().flatten();
                elements.filter_map(|element| element.as_str()).for_each(|text| f(text.as_bytes()));
            }
            Self::ClaimName => {
                let claims = facts.token.into_iter().flat_map(|token| token.view().object().keys());
                claims.for_each(|name| f(name.as_bytes()));
            }
            Self::HeaderName => {
                let names = facts.http.iter().flat_map(|http| http.headers.keys());
                names.for_each(|name| f(name.as_str().as_bytes()));
            }
            Self::Header(HeaderKey::Name { name, join }) => {
                let Some(http) = &facts.http else { return Coverage::Complete };
                let lines = http.headers.get_all(name);
                if join.separator(http.version).is_some() && lines.iter().nth(1).is_some() {
                    return Coverage::Unknown;
                }
                lines.iter().for_each(|line| f(line.as_bytes()));
            }
            Self::Header(key) => {
                if let Some(text) = key.pseudo(view) {
                    f(text);
                }
            }
            Self::Host => {
                let host = view.host.text();
                f(host);
                if semantics.has(StrictRule::HostHygiene) {
                    f(bare_host(host));
                }
            }
            Self::Issuer => {
                if let Some(text) = facts.token.and_then(|token| token.view().issuer()) {
                    f(text.as_bytes());
                }
            }
            Self::Method => {
                if let Some(http) = &facts.http {
                    f(http.method.as_bytes());
                }
            }
            Self::Path => {
                if let Some(path) = view.path {
                    f(path);
                }
            }
            Self::Port => {
                if let Some(local) = facts.destination {
                    f(&local.port().to_be_bytes());
                }
            }
            Self::Sni => f(view.sni.text()),
            Self::Subject => {
                if let Some(text) = facts.token.and_then(|token| token.view().subject()) {
                    f(text.as_bytes());
                }
            }
        }
        Coverage::Complete
    }

    fn identity_texts(
        &self,
        view: &View<'_>,
        semantics: Semantics,
        f: &mut impl FnMut(&[u8]),
    ) -> Coverage {
        let mut names = view.facts.peer.names().peekable();
        if names.peek().is_none() && semantics.has(StrictRule::PlainTextFailsClosed) {
            return Coverage::Unknown;
        }
        for name in names {
            if *self == Self::Account {
                after_marks(name.as_bytes(), ACCOUNT_MARK).for_each(&mut *f);
            } else if *self == Self::Namespace {
                after_marks(name.as_bytes(), NAMESPACE_MARK).for_each(&mut *f);
            } else if let Some(text) = behind_scheme(name) {
                f(text);
            }
        }
        Coverage::Complete
    }
}
