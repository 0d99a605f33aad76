//! Metrics by Istio's names and labels, with bounded values.

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::routing::{get as get_route, post};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Frame;
use hyper_util::rt::TokioExecutor;
use mesh_tower::authn::peer::ClientProtocol;
use mesh_tower::identity::{MeshSettings, Workload};
use mesh_tower::{Mesh, MetricLabels, Policies};

use crate::support::{authority, connect, svid, trust};
use crate::{HOUR, ask, ask_plain, bind, connector, done, get};

const READERS: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: readers, namespace: shop}
spec:
  rules:
  - from: [{source: {principals: ['cluster.local/ns/shop/sa/*']}}]
";

pub(crate) fn app() -> Router {
    Router::new()
        .route("/hello", get_route(|| async { "hello" }))
        .route("/echo", post(|body: Body| async { Response::new(body) }))
        .route("/Shop/List", post(answer_grpc))
        .route("/never", get_route(std::future::pending::<String>))
}

/// Two messages and a status in the trailers, after the request's messages have been read.
async fn answer_grpc(body: Body) -> Response<Body> {
    body.collect().await.unwrap();
    let mut trailers = http::HeaderMap::new();
    trailers.insert("grpc-status", "5".parse().unwrap());
    let frames = [
        Frame::data(Bytes::from_static(b"\0\0\0\0\x01a\0\0\0")),
        Frame::data(Bytes::from_static(b"\0\x02bc")),
        Frame::trailers(trailers),
    ];
    let frames = frames.map(Ok::<_, std::io::Error>);
    let body = Body::new(StreamBody::new(futures_util::stream::iter(frames)));
    Response::builder().header("content-type", "application/grpc").body(body).unwrap()
}

fn mesh(authority: &mesh_ca::Authority, labels: MetricLabels) -> Mesh {
    let workload = Workload::new("shop").with_label("app", "cart").with_label("version", "v1");
    Mesh::builder(workload, MeshSettings::new("cluster.local".parse().unwrap()))
        .metric_labels(labels)
        .build(
            svid(authority, "server", HOUR),
            trust(&[authority]),
            Policies::read([("readers.yaml", READERS)], "shop").unwrap(),
        )
        .unwrap()
}

/// Waits until the metrics have a line: a request is counted when its answer has gone.
pub(crate) async fn until(mesh: &Mesh, wanted: &str) {
    for _ in 0..500 {
        if mesh.telemetry().prometheus().contains(wanted) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("no {wanted:?} in\n{}", mesh.telemetry().prometheus());
}

/// The names, labels and their order are those of Istio's dashboards.
#[tokio::test]
async fn requests_are_counted_by_istios_names_and_labels() {
    let authority = authority();
    let labels = MetricLabels::default()
        .workload("cart-v1")
        .service("cart.shop.svc.cluster.local")
        .cluster("Kubernetes");
    let mesh = mesh(&authority, labels);
    let (listener, address) = bind().await;
    let serving = mesh.clone();
    tokio::spawn(async move { serving.serve(listener, app(), std::future::pending()).await });
    let web = connector(&authority, "web", address);
    assert_eq!(ask(&web, done(get("/hello"))).await.0, 200);
    assert_eq!(ask(&web, done(get("/hello"))).await.0, 200);
    assert_eq!(ask_plain(address, done(get("/hello"))).await.0, 403);

    let own = "destination_workload=\"cart-v1\",destination_workload_namespace=\"shop\",\
               destination_principal=\"{PRINCIPAL}\",destination_app=\"cart\",\
               destination_version=\"v1\",destination_service=\"cart.shop.svc.cluster.local\",\
               destination_canonical_service=\"cart\",destination_canonical_revision=\"v1\",\
               destination_service_name=\"cart\",destination_service_namespace=\"shop\",\
               destination_cluster=\"Kubernetes\"";
    let line = |namespace: &str, source: &str, own_id: &str, code: u16, policy: &str| {
        let own = own.replace("{PRINCIPAL}", own_id);
        format!(
            "istio_requests_total{{reporter=\"destination\",source_workload=\"unknown\",\
             source_canonical_service=\"unknown\",source_canonical_revision=\"latest\",\
             source_workload_namespace=\"{namespace}\",source_principal=\"{source}\",\
             source_app=\"unknown\",source_version=\"unknown\",source_cluster=\"unknown\",{own},\
             request_protocol=\"http\",response_code=\"{code}\",grpc_response_status=\"\",\
             response_flags=\"-\",connection_security_policy=\"{policy}\"}} "
        )
    };
    let web_id = "spiffe://cluster.local/ns/shop/sa/web";
    let server_id = "spiffe://cluster.local/ns/shop/sa/server";
    until(&mesh, &(line("shop", web_id, server_id, 200, "mutual_tls") + "2\n")).await;
    until(&mesh, &(line("unknown", "unknown", "unknown", 403, "none") + "1\n")).await;
    let text = mesh.telemetry().prometheus();
    for wanted in [
        "# TYPE istio_requests_total counter\n",
        "# TYPE istio_request_duration_milliseconds histogram\n",
        "# TYPE istio_request_bytes histogram\n",
        "# TYPE istio_response_bytes histogram\n",
        "# TYPE istio_build gauge\nistio_build{component=\"mesh-tower\",tag=\"",
        "mesh_decisions_total{decision=\"allow\",reason=\"via_upstream\"} 2\n",
        "mesh_decisions_total{decision=\"deny\",reason=\"rbac_access_denied_matched_policy\"} 1\n",
        "mesh_rule_hits_total{rule=\"ns[shop]-policy[readers]-rule[0]\"} 2\n",
        "mesh_handshakes_total{result=\"mutual_tls\"} 2\n",
        "mesh_handshakes_total{result=\"plaintext\"} 1\n",
        "mesh_handshake_duration_seconds_count 3\n",
        "mesh_decision_duration_seconds_count 3\n",
        "mesh_configuration_generation 1\n",
        "mesh_certificate_expiration_timestamp_seconds{certificate=\"own\"} ",
        "mesh_certificate_expiration_timestamp_seconds{certificate=\"root of cluster.local\"} ",
    ] {
        assert!(text.contains(wanted), "{wanted} in\n{text}");
    }
    // The body of two answers, and of one refusal.
    let bytes: Vec<&str> =
        text.lines().filter(|line| line.starts_with("istio_response_bytes_sum")).collect();
    assert!(bytes.iter().any(|line| line.ends_with(" 10")), "{bytes:?}");
    assert!(bytes.iter().any(|line| line.ends_with(" 19")), "{bytes:?}");
}

/// gRPC: protocol, status from the trailers, and messages in both directions.
#[tokio::test]
async fn grpc_is_counted_with_its_status_and_messages() {
    let authority = authority();
    let mesh = mesh(&authority, MetricLabels::default());
    let (listener, address) = bind().await;
    let serving = mesh.clone();
    tokio::spawn(async move { serving.serve(listener, app(), std::future::pending()).await });
    let web = connector(&authority, "web", address).protocol(ClientProtocol::Http2);
    let stream = connect(&web).await.unwrap();
    let (mut send, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.unwrap();
    tokio::spawn(connection);
    let request = Request::post("https://server/Shop/List")
        .header("content-type", "application/grpc+proto")
        .body(Full::new(Bytes::from_static(b"\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01x")))
        .unwrap();
    let response = send.send_request(request).await.unwrap();
    response.into_body().collect().await.unwrap();
    let labels = "request_protocol=\"grpc\",response_code=\"200\",grpc_response_status=\"5\",\
                  response_flags=\"-\",connection_security_policy=\"mutual_tls\"}";
    until(&mesh, &format!("{labels} 1\n")).await;
    let text = mesh.telemetry().prometheus();
    let value = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name) && line.contains(labels));
        line.and_then(|line| line.rsplit(' ').next()).unwrap_or("none").to_owned()
    };
    assert_eq!(value("istio_request_messages_total"), "3");
    assert_eq!(value("istio_response_messages_total"), "2");
    assert_eq!(value("istio_request_bytes_sum"), "16");
    assert_eq!(value("istio_response_bytes_sum"), "13");
}

/// A client that leaves before its answer is counted as Envoy counts it: code 0, flag DC.
#[tokio::test]
async fn a_client_that_leaves_is_counted() {
    let authority = authority();
    let mesh = mesh(&authority, MetricLabels::default());
    let (listener, address) = bind().await;
    let serving = mesh.clone();
    tokio::spawn(async move { serving.serve(listener, app(), std::future::pending()).await });
    let web = connector(&authority, "web", address);
    let asking = ask(&web, done(get("/never")));
    tokio::time::timeout(Duration::from_millis(300), asking).await.unwrap_err();
    let wanted = "response_code=\"0\",grpc_response_status=\"\",response_flags=\"DC\"";
    until(&mesh, wanted).await;
}

/// [SEC-HTTP-12] What a request says never becomes a label, and peers are bounded in number.
#[tokio::test]
async fn sec_http_12_labels_are_bounded() {
    let authority = authority();
    let mesh = mesh(&authority, MetricLabels::default().peers(2));
    let (listener, address) = bind().await;
    let serving = mesh.clone();
    tokio::spawn(async move { serving.serve(listener, app(), std::future::pending()).await });
    for (at, account) in ["one", "two", "three", "four"].into_iter().enumerate() {
        let connector = connector(&authority, account, address);
        // Envoy's HTTP/1 codec refuses unknown methods, and so does the layer; both are counted.
        let (method, status) = if at % 2 == 0 { ("GET", 404) } else { ("EVILMETHOD", 400) };
        let request = Request::builder()
            .method(method)
            .uri(format!("/evilpath{at}?evilquery{at}=1"))
            .header("host", format!("evilhost{at}"))
            .header("user-agent", "evilagent")
            .header("evilheader", "1")
            .header("content-type", format!("evil/type{at}"));
        assert_eq!(ask(&connector, done(request)).await.0, status);
    }
    until(&mesh, "source_principal=\"unknown\"").await;
    let total = || mesh.telemetry().requests().iter().map(|one| one.count).sum::<u64>();
    for _ in 0..500 {
        if total() == 4 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(total(), 4);
    let text = mesh.telemetry().prometheus();
    assert!(!text.to_lowercase().contains("evil"), "{text}");
    let lines = text.lines().filter(|line| line.starts_with("istio_requests_total{"));
    assert_eq!(lines.count(), 4, "two peers, and all others once for each status");
}

/// Labels that are left out are left out.
#[tokio::test]
async fn labels_can_be_left_out() {
    let authority = authority();
    let mesh = mesh(&authority, MetricLabels::default().without("source_principal"));
    let (listener, address) = bind().await;
    let serving = mesh.clone();
    tokio::spawn(async move { serving.serve(listener, app(), std::future::pending()).await });
    assert_eq!(ask(&connector(&authority, "web", address), done(get("/hello"))).await.0, 200);
    until(&mesh, "istio_requests_total{").await;
    assert!(!mesh.telemetry().prometheus().contains("source_principal"));
}

/// The `metrics` facade is told the same, by a recorder that is passed in.
#[cfg(feature = "metrics")]
mod facade {
    use std::collections::BTreeMap;
    use std::sync::{Arc, Mutex};

    use metrics::{Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn};
    use metrics::{Key, KeyName, Metadata, Recorder, SharedString, Unit};

    use super::*;

    #[derive(Default)]
    struct Book(Arc<Mutex<BTreeMap<String, f64>>>);

    struct Line(String, Arc<Mutex<BTreeMap<String, f64>>>);

    impl Line {
        fn add(&self, value: f64) {
            *self.1.lock().unwrap().entry(self.0.clone()).or_default() += value;
        }
    }

    impl CounterFn for Line {
        #[expect(clippy::as_conversions, clippy::cast_precision_loss, reason = "small numbers")]
        fn increment(&self, value: u64) {
            self.add(value as f64);
        }
        fn absolute(&self, _: u64) {}
    }

    impl GaugeFn for Line {
        fn increment(&self, _: f64) {}
        fn decrement(&self, _: f64) {}
        fn set(&self, value: f64) {
            self.1.lock().unwrap().insert(self.0.clone(), value);
        }
    }

    impl HistogramFn for Line {
        fn record(&self, value: f64) {
            self.add(value);
        }
    }

    impl Book {
        fn line(&self, key: &Key) -> Arc<Line> {
            let label = |label: &metrics::Label| format!("{}={}", label.key(), label.value());
            let labels: Vec<String> = key.labels().map(label).collect();
            Arc::new(Line(format!("{} {}", key.name(), labels.join(" ")), Arc::clone(&self.0)))
        }
    }

    impl Recorder for Book {
        fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
        fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
        fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
        fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
            Counter::from_arc(self.line(key))
        }
        fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
            Gauge::from_arc(self.line(key))
        }
        fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
            Histogram::from_arc(self.line(key))
        }
    }

    #[tokio::test]
    async fn a_recorder_is_told_everything() {
        let authority = authority();
        let book = Arc::new(Book::default());
        let mesh = crate::mesh(&authority, READERS, |builder| {
            builder.metrics_recorder(Arc::<Book>::clone(&book))
        });
        let (listener, address) = bind().await;
        let serving = mesh.clone();
        tokio::spawn(async move { serving.serve(listener, app(), std::future::pending()).await });
        assert_eq!(ask(&connector(&authority, "web", address), done(get("/hello"))).await.0, 200);
        until(&mesh, "istio_requests_total{").await;
        let book = book.0.lock().unwrap();
        let value = |name: &str| {
            let found = book.iter().find(|(line, _)| line.starts_with(name));
            found.map(|(_, value)| *value)
        };
        let principal = "spiffe://cluster.local/ns/shop/sa/web";
        assert!(book.keys().any(|key| key.contains(&format!("source_principal={principal} "))));
        assert_eq!(value("istio_requests_total reporter=destination"), Some(1.0));
        assert_eq!(value("istio_response_bytes "), Some(5.0));
        assert!(value("istio_request_duration_milliseconds ").is_some_and(|time| time > 0.0));
        assert_eq!(value("mesh_rule_hits_total rule=ns[shop]-policy[readers]"), Some(1.0));
        assert_eq!(value("mesh_handshakes_total result=mutual_tls"), Some(1.0));
        assert!(value("mesh_certificate_expiration_timestamp_seconds certificate=own").is_some());
    }
}
