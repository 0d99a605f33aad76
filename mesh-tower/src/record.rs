//! What one request leaves behind: counters, a decision event, an access log line.

use std::time::{Duration, Instant};

use http::header::{CONTENT_LENGTH, HeaderValue, USER_AGENT};
use http::request::Parts;
use http::{HeaderMap, Response, StatusCode, Version};
use http_body::Body;
use mesh_authz::{Audit, Decision, Shadow, ShadowResult};
use mesh_identity::VerifiedPeer;
use rustls::pki_types::UnixTime;

use crate::clock::monotonic;
use crate::connection::{ConnectionInfo, Security};
use crate::guard;
use crate::mesh::Mesh;
use crate::observe::{AccessEntry, DecisionEvent};
use crate::resource::Resource;
use crate::snapshot::Snapshot;

/// Follows one request from its head to its answer. Without an access log it allocates nothing.
#[derive(Debug)]
pub(crate) struct Record {
    mesh: Mesh,
    now: UnixTime,
    begun: Instant,
    info: Option<ConnectionInfo>,
    entry: Option<Box<AccessEntry>>,
}

impl Record {
    pub(crate) fn begin(mesh: &Mesh, parts: &Parts) -> Self {
        let now = mesh.clock().now();
        let info = parts.extensions.get::<ConnectionInfo>().cloned();
        let entry = info
            .as_ref()
            .filter(|_| mesh.observer().wants_access_log())
            .map(|info| Box::new(entry(parts, info, now)));
        Self { mesh: mesh.clone(), now, begun: monotonic(), info, entry }
    }

    /// The wall-clock time that this request is judged by.
    pub(crate) fn now(&self) -> UnixTime {
        self.now
    }

    pub(crate) fn mesh(&self) -> &Mesh {
        &self.mesh
    }

    /// Reports the one decision of this request. `decision` is what the policies said, if the
    /// request came as far.
    pub(crate) fn decided(
        &mut self,
        snapshot: &Snapshot,
        parts: &Parts,
        allowed: bool,
        detail: &str,
        decision: Option<&Decision>,
    ) {
        let telemetry = self.mesh.telemetry();
        telemetry.count_decision(allowed, self.begun.elapsed());
        let dry_run_allow = decision.and_then(|one| passed(one.shadow_allow.as_ref()));
        let dry_run_deny = decision.and_then(|one| passed(one.shadow_deny.as_ref()));
        if dry_run_allow == Some(false) || dry_run_deny == Some(false) {
            telemetry.count_shadow_denial();
        }
        if let Some(entry) = &mut self.entry {
            detail.clone_into(&mut entry.response_code_details);
        }
        self.mesh.observer().decided(&DecisionEvent {
            generation: snapshot.generation,
            peer: self.info.as_ref().and_then(ConnectionInfo::peer).map(VerifiedPeer::id),
            method: parts.method.as_str(),
            path: parts.uri.path(),
            allowed,
            rule: decision.and_then(Decision::rule_id),
            detail,
            dry_run_allow,
            dry_run_deny,
            audit: decision.is_some_and(|one| matches!(one.audit, Some(Audit::Matched(_)))),
        });
    }

    /// Reports the answer's head.
    pub(crate) fn answered<B: Body>(self, response: &Response<B>) {
        let security = self.info.as_ref().map_or(&Security::Plaintext, ConnectionInfo::security);
        self.mesh.telemetry().count_response(response.status(), security);
        if let Some(mut entry) = self.entry {
            entry.response_code = response.status().as_u16();
            entry.bytes_sent = response.body().size_hint().exact();
            entry.duration = self.begun.elapsed();
            self.mesh.observer().answered(&entry);
        }
    }
}

/// Reports a decision about a resource that a handler asked for.
pub(crate) fn resource(
    mesh: &Mesh,
    snapshot: &Snapshot,
    info: &ConnectionInfo,
    resource: &Resource<'_>,
    decision: &Decision,
) {
    let detail = guard::detail(decision);
    mesh.observer().decided(&DecisionEvent {
        generation: snapshot.generation,
        peer: info.peer().map(VerifiedPeer::id),
        method: resource.method,
        path: resource.path,
        allowed: decision.is_allow(),
        rule: decision.rule_id(),
        detail: &detail,
        dry_run_allow: None,
        dry_run_deny: None,
        audit: matches!(decision.audit, Some(Audit::Matched(_))),
    });
}

/// Whether dry-run policies would have let the request pass.
fn passed(shadow: Option<&Shadow>) -> Option<bool> {
    shadow.map(|shadow| shadow.result == ShadowResult::Allowed)
}

fn entry(parts: &Parts, info: &ConnectionInfo, now: UnixTime) -> AccessEntry {
    let text = |name: &str| text(&parts.headers, name);
    AccessEntry {
        start_time: now,
        method: parts.method.as_str().to_owned(),
        path: without_tokens(parts),
        protocol: if parts.version == Version::HTTP_2 { "HTTP/2" } else { "HTTP/1.1" },
        response_code: StatusCode::OK.as_u16(),
        response_code_details: "via_upstream".to_owned(),
        bytes_received: text(CONTENT_LENGTH.as_str()).and_then(|length| length.parse().ok()),
        bytes_sent: None,
        duration: Duration::ZERO,
        forwarded_for: text("x-forwarded-for"),
        user_agent: text(USER_AGENT.as_str()),
        request_id: text("x-request-id"),
        authority: parts
            .uri
            .authority()
            .map(|authority| authority.as_str().to_owned())
            .or_else(|| text("host"))
            .unwrap_or_default(),
        local_address: info.local_address(),
        peer_address: info.peer_address(),
        server_name: info.tls().and_then(|tls| tls.server_name.clone()),
    }
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    let value = headers.get(name).map(HeaderValue::as_bytes)?;
    Some(String::from_utf8_lossy(value).into_owned())
}

/// Path and query with every value that may be a token replaced ([SEC-JWT-10]).
fn without_tokens(parts: &Parts) -> String {
    let Some(query) = parts.uri.query() else { return parts.uri.path().to_owned() };
    let masked = query.split('&').map(|pair| match pair.split_once('=') {
        Some((name, value)) if name == "access_token" || value.starts_with("eyJ") => {
            format!("{name}=***")
        }
        _ => pair.to_owned(),
    });
    format!("{}?{}", parts.uri.path(), masked.collect::<Vec<_>>().join("&"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sec_jwt_10_tokens_in_the_query_are_masked() {
        let shown = |uri: &str| {
            let (parts, ()) = http::Request::get(uri).body(()).unwrap().into_parts();
            without_tokens(&parts)
        };
        assert_eq!(shown("/a?access_token=abc&x=1"), "/a?access_token=***&x=1");
        assert_eq!(shown("/a?t=eyJhbGciOi.J9.x"), "/a?t=***");
        assert_eq!(shown("/a?x=1&flag"), "/a?x=1&flag");
        assert_eq!(shown("/a"), "/a");
    }
}
