//! gRPC over hyper: one connection, one service, and tonic for the frames.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::Stream;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tonic::Status;
use tonic::body::Body;
use tonic::server::Grpc;
use tonic_prost::ProstCodec;
use tower_service::Service;

use super::places::{Counted, Place};
use crate::error::CaError;

/// Most bytes of a request: a certificate request of 16 KiB in PEM, with room.
pub(super) const MAX_REQUEST: usize = 64 * 1024;

/// Most bytes of an answer: what clients take by default.
const MAX_ANSWER: usize = 4 * 1024 * 1024;

/// Most calls at a time on one connection; streams that wait for a rotation are among them.
const MAX_STREAMS: u32 = 64;

/// Most bytes of request headers; a token of 16 KiB has room.
const MAX_HEADERS: u32 = 24 * 1024;

/// How often a silent client is asked whether it is still there.
const PING: Duration = Duration::from_secs(20);

/// The stream of a streaming answer.
pub(super) type Answers<A> = Pin<Box<dyn Stream<Item = Result<A, Status>> + Send>>;

/// The future of a call.
pub(super) type Call = Pin<Box<dyn Future<Output = Response<Body>> + Send>>;

/// Serves HTTP/2 on a connection for as long as it may keep its place, or until `stop` changes.
pub(super) async fn serve<T>(
    stream: T,
    place: Place,
    stop: watch::Receiver<bool>,
    answer: impl Fn(Request<Incoming>) -> Call + Send + 'static,
) where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (requests, limit) = (place.requests(), place.answer_limit());
    let service = service_fn(move |request| {
        let (open, call) = (requests.begin(), answer(request));
        async move {
            let late = |_elapsed| Status::deadline_exceeded("no answer in time").into_http();
            let answer = tokio::time::timeout(limit, call).await.unwrap_or_else(late);
            Ok::<_, Infallible>(answer.map(|body| Counted { body, _open: open }))
        }
    });
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING)
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEADERS);
    place.drive(builder.serve_connection(TokioIo::new(stream), service), stop).await;
}

/// A closure as the service of one method.
struct Method<F>(F);

impl<Q, A, F, R> Service<tonic::Request<Q>> for Method<F>
where
    F: FnMut(tonic::Request<Q>) -> R,
    R: Future<Output = Result<tonic::Response<A>, Status>>,
{
    type Response = tonic::Response<A>;
    type Error = Status;
    type Future = R;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: tonic::Request<Q>) -> R {
        (self.0)(request)
    }
}

fn grpc<Q, A>() -> Grpc<ProstCodec<A, Q>>
where
    Q: prost::Message + Default + Send + 'static,
    A: prost::Message + Send + 'static,
{
    Grpc::new(ProstCodec::default())
        .max_decoding_message_size(MAX_REQUEST)
        .max_encoding_message_size(MAX_ANSWER)
}

/// One question, one answer.
pub(super) fn unary<Q, A, F, R>(request: Request<Incoming>, method: F) -> Call
where
    Q: prost::Message + Default + Send + 'static,
    A: prost::Message + Send + 'static,
    F: FnOnce(Q) -> R + Send + 'static,
    R: Future<Output = Result<A, Status>> + Send + 'static,
{
    let mut method = Some(method);
    let service = Method(move |question: tonic::Request<Q>| {
        let method = method.take();
        let question = question.into_inner();
        async move {
            let method = method.ok_or_else(|| Status::internal("called twice"))?;
            method(question).await.map(tonic::Response::new)
        }
    });
    Box::pin(async move { grpc::<Q, A>().unary(service, request).await })
}

/// One question, many answers.
pub(super) fn server_streaming<Q, A, F>(request: Request<Incoming>, method: F) -> Call
where
    Q: prost::Message + Default + Send + 'static,
    A: prost::Message + Send + 'static,
    F: Fn(Q) -> Result<Answers<A>, Status> + Send + 'static,
{
    let service = Method(move |question: tonic::Request<Q>| {
        let answers = method(question.into_inner());
        async move { answers.map(tonic::Response::new) }
    });
    Box::pin(async move { grpc::<Q, A>().server_streaming(service, request).await })
}

/// Many questions, many answers; none for a caller that is refused before the first question.
pub(super) fn streaming<Q, A, F>(request: Request<Incoming>, method: F) -> Call
where
    Q: prost::Message + Default + Send + 'static,
    A: prost::Message + Send + 'static,
    F: Fn(tonic::Streaming<Q>) -> Result<Answers<A>, Status> + Send + 'static,
{
    let service = Method(move |questions: tonic::Request<tonic::Streaming<Q>>| {
        let answers = method(questions.into_inner());
        async move { answers.map(tonic::Response::new) }
    });
    Box::pin(async move { grpc::<Q, A>().streaming(service, request).await })
}

/// A refusal before anything of the message is read.
pub(super) fn refuse(status: Status) -> Call {
    Box::pin(async move { status.into_http() })
}

pub(super) fn unknown_method() -> Call {
    refuse(Status::unimplemented("no such method"))
}

/// What a caller is told. What concerns the authority itself is for its log ([SEC-CA-8]: nothing
/// tells whether an identity exists).
pub(super) fn status(error: &CaError) -> Status {
    match error {
        CaError::Audience
        | CaError::Csr
        | CaError::CsrKey(_)
        | CaError::CsrSignature
        | CaError::OwnKey => Status::invalid_argument(error.to_string()),
        CaError::ForeignIdentity | CaError::Policy => {
            Status::permission_denied("refused by the authority's policy")
        }
        CaError::Limit(limit) => Status::resource_exhausted(limit.to_string()),
        CaError::Authority(_)
        | CaError::Bundle(_)
        | CaError::Chain(_)
        | CaError::Encode(_)
        | CaError::Id(_)
        | CaError::IntermediateLife
        | CaError::Issued(_)
        | CaError::Key
        | CaError::KeyMismatch
        | CaError::Load(_)
        | CaError::Log(_)
        | CaError::NoAuthorityBelow
        | CaError::NotOne
        | CaError::Overlap
        | CaError::Random
        | CaError::RotationDue
        | CaError::Signer
        | CaError::State(_)
        | CaError::Time => {
            tracing::error!(%error, "the authority cannot issue");
            Status::internal("the authority cannot issue")
        }
    }
}
