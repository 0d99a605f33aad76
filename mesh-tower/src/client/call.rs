//! What one request of ours leaves behind: Istio's metrics as a source reports them, and a span.

use std::error::Error as StdError;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Extensions, Method, Request, Response, StatusCode};
use http_body::{Body, Frame};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::{CaptureConnection, Connected, capture_connection};
use mesh_identity::SpiffeId;
use tokio::time::{sleep, timeout};
use tracing::Span;

use super::body::OutboundBody;
use super::{CONNECT_TIMEOUT, ConnectError, Connector, Destination, ServerInfo};
use crate::clock::monotonic;
use crate::flow::{Messages, Received};
use crate::mesh::Mesh;
use crate::record::grpc_status;
use crate::refuse::RequestKind;
use crate::telemetry::{Amounts, Flag, Outcome, PeerKey, Protection, Reporter};
use crate::trace;

/// How long an answer may still be under way inside the program when its connection is gone.
const MOMENT: Duration = Duration::from_secs(1);

/// Follows one request from the client's hands to the end of its answer; what is known then is
/// reported when it is dropped.
pub(super) struct Call {
    mesh: Mesh,
    begun: Instant,
    /// The declared service that is asked, so that no label comes from a request ([SEC-HTTP-12]).
    service: Option<Arc<Destination>>,
    /// Who has answered, or begun to.
    server: Option<SpiffeId>,
    connection: CaptureConnection,
    grpc: bool,
    is_head: bool,
    /// What the request's body has brought.
    sent: Arc<Received>,
    /// 0 until there is an answer's head.
    code: u16,
    grpc_status: Option<u8>,
    received: u64,
    messages: Messages,
    /// Whether the answer has come to its end.
    whole: bool,
    flag: Flag,
    span: Span,
}

impl Call {
    /// Begins to follow a request, and puts the context of its span on it.
    pub(super) fn begin<B: Body>(
        connector: &Connector,
        mut request: Request<B>,
    ) -> (Self, Request<OutboundBody<B>>) {
        let service = connector.declared(request.uri().host().unwrap_or_default()).cloned();
        let span = trace::outbound(&mut request, service.as_ref().map(|service| &*service.host));
        let connection = capture_connection(&mut request);
        let sent = Arc::<Received>::default();
        let (parts, body) = request.into_parts();
        let grpc = RequestKind::of(&parts) == RequestKind::Grpc;
        let call = Self {
            mesh: connector.mesh.clone(),
            begun: monotonic(),
            service,
            server: None,
            connection,
            grpc,
            is_head: parts.method == Method::HEAD,
            sent: Arc::clone(&sent),
            code: 0,
            grpc_status: None,
            received: 0,
            messages: Messages::default(),
            whole: false,
            flag: Flag::None,
            span,
        };
        (call, Request::from_parts(parts, OutboundBody::new(body, sent, grpc)))
    }

    pub(super) fn span(&self) -> &Span {
        &self.span
    }

    /// Takes note of the answer's head.
    pub(super) fn answered<B: Body>(&mut self, response: &Response<B>) {
        if let Some(server) = response.extensions().get::<ServerInfo>() {
            server.reuse.pooled(&self.connection);
            self.server = Some(server.peer().id().clone());
        }
        let status = response.status();
        self.code = status.as_u16();
        self.grpc_status = grpc_status(response.headers());
        let none = matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        let is_over = response.body().is_end_stream() || none || status.is_informational();
        self.whole = is_over || self.is_head;
    }

    /// Whether nothing follows any more.
    pub(super) fn is_over(&self) -> bool {
        self.whole || self.flag != Flag::None
    }

    /// Takes note of a part of the answer's body.
    pub(super) fn received<E>(&mut self, frame: Option<&Result<Frame<Bytes>, E>>, is_last: bool) {
        match frame {
            None => self.whole = true,
            Some(Err(_)) => self.flag = Flag::BrokeOff,
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    let length = u64::try_from(data.len()).unwrap_or(u64::MAX);
                    self.received = self.received.saturating_add(length);
                    if self.grpc {
                        self.messages.feed(data);
                    }
                }
                if let Some(trailers) = frame.trailers_ref() {
                    self.grpc_status = grpc_status(trailers).or(self.grpc_status);
                }
                // Nothing follows trailers, and a reader may not ask.
                self.whole |= is_last || frame.is_trailers();
            }
        }
    }

    /// Resolves when the connection that the request was given to has been gone for a moment.
    ///
    /// hyper can keep a request that is sent while its connection ends, and nobody answers it then.
    pub(super) fn abandoned(&self) -> impl Future<Output = ()> + Send + use<> {
        let (mut connection, service) = (self.connection.clone(), self.service.clone());
        async move {
            // Most are answered by then, and nothing more is done for them.
            sleep(MOMENT).await;
            loop {
                let over = server(connection.wait_for_connection_metadata().await.as_ref());
                let Some(over) = over else { return std::future::pending().await };
                over.reuse.gone().await;
                // What a connection that breaks gives back goes over another one. That has to be made
                // first, which takes as long as it may.
                let is_over = async {
                    let mut quiet = 0_u8;
                    while quiet < 2 {
                        sleep(MOMENT).await;
                        let waits = service.as_ref().is_some_and(|service| service.is_connecting());
                        quiet = if waits { 0 } else { quiet.saturating_add(1) };
                    }
                };
                timeout(CONNECT_TIMEOUT.saturating_add(MOMENT), is_over).await.ok();
                let last = server(connection.connection_metadata().as_ref());
                if last.is_some_and(|last| Arc::ptr_eq(&last.reuse, &over.reuse)) {
                    return;
                }
            }
        }
    }

    /// Takes note that the request was [`Call::abandoned`].
    pub(super) fn lost(&mut self) {
        (self.code, self.flag) = (503, Flag::BrokeOff);
        self.server = self.connected_to();
    }

    /// Takes note that there is no answer, with the status that Istio's sidecar would have given.
    pub(super) fn failed(&mut self, error: &legacy::Error) {
        let cause = error.source();
        let connect = cause.and_then(|cause| cause.downcast_ref::<ConnectError>());
        let is_ours = match cause {
            Some(cause) => cause.downcast_ref().is_some_and(hyper::Error::is_user),
            // The client refuses some requests before it looks for a connection.
            None => true,
        };
        (self.code, self.flag) = match connect {
            Some(ConnectError::UnknownService) => (502, Flag::NoRoute),
            Some(_) => (503, Flag::NoConnection),
            None if error.is_connect() => (503, Flag::NoConnection),
            None if is_ours => (0, Flag::ClientGone),
            None => (503, Flag::BrokeOff),
        };
        if !error.is_connect() {
            self.server = self.connected_to();
        }
    }

    /// The server of the connection that the request has gone over.
    fn connected_to(&self) -> Option<SpiffeId> {
        let server = server(self.connection.connection_metadata().as_ref())?;
        Some(server.peer().id().clone())
    }

    /// Reports how the request ended.
    fn finish(&mut self) {
        if !self.is_over() {
            // The program has let go of it.
            self.flag = Flag::ClientGone;
            self.server = self.server.take().or_else(|| self.connected_to());
        }
        let protection = match self.server {
            Some(_) => Protection::MutualTls,
            None => Protection::None,
        };
        let Self { grpc, code, flag, .. } = *self;
        self.trace();
        let service = self.service.take().map(|service| Arc::clone(&service.host));
        let peer = self.server.take();
        let key = PeerKey { reporter: Reporter::Source, protection, peer, service };
        let grpc_status = self.grpc_status.filter(|_| grpc);
        let outcome = Outcome { grpc, code, grpc_status, flag };
        // Seen from the service: it has received what we have sent.
        let amounts = Amounts {
            took: self.begun.elapsed(),
            received: self.sent.bytes(),
            sent: self.received,
            messages_received: self.sent.messages(),
            messages_sent: self.messages.count(),
        };
        self.mesh.telemetry().peer(key).count(outcome, &amounts);
    }

    fn trace(&self) {
        let span = &self.span;
        if span.is_disabled() {
            return;
        }
        if self.code != 0 && !matches!(self.flag, Flag::NoConnection | Flag::NoRoute) {
            span.record("http.response.status_code", self.code);
        }
        if let Some(server) = &self.server {
            span.record("mesh.peer", tracing::field::display(server));
        }
        if self.flag != Flag::None {
            span.record("error.type", self.flag.as_str());
        }
        if self.flag != Flag::None || self.code >= 400 {
            span.record("otel.status_code", "ERROR");
        }
    }
}

/// What our connector has said of a connection.
fn server(connection: Option<&Connected>) -> Option<ServerInfo> {
    let mut extras = Extensions::new();
    connection?.get_extras(&mut extras);
    extras.remove()
}

impl Drop for Call {
    fn drop(&mut self) {
        // [SEC-HTTP-17] A recorder of metrics that panics harms no request.
        drop(catch_unwind(AssertUnwindSafe(|| self.finish())));
    }
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let service = self.service.as_ref().map(|service| &service.host);
        f.debug_struct("Call").field("service", &service).finish_non_exhaustive()
    }
}
