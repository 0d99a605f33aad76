//! Istio's standard metrics: one series for each peer and kind of answer.
//!
//! Names, labels and their order are those of Envoy's istio_stats filter, so that dashboards and
//! Kiali work as they are. No label's value comes from a request ([SEC-HTTP-12]): peers are
//! verified and their number is bounded, the rest are codes and this service's own names.

use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use mesh_identity::SpiffeId;

use super::instrument::{Counter, Histogram, Labels, Maker, Unit, write_line};
use super::settings::{MetricLabels, Own, service_names};

/// Envoy's default bounds, in microseconds.
const MILLISECONDS: &[u64] = &[
    500,
    1_000,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    30_000_000,
    60_000_000,
    300_000_000,
    600_000_000,
    1_800_000_000,
    3_600_000_000,
];

/// Envoy's default bounds, in bytes; what is below one byte is none.
const BYTES: &[u64] = &[
    1, 5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 30_000, 60_000, 300_000, 600_000,
    1_800_000, 3_600_000,
];

/// Kinds of answer that are told apart for one peer. A server that a client asks could answer with every
/// code there is ([SEC-HTTP-12]).
const MOST_OUTCOMES: usize = 128;

/// Who reports a request: the server, or the client.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) enum Reporter {
    /// `reporter="destination"`.
    Destination,
    /// `reporter="source"`.
    Source,
}

/// How the bytes were protected.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) enum Protection {
    /// `mutual_tls`.
    MutualTls,
    /// `none`.
    None,
}

/// Whose requests are counted together.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) struct PeerKey {
    pub(crate) reporter: Reporter,
    pub(crate) protection: Protection,
    /// Nothing for plain text, and for peers beyond the bound.
    pub(crate) peer: Option<SpiffeId>,
    /// The declared service that a client has asked; nothing at a server.
    pub(crate) service: Option<Arc<str>>,
}

/// What came of a request, as far as labels tell it apart.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Outcome {
    /// Whether the request is gRPC.
    pub(crate) grpc: bool,
    /// The HTTP status; 0 when the client left before an answer.
    pub(crate) code: u16,
    /// `grpc-status`, where there was one.
    pub(crate) grpc_status: Option<u8>,
    pub(crate) flag: Flag,
}

impl Outcome {
    /// The same without what a server could choose freely: 418 counts as 400.
    fn coarse(self) -> Self {
        Self { code: self.code.saturating_sub(self.code % 100), grpc_status: None, ..self }
    }
}

/// Envoy's response flags, as far as they occur here.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) enum Flag {
    /// `-`: nothing special.
    #[default]
    None,
    /// `DC`: the client left before the answer's end.
    ClientGone,
    /// `UAEX`: the external authorizer refused.
    ExternalAuthorizer,
    /// `UC`: the service's answer broke off.
    BrokeOff,
    /// `UF`: no connection to the service came about.
    NoConnection,
    /// `NR`: the host is no service that was declared.
    NoRoute,
}

impl Flag {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::None => "-",
            Self::ClientGone => "DC",
            Self::ExternalAuthorizer => "UAEX",
            Self::BrokeOff => "UC",
            Self::NoConnection => "UF",
            Self::NoRoute => "NR",
        }
    }
}

/// How much a request brought and took.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Amounts {
    pub(crate) took: Duration,
    pub(crate) received: u64,
    pub(crate) sent: u64,
    pub(crate) messages_received: u64,
    pub(crate) messages_sent: u64,
}

/// The series of one peer.
#[derive(Debug)]
pub(crate) struct PeerSeries {
    key: PeerKey,
    labels: PeerLabels,
    maker: Maker,
    http: Place,
    tcp: RwLock<Option<Arc<TcpSeries>>>,
}

/// Where the series of an outcome is, or will be when the first request ends so. Each points to the
/// next, so that nobody who counts waits for somebody else.
type Place = OnceLock<Box<Kept>>;

#[derive(Debug)]
struct Kept {
    series: Arc<HttpSeries>,
    next: Place,
}

/// The labels that stay the same for a peer, in two parts: Istio has others between and behind.
#[derive(Debug)]
struct PeerLabels {
    names: Labels,
    settings: MetricLabels,
    policy: &'static str,
}

/// One series of the HTTP metrics.
#[derive(Debug)]
pub(crate) struct HttpSeries {
    outcome: Outcome,
    labels: Labels,
    requests: Counter,
    duration: Histogram,
    request_bytes: Histogram,
    response_bytes: Histogram,
    messages: Option<(Counter, Counter)>,
}

/// One series of the TCP metrics.
#[derive(Debug)]
pub(crate) struct TcpSeries {
    labels: Labels,
    pub(crate) opened: Counter,
    pub(crate) closed: Counter,
    pub(crate) received: Counter,
    pub(crate) sent: Counter,
}

impl PeerSeries {
    pub(super) fn new(
        key: PeerKey,
        (own, own_id): (&Own, &SpiffeId),
        settings: &MetricLabels,
        maker: &Maker,
    ) -> Self {
        let labels = PeerLabels::new(&key, own, own_id, settings);
        let (http, tcp) = Default::default();
        Self { key, labels, maker: maker.clone(), http, tcp }
    }

    pub(crate) fn key(&self) -> &PeerKey {
        &self.key
    }

    /// Counts a request that is over.
    pub(crate) fn count(&self, outcome: Outcome, amounts: &Amounts) {
        let series = self.find(outcome, MOST_OUTCOMES);
        // There are few coarse ones, so that they always have a place.
        let series = series.or_else(|| self.find(outcome.coarse(), usize::MAX));
        if let Some(series) = series {
            series.count(amounts);
        }
    }

    /// The series of an outcome among the first ones; it is made where a place is left for it.
    fn find(&self, outcome: Outcome, places: usize) -> Option<&HttpSeries> {
        let make = || {
            let labels = self.labels.http(outcome);
            let series = Arc::new(HttpSeries::new(outcome, labels, &self.maker));
            Box::new(Kept { series, next: Place::new() })
        };
        let mut place = &self.http;
        for _ in 0..places {
            let kept = place.get_or_init(make);
            if kept.series.outcome == outcome {
                return Some(&kept.series);
            }
            place = &kept.next;
        }
        None
    }

    pub(crate) fn http(&self) -> Vec<Arc<HttpSeries>> {
        let all = std::iter::successors(self.http.get(), |kept| kept.next.get());
        all.map(|kept| Arc::clone(&kept.series)).collect()
    }

    /// The series of the peer's TCP connections, if there is one.
    pub(crate) fn tcp(&self) -> Option<Arc<TcpSeries>> {
        self.tcp.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The series of the peer's TCP connections.
    pub(crate) fn begin_tcp(&self) -> Arc<TcpSeries> {
        if let Some(found) = self.tcp() {
            return found;
        }
        let mut place = self.tcp.write().unwrap_or_else(PoisonError::into_inner);
        let make = || Arc::new(TcpSeries::new(self.labels.tcp(), &self.maker));
        Arc::clone(place.get_or_insert_with(make))
    }
}

impl PeerLabels {
    fn new(key: &PeerKey, own: &Own, own_id: &SpiffeId, settings: &MetricLabels) -> Self {
        let unknown = || "unknown".to_owned();
        let principal = key.peer.as_ref().map_or_else(unknown, ToString::to_string);
        let namespace = key.peer.as_ref().and_then(SpiffeId::istio).map(|istio| istio.namespace);
        let namespace = namespace.map_or_else(unknown, str::to_owned);
        let service = key.service.as_deref().unwrap_or("unknown");
        let (service_name, service_namespace) = service_names(service);
        // Without metadata exchange nothing more is known of the peer than its certificate says, and
        // of a server under which name it was asked.
        let peer = Own {
            workload: unknown(),
            namespace,
            app: unknown(),
            version: unknown(),
            canonical_service: unknown(),
            canonical_revision: "latest".to_owned(),
            service: service.to_owned(),
            service_name: service_name.to_owned(),
            service_namespace: service_namespace.to_owned(),
            cluster: unknown(),
        };
        let own_principal = match key.protection {
            Protection::MutualTls => own_id.to_string(),
            Protection::None => unknown(),
        };
        let ((source, source_principal), (destination, destination_principal)) = match key.reporter
        {
            Reporter::Destination => ((&peer, principal), (own, own_principal)),
            Reporter::Source => ((own, own_principal), (&peer, principal)),
        };
        let reporter = match key.reporter {
            Reporter::Destination => "destination",
            Reporter::Source => "source",
        };
        let names = vec![
            ("reporter", reporter.to_owned()),
            ("source_workload", source.workload.clone()),
            ("source_canonical_service", source.canonical_service.clone()),
            ("source_canonical_revision", source.canonical_revision.clone()),
            ("source_workload_namespace", source.namespace.clone()),
            ("source_principal", source_principal),
            ("source_app", source.app.clone()),
            ("source_version", source.version.clone()),
            ("source_cluster", source.cluster.clone()),
            ("destination_workload", destination.workload.clone()),
            ("destination_workload_namespace", destination.namespace.clone()),
            ("destination_principal", destination_principal),
            ("destination_app", destination.app.clone()),
            ("destination_version", destination.version.clone()),
            ("destination_service", destination.service.clone()),
            ("destination_canonical_service", destination.canonical_service.clone()),
            ("destination_canonical_revision", destination.canonical_revision.clone()),
            ("destination_service_name", destination.service_name.clone()),
            ("destination_service_namespace", destination.service_namespace.clone()),
            ("destination_cluster", destination.cluster.clone()),
        ];
        let policy = match (key.reporter, key.protection) {
            // A source cannot know what the destination's sidecar does; Istio says so.
            (Reporter::Source, _) => "unknown",
            (Reporter::Destination, Protection::MutualTls) => "mutual_tls",
            (Reporter::Destination, Protection::None) => "none",
        };
        Self { names, settings: settings.clone(), policy }
    }

    fn http(&self, outcome: Outcome) -> Labels {
        let Outcome { grpc, code, grpc_status, flag } = outcome;
        let grpc_status = grpc_status.map(|status| status.to_string()).unwrap_or_default();
        self.with([
            ("request_protocol", if grpc { "grpc" } else { "http" }.to_owned()),
            ("response_code", code.to_string()),
            ("grpc_response_status", grpc_status),
            ("response_flags", flag.as_str().to_owned()),
        ])
    }

    fn tcp(&self) -> Labels {
        self.with([("request_protocol", "tcp".to_owned()), ("response_flags", "-".to_owned())])
    }

    fn with(&self, more: impl IntoIterator<Item = (&'static str, String)>) -> Labels {
        let last = ("connection_security_policy", self.policy.to_owned());
        let all = self.names.iter().cloned().chain(more).chain([last]);
        all.filter(|(name, _)| self.settings.keeps(name)).collect()
    }
}

impl HttpSeries {
    fn new(outcome: Outcome, labels: Labels, maker: &Maker) -> Self {
        let bytes = (Unit::Bytes, BYTES);
        let messages = outcome.grpc.then(|| {
            (
                maker.counter("istio_request_messages_total", &labels),
                maker.counter("istio_response_messages_total", &labels),
            )
        });
        Self {
            outcome,
            requests: maker.counter("istio_requests_total", &labels),
            duration: maker.histogram(
                "istio_request_duration_milliseconds",
                &labels,
                (Unit::Milliseconds, MILLISECONDS),
            ),
            request_bytes: maker.histogram("istio_request_bytes", &labels, bytes),
            response_bytes: maker.histogram("istio_response_bytes", &labels, bytes),
            messages,
            labels,
        }
    }

    fn count(&self, amounts: &Amounts) {
        self.requests.add(1);
        self.duration.time(amounts.took);
        self.request_bytes.size(amounts.received);
        self.response_bytes.size(amounts.sent);
        if let Some((received, sent)) = &self.messages {
            received.add(amounts.messages_received);
            sent.add(amounts.messages_sent);
        }
    }

    pub(crate) fn outcome(&self) -> Outcome {
        self.outcome
    }

    pub(crate) fn requests(&self) -> u64 {
        self.requests.get()
    }
}

impl TcpSeries {
    fn new(labels: Labels, maker: &Maker) -> Self {
        let counter = |name| maker.counter(name, &labels);
        Self {
            opened: counter("istio_tcp_connections_opened_total"),
            closed: counter("istio_tcp_connections_closed_total"),
            received: counter("istio_tcp_received_bytes_total"),
            sent: counter("istio_tcp_sent_bytes_total"),
            labels,
        }
    }
}

/// Writes the HTTP and TCP metrics of all peers, each metric's lines together.
pub(super) fn write(out: &mut String, peers: &[Arc<PeerSeries>]) {
    let http: Vec<Arc<HttpSeries>> = peers.iter().flat_map(|peer| peer.http()).collect();
    let tcp: Vec<Arc<TcpSeries>> = peers.iter().filter_map(|peer| peer.tcp()).collect();
    let mut counters = |name, of: fn(&HttpSeries) -> Option<&Counter>| {
        let lines = http.iter().filter_map(|one| Some((&one.labels, of(one)?.get())));
        write_counter(out, name, lines);
    };
    counters("istio_requests_total", |one| Some(&one.requests));
    counters("istio_request_messages_total", |one| Some(&one.messages.as_ref()?.0));
    counters("istio_response_messages_total", |one| Some(&one.messages.as_ref()?.1));
    let mut histograms = |name, of: fn(&HttpSeries) -> &Histogram| {
        if !http.is_empty() {
            super::write_type(out, name, "histogram");
        }
        for one in &http {
            of(one).write(out, name, &one.labels);
        }
    };
    histograms("istio_request_duration_milliseconds", |one| &one.duration);
    histograms("istio_request_bytes", |one| &one.request_bytes);
    histograms("istio_response_bytes", |one| &one.response_bytes);
    let mut counters = |name, of: fn(&TcpSeries) -> &Counter| {
        write_counter(out, name, tcp.iter().map(|one| (&one.labels, of(one).get())));
    };
    counters("istio_tcp_connections_opened_total", |one| &one.opened);
    counters("istio_tcp_connections_closed_total", |one| &one.closed);
    counters("istio_tcp_received_bytes_total", |one| &one.received);
    counters("istio_tcp_sent_bytes_total", |one| &one.sent);
}

fn write_counter<'l>(out: &mut String, name: &str, lines: impl Iterator<Item = (&'l Labels, u64)>) {
    let mut lines = lines.peekable();
    if lines.peek().is_some() {
        super::write_type(out, name, "counter");
    }
    for (labels, value) in lines {
        write_line(out, name, labels, None, &value);
    }
}
