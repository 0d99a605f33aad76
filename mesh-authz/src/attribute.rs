//! What a condition can ask about: the fields of `source` and `operation`, and the keys of `when`.

use crate::matcher::HeaderKey;

/// One attribute of [SEM-AUTHZ-04].
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) enum Attribute {
    Claim(Box<[Box<str>]>),
    DestinationIp,
    Header(HeaderKey),
    Host,
    Metadata { filter: Box<str>, key: Box<str> },
    Method,
    Namespace,
    Path,
    Port,
    Principal,
    RemoteIp,
    RequestPrincipal,
    ServiceAccount,
    Sni,
    SourceIp,
    TrustDomain,
}

/// Why a `when` key names no attribute.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum KeyError {
    /// No such key: Istio drops the whole rule.
    Unknown,
    /// A known beginning with something odd behind it: Istio drops the values.
    Malformed,
}

impl Attribute {
    /// Reads a `when` key ([SEM-AUTHZ-05]).
    pub(crate) fn parse_key(key: &str) -> Result<Self, KeyError> {
        let claim = |name: &str| Self::Claim(Box::new([name.into()]));
        Ok(match key {
            "source.ip" => Self::SourceIp,
            "source.namespace" => Self::Namespace,
            "source.principal" => Self::Principal,
            "source.serviceAccount" => Self::ServiceAccount,
            "source.trustDomain" => Self::TrustDomain,
            "remote.ip" => Self::RemoteIp,
            "request.auth.principal" => Self::RequestPrincipal,
            "request.auth.audiences" => claim("aud"),
            "request.auth.presenter" => claim("azp"),
            "destination.ip" => Self::DestinationIp,
            "destination.port" => Self::Port,
            "connection.sni" => Self::Sni,
            _ => {
                if let Some(rest) = key.strip_prefix("request.headers") {
                    Self::Header(HeaderKey::parse(in_brackets(rest)?))
                } else if let Some(rest) = key.strip_prefix("request.auth.claims") {
                    Self::Claim(claim_path(rest)?)
                } else if key.starts_with("experimental.envoy.filters.") {
                    let name = key.strip_prefix("experimental.").unwrap_or(key);
                    let name = name.strip_suffix(']').unwrap_or(name);
                    let (filter, key) = name.split_once('[').ok_or(KeyError::Malformed)?;
                    Self::Metadata { filter: filter.into(), key: key.into() }
                } else {
                    return Err(KeyError::Unknown);
                }
            }
        })
    }

    /// Whether it exists on HTTP only ([SEM-TCP-02]).
    pub(crate) fn is_http_only(&self) -> bool {
        match self {
            Self::Claim(_)
            | Self::Header(_)
            | Self::Host
            | Self::Method
            | Self::Path
            | Self::RequestPrincipal => true,
            Self::DestinationIp
            | Self::Metadata { .. }
            | Self::Namespace
            | Self::Port
            | Self::Principal
            | Self::RemoteIp
            | Self::ServiceAccount
            | Self::Sni
            | Self::SourceIp
            | Self::TrustDomain => false,
        }
    }

    /// Whether it comes from the peer's certificate.
    pub(crate) fn is_identity(&self) -> bool {
        matches!(self, Self::Namespace | Self::Principal | Self::ServiceAccount | Self::TrustDomain)
    }

    /// Whether it comes from a token.
    pub(crate) fn is_token(&self) -> bool {
        matches!(self, Self::Claim(_) | Self::RequestPrincipal)
    }
}

/// The text of `[text]`.
fn in_brackets(text: &str) -> Result<&str, KeyError> {
    text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).ok_or(KeyError::Malformed)
}

/// [SEM-AUTHZ-50] `[a][b]` is a path; what is no clean sequence is one name. Without brackets the
/// path is empty: the payload itself, which is no text and so matches nothing.
fn claim_path(text: &str) -> Result<Box<[Box<str>]>, KeyError> {
    if text.is_empty() {
        return Ok(Box::new([]));
    }
    let inner = in_brackets(text)?;
    let names: Vec<&str> = inner.split("][").collect();
    let clean = names.iter().all(|name| !name.contains(['[', ']']));
    Ok(if clean { names.into_iter().map(Into::into).collect() } else { Box::new([inner.into()]) })
}
