//! The Rego stage: asked after token verification and before AUDIT, DENY and ALLOW.
//!
//! Evaluation runs on threads of its own ([SEC-REGO-3]); the request waits for them without
//! holding an async worker, and not longer than the deadline.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{Method, StatusCode};
use http_body::Body;
use mesh_authz::rego::{
    BodyView, DecisionLogEvent, LogPolicy, RegoAnswer, RegoDecision, RegoDenyReason, RegoInput,
    RegoPolicy, RegoPool,
};
use mesh_identity::VerifiedToken;
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::body::RequestBody;
use crate::clock::monotonic;
use crate::custom::{
    Authorizer, Changes, CheckAnswer, CheckFuture, CheckRequest, CheckedBody, Context, Denial,
    RequestChanges, apply,
};
use crate::decision_log::{DecisionLog, Entry};
use crate::guard::Admitted;
use crate::observe::timestamp;
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
///
/// Cloning shares it: [`RegoStage::set_policy`] replaces the policy of all clones.
#[derive(Clone, Debug)]
pub struct RegoStage {
    current: Arc<ArcSwap<Loaded>>,
    pool: Arc<RegoPool>,
    max_body: Option<usize>,
    deadline: Duration,
    log: Option<Arc<DecisionLog>>,
}

/// One policy in force, with the masks that came with it.
#[derive(Debug)]
struct Loaded {
    policy: Arc<RegoPolicy>,
    masks: Arc<LogPolicy>,
    /// Answers in a row that came too late.
    overruns: AtomicU32,
}

impl RegoStage {
    /// A policy and the threads that evaluate it; several policies may share a pool.
    #[must_use]
    pub fn new(policy: Arc<RegoPolicy>, pool: Arc<RegoPool>) -> Self {
        let current = Loaded::new(policy, Arc::default());
        Self {
            current: Arc::new(ArcSwap::from_pointee(current)),
            pool,
            max_body: Some(DEFAULT_MAX_BODY),
            deadline: DEFAULT_DEADLINE,
            log: None,
        }
    }

    /// Replaces the policy and the masks of the decision log; in force for the next request. What
    /// could not be compiled is no policy, so the last good one stays until there is another.
    pub fn set_policy(&self, policy: Arc<RegoPolicy>, masks: Arc<LogPolicy>) {
        self.current.store(Arc::new(Loaded::new(policy, masks)));
    }

    /// The revision of the policy in force; empty when it came from no bundle.
    #[must_use]
    pub fn revision(&self) -> String {
        self.current.load().policy.revision().to_owned()
    }

    /// Logs every decision.
    #[must_use]
    pub fn with_decision_log(mut self, log: Arc<DecisionLog>) -> Self {
        self.log = Some(log);
        self
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
        changes: &mut Changes,
    ) -> Result<(), Refusal>
    where
        B: Body<Data = Bytes> + Unpin,
    {
        let max = self.max_body.unwrap_or_default();
        let read = self.read(parts, body, context.limits).await?;
        let body = read.map(|(read, complete)| CheckedBody {
            truncated: !complete || read.len() > max,
            bytes: read.slice(..read.len().min(max)),
            as_bytes: false,
        });
        let request = CheckRequest {
            parts,
            info: &admitted.info,
            host: &admitted.host,
            own_id: context.own_id,
            now: context.now,
            timeout: self.deadline,
            body: body.as_ref(),
        };
        let input = input(&request, admitted.token.as_ref());
        match answer(self.decide(input, &request).await) {
            CheckAnswer::Allow(asked) => apply(parts, asked, changes),
            CheckAnswer::Deny(Denial { status, headers, body, reason }) => {
                let detail = format!("rego_denied{{{}}}", reason.unwrap_or_default());
                let mut refusal = Refusal::new(status, body, detail);
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

    /// Evaluates on the pool, waits until the deadline, and logs what came of it.
    async fn decide(&self, input: RegoInput, request: &CheckRequest<'_>) -> RegoDecision {
        let loaded = self.current.load_full();
        let Some(log) = &self.log else {
            return self.evaluate(&loaded, input).await.into_decision();
        };
        let begun = monotonic();
        let answer = self.evaluate(&loaded, input.clone()).await;
        let mut event = DecisionLogEvent::default();
        event.path = loaded.policy.query().trim_start_matches("data.").replace('.', "/");
        event.requested_by = request.connection().peer_address().to_string();
        event.timestamp = timestamp(request.time());
        event.eval_ns = u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
        event.error = answer.decision().reason().filter(|why| *why != RegoDenyReason::Policy);
        if !loaded.policy.revision().is_empty() {
            event.bundles = vec![("bundle".to_owned(), loaded.policy.revision().to_owned())];
        }
        log.record(Entry {
            event,
            input,
            answer: answer.clone(),
            masks: Arc::clone(&loaded.masks),
        });
        answer.into_decision()
    }

    async fn evaluate(&self, loaded: &Loaded, input: RegoInput) -> RegoAnswer {
        if loaded.overruns.load(Ordering::Relaxed) >= MAX_OVERRUNS {
            return RegoAnswer::deny(RegoDenyReason::Overrun);
        }
        let (done, answer) = oneshot::channel();
        let submitted = self.pool.submit(Arc::clone(&loaded.policy), input, move |_, answer| {
            // Nobody waits any more when the deadline has passed or the client has gone.
            drop(done.send(answer));
        });
        let Ok(ticket) = submitted else {
            return RegoAnswer::deny(RegoDenyReason::Overloaded);
        };
        match timeout(self.deadline, answer).await {
            Ok(Ok(answer)) => {
                loaded.overruns.store(0, Ordering::Relaxed);
                answer
            }
            Ok(Err(_)) => RegoAnswer::deny(RegoDenyReason::EvaluationError),
            Err(_) => {
                self.pool.write_off(ticket);
                loaded.overruns.fetch_add(1, Ordering::Relaxed);
                RegoAnswer::deny(RegoDenyReason::Overrun)
            }
        }
    }
}

impl Loaded {
    fn new(policy: Arc<RegoPolicy>, masks: Arc<LogPolicy>) -> Self {
        Self { policy, masks, overruns: AtomicU32::new(0) }
    }
}

/// As a provider of CUSTOM policies it comes before tokens are verified, so it sees no claims, and
/// of bodies what the provider is to see.
impl Authorizer for RegoStage {
    fn check<'r>(&'r self, request: CheckRequest<'r>) -> CheckFuture<'r> {
        Box::pin(async move { Ok(answer(self.decide(input(&request, None), &request).await)) })
    }
}

fn answer(decision: RegoDecision) -> CheckAnswer {
    match decision {
        RegoDecision::Allow {
            headers_to_set,
            headers_to_remove,
            response_headers,
            query_to_set,
            query_to_remove,
            dynamic_metadata: _,
        } => CheckAnswer::Allow(RequestChanges {
            headers_to_set,
            headers_to_remove,
            response_headers,
            query_to_set,
            query_to_remove,
            ..RequestChanges::default()
        }),
        RegoDecision::Deny { status, headers, body, reason, dynamic_metadata: _ } => {
            let mut denial = Denial::new(status, body);
            denial.headers = headers;
            denial.reason = Some(reason.as_str());
            CheckAnswer::Deny(denial)
        }
    }
}

fn input(request: &CheckRequest<'_>, token: Option<&VerifiedToken>) -> RegoInput {
    let body = match request.body() {
        None => BodyView::NotRequested,
        Some(body) if body.truncated => BodyView::Truncated(&body.bytes),
        Some(body) => BodyView::Complete(&body.bytes),
    };
    let connection = request.connection();
    let path = request.parts.uri.path_and_query().map_or("", PathAndQuery::as_str);
    let mut input = RegoInput::builder(request.method().as_str(), path, request.headers())
        .authority(request.authority())
        .scheme(request.scheme())
        .protocol(request.protocol())
        .source(connection.peer_address())
        .destination(connection.local_address())
        .destination_id(request.own_id())
        .time(request.time(), 0)
        .body(body);
    if let Some(peer) = connection.peer() {
        input = input.peer(peer);
    }
    if let Some(token) = token {
        input = input.token(token);
    }
    input.build()
}
