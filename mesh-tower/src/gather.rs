//! From an HTTP head to facts: one host, one path, no identity from headers.
//!
//! What is judged here is what the inner service receives: the path is rewritten before any policy
//! sees it, and a request that could be read in two ways is refused.

use http::header::HOST;
use http::request::Parts;
use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, HeaderValue, Method, Uri, Version};
use mesh_authz::Scope;

use crate::refuse::Refusal;
use crate::settings::HttpSettings;

/// The authority a request names. Cheap to clone: both forms share their bytes.
#[derive(Clone, Debug)]
pub(crate) enum Host {
    /// `:authority`, or an absolute-form target.
    Target(Authority),
    /// The `Host` header.
    Header(HeaderValue),
}

impl Host {
    /// The text as it was sent, port included.
    pub(crate) fn as_str(&self) -> &str {
        match self {
            Self::Target(authority) => authority.as_str(),
            Self::Header(value) => value.to_str().unwrap_or_default(),
        }
    }
}

/// Makes the request unambiguous in place: removes claimed identity, rewrites the path.
pub(crate) fn normalize(
    parts: &mut Parts,
    scope: &Scope,
    settings: &HttpSettings,
) -> Result<Host, Refusal> {
    settings.clean(&mut parts.headers);
    check_connect(parts)?;
    check_values(&parts.headers)?;
    let host = host(parts)?;
    check_head(parts, &host)?;
    check_method(&parts.method)?;
    normalize_path(parts, scope)?;
    Ok(host)
}

/// [SEC-HTTP-5] One host: several `Host` headers, or one that differs from the target, are refused.
fn host(parts: &Parts) -> Result<Host, Refusal> {
    let mut headers = parts.headers.get_all(HOST).iter();
    let header = headers.next();
    if headers.next().is_some() {
        return Err(Refusal::malformed("several host headers"));
    }
    let host = match (parts.uri.authority(), header) {
        (Some(target), Some(header)) => {
            if !header.as_bytes().eq_ignore_ascii_case(target.as_str().as_bytes()) {
                return Err(Refusal::malformed("host header and target differ"));
            }
            Host::Target(target.clone())
        }
        (Some(target), None) => Host::Target(target.clone()),
        (None, Some(header)) => Host::Header(header.clone()),
        (None, None) => return Err(Refusal::malformed("no host")),
    };
    let text = host.as_str();
    let is_strange = |byte: u8| {
        !byte.is_ascii_graphic() || matches!(byte, b'@' | b',' | b'/' | b'?' | b'#' | b'\\')
    };
    if text.is_empty() || text.bytes().any(is_strange) {
        return Err(Refusal::malformed("host is not a host"));
    }
    Ok(host)
}

/// [SEM-EVAL-01] What Envoy's HTTP layer refuses and hyper lets pass never reached the policies that
/// were written for it.
fn check_head(parts: &Parts, host: &Host) -> Result<(), Refusal> {
    let target = parts.uri.path_and_query().map(|target| target.as_str().as_bytes());
    mesh_authz::check_head(parts.version, parts.method.as_str(), Some(host.as_str()), target)
        .map_err(|error| Refusal::malformed(&error.to_string()))
}

/// [SEM-AUTHZ-70] A CONNECT is about a host and no path: one with a path would be routed by what no
/// policy sees. Over HTTP/2, where a tunnel is one stream of many, plain and extended (RFC 8441), it is
/// not offered: it could not be cut when policies change ([SEM-STRICT-18]).
fn check_connect(parts: &Parts) -> Result<(), Refusal> {
    if parts.extensions.get::<hyper::ext::Protocol>().is_some() {
        return Err(Refusal::malformed("extended CONNECT"));
    }
    if parts.method != Method::CONNECT {
        return Ok(());
    }
    if parts.version == Version::HTTP_2 {
        return Err(Refusal::malformed("CONNECT over HTTP/2"));
    }
    match parts.uri.path_and_query() {
        Some(_) => Err(Refusal::malformed("CONNECT with a path")),
        None => Ok(()),
    }
}

/// [SEM-ADV-21] No value has spaces around it (RFC 9113 section 8.2.1): HTTP/1 knows none, policies do
/// not expect them, and applications cut them off.
fn check_values(headers: &HeaderMap) -> Result<(), Refusal> {
    let is_space = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    let padded = |value: &HeaderValue| {
        let value = value.as_bytes();
        is_space(value.first()) || is_space(value.last())
    };
    if headers.values().any(padded) {
        return Err(Refusal::malformed("a header's value has spaces around it"));
    }
    Ok(())
}

/// [SEM-STRICT-11] `get` is not `GET`, and no honest client sends it.
fn check_method(method: &Method) -> Result<(), Refusal> {
    if method.as_str().bytes().any(|byte| byte.is_ascii_lowercase()) {
        return Err(Refusal::malformed("method has lower-case letters"));
    }
    Ok(())
}

/// [SEC-HTTP-1], [SEC-HTTP-3] One path: what policies judge is what the inner service routes by.
fn normalize_path(parts: &mut Parts, scope: &Scope) -> Result<(), Refusal> {
    let Some(sent) = parts.uri.path_and_query() else {
        // [SEM-AUTHZ-70] Only CONNECT has no path.
        return if parts.method == Method::CONNECT {
            Ok(())
        } else {
            Err(Refusal::malformed("no path"))
        };
    };
    let Ok(normal) = scope.normalize(sent.as_str().as_bytes()) else {
        return Err(Refusal::malformed("path cannot be normalized"));
    };
    if !normal.is_changed(sent.as_str().as_bytes()) {
        return Ok(());
    }
    // A route inside the router was chosen by the raw path; judging another one would be a lie.
    #[cfg(feature = "axum")]
    if parts.extensions.get::<axum::extract::MatchedPath>().is_some() {
        return Err(Refusal::malformed("path is not normal, and routing has happened"));
    }
    let Ok(normal) = PathAndQuery::try_from(normal.as_bytes()) else {
        return Err(Refusal::malformed("normalized path is not a path"));
    };
    set_path(&mut parts.uri, normal)
}

/// Replaces path and query, keeping scheme and authority.
pub(crate) fn set_path(uri: &mut Uri, path: PathAndQuery) -> Result<(), Refusal> {
    let mut parts = std::mem::take(uri).into_parts();
    parts.path_and_query = Some(path);
    *uri = Uri::from_parts(parts)
        .map_err(|_detail| Refusal::malformed("normalized path does not fit its target"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    /// [SEC-HTTP-9] Whatever server is below, `axum::serve` for one offers it.
    #[test]
    fn sec_http_9_extended_connect_is_refused() {
        let request = Request::builder().uri("/admin/ws").version(Version::HTTP_2);
        let (mut parts, ()) = request.method(Method::CONNECT).body(()).unwrap().into_parts();
        parts.extensions.insert(hyper::ext::Protocol::from_static("websocket"));
        assert!(check_connect(&parts).is_err());
    }
}
