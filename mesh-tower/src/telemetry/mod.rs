//! What is counted: Istio's standard metrics, and decisions, handshakes and configuration under the
//! prefix `mesh_`.
//!
//! No label's value comes from a request ([SEC-HTTP-12], [SEC-OPS-4]): codes, words of ours, names
//! that the configuration gives, and a bounded number of verified peers.

mod catalog;
mod instrument;
mod series;
mod settings;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use mesh_authz::RuleRef;
use mesh_identity::{SpiffeId, Workload};

pub use self::catalog::{Metric, MetricKind};
pub(crate) use self::instrument::Maker;
use self::instrument::{Counter, Gauge, Histogram, Labels, Unit, write_line};
pub(crate) use self::series::{
    Amounts, Flag, Outcome, PeerKey, PeerSeries, Protection, Reporter, TcpSeries,
};
pub use self::settings::MetricLabels;
use self::settings::Own;

/// Why requests are admitted or refused, as the label `reason` says it. Details of decisions begin
/// with one of these words; any other is counted as `other`.
const REASONS: &[&str] = &[
    "via_upstream",
    "open_path",
    "rbac_access_denied_matched_policy",
    "strict_denied",
    "jwt_authn_access_denied",
    "ext_authz_denied",
    "ext_authz_error",
    "ext_authz_body_timeout",
    "rego_denied",
    "malformed_request",
    "request_payload_too_large",
    "too_many_headers",
    "connection_ended",
    "mesh_fault",
    "other",
];

/// What became of an accepted connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Handshake {
    MutualTls,
    Plaintext,
    Deadline,
    Evicted,
    Io,
    OwnIdentity,
    Peer,
    PlaintextRefused,
    Stopped,
    Tls,
}

impl Handshake {
    const ALL: [Self; 10] = [
        Self::MutualTls,
        Self::Plaintext,
        Self::Deadline,
        Self::Evicted,
        Self::Io,
        Self::OwnIdentity,
        Self::Peer,
        Self::PlaintextRefused,
        Self::Stopped,
        Self::Tls,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Self::MutualTls => "mutual_tls",
            Self::Plaintext => "plaintext",
            Self::Deadline => "deadline",
            Self::Evicted => "evicted",
            Self::Io => "io",
            Self::OwnIdentity => "own_identity",
            Self::Peer => "peer_refused",
            Self::PlaintextRefused => "plaintext_refused",
            Self::Stopped => "stopped",
            Self::Tls => "tls",
        }
    }
}

/// Rules whose hits are counted one by one; a configuration has far fewer.
const MOST_RULES: usize = 10_000;

/// From 1 µs to 1 s, in nanoseconds.
const DECISION_SECONDS: &[u64] = &[
    1_000,
    2_500,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    1_000_000,
    10_000_000,
    100_000_000,
    1_000_000_000,
];

/// From half a millisecond to the deadline, in nanoseconds.
const HANDSHAKE_SECONDS: &[u64] = &[
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    10_000_000_000,
];

/// Counters since the mesh was built. Reading never stops the counting.
#[derive(Debug)]
pub struct Telemetry {
    maker: Maker,
    settings: MetricLabels,
    own: Own,
    own_id: SpiffeId,
    peers: RwLock<HashMap<PeerKey, Arc<PeerSeries>>>,
    /// For each of [`REASONS`]: allowed and denied.
    decisions: Vec<(Counter, Counter)>,
    decision_time: Histogram,
    shadow_denied: Counter,
    rules: RwLock<HashMap<RuleRef, Counter>>,
    handshakes: Vec<Counter>,
    handshake_time: Histogram,
    refused_connections: Counter,
    refused_configurations: Counter,
    gauges: Mutex<BTreeMap<(&'static str, Labels), Gauge>>,
    lost_lines: Counter,
}

/// One counter of Istio's `istio_requests_total`.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct RequestsTotal {
    /// Label `source_principal`; nothing where it is `unknown`.
    pub source: Option<SpiffeId>,
    /// Label `response_code`; 0 when the client left before an answer.
    pub response_code: u16,
    /// Label `connection_security_policy`: `mutual_tls` or `none`.
    pub connection_security_policy: &'static str,
    /// The count.
    pub count: u64,
}

impl Telemetry {
    pub(crate) fn new(
        maker: Maker,
        settings: MetricLabels,
        workload: &Workload,
        own_id: SpiffeId,
    ) -> Self {
        let none = Labels::new();
        let counter = |name, labels: &[(&'static str, &str)]| {
            let owned = labels.iter().map(|(name, value)| (*name, (*value).to_owned()));
            maker.counter(name, &owned.collect())
        };
        let decided = |reason: &&'static str| {
            let of = |decision| {
                counter("mesh_decisions_total", &[("decision", decision), ("reason", *reason)])
            };
            (of("allow"), of("deny"))
        };
        let shaken =
            |one: &Handshake| counter("mesh_handshakes_total", &[("result", one.as_str())]);
        let time = |name, bounds| maker.histogram(name, &none, (Unit::Seconds, bounds));
        let build = vec![
            ("component", "mesh-tower".to_owned()),
            ("tag", env!("CARGO_PKG_VERSION").to_owned()),
        ];
        let telemetry = Self {
            own: settings.own(workload),
            own_id,
            peers: RwLock::default(),
            decisions: REASONS.iter().map(decided).collect(),
            decision_time: time("mesh_decision_duration_seconds", DECISION_SECONDS),
            shadow_denied: counter("mesh_shadow_denied_total", &[]),
            rules: RwLock::default(),
            handshakes: Handshake::ALL.iter().map(shaken).collect(),
            handshake_time: time("mesh_handshake_duration_seconds", HANDSHAKE_SECONDS),
            refused_connections: counter("mesh_refused_connections_total", &[]),
            refused_configurations: counter("mesh_refused_configurations_total", &[]),
            gauges: Mutex::default(),
            lost_lines: counter("mesh_lost_log_lines_total", &[]),
            maker,
            settings,
        };
        telemetry.set("istio_build", build, 1);
        telemetry
    }

    /// `istio_requests_total` of requests to this service, by caller, response code and connection
    /// security.
    #[must_use]
    pub fn requests(&self) -> Vec<RequestsTotal> {
        let mut totals = Vec::<RequestsTotal>::new();
        for peer in self.peers() {
            let key = peer.key();
            if key.reporter != Reporter::Destination {
                continue;
            }
            let policy = match key.protection {
                Protection::MutualTls => "mutual_tls",
                Protection::None => "none",
            };
            for series in peer.http() {
                let one = RequestsTotal {
                    source: key.peer.clone(),
                    response_code: series.outcome().code,
                    connection_security_policy: policy,
                    count: series.requests(),
                };
                let same = |other: &&mut RequestsTotal| {
                    other.source == one.source
                        && other.response_code == one.response_code
                        && other.connection_security_policy == policy
                };
                match totals.iter_mut().find(same) {
                    Some(total) => total.count = total.count.saturating_add(one.count),
                    None => totals.push(one),
                }
            }
        }
        totals.sort_by_key(|one| (one.connection_security_policy, one.response_code));
        totals
    }

    /// Requests that the policies admitted.
    #[must_use]
    pub fn allowed(&self) -> u64 {
        self.decisions.iter().map(|(allowed, _)| allowed.get()).sum()
    }

    /// Requests that a token check or policy refused.
    #[must_use]
    pub fn denied(&self) -> u64 {
        self.decisions.iter().map(|(_, denied)| denied.get()).sum()
    }

    /// Requests that a dry-run policy would have refused ([SEM-EVAL-42]).
    #[must_use]
    pub fn shadow_denied(&self) -> u64 {
        self.shadow_denied.get()
    }

    /// How many decisions each rule has made, by the rule's id.
    #[must_use]
    pub fn rule_hits(&self) -> BTreeMap<String, u64> {
        let rules = self.rules.read().unwrap_or_else(PoisonError::into_inner);
        let mut all = BTreeMap::<String, u64>::new();
        for (rule, hits) in rules.iter() {
            let sum = all.entry(rule.to_string()).or_default();
            *sum = sum.saturating_add(hits.get());
        }
        all
    }

    /// The mean time from a request's head to its decision; zero before the first.
    #[must_use]
    pub fn mean_decision_time(&self) -> Duration {
        let (count, sum) = (self.decision_time.total(), self.decision_time.sum());
        Duration::from_nanos(sum.checked_div(count).unwrap_or_default())
    }

    /// Connections that were closed before their first request.
    #[must_use]
    pub fn refused_connections(&self) -> u64 {
        self.refused_connections.get()
    }

    /// Changes of the configuration that were refused.
    #[must_use]
    pub fn refused_configurations(&self) -> u64 {
        self.refused_configurations.get()
    }

    /// TCP connections opened and closed: `istio_tcp_connections_opened_total` and `_closed_total`.
    #[must_use]
    pub fn tcp_connections(&self) -> (u64, u64) {
        self.tcp_sum(|one| (one.opened.get(), one.closed.get()))
    }

    /// Bytes that TCP connections have received and sent so far: `istio_tcp_received_bytes_total`
    /// and `istio_tcp_sent_bytes_total`.
    #[must_use]
    pub fn tcp_bytes(&self) -> (u64, u64) {
        self.tcp_sum(|one| (one.received.get(), one.sent.get()))
    }

    /// Lines of the access and audit log that were lost because their writer was too slow.
    #[must_use]
    pub fn lost_log_lines(&self) -> u64 {
        self.lost_lines.get()
    }

    fn tcp_sum(&self, of: impl Fn(&TcpSeries) -> (u64, u64)) -> (u64, u64) {
        let each = self.peers().into_iter().filter_map(|peer| peer.tcp()).map(|one| of(&one));
        each.fold((0, 0), |(a, b), (c, d)| (a.saturating_add(c), b.saturating_add(d)))
    }

    fn peers(&self) -> Vec<Arc<PeerSeries>> {
        let peers = self.peers.read().unwrap_or_else(PoisonError::into_inner);
        peers.values().cloned().collect()
    }

    /// The series of a peer; the common one when there are too many peers.
    pub(crate) fn peer(&self, key: PeerKey) -> Arc<PeerSeries> {
        if let Some(found) = self.peers.read().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return Arc::clone(found);
        }
        let mut peers = self.peers.write().unwrap_or_else(PoisonError::into_inner);
        let alike = peers.keys().filter(|held| held.reporter == key.reporter).count();
        let is_bounded = match (&key.peer, &key.service) {
            (None, None) => true,
            (Some(_), _) | (_, Some(_)) => alike < self.settings.most_peers(),
        };
        let key = if is_bounded { key } else { PeerKey { peer: None, service: None, ..key } };
        let make = |key: &PeerKey| {
            let own = (&self.own, &self.own_id);
            Arc::new(PeerSeries::new(key.clone(), own, &self.settings, &self.maker))
        };
        Arc::clone(peers.entry(key).or_insert_with_key(make))
    }

    pub(crate) fn count_decision(&self, allowed: bool, detail: &str, took: Duration) {
        let is_of = |reason: &&str| {
            let rest = detail.strip_prefix(*reason);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['[', '{']))
        };
        let place = REASONS.iter().position(is_of);
        let last = REASONS.len().saturating_sub(1);
        if let Some((allow, deny)) = self.decisions.get(place.unwrap_or(last)) {
            if allowed { allow.add(1) } else { deny.add(1) }
        }
        self.decision_time.time(took);
    }

    /// Counts a decision for the rule that made it.
    pub(crate) fn count_rule(&self, rule: &RuleRef) {
        let rules = self.rules.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(hits) = rules.get(rule) {
            hits.add(1);
            return;
        }
        drop(rules);
        let mut rules = self.rules.write().unwrap_or_else(PoisonError::into_inner);
        if rules.len() >= MOST_RULES {
            return;
        }
        let make = || self.maker.counter("mesh_rule_hits_total", &rule_labels(rule.id()));
        rules.entry(rule.clone()).or_insert_with(make).add(1);
    }

    pub(crate) fn count_shadow_denial(&self) {
        self.shadow_denied.add(1);
    }

    pub(crate) fn count_handshake(&self, result: Handshake, took: Duration) {
        let place = Handshake::ALL.iter().position(|one| *one == result);
        if let Some(counter) = place.and_then(|place| self.handshakes.get(place)) {
            counter.add(1);
        }
        self.handshake_time.time(took);
    }

    pub(crate) fn count_lost_line(&self) {
        self.lost_lines.add(1);
    }

    pub(crate) fn count_refused_connection(&self) {
        self.refused_connections.add(1);
    }

    pub(crate) fn count_refused_configuration(&self) {
        self.refused_configurations.add(1);
    }

    /// Sets a gauge, which is made when it is new.
    pub(crate) fn set(&self, name: &'static str, labels: Labels, value: u64) {
        let mut gauges = self.gauges.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (name, labels);
        if let Some(gauge) = gauges.get(&key) {
            gauge.set(value);
            return;
        }
        let gauge = self.maker.gauge(name, &key.1);
        gauge.set(value);
        gauges.insert(key, gauge);
    }

    /// Sets all gauges of one name; those that are not among them go.
    pub(crate) fn set_all(&self, name: &'static str, all: Vec<(Labels, u64)>) {
        let mut gauges = self.gauges.lock().unwrap_or_else(PoisonError::into_inner);
        gauges.retain(|(held, labels), gauge| {
            let keep = *held != name || all.iter().any(|(new, _)| new == labels);
            if !keep {
                gauge.set(0);
            }
            keep
        });
        drop(gauges);
        for (labels, value) in all {
            self.set(name, labels, value);
        }
    }

    /// Every metric there is, with its labels: for dashboards, alerts, and descriptions at a recorder.
    ///
    /// # Examples
    ///
    /// ```
    /// use mesh_tower::Telemetry;
    ///
    /// let requests = Telemetry::catalog().iter().find(|one| one.name == "istio_requests_total");
    /// assert!(requests.is_some_and(|one| one.labels.contains(&"response_code")));
    /// ```
    #[must_use]
    pub fn catalog() -> &'static [Metric] {
        catalog::CATALOG
    }

    /// Everything in Prometheus' text format, for a scrape.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn metrics(mesh: &mesh_tower::Mesh) -> String {
    /// mesh.telemetry().prometheus()
    /// # }
    /// ```
    #[must_use]
    pub fn prometheus(&self) -> String {
        let mut out = String::new();
        series::write(&mut out, &self.peers());
        write_type(&mut out, "mesh_decisions_total", "counter");
        for (reason, (allowed, denied)) in REASONS.iter().zip(&self.decisions) {
            for (decision, counter) in [("allow", allowed), ("deny", denied)] {
                if counter.get() > 0 {
                    let labels =
                        vec![("decision", decision.to_owned()), ("reason", (*reason).to_owned())];
                    write_line(&mut out, "mesh_decisions_total", &labels, None, &counter.get());
                }
            }
        }
        let none = Labels::new();
        for (name, histogram) in [
            ("mesh_decision_duration_seconds", &self.decision_time),
            ("mesh_handshake_duration_seconds", &self.handshake_time),
        ] {
            write_type(&mut out, name, "histogram");
            histogram.write(&mut out, name, &none);
        }
        write_type(&mut out, "mesh_handshakes_total", "counter");
        for (result, counter) in Handshake::ALL.iter().zip(&self.handshakes) {
            let labels = vec![("result", result.as_str().to_owned())];
            write_line(&mut out, "mesh_handshakes_total", &labels, None, &counter.get());
        }
        for (name, value) in [
            ("mesh_shadow_denied_total", self.shadow_denied()),
            ("mesh_refused_connections_total", self.refused_connections()),
            ("mesh_refused_configurations_total", self.refused_configurations()),
            ("mesh_lost_log_lines_total", self.lost_log_lines()),
        ] {
            write_type(&mut out, name, "counter");
            write_line(&mut out, name, &none, None, &value);
        }
        let hits = self.rule_hits();
        write_type(&mut out, "mesh_rule_hits_total", "counter");
        for (rule, count) in hits {
            write_line(&mut out, "mesh_rule_hits_total", &rule_labels(&rule), None, &count);
        }
        let gauges = self.gauges.lock().unwrap_or_else(PoisonError::into_inner);
        let mut before = "";
        for ((name, labels), gauge) in &*gauges {
            if before != *name {
                write_type(&mut out, name, "gauge");
                before = name;
            }
            write_line(&mut out, name, labels, None, &gauge.get());
        }
        out
    }
}

fn rule_labels(rule: &str) -> Labels {
    vec![("rule", rule.to_owned())]
}

fn write_type(out: &mut String, name: &str, kind: &str) {
    if let Some(metric) = catalog::CATALOG.iter().find(|metric| metric.name == name) {
        for part in ["# HELP ", name, " ", metric.help, "\n"] {
            out.push_str(part);
        }
    }
    for part in ["# TYPE ", name, " ", kind, "\n"] {
        out.push_str(part);
    }
}
