//! `requestPrincipals`: a pair of patterns on the token's issuer and subject ([SEM-AUTHZ-45]).

use std::fmt;

use super::text::TextPattern;
use crate::index::Key;

/// One value, split at its last slash.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) struct RequestPrincipalPattern {
    issuer: TextPattern,
    subject: TextPattern,
}

impl RequestPrincipalPattern {
    pub(crate) fn parse(value: &str) -> Self {
        let exact = |text: &str| TextPattern::Exact(text.into());
        let split = value.rsplit_once('/');
        let (issuer, subject) = if value == "*" {
            (TextPattern::Present, TextPattern::Present)
        } else if let Some(rest) = value.strip_prefix('*') {
            match split {
                Some(("*", subject)) => (TextPattern::Present, exact(subject)),
                Some((issuer, subject)) => {
                    let issuer = issuer.strip_prefix('*').unwrap_or(issuer);
                    (TextPattern::Suffix(issuer.into()), exact(subject))
                }
                None => (TextPattern::Present, TextPattern::Suffix(rest.into())),
            }
        } else if let Some(rest) = value.strip_suffix('*') {
            match split {
                Some((issuer, "*")) => (exact(issuer), TextPattern::Present),
                Some((issuer, subject)) => {
                    let subject = subject.strip_suffix('*').unwrap_or(subject);
                    (exact(issuer), TextPattern::Prefix(subject.into()))
                }
                None => (TextPattern::Prefix(rest.into()), TextPattern::Present),
            }
        } else {
            match split {
                Some((issuer, subject)) => (exact(issuer), exact(subject)),
                None => (exact(value), exact("")),
            }
        };
        Self { issuer, subject }
    }

    pub(crate) fn matches(&self, issuer: &str, subject: &str) -> bool {
        self.issuer.matches(issuer.as_bytes()) && self.subject.matches(subject.as_bytes())
    }

    /// A key on the subject, which tells users apart where issuers are few.
    pub(crate) fn subject_key(&self) -> Key {
        self.subject.key()
    }

    /// A key on the issuer.
    pub(crate) fn issuer_key(&self) -> Key {
        self.issuer.key()
    }
}

/// Whether the split falls inside a URL, so that the value can never match an issuer that is one
/// ([SEM-AUTHZ-46]).
pub(crate) fn is_impossible(value: &str) -> bool {
    value
        .rsplit_once('/')
        .is_some_and(|(issuer, _)| matches!(issuer, "http:/" | "https:/" | "*http:/" | "*https:/"))
}

impl fmt::Display for RequestPrincipalPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "issuer {} with subject {}", self.issuer, self.subject)
    }
}
