//! The guarded service: judge, then call the inner service or answer.

use std::cell::Cell;
use std::error::Error;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::{self, Poll};

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HeaderValue};
use http::request::Parts;
use http::{Request, Response};
use http_body::Body;
use mesh_authz::Decision;
use tower_service::Service;

use crate::body::{RequestBody, ResponseBody};
use crate::custom::{Changes, Context, Custom};
use crate::denial::DeniedRequest;
use crate::future::MeshFuture;
use crate::guard::{self, Admitted, Arrival, Arrived};
use crate::mesh::Mesh;
use crate::record::Record;
use crate::refuse::{Refusal, RequestKind};
use crate::running::Running;
use crate::server::Limits;
use crate::snapshot::Snapshot;
use crate::source::first_keys;

/// A service behind the mesh; made by [`crate::MeshLayer`].
///
/// It is not `Sync`, for the reason told at [`crate::MeshLayer`].
#[derive(Clone, Debug)]
pub struct MeshService<S> {
    mesh: Mesh,
    inner: S,
    not_sync: PhantomData<Cell<()>>,
}

impl<S> MeshService<S> {
    pub(crate) fn new(mesh: Mesh, inner: S) -> Self {
        Self { mesh, inner, not_sync: PhantomData }
    }
}

impl<S, B, R> Service<Request<B>> for MeshService<S>
where
    S: Service<Request<RequestBody<B>>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send,
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
    R: Body<Data = Bytes> + Send + 'static,
    R::Error: Into<Box<dyn Error + Send + Sync>>,
{
    type Response = Response<ResponseBody<R>>;
    type Error = S::Error;
    type Future = MeshFuture<S::Future, R, S::Error>;

    fn poll_ready(&mut self, cx: &mut task::Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let limit = self.mesh.http_settings().first_keys;
        if limit.is_zero() {
            return self.judge(request);
        }
        let sources = guard::unfetched_keys(&self.mesh.snapshot(), &request);
        if sources.is_empty() {
            return self.judge(request);
        }
        // A clone takes this service's place, so that the one that is ready is called.
        let inner = self.inner.clone();
        let inner = std::mem::replace(&mut self.inner, inner);
        let mut ready = Self::new(self.mesh.clone(), inner);
        MeshFuture::asking(Box::pin(async move {
            first_keys(ready.mesh.clone(), sources, limit).await;
            ready.judge(request).await
        }))
    }
}

impl<S> MeshService<S> {
    #[inline]
    fn judge<B, R>(&mut self, request: Request<B>) -> MeshFuture<S::Future, R, S::Error>
    where
        S: Service<Request<RequestBody<B>>, Response = Response<R>> + Clone + Send + 'static,
        S::Future: Send,
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
        R: Body<Data = Bytes> + Send + 'static,
        R::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        let (mut parts, body) = request.into_parts();
        let snapshot = self.mesh.snapshot();
        let kind = RequestKind::of(&parts);
        let (mut record, body) = Record::begin(&self.mesh, &mut parts, body, kind);

        let judging = || self.first_step(&snapshot, &mut parts, &body, kind, &mut record);
        let (admitted, decision) = match fail_closed(judging) {
            Ok(Step::Decided(admitted, decision)) => (admitted, decision),
            Ok(Step::Open) => {
                record.decided(&snapshot, &parts, true, "open_path", None, None);
                let request = Request::from_parts(parts, body);
                let answering = record.place().run(|| self.inner.call(request));
                return MeshFuture::inner(answering, record);
            }
            Ok(Step::Ask(custom, arrived)) => {
                // A clone takes this service's place, so that the one that is ready is called.
                let inner = self.inner.clone();
                let inner = std::mem::replace(&mut self.inner, inner);
                let limits = self.mesh.limits().clone();
                let asked = Asked { snapshot, parts, body, arrived, record, kind, limits };
                return MeshFuture::asking(Box::pin(asked.ask(custom, inner)));
            }
            Err(refusal) => {
                record.decided(&snapshot, &parts, false, &refusal.detail, None, None);
                return MeshFuture::refused(answer(refusal, kind, &parts, record));
            }
        };
        if let Err(refusal) = settle(&snapshot, &mut parts, admitted, &decision, &mut record) {
            return MeshFuture::refused(answer(refusal, kind, &parts, record));
        }
        let request = Request::from_parts(parts, body);
        let answering = record.place().run(|| self.inner.call(request));
        MeshFuture::inner(answering, record)
    }

    /// All of it, where nobody has to be asked.
    fn first_step<B: Body>(
        &self,
        snapshot: &Snapshot,
        parts: &mut Parts,
        body: &B,
        kind: RequestKind,
        record: &mut Record,
    ) -> Result<Step, Refusal> {
        let now = record.now();
        let (settings, limits) = (self.mesh.http_settings(), self.mesh.limits());
        let arrived = match guard::arrive(snapshot, settings, limits, parts, now)? {
            Arrival::Judge(arrived) => arrived,
            Arrival::Open => return Ok(Step::Open),
        };
        let custom = Custom::begin(snapshot, parts, &arrived);
        if custom.is_some() || snapshot.asks_rego() {
            return Ok(Step::Ask(custom, arrived));
        }
        record.running = Running::begin(&self.mesh, snapshot, parts, &arrived, kind);
        let admitted = guard::admit(snapshot, parts, arrived, now)?;
        let decision = decide(snapshot, parts, &admitted, body, record);
        Ok(Step::Decided(admitted, decision))
    }
}

/// How far a request comes without waiting.
enum Step {
    /// The path is open: nobody is asked, and there is no permit.
    Open,
    /// External authorizers, or the Rego stage, come first.
    Ask(Option<Custom>, Arrived),
    /// The policies have decided.
    Decided(Admitted, Decision),
}

/// AUDIT, DENY, ALLOW.
fn decide<B: Body>(
    snapshot: &Snapshot,
    parts: &Parts,
    admitted: &Admitted,
    body: &B,
    record: &mut Record,
) -> Decision {
    if let Some(running) = &mut record.running {
        running.admitted(admitted, body);
    }
    guard::decide(snapshot, parts, admitted)
}

/// The last step: the decision is reported, and the permit goes into an admitted request.
fn settle(
    snapshot: &Arc<Snapshot>,
    parts: &mut Parts,
    admitted: Admitted,
    decision: &Decision,
    record: &mut Record,
) -> Result<(), Refusal> {
    let user = admitted.token.as_ref();
    if decision.is_allow() {
        record.decided(snapshot, parts, true, "via_upstream", Some(decision), user);
        parts.extensions.insert(guard::permit(record.mesh(), snapshot, admitted));
        Ok(())
    } else {
        let detail = guard::detail(decision);
        #[cfg(feature = "admin")]
        {
            let explain = || guard::explain(snapshot, parts, &admitted);
            let explanation = record.mesh().recent().explain(explain);
            record.explained(explanation);
        }
        record.decided(snapshot, parts, false, &detail, Some(decision), user);
        Err(Refusal::denied(detail))
    }
}

fn answer<R>(
    refusal: Refusal,
    kind: RequestKind,
    parts: &Parts,
    mut record: Box<Record>,
) -> Response<ResponseBody<R>>
where
    R: Body<Data = Bytes>,
    R::Error: Into<Box<dyn Error + Send + Sync>>,
{
    record.running = None;
    let response =
        own_answer(&refusal, kind, parts, record.mesh()).unwrap_or_else(|| refusal.response(kind));
    record.answered(response)
}

/// The program's own answer, if it gives one. gRPC clients understand only gRPC's form.
fn own_answer<R>(
    refusal: &Refusal,
    kind: RequestKind,
    parts: &Parts,
    mesh: &Mesh,
) -> Option<Response<ResponseBody<R>>> {
    let hook = &mesh.http_settings().denial;
    if !hook.is_some() || kind == RequestKind::Grpc {
        return None;
    }
    let denial = DeniedRequest {
        status: refusal.status,
        method: &parts.method,
        path: parts.uri.path(),
        headers: &parts.headers,
    };
    // A panic in the program's code leaves Istio's answer.
    let answered = catch_unwind(AssertUnwindSafe(|| hook.answer(&denial))).ok().flatten()?;
    let (mut head, mut body) = answered.into_parts();
    for (name, value) in &refusal.headers {
        if !head.headers.contains_key(name) {
            head.headers.append(name.clone(), value.clone());
        }
    }
    head.headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
    if kind == (RequestKind::Http { head: true }) {
        body.clear();
    }
    Some(Response::from_parts(head, ResponseBody::refusal(body)))
}

/// [SEC-HTTP-17] A panic while judging is a denial, never a lost connection or an allow.
fn fail_closed<T>(judge: impl FnOnce() -> Result<T, Refusal>) -> Result<T, Refusal> {
    catch_unwind(AssertUnwindSafe(judge))
        .unwrap_or_else(|_| Err(Refusal::fault("judging the request panicked")))
}

/// A request on its way through external authorizers and the Rego stage.
struct Asked<B> {
    snapshot: Arc<Snapshot>,
    parts: Parts,
    body: RequestBody<B>,
    arrived: Arrived,
    record: Box<Record>,
    kind: RequestKind,
    limits: Limits,
}

impl<B> Asked<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    async fn ask<S, R>(
        mut self,
        custom: Option<Custom>,
        mut inner: S,
    ) -> Result<Response<ResponseBody<R>>, S::Error>
    where
        S: Service<Request<RequestBody<B>>, Response = Response<R>>,
        R: Body<Data = Bytes>,
        R::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        let mut changes = Changes::default();
        let judged = self.judge(custom, &mut changes).await;
        self.record.asked(changes.rego_revision.take());
        let (admitted, decision) = match judged {
            Ok(judged) => judged,
            Err(refusal) => {
                let (detail, decision) = (refusal.detail.as_str(), refusal.decision.as_deref());
                self.record.decided(&self.snapshot, &self.parts, false, detail, decision, None);
                return Ok(answer(refusal, self.kind, &self.parts, self.record));
            }
        };
        let Self { snapshot, mut parts, body, mut record, kind, .. } = self;
        if let Err(refusal) = settle(&snapshot, &mut parts, admitted, &decision, &mut record) {
            return Ok(answer(refusal, kind, &parts, record));
        }
        let request = Request::from_parts(parts, body);
        let place = record.place().clone();
        let answering = place.run(|| inner.call(request));
        let answering = place.follow(answering);
        let mut response = match &mut record.running {
            None => answering.await?,
            Some(running) => tokio::select! {
                response = answering => response?,
                () = running.cut() => {
                    let refused = running.refused();
                    record.running = None;
                    return Ok(record.answered(refused));
                }
            },
        };
        for (name, value) in changes.response_headers {
            response.headers_mut().append(name, value);
        }
        Ok(record.answered_by_service(response))
    }

    /// CUSTOM, tokens, Rego, and then the policies, in this order ([SEM-EVAL-01]).
    async fn judge(
        &mut self,
        custom: Option<Custom>,
        changes: &mut Changes,
    ) -> Result<(Admitted, Decision), Refusal> {
        let Self { snapshot, parts, body, arrived, record, kind, limits } = self;
        let now = record.now();
        if let Some(custom) = custom {
            let context = Context { now, limits, own_id: snapshot.svid.id() };
            custom.ask(snapshot, parts, arrived, body, context, changes).await?;
        }
        let arrived = arrived.clone();
        record.running = Running::begin(record.mesh(), snapshot, parts, &arrived, *kind);
        let mut admitted = fail_closed(|| guard::admit(snapshot, parts, arrived, now))?;
        #[cfg(feature = "rego")]
        if let Some(stage) = snapshot.rego.clone() {
            let context = Context { now, limits, own_id: snapshot.svid.id() };
            stage.ask(parts, &admitted, body, context, changes).await?;
        }
        admitted.handed = std::mem::take(&mut changes.handed);
        let decision = fail_closed(|| Ok(decide(snapshot, parts, &admitted, body, record)))?;
        Ok((admitted, decision))
    }
}
