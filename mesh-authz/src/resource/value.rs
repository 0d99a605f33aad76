//! One value of a condition, parsed by its attribute.

use ipnet::IpNet;

use super::Reading;
use crate::attribute::Attribute;
use crate::matcher::{
    AccountPattern, HeaderKey, NamespacePattern, RequestPrincipalPattern, Template, TextPattern,
    is_template, parse_block, parse_port,
};

/// A value of `values` or `notValues`.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) enum Value {
    Account(AccountPattern),
    Block(IpNet),
    /// `[v]`: an element of a list ([SEM-AUTHZ-75]).
    ListElement(TextPattern),
    Namespace(NamespacePattern),
    Port(u16),
    /// Kept as text until the trust domain's aliases are known ([SEM-AUTHZ-21]).
    Principal(Box<str>),
    RequestPrincipal(RequestPrincipalPattern),
    Template(Template),
    Text(TextPattern),
    /// Kept as text for the same reason.
    TrustDomain(Box<str>),
}

/// Longest `ns/name` of a service account, by the CRD.
const MAX_ACCOUNT_LEN: usize = 320;

impl Value {
    /// Parses a value, or says what is wrong with it and what to do.
    ///
    /// The lenient reading fails only where Istio's translation does.
    pub(crate) fn parse(
        attribute: &Attribute,
        text: &str,
        policy_namespace: &str,
        reading: Reading,
    ) -> Result<Self, &'static str> {
        if reading == Reading::Checked {
            check(attribute, text)?;
        }
        Ok(match attribute {
            Attribute::Path if is_template(text) => Self::Template(match reading {
                Reading::Checked => Template::parse(text)?,
                Reading::Lenient => Template::parse_leniently(text),
            }),
            Attribute::Claim(_)
            | Attribute::Header(_)
            | Attribute::Host
            | Attribute::Method
            | Attribute::Path
            | Attribute::Sni => Self::Text(TextPattern::parse(text)),
            Attribute::DestinationIp | Attribute::RemoteIp | Attribute::SourceIp => {
                Self::Block(parse_block(text).ok_or("not an IP address or CIDR block")?)
            }
            Attribute::Metadata { .. } => {
                if text.starts_with('[') && text.ends_with(']') {
                    Self::ListElement(TextPattern::parse(text.trim_matches(['[', ']'])))
                } else {
                    Self::Text(TextPattern::parse(text))
                }
            }
            Attribute::Namespace => Self::Namespace(NamespacePattern::parse(text)),
            Attribute::Port => Self::Port(parse_port(text).ok_or("not a port from 0 to 65535")?),
            Attribute::Principal => Self::Principal(text.into()),
            Attribute::RequestPrincipal => {
                Self::RequestPrincipal(RequestPrincipalPattern::parse(text))
            }
            Attribute::ServiceAccount => {
                Self::Account(AccountPattern::parse(text, policy_namespace))
            }
            Attribute::TrustDomain => Self::TrustDomain(text.into()),
        })
    }
}

/// What the webhook and [SEM-VAL-32] refuse beyond what cannot be translated.
fn check(attribute: &Attribute, text: &str) -> Result<(), &'static str> {
    if text.is_empty() {
        // [SEM-VAL-09]
        return Err("must not be empty");
    }
    match attribute {
        Attribute::Header(HeaderKey::Impossible) => Err("the header name is not a token"),
        Attribute::Method if text.bytes().any(|byte| byte.is_ascii_lowercase()) => {
            Err("methods are compared with case; write it in upper case")
        }
        Attribute::Path if !is_template(text) && text.contains(['{', '}']) => {
            // [SEM-VAL-14]
            Err("a segment with braces must be exactly {*} or {**}")
        }
        Attribute::Principal if text.contains("://") => {
            Err("a principal has no scheme; remove spiffe://")
        }
        Attribute::ServiceAccount => check_account(text),
        Attribute::TrustDomain => check_trust_domain(text),
        Attribute::Claim(_)
        | Attribute::DestinationIp
        | Attribute::Header(_)
        | Attribute::Host
        | Attribute::Metadata { .. }
        | Attribute::Method
        | Attribute::Namespace
        | Attribute::Path
        | Attribute::Port
        | Attribute::Principal
        | Attribute::RemoteIp
        | Attribute::RequestPrincipal
        | Attribute::Sni
        | Attribute::SourceIp => Ok(()),
    }
}

/// [SEM-VAL-10]
fn check_account(text: &str) -> Result<(), &'static str> {
    if text.len() > MAX_ACCOUNT_LEN {
        return Err("a service account has at most 320 characters");
    }
    if text.contains('*') {
        return Err("a service account has no wildcards");
    }
    let mut parts = text.split('/');
    let (first, second, third) = (parts.next(), parts.next(), parts.next());
    if third.is_some() || first == Some("") || second == Some("") {
        return Err("write a service account as name or namespace/name");
    }
    Ok(())
}

/// [SEM-VAL-11]
fn check_trust_domain(text: &str) -> Result<(), &'static str> {
    let inner = text.strip_prefix('*').or_else(|| text.strip_suffix('*')).unwrap_or(text);
    if inner.contains('*') {
        return Err("a trust domain has at most one star, at its start or end");
    }
    if text.contains('/') {
        return Err("a trust domain has no slash");
    }
    Ok(())
}
