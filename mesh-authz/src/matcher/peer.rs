//! Conditions on the peer's names: principals, namespaces, service accounts, trust domains.
//!
//! Istio reads them with regexes over free text; here they are the same searches on bytes.
//! The strict reading ([SEM-STRICT-04]) compares the segments of a parsed id instead.

use std::cell::OnceCell;
use std::fmt;

use mesh_identity::{IstioIdentity, SpiffeIdRef};

use super::text::{TextPattern, TextSet};
use crate::facts::PeerIdentity;
use crate::index::Key;

/// The scheme that Istio puts before every principal.
const SCHEME: &[u8] = b"spiffe://";

/// The peer's names, taken apart at most once.
pub(crate) enum PeerView<'a> {
    Nobody,
    /// What every workload has.
    One(PeerName<'a>),
    /// The names of a certificate that is no SVID.
    Several(PeerIdentity<'a>),
}

impl<'a> PeerView<'a> {
    #[inline]
    pub(crate) fn new(peer: PeerIdentity<'a>) -> Self {
        match peer {
            PeerIdentity::None => Self::Nobody,
            PeerIdentity::Svid(peer) => Self::One(PeerName::new(peer.id().as_str())),
            PeerIdentity::Names(_) if peer.names().next().is_none() => Self::Nobody,
            PeerIdentity::Names(_) => Self::Several(peer),
        }
    }

    #[inline]
    pub(crate) fn is_nobody(&self) -> bool {
        matches!(self, Self::Nobody)
    }

    /// Whether any name passes the check.
    #[inline]
    pub(crate) fn any(&self, check: impl Fn(&PeerName<'a>) -> bool) -> bool {
        match self {
            Self::Nobody => false,
            Self::One(name) => check(name),
            Self::Several(peer) => peer.names().any(|name| check(&PeerName::new(name))),
        }
    }

    /// Whether any name is a SPIFFE ID of Istio's shape that passes the check.
    #[inline]
    pub(crate) fn any_identity(&self, check: impl Fn(IstioIdentity<'a>) -> bool) -> bool {
        self.any(|name| name.identity().is_some_and(&check))
    }
}

/// One name of the peer in the parts that conditions look at.
pub(crate) struct PeerName<'a> {
    text: &'a str,
    /// Behind the scheme.
    rest: Option<&'a [u8]>,
    domain: OnceCell<Option<&'a [u8]>>,
    /// Behind each `/ns/`.
    namespaces: OnceCell<Namespaces<'a>>,
    identity: OnceCell<Option<IstioIdentity<'a>>>,
}

/// What stands behind the `/ns/` of a name. More than one is rare.
#[derive(Clone, Copy)]
enum Namespaces<'a> {
    None,
    One(&'a [u8]),
    Several,
}

impl<'a> PeerName<'a> {
    #[inline]
    fn new(text: &'a str) -> Self {
        Self {
            text,
            rest: behind_scheme(text),
            domain: OnceCell::new(),
            namespaces: OnceCell::new(),
            identity: OnceCell::new(),
        }
    }

    /// What stands before the first slash behind the scheme; nothing without one.
    #[inline]
    fn domain(&self) -> Option<&'a [u8]> {
        *self.domain.get_or_init(|| {
            let rest = self.rest?;
            rest.get(..memchr::memchr(b'/', rest)?)
        })
    }

    #[inline]
    fn namespaces(&self) -> impl Iterator<Item = &'a [u8]> {
        let found = *self.namespaces.get_or_init(|| {
            let mut rests = after_marks(self.text.as_bytes(), NAMESPACE_MARK);
            match (rests.next(), rests.next()) {
                (None, _) => Namespaces::None,
                (Some(only), None) => Namespaces::One(only),
                (Some(_), Some(_)) => Namespaces::Several,
            }
        });
        let (one, many) = match found {
            Namespaces::None => (None, None),
            Namespaces::One(only) => (Some(only), None),
            Namespaces::Several => (None, Some(after_marks(self.text.as_bytes(), NAMESPACE_MARK))),
        };
        one.into_iter().chain(many.into_iter().flatten())
    }

    #[inline]
    fn identity(&self) -> Option<IstioIdentity<'a>> {
        *self.identity.get_or_init(|| istio_identity(self.text))
    }
}

/// `principals`, aliases expanded ([SEM-AUTHZ-20]).
#[derive(Debug)]
pub(crate) struct PrincipalSet {
    /// `*` is among the values.
    any: bool,
    /// Patterns on the name behind the scheme.
    rest: TextSet,
}

impl PrincipalSet {
    pub(crate) fn new(values: Vec<TextPattern>) -> Self {
        let any = values.contains(&TextPattern::Present);
        let rest = values.into_iter().filter(|value| *value != TextPattern::Present).collect();
        Self { any, rest: TextSet::new(rest) }
    }

    #[inline]
    pub(crate) fn matches(&self, name: &PeerName<'_>) -> bool {
        (self.any && TextPattern::Present.matches(name.text.as_bytes()))
            || name.rest.is_some_and(|rest| self.rest.matches(rest))
    }

    /// The values, for a person.
    pub(crate) fn patterns(&self) -> impl Iterator<Item = &TextPattern> {
        self.any.then_some(&TextPattern::Present).into_iter().chain(self.rest.patterns())
    }

    /// Keys on the name behind the scheme; none when the scheme is not required.
    pub(crate) fn keys(&self) -> Option<Vec<Key>> {
        (!self.any).then(|| self.rest.patterns().iter().map(TextPattern::key).collect())
    }
}

/// What index keys of principals and trust domains look at.
pub(crate) fn behind_scheme(name: &str) -> Option<&[u8]> {
    name.as_bytes().strip_prefix(SCHEME)
}

/// A value of `namespaces`: stars count anywhere and cross slashes ([SEM-AUTHZ-26]).
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) struct NamespacePattern {
    /// Texts that must follow each other, the first behind `/ns/`, the last before a slash.
    pieces: Box<[Box<str>]>,
}

impl NamespacePattern {
    pub(crate) fn parse(value: &str) -> Self {
        Self { pieces: value.split('*').map(Into::into).collect() }
    }

    /// `.*/ns/` value `/.*`, every star a `.*`.
    pub(crate) fn matches(&self, name: &PeerName<'_>) -> bool {
        let Some((first, more)) = self.pieces.split_first() else { return false };
        let mut rests = name.namespaces().filter_map(|rest| rest.strip_prefix(first.as_bytes()));
        let Some((last, middle)) = more.split_last() else {
            return rests.any(|rest| rest.first() == Some(&b'/'));
        };
        // A star follows the first piece, so its first occurrence leaves most to look at.
        let Some(mut rest) = rests.next() else { return false };
        for piece in middle {
            let Some(next) = behind(rest, piece.as_bytes()) else { return false };
            rest = next;
        }
        has_segment_end(rest, last.as_bytes())
    }

    /// [SEM-STRICT-04] The whole segment, in which stars stay.
    pub(crate) fn matches_segment(&self, segment: &str) -> bool {
        let Some((first, more)) = self.pieces.split_first() else { return false };
        let Some((last, middle)) = more.split_last() else { return **first == *segment };
        let Some(mut rest) = segment.as_bytes().strip_prefix(first.as_bytes()) else {
            return false;
        };
        for piece in middle {
            let Some(next) = behind(rest, piece.as_bytes()) else { return false };
            rest = next;
        }
        rest.ends_with(last.as_bytes())
    }

    /// Whether every id of Istio's shape satisfies the end of the pattern, because `/sa/` follows
    /// every namespace ([SEM-AUTHZ-26]).
    pub(crate) fn reaches_sa(&self) -> bool {
        let Some((last, [_, ..])) = self.pieces.split_last() else { return false };
        matches!(&**last, "a" | "sa" | "/sa")
    }

    /// A key on the text behind each `/ns/`.
    pub(crate) fn key(&self) -> Key {
        match &*self.pieces {
            [] => Key::Prefix(Vec::new()),
            [only] => Key::Prefix([only.as_bytes(), b"/"].concat()),
            [first, ..] => Key::Prefix(first.as_bytes().to_vec()),
        }
    }
}

pub(crate) const NAMESPACE_MARK: &[u8] = b"/ns/";
pub(crate) const ACCOUNT_MARK: &[u8] = b"sa/";

/// The texts behind each occurrence of a mark.
pub(crate) fn after_marks<'a>(
    name: &'a [u8],
    mark: &'static [u8],
) -> impl Iterator<Item = &'a [u8]> {
    let mut rest = Some(name);
    std::iter::from_fn(move || {
        let text = rest?;
        let at = memchr::memmem::find(text, mark)?;
        // Marks may overlap: `/ns/ns/` holds two.
        rest = text.get(at.saturating_add(1)..);
        text.get(at.saturating_add(mark.len())..)
    })
}

/// The text behind the first occurrence of `piece`.
fn behind<'a>(text: &'a [u8], piece: &[u8]) -> Option<&'a [u8]> {
    let at = memchr::memmem::find(text, piece)?;
    text.get(at.saturating_add(piece.len())..)
}

/// Whether `piece` with a slash behind it occurs in `text`.
fn has_segment_end(text: &[u8], piece: &[u8]) -> bool {
    let mut rest = text;
    loop {
        let Some(next) = behind(rest, piece) else { return false };
        if next.first() == Some(&b'/') {
            return true;
        }
        // An empty piece is found at once, over and over: look for the slash itself.
        if piece.is_empty() {
            return rest.contains(&b'/');
        }
        let skip = rest.len().saturating_sub(next.len()).saturating_sub(piece.len());
        rest = rest.get(skip.saturating_add(1)..).unwrap_or_default();
    }
}

/// A value of `serviceAccounts`, namespace filled in ([SEM-AUTHZ-27]).
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) struct AccountPattern {
    namespace: Box<str>,
    name: Box<str>,
}

impl AccountPattern {
    /// A name without namespace is one of the policy's own, for a policy of the root namespace too.
    pub(crate) fn parse(value: &str, policy_namespace: &str) -> Self {
        let (namespace, name) = value.split_once('/').unwrap_or((policy_namespace, value));
        Self { namespace: namespace.into(), name: name.into() }
    }

    /// `spiffe://.+/ns/NS/(.+/|)sa/NAME(/.+)?`
    pub(crate) fn matches(&self, name: &PeerName<'_>) -> bool {
        let Some(rest) = name.rest else { return false };
        // `.+`: something stands before `/ns/`.
        let longest = rest.len().saturating_sub(NAMESPACE_MARK.len()).saturating_sub(1);
        // The first namespace mark leaves the longest rest, which holds those of the others.
        let mut rests = name
            .namespaces()
            .filter(|rest| rest.len() <= longest)
            .filter_map(|rest| rest.strip_prefix(self.namespace.as_bytes())?.strip_prefix(b"/"));
        let Some(rest) = rests.next() else { return false };
        if rest.strip_prefix(ACCOUNT_MARK).is_some_and(|account| self.is_account(account)) {
            return true;
        }
        // `.+/sa/`: at least one character before the slash.
        let Some(rest) = rest.get(1..) else { return false };
        after_marks(rest, b"/sa/").any(|account| self.is_account(account))
    }

    fn is_account(&self, text: &[u8]) -> bool {
        match text.strip_prefix(self.name.as_bytes()) {
            Some([]) => true,
            Some([b'/', more @ ..]) => !more.is_empty(),
            Some(_) | None => false,
        }
    }

    /// [SEM-STRICT-04] Exactly this pair.
    pub(crate) fn matches_identity(&self, identity: IstioIdentity<'_>) -> bool {
        *self.namespace == *identity.namespace && *self.name == *identity.service_account
    }

    /// A key on the text behind each `sa/`.
    pub(crate) fn key(&self) -> Key {
        Key::Prefix(self.name.as_bytes().to_vec())
    }
}

/// A value of `trustDomains` ([SEM-AUTHZ-28]), matched on the name behind the scheme.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum TrustDomainMatch {
    /// `*`: any name with the scheme.
    Any,
    /// No star.
    Exact(Box<str>),
    /// One star or more, which stay inside the trust domain.
    Pattern(Box<[Box<str>]>),
}

impl TrustDomainMatch {
    pub(crate) fn parse(value: &str) -> Self {
        if value == "*" {
            Self::Any
        } else if let Some(rest) = value.strip_prefix('*') {
            // Further stars are literal, as in Istio's translation; validation refuses them.
            Self::Pattern(Box::new(["".into(), rest.into()]))
        } else if let Some(rest) = value.strip_suffix('*') {
            Self::Pattern(Box::new([rest.into(), "".into()]))
        } else if value.contains('*') {
            Self::Pattern(value.split('*').map(Into::into).collect())
        } else {
            Self::Exact(value.into())
        }
    }

    pub(crate) fn matches(&self, name: &PeerName<'_>) -> bool {
        if *self == Self::Any {
            return name.rest.is_some();
        }
        let Some(domain) = name.domain() else { return false };
        match self {
            Self::Any => true,
            Self::Exact(exact) => domain == exact.as_bytes(),
            Self::Pattern(pieces) => {
                let Some((first, more)) = pieces.split_first() else { return false };
                let Some((last, middle)) = more.split_last() else { return false };
                let Some(mut rest) = domain.strip_prefix(first.as_bytes()) else { return false };
                for piece in middle {
                    let Some(next) = behind(rest, piece.as_bytes()) else { return false };
                    rest = next;
                }
                rest.ends_with(last.as_bytes())
            }
        }
    }

    /// A key on the name behind the scheme.
    pub(crate) fn key(&self) -> Key {
        Key::Prefix(match self {
            Self::Any => Vec::new(),
            Self::Exact(exact) => [exact.as_bytes(), b"/"].concat(),
            Self::Pattern(pieces) => {
                pieces.first().map(|first| first.as_bytes().to_vec()).unwrap_or_default()
            }
        })
    }
}

/// Namespace and service account of a name, when it is a SPIFFE ID of Istio's shape.
pub(crate) fn istio_identity(name: &str) -> Option<IstioIdentity<'_>> {
    SpiffeIdRef::parse(name).ok()?.istio()
}

impl fmt::Display for NamespacePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.pieces.join("*"))
    }
}

impl fmt::Display for AccountPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl fmt::Display for TrustDomainMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Exact(exact) => f.write_str(exact),
            Self::Pattern(pieces) => f.write_str(&pieces.join("*")),
        }
    }
}
