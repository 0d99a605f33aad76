//! What is known about the connection a request came on.

use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use mesh_authn::peer::MtlsMode;
use mesh_identity::VerifiedPeer;
use rustls::pki_types::UnixTime;

use crate::running::RunningRequests;
use crate::server::End;
use crate::telemetry::{PeerKey, PeerSeries, Protection, Reporter, Telemetry};

/// The facts of one accepted connection; the acceptor puts it into each request's extensions.
///
/// Handlers read it to know the caller. Only this crate's acceptor makes one: it is proof that
/// the request came through it ([SEC-HTTP-13]).
///
/// # Examples
///
/// ```
/// use mesh_tower::ConnectionInfo;
///
/// fn caller<B>(request: &http::Request<B>) -> String {
///     let info = request.extensions().get::<ConnectionInfo>();
///     let peer = info.and_then(ConnectionInfo::peer);
///     peer.map_or("plain text".to_owned(), |peer| peer.id().to_string())
/// }
/// ```
#[derive(Clone)]
pub struct ConnectionInfo {
    facts: Arc<Facts>,
}

struct Facts {
    peer_address: SocketAddr,
    local_address: SocketAddr,
    security: Security,
    /// When requests must no longer be served, by the peer's certificate.
    ends: Option<UnixTime>,
    /// Set when requests must no longer be served, for whatever reason.
    ended: OnceLock<End>,
    running: RunningRequests,
    /// What `x-forwarded-client-cert` says of the peer, made when it is first asked for.
    forwarded: OnceLock<Option<String>>,
    /// Where the connection's requests are counted.
    series: OnceLock<Arc<PeerSeries>>,
}

/// How a connection is secured.
#[derive(Clone, Debug, Eq, PartialEq)]
#[expect(clippy::exhaustive_enums, reason = "a connection is one or the other, nothing between")]
pub enum Security {
    /// Mutual TLS, the peer proven.
    MutualTls(TlsFacts),
    /// Plain text, no identity at all ([SEC-TLS-8]).
    Plaintext,
}

/// What the TLS handshake settled.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct TlsFacts {
    /// Who is on the other end.
    pub peer: VerifiedPeer,
    /// The server name the client asked for, as it was sent.
    pub server_name: Option<String>,
    /// The protocol agreed on, such as `h2`.
    pub alpn: Option<Vec<u8>>,
    /// The TLS version, such as `TLSv1_3`.
    pub version: Option<rustls::ProtocolVersion>,
}

impl Security {
    fn proof_ends(&self, grace: Duration) -> Option<UnixTime> {
        let Self::MutualTls(tls) = self else { return None };
        let end = tls.peer.not_after()?.as_secs().saturating_add(grace.as_secs());
        Some(UnixTime::since_unix_epoch(Duration::from_secs(end)))
    }
}

impl ConnectionInfo {
    pub(crate) fn new(
        peer_address: SocketAddr,
        local_address: SocketAddr,
        security: Security,
        expiry_grace: Duration,
    ) -> Self {
        // [SEM-AUTHZ-30] A dual-stack listener shows IPv4 peers as mapped IPv6 addresses.
        let plain = |mut address: SocketAddr| {
            address.set_ip(address.ip().to_canonical());
            address
        };
        let (peer_address, local_address) = (plain(peer_address), plain(local_address));
        let ends = security.proof_ends(expiry_grace);
        Self {
            facts: Arc::new(Facts {
                peer_address,
                local_address,
                security,
                ends,
                ended: OnceLock::new(),
                running: RunningRequests::default(),
                forwarded: OnceLock::new(),
                series: OnceLock::new(),
            }),
        }
    }

    /// The verified workload on the other end; nothing on plain text.
    #[must_use]
    pub fn peer(&self) -> Option<&VerifiedPeer> {
        self.tls().map(|tls| &tls.peer)
    }

    /// What the handshake settled; nothing on plain text.
    #[must_use]
    pub fn tls(&self) -> Option<&TlsFacts> {
        match &self.facts.security {
            Security::MutualTls(tls) => Some(tls),
            Security::Plaintext => None,
        }
    }

    /// Requests on the connection are refused from now on.
    pub(crate) fn end(&self, why: End) {
        self.facts.ended.get_or_init(|| why);
    }

    /// Why requests on the connection are refused at a time, if they are.
    ///
    /// The clock is asked too, because the task that ends the connection may be late.
    pub(crate) fn ended(&self, now: UnixTime) -> Option<End> {
        let expired = self.facts.ends.is_some_and(|end| now >= end).then_some(End::Expired);
        self.facts.ended.get().copied().or(expired)
    }

    /// The connection's requests whose answers are under way.
    pub(crate) fn running(&self) -> &RunningRequests {
        &self.facts.running
    }

    /// When the peer's proof ends, grace included ([SEC-TLS-12]); nothing for plain text.
    pub(crate) fn ends(&self) -> Option<UnixTime> {
        self.facts.ends
    }

    /// Whether a port with this mode admits such a connection ([SEC-TLS-2]).
    pub(crate) fn fits(&self, mode: MtlsMode) -> bool {
        match (&self.facts.security, mode) {
            (Security::Plaintext, MtlsMode::Strict)
            | (Security::MutualTls(_), MtlsMode::Disable) => false,
            (Security::Plaintext, MtlsMode::Permissive | MtlsMode::Disable)
            | (Security::MutualTls(_), MtlsMode::Permissive | MtlsMode::Strict) => true,
        }
    }

    pub(crate) fn security(&self) -> &Security {
        &self.facts.security
    }

    pub(crate) fn forwarded_element(&self, make: impl FnOnce() -> Option<String>) -> Option<&str> {
        self.facts.forwarded.get_or_init(make).as_deref()
    }

    /// Where what comes over the connection is counted.
    pub(crate) fn series(&self, telemetry: &Telemetry) -> &Arc<PeerSeries> {
        self.facts.series.get_or_init(|| {
            let protection = match self.facts.security {
                Security::MutualTls(_) => Protection::MutualTls,
                Security::Plaintext => Protection::None,
            };
            let peer = self.peer().map(|peer| peer.id().clone());
            let reporter = Reporter::Destination;
            telemetry.peer(PeerKey { reporter, protection, peer, service: None })
        })
    }

    /// The address of the peer: the socket's, or what a load balancer said of it in the PROXY
    /// protocol ([`crate::Server::proxy_protocol_from`]).
    #[must_use]
    pub fn peer_address(&self) -> SocketAddr {
        self.facts.peer_address
    }

    /// The address the peer connected to.
    #[must_use]
    pub fn local_address(&self) -> SocketAddr {
        self.facts.local_address
    }
}

impl fmt::Debug for ConnectionInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectionInfo")
            .field("peer_address", &self.facts.peer_address)
            .field("local_address", &self.facts.local_address)
            .field("security", &self.facts.security)
            .finish()
    }
}
