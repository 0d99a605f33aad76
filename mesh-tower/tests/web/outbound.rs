//! What a client of the mesh reports of its requests, over real sockets: Istio's metrics as a source
//! reports them, and spans in the caller's trace.

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Path;
use axum::routing::{get as get_route, post};
use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Frame;
use mesh_ca::Authority;
use mesh_tower::authn::peer::{ClientProtocol, ExpectedServer};
use mesh_tower::identity::{MeshSettings, Workload};
use mesh_tower::{
    ClientBody, ClientError, ConnectError, Connector, Mesh, MeshClient, MetricLabels, Policies,
    TraceContext,
};
use tower::ServiceExt as _;

use crate::metrics::until;
use crate::support::{authority, id, svid, trust};
use crate::trace::{PARENT, Spans};
use crate::{HOUR, bind};

type Client = MeshClient<Full<Bytes>>;

const HOST: &str = "server.shop.svc.cluster.local";

const POLICY: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-admin, namespace: shop}
spec:
  action: DENY
  rules: [{to: [{operation: {paths: [/admin]}}]}]
";

fn app() -> Router {
    let breaking = || async {
        let begin = futures_util::stream::iter([Ok(Bytes::from_static(b"ab"))]);
        let end = futures_util::stream::once(async {
            // What was sent before must have left.
            tokio::time::sleep(Duration::from_millis(50)).await;
            Err(std::io::Error::other("broken"))
        });
        Body::from_stream(futures_util::StreamExt::chain(begin, end))
    };
    let trace = |headers: HeaderMap| async move {
        let of = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("none");
        format!("{} {}", of("traceparent"), of("tracestate"))
    };
    Router::new()
        .route("/hello", get_route(|| async { "hello" }))
        .route("/admin", get_route(|| async { "never" }))
        .route("/echo", post(|body: Body| async { Response::new(body) }))
        .route("/trace", get_route(trace))
        .route("/Shop/List", post(grpc))
        .route("/never", get_route(std::future::pending::<String>))
        .route("/breaks", get_route(breaking))
        .route("/endless", get_route(endless))
        .route("/code/{code}", get_route(|Path(code): Path<u16>| async move { status(code) }))
}

fn status(code: u16) -> http::StatusCode {
    http::StatusCode::from_u16(code).unwrap()
}

async fn endless() -> Body {
    let ticks = futures_util::stream::unfold((), |()| async {
        tokio::time::sleep(Duration::from_millis(5)).await;
        Some((Ok::<_, std::io::Error>(Bytes::from_static(b"tick")), ()))
    });
    Body::from_stream(ticks)
}

/// Two messages and a status in the trailers.
async fn grpc(body: Body) -> Response<Body> {
    body.collect().await.unwrap();
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", "7".parse().unwrap());
    let frames = [
        Frame::data(Bytes::from_static(b"\0\0\0\0\x01a\0\0\0\0\x02bc")),
        Frame::trailers(trailers),
    ];
    let frames = futures_util::stream::iter(frames.map(Ok::<_, std::io::Error>));
    let body = Body::new(StreamBody::new(frames));
    Response::builder().header("content-type", "application/grpc").body(body).unwrap()
}

async fn serve(authority: &Authority) -> SocketAddr {
    let mesh = crate::mesh(authority, POLICY, |builder| builder);
    let (listener, address) = bind().await;
    tokio::spawn(async move { mesh.serve(listener, app(), std::future::pending()).await });
    address
}

/// The workload `web`, which only asks.
fn web(authority: &Authority, labels: MetricLabels) -> Mesh {
    let workload = Workload::new("shop").with_label("app", "web").with_label("version", "v2");
    Mesh::builder(workload, MeshSettings::new("cluster.local".parse().unwrap()))
        .metric_labels(labels)
        .build(svid(authority, "web", HOUR), trust(&[authority]), Policies::none())
        .unwrap()
}

fn connector(mesh: &Mesh, address: SocketAddr) -> Connector {
    Connector::new(mesh.clone()).service(HOST, address, &ExpectedServer::exact(id("server")))
}

fn get(path: &str) -> Request<Full<Bytes>> {
    Request::get(format!("https://{HOST}{path}")).body(Full::default()).unwrap()
}

async fn ask(
    client: &Client,
    request: Request<Full<Bytes>>,
) -> Result<Response<ClientBody>, ClientError> {
    client.clone().oneshot(request).await
}

async fn read(client: &Client, request: Request<Full<Bytes>>) -> (u16, String) {
    let response = ask(client, request).await.unwrap();
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

/// The last labels of a series.
fn labels(code: u16, flag: &str) -> String {
    format!(
        "request_protocol=\"http\",response_code=\"{code}\",grpc_response_status=\"\",\
         response_flags=\"{flag}\",connection_security_policy=\"unknown\"}}"
    )
}

/// Whose requests to whom, as far as labels tell; `server` is nothing when nobody was verified.
fn between(server: Option<&str>, service: (&str, &str, &str)) -> String {
    let (host, name, namespace) = service;
    let unknown = "unknown".to_owned();
    let principal = |account: &str| format!("spiffe://cluster.local/ns/shop/sa/{account}");
    let own = server.map_or(unknown.clone(), |_| principal("web"));
    let peer = server.map_or(unknown, principal);
    let place = if server.is_some() { "shop" } else { "unknown" };
    format!(
        "{{reporter=\"source\",source_workload=\"web-v2\",source_canonical_service=\"web\",\
         source_canonical_revision=\"v2\",source_workload_namespace=\"shop\",\
         source_principal=\"{own}\",source_app=\"web\",source_version=\"v2\",\
         source_cluster=\"Kubernetes\",destination_workload=\"unknown\",\
         destination_workload_namespace=\"{place}\",destination_principal=\"{peer}\",\
         destination_app=\"unknown\",destination_version=\"unknown\",\
         destination_service=\"{host}\",destination_canonical_service=\"unknown\",\
         destination_canonical_revision=\"latest\",destination_service_name=\"{name}\",\
         destination_service_namespace=\"{namespace}\",destination_cluster=\"unknown\","
    )
}

fn names() -> MetricLabels {
    MetricLabels::default().workload("web-v2").cluster("Kubernetes")
}

/// The value of one line of a scrape.
fn value(mesh: &Mesh, name: &str, labels: &str) -> String {
    let text = mesh.telemetry().prometheus();
    let line = text.lines().find(|line| line.starts_with(name) && line.contains(labels));
    line.and_then(|line| line.rsplit(' ').next()).unwrap_or("none").to_owned()
}

/// Answers of every kind, in both versions of HTTP, with the labels of an Istio client's sidecar.
#[tokio::test]
async fn a_client_counts_its_requests_by_istios_labels() {
    let authority = authority();
    let address = serve(&authority).await;
    let known = between(Some("server"), (HOST, "server", "shop"));
    for protocol in [ClientProtocol::Http1, ClientProtocol::Http2] {
        let mesh = web(&authority, names());
        let client = connector(&mesh, address).protocol(protocol).client();
        assert_eq!(read(&client, get("/hello")).await, (200, "hello".to_owned()));
        assert_eq!(read(&client, get("/hello")).await.0, 200);
        assert_eq!(read(&client, get("/admin")).await.0, 403);
        assert_eq!(read(&client, get("/nowhere")).await.0, 404);
        // Nothing is waited for: the body's end is the request's.
        for (code, count) in [(200, 2), (403, 1), (404, 1)] {
            let line = format!("istio_requests_total{known}{} {count}\n", labels(code, "-"));
            assert!(mesh.telemetry().prometheus().contains(&line), "{protocol:?}: {line}");
        }
        assert_eq!(value(&mesh, "istio_response_bytes_sum", &labels(200, "-")), "10");
        assert_eq!(value(&mesh, "istio_response_bytes_sum", &labels(403, "-")), "19");
        let count = "istio_request_duration_milliseconds_count";
        assert_eq!(value(&mesh, count, &labels(200, "-")), "2");
        assert!(mesh.telemetry().requests().is_empty(), "nobody has asked us");

        let echo = Request::post(format!("https://{HOST}/echo"));
        let echo = echo.body(Full::new(Bytes::from_static(b"seven b"))).unwrap();
        assert_eq!(read(&client, echo).await.1, "seven b");
        assert_eq!(value(&mesh, "istio_request_bytes_sum", &labels(200, "-")), "7");
        assert_eq!(value(&mesh, "istio_response_bytes_sum", &labels(200, "-")), "17");

        // An answer without a body is over with its head.
        let bodiless =
            Request::head(format!("https://{HOST}/hello")).body(Full::default()).unwrap();
        let held = ask(&client, bodiless).await.unwrap();
        assert_eq!(value(&mesh, "istio_requests_total", &labels(200, "-")), "4");
        drop(held);
        assert_eq!(value(&mesh, "istio_requests_total", &labels(200, "-")), "4");
    }
}

/// No connection, another server than the one expected, and a host that nobody has declared: the
/// service is named as far as the program has named it, and nobody is named who was not verified.
#[tokio::test]
async fn what_has_no_answer_is_counted_as_a_sidecar_would() {
    let authority = authority();
    let address = serve(&authority).await;
    let mesh = web(&authority, names());
    let (closed, nobody) = bind().await;
    drop(closed);
    let expected = ExpectedServer::exact(id("server"));
    let other = ExpectedServer::exact(id("other"));
    let client: Client = Connector::new(mesh.clone())
        .service("closed.shop", nobody, &expected)
        .service("other", address, &other)
        .client();
    let fail = async |host: &str| {
        let request = Request::get(format!("https://{host}/")).body(Full::default()).unwrap();
        ask(&client, request).await.unwrap_err()
    };
    let error = fail("closed.shop").await;
    assert!(matches!(error.connect(), Some(ConnectError::Connect(_))), "{error:?}");
    let error = fail("other").await;
    assert!(matches!(error.connect(), Some(ConnectError::Server(_))), "{error:?}");
    let source = std::error::Error::source(&error).unwrap();
    assert!(source.to_string().contains("not verified"), "{source}");
    let error = fail("evil.example").await;
    assert!(matches!(error.connect(), Some(ConnectError::UnknownService)), "{error:?}");
    for (service, code, flag) in [
        (("closed.shop", "closed", "shop"), 503, "UF"),
        (("other", "other", "unknown"), 503, "UF"),
        (("unknown", "unknown", "unknown"), 502, "NR"),
    ] {
        let line =
            format!("istio_requests_total{}{} 1\n", between(None, service), labels(code, flag));
        let text = mesh.telemetry().prometheus();
        assert!(text.contains(&line), "{line} in\n{text}");
    }
    assert!(!mesh.telemetry().prometheus().contains("evil"));
}

/// An answer that breaks off, one that the program does not read to its end, and one that it does not
/// wait for.
#[tokio::test]
async fn what_ends_early_is_told_apart() {
    let authority = authority();
    let address = serve(&authority).await;
    let known = between(Some("server"), (HOST, "server", "shop"));
    for protocol in [ClientProtocol::Http1, ClientProtocol::Http2] {
        let mesh = web(&authority, names());
        let client = connector(&mesh, address).protocol(protocol).client();
        let response = ask(&client, get("/breaks")).await.unwrap();
        response.into_body().collect().await.unwrap_err();
        let mut body = ask(&client, get("/endless")).await.unwrap().into_body();
        body.frame().await.unwrap().unwrap();
        drop(body);
        let asking = ask(&client, get("/never"));
        tokio::time::timeout(Duration::from_millis(300), asking).await.unwrap_err();
        for (code, flag) in [(200, "UC"), (200, "DC"), (0, "DC")] {
            let line = format!("istio_requests_total{known}{} 1\n", labels(code, flag));
            let text = mesh.telemetry().prometheus();
            assert!(text.contains(&line), "{protocol:?}: {line} in\n{text}");
        }
        assert_eq!(value(&mesh, "istio_response_bytes_sum", &labels(200, "UC")), "2");
        // The pool goes on.
        assert_eq!(read(&client, get("/hello")).await.0, 200);
    }
}

/// gRPC: protocol, status from the trailers, and messages in both directions.
#[tokio::test]
async fn a_client_counts_grpc_with_its_status_and_messages() {
    let authority = authority();
    let mesh = web(&authority, names());
    let address = serve(&authority).await;
    let client = connector(&mesh, address).protocol(ClientProtocol::Http2).client();
    let request = Request::post(format!("https://{HOST}/Shop/List"))
        .header("content-type", "application/grpc+proto")
        .body(Full::new(Bytes::from_static(b"\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01x")))
        .unwrap();
    let response = ask(&client, request).await.unwrap();
    let collected = response.into_body().collect().await.unwrap();
    assert_eq!(collected.trailers().unwrap()["grpc-status"], "7");
    let labels = "request_protocol=\"grpc\",response_code=\"200\",grpc_response_status=\"7\",\
                  response_flags=\"-\",connection_security_policy=\"unknown\"}";
    for (name, want) in [
        ("istio_requests_total", "1"),
        ("istio_request_messages_total", "3"),
        ("istio_response_messages_total", "2"),
        ("istio_request_bytes_sum", "16"),
        ("istio_response_bytes_sum", "13"),
    ] {
        assert_eq!(value(&mesh, name, labels), want, "{name}");
    }
}

/// [SEC-HTTP-12] Services beyond the bound are counted together, and callers do not crowd them out.
#[tokio::test]
async fn sec_http_12_a_clients_labels_are_bounded() {
    let authority = authority();
    let mesh = web(&authority, names().peers(2));
    let address = serve(&authority).await;
    for at in 0..5 {
        let host = format!("service{at}");
        let expected = ExpectedServer::exact(id("server"));
        let connector = Connector::new(mesh.clone()).service(&host, address, &expected);
        let request = Request::get(format!("https://{host}/evilpath{at}?evil=1"))
            .header("user-agent", "evil")
            .body(Full::default())
            .unwrap();
        assert_eq!(read(&connector.client(), request).await.0, 404);
    }
    let text = mesh.telemetry().prometheus();
    assert!(!text.contains("evil"), "{text}");
    let lines: Vec<&str> =
        text.lines().filter(|line| line.starts_with("istio_requests_total{")).collect();
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert!(lines.iter().any(|line| line.contains("_service=\"unknown\"") && line.ends_with(" 3")));

    // A server that answers with every code there is.
    let mesh = web(&authority, names());
    let client: Client = connector(&mesh, address).client();
    for code in 300..600 {
        assert_eq!(read(&client, get(&format!("/code/{code}"))).await.0, code);
    }
    let text = mesh.telemetry().prometheus();
    let of = |line: &&str| line.starts_with("istio_requests_total{");
    let count = |line: &str| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap();
    assert_eq!(text.lines().filter(of).count(), 129, "128 codes, and hundreds from then on");
    assert_eq!(text.lines().filter(of).map(count).sum::<u64>(), 300, "all are counted");
}

/// One span for each sampled request, in the trace of the context that the program gives, by the
/// request's extensions or by its header; and the server is told of it.
#[tokio::test]
async fn requests_of_a_client_go_on_in_their_trace() {
    let spans = Spans::of("mesh_tower::client");
    let guard = tracing::subscriber::set_default(spans.clone());
    let authority = authority();
    let mesh = web(&authority, names());
    let address = serve(&authority).await;
    let client: Client = connector(&mesh, address).client();
    let parent = |flags: &str| {
        let mut headers = HeaderMap::new();
        headers.insert("traceparent", PARENT.replace("-01", flags).parse().unwrap());
        headers.insert("tracestate", "rojo=1".parse().unwrap());
        headers
    };
    let given = |flags: &str| {
        let mut request = get("/trace?access_token=hidden");
        request.extensions_mut().insert(TraceContext::parse(&parent(flags)).unwrap());
        request
    };
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-";
    let written = |flags: &str| {
        let mut request = get("/trace");
        *request.headers_mut() = parent(flags);
        request
    };
    // 1 and 2: a span each, and the trace's state goes on.
    for request in [given("-01"), written("-01")] {
        let (_, told) = read(&client, request).await;
        assert!(told.starts_with(trace) && told.ends_with("-01 rojo=1"), "{told}");
        assert!(!told.starts_with(PARENT), "a span of its own: {told}");
    }
    // Not sampled: no span, and nobody stands between caller and server.
    for request in [given("-00"), written("-00")] {
        let (_, told) = read(&client, request).await;
        assert_eq!(told, PARENT.replace("-01", "-00") + " rojo=1");
    }
    // 3: a trace begins here.
    let (_, fresh) = read(&client, get("/trace")).await;
    assert!(fresh.ends_with("-03 none") && !fresh.starts_with(trace), "{fresh}");
    // 4 and 5: refused by the server, and no server at all.
    assert_eq!(read(&client, get("/admin")).await.0, 403);
    let undeclared = Request::get("https://evil.example/").body(Full::default()).unwrap();
    ask(&client, undeclared).await.unwrap_err();

    let lines = spans.lines();
    for wanted in [
        "1 otel.kind=\"client\"",
        "1 trace_id=\"4bf92f3577b34da6a3ce929d0e0e4736\"",
        "1 parent_span_id=\"00f067aa0ba902b7\"",
        "1 http.request.method=\"GET\"",
        "1 server.address=\"server.shop.svc.cluster.local\"",
        "1 url.path=\"/trace\"",
        "1 http.response.status_code=200",
        "1 mesh.peer=spiffe://cluster.local/ns/shop/sa/server",
        "2 parent_span_id=\"00f067aa0ba902b7\"",
        "4 http.response.status_code=403",
        "4 otel.status_code=\"ERROR\"",
        "5 error.type=\"NR\"",
        "5 otel.status_code=\"ERROR\"",
    ] {
        assert!(lines.lines().any(|line| line == wanted), "{wanted} in\n{lines}");
    }
    assert!(!lines.contains("hidden") && !lines.contains("evil"), "{lines}");
    assert!(!lines.lines().any(|line| line.starts_with("6 ")), "{lines}");
    assert!(
        !lines.contains("3 parent_span_id") && !lines.contains("1 otel.status_code"),
        "{lines}"
    );

    // Nobody traces: what the program has given goes on, and nothing is made up.
    drop(guard);
    assert_eq!(read(&client, given("-01")).await.1, format!("{PARENT} rojo=1"));
    assert_eq!(read(&client, written("-01")).await.1, format!("{PARENT} rojo=1"));
    assert_eq!(read(&client, get("/trace")).await.1, "none none");
    until(&mesh, "istio_requests_total{reporter=\"source\"").await;
}

/// What a handler asks of others is in the trace of the request that it handles, without its doing; and
/// nothing else that the thread does meanwhile is.
#[tokio::test]
async fn a_handlers_requests_are_in_the_trace_of_its_own() {
    let authority = authority();
    let own = web(&authority, names());
    let behind: Client = connector(&own, serve(&authority).await).client();
    let asking = behind.clone();
    let relay = move || {
        let asking = asking.clone();
        async move { read(&asking, get("/trace")).await.1 }
    };
    let mesh = crate::mesh(&authority, POLICY, |builder| builder);
    let (listener, address) = bind().await;
    let app = Router::new().route("/relay", get_route(relay));
    tokio::spawn(async move { mesh.serve(listener, app, std::future::pending()).await });
    let client: Client = connector(&own, address).client();
    let relayed = async || {
        let mut request = get("/relay");
        request.headers_mut().insert("traceparent", PARENT.parse().unwrap());
        let (asked, alone) = tokio::join!(read(&client, request), read(&behind, get("/trace")));
        (asked.1, alone.1)
    };
    assert_eq!(relayed().await, (format!("{PARENT} none"), "none none".to_owned()));
    let spans = Spans::of("mesh_tower::client");
    let _guard = tracing::subscriber::set_default(spans.clone());
    let (asked, alone) = relayed().await;
    assert!(asked.starts_with("00-4bf92f3577b34da6a3ce929d0e0e4736-"), "{asked}");
    assert!(!asked.starts_with(PARENT) && !alone.contains("4bf92f35"), "{asked} {alone}");
    assert_eq!(spans.lines().matches("trace_id=\"4bf92f3577b34da6a3ce929d0e0e4736\"").count(), 2);
}
