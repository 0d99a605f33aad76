//! `envoyExtAuthzGrpc`, against a server made with tonic. The messages are written down a second
//! time here: two readings of the proto must agree.

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use mesh_tower::authz::{CheckSettings, Semantics};
use mesh_tower::{ExtensionProviders, GrpcAuthorizer, Provider};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tonic::body::Body;
use tonic::{Code, Status};

use crate::world::{self, World, custom, nobody};

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct CheckRequest {
    #[prost(message, optional, tag = "1")]
    attributes: Option<Attributes>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Attributes {
    #[prost(message, optional, tag = "1")]
    source: Option<Peer>,
    #[prost(message, optional, tag = "2")]
    destination: Option<Peer>,
    #[prost(message, optional, tag = "4")]
    request: Option<HttpAttributes>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Peer {
    #[prost(message, optional, tag = "1")]
    address: Option<Address>,
    #[prost(string, tag = "4")]
    principal: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Address {
    #[prost(message, optional, tag = "1")]
    socket_address: Option<Socket>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Socket {
    #[prost(string, tag = "2")]
    address: String,
    #[prost(uint32, tag = "3")]
    port: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct HttpAttributes {
    #[prost(message, optional, tag = "2")]
    http: Option<Http>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Http {
    #[prost(string, tag = "2")]
    method: String,
    #[prost(map = "string, string", tag = "3")]
    headers: HashMap<String, String>,
    #[prost(string, tag = "4")]
    path: String,
    #[prost(string, tag = "5")]
    host: String,
    #[prost(string, tag = "6")]
    scheme: String,
    #[prost(int64, tag = "9")]
    size: i64,
    #[prost(string, tag = "10")]
    protocol: String,
    #[prost(string, tag = "11")]
    body: String,
    #[prost(bytes = "vec", tag = "12")]
    raw_body: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct CheckResponse {
    #[prost(message, optional, tag = "1")]
    pub(crate) status: Option<RpcStatus>,
    #[prost(message, optional, tag = "2")]
    pub(crate) denied: Option<Denied>,
    #[prost(message, optional, tag = "3")]
    pub(crate) ok: Option<OkResponse>,
    #[prost(message, optional, tag = "4")]
    pub(crate) metadata: Option<prost_types::Struct>,
    #[prost(message, optional, tag = "5")]
    pub(crate) error: Option<Denied>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct RpcStatus {
    #[prost(int32, tag = "1")]
    code: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Denied {
    #[prost(message, optional, tag = "1")]
    status: Option<RpcStatus>,
    #[prost(message, repeated, tag = "2")]
    headers: Vec<HeaderOption>,
    #[prost(string, tag = "3")]
    body: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct OkResponse {
    #[prost(message, repeated, tag = "2")]
    headers: Vec<HeaderOption>,
    #[prost(string, repeated, tag = "5")]
    remove: Vec<String>,
    #[prost(message, repeated, tag = "6")]
    response_headers: Vec<HeaderOption>,
    #[prost(message, repeated, tag = "7")]
    query_set: Vec<Header>,
    #[prost(string, repeated, tag = "8")]
    query_remove: Vec<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct HeaderOption {
    #[prost(message, optional, tag = "1")]
    header: Option<Header>,
    #[prost(message, optional, tag = "2")]
    append: Option<Truth>,
    #[prost(int32, tag = "3")]
    append_action: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Truth {
    #[prost(bool, tag = "1")]
    value: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Header {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(string, tag = "2")]
    value: String,
}

fn header(key: &str, value: &str) -> HeaderOption {
    let header = Header { key: key.to_owned(), value: value.to_owned() };
    HeaderOption { header: Some(header), append: None, append_action: 0 }
}

pub(crate) fn code(code: i32) -> CheckResponse {
    CheckResponse { status: Some(RpcStatus { code }), ..CheckResponse::default() }
}

pub(crate) fn denied(status: i32, body: &str, headers: Vec<HeaderOption>) -> Denied {
    Denied { status: Some(RpcStatus { code: status }), headers, body: body.to_owned() }
}

#[derive(Clone, Debug)]
pub(crate) enum Act {
    Answer(Box<CheckResponse>),
    Fail(Code),
    Wait,
    /// Bytes that are no message.
    Garbage,
}

#[derive(Clone)]
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    acts: Arc<Mutex<VecDeque<Act>>>,
    checks: Arc<Mutex<Vec<CheckRequest>>>,
}

impl Server {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = Self { address, acts: Arc::default(), checks: Arc::default() };
        let accepting = server.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let server = accepting.clone();
                tokio::spawn(async move {
                    let service = service_fn(move |request| server.clone().serve(request));
                    let connection = auto::Builder::new(TokioExecutor::new());
                    drop(connection.serve_connection(TokioIo::new(stream), service).await);
                });
            }
        });
        server
    }

    async fn serve(self, request: Request<Incoming>) -> Result<http::Response<Body>, Infallible> {
        assert_eq!(request.uri().path(), "/envoy.service.auth.v3.Authorization/Check");
        let garbage = matches!(self.acts.lock().unwrap().front(), Some(Act::Garbage));
        if garbage {
            self.acts.lock().unwrap().pop_front();
            let frame = bytes::Bytes::from_static(b"\0\0\0\0\x02\xff\xff");
            let response = http::Response::builder().header("content-type", "application/grpc");
            return Ok(response.body(Body::new(http_body_util::Full::new(frame))).unwrap());
        }
        let codec = tonic_prost::ProstCodec::<CheckResponse, CheckRequest>::default();
        Ok(tonic::server::Grpc::new(codec).unary(self, request).await)
    }

    pub(crate) fn next(&self, act: Act) {
        self.acts.lock().unwrap().push_back(act);
    }

    pub(crate) fn answer(&self, answer: CheckResponse) {
        self.next(Act::Answer(Box::new(answer)));
    }

    /// How often it was asked since the last look, and whether each time about a connection
    /// alone, from and to an address.
    pub(crate) fn connections(&self) -> Vec<bool> {
        let checks = std::mem::take(&mut *self.checks.lock().unwrap());
        let ends = checks.into_iter().map(|check| check.attributes.unwrap());
        ends.map(|ends| {
            let address = |peer: Option<Peer>| peer.unwrap().address.unwrap().socket_address;
            let (from, to) = (address(ends.source).unwrap(), address(ends.destination).unwrap());
            ends.request.is_none()
                && (from.address.as_str(), to.address.as_str()) == ("127.0.0.1", "127.0.0.1")
                && to.port != 0
        })
        .collect()
    }

    fn checked(&self) -> Http {
        let mut checks = self.checks.lock().unwrap();
        let check = checks.pop().unwrap();
        check.attributes.unwrap().request.unwrap().http.unwrap()
    }
}

impl tonic::server::UnaryService<CheckRequest> for Server {
    type Response = CheckResponse;
    type Future =
        Pin<Box<dyn Future<Output = Result<tonic::Response<CheckResponse>, Status>> + Send>>;

    fn call(&mut self, request: tonic::Request<CheckRequest>) -> Self::Future {
        self.checks.lock().unwrap().push(request.into_inner());
        let act = self.acts.lock().unwrap().pop_front();
        Box::pin(async move {
            match act.unwrap_or(Act::Answer(Box::new(code(0)))) {
                Act::Answer(answer) => Ok(tonic::Response::new(*answer)),
                Act::Fail(code) => Err(Status::new(code, "failed")),
                Act::Wait | Act::Garbage => {
                    tokio::time::sleep(Duration::from_secs(30)).await;
                    Ok(tonic::Response::new(code(0)))
                }
            }
        })
    }
}

async fn world(address: SocketAddr, more: Value, semantics: Semantics) -> World {
    World::asking(world::entry("ext", "envoyExtAuthzGrpc", address, &more), semantics).await
}

/// What each answer means ([SEM-EXT-12] and what was measured with Envoy 1.40.0).
#[tokio::test]
async fn sem_ext_12_what_each_answer_means() {
    let server = Server::start().await;
    let shop = world(server.address, json!({}), Semantics::strict()).await;
    let denial = || denied(418, "teapot", vec![header("x-why", "a"), header("x-why", "b")]);
    let ok = OkResponse::default;
    for (what, answer, status, body) in [
        ("an empty message", CheckResponse::default(), 200, "served"),
        ("status OK", code(0), 200, "served"),
        ("OK with ok_response", CheckResponse { ok: Some(ok()), ..code(0) }, 200, "served"),
        ("OK with a denial", CheckResponse { denied: Some(denial()), ..code(0) }, 200, "served"),
        ("a code alone", code(7), 403, ""),
        ("a code with ok_response", CheckResponse { ok: Some(ok()), ..code(7) }, 403, ""),
        ("a denial", CheckResponse { denied: Some(denial()), ..code(7) }, 418, "teapot"),
        (
            "a denial with 200",
            CheckResponse { denied: Some(denied(200, "fine", vec![])), ..code(16) },
            200,
            "fine",
        ),
        (
            "a denial without a status",
            CheckResponse { denied: Some(denied(0, "no", vec![])), ..code(7) },
            403,
            "no",
        ),
        (
            "an error response",
            CheckResponse { error: Some(denied(503, "broken", vec![])), ..code(13) },
            503,
            "broken",
        ),
        (
            "a status that is none",
            CheckResponse { denied: Some(denied(99, "", vec![])), ..code(7) },
            403,
            "",
        ),
        (
            "a header that is none",
            CheckResponse { denied: Some(denied(401, "b", vec![header("a b", "c")])), ..code(7) },
            403,
            "",
        ),
    ] {
        server.answer(answer);
        let reply = shop.get("/c").await;
        assert_eq!((reply.status, reply.body.as_str()), (status, body), "{what}");
        assert_eq!(shop.served().is_some(), body == "served", "{what}");
        if what == "a denial" {
            assert_eq!(reply.lines("x-why"), ["a", "b"]);
            assert_eq!(reply.lines("content-type"), ["text/plain"]);
        }
    }
}

/// Failures: every gRPC status, a timeout, garbage, nobody there.
#[tokio::test]
async fn sem_ext_13_failures_refuse_unless_told_otherwise() {
    let server = Server::start().await;
    for (semantics, fails_open) in [(Semantics::strict(), 403), (Semantics::istio(), 200)] {
        let closed = world(server.address, json!({"statusOnError": "503"}), semantics).await;
        let open = world(server.address, json!({"failOpen": true}), semantics).await;
        for rpc in
            [Code::PermissionDenied, Code::Unavailable, Code::Internal, Code::Unauthenticated]
        {
            server.next(Act::Fail(rpc));
            let reply = closed.get("/c").await;
            assert_eq!((reply.status, reply.body.as_str()), (503, ""), "{rpc:?}");
            server.next(Act::Fail(rpc));
            assert_eq!(open.get("/c").await.status, fails_open, "{rpc:?}");
        }
        server.next(Act::Garbage);
        assert_eq!(closed.get("/c").await.status, 503, "garbage");
        server.next(Act::Garbage);
        assert_eq!(open.get("/c").await.status, fails_open, "garbage");
        server.next(Act::Wait);
        assert_eq!(closed.get("/c").await.status, 503, "a timeout");
        server.next(Act::Wait);
        assert_eq!(open.get("/c").await.status, 200, "a timeout");
    }
    let down = nobody().await;
    assert_eq!(world(down, json!({}), Semantics::strict()).await.get("/c").await.status, 403);
    let open = world(down, json!({"failOpen": true}), Semantics::strict()).await;
    assert_eq!(open.get("/c").await.status, 200);
}

/// Every line of a repeated header is shown, not the last alone (CVE-2021-32777).
#[tokio::test]
async fn sem_adv_26_every_line_is_in_the_check() {
    let server = Server::start().await;
    let shop = world(server.address, json!({}), Semantics::istio()).await;
    let request = Request::get("/c").header("x-role", "admin").header("x-role", "user");
    assert_eq!(shop.send(request).await.status, 200);
    assert_eq!(server.checked().headers.get("x-role").map(String::as_str), Some("admin,user"));
}

/// A value that is no UTF-8 is shown in another form: it is no failure of the authorizer, which
/// `failOpen` would forgive (CVE-2023-27488).
#[tokio::test]
async fn sem_adv_27_a_value_that_is_no_text_is_asked_about_too() {
    let server = Server::start().await;
    for semantics in [Semantics::istio(), Semantics::strict()] {
        let shop = world(server.address, json!({"failOpen": true}), semantics).await;
        for value in [&b"\xff\xfeadmin"[..], b"adm\xc3", b"\x80"] {
            // The authorizer says no.
            server.answer(code(7));
            let value = http::HeaderValue::from_bytes(value).unwrap();
            let reply = shop.send(Request::get("/c").header("x-role", value.clone())).await;
            assert_eq!(reply.status, 403, "{value:?}");
            assert!(shop.served().is_none(), "{value:?}");
            assert!(server.checked().headers.contains_key("x-role"), "{value:?}");
        }
    }
}

/// What Envoy sends.
#[tokio::test]
async fn sem_ext_12_the_check_is_envoys() {
    let server = Server::start().await;
    let body =
        json!({"includeRequestBodyInCheck": {"maxRequestBytes": 4, "allowPartialMessage": true}});
    let shop = world(server.address, body, Semantics::strict()).await;
    let request = Request::post("/c/../c?q=1")
        .header("x-two", "1")
        .header("x-two", "2")
        .header("authorization", "Bearer t")
        .header("x-envoy-auth-partial-body", "false");
    shop.send_body(request, &b"\xff{}xy"[..]).await;
    let check = server.checked();
    assert_eq!(
        (check.method.as_str(), check.path.as_str(), check.host.as_str(), check.scheme.as_str()),
        ("POST", "/c?q=1", "shop.example", "http")
    );
    assert_eq!((check.protocol.as_str(), check.size, check.body.as_str()), ("HTTP/1.1", 4, "!{}x"));
    for (name, value) in [
        (":method", "POST"),
        (":path", "/c?q=1"),
        (":authority", "shop.example"),
        (":scheme", "http"),
        ("x-two", "1,2"),
        ("authorization", "Bearer t"),
        ("x-envoy-auth-partial-body", "true"),
    ] {
        assert_eq!(check.headers.get(name).map(String::as_str), Some(value), "{name}");
    }
    assert!(!check.headers.contains_key("host"));

    let body = json!({"includeRequestBodyInCheck": {"maxRequestBytes": 9, "packAsBytes": true}});
    let shop = world(server.address, body, Semantics::strict()).await;
    shop.send_body(Request::post("/c"), &b"\xff{}xy"[..]).await;
    let check = server.checked();
    assert_eq!((check.raw_body.as_slice(), check.body.as_str()), (&b"\xff{}xy"[..], ""));
    shop.get("/c").await;
    let source = server.checks.lock().unwrap().pop().unwrap().attributes.unwrap();
    assert_eq!(
        source.source.unwrap().address.unwrap().socket_address.unwrap().address,
        "127.0.0.1"
    );
    assert_ne!(source.destination.unwrap().address.unwrap().socket_address.unwrap().port, 0);
}

/// Headers and query parameters of an allowing answer.
#[tokio::test]
async fn sem_ext_12_allowing_answers_change_the_request() {
    let server = Server::start().await;
    let shop = world(server.address, json!({}), Semantics::strict()).await;
    let mut joined = header("x-join", "2");
    joined.append = Some(Truth { value: true });
    let mut appended = header("x-set", "new");
    appended.append_action = 1;
    let query = Header { key: "q".to_owned(), value: "a b".to_owned() };
    server.answer(CheckResponse {
        ok: Some(OkResponse {
            headers: vec![header("x-set", "first"), appended, joined, header(":path", "/evil")],
            remove: vec!["authorization".to_owned(), "host".to_owned(), ":path".to_owned()],
            response_headers: vec![header("x-down", "d")],
            query_set: vec![query],
            query_remove: vec!["drop".to_owned()],
        }),
        ..code(0)
    });
    let request = Request::get("/c?drop=1&keep=2")
        .header("x-set", "client")
        .header("x-join", "1")
        .header("authorization", "Bearer t");
    let reply = shop.send(request).await;
    assert_eq!((reply.status, reply.lines("x-down")), (200, vec!["d"]));
    let served = shop.served().unwrap();
    assert_eq!(served.target, "/c?keep=2&q=a%20b");
    assert_eq!(
        (&served.headers["x-set"], &served.headers["x-join"]),
        (&"new".parse().unwrap(), &"1,2".parse().unwrap())
    );
    assert_eq!(served.headers["host"], "shop.example");
    assert!(!served.headers.contains_key("authorization"));
}

/// The strict option for answers that a half-written server gives.
#[tokio::test]
async fn strict_answers_refuse_what_contradicts_itself() {
    let server = Server::start().await;
    let settings = CheckSettings::new(server.address.ip().to_string(), server.address.port());
    let authorizer = GrpcAuthorizer::plain(&settings).unwrap().with_strict_answers();
    let providers = ExtensionProviders::default().with("ext", Provider::new(authorizer));
    let shop = World::start(providers, &[custom("ext")], Semantics::strict()).await;
    server.answer(CheckResponse::default());
    assert_eq!(shop.get("/c").await.status, 403);
    server.answer(CheckResponse { denied: Some(denied(401, "", vec![])), ..code(0) });
    assert_eq!(shop.get("/c").await.status, 403);
    server.answer(code(0));
    assert_eq!(shop.get("/c").await.status, 200);
}
