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
use tower_service::Service;

use crate::body::{RequestBody, ResponseBody};
use crate::custom::{Changes, Context, Custom};
use crate::denial::DeniedRequest;
use crate::future::MeshFuture;
use crate::guard::{self, Admitted, Arrival, Arrived};
use crate::mesh::Mesh;
use crate::record::Record;
use crate::refuse::{Refusal, RequestKind};
use crate::running::{Cut, Running};
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
        let (mut record, body) = Record::begin(&self.mesh, &mut parts, body);

        let now = record.now();
        let (settings, limits) = (self.mesh.http_settings(), self.mesh.limits());
        let arrival = fail_closed(|| guard::arrive(&snapshot, settings, limits, &mut parts, now));
        let arrived = match arrival {
            Ok(Arrival::Judge(arrived)) => arrived,
            Ok(Arrival::Open) => {
                record.decided(&snapshot, &parts, true, "open_path", None, None);
                let request = Request::from_parts(parts, body);
                let answering = record.place().run(|| self.inner.call(request));
                return MeshFuture::inner(answering, record);
            }
            Err(refusal) => {
                record.decided(&snapshot, &parts, false, &refusal.detail, None, None);
                return MeshFuture::refused(answer(refusal, kind, &parts, record));
            }
        };
        let custom = match fail_closed(|| Ok(Custom::begin(&snapshot, &parts, &arrived))) {
            Ok(custom) => custom,
            Err(refusal) => {
                record.decided(&snapshot, &parts, false, &refusal.detail, None, None);
                return MeshFuture::refused(answer(refusal, kind, &parts, record));
            }
        };
        if custom.is_some() || snapshot.asks_rego() {
            // A clone takes this service's place, so that the one that is ready is called.
            let inner = self.inner.clone();
            let inner = std::mem::replace(&mut self.inner, inner);
            let limits = limits.clone();
            let asked = Asked { snapshot, parts, body, arrived, record, kind, limits };
            return MeshFuture::asking(Box::pin(asked.ask(custom, inner)));
        }

        record.running = Running::begin(&self.mesh, &snapshot, &parts, &arrived, kind);
        let admitted = match fail_closed(|| guard::admit(&snapshot, &mut parts, arrived, now)) {
            Ok(admitted) => admitted,
            Err(refusal) => {
                record.decided(&snapshot, &parts, false, &refusal.detail, None, None);
                return MeshFuture::refused(answer(refusal, kind, &parts, record));
            }
        };
        if let Some(running) = &mut record.running {
            running.admitted(admitted.token.as_ref(), &body);
        }
        if let Err(refusal) = settle(&snapshot, &mut parts, admitted, &mut record) {
            return MeshFuture::refused(answer(refusal, kind, &parts, record));
        }
        let request = Request::from_parts(parts, body);
        let answering = record.place().run(|| self.inner.call(request));
        MeshFuture::inner(answering, record)
    }
}

/// The last step: AUDIT, DENY, ALLOW; then the permit goes into the request.
fn settle(
    snapshot: &Arc<Snapshot>,
    parts: &mut Parts,
    admitted: Admitted,
    record: &mut Record,
) -> Result<(), Refusal> {
    let user = admitted.token.as_ref();
    let decision = match fail_closed(|| Ok(guard::decide(snapshot, parts, &admitted))) {
        Ok(decision) => decision,
        Err(refusal) => {
            record.decided(snapshot, parts, false, &refusal.detail, None, user);
            return Err(refusal);
        }
    };
    if decision.is_allow() {
        record.decided(snapshot, parts, true, "via_upstream", Some(&decision), user);
        parts.extensions.insert(guard::permit(record.mesh(), snapshot, admitted));
        Ok(())
    } else {
        let detail = guard::detail(&decision);
        #[cfg(feature = "admin")]
        {
            let explain = || guard::explain(snapshot, parts, &admitted);
            let explanation = record.mesh().recent().explain(explain);
            record.explained(explanation);
        }
        record.decided(snapshot, parts, false, &detail, Some(&decision), user);
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
        let mut admitted = match judged {
            Ok(admitted) => admitted,
            Err(refusal) => {
                let (detail, decision) = (refusal.detail.as_str(), refusal.decision.as_deref());
                self.record.decided(&self.snapshot, &self.parts, false, detail, decision, None);
                return Ok(answer(refusal, self.kind, &self.parts, self.record));
            }
        };
        admitted.metadata = changes.metadata;
        let Self { snapshot, mut parts, body, mut record, kind, .. } = self;
        if let Some(running) = &mut record.running {
            running.admitted(admitted.token.as_ref(), &body);
        }
        if let Err(refusal) = settle(&snapshot, &mut parts, admitted, &mut record) {
            return Ok(answer(refusal, kind, &parts, record));
        }
        let request = Request::from_parts(parts, body);
        let place = record.place().clone();
        let answering = place.run(|| inner.call(request));
        let answering = place.follow(answering);
        let mut response = match record.running.take() {
            None => answering.await?.map(|body| ResponseBody::inner(body, Cut::default())),
            Some(mut running) => tokio::select! {
                response = answering => running.answered(response?),
                () = running.cut() => return Ok(record.answered(running.refused())),
            },
        };
        for (name, value) in changes.response_headers {
            response.headers_mut().append(name, value);
        }
        Ok(record.answered(response))
    }

    /// CUSTOM, tokens, Rego, in this order ([SEM-EVAL-01]).
    async fn judge(
        &mut self,
        custom: Option<Custom>,
        changes: &mut Changes,
    ) -> Result<Admitted, Refusal> {
        let Self { snapshot, parts, body, arrived, record, kind, limits } = self;
        let now = record.now();
        if let Some(custom) = custom {
            let context = Context { now, limits, own_id: snapshot.svid.id() };
            custom.ask(snapshot, parts, arrived, body, context, changes).await?;
        }
        let arrived = arrived.clone();
        record.running = Running::begin(record.mesh(), snapshot, parts, &arrived, *kind);
        let admitted = fail_closed(|| guard::admit(snapshot, parts, arrived, now))?;
        #[cfg(feature = "rego")]
        if let Some(stage) = snapshot.rego.clone() {
            let context = Context { now, limits, own_id: snapshot.svid.id() };
            stage.ask(parts, &admitted, body, context, changes).await?;
        }
        Ok(admitted)
    }
}
