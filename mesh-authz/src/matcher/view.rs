//! A request's facts with what several conditions need worked out once.

use std::cell::{Cell, OnceCell};
use std::net::IpAddr;

use mesh_identity::VerifiedToken;
use serde_json::Value;

use super::asked::{Answers, Marks, Outcomes, Slot};
use super::header::{HeaderKey, Lines};
use super::peer::PeerView;
use super::template::Alphabet;
use super::test::MetadataMatcher;
use crate::facts::RequestFacts;

/// Facts in the form that matchers read.
pub(crate) struct View<'a> {
    pub(crate) facts: &'a RequestFacts<'a>,
    pub(crate) method: Option<&'a [u8]>,
    /// The path without query ([SEM-AUTHZ-65]).
    pub(crate) path: Option<&'a [u8]>,
    /// The authority in lower case ([SEM-AUTHZ-60]).
    pub(crate) host: Lower<'a>,
    /// The server name in lower case, as Envoy delivers it.
    pub(crate) sni: Lower<'a>,
    pub(crate) peer: PeerView<'a>,
    /// The address behind proxies.
    pub(crate) client_ip: Option<IpAddr>,
    token_principal: OnceCell<Option<(&'a str, &'a str)>>,
    /// How many templates were compared without looking at the whole path.
    templates: Cell<u8>,
    alphabet: OnceCell<Alphabet>,
    header_names: Marks,
    headers: Answers<Lines<'a>>,
    claim_names: Marks,
    values: Answers<Option<&'a Value>>,
    pub(crate) outcomes: Outcomes,
}

impl<'a> View<'a> {
    #[inline]
    pub(crate) fn new(facts: &'a RequestFacts<'a>) -> Self {
        let http = facts.http.as_ref();
        Self {
            facts,
            method: http.map(|http| http.method.as_bytes()),
            path: facts.path(),
            host: Lower::new(http.map_or("", |http| http.authority)),
            sni: Lower::new(facts.sni),
            peer: PeerView::new(facts.peer),
            client_ip: facts.client_ip(),
            token_principal: OnceCell::new(),
            templates: Cell::new(0),
            alphabet: OnceCell::new(),
            header_names: Marks::default(),
            headers: Answers::default(),
            claim_names: Marks::default(),
            values: Answers::default(),
            outcomes: Outcomes::default(),
        }
    }

    /// Issuer and subject of the token, when both are strings.
    #[inline]
    pub(crate) fn token_principal(&self) -> Option<(&'a str, &'a str)> {
        *self.token_principal.get_or_init(|| {
            let claims = self.facts.token.map(VerifiedToken::view)?;
            claims.issuer().zip(claims.subject())
        })
    }

    /// The alphabet to read the path with: where many templates ask, a path of Envoy's letters
    /// alone is found out once and needs no look at each.
    #[inline]
    pub(crate) fn alphabet(&self) -> Alphabet {
        let templates = self.templates.get();
        if templates < FEW {
            self.templates.set(templates.saturating_add(1));
            return Alphabet::Envoy;
        }
        *self.alphabet.get_or_init(|| {
            let is_plain = self.path.is_none_or(|path| Alphabet::Envoy.covers_all(path));
            if is_plain { Alphabet::Wide } else { Alphabet::Envoy }
        })
    }

    /// The lines of a header.
    #[inline]
    pub(crate) fn lines(&self, slot: Slot, key: &HeaderKey) -> Lines<'a> {
        let HeaderKey::Name { name, .. } = key else {
            return key.pseudo(self).map_or(Lines::None, Lines::One);
        };
        if let Some(lines) = self.headers.known(slot) {
            return lines;
        }
        let Some(http) = &self.facts.http else { return Lines::None };
        let names = || http.headers.keys().map(|name| name.as_str().as_bytes());
        if !self.header_names.may_have(slot, names) {
            return Lines::None;
        }
        self.headers.remember(slot, Lines::of(http.headers, name))
    }

    /// The claim at a path of names.
    #[inline]
    pub(crate) fn claim(&self, slot: Slot, path: &[Box<str>]) -> Option<&'a Value> {
        if let Some(claim) = self.values.known(slot) {
            return claim;
        }
        let claims = self.facts.token?.view();
        let names = || claims.object().keys().map(String::as_bytes);
        if !self.claim_names.may_have(slot, names) {
            return None;
        }
        self.values.remember(slot, claims.at(path.iter().map(|name| &**name)))
    }

    /// The value of a filter's metadata.
    #[inline]
    pub(crate) fn metadata(&self, asked: &MetadataMatcher) -> Option<&'a Value> {
        let metadata = self.facts.metadata?;
        if let Some(value) = self.values.known(asked.slot) {
            return value;
        }
        let filter = metadata.get(&*asked.filter);
        self.values.remember(asked.slot, filter.and_then(|filter| filter.get(&*asked.key)))
    }
}

/// So many templates are compared before a look at the whole path is worth it.
const FEW: u8 = 4;

/// Names up to this length are lower-cased on the stack; DNS names end at 255.
const MAX_INLINE: usize = 256;

/// A text in ASCII lower case, worked out when the first condition asks for it and copied only
/// where it was not.
pub(crate) struct Lower<'a> {
    text: &'a [u8],
    lower: OnceCell<Lowered>,
}

#[expect(clippy::large_enum_variant, reason = "the large one keeps the name off the heap")]
enum Lowered {
    Already,
    Inline([u8; MAX_INLINE], usize),
    Long(Vec<u8>),
}

impl<'a> Lower<'a> {
    fn new(text: &'a str) -> Self {
        Self { text: text.as_bytes(), lower: OnceCell::new() }
    }

    pub(crate) fn text(&self) -> &[u8] {
        match self.lower.get_or_init(|| Lowered::new(self.text)) {
            Lowered::Already => self.text,
            Lowered::Inline(text, len) => text.get(..*len).unwrap_or_default(),
            Lowered::Long(text) => text,
        }
    }
}

impl Lowered {
    fn new(text: &[u8]) -> Self {
        if !text.iter().any(u8::is_ascii_uppercase) {
            return Self::Already;
        }
        let mut inline = [0; MAX_INLINE];
        match inline.get_mut(..text.len()) {
            Some(start) => {
                start.copy_from_slice(text);
                start.make_ascii_lowercase();
                Self::Inline(inline, text.len())
            }
            None => Self::Long(text.to_ascii_lowercase()),
        }
    }
}
