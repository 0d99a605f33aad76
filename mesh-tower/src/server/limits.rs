//! What one client may cost the server, and how long its connection may live ([SEC-TLS-12],
//! [SEC-TLS-14], [SEC-HTTP-14], [SEC-HTTP-15]).

use std::time::Duration;

/// Deadlines and bounds of the accept loop. The defaults suit a service that faces strangers.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
///
/// use mesh_tower::Limits;
///
/// let mut limits = Limits::default();
/// limits.drain = Duration::from_secs(20);
/// limits.connection_age = Some(Duration::from_secs(3600));
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Limits {
    /// From accept to a finished handshake, first byte included.
    pub handshake: Duration,
    /// From the first wish to read a request's head to its end; an idle keep-alive connection is
    /// closed after it, too.
    pub request_head: Duration,
    /// For a policy that reads ahead in a request's body.
    pub body_read_ahead: Duration,
    /// How long a service waits for the next piece of a request's body; then the body fails, and
    /// with it the request. gRPC is left alone: its messages may be far apart. Nothing waits for
    /// ever ([SEC-HTTP-14]).
    pub request_body: Option<Duration>,
    /// How long an HTTP/2 connection may be without a request, pings or not, before it is ended
    /// as by age; it may take a quarter longer. Nothing is for ever. HTTP/1 has
    /// [`request_head`](Self::request_head).
    pub connection_idle: Option<Duration>,
    /// From the wish to end a connection to its forced end.
    pub drain: Duration,
    /// The same where the peer is no longer trusted: what is being answered may still end, new
    /// requests are refused. Zero cuts at once ([SEC-TLS-13]).
    pub distrusted_drain: Duration,
    /// From the moment that policies no longer admit what is open (a TCP connection, a request or
    /// an answer that still streams, an upgraded connection), or that the token of a running request
    /// ends, to its forced end: zero closes at once. Nothing leaves it alone, as Istio does, and
    /// policies hold for what comes then ([SEM-STRICT-18]).
    ///
    /// Tokens are verified again for it; external authorizers and Rego are not asked again.
    pub denied_drain: Option<Duration>,
    /// How long a connection outlives its peer's certificate, for clocks that differ: more than a
    /// minute counts as a minute ([SEC-TLS-12]).
    pub expiry_grace: Duration,
    /// How old a connection may get; nothing is any age.
    pub connection_age: Option<Duration>,
    /// Handshakes in flight; the oldest is dropped for one more.
    pub handshakes: usize,
    /// Bytes of a request's head, decoded.
    pub head_bytes: u32,
    /// Header fields of a request.
    pub headers: usize,
    /// Streams of one HTTP/2 connection.
    pub streams: u32,
}

/// How much clocks may differ.
const MOST_GRACE: Duration = Duration::from_secs(60);

impl Limits {
    pub(crate) fn grace(&self) -> Duration {
        self.expiry_grace.min(MOST_GRACE)
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(10),
            request_head: Duration::from_secs(10),
            body_read_ahead: Duration::from_secs(10),
            request_body: Some(Duration::from_secs(60)),
            connection_idle: Some(Duration::from_secs(3600)),
            drain: Duration::from_secs(5),
            distrusted_drain: Duration::from_secs(2),
            denied_drain: Some(Duration::ZERO),
            expiry_grace: Duration::ZERO,
            connection_age: None,
            handshakes: 1024,
            head_bytes: 16 * 1024,
            headers: 100,
            streams: 100,
        }
    }
}
