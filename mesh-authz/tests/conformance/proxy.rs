//! What stands before the policies in a sidecar and is no part of this crate: the HTTP codec, the
//! headers that Envoy adds and drops, and the mock authorizers of the vectors.

use http::{HeaderMap, HeaderName, HeaderValue, Version};
use mesh_identity::{Claims, VerifiedPeer, VerifiedToken};

use mesh_authz::{PeerIdentity, PeerNames};

use crate::vector::{Mock, Peer, Request, bytes};

/// A request as Envoy's filters see it.
pub(crate) struct Received {
    pub(crate) method: String,
    pub(crate) authority: String,
    /// Path and query before normalization; absent for a CONNECT.
    pub(crate) path: Option<Vec<u8>>,
    pub(crate) scheme: &'static str,
    pub(crate) version: Version,
    /// What CUSTOM rules see.
    pub(crate) headers: HeaderMap,
    /// What the other rules see: without the header of the verified token.
    pub(crate) later_headers: HeaderMap,
    pub(crate) token: Option<VerifiedToken>,
}

impl Received {
    pub(crate) fn is_grpc(&self) -> bool {
        let content_type = self.headers.get(http::header::CONTENT_TYPE).map(HeaderValue::as_bytes);
        content_type.is_some_and(|value| {
            value == b"application/grpc" || value.starts_with(b"application/grpc+")
        })
    }
}

/// Nothing when an HTTP parser would refuse the head: a header name or value that cannot be one.
pub(crate) fn receive(request: &Request) -> Option<Received> {
    let is_http2 = request.http_version == "2";
    let mut authority: Vec<String> = request.authority.iter().cloned().collect();
    let mut headers = HeaderMap::new();
    for (name, value) in &request.headers {
        let name = HeaderName::from_bytes(&bytes(name)).ok()?;
        if name == http::header::HOST {
            // HTTP/1.1 joins the lines; in HTTP/2 `:authority` wins.
            if !is_http2 || authority.is_empty() {
                authority.push(value.clone());
            }
            continue;
        }
        headers.append(name, header_value(value)?);
    }
    if let Some(xff) = &request.xff {
        headers.append("x-forwarded-for", header_value(xff)?);
    }
    let mut authority = authority.join(",");
    let mut path = request.path.as_deref();
    if !is_http2 {
        // The request line's parser takes further spaces for its own.
        path = path.map(|path| path.trim_end_matches(' '));
    }
    if request.method == "CONNECT" {
        if let Some(target) = path.take() {
            target.clone_into(&mut authority);
        }
    } else if let Some(rest) = path.and_then(|path| path.strip_prefix("http://")) {
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        rest[..end].clone_into(&mut authority);
        path = Some(if rest[end..].is_empty() { "/" } else { &rest[end..] });
    }
    proxy_headers(&mut headers, request)?;
    let is_preflight = request.method == "OPTIONS"
        && headers.contains_key("origin")
        && headers.contains_key("access-control-request-method");
    let claims = request.jwt_claims.clone();
    let mut later_headers = headers.clone();
    if claims.is_some() {
        headers.append("authorization", HeaderValue::from_static("Bearer eyJ"));
        if is_preflight {
            // [SEM-JWT-35] The token is not looked at, and so its header stays.
            later_headers = headers.clone();
        }
    }
    let token = claims
        .filter(|_| !is_preflight)
        .map(|claims| VerifiedToken::assert_verified(Claims::new(claims), ["scope", "permission"]));
    Some(Received {
        method: request.method.clone(),
        authority,
        path: path.map(bytes),
        scheme: if request.peer.tls { "https" } else { "http" },
        version: if is_http2 { Version::HTTP_2 } else { Version::HTTP_11 },
        headers,
        later_headers,
        token,
    })
}

fn header_value(text: &str) -> Option<HeaderValue> {
    HeaderValue::from_bytes(bytes(text).trim_ascii()).ok()
}

/// Group `proxy-headers`: what a sidecar's connection manager does to headers.
fn proxy_headers(headers: &mut HeaderMap, request: &Request) -> Option<()> {
    for name in [
        "connection",
        "keep-alive",
        "proxy-connection",
        "transfer-encoding",
        "upgrade",
        "x-envoy-internal",
        "x-envoy-retry-on",
        "x-forwarded-client-cert",
    ] {
        headers.remove(name);
    }
    let has_trailers = headers.get_all("te").iter().any(|value| {
        value.as_bytes().split(|byte| *byte == b',').any(|one| one.trim_ascii() == b"trailers")
    });
    headers.remove("te");
    if has_trailers {
        headers.append("te", HeaderValue::from_static("trailers"));
    }
    if request.peer.tls
        && let Some(id) = &request.peer.spiffe_id
    {
        let value = format!("By=spiffe://cluster.local/ns/foo/sa/httpbin;Hash=00;URI={id}");
        headers.insert("x-forwarded-client-cert", header_value(&value)?);
    }
    if !headers.contains_key("x-forwarded-proto") {
        let scheme = if request.peer.tls { "https" } else { "http" };
        headers.insert("x-forwarded-proto", HeaderValue::from_static(scheme));
    }
    if !headers.contains_key("x-request-id") {
        let id = HeaderValue::from_static("2f0ff1a1-7f5c-4f63-9b5c-1f0b1c7a3f3d");
        headers.insert("x-request-id", id);
    }
    Some(())
}

/// The proof that the peer's TLS gave.
pub(crate) enum Proof {
    None,
    Svid(VerifiedPeer),
    Names(PeerNames),
}

impl Proof {
    pub(crate) fn of(peer: &Peer) -> Self {
        let svid = peer.spiffe_id.as_deref().and_then(|id| id.parse().ok());
        if let Some(id) = svid {
            return Self::Svid(VerifiedPeer::assert_verified(id));
        }
        let uri_sans = peer.spiffe_id.iter().chain(&peer.uri_sans).cloned();
        // RFC 2253 writes the last attribute first.
        let subject: Vec<String> = peer
            .subject
            .iter()
            .rev()
            .map(|(name, value)| format!("{name}={}", rfc2253(value)))
            .collect();
        let subject = Some(subject.join(",")).filter(|subject| !subject.is_empty());
        let names = PeerNames::assert_verified(uri_sans, peer.dns_sans.iter().cloned(), subject);
        if !peer.tls || names == PeerNames::default() { Self::None } else { Self::Names(names) }
    }

    pub(crate) fn identity(&self) -> PeerIdentity<'_> {
        match self {
            Self::None => PeerIdentity::None,
            Self::Svid(peer) => PeerIdentity::Svid(peer),
            Self::Names(names) => PeerIdentity::Names(names),
        }
    }
}

fn rfc2253(value: &str) -> String {
    let mut escaped = String::new();
    for c in value.chars() {
        if matches!(c, ',' | '+' | '"' | '\\' | '<' | '>' | ';') {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}

/// The answer of a mock authorizer: nothing when it allows, else status and body of the refusal.
pub(crate) fn ask(mock: &Mock) -> Option<(u16, &'static str)> {
    match mock.behaviour.as_str() {
        "allow" => None,
        "deny" => Some((403, "denied by ext authz")),
        "down" if mock.fail_open => None,
        "down" => {
            let status = mock.status_on_error.as_deref().unwrap_or("403");
            Some((status.parse().unwrap(), ""))
        }
        other => panic!("unknown behaviour {other}"),
    }
}
