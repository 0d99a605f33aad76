//! The Rego stage: asked after token verification and before AUDIT, DENY and ALLOW.
//!
//! Evaluation runs on threads of its own ([SEC-REGO-3]); the request waits for them without
//! holding an async worker, and not longer than the deadline.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{Method, StatusCode};
use http_body::Body;
use mesh_authz::rego::{
    BodyView, DEFAULT_QUERY, DecisionLogEvent, InputParts, LogPolicy, RegoAnswer, RegoDecision,
    RegoDenyReason, RegoInput, RegoPolicy, RegoPool,
};
use mesh_identity::VerifiedToken;
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::body::RequestBody;
use crate::clock::monotonic;
use crate::custom::{
    Authorizer, Changes, CheckAnswer, CheckConnection, CheckFuture, CheckRequest, CheckedBody,
    Context, Denial, RequestChanges, apply, may_change,
};
use crate::decision_log::{DecisionLog, Entry};
use crate::guard::Admitted;
use crate::observe::{system_time, timestamp};
use crate::refuse::Refusal;
use crate::server::Limits;

/// How much of a body a policy sees, unless told otherwise.
const DEFAULT_MAX_BODY: usize = 16 * 1024;

/// How long an answer may take, unless told otherwise.
const DEFAULT_DEADLINE: Duration = Duration::from_millis(100);

/// So many evaluations in a row that outran the deadline, and the policy is taken out: it denies
/// ([SEC-REGO-4]). One request in each [`REST`] is tried all the same, so that a busy machine does
/// not take a good policy out for ever.
const MAX_OVERRUNS: u32 = 8;

/// How long a policy that was taken out rests before it is tried again.
const REST: Duration = Duration::from_secs(1);

/// A Rego policy in the request's way; [`crate::Mesh::set_rego`] puts it there.
///
/// The policy's `input` is that of OPA's Envoy plugin. Verified claims stand where Envoy's
/// jwt_authn filter forwards them; the `authorization` header may hold a token nobody verified.
///
/// Cloning shares it: [`RegoStage::set_policy`] replaces the policy of all clones.
#[derive(Clone, Debug)]
pub struct RegoStage {
    current: Arc<ArcSwap<Loaded>>,
    /// How it is with the bundles that are followed.
    #[cfg(feature = "opa")]
    pub(crate) states: Arc<Mutex<Vec<crate::BundleState>>>,
    pool: Arc<RegoPool>,
    max_body: Option<usize>,
    deadline: Duration,
    log: Option<Arc<DecisionLog>>,
}

/// One policy in force, with the masks that came with it.
#[derive(Debug)]
struct Loaded {
    /// Nothing before the first bundle is in force.
    policy: Option<Arc<RegoPolicy>>,
    masks: Arc<LogPolicy>,
    /// The bundles that it was compiled from: name and revision.
    bundles: Vec<(String, String)>,
    /// The revision of them all, if they have one.
    revision: Option<Arc<str>>,
    breaker: Breaker,
}

/// Takes a policy out that keeps outrunning its deadline ([SEC-REGO-4]).
#[derive(Debug)]
struct Breaker {
    /// Evaluations in a row that did.
    overruns: AtomicU32,
    /// When it was tried last.
    tried: Mutex<Instant>,
}

impl Breaker {
    fn admits(&self) -> bool {
        if self.overruns.load(Ordering::Relaxed) < MAX_OVERRUNS {
            return true;
        }
        let mut tried = self.tried.lock().unwrap_or_else(PoisonError::into_inner);
        let now = monotonic();
        let rested = now.saturating_duration_since(*tried) >= REST;
        if rested {
            *tried = now;
        }
        rested
    }

    fn overran(&self) {
        if self.overruns.fetch_add(1, Ordering::Relaxed) < MAX_OVERRUNS {
            *self.tried.lock().unwrap_or_else(PoisonError::into_inner) = monotonic();
        }
    }

    fn answered(&self) {
        self.overruns.store(0, Ordering::Relaxed);
    }
}

impl RegoStage {
    /// A policy and the threads that evaluate it; several policies may share a pool.
    #[must_use]
    pub fn new(policy: Arc<RegoPolicy>, pool: Arc<RegoPool>) -> Self {
        let stage = Self::waiting(pool);
        stage.set_policy(policy, Arc::default());
        stage
    }

    /// A stage that denies everything until it is given a policy.
    #[must_use]
    pub fn waiting(pool: Arc<RegoPool>) -> Self {
        let current = Loaded::new(None, Arc::default(), Vec::new());
        Self {
            current: Arc::new(ArcSwap::from_pointee(current)),
            #[cfg(feature = "opa")]
            states: Arc::default(),
            pool,
            max_body: Some(DEFAULT_MAX_BODY),
            deadline: DEFAULT_DEADLINE,
            log: None,
        }
    }

    /// Replaces the policy and the masks of the decision log; in force for the next request. What
    /// could not be compiled is no policy, so the last good one stays until there is another.
    pub fn set_policy(&self, policy: Arc<RegoPolicy>, masks: Arc<LogPolicy>) {
        let revision = policy.revision();
        let bundles = (!revision.is_empty()).then(|| ("bundle".to_owned(), revision.to_owned()));
        self.activate(Some(policy), masks, bundles.into_iter().collect());
    }

    /// Puts a policy in force that was compiled from bundles.
    pub(crate) fn activate(
        &self,
        policy: Option<Arc<RegoPolicy>>,
        masks: Arc<LogPolicy>,
        bundles: Vec<(String, String)>,
    ) {
        self.current.store(Arc::new(Loaded::new(policy, masks, bundles)));
    }

    /// How it is with the bundles that [`Self::follow`] keeps in force.
    #[cfg(feature = "opa")]
    #[must_use]
    pub fn bundles(&self) -> Vec<crate::BundleState> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The revision of the policy in force; empty when it came from no bundle.
    #[must_use]
    pub fn revision(&self) -> String {
        let loaded = self.current.load();
        loaded.policy.as_ref().map(|policy| policy.revision().to_owned()).unwrap_or_default()
    }

    /// Logs every decision.
    #[must_use]
    pub fn with_decision_log(mut self, log: Arc<DecisionLog>) -> Self {
        self.log = Some(log);
        self
    }

    /// How many bytes of the body the policy sees; nothing keeps bodies from it. A policy that does
    /// not look at bodies does not wait for them, unless there is a decision log.
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
        // One policy for the whole request: what it does not read is not there for another.
        let loaded = self.current.load_full();
        changes.told(loaded.revision.as_ref());
        let only = self.only(&loaded);
        let max = self.max_body.unwrap_or_default();
        let read =
            if only.has_body() { self.read(parts, body, context.limits).await? } else { None };
        let body = read.map(|(read, complete)| CheckedBody {
            truncated: !complete || read.len() > max,
            bytes: read.slice(..read.len().min(max)),
            as_bytes: false,
        });
        let request = CheckRequest {
            parts,
            on: CheckConnection {
                info: &admitted.arrived.info,
                own_id: context.own_id,
                now: context.now,
                timeout: self.deadline,
            },
            host: &admitted.arrived.host,
            body: body.as_ref(),
        };
        let input = input(&request, admitted.token.as_ref(), only);
        match answer(self.decide(&loaded, input, &request).await, &loaded) {
            CheckAnswer::Allow(asked) => apply(parts, asked, changes),
            CheckAnswer::Deny(Denial { status, headers, body, reason, revision: _ }) => {
                let detail = format!("rego_denied{{{}}}", reason.unwrap_or_default());
                let mut refusal = Refusal::new(status, body, detail);
                refusal.headers = headers;
                refusal.headers.retain(|(name, _)| may_change(name));
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

    /// What the policy reads of a request; a log is told everything.
    fn only<'l>(&self, loaded: &'l Loaded) -> &'l InputParts {
        match &loaded.policy {
            Some(policy) if self.log.is_none() => policy.reads(),
            Some(_) | None => &InputParts::ALL,
        }
    }

    /// Evaluates on the pool, waits until the deadline, and logs what came of it.
    async fn decide(
        &self,
        loaded: &Loaded,
        input: RegoInput,
        request: &CheckRequest<'_>,
    ) -> RegoDecision {
        let Some(log) = &self.log else {
            return self.evaluate(loaded, input).await.into_decision();
        };
        let begun = monotonic();
        let answer = self.evaluate(loaded, input.clone()).await;
        let mut event = DecisionLogEvent::default();
        let query = loaded.policy.as_ref().map_or(DEFAULT_QUERY, |policy| policy.query());
        event.path = query.trim_start_matches("data.").replace('.', "/");
        event.requested_by = request.connection().peer_address().to_string();
        event.timestamp = timestamp(system_time(request.time()));
        event.eval_ns = u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
        event.error = answer.decision().reason().filter(|why| *why != RegoDenyReason::Policy);
        event.bundles.clone_from(&loaded.bundles);
        log.record(Entry {
            event,
            input,
            answer: answer.clone(),
            masks: Arc::clone(&loaded.masks),
        });
        answer.into_decision()
    }

    async fn evaluate(&self, loaded: &Loaded, input: RegoInput) -> RegoAnswer {
        if !loaded.breaker.admits() {
            return RegoAnswer::deny(RegoDenyReason::Overrun);
        }
        let Some(policy) = &loaded.policy else {
            return RegoAnswer::deny(RegoDenyReason::NoPolicy);
        };
        let begun = monotonic();
        let (done, answer) = oneshot::channel();
        let submitted = self.pool.submit(Arc::clone(policy), input, move |_, answer| {
            // Nobody waits any more when the deadline has passed or the client has gone.
            drop(done.send(answer));
        });
        let Ok(ticket) = submitted else {
            return RegoAnswer::deny(RegoDenyReason::Overloaded);
        };
        match timeout(self.deadline, answer).await {
            // The timer may be late, too: what counts is when the answer is here.
            Ok(Ok(_)) if begun.elapsed() > self.deadline => {
                RegoAnswer::deny(RegoDenyReason::Overrun)
            }
            Ok(Ok(answer)) => {
                loaded.breaker.answered();
                answer
            }
            Ok(Err(_)) => RegoAnswer::deny(RegoDenyReason::EvaluationError),
            Err(_) => {
                if self.pool.write_off(ticket) {
                    loaded.breaker.overran();
                }
                RegoAnswer::deny(RegoDenyReason::Overrun)
            }
        }
    }
}

impl Loaded {
    fn new(
        policy: Option<Arc<RegoPolicy>>,
        masks: Arc<LogPolicy>,
        bundles: Vec<(String, String)>,
    ) -> Self {
        let breaker = Breaker { overruns: AtomicU32::new(0), tried: Mutex::new(monotonic()) };
        let revision = policy.as_ref().map(|policy| policy.revision());
        let revision = revision.filter(|revision| !revision.is_empty()).map(Arc::from);
        Self { policy, masks, bundles, revision, breaker }
    }
}

/// As a provider of CUSTOM policies it comes before tokens are verified, so it sees no claims, and
/// of bodies what the provider is to see.
impl Authorizer for RegoStage {
    fn check<'r>(&'r self, request: CheckRequest<'r>) -> CheckFuture<'r> {
        Box::pin(async move {
            let loaded = self.current.load_full();
            let input = input(&request, None, self.only(&loaded));
            Ok(answer(self.decide(&loaded, input, &request).await, &loaded))
        })
    }
}

fn answer(decision: RegoDecision, by: &Loaded) -> CheckAnswer {
    let revision = by.revision.clone();
    match decision {
        RegoDecision::Allow {
            headers_to_set,
            headers_to_remove,
            response_headers,
            query_to_set,
            query_to_remove,
            dynamic_metadata,
        } => CheckAnswer::Allow(RequestChanges {
            headers_to_set,
            headers_to_remove,
            response_headers,
            query_to_set,
            query_to_remove,
            dynamic_metadata,
            revision,
            ..RequestChanges::default()
        }),
        // The client must not see it; the decision log has it in the result.
        RegoDecision::Deny { status, headers, body, reason, dynamic_metadata: _ } => {
            let mut denial = Denial::new(status, body);
            denial.headers = headers;
            denial.reason = Some(reason.as_str());
            denial.revision = revision;
            CheckAnswer::Deny(denial)
        }
    }
}

fn input(
    request: &CheckRequest<'_>,
    token: Option<&VerifiedToken>,
    only: &InputParts,
) -> RegoInput {
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
        .body(body)
        .only(only);
    if let Some(peer) = connection.peer() {
        input = input.peer(peer);
    }
    if let Some(token) = token {
        input = input.token(token);
    }
    input.build()
}
