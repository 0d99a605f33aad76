//! The input document of OPA's Envoy plugin, built from what has been verified.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;

use http::HeaderMap;
use http::header::HOST;
use mesh_identity::{SpiffeId, VerifiedPeer, VerifiedToken};
use regorus::Value;
use rustls_pki_types::UnixTime;

use super::parse::{BadInput, Budget, as_envoy_text, parse_body, parse_path, parse_query};
use super::parts::{InputParts, Part};

/// The most that an input document may hold: the bytes of its texts and 16 for each value
/// ([SEC-REGO-5]). Evaluation is at least linear in it.
pub const MAX_INPUT_BYTES: usize = 64 << 10;

/// The longest single text, except the raw body ([SEC-REGO-5]): builtins such as `replace` are
/// quadratic in it.
pub const MAX_STRING_BYTES: usize = 8 << 10;

/// How deep claims and bodies may nest ([SEC-REGO-5]).
pub const MAX_INPUT_DEPTH: usize = 32;

/// Tells whether the body that Envoy sends along is cut off.
pub(super) const PARTIAL_BODY: &str = "x-envoy-auth-partial-body";

/// Where Envoy's jwt_authn filter puts the claims of a token it has verified.
const JWT_AUTHN_FILTER: &str = "envoy.filters.http.jwt_authn";

/// What the policy may see of a request's body.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[expect(clippy::exhaustive_enums, reason = "a body is not there, all there, or cut off")]
pub enum BodyView<'a> {
    /// Bodies are not passed to policies here.
    NotRequested,
    /// The whole body.
    Complete(&'a [u8]),
    /// The body's beginning, as much as the limit allows.
    Truncated(&'a [u8]),
}

/// The document that a policy calls `input`, or why there is none.
///
/// It owns what it holds, so it can be moved to a thread of a [`super::RegoPool`]. `Debug` shows
/// none of it: headers and claims are in it.
#[derive(Clone)]
pub struct RegoInput {
    /// Invariant: within the limits of [SEC-REGO-5].
    document: Result<Value, BadInput>,
    /// Nanoseconds since 1970, or null.
    now_ns: Value,
}

impl RegoInput {
    /// Begins with what every request has. `path_and_query` is the normalized path that the
    /// request will be routed by, with its query.
    #[must_use]
    pub fn builder<'a>(
        method: &'a str,
        path_and_query: &'a str,
        headers: &'a HeaderMap,
    ) -> RegoInputBuilder<'a> {
        RegoInputBuilder {
            method,
            path_and_query,
            headers,
            authority: "",
            scheme: "",
            protocol: "",
            request_id: "",
            source: None,
            destination: None,
            peer: None,
            destination_id: None,
            token: None,
            time: None,
            body: BodyView::NotRequested,
            only: &InputParts::ALL,
        }
    }

    /// A document that was built elsewhere, such as one of a decision log; the limits of
    /// [SEC-REGO-5] hold for it too. `now` is what `time.now_ns()` says.
    #[must_use]
    pub fn from_json(document: &serde_json::Value, now: Option<UnixTime>) -> Self {
        let now_ns = now.map_or(Value::Null, |now| {
            Value::from(u128::from(now.as_secs()).saturating_mul(1_000_000_000))
        });
        Self { document: Budget::new().json(document), now_ns }
    }

    /// Why there is no document, if there is none: the decision will be 400.
    #[must_use]
    pub fn problem(&self) -> Option<BadInput> {
        self.document.as_ref().err().copied()
    }

    /// The document as JSON, for the decision log. It holds headers and claims: mask it.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        let json = self.document.as_ref().ok().and_then(|input| serde_json::to_value(input).ok());
        json.unwrap_or_default()
    }

    pub(super) fn document(&self) -> &Result<Value, BadInput> {
        &self.document
    }

    pub(super) fn now_ns(&self) -> Value {
        self.now_ns.clone()
    }

    pub(super) fn empty() -> Self {
        Self { document: Ok(Value::new_object()), now_ns: Value::Null }
    }
}

impl fmt::Debug for RegoInput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegoInput").field("problem", &self.problem()).finish_non_exhaustive()
    }
}

/// Collects what the document is made of; what is not given is absent from it.
#[derive(Clone, Copy, Debug)]
pub struct RegoInputBuilder<'a> {
    method: &'a str,
    path_and_query: &'a str,
    headers: &'a HeaderMap,
    authority: &'a str,
    scheme: &'a str,
    protocol: &'a str,
    request_id: &'a str,
    source: Option<SocketAddr>,
    destination: Option<SocketAddr>,
    peer: Option<&'a VerifiedPeer>,
    destination_id: Option<&'a SpiffeId>,
    token: Option<&'a VerifiedToken>,
    time: Option<(UnixTime, u32)>,
    body: BodyView<'a>,
    only: &'a InputParts,
}

impl<'a> RegoInputBuilder<'a> {
    /// `:authority` or `host`: `http.host`.
    #[must_use]
    pub fn authority(mut self, authority: &'a str) -> Self {
        self.authority = authority;
        self
    }

    /// `http` or `https`.
    #[must_use]
    pub fn scheme(mut self, scheme: &'a str) -> Self {
        self.scheme = scheme;
        self
    }

    /// `HTTP/1.1` or `HTTP/2`, as Envoy writes it.
    #[must_use]
    pub fn protocol(mut self, protocol: &'a str) -> Self {
        self.protocol = protocol;
        self
    }

    /// `http.id`.
    #[must_use]
    pub fn request_id(mut self, id: &'a str) -> Self {
        self.request_id = id;
        self
    }

    /// The address of the other end.
    #[must_use]
    pub fn source(mut self, address: SocketAddr) -> Self {
        self.source = Some(address);
        self
    }

    /// Our address.
    #[must_use]
    pub fn destination(mut self, address: SocketAddr) -> Self {
        self.destination = Some(address);
        self
    }

    /// The workload on the other end: `source.principal` and `source_principal`.
    #[must_use]
    pub fn peer(mut self, peer: &'a VerifiedPeer) -> Self {
        self.peer = Some(peer);
        self
    }

    /// Who we are: `destination.principal`.
    #[must_use]
    pub fn destination_id(mut self, id: &'a SpiffeId) -> Self {
        self.destination_id = Some(id);
        self
    }

    /// The end user's token. Its claims appear where Envoy's jwt_authn puts them, `scope` and its
    /// like as lists, as Istio configures that filter ([SEM-JWT-61]).
    #[must_use]
    pub fn token(mut self, token: &'a VerifiedToken) -> Self {
        self.token = Some(token);
        self
    }

    /// When the request came. It is also what `time.now_ns()` says ([SEC-REGO-8]).
    #[must_use]
    pub fn time(mut self, seconds: UnixTime, nanos: u32) -> Self {
        self.time = Some((seconds, nanos));
        self
    }

    /// What the policy may see of the body.
    #[must_use]
    pub fn body(mut self, body: BodyView<'a>) -> Self {
        self.body = body;
        self
    }

    /// Leaves out what a policy does not read ([`super::RegoPolicy::reads`]). The decision is the
    /// same; a log would lack the rest.
    #[must_use]
    pub fn only(mut self, parts: &'a InputParts) -> Self {
        self.only = parts;
        self
    }

    /// Builds the document. A problem is kept in it and becomes a 400.
    #[must_use]
    pub fn build(self) -> RegoInput {
        RegoInput { document: self.document(&mut Budget::new()), now_ns: self.now_ns() }
    }

    fn now_ns(&self) -> Value {
        const NANOS: u128 = 1_000_000_000;
        self.time.map_or(Value::Null, |(seconds, nanos)| {
            let whole = u128::from(seconds.as_secs()).saturating_mul(NANOS);
            Value::from(whole.saturating_add(u128::from(nanos)))
        })
    }

    fn document(&self, budget: &mut Budget) -> Result<Value, BadInput> {
        let only = self.only;
        let mut input = Entries::default();
        input.value("attributes", self.attributes(budget)?);
        if only.has(Part::Version) {
            let mut version = Entries::default();
            version.value("ext_authz", Value::from("v3"));
            version.value("encoding", Value::from("protojson"));
            input.value("version", version.finish());
        }
        // A path or query that cannot be read is refused, whoever reads it.
        let (path, query) =
            self.path_and_query.split_once('?').unwrap_or((self.path_and_query, ""));
        let parsed_path = parse_path(path, budget)?;
        if only.has(Part::ParsedPath) {
            input.value("parsed_path", parsed_path);
        }
        let parsed_query = parse_query(query, budget)?;
        if only.has(Part::ParsedQuery) {
            input.value("parsed_query", parsed_query);
        }
        if only.has_body() {
            let (parsed, truncated) = match self.body {
                BodyView::Truncated(_) => (Value::Null, true),
                BodyView::Complete(bytes) => {
                    let (kind, length) =
                        (self.joined("content-type"), self.joined("content-length"));
                    parse_body(&as_envoy_text(bytes), kind.as_deref(), length.as_deref(), budget)?
                }
                BodyView::NotRequested => (Value::Null, false),
            };
            input.value("parsed_body", parsed);
            input.value("truncated_body", Value::Bool(truncated));
        }
        if only.has(Part::SourcePrincipal) {
            let principal = self.peer.map(|peer| peer.id().as_str());
            input.text("source_principal", principal.unwrap_or_default(), budget)?;
        }
        Ok(input.finish())
    }

    fn attributes(&self, budget: &mut Budget) -> Result<Value, BadInput> {
        let only = self.only;
        let mut attributes = Entries::default();
        if only.has(Part::Source) {
            let principal = self.peer.map(|peer| peer.id().as_str());
            attributes.value("source", end(self.source, principal, budget)?);
        }
        if only.has(Part::Destination) {
            let own = self.destination_id.map(SpiffeId::as_str);
            attributes.value("destination", end(self.destination, own, budget)?);
        }
        let mut request = Entries::default();
        if let Some((seconds, nanos)) = self.time.filter(|_| only.has(Part::Time)) {
            request.value("time", timestamp(seconds, nanos));
        }
        request.value("http", self.http(budget)?);
        attributes.value("request", request.finish());
        if let Some(token) = self.token.filter(|_| only.has(Part::Metadata)) {
            let payload = budget.json_object(token.view().object())?;
            let filter = Entries::one("payload", payload);
            let filters = Entries::one(JWT_AUTHN_FILTER, filter);
            attributes.value("metadataContext", Entries::one("filterMetadata", filters));
        }
        Ok(attributes.finish())
    }

    fn http(&self, budget: &mut Budget) -> Result<Value, BadInput> {
        let mut http = Entries::default();
        for (part, key, text) in [
            (Part::Id, "id", self.request_id),
            (Part::Method, "method", self.method),
            (Part::Path, "path", self.path_and_query),
            (Part::Host, "host", self.authority),
            (Part::Scheme, "scheme", self.scheme),
            (Part::Protocol, "protocol", self.protocol),
        ] {
            if self.only.has(part) {
                http.text(key, text, budget)?;
            }
        }
        if let (BodyView::Complete(bytes) | BodyView::Truncated(bytes), true) =
            (self.body, self.only.has(Part::Size) || self.only.has(Part::Body))
            && !bytes.is_empty()
        {
            let body = as_envoy_text(bytes);
            // The raw body alone may be longer than other strings.
            budget.take(body.len())?;
            http.value("size", Value::from(body.len()));
            http.value("body", Value::from(body.as_ref()));
        }
        if self.only.has(Part::Headers) {
            http.value("headers", self.headers(budget)?);
        }
        Ok(http.finish())
    }

    /// The lines of a header, joined as Envoy does.
    fn joined(&self, name: &str) -> Option<Cow<'a, str>> {
        let mut lines =
            self.headers.get_all(name).iter().map(|line| as_envoy_text(line.as_bytes()));
        let first = lines.next()?;
        Some(lines.fold(first, |joined, line| Cow::Owned(format!("{joined},{line}"))))
    }

    /// Headers as Envoy sends them: repeated ones joined by a comma, pseudo headers among them,
    /// and its own word on the body instead of the client's.
    fn headers(&self, budget: &mut Budget) -> Result<Value, BadInput> {
        let only = self.only.headers();
        let mut headers = BTreeMap::new();
        let mut add = |name: &str, value: &str| -> Result<(), BadInput> {
            if value.len() > MAX_STRING_BYTES {
                return Err(BadInput::TooLarge);
            }
            budget.take(name.len().saturating_add(value.len()))?;
            headers.insert(Value::from(name), Value::from(value));
            Ok(())
        };
        // Envoy has one name for both, so `host` is gone.
        let names = self.headers.keys().filter(|name| **name != HOST && *name != PARTIAL_BODY);
        for name in names.filter(|name| only.has(name)) {
            add(name.as_str(), &self.joined(name.as_str()).unwrap_or_default())?;
        }
        let partial = match self.body {
            BodyView::NotRequested => "",
            BodyView::Complete(_) => "false",
            BodyView::Truncated(_) => "true",
        };
        for (name, value) in [
            (":method", self.method),
            (":path", self.path_and_query),
            (":authority", self.authority),
            (":scheme", self.scheme),
            (PARTIAL_BODY, partial),
        ] {
            if !value.is_empty() && self.only.has_header(name) {
                add(name, value)?;
            }
        }
        Ok(Value::from(headers))
    }
}

/// A peer of the connection: `source` or `destination`.
fn end(
    address: Option<SocketAddr>,
    principal: Option<&str>,
    budget: &mut Budget,
) -> Result<Value, BadInput> {
    let mut end = Entries::default();
    if let Some(address) = address {
        let mut socket = Entries::default();
        socket.text("address", &address.ip().to_canonical().to_string(), budget)?;
        socket.value("portValue", Value::from(u32::from(address.port())));
        end.value("address", Entries::one("socketAddress", socket.finish()));
    }
    end.text("principal", principal.unwrap_or_default(), budget)?;
    Ok(end.finish())
}

/// A protobuf timestamp as the plugin shows it since 2025; a zero is absent.
fn timestamp(seconds: UnixTime, nanos: u32) -> Value {
    let mut time = Entries::default();
    time.value("seconds", Value::from(seconds.as_secs()));
    if nanos != 0 {
        time.value("nanos", Value::from(nanos));
    }
    time.finish()
}

/// An object in the making.
#[derive(Default)]
struct Entries(BTreeMap<Value, Value>);

impl Entries {
    fn one(key: &str, value: Value) -> Value {
        let mut entries = Self::default();
        entries.value(key, value);
        entries.finish()
    }

    fn value(&mut self, key: &str, value: Value) {
        self.0.insert(Value::from(key), value);
    }

    /// A text that is absent when empty, as protobuf fields are.
    fn text(&mut self, key: &str, text: &str, budget: &mut Budget) -> Result<(), BadInput> {
        if !text.is_empty() {
            let text = budget.text(text)?;
            self.value(key, text);
        }
        Ok(())
    }

    fn finish(self) -> Value {
        Value::from(self.0)
    }
}
