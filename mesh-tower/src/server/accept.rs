//! One connection from its first byte to a proven peer, or to plain text where that is permitted.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mesh_authn::peer::{MtlsMode, PeerError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::handshakes::{Handshakes, Place};
use super::life::Life;
use super::pace::Pace;
use super::proxy_protocol::{Source, read_header};
use super::server::Options;
use super::stream::ServerStream;
use crate::clock::monotonic;
use crate::connection::{ConnectionInfo, Security, TlsFacts};
use crate::cut::Cuttable;
use crate::mesh::Mesh;
use crate::snapshot::{OwnIdentityError, Snapshot};
use crate::telemetry::Handshake;

/// The first byte of every TLS connection: a handshake record (RFC 8446 section 5.1).
const TLS_HANDSHAKE: u8 = 0x16;

/// A connection that may carry requests, its peer proven where it is TLS.
#[derive(Debug)]
pub(crate) struct Accepted {
    /// What the client sends and receives; no byte of it has been read.
    pub(crate) stream: Cuttable<ServerStream>,
    /// The facts for each request's extensions.
    pub(crate) info: ConnectionInfo,
    /// Says when the connection must end. Whoever takes the connection waits for it.
    pub(crate) life: Life,
}

/// Makes connections of accepted sockets: sniff, handshake, deadlines. Cloning shares it.
#[derive(Clone, Debug)]
pub(crate) struct Acceptor {
    mesh: Mesh,
    handshakes: Handshakes,
    pace: Pace,
    options: Arc<Options>,
    stopped: watch::Receiver<bool>,
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

    /// Our own identity cannot be used ([SEC-OPS-2]).
    #[error("{0}")]
    OwnIdentity(#[from] OwnIdentityError),

    /// The handshake was finished but does not prove a peer.
    #[error("peer is not verified: {0}")]
    Peer(#[source] PeerError),

    /// Plain text on a port that demands mutual TLS.
    #[error("plain text where mutual TLS is required")]
    Plaintext,

    /// The server stops.
    #[error("the server stops")]
    Stopped,

    /// The TLS handshake failed; an alert was sent.
    #[error("TLS handshake failed: {0}")]
    Tls(#[source] io::Error),
}

impl AcceptError {
    fn counted_as(&self) -> Handshake {
        match self {
            Self::Io(_) => Handshake::Io,
            Self::Deadline => Handshake::Deadline,
            Self::Evicted => Handshake::Evicted,
            Self::OwnIdentity(_) => Handshake::OwnIdentity,
            Self::Peer(_) => Handshake::Peer,
            Self::Plaintext => Handshake::PlaintextRefused,
            Self::Stopped => Handshake::Stopped,
            Self::Tls(_) => Handshake::Tls,
        }
    }

    /// Tells a peer that was refused from any other failure.
    fn of_handshake(error: io::Error) -> Self {
        let refusal = error.get_ref().and_then(|inner| PeerError::of_handshake(inner));
        refusal.map_or(Self::Tls(error), Self::Peer)
    }
}

impl Acceptor {
    /// `stopped` resolves when the server stops; every connection holds a clone until it is gone.
    pub(super) fn new(mesh: Mesh, options: Options, stopped: watch::Receiver<bool>) -> Self {
        let handshakes = Handshakes::new(mesh.limits().handshakes);
        Self { mesh, handshakes, pace: Pace::new(), options: Arc::new(options), stopped }
    }

    /// Takes a place for a handshake: in the order of arrival, which is not the order in which tasks
    /// run, so that what is evicted is the oldest.
    pub(super) fn place(&self) -> Place {
        self.handshakes.begin()
    }

    /// Takes a socket to the end of its handshake, within the deadline ([SEC-TLS-14]).
    pub(super) async fn accept(
        &self,
        place: Place,
        stream: TcpStream,
        peer: SocketAddr,
        local: SocketAddr,
    ) -> Result<Accepted, AcceptError> {
        let begun = monotonic();
        let done = self.shake(place, stream, peer, local).await;
        let result = match &done {
            Ok(accepted) => match accepted.info.security() {
                Security::MutualTls(_) => Handshake::MutualTls,
                Security::Plaintext => Handshake::Plaintext,
            },
            Err(error) => error.counted_as(),
        };
        self.mesh.telemetry().count_handshake(result, begun.elapsed());
        done
    }

    async fn shake(
        &self,
        mut place: Place,
        mut stream: TcpStream,
        peer: SocketAddr,
        local: SocketAddr,
    ) -> Result<Accepted, AcceptError> {
        stream.set_nodelay(true).map_err(AcceptError::Io)?;
        let mut stopped = self.stopped.clone();
        let snapshot = self.mesh.snapshot();
        // What policies call the port is the workload's, wherever the network has moved it.
        let local = self.options.destination.unwrap_or(local);
        let handshake = async {
            let peer = self.client(&mut stream, peer).await?;
            shake_hands(stream, (peer, local), &snapshot, &self.mesh, &self.pace).await
        };
        let (stream, info) = tokio::select! {
            done = timeout(self.mesh.limits().handshake, handshake) => {
                done.unwrap_or(Err(AcceptError::Deadline))?
            }
            () = place.evicted() => return Err(AcceptError::Evicted),
            _ = stopped.wait_for(|stops| *stops) => return Err(AcceptError::Stopped),
        };
        let (stream, cutter) = Cuttable::new(stream);
        let stopped = self.stopped.clone();
        let life = Life::new(&self.mesh, &snapshot, info.clone(), cutter, stopped);
        Ok(Accepted { stream, info, life })
    }

    /// The peer, or whom a listed load balancer names in its PROXY header.
    async fn client(
        &self,
        stream: &mut TcpStream,
        peer: SocketAddr,
    ) -> Result<SocketAddr, AcceptError> {
        if !self.options.proxies.contain(peer) {
            return Ok(peer);
        }
        match read_header(stream).await.map_err(AcceptError::Io)? {
            Source::Client(client) => Ok(client),
            Source::Balancer => Ok(peer),
        }
    }
}

/// Decides by mode and first byte what the connection is ([SEC-TLS-7]); the caller sets the
/// deadline. The byte is only peeked at, so that plain text under STRICT is closed with data
/// unread, which resets the connection as Envoy does.
async fn shake_hands(
    stream: TcpStream,
    (peer, local): (SocketAddr, SocketAddr),
    snapshot: &Snapshot,
    mesh: &Mesh,
    pace: &Pace,
) -> Result<(ServerStream, ConnectionInfo), AcceptError> {
    let (clock, grace) = (mesh.clock(), mesh.limits().grace());
    let mode = snapshot.modes.mode(local.port());
    let plain = |stream| {
        let info = ConnectionInfo::new(peer, local, Security::Plaintext, grace);
        (ServerStream::Plain(stream), info)
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
    // [SEC-OPS-2] Without an identity of our own that holds, nobody is let in.
    snapshot.check_own_identity(clock.now())?;
    let tls = &snapshot.server_tls;
    let handshake = TlsAcceptor::from(tls.config()).accept(stream).into_fallible();
    let stream = match pace.run(handshake).await {
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
    let info = ConnectionInfo::new(peer, local, Security::MutualTls(facts), grace);
    Ok((ServerStream::Tls(Box::new(stream)), info))
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
