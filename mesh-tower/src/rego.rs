//! The Rego stage: asked after token verification and before AUDIT, DENY and ALLOW.
//!
//! Evaluation runs on threads of its own ([SEC-REGO-3]); the request waits for them without
//! holding an async worker, and not longer than the deadline.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderName, HeaderValue, Method, StatusCode, Version};
use http_body::Body;
use mesh_authz::rego::{BodyView, RegoDecision, RegoDenyReason, RegoInput, RegoPolicy, RegoPool};
use mesh_identity::SpiffeId;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use rustls::pki_types::UnixTime;
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::body::RequestBody;
use crate::gather;
use crate::guard::Admitted;
use crate::refuse::Refusal;
use crate::server::Limits;

/// How much of a body a policy sees, unless told otherwise.
const DEFAULT_MAX_BODY: usize = 16 * 1024;

/// How long an answer may take, unless told otherwise.
const DEFAULT_DEADLINE: Duration = Duration::from_millis(100);

/// So many answers in a row that came too late, and the policy is not asked any more: it denies
/// until it is replaced ([SEC-REGO-4]).
const MAX_OVERRUNS: u32 = 8;

/// A Rego policy in the request's way; [`crate::Mesh::set_rego`] puts it there.
///
/// The policy's `input` is that of OPA's Envoy plugin. Verified claims stand where Envoy's
/// jwt_authn filter forwards them; the `authorization` header may hold a token nobody verified.
#[derive(Debug)]
pub struct RegoStage {
    policy: Arc<RegoPolicy>,
    pool: Arc<RegoPool>,
    max_body: Option<usize>,
    deadline: Duration,
    overruns: AtomicU32,
}

/// What an allowing answer changes beyond the request.
pub(crate) struct Changes {
    pub(crate) response_headers: Vec<(HeaderName, HeaderValue)>,
}

impl fmt::Debug for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Changes").finish_non_exhaustive()
    }
}

impl RegoStage {
    /// A policy and the threads that evaluate it; several policies may share a pool.
    #[must_use]
    pub fn new(policy: Arc<RegoPolicy>, pool: Arc<RegoPool>) -> Self {
        Self {
            policy,
            pool,
            max_body: Some(DEFAULT_MAX_BODY),
            deadline: DEFAULT_DEADLINE,
            overruns: AtomicU32::new(0),
        }
    }

    /// How many bytes of the body the policy sees; nothing keeps bodies from it.
    #[must_use]
    pub fn with_max_body(mut self, bytes: Option<usize>) -> Self {
        self.max_body = bytes;
        self
    }

    /// How long an answer may take, waiting for a thread included; a later one is a denial.
    #[must_use]
    pub fn with_deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Asks the policy about a request and applies what an allowing answer changes in it.
    pub(crate) async fn ask<B>(
        &self,
        parts: &mut Parts,
        admitted: &Admitted,
        body: &mut RequestBody<B>,
        context: Context<'_>,
    ) -> Result<Changes, Refusal>
    where
        B: Body<Data = Bytes> + Unpin,
    {
        let read = self.read(parts, body, context.limits).await?;
        let input = input(parts, admitted, read.as_ref(), self.max_body, &context);
        match self.decide(input).await {
            RegoDecision::Allow {
                headers_to_set,
                headers_to_remove,
                response_headers,
                query_to_set,
                query_to_remove,
                dynamic_metadata: _,
            } => {
                for name in &headers_to_remove {
                    parts.headers.remove(name);
                }
                // The client's own lines of these names go, all of them.
                for (name, _) in &headers_to_set {
                    parts.headers.remove(name);
                }
                for (name, value) in headers_to_set {
                    parts.headers.append(name, value);
                }
                change_query(parts, &query_to_set, &query_to_remove)?;
                Ok(Changes { response_headers })
            }
            RegoDecision::Deny { status, headers, body, reason, dynamic_metadata: _ } => {
                let detail = format!("rego_denied{{{}}}", reason.as_str());
                let mut refusal = Refusal::new(status, Bytes::from(body), detail);
                refusal.headers = headers;
                Err(refusal)
            }
        }
    }

    /// Reads ahead in the body as far as the policy may see it, and one byte more.
    async fn read<B>(
        &self,
        parts: &Parts,
        body: &mut RequestBody<B>,
        limits: &Limits,
    ) -> Result<Option<(Bytes, bool)>, Refusal>
    where
        B: Body<Data = Bytes> + Unpin,
    {
        let Some(max) = self.max_body.filter(|_| parts.method != Method::CONNECT) else {
            return Ok(None);
        };
        match timeout(limits.body_read_ahead, body.read_ahead(max)).await {
            Ok(Ok(read)) => Ok(Some(read)),
            Ok(Err(_)) => Err(Refusal::malformed("body cannot be read")),
            Err(_) => {
                let detail = "rego_denied{body_timeout}".to_owned();
                Err(Refusal::new(StatusCode::REQUEST_TIMEOUT, Bytes::new(), detail))
            }
        }
    }

    /// Evaluates on the pool and waits until the deadline.
    async fn decide(&self, input: RegoInput) -> RegoDecision {
        if self.overruns.load(Ordering::Relaxed) >= MAX_OVERRUNS {
            return RegoDecision::deny(RegoDenyReason::Overrun);
        }
        let (done, answer) = oneshot::channel();
        let submitted = self.pool.submit(Arc::clone(&self.policy), input, move |decision| {
            // Nobody waits any more when the deadline has passed or the client has gone.
            drop(done.send(decision));
        });
        let ticket = match submitted {
            Ok(ticket) => ticket,
            Err(full) => return full.into(),
        };
        match timeout(self.deadline, answer).await {
            Ok(Ok(decision)) => {
                self.overruns.store(0, Ordering::Relaxed);
                decision
            }
            Ok(Err(_)) => RegoDecision::deny(RegoDenyReason::EvaluationError),
            Err(_) => {
                self.pool.write_off(ticket);
                self.overruns.fetch_add(1, Ordering::Relaxed);
                RegoDecision::deny(RegoDenyReason::Overrun)
            }
        }
    }
}

/// What the stage needs to know beside the request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Context<'a> {
    pub(crate) now: UnixTime,
    pub(crate) limits: &'a Limits,
    pub(crate) own_id: &'a SpiffeId,
}

fn input(
    parts: &Parts,
    admitted: &Admitted,
    read: Option<&(Bytes, bool)>,
    max_body: Option<usize>,
    context: &Context<'_>,
) -> RegoInput {
    let max = max_body.unwrap_or_default();
    let body = match read {
        None => BodyView::NotRequested,
        Some((read, true)) if read.len() <= max => BodyView::Complete(read),
        Some((read, _)) => BodyView::Truncated(read.get(..max).unwrap_or(read)),
    };
    let path = parts.uri.path_and_query().map_or("", PathAndQuery::as_str);
    let mut input = RegoInput::builder(parts.method.as_str(), path, &parts.headers)
        .authority(admitted.host.as_str())
        .scheme(if admitted.info.tls().is_some() { "https" } else { "http" })
        .protocol(if parts.version == Version::HTTP_2 { "HTTP/2" } else { "HTTP/1.1" })
        .source(admitted.info.peer_address())
        .destination(admitted.info.local_address())
        .destination_id(context.own_id)
        .time(context.now, 0)
        .body(body);
    if let Some(peer) = admitted.info.peer() {
        input = input.peer(peer);
    }
    if let Some(token) = &admitted.token {
        input = input.token(token);
    }
    input.build()
}

/// Sets and removes query parameters; those a policy does not name keep their bytes.
fn change_query(
    parts: &mut Parts,
    set: &[(String, String)],
    remove: &[String],
) -> Result<(), Refusal> {
    if set.is_empty() && remove.is_empty() {
        return Ok(());
    }
    let changed = |name: &str| {
        remove.iter().any(|other| other == name) || set.iter().any(|(other, _)| other == name)
    };
    let kept = parts.uri.query().unwrap_or_default().split('&').filter(|pair| {
        let name = pair.split('=').next().unwrap_or_default();
        !pair.is_empty() && !changed(&percent_decode_str(name).decode_utf8_lossy())
    });
    let encode = |text| utf8_percent_encode(text, QUERY);
    let added = set.iter().map(|(name, value)| format!("{}={}", encode(name), encode(value)));
    let query: Vec<String> = kept.map(str::to_owned).chain(added).collect();
    let path = parts.uri.path();
    let text =
        if query.is_empty() { path.to_owned() } else { format!("{path}?{}", query.join("&")) };
    let Ok(path) = PathAndQuery::try_from(text) else {
        return Err(Refusal::fault("the policy's query parameters do not make a query"));
    };
    gather::set_path(&mut parts.uri, path)
}

/// Everything but unreserved characters (RFC 3986 section 2.3).
const QUERY: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_changes_only_the_parameters_it_names() {
        let changed = |uri: &str, set: &[(&str, &str)], remove: &[&str]| {
            let (mut parts, ()) = http::Request::get(uri).body(()).unwrap().into_parts();
            let own = |text: &&str| (*text).to_owned();
            let set: Vec<_> = set.iter().map(|(n, v)| (own(n), own(v))).collect();
            let remove: Vec<_> = remove.iter().map(own).collect();
            change_query(&mut parts, &set, &remove).unwrap();
            parts.uri.to_string()
        };
        assert_eq!(changed("/a?x=1&y=%202", &[], &["x"]), "/a?y=%202");
        assert_eq!(changed("/a?%78=1", &[], &["x"]), "/a");
        assert_eq!(changed("/a?x=1&z", &[("x", "a&b=c")], &[]), "/a?z&x=a%26b%3Dc");
        assert_eq!(changed("/a", &[("n", "\u{e4}")], &[]), "/a?n=%C3%A4");
        assert_eq!(changed("/a?x=1", &[], &[]), "/a?x=1");
    }
}
