//! What strict options call unclear in a request.

use crate::facts::{PeerIdentity, RequestFacts};
use crate::matcher::{istio_identity, split_port};

/// [SEM-STRICT-04], refuse-only form: an identity that does not have Istio's shape, or several.
pub(crate) fn is_odd_identity(peer: PeerIdentity<'_>) -> bool {
    if let PeerIdentity::Svid(peer) = peer {
        return peer.id().istio().is_none();
    }
    let mut names = peer.names();
    let first = names.next();
    names.next().is_some() || first.and_then(istio_identity).is_none()
}

/// [SEM-STRICT-06], refuse-only form: an authority with userinfo, trailing dot or a port that is
/// not ours; `Host` lines that are several or differ from it.
pub(crate) fn is_odd_host(facts: &RequestFacts<'_>) -> bool {
    let Some(http) = facts.http else { return false };
    let authority = http.authority.as_bytes();
    let (host, port) = split_port(authority);
    let local = facts.destination.map(|local| local.port());
    let is_foreign_port = port.is_some_and(|port| {
        let port = std::str::from_utf8(port).ok().and_then(|port| port.parse::<u16>().ok());
        port.is_none() || (local.is_some() && port != local)
    });
    let mut lines = http.headers.get_all(http::header::HOST).iter();
    let differs = |line: &http::HeaderValue| !line.as_bytes().eq_ignore_ascii_case(authority);
    let is_contradicted = lines.next().is_some_and(differs) || lines.next().is_some();
    is_foreign_port
        || is_contradicted
        || host.ends_with(b".")
        || authority.iter().any(|byte| matches!(byte, b'@' | b','))
}
