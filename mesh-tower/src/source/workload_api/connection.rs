//! One connection: HTTP/2 without TLS over a socket that only this machine has.

use http::Uri;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tonic::client::Grpc;

use super::WorkloadApiFailure;
use super::endpoint::{Address, WorkloadEndpoint};
use crate::source::channel::{self, Channel};

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
    let grpc = channel::speak(stream, Uri::from_static("http://localhost")).await;
    Ok(grpc.map_err(unreachable)?.max_decoding_message_size(MAX_MESSAGE))
}
