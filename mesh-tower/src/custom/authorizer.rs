//! Who can be asked, what is asked, what may be answered.

use std::error::Error as StdError;
use std::fmt;
use std::future::ready;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version};
use mesh_identity::SpiffeId;
use rustls::pki_types::UnixTime;

use crate::connection::ConnectionInfo;
use crate::gather::Host;
use crate::mask;

/// Decides about requests that a CUSTOM policy selects.
///
/// Implement it to decide in Rust; wrap it in a [`crate::Provider`], which adds what every provider
/// has: timeout, bounded concurrency, what a failure means. A panic is a failure.
///
/// # Examples
///
/// ```
/// use http::StatusCode;
/// use mesh_tower::{
///     Authorizer, CheckAnswer, CheckFuture, CheckRequest, Denial, RequestChanges,
/// };
///
/// /// Istio's sample authorizer: it allows what asks for it.
/// #[derive(Debug)]
/// struct Sample;
///
/// impl Authorizer for Sample {
///     fn check<'r>(&'r self, request: CheckRequest<'r>) -> CheckFuture<'r> {
///         let asked = request.headers().get("x-ext-authz");
///         let allowed = asked.is_some_and(|value| value == "allow");
///         Box::pin(async move {
///             Ok(if allowed {
///                 CheckAnswer::Allow(RequestChanges::default())
///             } else {
///                 CheckAnswer::Deny(Denial::new(StatusCode::FORBIDDEN, "denied by ext_authz"))
///             })
///         })
///     }
/// }
/// ```
pub trait Authorizer: fmt::Debug + Send + Sync + 'static {
    /// Judges a request. Dropping the future gives up on the answer.
    fn check<'r>(&'r self, request: CheckRequest<'r>) -> CheckFuture<'r>;

    /// Judges a TCP connection before a byte of it is read ([SEM-EXT-15]); of what an answer would
    /// change in a request, only the metadata counts. An authorizer that cannot be asked about
    /// connections, as none can unless it says so, gives no answer, and the connection is refused.
    fn check_connection<'r>(&'r self, _connection: CheckConnection<'r>) -> CheckFuture<'r> {
        Box::pin(ready(Err(CheckError::Encoding("it is a TCP connection"))))
    }
}

/// An answer on its way.
pub type CheckFuture<'r> =
    Pin<Box<dyn Future<Output = Result<CheckAnswer, CheckError>> + Send + 'r>>;

/// A request that an authorizer judges, with normalized path and not yet verified tokens.
///
/// `Debug` shows no header.
#[derive(Clone, Copy)]
pub struct CheckRequest<'r> {
    pub(crate) parts: &'r Parts,
    /// What it is asked about with, as a connection alone is.
    pub(crate) on: CheckConnection<'r>,
    pub(crate) host: &'r Host,
    pub(crate) body: Option<&'r CheckedBody>,
}

/// A TCP connection that an authorizer judges.
#[derive(Clone, Copy, Debug)]
pub struct CheckConnection<'r> {
    pub(crate) info: &'r ConnectionInfo,
    pub(crate) own_id: &'r SpiffeId,
    pub(crate) now: UnixTime,
    pub(crate) timeout: Duration,
}

impl<'r> CheckConnection<'r> {
    /// The connection with its verified peer.
    #[must_use]
    pub fn connection(&self) -> &'r ConnectionInfo {
        self.info
    }

    /// The identity of this workload.
    #[must_use]
    pub fn own_id(&self) -> &'r SpiffeId {
        self.own_id
    }

    /// When it is asked about.
    #[must_use]
    pub fn time(&self) -> UnixTime {
        self.now
    }

    /// How long the answer is waited for.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        self.timeout
    }
}

/// What an authorizer sees of a request's body. `Debug` shows its length only.
#[derive(Clone, Eq, PartialEq)]
#[non_exhaustive]
pub struct CheckedBody {
    /// The body, or as much of its beginning as the provider may see.
    pub bytes: Bytes,
    /// Whether there is more.
    pub truncated: bool,
    /// Whether the provider wants bytes instead of text (`packAsBytes`).
    pub as_bytes: bool,
}

impl<'r> CheckRequest<'r> {
    /// The method.
    #[must_use]
    pub fn method(&self) -> &'r Method {
        &self.parts.method
    }

    /// The normalized path with its query; empty for CONNECT.
    #[must_use]
    pub fn path_and_query(&self) -> &'r str {
        let path = self.parts.uri.path_and_query().filter(|_| self.method() != Method::CONNECT);
        path.map_or("", PathAndQuery::as_str)
    }

    /// The headers as the client sent them; nothing in them is verified.
    #[must_use]
    pub fn headers(&self) -> &'r HeaderMap {
        &self.parts.headers
    }

    /// The authority that the request names, as it was sent.
    #[must_use]
    pub fn authority(&self) -> &'r str {
        self.host.as_str()
    }

    /// `https` on mutual TLS, else `http`.
    #[must_use]
    pub fn scheme(&self) -> &'static str {
        if self.connection().tls().is_some() { "https" } else { "http" }
    }

    /// `HTTP/1.1` or `HTTP/2`, as Envoy writes it.
    #[must_use]
    pub fn protocol(&self) -> &'static str {
        if self.parts.version == Version::HTTP_2 { "HTTP/2" } else { "HTTP/1.1" }
    }

    /// The connection with its verified peer.
    #[must_use]
    pub fn connection(&self) -> &'r ConnectionInfo {
        self.on.info
    }

    /// The identity of this workload.
    #[must_use]
    pub fn own_id(&self) -> &'r SpiffeId {
        self.on.own_id
    }

    /// When the request came.
    #[must_use]
    pub fn time(&self) -> UnixTime {
        self.on.now
    }

    /// How long the answer is waited for.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        self.on.timeout
    }

    /// The body, if the provider is to see it.
    #[must_use]
    pub fn body(&self) -> Option<&'r CheckedBody> {
        self.body
    }
}

impl fmt::Debug for CheckRequest<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CheckRequest")
            .field("method", self.method())
            .field("path", &mask::tokens(self.parts.uri.path()))
            .finish_non_exhaustive()
    }
}

/// What an authorizer says.
#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::exhaustive_enums, reason = "a new verdict must break every caller")]
pub enum CheckAnswer {
    /// The request goes on, changed.
    Allow(RequestChanges),
    /// The request ends here.
    Deny(Denial),
}

/// What an allowing answer changes. `Default` changes nothing.
///
/// The headers that say where a message goes and where its body ends (`host`, `content-length`, and
/// those of one connection, such as `transfer-encoding` and `upgrade`) stay as they are, in the
/// request and in the response, whatever is named here.
///
/// `Debug` shows names only: a value may be a secret.
#[derive(Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct RequestChanges {
    /// Headers for the service; all earlier lines of a name are replaced by those given here.
    pub headers_to_set: Vec<(HeaderName, HeaderValue)>,
    /// Headers whose value is joined to an earlier one with a comma.
    pub headers_to_append: Vec<(HeaderName, HeaderValue)>,
    /// Headers that the service does not get.
    pub headers_to_remove: Vec<HeaderName>,
    /// Headers added to the service's response.
    pub response_headers: Vec<(HeaderName, HeaderValue)>,
    /// Query parameters to set, decoded.
    pub query_to_set: Vec<(String, String)>,
    /// Query parameters to remove, decoded.
    pub query_to_remove: Vec<String>,
    /// What policies read by `experimental.envoy.filters.http.ext_authz[…]` (`network` on TCP), and
    /// the service finds in [`crate::Permit::metadata`]; the client never sees it. Of two authorizers
    /// that name the same member, the later one is heard.
    pub dynamic_metadata: serde_json::Map<String, serde_json::Value>,
    /// Which revision of a policy says so; told in [`crate::DecisionEvent::rego_revision`].
    pub revision: Option<Arc<str>>,
}

/// A refusal that goes to the client as it is. `Debug` shows no value of a header and no body.
#[derive(Clone, PartialEq)]
#[non_exhaustive]
pub struct Denial {
    /// The response's status.
    pub status: StatusCode,
    /// Its headers; a name may repeat.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Its body.
    pub body: Bytes,
    /// Why, for logs; the client is not told.
    pub reason: Option<&'static str>,
    /// Which revision of a policy says so; told in [`crate::DecisionEvent::rego_revision`].
    pub revision: Option<Arc<str>>,
}

impl fmt::Debug for CheckedBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CheckedBody")
            .field("length", &self.bytes.len())
            .field("truncated", &self.truncated)
            .field("as_bytes", &self.as_bytes)
            .finish()
    }
}

impl fmt::Debug for RequestChanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let query: Vec<&str> = self.query_to_set.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("RequestChanges")
            .field("headers_to_set", &names(&self.headers_to_set))
            .field("headers_to_append", &names(&self.headers_to_append))
            .field("headers_to_remove", &self.headers_to_remove)
            .field("response_headers", &names(&self.response_headers))
            .field("query_to_set", &query)
            .field("query_to_remove", &self.query_to_remove)
            .field("dynamic_metadata", &self.dynamic_metadata.keys().collect::<Vec<_>>())
            .field("revision", &self.revision)
            .finish()
    }
}

impl fmt::Debug for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Denial")
            .field("status", &self.status)
            .field("headers", &names(&self.headers))
            .field("reason", &self.reason)
            .field("revision", &self.revision)
            .finish_non_exhaustive()
    }
}

fn names(headers: &[(HeaderName, HeaderValue)]) -> Vec<&HeaderName> {
    headers.iter().map(|(name, _)| name).collect()
}

impl Denial {
    /// A refusal with a body.
    #[must_use]
    pub fn new(status: StatusCode, body: impl Into<Bytes>) -> Self {
        Self { status, headers: Vec::new(), body: body.into(), reason: None, revision: None }
    }
}

/// Why there is no answer. `failOpen` and `statusOnError` say what becomes of the request.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckError {
    /// The answer is none that the protocol knows.
    #[error("the answer is malformed: {0}")]
    Answer(&'static str),

    /// The authorizer cannot be reached, or the connection was lost.
    #[error("cannot be reached: {0}")]
    Connection(#[source] Box<dyn StdError + Send + Sync>),

    /// There was no answer in time.
    #[error("no answer in time")]
    Deadline,

    /// The request cannot be put into the protocol's form.
    #[error("the request cannot be asked about: {0}")]
    Encoding(&'static str),

    /// An authorizer of the program's own failed.
    #[error("failed: {0}")]
    Failed(#[source] Box<dyn StdError + Send + Sync>),

    /// As many requests as the provider may hold are waiting for it.
    #[error("too many requests wait for it")]
    Overloaded,

    /// It panicked.
    #[error("it panicked")]
    Panicked,

    /// The authorizer says that it failed, and what the client is to be told
    /// (`error_response`).
    #[error("it reports a failure")]
    Reported(Option<StatusCode>, Bytes),

    /// The call ended with a gRPC status other than OK.
    #[error("gRPC status {0}")]
    Rpc(i32),

    /// The answer's status is 500 or above.
    #[error("HTTP status {0}")]
    Status(StatusCode),
}

impl CheckError {
    /// Whether the authorizer was down or too slow, which is all that `failOpen` forgives in the
    /// strict reading ([SEM-STRICT-19]).
    #[must_use]
    pub const fn is_outage(&self) -> bool {
        matches!(self, Self::Connection(_) | Self::Deadline)
    }
}
