//! Envoy's ext_authz over gRPC (`envoyExtAuthzGrpc`): what Envoy sends and makes of the answers.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::error::Error as StdError;
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use ::http::header::HOST;
use ::http::uri::PathAndQuery;
use ::http::{HeaderName, HeaderValue, StatusCode, Uri};
use bytes::Bytes;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use mesh_authz::CheckSettings;
use mesh_identity::SpiffeId;
use prost::Message as _;
use prost_types::value::Kind;
use serde_json::{Map, Value};
use tonic::body::Body;
use tonic::client::Grpc;
use tonic_prost::ProstCodec;

use super::http::failure;
use super::messages::{
    self as proto, AttributeContext, CheckResponse, DeniedHttpResponse, HeaderValueOption,
    HttpResponse, OkHttpResponse,
};
use super::{
    Authorizer, CheckAnswer, CheckConnection, CheckError, CheckFuture, CheckRequest, Denial,
    RequestChanges,
};
use crate::client::Connector;

/// The longest answer that is read.
const MAX_ANSWER: usize = 256 * 1024;

/// The longest dynamic metadata that is read. It is kept for as long as the request lives, and is
/// some ten times as large then.
const MAX_METADATA: usize = 64 * 1024;

/// Tells an authorizer whether the body is cut off.
const PARTIAL_BODY: &str = "x-envoy-auth-partial-body";

/// The same call on clients of two types.
macro_rules! call {
    ($client:expr, $origin:expr, $check:expr, $path:expr) => {{
        let mut grpc = Grpc::with_origin($client.clone(), $origin.clone())
            .max_decoding_message_size(MAX_ANSWER);
        // hyper-util's client is always ready.
        match grpc.ready().await {
            Ok(()) => {
                let codec = ProstCodec::<proto::CheckRequest, CheckResponse>::default();
                grpc.unary($check, $path, codec).await.map(tonic::Response::into_inner)
            }
            Err(error) => return Err(failure(&error)),
        }
    }};
}
/// Asks a gRPC server about each request, as Envoy does ([SEM-EXT-12]).
///
/// An answer of more than 256 KiB is a failure, as one that allows is with more than 64 KiB of
/// `dynamic_metadata`.
#[derive(Clone)]
pub struct GrpcAuthorizer {
    client: GrpcClient,
    origin: Uri,
    strict: bool,
}

#[derive(Clone)]
enum GrpcClient {
    Plain(Client<HttpConnector, Body>),
    Mesh(Client<Connector, Body>),
}

impl GrpcAuthorizer {
    /// An authorizer that is asked over HTTP/2 in plain text.
    ///
    /// # Errors
    ///
    /// When the service's host makes no URI.
    pub fn plain(settings: &CheckSettings) -> Result<Self, ::http::Error> {
        let client = Client::builder(TokioExecutor::new()).http2_only(true).build_http();
        Self::new(GrpcClient::Plain(client), settings)
    }

    /// An authorizer in the mesh, asked over mutual TLS. The connector must know the host of
    /// `settings.service`, and speak HTTP/2.
    ///
    /// # Errors
    ///
    /// When the service's host makes no URI.
    pub fn mesh(connector: Connector, settings: &CheckSettings) -> Result<Self, ::http::Error> {
        let client = Client::builder(TokioExecutor::new()).http2_only(true).build(connector);
        Self::new(GrpcClient::Mesh(client), settings)
    }

    fn new(client: GrpcClient, settings: &CheckSettings) -> Result<Self, ::http::Error> {
        let origin = Uri::builder()
            .scheme("http")
            .authority(format!("{}:{}", settings.host(), settings.port))
            .path_and_query("/")
            .build()?;
        Ok(Self { client, origin, strict: false })
    }

    /// Takes answers that contradict themselves for failures: an empty `CheckResponse`, which is
    /// what a half-written server sends, and a status of OK with a denial in it. Envoy allows both.
    #[must_use]
    pub fn with_strict_answers(mut self) -> Self {
        self.strict = true;
        self
    }

    async fn ask(&self, request: CheckRequest<'_>) -> Result<CheckAnswer, CheckError> {
        self.call(encode(&request), request.timeout()).await
    }

    async fn call(
        &self,
        check: proto::CheckRequest,
        timeout: Duration,
    ) -> Result<CheckAnswer, CheckError> {
        let mut check = tonic::Request::new(check);
        check.set_timeout(timeout);
        let path = PathAndQuery::from_static(proto::CHECK);
        let answered = match &self.client {
            GrpcClient::Plain(client) => call!(client, self.origin, check, path),
            GrpcClient::Mesh(client) => call!(client, self.origin, check, path),
        };
        read(answered.map_err(|status| status_failure(&status))?, self.strict)
    }
}

/// The CheckRequest that Envoy would send.
fn encode(request: &CheckRequest<'_>) -> proto::CheckRequest {
    let mut http = proto::HttpRequest {
        method: request.method().as_str().to_owned(),
        headers: headers(request),
        path: request.path_and_query().to_owned(),
        host: request.authority().to_owned(),
        scheme: request.scheme().to_owned(),
        protocol: request.protocol().to_owned(),
        ..proto::HttpRequest::default()
    };
    if let Some(body) = request.body() {
        http.size = i64::try_from(body.bytes.len()).unwrap_or(i64::MAX);
        if body.as_bytes {
            http.raw_body = body.bytes.to_vec();
        } else {
            http.body = text(&body.bytes).into_owned();
        }
    }
    let seconds = i64::try_from(request.time().as_secs()).unwrap_or(i64::MAX);
    let attributes = AttributeContext {
        request: Some(proto::Request {
            time: Some(proto::Timestamp { seconds, nanos: 0 }),
            http: Some(http),
        }),
        metadata_context: Some(proto::Empty {}),
        route_metadata_context: Some(proto::Empty {}),
        ..attributes(&request.on)
    };
    proto::CheckRequest { attributes: Some(attributes) }
}

/// What Envoy's filter for TCP sends: who is at both ends, and the server name asked for.
fn encode_connection(check: &CheckConnection<'_>) -> proto::CheckRequest {
    proto::CheckRequest { attributes: Some(attributes(check)) }
}

/// The attributes of a connection, which every check has.
fn attributes(check: &CheckConnection<'_>) -> AttributeContext {
    let connection = check.connection();
    let tls = connection.tls();
    let peer = connection.peer().map(mesh_identity::VerifiedPeer::id);
    AttributeContext {
        source: Some(end(connection.peer_address(), peer)),
        destination: Some(end(connection.local_address(), tls.map(|_| check.own_id()))),
        tls_session: tls
            .and_then(|tls| tls.server_name.clone())
            .map(|sni| proto::TlsSession { sni }),
        ..AttributeContext::default()
    }
}

fn end(address: SocketAddr, id: Option<&SpiffeId>) -> proto::Peer {
    proto::Peer {
        address: Some(proto::Address {
            socket_address: Some(proto::SocketAddress {
                address: address.ip().to_string(),
                port_value: u32::from(address.port()),
            }),
        }),
        principal: id.map(|id| id.as_str().to_owned()).unwrap_or_default(),
    }
}

/// Lower-case names, pseudo headers among them, repeated ones joined by a comma.
fn headers(request: &CheckRequest<'_>) -> BTreeMap<String, String> {
    let mut headers = BTreeMap::<String, String>::new();
    for (name, value) in request.headers().iter().filter(|(name, _)| *name != HOST) {
        let value = text(value.as_bytes());
        headers
            .entry(name.as_str().to_owned())
            .and_modify(|joined| {
                joined.push(',');
                joined.push_str(&value);
            })
            .or_insert_with(|| value.clone().into_owned());
    }
    headers.remove(PARTIAL_BODY);
    let partial = request.body().map_or("", |body| if body.truncated { "true" } else { "false" });
    for (name, value) in [
        (":method", request.method().as_str()),
        (":path", request.path_and_query()),
        (":authority", request.authority()),
        (":scheme", request.scheme()),
        (PARTIAL_BODY, partial),
    ] {
        if !value.is_empty() {
            headers.insert(name.to_owned(), value.to_owned());
        }
    }
    headers
}

/// Text as Envoy puts it into its request: each byte that is not UTF-8 becomes `!`.
fn text(bytes: &[u8]) -> Cow<'_, str> {
    if let Ok(text) = str::from_utf8(bytes) {
        return Cow::Borrowed(text);
    }
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|_| '!'));
    }
    Cow::Owned(text)
}

/// What Envoy 1.40.0 makes of an answer (interfaces of ext_authz, measured).
fn read(answer: CheckResponse, strict: bool) -> Result<CheckAnswer, CheckError> {
    let code = answer.status.as_ref().map_or(0, |status| status.code);
    match (code, answer.http_response) {
        (_, Some(HttpResponse::Error(error))) => {
            let status = error.status.map(|status| http_status(status.code)).transpose()?;
            Err(CheckError::Reported(status, error.body.into()))
        }
        (0, Some(HttpResponse::Ok(ok))) => {
            let mut changes = allow(ok)?;
            changes.dynamic_metadata = metadata(&answer.dynamic_metadata)?;
            Ok(CheckAnswer::Allow(changes))
        }
        (0, Some(HttpResponse::Denied(_))) if strict => {
            Err(CheckError::Answer("a denial with the status OK"))
        }
        (0, None) if strict && answer.status.is_none() => Err(CheckError::Answer("it is empty")),
        (0, denied) => {
            if answer.status.is_none() {
                let denial = denied.is_some();
                tracing::warn!(denial, "an authorizer answered without a status, which allows");
            }
            let dynamic_metadata = metadata(&answer.dynamic_metadata)?;
            Ok(CheckAnswer::Allow(RequestChanges { dynamic_metadata, ..RequestChanges::default() }))
        }
        (_, Some(HttpResponse::Denied(denied))) => deny(denied).map(CheckAnswer::Deny),
        (_, Some(HttpResponse::Ok(_)) | None) => {
            Ok(CheckAnswer::Deny(Denial::new(StatusCode::FORBIDDEN, Bytes::new())))
        }
    }
}

fn metadata(parts: &[Vec<u8>]) -> Result<Map<String, Value>, CheckError> {
    let encoded = parts.concat();
    if encoded.len() > MAX_METADATA {
        return Err(CheckError::Answer("the dynamic metadata is too long"));
    }
    let metadata = prost_types::Struct::decode(&*encoded);
    metadata.map(object).map_err(|_detail| CheckError::Answer("the dynamic metadata"))
}

/// prost reads no message that is nested deeper than a hundred levels, which ends the recursion.
fn object(metadata: prost_types::Struct) -> Map<String, Value> {
    metadata.fields.into_iter().map(|(name, member)| (name, value(member))).collect()
}

fn value(value: prost_types::Value) -> Value {
    match value.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::BoolValue(value)) => Value::Bool(value),
        Some(Kind::NumberValue(value)) => number(value),
        Some(Kind::StringValue(text)) => Value::String(text),
        Some(Kind::StructValue(members)) => Value::Object(object(members)),
        Some(Kind::ListValue(list)) => list.values.into_iter().map(self::value).collect(),
    }
}

/// Every number is a float there; a whole one is meant as such. What JSON has not is null.
fn number(value: f64) -> Value {
    let whole = format!("{value:.0}").parse::<i64>().ok();
    match whole.filter(|_| value.fract() == 0.0) {
        Some(whole) => whole.into(),
        None => value.into(),
    }
}

fn deny(denied: DeniedHttpResponse) -> Result<Denial, CheckError> {
    let status = denied.status.map(|status| status.code).filter(|code| *code != 0);
    let status = status.map_or(Ok(StatusCode::FORBIDDEN), http_status)?;
    let mut denial = Denial::new(status, denied.body);
    for header in denied.headers {
        denial.headers.extend(entry(header)?.map(|(name, value, _)| (name, value)));
    }
    Ok(denial)
}

fn allow(ok: OkHttpResponse) -> Result<RequestChanges, CheckError> {
    let mut changes = RequestChanges::default();
    for header in ok.headers {
        match entry(header)? {
            Some((name, value, true)) => changes.headers_to_append.push((name, value)),
            Some((name, value, false)) => {
                // Each entry overwrites, the one before it too.
                changes.headers_to_set.retain(|(other, _)| *other != name);
                changes.headers_to_set.push((name, value));
            }
            None => {}
        }
    }
    for header in ok.response_headers_to_add {
        changes.response_headers.extend(entry(header)?.map(|(name, value, _)| (name, value)));
    }
    for name in ok.headers_to_remove.iter().filter(|name| !name.starts_with(':')) {
        let name = name.parse().map_err(|_detail| CheckError::Answer("a header to remove"))?;
        changes.headers_to_remove.push(name);
    }
    let set = ok.query_parameters_to_set.into_iter();
    changes.query_to_set = set.map(|parameter| (parameter.key, parameter.value)).collect();
    changes.query_to_remove = ok.query_parameters_to_remove;
    Ok(changes)
}

/// Name, value, and whether it is joined to an earlier one. A pseudo header is nothing that an
/// answer may change here: path and host are judged by then.
fn entry(option: HeaderValueOption) -> Result<Option<(HeaderName, HeaderValue, bool)>, CheckError> {
    let header = option.header.ok_or(CheckError::Answer("a header without a header"))?;
    if header.key.starts_with(':') {
        return Ok(None);
    }
    let value = if header.value.is_empty() { header.raw_value } else { header.value.into_bytes() };
    let name = HeaderName::from_bytes(header.key.as_bytes());
    let name = name.map_err(|_detail| CheckError::Answer("a header's name"))?;
    let value = HeaderValue::from_bytes(&value);
    let value = value.map_err(|_detail| CheckError::Answer("a header's value"))?;
    Ok(Some((name, value, option.append.is_some_and(|append| append.value))))
}

fn http_status(code: i32) -> Result<StatusCode, CheckError> {
    let status = u16::try_from(code).ok().and_then(|code| StatusCode::from_u16(code).ok());
    let status = status.filter(|status| !status.is_informational() && status.as_u16() < 600);
    status.ok_or(CheckError::Answer("the HTTP status"))
}

/// A status that our own client made of a lost connection is an outage, one that the server sent
/// is not.
fn status_failure(status: &tonic::Status) -> CheckError {
    let mut source = status.source();
    while let Some(cause) = source {
        if let Some(error) = cause.downcast_ref::<hyper_util::client::legacy::Error>() {
            return failure(error);
        }
        if let Some(error) = cause.downcast_ref::<hyper::Error>() {
            return CheckError::Connection(error.to_string().into());
        }
        source = cause.source();
    }
    CheckError::Rpc(i32::from(status.code()))
}

impl Authorizer for GrpcAuthorizer {
    fn check<'r>(&'r self, request: CheckRequest<'r>) -> CheckFuture<'r> {
        Box::pin(self.ask(request))
    }

    fn check_connection<'r>(&'r self, connection: CheckConnection<'r>) -> CheckFuture<'r> {
        Box::pin(self.call(encode_connection(&connection), connection.timeout()))
    }
}

impl fmt::Debug for GrpcAuthorizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GrpcAuthorizer")
            .field("origin", &self.origin)
            .field("strict", &self.strict)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A message that comes in parts is one: what follows is merged, as in Envoy.
    #[test]
    fn metadata_may_come_in_parts() {
        let part = |name: &str, value: f64| {
            let value = prost_types::Value { kind: Some(Kind::NumberValue(value)) };
            let fields = [(name.to_owned(), value)].into();
            let metadata = prost_types::Struct { fields }.encode_to_vec();
            CheckResponse { dynamic_metadata: vec![metadata], ..CheckResponse::default() }
                .encode_to_vec()
        };
        let parts = [part("a", 1.0), part("b", 2.0), part("a", 3.0)].concat();
        let read = read(CheckResponse::decode(&*parts).unwrap(), false);
        let Ok(CheckAnswer::Allow(changes)) = read else { panic!("{read:?}") };
        assert_eq!(serde_json::Value::from(changes.dynamic_metadata), json!({"a": 3, "b": 2}));
    }
}
