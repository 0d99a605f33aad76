//! gRPC on one connection: hyper's HTTP/2 handle as tonic takes it.

use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response, Uri};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::time::timeout;
use tonic::body::Body;
use tonic::client::Grpc;
use tower_service::Service;

/// How often a silent server is asked whether it is still there.
const PING_INTERVAL: Duration = Duration::from_secs(20);

/// How long an answer may still be under way inside the program when its connection is gone.
const MOMENT: Duration = Duration::from_secs(1);

/// Speaks HTTP/2 on a stream. The connection ends with the last stream and handle.
pub(super) async fn speak<T>(stream: T, origin: Uri) -> hyper::Result<Grpc<Channel>>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_INTERVAL)
        .keep_alive_while_idle(true);
    let (send, connection) = builder.handshake(TokioIo::new(stream)).await?;
    let (lives, gone) = watch::channel(());
    tokio::spawn(async move {
        connection.await.ok();
        drop(lives);
    });
    Ok(Grpc::with_origin(Channel { send, gone }, origin))
}

/// hyper's handle of a connection, as tonic takes it.
#[derive(Clone, Debug)]
pub(super) struct Channel {
    send: SendRequest<Body>,
    /// Closed when the connection is gone; or with the last handle, but who calls holds one.
    gone: watch::Receiver<()>,
}

/// Why a request got no answer. tonic need not know more: no status is read from it.
#[derive(Debug, thiserror::Error)]
pub(super) enum ChannelError {
    #[error(transparent)]
    Http(#[from] hyper::Error),

    #[error("the connection ended before the request was answered")]
    Gone,
}

impl Service<Request<Body>> for Channel {
    type Response = Response<Incoming>;
    type Error = ChannelError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Incoming>, ChannelError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ChannelError>> {
        self.send.poll_ready(cx).map_err(ChannelError::Http)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(unless_gone(self.send.send_request(request), self.gone.clone()))
    }
}

/// The answer, or an error once the connection has been gone for a moment: a request that is sent
/// while the connection ends can stay in hyper's queue, and nobody answers it then.
async fn unless_gone<T>(
    answer: impl Future<Output = hyper::Result<T>>,
    mut gone: watch::Receiver<()>,
) -> Result<T, ChannelError> {
    let mut answer = pin!(answer);
    tokio::select! {
        biased;
        answer = answer.as_mut() => return Ok(answer?),
        _ = gone.changed() => {}
    }
    timeout(MOMENT, answer).await.map_or(Err(ChannelError::Gone), |answer| Ok(answer?))
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    /// An answer that is there counts, and one that never comes is given up.
    #[tokio::test]
    async fn no_request_outlives_its_connection() {
        let (lives, gone) = watch::channel(());
        assert!(matches!(unless_gone(ready(Ok(1)), gone.clone()).await, Ok(1)));
        let waiting = tokio::spawn(unless_gone(pending::<hyper::Result<u8>>(), gone.clone()));
        tokio::time::sleep(MOMENT + MOMENT / 5).await;
        assert!(!waiting.is_finished(), "the connection is there");
        drop(lives);
        assert!(matches!(waiting.await.unwrap(), Err(ChannelError::Gone)));
        assert!(matches!(unless_gone(ready(Ok(2)), gone).await, Ok(2)));
    }
}
