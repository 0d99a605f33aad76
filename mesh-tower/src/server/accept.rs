//! One connection from its first byte to a proven peer, or to plain text where that is permitted.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use mesh_authn::peer::{MtlsMode, PeerError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::clock::Clock;
use crate::connection::{ConnectionInfo, Security, TlsFacts};
use crate::snapshot::Snapshot;

/// The first byte of every TLS connection: a handshake record (RFC 8446 section 5.1).
const TLS_HANDSHAKE: u8 = 0x16;

/// A connection that may carry requests.
#[derive(Debug)]
pub(super) struct Accepted {
    pub(super) stream: Stream,
    pub(super) info: ConnectionInfo,
}

#[derive(Debug)]
pub(super) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// Why a connection was closed before its first request.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum AcceptError {
    /// The client left, or the socket failed.
    #[error("connection failed: {0}")]
    Io(#[source] io::Error),

    /// The deadline passed ([SEC-TLS-14]).
    #[error("handshake took too long")]
    Deadline,

    /// A newer handshake needed the place ([SEC-TLS-14]).
    #[error("too many handshakes in flight")]
    Evicted,

    /// The handshake was finished but does not prove a peer.
    #[error("peer is not verified: {0}")]
    Peer(#[source] PeerError),

    /// Plain text on a port that demands mutual TLS.
    #[error("plain text where mutual TLS is required")]
    Plaintext,

    /// The TLS handshake failed; an alert was sent.
    #[error("TLS handshake failed: {0}")]
    Tls(#[source] io::Error),
}

impl AcceptError {
    /// Tells a peer that was refused from any other failure.
    fn of_handshake(error: io::Error) -> Self {
        let refusal = error.get_ref().and_then(|inner| PeerError::of_handshake(inner));
        refusal.map_or(Self::Tls(error), Self::Peer)
    }
}

/// Decides by mode and first byte what the connection is ([SEC-TLS-7]); the caller sets the
/// deadline. The byte is only peeked at, so that plain text under STRICT is closed with data
/// unread, which resets the connection as Envoy does.
pub(super) async fn accept(
    stream: TcpStream,
    addresses: (SocketAddr, SocketAddr),
    snapshot: &Snapshot,
    clock: &dyn Clock,
) -> Result<Accepted, AcceptError> {
    let (peer, local) = addresses;
    let mode = snapshot.modes.mode(local.port());
    let plain = |stream| Accepted {
        stream: Stream::Plain(stream),
        info: ConnectionInfo::new(peer, local, Security::Plaintext),
    };
    if mode == MtlsMode::Disable {
        return Ok(plain(stream));
    }
    let mut first = [0_u8];
    if stream.peek(&mut first).await.map_err(AcceptError::Io)? == 0 {
        return Err(AcceptError::Io(io::ErrorKind::UnexpectedEof.into()));
    }
    match (first, mode) {
        ([TLS_HANDSHAKE], _) => {}
        (_, MtlsMode::Permissive) => return Ok(plain(stream)),
        (_, MtlsMode::Strict | MtlsMode::Disable) => return Err(AcceptError::Plaintext),
    }
    let tls = &snapshot.server_tls;
    let handshake = TlsAcceptor::from(tls.config()).accept(stream).into_fallible();
    let stream = match handshake.await {
        Ok(stream) => stream,
        Err((error, stream)) => {
            let_the_alert_arrive(stream).await;
            return Err(AcceptError::of_handshake(error));
        }
    };
    let connection = stream.get_ref().1;
    let peer_id = tls.verified_peer(connection, clock.now()).map_err(AcceptError::Peer)?;
    let facts = TlsFacts {
        peer: peer_id,
        server_name: connection.server_name().map(str::to_owned),
        alpn: connection.alpn_protocol().map(<[u8]>::to_vec),
        version: connection.protocol_version(),
    };
    let info = ConnectionInfo::new(peer, local, Security::MutualTls(facts));
    Ok(Accepted { stream: Stream::Tls(Box::new(stream)), info })
}

/// Closing with data unread would reset the connection and lose the alert that says why. So the
/// sending side is closed first, and what the client still sends is thrown away for a moment.
async fn let_the_alert_arrive(mut stream: TcpStream) {
    const MOMENT: Duration = Duration::from_millis(500);
    const MOST: u64 = 64 * 1024;
    let linger = async {
        if stream.shutdown().await.is_ok() {
            drop(tokio::io::copy(&mut stream.take(MOST), &mut tokio::io::sink()).await);
        }
    };
    drop(timeout(MOMENT, linger).await);
}
