//! The guarded service: judge, then call the inner service or answer.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::request::Parts;
use http::{Request, Response};
use http_body::Body;
use tower_service::Service;

use crate::body::{RequestBody, ResponseBody};
use crate::future::MeshFuture;
use crate::guard::{self, Admitted};
use crate::mesh::Mesh;
use crate::record::Record;
use crate::refuse::{Refusal, RequestKind};
use crate::snapshot::Snapshot;

/// A service behind the mesh; made by [`crate::MeshLayer`].
#[derive(Clone, Debug)]
pub struct MeshService<S> {
    mesh: Mesh,
    inner: S,
}

impl<S> MeshService<S> {
    pub(crate) fn new(mesh: Mesh, inner: S) -> Self {
        Self { mesh, inner }
    }
}

impl<S, B, R> Service<Request<B>> for MeshService<S>
where
    S: Service<Request<RequestBody<B>>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send,
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    R: Body<Data = Bytes> + 'static,
{
    type Response = Response<ResponseBody<R>>;
    type Error = S::Error;
    type Future = MeshFuture<S::Future, R, S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (mut parts, body) = request.into_parts();
        let body = RequestBody::untouched(body);
        let snapshot = self.mesh.snapshot();
        let kind = RequestKind::of(&parts);
        let mut record = Record::begin(&self.mesh, &parts);

        let now = record.now();
        let admitted = match fail_closed(|| guard::admit(&snapshot, &mut parts, now)) {
            Ok(admitted) => admitted,
            Err(refusal) => {
                record.decided(&snapshot, &parts, false, &refusal.detail, None);
                return MeshFuture::refused(answer(refusal, kind, record));
            }
        };

        #[cfg(feature = "rego")]
        if let Some(stage) = snapshot.rego.clone() {
            // A clone takes this service's place, so that the one that is ready is called.
            let inner = self.inner.clone();
            let inner = std::mem::replace(&mut self.inner, inner);
            let asked = Asked {
                snapshot,
                parts,
                body,
                admitted,
                record,
                kind,
                limits: self.mesh.limits().clone(),
            };
            return MeshFuture::asking(Box::pin(asked.ask(stage, inner)));
        }

        match settle(&snapshot, &mut parts, admitted, &mut record) {
            Err(refusal) => MeshFuture::refused(answer(refusal, kind, record)),
            Ok(()) => MeshFuture::inner(self.inner.call(Request::from_parts(parts, body)), record),
        }
    }
}

/// The last step: AUDIT, DENY, ALLOW; then the permit goes into the request.
fn settle(
    snapshot: &Snapshot,
    parts: &mut Parts,
    admitted: Admitted,
    record: &mut Record,
) -> Result<(), Refusal> {
    let decision = match fail_closed(|| Ok(guard::decide(snapshot, parts, &admitted))) {
        Ok(decision) => decision,
        Err(refusal) => {
            record.decided(snapshot, parts, false, &refusal.detail, None);
            return Err(refusal);
        }
    };
    if decision.is_allow() {
        record.decided(snapshot, parts, true, "via_upstream", Some(&decision));
        parts.extensions.insert(guard::permit(snapshot, admitted));
        Ok(())
    } else {
        let detail = guard::detail(&decision);
        record.decided(snapshot, parts, false, &detail, Some(&decision));
        Err(Refusal::denied(detail))
    }
}

fn answer<R: Body<Data = Bytes>>(
    refusal: Refusal,
    kind: RequestKind,
    record: Record,
) -> Response<ResponseBody<R>> {
    let response = refusal.response(kind);
    record.answered(&response);
    response
}

/// [SEC-HTTP-17] A panic while judging is a denial, never a lost connection or an allow.
fn fail_closed<T>(judge: impl FnOnce() -> Result<T, Refusal>) -> Result<T, Refusal> {
    catch_unwind(AssertUnwindSafe(judge))
        .unwrap_or_else(|_| Err(Refusal::fault("judging the request panicked")))
}

/// A request on its way through the Rego stage.
#[cfg(feature = "rego")]
struct Asked<B> {
    snapshot: std::sync::Arc<Snapshot>,
    parts: Parts,
    body: RequestBody<B>,
    admitted: Admitted,
    record: Record,
    kind: RequestKind,
    limits: crate::Limits,
}

#[cfg(feature = "rego")]
impl<B: Body<Data = Bytes> + Unpin> Asked<B> {
    async fn ask<S, R>(
        mut self,
        stage: std::sync::Arc<crate::RegoStage>,
        mut inner: S,
    ) -> Result<Response<ResponseBody<R>>, S::Error>
    where
        S: Service<Request<RequestBody<B>>, Response = Response<R>>,
        R: Body<Data = Bytes>,
    {
        let context = crate::rego::Context {
            now: self.record.now(),
            limits: &self.limits,
            own_id: self.snapshot.svid.id(),
        };
        let asked = stage.ask(&mut self.parts, &self.admitted, &mut self.body, context);
        let changes = match asked.await {
            Ok(changes) => changes,
            Err(refusal) => {
                let detail = refusal.detail.clone();
                self.record.decided(&self.snapshot, &self.parts, false, &detail, None);
                return Ok(answer(refusal, self.kind, self.record));
            }
        };
        let Self { snapshot, mut parts, body, admitted, mut record, kind, .. } = self;
        if let Err(refusal) = settle(&snapshot, &mut parts, admitted, &mut record) {
            return Ok(answer(refusal, kind, record));
        }
        let response = inner.call(Request::from_parts(parts, body)).await?;
        let mut response = response.map(ResponseBody::inner);
        for (name, value) in changes.response_headers {
            response.headers_mut().append(name, value);
        }
        record.answered(&response);
        Ok(response)
    }
}
