//! Counters of what was decided and answered, read as a whole. Labels are bounded
//! ([SEC-HTTP-12]): a status code and how the connection was secured, never a name or a path.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::StatusCode;

use crate::connection::Security;

/// Status codes are 100 to 999; a code outside has no counter of its own.
const CODES: usize = 1000;

/// Counters since the mesh was built. Reading never stops the counting.
#[derive(Debug)]
pub struct Telemetry {
    mutual_tls: Box<[AtomicU64]>,
    plaintext: Box<[AtomicU64]>,
    allowed: AtomicU64,
    denied: AtomicU64,
    shadow_denied: AtomicU64,
    decision_nanos: AtomicU64,
    refused_connections: AtomicU64,
    refused_configurations: AtomicU64,
    tcp_opened: AtomicU64,
    tcp_closed: AtomicU64,
    tcp_received: AtomicU64,
    tcp_sent: AtomicU64,
}

/// A TCP connection that was counted when it was opened.
pub(crate) struct TcpCount<'t>(&'t Telemetry);

impl TcpCount<'_> {
    /// Counts the end of the connection: bytes received and sent.
    pub(crate) fn closed(self, (received, sent): (u64, u64)) {
        self.0.tcp_closed.fetch_add(1, Ordering::Relaxed);
        self.0.tcp_received.fetch_add(received, Ordering::Relaxed);
        self.0.tcp_sent.fetch_add(sent, Ordering::Relaxed);
    }
}

/// One counter of Istio's `istio_requests_total`.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct RequestsTotal {
    /// Label `response_code`.
    pub response_code: u16,
    /// Label `connection_security_policy`: `mutual_tls` or `none`.
    pub connection_security_policy: &'static str,
    /// The count.
    pub count: u64,
}

impl Default for Telemetry {
    fn default() -> Self {
        let codes = || (0..CODES).map(|_| AtomicU64::new(0)).collect();
        Self {
            mutual_tls: codes(),
            plaintext: codes(),
            allowed: AtomicU64::new(0),
            denied: AtomicU64::new(0),
            shadow_denied: AtomicU64::new(0),
            decision_nanos: AtomicU64::new(0),
            refused_connections: AtomicU64::new(0),
            refused_configurations: AtomicU64::new(0),
            tcp_opened: AtomicU64::new(0),
            tcp_closed: AtomicU64::new(0),
            tcp_received: AtomicU64::new(0),
            tcp_sent: AtomicU64::new(0),
        }
    }
}

impl Telemetry {
    /// `istio_requests_total` by response code and connection security; only counters above zero.
    #[must_use]
    pub fn requests(&self) -> Vec<RequestsTotal> {
        let by = |counters: &[AtomicU64], policy: &'static str| -> Vec<RequestsTotal> {
            let counts = counters.iter().map(|counter| counter.load(Ordering::Relaxed));
            let codes = (0_u16..).zip(counts).filter(|(_, count)| *count > 0);
            codes
                .map(|(response_code, count)| RequestsTotal {
                    response_code,
                    connection_security_policy: policy,
                    count,
                })
                .collect()
        };
        [by(&self.mutual_tls, "mutual_tls"), by(&self.plaintext, "none")].concat()
    }

    /// Requests that the policies admitted.
    #[must_use]
    pub fn allowed(&self) -> u64 {
        self.allowed.load(Ordering::Relaxed)
    }

    /// Requests that a token check or policy refused.
    #[must_use]
    pub fn denied(&self) -> u64 {
        self.denied.load(Ordering::Relaxed)
    }

    /// Requests that a dry-run policy would have refused ([SEM-EVAL-42]).
    #[must_use]
    pub fn shadow_denied(&self) -> u64 {
        self.shadow_denied.load(Ordering::Relaxed)
    }

    /// The mean time from a request's head to its decision; zero before the first.
    #[must_use]
    pub fn mean_decision_time(&self) -> Duration {
        let count = self.allowed().saturating_add(self.denied());
        let total = self.decision_nanos.load(Ordering::Relaxed);
        Duration::from_nanos(total.checked_div(count).unwrap_or_default())
    }

    /// Connections that were closed before their first request.
    #[must_use]
    pub fn refused_connections(&self) -> u64 {
        self.refused_connections.load(Ordering::Relaxed)
    }

    /// Changes of the configuration that were refused.
    #[must_use]
    pub fn refused_configurations(&self) -> u64 {
        self.refused_configurations.load(Ordering::Relaxed)
    }

    /// TCP connections opened and closed: `istio_tcp_connections_opened_total` and `_closed_total`.
    #[must_use]
    pub fn tcp_connections(&self) -> (u64, u64) {
        (self.tcp_opened.load(Ordering::Relaxed), self.tcp_closed.load(Ordering::Relaxed))
    }

    /// Bytes that closed TCP connections received and sent: `istio_tcp_received_bytes_total` and
    /// `istio_tcp_sent_bytes_total`.
    #[must_use]
    pub fn tcp_bytes(&self) -> (u64, u64) {
        (self.tcp_received.load(Ordering::Relaxed), self.tcp_sent.load(Ordering::Relaxed))
    }

    pub(crate) fn tcp_opened(&self) -> TcpCount<'_> {
        self.tcp_opened.fetch_add(1, Ordering::Relaxed);
        TcpCount(self)
    }

    pub(crate) fn count_response(&self, status: StatusCode, security: &Security) {
        let counters = match security {
            Security::MutualTls(_) => &self.mutual_tls,
            Security::Plaintext => &self.plaintext,
        };
        if let Some(counter) = counters.get(usize::from(status.as_u16())) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn count_decision(&self, allowed: bool, took: Duration) {
        let counter = if allowed { &self.allowed } else { &self.denied };
        counter.fetch_add(1, Ordering::Relaxed);
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.decision_nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    pub(crate) fn count_shadow_denial(&self) {
        self.shadow_denied.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_refused_connection(&self) {
        self.refused_connections.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_refused_configuration(&self) {
        self.refused_configurations.fetch_add(1, Ordering::Relaxed);
    }
}
