//! SPIFFE IDs: the one canonical form of the SPIFFE-ID standard, parsed once.
//!
//! [SEC-ID-1]: nothing is normalized on the way in, so unequal bytes are unequal ids.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::trust_domain::{MAX_TRUST_DOMAIN_LEN, TrustDomain};

/// The scheme and separator that every SPIFFE ID begins with.
const SCHEME: &str = "spiffe://";

/// The longest SPIFFE ID in bytes (SPIFFE-ID section 2.3).
pub const MAX_SPIFFE_ID_LEN: usize = 2048;

/// A workload's name, such as `spiffe://prod.example/ns/pay/sa/api`.
///
/// A value has passed every rule of the SPIFFE-ID standard, so no code behind the
/// parser checks again. Cloning shares the one allocation.
///
/// # Examples
///
/// ```
/// use mesh_identity::SpiffeId;
///
/// let id: SpiffeId = "spiffe://prod.example/ns/pay/sa/api".parse()?;
/// assert_eq!(id.principal(), "prod.example/ns/pay/sa/api");
/// assert!("spiffe://prod.example/ns//sa".parse::<SpiffeId>().is_err());
/// # Ok::<(), mesh_identity::SpiffeIdError>(())
/// ```
#[derive(Clone, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct SpiffeId {
    /// Invariant: the whole id, scheme included, accepted by [`SpiffeIdRef::parse`].
    uri: Arc<str>,
    /// Length of the trust domain's name behind the scheme.
    trust_domain_len: usize,
}

impl SpiffeId {
    /// The whole id, scheme included.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.uri
    }

    /// The borrowed view of this id.
    #[must_use]
    pub fn as_ref(&self) -> SpiffeIdRef<'_> {
        SpiffeIdRef { uri: &self.uri, trust_domain_len: self.trust_domain_len }
    }

    /// Trust domain and path without the scheme: what Istio policies call a principal.
    #[must_use]
    pub fn principal(&self) -> &str {
        self.as_ref().principal()
    }

    /// The name of the trust domain, for example `prod.example`.
    #[must_use]
    pub fn trust_domain(&self) -> &str {
        self.as_ref().trust_domain()
    }

    /// The path with its leading slash; empty when the id names the trust domain itself.
    #[must_use]
    pub fn path(&self) -> &str {
        self.as_ref().path()
    }

    /// Namespace and service account, when the id has Istio's form
    /// `spiffe://<td>/ns/<namespace>/sa/<service account>` and nothing more.
    #[must_use]
    pub fn istio(&self) -> Option<IstioIdentity<'_>> {
        self.as_ref().istio()
    }

    /// Builds the id that Istio gives to a Kubernetes service account.
    ///
    /// # Errors
    ///
    /// Any [`SpiffeIdError`] when a part has a character or length that an id cannot carry.
    pub fn for_service_account(
        trust_domain: &TrustDomain,
        namespace: &str,
        service_account: &str,
    ) -> Result<Self, SpiffeIdError> {
        if [namespace, service_account].iter().any(|part| part.contains('/')) {
            return Err(SpiffeIdError::PathChar);
        }
        format!("{SCHEME}{}/ns/{namespace}/sa/{service_account}", trust_domain.as_str()).parse()
    }
}

impl FromStr for SpiffeId {
    type Err = SpiffeIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        SpiffeIdRef::parse(text).map(SpiffeIdRef::to_owned)
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}

/// A [`SpiffeId`] that borrows its text; parsing one allocates nothing.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct SpiffeIdRef<'a> {
    /// Invariant: begins with the scheme; trust domain and path passed every check.
    uri: &'a str,
    trust_domain_len: usize,
}

impl<'a> SpiffeIdRef<'a> {
    /// Reads an id by the rules of SPIFFE-ID section 2.
    ///
    /// # Errors
    ///
    /// The first rule that the text breaks, in the order of [`SpiffeIdError`]'s documentation.
    pub fn parse(uri: &'a str) -> Result<Self, SpiffeIdError> {
        if uri.is_empty() {
            return Err(SpiffeIdError::Empty);
        }
        let rest = uri.strip_prefix(SCHEME).ok_or(SpiffeIdError::WrongScheme)?;
        if uri.len() > MAX_SPIFFE_ID_LEN {
            return Err(SpiffeIdError::TooLong);
        }
        let (trust_domain, path) = split_while(rest.as_bytes(), is_trust_domain_byte);
        check_trust_domain(trust_domain, path)?;
        check_path(path)?;
        Ok(Self { uri, trust_domain_len: trust_domain.len() })
    }

    /// The whole id, scheme included.
    #[must_use]
    pub fn as_str(self) -> &'a str {
        self.uri
    }

    /// Trust domain and path without the scheme.
    #[must_use]
    pub fn principal(self) -> &'a str {
        self.uri.get(SCHEME.len()..).unwrap_or_default()
    }

    /// The name of the trust domain.
    #[must_use]
    pub fn trust_domain(self) -> &'a str {
        self.principal().get(..self.trust_domain_len).unwrap_or_default()
    }

    /// The path with its leading slash, or the empty string.
    #[must_use]
    pub fn path(self) -> &'a str {
        self.principal().get(self.trust_domain_len..).unwrap_or_default()
    }

    /// Namespace and service account of an id in Istio's five-part form.
    #[must_use]
    pub fn istio(self) -> Option<IstioIdentity<'a>> {
        let (namespace, rest) = self.path().strip_prefix("/ns/")?.split_once('/')?;
        let service_account = rest.strip_prefix("sa/").filter(|name| !name.contains('/'))?;
        Some(IstioIdentity { namespace, service_account })
    }

    /// Copies the text into an owned id.
    #[must_use]
    pub fn to_owned(self) -> SpiffeId {
        SpiffeId { uri: Arc::from(self.uri), trust_domain_len: self.trust_domain_len }
    }
}

impl fmt::Display for SpiffeIdRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.uri)
    }
}

/// What Istio reads out of a SPIFFE ID of the form `/ns/<namespace>/sa/<service account>`.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub struct IstioIdentity<'a> {
    /// The Kubernetes namespace.
    pub namespace: &'a str,
    /// The Kubernetes service account.
    pub service_account: &'a str,
}

/// Why a string is not a SPIFFE ID or a trust domain; the first broken rule wins.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SpiffeIdError {
    /// A path segment is `.` or `..`.
    #[error("path has a dot segment")]
    DotSegment,

    /// There is no text at all.
    #[error("id is empty")]
    Empty,

    /// Two slashes meet.
    #[error("path has an empty segment")]
    EmptySegment,

    /// No name stands where the trust domain belongs.
    #[error("trust domain is missing")]
    MissingTrustDomain,

    /// A path segment has a character outside letters, digits, `.`, `-` and `_`.
    #[error("path has a forbidden character")]
    PathChar,

    /// The whole id is longer than 2048 bytes.
    #[error("id is longer than {MAX_SPIFFE_ID_LEN} bytes")]
    TooLong,

    /// The path ends in a slash.
    #[error("path has a trailing slash")]
    TrailingSlash,

    /// The trust domain has a character outside lower-case letters, digits, `.`, `-` and `_`.
    #[error("trust domain has a forbidden character at byte {at}")]
    TrustDomainChar {
        /// Offset of the character from the start of the trust domain.
        at: usize,
    },

    /// The trust domain is longer than 255 bytes.
    #[error("trust domain is longer than 255 bytes")]
    TrustDomainTooLong,

    /// The text does not begin with `spiffe://` in lower case.
    #[error("scheme is not spiffe://")]
    WrongScheme,
}

/// SPIFFE-ID section 2.1: 1 to 255 bytes of `[a-z0-9.-_]`, and a path or nothing behind them.
pub(crate) fn check_trust_domain(name: &[u8], behind: &[u8]) -> Result<(), SpiffeIdError> {
    if !matches!(behind, [] | [b'/', ..]) {
        return Err(SpiffeIdError::TrustDomainChar { at: name.len() });
    }
    match name.len() {
        0 => Err(SpiffeIdError::MissingTrustDomain),
        1..=MAX_TRUST_DOMAIN_LEN => Ok(()),
        _ => Err(SpiffeIdError::TrustDomainTooLong),
    }
}

/// SPIFFE-ID section 2.2: non-empty segments of `[A-Za-z0-9.-_]`, none `.` or `..`.
fn check_path(mut path: &[u8]) -> Result<(), SpiffeIdError> {
    while let [_slash, segments @ ..] = path {
        let (segment, rest) = split_while(segments, is_path_byte);
        if !matches!(rest, [] | [b'/', ..]) {
            return Err(SpiffeIdError::PathChar);
        }
        match segment {
            [] if rest.is_empty() => return Err(SpiffeIdError::TrailingSlash),
            [] => return Err(SpiffeIdError::EmptySegment),
            b"." | b".." => return Err(SpiffeIdError::DotSegment),
            _ => path = rest,
        }
    }
    Ok(())
}

/// Before and from the first byte that is of another kind.
pub(crate) fn split_while(bytes: &[u8], kind: fn(u8) -> bool) -> (&[u8], &[u8]) {
    let end = bytes.iter().position(|byte| !kind(*byte)).unwrap_or(bytes.len());
    bytes.split_at_checked(end).unwrap_or((bytes, &[]))
}

pub(crate) fn is_trust_domain_byte(byte: u8) -> bool {
    KINDS.get(usize::from(byte)).is_some_and(|kinds| kinds & TRUST_DOMAIN != 0)
}

fn is_path_byte(byte: u8) -> bool {
    KINDS.get(usize::from(byte)).is_some_and(|kinds| kinds & PATH != 0)
}

const TRUST_DOMAIN: u8 = 1;
const PATH: u8 = 2;

/// Where a byte may stand. An ID is parsed in every handshake, and a look-up is what that costs.
#[expect(
    clippy::as_conversions,
    clippy::indexing_slicing,
    reason = "evaluated by the compiler: a byte always fits"
)]
const KINDS: [u8; 256] = {
    let mut kinds = [0; 256];
    let mut rest: &[u8] = b"abcdefghijklmnopqrstuvwxyz0123456789.-_";
    while let [byte, others @ ..] = rest {
        kinds[*byte as usize] = TRUST_DOMAIN | PATH;
        rest = others;
    }
    rest = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ";
    while let [byte, others @ ..] = rest {
        kinds[*byte as usize] = PATH;
        rest = others;
    }
    kinds
};

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sec_id_1_only_the_canonical_form_is_accepted() {
        let refused: &[(&str, SpiffeIdError)] = &[
            ("", SpiffeIdError::Empty),
            ("td/a", SpiffeIdError::WrongScheme),
            ("SPIFFE://td", SpiffeIdError::WrongScheme),
            ("https://td/a", SpiffeIdError::WrongScheme),
            ("spiffe:/td/a", SpiffeIdError::WrongScheme),
            (" spiffe://td", SpiffeIdError::WrongScheme),
            ("spiffe://", SpiffeIdError::MissingTrustDomain),
            ("spiffe:///x", SpiffeIdError::MissingTrustDomain),
            ("spiffe://TD", SpiffeIdError::TrustDomainChar { at: 0 }),
            ("spiffe://td:8443/a", SpiffeIdError::TrustDomainChar { at: 2 }),
            ("spiffe://u@td/a", SpiffeIdError::TrustDomainChar { at: 1 }),
            ("spiffe://td?b", SpiffeIdError::TrustDomainChar { at: 2 }),
            ("spiffe://t\u{e4}/a", SpiffeIdError::TrustDomainChar { at: 1 }),
            ("spiffe://td/", SpiffeIdError::TrailingSlash),
            ("spiffe://td/a/", SpiffeIdError::TrailingSlash),
            ("spiffe://td//a", SpiffeIdError::EmptySegment),
            ("spiffe://td/.", SpiffeIdError::DotSegment),
            ("spiffe://td/a/../b", SpiffeIdError::DotSegment),
            ("spiffe://td/%61", SpiffeIdError::PathChar),
            ("spiffe://td/a%2Fb", SpiffeIdError::PathChar),
            ("spiffe://td/a?b", SpiffeIdError::PathChar),
            ("spiffe://td/a#b", SpiffeIdError::PathChar),
            ("spiffe://td/\u{e4}", SpiffeIdError::PathChar),
            ("spiffe://td/a\0", SpiffeIdError::PathChar),
            ("spiffe://td/a b", SpiffeIdError::PathChar),
            ("spiffe://td/a\n", SpiffeIdError::PathChar),
            ("spiffe://td/a\tb", SpiffeIdError::PathChar),
            ("spiffe://td/a\\b", SpiffeIdError::PathChar),
        ];
        for (text, want) in refused {
            assert_eq!(SpiffeIdRef::parse(text), Err(*want), "{text:?}");
        }
        for text in [
            "spiffe://1.2.3.4/a",
            "spiffe://_td-1.x/A_b-C.d",
            "spiffe://td",
            "spiffe://td/...",
            "spiffe://td/a/b/c",
        ] {
            assert_eq!(SpiffeIdRef::parse(text).map(SpiffeIdRef::as_str), Ok(text));
        }
    }

    #[test]
    fn sec_id_1_lengths() {
        let exact = format!("spiffe://td/{}", "a".repeat(MAX_SPIFFE_ID_LEN - 12));
        assert_eq!(exact.len(), MAX_SPIFFE_ID_LEN);
        assert!(SpiffeIdRef::parse(&exact).is_ok());
        assert_eq!(SpiffeIdRef::parse(&format!("{exact}a")), Err(SpiffeIdError::TooLong));

        let name = "t".repeat(255);
        assert!(SpiffeIdRef::parse(&format!("spiffe://{name}")).is_ok());
        assert_eq!(
            SpiffeIdRef::parse(&format!("spiffe://{name}t")),
            Err(SpiffeIdError::TrustDomainTooLong)
        );
    }

    #[test]
    fn istio_view_needs_exactly_five_parts() {
        let id: SpiffeId = "spiffe://td/ns/pay/sa/api".parse().unwrap();
        let istio = id.istio().unwrap();
        assert_eq!((istio.namespace, istio.service_account), ("pay", "api"));
        for odd in [
            "spiffe://td",
            "spiffe://td/ns/pay",
            "spiffe://td/ns/pay/sa/api/x",
            "spiffe://td/x/ns/pay/sa/api",
            "spiffe://td/NS/pay/sa/api",
        ] {
            assert!(SpiffeIdRef::parse(odd).unwrap().istio().is_none(), "{odd}");
        }
    }

    #[test]
    fn a_service_account_cannot_smuggle_segments() {
        let td: TrustDomain = "td".parse().unwrap();
        assert!(SpiffeId::for_service_account(&td, "pay", "api").is_ok());
        for (namespace, account) in [("pay/sa/x", "api"), ("pay", "a/b"), ("", "api"), ("..", "a")]
        {
            assert!(SpiffeId::for_service_account(&td, namespace, account).is_err());
        }
    }

    proptest! {
        /// What parses prints as it was written, and its parts make up the whole.
        #[test]
        fn sec_id_1_parse_then_print_is_identity(
            text in "(spiffe|SPIFFE|x)://[a-zA-Z0-9._%-]{0,12}(/[a-zA-Z0-9._%/-]{0,20})?"
        ) {
            if let Ok(id) = text.parse::<SpiffeId>() {
                prop_assert_eq!(id.to_string(), text.clone());
                prop_assert_eq!(format!("spiffe://{}{}", id.trust_domain(), id.path()), text);
            }
        }

        #[test]
        fn sec_id_1_no_input_panics(text in any::<String>()) {
            prop_assert!(SpiffeIdRef::parse(&text).is_ok_and(|id| id.as_str() == text)
                || SpiffeIdRef::parse(&text).is_err());
        }
    }
}
