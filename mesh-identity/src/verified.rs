//! Proof that somebody checked: the only things a policy accepts as identity.
//!
//! The constructors' name is an oath that a search finds. Only mesh-authn and tests call them;
//! mesh-tower's `tidy` test holds that.

use std::fmt;
use std::sync::{Arc, OnceLock};

use rustls_pki_types::{CertificateDer, UnixTime};
use serde::Deserialize;
use serde_json::Value;

use crate::bundle::X509Authority;
use crate::claims::{Claims, ClaimsError};
use crate::spiffe_id::SpiffeId;

/// The workload on the other end of a connection, its certificate and possession of the key proven.
///
/// An ID that nobody verified does not fit where one is asked for:
///
/// ```compile_fail,E0308
/// let id: mesh_identity::SpiffeId = "spiffe://td/ns/a/sa/b".parse().unwrap();
/// let peer: mesh_identity::VerifiedPeer = id;
/// ```
#[derive(Clone, Eq, PartialEq)]
pub struct VerifiedPeer {
    id: SpiffeId,
    chain: Arc<[CertificateDer<'static>]>,
    not_after: Option<UnixTime>,
    authority: Option<X509Authority>,
}

impl VerifiedPeer {
    /// Asserts that chain, handshake signature and SAN rules have been verified.
    #[must_use]
    pub fn assert_verified(id: SpiffeId) -> Self {
        Self { id, chain: Arc::from([]), not_after: None, authority: None }
    }

    /// Adds the certificates that proved it, leaf first, and when the proof ends: the earliest
    /// `notAfter` of the verified path.
    #[must_use]
    pub fn with_chain(
        mut self,
        chain: impl Into<Arc<[CertificateDer<'static>]>>,
        not_after: UnixTime,
    ) -> Self {
        self.chain = chain.into();
        self.not_after = Some(not_after);
        self
    }

    /// Adds the authority of the trust domain that vouched for it.
    #[must_use]
    pub fn with_authority(mut self, authority: X509Authority) -> Self {
        self.authority = Some(authority);
        self
    }

    /// Who it is.
    #[must_use]
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// The certificates it presented, leaf first; empty when they were not kept.
    #[must_use]
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// When the proof ends ([SEC-TLS-12]); nothing when it is not known.
    #[must_use]
    pub fn not_after(&self) -> Option<UnixTime> {
        self.not_after
    }

    /// The authority that vouched for it ([SEC-TLS-13]); nothing when it was not kept.
    #[must_use]
    pub fn authority(&self) -> Option<&X509Authority> {
        self.authority.as_ref()
    }
}

impl fmt::Debug for VerifiedPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VerifiedPeer").field("id", &self.id).finish_non_exhaustive()
    }
}

/// The end user of a request, from a token whose signature, issuer, times and audience hold.
#[derive(Clone)]
pub struct VerifiedToken {
    claims: Arc<TokenClaims>,
}

/// The claims twice where that makes a difference, which it does for `scope`.
struct TokenClaims {
    view: Claims,
    ends: Option<UnixTime>,
    /// The texts that the view has as lists.
    split: Vec<(String, Value)>,
    /// Made when somebody asks for it.
    payload: OnceLock<Claims>,
}

impl VerifiedToken {
    /// Asserts that a rule of a RequestAuthentication, or a JWT-SVID validation, has accepted the
    /// token that carried these claims.
    ///
    /// `space_delimited` names the claims that policies see as lists ([SEM-JWT-61]).
    #[must_use]
    pub fn assert_verified<'n>(
        payload: Claims,
        space_delimited: impl IntoIterator<Item = &'n str>,
    ) -> Self {
        let ends = payload.expires();
        let (view, split) = payload.split_at_spaces(space_delimited);
        Self { claims: Arc::new(TokenClaims { view, ends, split, payload: OnceLock::new() }) }
    }

    /// The claims as the token carried them.
    #[must_use]
    pub fn payload(&self) -> &Claims {
        let TokenClaims { view, split, payload, ends: _ } = &*self.claims;
        if split.is_empty() {
            return view;
        }
        payload.get_or_init(|| {
            let mut object = view.object().clone();
            object.extend(split.iter().cloned());
            Claims::new(object)
        })
    }

    /// The claims as policies see them: `scope` and its like split into lists.
    #[must_use]
    pub fn view(&self) -> &Claims {
        &self.claims.view
    }

    /// When the token ends ([`Claims::expires`]); nothing when it does not say.
    #[must_use]
    pub fn ends(&self) -> Option<UnixTime> {
        self.claims.ends
    }

    /// The claims as a type of the application's; it may borrow texts from the token.
    ///
    /// They are those the token carried: `scope` is one text. The JSON was parsed when the token was
    /// verified; no claim of it is parsed again.
    ///
    /// # Errors
    ///
    /// [`ClaimsError`], when a claim is missing or of another type.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn greet(token: &mesh_identity::VerifiedToken) -> Result<String, mesh_identity::ClaimsError> {
    /// #[derive(serde::Deserialize)]
    /// struct User<'t> {
    ///     sub: &'t str,
    ///     #[serde(default)]
    ///     groups: Vec<&'t str>,
    /// }
    ///
    /// let user: User<'_> = token.claims()?;
    /// Ok(format!("{} of {} groups", user.sub, user.groups.len()))
    /// # }
    /// ```
    pub fn claims<'t, T: Deserialize<'t>>(&'t self) -> Result<T, ClaimsError> {
        self.payload().typed()
    }

    /// `iss/sub`, the name Istio gives the user, when both are non-empty strings in the view.
    #[must_use]
    pub fn principal(&self) -> Option<String> {
        let (issuer, subject) = (self.view().issuer()?, self.view().subject()?);
        let named = !issuer.is_empty() && !subject.is_empty();
        named.then(|| format!("{issuer}/{subject}"))
    }
}

/// Two tokens are equal when they carried the same claims and policies see the same.
impl PartialEq for VerifiedToken {
    fn eq(&self, other: &Self) -> bool {
        self.view() == other.view() && self.claims.split == other.claims.split
    }
}

/// Claims are personal data: only the names of issuer and subject are shown.
impl fmt::Debug for VerifiedToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VerifiedToken")
            .field("issuer", &self.view().issuer())
            .field("subject", &self.view().subject())
            .finish_non_exhaustive()
    }
}
