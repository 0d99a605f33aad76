//! Spans and trace context over real sockets.

use std::fmt::Debug;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::routing::get as get_route;
use http::Request;
use mesh_tower::TraceContext;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

use crate::support::authority;
use crate::{ask, bind, connector, done, mesh};

pub(crate) const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

const POLICY: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: readers, namespace: shop}
spec:
  rules:
  - to: [{operation: {paths: [/hello*]}}]
";

/// Keeps the fields of the spans of one target, one line for each value.
#[derive(Clone)]
pub(crate) struct Spans {
    target: &'static str,
    next: Arc<AtomicU64>,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Spans {
    pub(crate) fn of(target: &'static str) -> Self {
        Self { target, next: Arc::default(), lines: Arc::default() }
    }

    pub(crate) fn lines(&self) -> String {
        self.lines.lock().unwrap().join("\n")
    }
}

struct Fields<'s>(&'s Spans, u64);

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.lines.lock().unwrap().push(format!("{} {field}={value:?}", self.1));
    }
}

impl Subscriber for Spans {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_span() && metadata.target() == self.target
    }
    fn new_span(&self, attributes: &Attributes<'_>) -> Id {
        let id = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        attributes.record(&mut Fields(self, id));
        Id::from_u64(id)
    }
    fn record(&self, span: &Id, values: &Record<'_>) {
        values.record(&mut Fields(self, span.into_u64()));
    }
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, _: &Event<'_>) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

/// What the handler is told of its trace.
async fn hello(request: Request<axum::body::Body>) -> String {
    let context = request.extensions().get::<TraceContext>();
    context.map_or("none".to_owned(), ToString::to_string)
}

/// One span for each sampled request, with caller, decision and status; a parent that is not one
/// begins a new trace; no query, and nothing that looks like a token, is in a span ([SEC-OPS-4]).
#[tokio::test]
async fn requests_have_spans_in_their_callers_trace() {
    let spans = Spans::of("mesh_tower::http");
    let _guard = tracing::subscriber::set_default(spans.clone());
    let authority = authority();
    let mesh = mesh(&authority, POLICY, |builder| builder);
    let (listener, address) = bind().await;
    let app = Router::new().route("/hello", get_route(hello));
    tokio::spawn(async move { mesh.serve(listener, app, std::future::pending()).await });
    let web = connector(&authority, "web", address);
    let request = |path: &str, parent: &str| {
        done(Request::get(path).header("host", "server").header("traceparent", parent))
    };

    let (status, context) = ask(&web, request("/hello?access_token=hidden", PARENT)).await;
    assert_eq!(status, 200);
    assert!(context.starts_with("00-4bf92f3577b34da6a3ce929d0e0e4736-"), "{context}");
    assert_ne!(context, PARENT, "a span of its own");
    let (_, unsampled) = ask(&web, request("/hello", &PARENT.replace("-01", "-00"))).await;
    assert!(unsampled.starts_with("00-4bf9") && unsampled.ends_with("-00"), "{unsampled}");
    let (_, fresh) = ask(&web, request("/hello", "00-xyz")).await;
    assert!(fresh.ends_with("-03") && !fresh.contains("4bf92f35"), "{fresh}");
    assert_eq!(ask(&web, request("/secret", PARENT)).await.0, 403);

    let lines = spans.lines();
    for wanted in [
        "1 otel.kind=\"server\"",
        "1 trace_id=\"4bf92f3577b34da6a3ce929d0e0e4736\"",
        "1 parent_span_id=\"00f067aa0ba902b7\"",
        "1 http.request.method=\"GET\"",
        "1 url.path=\"/hello\"",
        "1 http.response.status_code=200",
        "1 mesh.peer=spiffe://cluster.local/ns/shop/sa/web",
        "1 mesh.decision=\"allow\"",
        "1 mesh.policy=\"ns[shop]-policy[readers]-rule[0]\"",
        "3 http.response.status_code=403",
        "3 mesh.decision=\"deny\"",
        "3 mesh.reason=\"rbac_access_denied_matched_policy[none]\"",
    ] {
        assert!(lines.lines().any(|line| line == wanted), "{wanted} in\n{lines}");
    }
    assert!(!lines.contains("hidden"), "{lines}");
    assert!(!lines.contains("2 parent_span_id"), "{lines}");
    assert!(!lines.lines().any(|line| line.starts_with("4 ")), "one was not sampled: {lines}");
}
