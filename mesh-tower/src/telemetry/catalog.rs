//! Every metric by name, with the labels that it has: what dashboards and alerts may ask for.

/// A metric that a mesh reports; [`crate::Telemetry::catalog`] lists them.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Metric {
    /// The name; a histogram has it with `_bucket`, `_sum` and `_count` behind.
    pub name: &'static str,
    /// What it is.
    pub kind: MetricKind,
    /// Its labels in the order of their output, unless [`crate::MetricLabels::without`] leaves some
    /// of Istio's out.
    pub labels: &'static [&'static str],
    /// What it says, in one line.
    pub help: &'static str,
}

/// How a metric's values are to be read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum MetricKind {
    /// Only grows.
    Counter,
    /// Is set.
    Gauge,
    /// Counts values by upper bounds, the label `le` of `_bucket`.
    Histogram,
}

impl MetricKind {
    /// As Prometheus' text format says it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// Labels of Istio's metrics about requests, in Envoy's order.
const REQUEST: &[&str] = &[
    "reporter",
    "source_workload",
    "source_canonical_service",
    "source_canonical_revision",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_cluster",
    "destination_workload",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_service",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_service_name",
    "destination_service_namespace",
    "destination_cluster",
    "request_protocol",
    "response_code",
    "grpc_response_status",
    "response_flags",
    "connection_security_policy",
];

/// The same about TCP connections.
const CONNECTION: &[&str] = &[
    "reporter",
    "source_workload",
    "source_canonical_service",
    "source_canonical_revision",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_cluster",
    "destination_workload",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_service",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_service_name",
    "destination_service_namespace",
    "destination_cluster",
    "request_protocol",
    "response_flags",
    "connection_security_policy",
];

const fn counter(
    name: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
) -> Metric {
    Metric { name, kind: MetricKind::Counter, labels, help }
}

const fn gauge(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Metric {
    Metric { name, kind: MetricKind::Gauge, labels, help }
}

const fn histogram(
    name: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
) -> Metric {
    Metric { name, kind: MetricKind::Histogram, labels, help }
}

pub(super) const CATALOG: &[Metric] = &[
    counter("istio_requests_total", REQUEST, "Requests that are over."),
    counter("istio_request_messages_total", REQUEST, "gRPC messages of clients."),
    counter("istio_response_messages_total", REQUEST, "gRPC messages of servers."),
    histogram(
        "istio_request_duration_milliseconds",
        REQUEST,
        "From a request's head to the end of its answer.",
    ),
    histogram("istio_request_bytes", REQUEST, "Sizes of requests' bodies."),
    histogram("istio_response_bytes", REQUEST, "Sizes of answers' bodies."),
    counter("istio_tcp_connections_opened_total", CONNECTION, "TCP connections opened."),
    counter("istio_tcp_connections_closed_total", CONNECTION, "TCP connections closed."),
    counter("istio_tcp_received_bytes_total", CONNECTION, "Bytes received over TCP."),
    counter("istio_tcp_sent_bytes_total", CONNECTION, "Bytes sent over TCP."),
    counter("mesh_decisions_total", &["decision", "reason"], "Requests admitted and refused."),
    histogram("mesh_decision_duration_seconds", &[], "From a request's head to its decision."),
    histogram("mesh_handshake_duration_seconds", &[], "From accept to a handshake's end."),
    counter("mesh_handshakes_total", &["result"], "What became of accepted connections."),
    counter("mesh_shadow_denied_total", &[], "Requests that a dry-run policy would have refused."),
    counter("mesh_refused_connections_total", &[], "Connections closed before a request."),
    counter("mesh_refused_configurations_total", &[], "Changes that left the last good in force."),
    counter("mesh_lost_log_lines_total", &[], "Log lines lost because their writer was slow."),
    counter("mesh_rule_hits_total", &["rule"], "Decisions that each rule has made."),
    gauge("istio_build", &["component", "tag"], "1, for the version that runs."),
    gauge(
        "mesh_certificate_expiration_timestamp_seconds",
        &["certificate"],
        "When certificates end; 0 for an identity that was withdrawn.",
    ),
    gauge("mesh_configuration_generation", &[], "Grows with every change that was taken."),
    gauge("mesh_jwks_failures", &["source"], "Fetches of a key set that failed in a row."),
    gauge("mesh_jwks_fetched_timestamp_seconds", &["source"], "When a key set was fetched last."),
    gauge("mesh_jwks_usable", &["source"], "1 while tokens are verified with a key set, else 0."),
];
