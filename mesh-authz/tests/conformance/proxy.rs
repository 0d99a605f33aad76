//! What stands before the policies in a sidecar and is no part of this crate: the HTTP codec, the
//! headers that Envoy adds and drops, and the mock authorizers of the vectors.

use http::{HeaderMap, HeaderName, HeaderValue, Version};
use mesh_identity::{Claims, VerifiedPeer, VerifiedToken};

use mesh_authz::{PeerIdentity, PeerNames, check_head};

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

/// Nothing when Envoy's HTTP layer refuses the head.
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
    let mut has_authority = !authority.is_empty();
    let mut authority = authority.join(",");
    let mut path = request.path.as_deref();
    if !is_http2 {
        // The request line's parser takes further spaces for its own.
        path = path.map(|path| path.trim_end_matches(' '));
    }
    if request.method == "CONNECT" {
        if let Some(target) = path.take() {
            has_authority = true;
            target.clone_into(&mut authority);
        }
    } else if let Some((_, rest)) = path.filter(|_| !is_http2).and_then(absolute) {
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        has_authority = true;
        rest[..end].clone_into(&mut authority);
        path = Some(if rest[end..].is_empty() { "/" } else { &rest[end..] });
    }
    let named = has_authority.then_some(authority.as_str());
    let target = path.map(bytes);
    let version = if is_http2 { Version::HTTP_2 } else { Version::HTTP_11 };
    check_head(version, &request.method, named, target.as_deref()).ok()?;
    proxy_headers(&mut headers, request)?;
    let is_filled = |name| headers.get_all(name).iter().any(|line| !line.is_empty());
    let is_preflight = request.method == "OPTIONS"
        && is_filled("origin")
        && is_filled("access-control-request-method");
    let scheme = scheme(request, &headers);
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
        path: target,
        scheme,
        version,
        headers,
        later_headers,
        token,
    })
}

/// Scheme and rest of a target in absolute form.
fn absolute(target: &str) -> Option<(&'static str, &str)> {
    let (scheme, rest) = target.split_once("://")?;
    let scheme = ["http", "https"].into_iter().find(|one| scheme.eq_ignore_ascii_case(one))?;
    Some((scheme, rest))
}

/// [SEM-AUTHZ-57] HTTP/1.1 has a scheme in an absolute target only; else Envoy takes
/// `X-Forwarded-Proto` where it is one, else what carries the request.
fn scheme(request: &Request, headers: &HeaderMap) -> &'static str {
    let carried = if request.peer.tls { "https" } else { "http" };
    if request.http_version == "2" {
        return carried;
    }
    let named = request.path.as_deref().and_then(absolute).map(|(scheme, _)| scheme);
    let mut lines = headers.get_all("x-forwarded-proto").iter();
    let forwarded = lines.next().filter(|_| lines.next().is_none()).and_then(|line| {
        ["http", "https"]
            .into_iter()
            .find(|one| line.as_bytes().eq_ignore_ascii_case(one.as_bytes()))
    });
    named.or(forwarded).unwrap_or(carried)
}

fn header_value(text: &str) -> Option<HeaderValue> {
    HeaderValue::from_bytes(bytes(text).trim_ascii()).ok()
}

/// Group `proxy-headers`: what a sidecar's connection manager does to headers.
fn proxy_headers(headers: &mut HeaderMap, request: &Request) -> Option<()> {
    if request.http_version != "2" {
        drop_nominated(headers)?;
    }
    for name in [
        "connection",
        "keep-alive",
        "proxy-connection",
        "transfer-encoding",
        "upgrade",
        "x-envoy-expected-rq-timeout-ms",
        "x-envoy-force-trace",
        "x-envoy-hedge-on-per-try-timeout",
        "x-envoy-internal",
        "x-envoy-ip-tags",
        "x-envoy-max-retries",
        "x-envoy-original-url",
        "x-envoy-retriable-header-names",
        "x-envoy-retriable-status-codes",
        "x-envoy-retry-grpc-on",
        "x-envoy-retry-on",
        "x-envoy-upstream-alt-stat-name",
        "x-envoy-upstream-rq-per-try-timeout-ms",
        "x-envoy-upstream-rq-timeout-alt-response",
        "x-envoy-upstream-rq-timeout-ms",
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
    let presented = request.peer.spiffe_id.iter().chain(&request.peer.uri_sans).next();
    if let Some(id) = presented.filter(|_| request.peer.tls) {
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

/// The headers that HTTP/1.1's `Connection` names end here; nothing when it names one that must not.
fn drop_nominated(headers: &mut HeaderMap) -> Option<()> {
    let lines = headers.get_all("connection").iter();
    let names: Vec<String> = lines
        .flat_map(|line| line.as_bytes().split(|byte| *byte == b','))
        .map(|name| String::from_utf8_lossy(name.trim_ascii()).to_ascii_lowercase())
        .collect();
    for name in names {
        match name.as_str() {
            "x-forwarded-for" | "x-forwarded-host" | "x-forwarded-proto" => return None,
            _ if name.starts_with(':') => return None,
            "te" => {}
            _ => drop(headers.remove(name.as_str())),
        }
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
        let only = peer.uri_sans.is_empty() && peer.dns_sans.is_empty() && peer.subject.is_empty();
        let svid = peer.spiffe_id.as_deref().filter(|_| peer.tls && only);
        if let Some(id) = svid.and_then(|id| id.parse().ok()) {
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
    let last = value.chars().count().saturating_sub(1);
    for (at, c) in value.chars().enumerate() {
        let is_special = matches!(c, ',' | '+' | '"' | '\\' | '<' | '>' | ';')
            || (at == 0 && matches!(c, '#' | ' '))
            || (at == last && c == ' ');
        if c.is_ascii_control() || !c.is_ascii() {
            let bytes = c.to_string().into_bytes();
            escaped.extend(bytes.iter().map(|byte| format!("\\{byte:02X}")));
            continue;
        }
        if is_special {
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
        "down" => Some((mock.status_on_error(), "")),
        // Shows up as a mismatch.
        _ => Some((0, "unknown behaviour")),
    }
}
