//! Who is told what the mesh did: decisions, answers, refused connections.
//!
//! Every text that comes from a request is escaped when it is shown ([SEC-AUTHZ-12]); tokens and
//! header values are never part of an event ([SEC-OPS-4]).

use std::fmt;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use mesh_authz::RuleRef;
use mesh_identity::{SpiffeId, VerifiedToken};
use rustls::pki_types::UnixTime;

/// Receives the mesh's events. Called on the request path: be quick, never block.
///
/// # Examples
///
/// ```
/// use std::sync::atomic::{AtomicU64, Ordering};
///
/// use mesh_tower::{ConnectionEvent, DecisionEvent, Observer};
///
/// /// Counts what no rule has allowed.
/// #[derive(Debug, Default)]
/// struct Unmatched(AtomicU64);
///
/// impl Observer for Unmatched {
///     fn decided(&self, event: &DecisionEvent<'_>) {
///         if !event.allowed && event.rule.is_none() {
///             self.0.fetch_add(1, Ordering::Relaxed);
///         }
///     }
///
///     fn connection_refused(&self, _: &ConnectionEvent) {}
/// }
/// ```
pub trait Observer: fmt::Debug + Send + Sync + 'static {
    /// A request was admitted or refused. One call per request.
    fn decided(&self, event: &DecisionEvent<'_>);

    /// A connection was closed before its first request.
    fn connection_refused(&self, event: &ConnectionEvent);

    /// A request was answered. Called only when [`Observer::wants_access_log`] is true.
    fn answered(&self, entry: &AccessEntry) {
        tracing::info!(target: "mesh_tower::access", "{entry}");
    }

    /// Whether access log entries are made at all; they cost a few allocations each.
    fn wants_access_log(&self) -> bool {
        false
    }
}

/// What was decided about one request, and by what.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct DecisionEvent<'a> {
    /// The configuration that decided ([SEC-AUTHZ-9]).
    pub generation: u64,
    /// The verified workload that called, if any.
    pub peer: Option<&'a SpiffeId>,
    /// The method.
    pub method: &'a str,
    /// The normalized path, without the query, which may carry tokens; what looks like a token in
    /// it is masked.
    pub path: &'a str,
    /// Whether the request went on to the service.
    pub allowed: bool,
    /// The rule that decided, in Istio's form `ns[…]-policy[…]-rule[…]`, if one did.
    pub rule: Option<&'a str>,
    /// The same rule, with its policy's name and namespace.
    pub matched: Option<&'a RuleRef>,
    /// The verified end user, if there is one.
    pub user: Option<&'a VerifiedToken>,
    /// Envoy's response code details, or ours where Envoy has none.
    pub detail: &'a str,
    /// What the dry-run ALLOW policies would have said, if there are any.
    pub dry_run_allow: Option<bool>,
    /// What the dry-run DENY policies would have said, if there are any.
    pub dry_run_deny: Option<bool>,
    /// Whether an AUDIT policy asked for this event.
    pub audit: bool,
    /// The revision of the bundles that the Rego policy came from which was asked last, as the stage
    /// or as a provider of CUSTOM policies; nothing where none was asked or it has none.
    pub rego_revision: Option<&'a str>,
}

/// Why a connection was closed.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ConnectionEvent {
    /// The socket address of the client.
    pub peer: SocketAddr,
    /// What was wrong.
    pub reason: String,
}

/// Writes events to `tracing`: refusals at INFO, the rest at DEBUG.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct TracingObserver;

impl Observer for TracingObserver {
    fn decided(&self, event: &DecisionEvent<'_>) {
        let peer = event.peer.map(tracing::field::display);
        if event.allowed && !event.audit {
            tracing::debug!(
                generation = event.generation,
                peer,
                method = event.method,
                path = ?event.path,
                rule = event.rule,
                rego_revision = event.rego_revision,
                "allowed"
            );
        } else {
            tracing::info!(
                generation = event.generation,
                peer,
                method = event.method,
                path = ?event.path,
                allowed = event.allowed,
                rule = event.rule,
                detail = event.detail,
                rego_revision = event.rego_revision,
                "decided"
            );
        }
    }

    fn connection_refused(&self, event: &ConnectionEvent) {
        tracing::info!(peer = %event.peer, reason = event.reason, "connection refused");
    }
}

/// One line of Istio's access log; shown in Istio's default text form.
///
/// Fields about an upstream are `-`: there is none.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct AccessEntry {
    /// When the request's head had arrived.
    pub start_time: SystemTime,
    /// The method.
    pub method: String,
    /// The path and query as they were sent, token parameters masked.
    pub path: String,
    /// `HTTP/1.1` or `HTTP/2`.
    pub protocol: &'static str,
    /// The status of the answer; 0 when the client left before there was one.
    pub response_code: u16,
    /// Envoy's response flags: `-`, `DC` when the client left before the answer's end, `UAEX` when
    /// an external authorizer refused, `UC` when the service's answer broke off.
    pub response_flags: &'static str,
    /// Envoy's response code details.
    pub response_code_details: String,
    /// Bytes of the request's body: as declared, else what the service has read.
    pub bytes_received: u64,
    /// Bytes of the answer's body that were sent.
    pub bytes_sent: u64,
    /// From the request's head to the end of the answer.
    pub duration: Duration,
    /// `x-forwarded-for`, `user-agent` and `x-request-id`, as sent.
    pub forwarded_for: Option<String>,
    /// As sent.
    pub user_agent: Option<String>,
    /// As sent.
    pub request_id: Option<String>,
    /// The authority.
    pub authority: String,
    /// The address that was connected to.
    pub local_address: SocketAddr,
    /// The address of the peer.
    pub peer_address: SocketAddr,
    /// The server name of the handshake.
    pub server_name: Option<String>,
}

impl fmt::Display for AccessEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |value: &Option<String>| value.as_deref().map_or("-".to_owned(), escape);
        write!(f, "[{}] ", timestamp(self.start_time))?;
        write!(f, "\"{} {} {}\" ", escape(&self.method), escape(&self.path), self.protocol)?;
        // Between details and bytes: CONNECTION_TERMINATION_DETAILS, transport failure reason.
        write!(f, "{} {} ", self.response_code, self.response_flags)?;
        write!(f, "{} - \"-\" ", escape(&self.response_code_details))?;
        write!(f, "{} {} ", self.bytes_received, self.bytes_sent)?;
        write!(f, "{} - ", self.duration.as_millis())?;
        write!(f, "\"{}\" \"{}\" ", text(&self.forwarded_for), text(&self.user_agent))?;
        write!(f, "\"{}\" \"{}\" ", text(&self.request_id), escape(&self.authority))?;
        // UPSTREAM_HOST, UPSTREAM_CLUSTER, UPSTREAM_LOCAL_ADDRESS: none in process.
        write!(f, "\"-\" - - {} {} ", self.local_address, self.peer_address)?;
        write!(f, "{} -", text(&self.server_name))
    }
}

impl AccessEntry {
    /// The line in Istio's default JSON form; what there is not is null.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        let none = || serde_json::Value::Null;
        serde_json::json!({
            "start_time": timestamp(self.start_time),
            "route_name": none(),
            "method": self.method,
            "path": self.path,
            "protocol": self.protocol,
            "response_code": self.response_code,
            "response_flags": self.response_flags,
            "response_code_details": self.response_code_details,
            "connection_termination_details": none(),
            "bytes_received": self.bytes_received,
            "bytes_sent": self.bytes_sent,
            "duration": u64::try_from(self.duration.as_millis()).unwrap_or(u64::MAX),
            "upstream_service_time": none(),
            "x_forwarded_for": self.forwarded_for,
            "user_agent": self.user_agent,
            "request_id": self.request_id,
            "authority": self.authority,
            "upstream_host": none(),
            "upstream_cluster": none(),
            "upstream_local_address": none(),
            "downstream_local_address": self.local_address.to_string(),
            "downstream_remote_address": self.peer_address.to_string(),
            "requested_server_name": self.server_name,
            "upstream_transport_failure_reason": none(),
        })
    }
}

/// Control characters, quotes and backslashes cannot forge a log line.
fn escape(text: &str) -> String {
    text.chars()
        .flat_map(|c| {
            let plain = !c.is_control() && c != '"' && c != '\\';
            let escaped = (!plain).then(|| c.escape_default());
            plain.then_some(c).into_iter().chain(escaped.into_iter().flatten())
        })
        .collect()
}

/// RFC 3339 with milliseconds, as in `2026-01-31T12:00:00.250Z`; the epoch for what is before it.
pub(crate) fn timestamp(time: SystemTime) -> String {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = civil_from_days(days);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    let milli = since.subsec_millis();
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milli:03}Z")
}

/// A wall-clock time in whole seconds as the system writes times.
pub(crate) fn system_time(time: UnixTime) -> SystemTime {
    let since = Duration::from_secs(time.as_secs());
    SystemTime::UNIX_EPOCH.checked_add(since).unwrap_or(SystemTime::UNIX_EPOCH)
}

/// The proleptic Gregorian date of a day counted from 1970-01-01.
fn civil_from_days(days: u64) -> (u64, u64, u64) {
    // Years begin in March, so that the leap day is the last of its year.
    let days = days.saturating_add(719_468);
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era = day_of_era
        .saturating_sub(day_of_era / 1_460)
        .saturating_add(day_of_era / 36_524)
        .saturating_sub(day_of_era / 146_096)
        / 365;
    let before = year_of_era
        .saturating_mul(365)
        .saturating_add(year_of_era / 4)
        .saturating_sub(year_of_era / 100);
    let day_of_year = day_of_era.saturating_sub(before);
    let shifted = day_of_year.saturating_mul(5).saturating_add(2) / 153;
    let day = day_of_year
        .saturating_sub(shifted.saturating_mul(153).saturating_add(2) / 5)
        .saturating_add(1);
    let month = if shifted < 10 { shifted.saturating_add(3) } else { shifted.saturating_sub(9) };
    let year = era.saturating_mul(400).saturating_add(year_of_era);
    (if month <= 2 { year.saturating_add(1) } else { year }, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_printed_as_rfc_3339() {
        for (seconds, want) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (1_709_251_199, "2024-02-29T23:59:59.000Z"),
            (4_102_444_800, "2100-01-01T00:00:00.000Z"),
        ] {
            let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
            assert_eq!(timestamp(time), want);
            let later = want.replace(".000Z", ".042Z");
            assert_eq!(timestamp(time + Duration::from_millis(42)), later);
        }
    }

    /// [SEC-AUTHZ-12]
    #[test]
    fn sec_authz_12_a_request_cannot_forge_a_log_line() {
        assert_eq!(escape("/a\r\n[x] \"GET\" \\"), "/a\\r\\n[x] \\\"GET\\\" \\\\");
    }
}
