//! What one request leaves behind: metrics, a decision event, an access log line.

use std::borrow::Cow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::header::{HeaderValue, USER_AGENT};
use http::request::Parts;
use http::{HeaderMap, Method, Response, StatusCode, Uri, Version};
use http_body::{Body, Frame};
use mesh_authz::{Audit, Decision, Shadow, ShadowResult};
use mesh_identity::{VerifiedPeer, VerifiedToken};
use rustls::pki_types::UnixTime;
use tracing::Span;

use crate::body::{RequestBody, ResponseBody};
use crate::clock::monotonic;
use crate::connection::ConnectionInfo;
use crate::flow::{Messages, Received};
use crate::guard;
use crate::mask;
use crate::mesh::Mesh;
use crate::observe::{AccessEntry, DecisionEvent};
use crate::refuse::RequestKind;
use crate::resource::Resource;
use crate::running::{Cut, Running};
use crate::snapshot::Snapshot;
use crate::telemetry::{Amounts, Flag, Outcome, Telemetry};
use crate::trace;

/// Follows one request from its head to the end of its answer; what is known then is reported when
/// it is dropped. It is in a box, which is all that it allocates without an access log: it goes
/// from the request to its answer and on to the answer's body.
#[derive(Debug)]
pub(crate) struct Record {
    mesh: Mesh,
    now: UnixTime,
    begun: Instant,
    info: Option<ConnectionInfo>,
    entry: Option<Box<AccessEntry>>,
    /// The target as it was sent, where a refusal must be logged whatever the sampling says.
    target: Option<Uri>,
    grpc: bool,
    is_head: bool,
    received: Reception,
    answer: Answer,
    /// Why the policies refuse, for a person; nothing where nobody will read it.
    explanation: Option<String>,
    /// Which revision of a Rego policy was asked.
    rego_revision: Option<Arc<str>>,
    /// Around the request until its answer has gone; disabled where nobody traces.
    place: trace::Place,
    /// What judges the request again, from its admission to the head of its answer.
    pub(crate) running: Option<Running>,
}

/// What is known of the request's body.
#[derive(Debug)]
enum Reception {
    /// It was declared.
    Length(u64),
    /// It is counted while the service reads it.
    Counted(Arc<Received>),
}

/// What is known of the answer.
#[derive(Debug, Default)]
struct Answer {
    /// Whether the request was decided; before that there is nothing to report.
    decided: bool,
    /// 0 until there is a head.
    code: u16,
    grpc_status: Option<u8>,
    sent: u64,
    messages: Messages,
    /// Whether the body has come to its end.
    whole: bool,
    flag: Flag,
}

impl Record {
    pub(crate) fn begin<B: Body>(
        mesh: &Mesh,
        parts: &mut Parts,
        body: B,
        kind: RequestKind,
    ) -> (Box<Self>, RequestBody<B>) {
        let place = trace::inbound(&parts.headers, parts.method.as_str());
        if let Some(context) = place.context() {
            parts.extensions.insert(context.clone());
        }
        let info = parts.extensions.get::<ConnectionInfo>().cloned();
        let grpc = kind == RequestKind::Grpc;
        let length = body.size_hint().exact().filter(|_| !grpc);
        let (received, body) = if let Some(length) = length {
            (Reception::Length(length), RequestBody::untouched(body))
        } else {
            let received = Arc::<Received>::default();
            let body = RequestBody::counted(body, Arc::clone(&received), grpc);
            (Reception::Counted(received), body)
        };
        // Messages of a gRPC stream may be as far apart as they like. Over HTTP/1 there is no such stream,
        // whatever `content-type` says, and nothing else that would end it.
        let streams = grpc && parts.version == Version::HTTP_2;
        let body = body.patient_for(mesh.limits().request_body.filter(|_| !streams));
        let mut record = Box::new(Self {
            now: mesh.clock().now(),
            mesh: mesh.clone(),
            begun: monotonic(),
            info,
            entry: None,
            target: None,
            grpc,
            is_head: parts.method == Method::HEAD,
            received,
            answer: Answer::default(),
            explanation: None,
            rego_revision: None,
            place,
            running: None,
        });
        if mesh.logs().wants_access(mesh.observer()) {
            record.target = Some(parts.uri.clone());
            if mesh.logs().samples_access(mesh.observer()) {
                record.enter(parts);
            }
        }
        (record, body)
    }

    /// The wall-clock time that this request is judged by.
    pub(crate) fn now(&self) -> UnixTime {
        self.now
    }

    /// Keeps why the policies refuse, for the one who looks at refusals.
    #[cfg(feature = "admin")]
    pub(crate) fn explained(&mut self, explanation: Option<String>) {
        self.explanation = explanation;
    }

    /// Keeps which revision of a Rego policy was asked, if one was.
    pub(crate) fn asked(&mut self, rego_revision: Option<Arc<str>>) {
        self.rego_revision = rego_revision;
    }

    pub(crate) fn mesh(&self) -> &Mesh {
        &self.mesh
    }

    /// The request's span and trace, in which its handler runs.
    pub(crate) fn place(&self) -> &trace::Place {
        &self.place
    }

    /// Begins an access log entry.
    fn enter(&mut self, parts: &Parts) {
        if let (None, Some(target), Some(info)) = (&self.entry, &self.target, &self.info) {
            let snapshot = self.mesh.snapshot();
            let start = self.mesh.clock().precise();
            let entry = entry(parts, target, info, &snapshot.token_parameters, start);
            self.entry = Some(Box::new(entry));
        }
    }

    /// Reports the one decision of this request. `decision` is what the policies said, and `user`
    /// whose token was verified, if the request came as far.
    pub(crate) fn decided(
        &mut self,
        snapshot: &Snapshot,
        parts: &Parts,
        allowed: bool,
        detail: &str,
        decision: Option<&Decision>,
        user: Option<&VerifiedToken>,
    ) {
        let telemetry = self.mesh.telemetry();
        telemetry.count_decision(allowed, detail, self.begun.elapsed());
        if let Some(decision) = decision {
            count_rules(telemetry, decision);
        }
        let dry_run_allow = decision.and_then(|one| passed(one.shadow_allow.as_ref()));
        let dry_run_deny = decision.and_then(|one| passed(one.shadow_deny.as_ref()));
        if dry_run_allow == Some(false) || dry_run_deny == Some(false) {
            telemetry.count_shadow_denial();
        }
        self.answer.decided = true;
        if !allowed {
            self.enter(parts);
            if detail.starts_with("ext_authz") {
                self.answer.flag = Flag::ExternalAuthorizer;
            }
        }
        // What is said of an admitted request are words of ours.
        let detail = if allowed { Cow::Borrowed(detail) } else { mask::tokens(detail) };
        if let Some(entry) = &mut self.entry {
            (*detail).clone_into(&mut entry.response_code_details);
        }
        let path = mask::tokens(parts.uri.path());
        let explanation = self.explanation.take();
        let event = DecisionEvent {
            generation: snapshot.generation,
            peer: self.info.as_ref().and_then(ConnectionInfo::peer).map(VerifiedPeer::id),
            method: parts.method.as_str(),
            path: &path,
            allowed,
            rule: decision.and_then(Decision::rule_id),
            matched: decision.and_then(Decision::rule),
            user,
            detail: &detail,
            dry_run_allow,
            dry_run_deny,
            audit: decision.is_some_and(|one| matches!(one.audit, Some(Audit::Matched(_)))),
            rego_revision: self.rego_revision.as_deref(),
        };
        self.place.span().in_scope(|| {
            self.mesh.report_decision(snapshot.svid.id(), &event, explanation.as_deref());
        });
        if !self.place.span().is_disabled() {
            trace_decision(self.place.span(), &event);
        }
    }

    /// Takes note of the head of the service's answer, and follows its body.
    pub(crate) fn answered_by_service<B>(
        mut self: Box<Self>,
        response: Response<B>,
    ) -> Response<ResponseBody<B>>
    where
        B: Body,
    {
        let running = self.running.take();
        let cut = running.map_or_else(Cut::default, |running| running.answered(&response));
        self.head(response.status(), response.headers(), response.body().is_end_stream());
        response.map(|body| ResponseBody::inner(body, cut).recorded(self))
    }

    /// Takes note of the head of an answer of ours, and follows its body.
    pub(crate) fn answered<B>(
        mut self: Box<Self>,
        response: Response<ResponseBody<B>>,
    ) -> Response<ResponseBody<B>>
    where
        ResponseBody<B>: Body,
    {
        self.head(response.status(), response.headers(), response.body().is_end_stream());
        response.map(|body| body.recorded(self))
    }

    fn head(&mut self, status: StatusCode, headers: &HeaderMap, is_over: bool) {
        self.answer.code = status.as_u16();
        self.place.span().record("http.response.status_code", status.as_u16());
        if self.grpc {
            self.answer.grpc_status = grpc_status(headers);
        }
        // hyper sends no body with these and does not ask for one.
        let none = matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        self.answer.whole = is_over || none || status.is_informational() || self.is_head;
    }

    /// Takes note of a part of the answer's body.
    pub(crate) fn sent<E>(&mut self, frame: Option<&Result<Frame<Bytes>, E>>, is_last: bool) {
        let answer = &mut self.answer;
        match frame {
            None => answer.whole = true,
            Some(Err(_)) => answer.flag = Flag::BrokeOff,
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    let length = u64::try_from(data.len()).unwrap_or(u64::MAX);
                    answer.sent = answer.sent.saturating_add(length);
                    if self.grpc {
                        answer.messages.feed(data);
                    }
                }
                if let Some(trailers) = frame.trailers_ref() {
                    answer.grpc_status = grpc_status(trailers).or(answer.grpc_status);
                }
                // Nothing follows trailers, and hyper does not ask.
                answer.whole |= is_last || frame.is_trailers();
            }
        }
    }

    /// Reports how the request ended.
    fn finish(&mut self) {
        let took = self.begun.elapsed();
        let answer = &mut self.answer;
        if answer.flag == Flag::None && !answer.whole {
            answer.flag = Flag::ClientGone;
        }
        let (received, messages_received) = match &self.received {
            Reception::Length(length) => (*length, 0),
            Reception::Counted(received) => (received.bytes(), received.messages()),
        };
        let Answer { code, grpc_status, sent, flag, .. } = *answer;
        let grpc_status = grpc_status.filter(|_| self.grpc);
        if let Some(info) = &self.info {
            let outcome = Outcome { grpc: self.grpc, code, grpc_status, flag };
            let messages_sent = answer.messages.count();
            let amounts = Amounts { took, received, sent, messages_received, messages_sent };
            info.series(self.mesh.telemetry()).count(outcome, &amounts);
        }
        if let Some(mut entry) = self.entry.take() {
            entry.response_code = code;
            entry.response_flags = flag.as_str();
            entry.bytes_received = received;
            entry.bytes_sent = sent;
            entry.duration = took;
            self.mesh.report_access(&entry);
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if self.answer.decided {
            // [SEC-HTTP-17] A panicking observer ends no connection.
            drop(catch_unwind(AssertUnwindSafe(|| self.finish())));
        }
    }
}

/// `grpc-status` of headers or trailers; what is no status of gRPC's is none.
pub(crate) fn grpc_status(headers: &HeaderMap) -> Option<u8> {
    const MOST: u8 = 16;
    let value = headers.get("grpc-status")?.to_str().ok()?;
    value.parse().ok().filter(|status| *status <= MOST)
}

/// Says in a span who called and what was decided; path and reason are masked already.
fn trace_decision(span: &Span, event: &DecisionEvent<'_>) {
    span.record("url.path", event.path);
    span.record("mesh.decision", if event.allowed { "allow" } else { "deny" });
    span.record("mesh.reason", event.detail);
    if let Some(peer) = event.peer {
        span.record("mesh.peer", tracing::field::display(peer));
    }
    if let Some(rule) = event.rule {
        span.record("mesh.policy", rule);
    }
}

/// Counts the rules that decided, audited, and would have decided in a dry run.
fn count_rules(telemetry: &Telemetry, decision: &Decision) {
    let audit = match &decision.audit {
        Some(Audit::Matched(rule)) => Some(rule),
        Some(Audit::NotMatched) | None => None,
    };
    let shadow = |shadow: &'_ Option<Shadow>| shadow.as_ref().and_then(|one| one.rule.clone());
    let shadows = [shadow(&decision.shadow_deny), shadow(&decision.shadow_allow)];
    let rules = decision.rule().into_iter().chain(audit).chain(shadows.iter().flatten());
    rules.for_each(|rule| telemetry.count_rule(rule));
}

/// Reports a decision about a resource that a handler asked for.
pub(crate) fn resource(
    mesh: &Mesh,
    snapshot: &Snapshot,
    info: &ConnectionInfo,
    user: Option<&VerifiedToken>,
    resource: &Resource<'_>,
    decision: &Decision,
) {
    count_rules(mesh.telemetry(), decision);
    let detail = guard::detail(decision);
    let path = mask::tokens(resource.path);
    let event = DecisionEvent {
        generation: snapshot.generation,
        peer: info.peer().map(VerifiedPeer::id),
        method: resource.method,
        path: &path,
        allowed: decision.is_allow(),
        rule: decision.rule_id(),
        matched: decision.rule(),
        user,
        detail: &detail,
        dry_run_allow: None,
        dry_run_deny: None,
        audit: matches!(decision.audit, Some(Audit::Matched(_))),
        rego_revision: None,
    };
    mesh.report_decision(snapshot.svid.id(), &event, None);
}

/// Whether dry-run policies would have let the request pass.
fn passed(shadow: Option<&Shadow>) -> Option<bool> {
    shadow.map(|shadow| shadow.result == ShadowResult::Allowed)
}

fn entry(
    parts: &Parts,
    target: &Uri,
    info: &ConnectionInfo,
    token_parameters: &[String],
    start_time: SystemTime,
) -> AccessEntry {
    let text = |name: &str| text(&parts.headers, name);
    let authority = target.authority().map(|authority| authority.as_str().to_owned());
    AccessEntry {
        start_time,
        method: parts.method.as_str().to_owned(),
        path: mask::path_and_query(target.path(), target.query(), token_parameters),
        protocol: match parts.version {
            Version::HTTP_2 => "HTTP/2",
            Version::HTTP_10 => "HTTP/1.0",
            _ => "HTTP/1.1",
        },
        response_code: 0,
        response_flags: Flag::None.as_str(),
        response_code_details: "via_upstream".to_owned(),
        bytes_received: 0,
        bytes_sent: 0,
        duration: Duration::ZERO,
        forwarded_for: text("x-forwarded-for"),
        user_agent: text(USER_AGENT.as_str()),
        request_id: text("x-request-id"),
        authority: authority.or_else(|| text("host")).unwrap_or_default(),
        local_address: info.local_address(),
        peer_address: info.peer_address(),
        server_name: info.tls().and_then(|tls| tls.server_name.clone()),
    }
}

/// A header's value, for a log; what looks like a token is not shown.
fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    let value = headers.get(name).map(HeaderValue::as_bytes)?;
    Some(mask::tokens(&String::from_utf8_lossy(value)).into_owned())
}
