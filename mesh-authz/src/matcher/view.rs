//! A request's facts with what several conditions need worked out once.

use std::cell::OnceCell;

use crate::facts::RequestFacts;

/// Facts in the form that matchers read.
pub(crate) struct View<'a> {
    pub(crate) facts: &'a RequestFacts<'a>,
    /// The path without query ([SEM-AUTHZ-65]).
    pub(crate) path: Option<&'a [u8]>,
    /// The authority in lower case ([SEM-AUTHZ-60]).
    pub(crate) host: Lower<'a>,
    /// The server name in lower case, as Envoy delivers it.
    pub(crate) sni: Lower<'a>,
}

impl<'a> View<'a> {
    pub(crate) fn new(facts: &'a RequestFacts<'a>) -> Self {
        Self {
            facts,
            path: facts.path(),
            host: Lower::new(facts.http.map_or("", |http| http.authority)),
            sni: Lower::new(facts.sni),
        }
    }
}

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
