//! Envoy's ext_authz over HTTP: the request's head, sent on to an authorizer (`envoyExtAuthzHttp`).

use std::error::Error as StdError;
use std::fmt;

use ::http::header::{
    AUTHORIZATION, CONNECTION, CONTENT_LENGTH, HOST, HeaderMap, HeaderName, HeaderValue, LOCATION,
    TRANSFER_ENCODING, UPGRADE, WWW_AUTHENTICATE,
};
use ::http::{Method, Request, Response, StatusCode};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{Client, Error as ClientError};
use hyper_util::rt::TokioExecutor;
use mesh_authz::{CheckSettings, HttpCheck};

use super::{
    Authorizer, CheckAnswer, CheckError, CheckFuture, CheckRequest, Denial, RequestChanges,
};
use crate::client::Connector;

/// The longest answer that is read.
const MAX_ANSWER: usize = 64 * 1024;

/// Tells an authorizer whether the body is cut off.
const PARTIAL_BODY: HeaderName = HeaderName::from_static("x-envoy-auth-partial-body");

/// With it an authorizer names headers that the service must not see.
const HEADERS_TO_REMOVE: HeaderName = HeaderName::from_static("x-envoy-auth-headers-to-remove");

/// What Envoy adds to the requests it makes itself ([SEM-EXT-10]).
const INTERNAL: HeaderName = HeaderName::from_static("x-envoy-internal");
const EXPECTED_TIME: HeaderName = HeaderName::from_static("x-envoy-expected-rq-timeout-ms");

/// Headers of one connection (RFC 9110 section 7.6.1), which are nobody else's.
const HOP_BY_HOP: [HeaderName; 7] = [
    CONNECTION,
    TRANSFER_ENCODING,
    UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("te"),
    HeaderName::from_static("trailer"),
];

/// Asks an HTTP server about each request, as Envoy does: exactly 200 allows ([SEM-EXT-11]).
pub struct HttpAuthorizer {
    client: HttpClient,
    /// `http://host:port`, then the path prefix.
    target: String,
    check: HttpCheck,
}

enum HttpClient {
    Plain(Client<HttpConnector, Full<Bytes>>),
    Mesh(Client<Connector, Full<Bytes>>),
}

impl HttpAuthorizer {
    /// An authorizer that is asked over plain text.
    #[must_use]
    pub fn plain(settings: &CheckSettings, check: HttpCheck) -> Self {
        let client = Client::builder(TokioExecutor::new()).build_http();
        Self::new(HttpClient::Plain(client), settings, check)
    }

    /// An authorizer in the mesh, asked over mutual TLS. The connector must know the host of
    /// `settings.service`, and speak HTTP/1.1.
    #[must_use]
    pub fn mesh(connector: Connector, settings: &CheckSettings, check: HttpCheck) -> Self {
        let client = Client::builder(TokioExecutor::new()).build(connector);
        Self::new(HttpClient::Mesh(client), settings, check)
    }

    fn new(client: HttpClient, settings: &CheckSettings, check: HttpCheck) -> Self {
        let prefix = check.path_prefix.trim_end_matches('/');
        let target = format!("http://{}:{}{prefix}", settings.host(), settings.port);
        Self { client, target, check }
    }

    async fn ask(&self, request: CheckRequest<'_>) -> Result<CheckAnswer, CheckError> {
        let check = self.encode(&request)?;
        let sent = match &self.client {
            HttpClient::Plain(client) => client.request(check).await,
            HttpClient::Mesh(client) => client.request(check).await,
        };
        self.read(sent.map_err(|error| failure(&error))?).await
    }

    /// The check request ([SEM-EXT-10]).
    fn encode(&self, request: &CheckRequest<'_>) -> Result<Request<Full<Bytes>>, CheckError> {
        if request.method() == Method::CONNECT {
            return Err(CheckError::Encoding("CONNECT has no path"));
        }
        let body = request.body().map(|body| body.bytes.clone()).unwrap_or_default();
        let mut check = Request::new(Full::new(body.clone()));
        request.method().clone_into(check.method_mut());
        let uri = format!("{}{}", self.target, request.path_and_query());
        *check.uri_mut() =
            uri.parse().map_err(|_detail| CheckError::Encoding("the path makes no URI"))?;
        let headers = check.headers_mut();
        let fixed =
            |name: &HeaderName| HOP_BY_HOP.contains(name) || [HOST, CONTENT_LENGTH].contains(name);
        for (name, value) in request.headers() {
            let sent = *name == AUTHORIZATION || self.check.request_headers.matches(name);
            // Whether the body is cut off is for us to say.
            if sent && !fixed(name) && *name != PARTIAL_BODY {
                headers.append(name, value.clone());
            }
        }
        let host = HeaderValue::from_str(request.authority());
        headers.insert(HOST, host.map_err(|_detail| CheckError::Encoding("the host"))?);
        headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
        headers.insert(INTERNAL, HeaderValue::from_static("true"));
        let timeout = u64::try_from(request.timeout().as_millis()).unwrap_or(u64::MAX);
        headers.insert(EXPECTED_TIME, HeaderValue::from(timeout));
        if let Some(body) = request.body() {
            let partial = if body.truncated { "true" } else { "false" };
            headers.insert(PARTIAL_BODY, HeaderValue::from_static(partial));
        }
        for (name, value) in self.check.additional_headers.iter().filter(|(name, _)| !fixed(name)) {
            headers.insert(name, value.clone());
        }
        Ok(check)
    }

    /// What the answer means ([SEM-EXT-11]).
    async fn read(&self, response: Response<Incoming>) -> Result<CheckAnswer, CheckError> {
        let (parts, body) = response.into_parts();
        if parts.status.is_server_error() {
            return Err(CheckError::Status(parts.status));
        }
        if parts.status == StatusCode::OK {
            return self.allow(&parts.headers).map(CheckAnswer::Allow);
        }
        if parts.status.is_informational() {
            return Err(CheckError::Answer("an informational status"));
        }
        let body = Limited::new(body, MAX_ANSWER).collect().await.map_err(|error| {
            if error.is::<hyper::Error>() {
                CheckError::Connection(error)
            } else {
                CheckError::Answer("the body is too long")
            }
        })?;
        let kept = &self.check.to_downstream_on_deny;
        let always = [WWW_AUTHENTICATE, LOCATION];
        let goes_on = |name: &HeaderName| {
            let fixed = HOP_BY_HOP.contains(name) || [HOST, CONTENT_LENGTH].contains(name);
            !fixed && (kept.is_empty() || kept.matches(name) || always.contains(name))
        };
        let headers = parts.headers.iter().filter(|(name, _)| goes_on(name));
        let mut denial = Denial::new(parts.status, body.to_bytes());
        denial.headers = headers.map(owned).collect();
        Ok(CheckAnswer::Deny(denial))
    }

    fn allow(&self, answer: &HeaderMap) -> Result<RequestChanges, CheckError> {
        let listed = |list: &mesh_authz::HeaderList| -> Vec<_> {
            let free = answer.iter().filter(|(name, _)| !HOP_BY_HOP.contains(name));
            free.filter(|(name, _)| list.matches(name)).map(owned).collect()
        };
        let mut to_remove = Vec::new();
        for line in answer.get_all(HEADERS_TO_REMOVE) {
            for name in line.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
                if name.is_empty() || name.starts_with(b":") {
                    continue;
                }
                let name = HeaderName::from_bytes(name);
                to_remove.push(name.map_err(|_detail| CheckError::Answer("a header to remove"))?);
            }
        }
        Ok(RequestChanges {
            headers_to_set: listed(&self.check.to_upstream_on_allow),
            headers_to_remove: to_remove,
            response_headers: listed(&self.check.to_downstream_on_allow),
            ..RequestChanges::default()
        })
    }
}

fn owned((name, value): (&HeaderName, &HeaderValue)) -> (HeaderName, HeaderValue) {
    (name.clone(), value.clone())
}

/// A lost connection is an outage, an answer that is no HTTP is not.
pub(super) fn failure(error: &ClientError) -> CheckError {
    let mut source = error.source();
    while let Some(cause) = source {
        if cause.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_parse) {
            return CheckError::Answer("it is no HTTP");
        }
        source = cause.source();
    }
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    CheckError::Connection(text.into())
}

impl Authorizer for HttpAuthorizer {
    fn check<'r>(&'r self, request: CheckRequest<'r>) -> CheckFuture<'r> {
        Box::pin(self.ask(request))
    }
}

impl fmt::Debug for HttpAuthorizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpAuthorizer").field("target", &self.target).finish_non_exhaustive()
    }
}
