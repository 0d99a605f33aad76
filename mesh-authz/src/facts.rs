//! What is known of a request or connection when policies are asked ([SEM-EVAL-50]).
//!
//! Borrowed views only: gathering facts copies nothing.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use http::HeaderMap;
use mesh_identity::{VerifiedPeer, VerifiedToken};
use serde_json::{Map, Value};

use crate::client_address::ClientAddress;
use crate::normalize::{NormalizedPath, path_only};

/// Everything that a policy can ask about.
///
/// # Examples
///
/// ```
/// use http::HeaderMap;
/// use mesh_authz::{HttpFacts, NormalizedPath, PeerIdentity, RequestFacts};
/// use mesh_identity::VerifiedPeer;
///
/// let peer = VerifiedPeer::assert_verified("spiffe://cluster.local/ns/web/sa/front".parse()?);
/// let (path, headers) = (NormalizedPath::assert_normalized(b"/items"), HeaderMap::new());
/// let http = HttpFacts::new("GET", "shop.example", &headers).with_path(&path);
/// let facts = RequestFacts::http(Some([10, 0, 0, 1].into()), None, http)
///     .with_peer(PeerIdentity::Svid(&peer));
/// # let _ = facts;
/// # Ok::<(), mesh_identity::SpiffeIdError>(())
/// ```
///
/// An ID that nobody verified does not fit:
///
/// ```compile_fail,E0308
/// let id: mesh_identity::SpiffeId = "spiffe://td/ns/a/sa/b".parse().unwrap();
/// let peer = mesh_authz::PeerIdentity::Svid(&id);
/// ```
#[derive(Clone, Copy)]
pub struct RequestFacts<'a> {
    pub(crate) peer: PeerIdentity<'a>,
    pub(crate) token: Option<&'a VerifiedToken>,
    pub(crate) source_ip: Option<IpAddr>,
    pub(crate) client: Option<ClientAddress>,
    pub(crate) destination: Option<SocketAddr>,
    pub(crate) sni: &'a str,
    pub(crate) http: Option<HttpFacts<'a>>,
    pub(crate) metadata: Option<&'a Map<String, Value>>,
}

impl<'a> RequestFacts<'a> {
    /// Facts of a TCP connection: the socket's peer and our own side of it, each absent when it is
    /// no IP address ([SEM-AUTHZ-31]). IPv4-mapped IPv6 addresses become IPv4 ([SEM-AUTHZ-30]).
    #[must_use]
    pub fn tcp(source: Option<IpAddr>, destination: Option<SocketAddr>) -> Self {
        Self {
            peer: PeerIdentity::None,
            token: None,
            source_ip: source.map(|ip| ip.to_canonical()),
            client: None,
            destination: destination
                .map(|local| SocketAddr::new(local.ip().to_canonical(), local.port())),
            sni: "",
            http: None,
            metadata: None,
        }
    }

    /// Facts of an HTTP request on such a connection.
    #[must_use]
    pub fn http(
        source: Option<IpAddr>,
        destination: Option<SocketAddr>,
        http: HttpFacts<'a>,
    ) -> Self {
        Self { http: Some(http), ..Self::tcp(source, destination) }
    }

    /// Adds the identity of the peer; without, the connection counts as plain text.
    #[must_use]
    pub fn with_peer(mut self, peer: PeerIdentity<'a>) -> Self {
        self.peer = peer;
        self
    }

    /// Adds the token that RequestAuthentication accepted. CUSTOM policies never see it
    /// ([SEM-EVAL-04]).
    #[must_use]
    pub fn with_token(mut self, token: Option<&'a VerifiedToken>) -> Self {
        self.token = token;
        self
    }

    /// Adds the client's address behind proxies, from [`crate::client_address`]; without, it is
    /// the socket's peer.
    #[must_use]
    pub fn with_client_address(mut self, client: ClientAddress) -> Self {
        self.client = Some(client);
        self
    }

    /// Adds the server name of the TLS ClientHello. Compared in lower case, as Envoy delivers it.
    #[must_use]
    pub fn with_sni(mut self, sni: Option<&'a str>) -> Self {
        self.sni = sni.unwrap_or_default();
        self
    }

    /// Adds Envoy's dynamic metadata: an object for each name, such as `envoy.filters.http.x`
    /// ([SEM-AUTHZ-75]).
    #[must_use]
    pub fn with_metadata(mut self, metadata: Option<&'a Map<String, Value>>) -> Self {
        self.metadata = metadata;
        self
    }

    pub(crate) fn client_ip(&self) -> Option<IpAddr> {
        self.client.map_or(self.source_ip, |client| Some(client.ip()))
    }

    /// The path without query; absent on TCP and for a CONNECT ([SEM-AUTHZ-70]).
    pub(crate) fn path(&self) -> Option<&'a [u8]> {
        self.http?.path_and_query.map(path_only)
    }
}

impl fmt::Debug for RequestFacts<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Headers, query and claims may hold secrets ([SEC-AUTHZ-12]).
        f.debug_struct("RequestFacts")
            .field("peer", &self.peer)
            .field("source_ip", &self.source_ip)
            .field("destination", &self.destination)
            .finish_non_exhaustive()
    }
}

/// What a request adds to its connection.
#[derive(Clone, Copy)]
pub struct HttpFacts<'a> {
    pub(crate) method: &'a str,
    pub(crate) authority: &'a str,
    pub(crate) path_and_query: Option<&'a [u8]>,
    pub(crate) scheme: &'a str,
    pub(crate) headers: &'a HeaderMap,
    pub(crate) version: http::Version,
}

impl<'a> HttpFacts<'a> {
    /// A request without path (a CONNECT) over HTTP/1.1, scheme `http`.
    ///
    /// `authority` is the one host of the request ([SEC-HTTP-5]): `:authority`, the host of an
    /// absolute target, or `Host`. Of headers only what policies may see: not the `Authorization`
    /// header of a verified token, unless it is forwarded.
    #[must_use]
    pub fn new(method: &'a str, authority: &'a str, headers: &'a HeaderMap) -> Self {
        let version = http::Version::HTTP_11;
        Self { method, authority, path_and_query: None, scheme: "http", headers, version }
    }

    /// Adds path and query.
    #[must_use]
    pub fn with_path(mut self, path: &'a NormalizedPath<'_>) -> Self {
        self.path_and_query = Some(path.as_bytes());
        self
    }

    /// Sets the scheme, `http` or `https`.
    #[must_use]
    pub fn with_scheme(mut self, scheme: &'a str) -> Self {
        self.scheme = scheme;
        self
    }

    /// Sets the protocol version, which decides how `cookie` lines are joined ([SEM-AUTHZ-57]).
    #[must_use]
    pub fn with_version(mut self, version: http::Version) -> Self {
        self.version = version;
        self
    }
}

impl fmt::Debug for HttpFacts<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path_and_query.map(path_only).unwrap_or_default().escape_ascii();
        f.debug_struct("HttpFacts")
            .field("method", &self.method)
            .field("path", &format_args!("{path}"))
            .finish_non_exhaustive()
    }
}

/// Who is on the other end of the connection.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::exhaustive_enums, reason = "a new kind of proof must break every reader")]
pub enum PeerIdentity<'a> {
    /// Nobody proved anything: plain text, or TLS without client certificate.
    None,
    /// A workload with a verified X.509-SVID.
    Svid(&'a VerifiedPeer),
    /// The names of a certificate that is no X.509-SVID.
    Names(&'a PeerNames),
}

impl<'a> PeerIdentity<'a> {
    /// The names that identity conditions look at, in Envoy's order ([SEM-AUTHZ-24]).
    pub(crate) fn names(self) -> impl Iterator<Item = &'a str> {
        let (one, many) = match self {
            Self::None => (None, None),
            Self::Svid(peer) => (Some(peer.id().as_str()), None),
            Self::Names(names) => (None, Some(&names.names)),
        };
        one.into_iter().chain(many.into_iter().flatten().map(String::as_str))
    }
}

/// The names of a verified client certificate as Envoy sees them: URI SANs, DNS SANs, subject.
///
/// For evaluators behind somebody else's TLS only: our own TLS admits nothing but X.509-SVIDs.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct PeerNames {
    names: Vec<String>,
}

impl PeerNames {
    /// Asserts that the certificate with these names was verified; `subject` in RFC 2253 form.
    #[must_use]
    pub fn assert_verified(
        uri_sans: impl IntoIterator<Item = String>,
        dns_sans: impl IntoIterator<Item = String>,
        subject: Option<String>,
    ) -> Self {
        Self { names: uri_sans.into_iter().chain(dns_sans).chain(subject).collect() }
    }
}
