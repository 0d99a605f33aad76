//! One connection: HTTP/2 without TLS over a socket that only this machine has.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response, Uri};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tonic::body::Body;
use tonic::client::Grpc;
use tower_service::Service;

use super::WorkloadApiFailure;
use super::endpoint::{Address, WorkloadEndpoint};

/// How often a silent agent is asked whether it is still there.
const PING_INTERVAL: Duration = Duration::from_secs(20);

/// Most bytes of one message: some hundred identities, and bundles.
const MAX_MESSAGE: usize = 4 * 1024 * 1024;

pub(super) async fn connect(
    endpoint: &WorkloadEndpoint,
) -> Result<Grpc<Channel>, WorkloadApiFailure> {
    match endpoint.address() {
        #[cfg(unix)]
        Address::Unix(path) => {
            speak(tokio::net::UnixStream::connect(path).await.map_err(unreachable)?).await
        }
        #[cfg(not(unix))]
        Address::Unix(_) => Err(unreachable("Unix sockets are not available here")),
        Address::Tcp(address) => {
            speak(TcpStream::connect(address).await.map_err(unreachable)?).await
        }
    }
}

fn unreachable(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> WorkloadApiFailure {
    WorkloadApiFailure::Connect(error.into())
}

async fn speak<T>(stream: T) -> Result<Grpc<Channel>, WorkloadApiFailure>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_INTERVAL)
        .keep_alive_while_idle(true);
    let (send, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(unreachable)?;
    // It ends with the last stream and handle.
    tokio::spawn(async move { connection.await.ok() });
    let origin = Uri::from_static("http://localhost");
    Ok(Grpc::with_origin(Channel(send), origin).max_decoding_message_size(MAX_MESSAGE))
}

/// hyper's handle of a connection, as tonic takes it.
#[derive(Clone, Debug)]
pub(super) struct Channel(SendRequest<Body>);

impl Service<Request<Body>> for Channel {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = hyper::Result<Response<Incoming>>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<hyper::Result<()>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}
