//! Everything a mesh reports goes through here: to its observer, its logs and its metrics.

use std::fmt;
use std::net::SocketAddr;

use mesh_authn::request::{KeySource, KeyState};
use mesh_identity::{SpiffeId, Workload};

use crate::logs::{AccessLog, AuditLog, Logs};
use crate::mask;
use crate::mesh::{Mesh, MeshBuilder};
use crate::observe::{AccessEntry, ConnectionEvent, DecisionEvent};
use crate::telemetry::{Maker, MetricLabels, Telemetry};

/// What a program sets about it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reporting {
    pub(crate) logs: Logs,
    labels: MetricLabels,
    maker: Maker,
}

impl Reporting {
    pub(crate) fn telemetry(&self, workload: &Workload, own_id: &SpiffeId) -> Telemetry {
        Telemetry::new(self.maker.clone(), self.labels.clone(), workload, own_id.clone())
    }
}

impl MeshBuilder {
    /// Writes an access log; there is none by default.
    pub fn access_log(mut self, log: AccessLog) -> Self {
        self.reporting.logs.access = Some(log);
        self
    }

    /// Writes an audit log; there is none by default.
    pub fn audit_log(mut self, log: AuditLog) -> Self {
        self.reporting.logs.audit = Some(log);
        self
    }

    /// How metrics name this service, and how many callers they tell apart.
    pub fn metric_labels(mut self, labels: MetricLabels) -> Self {
        self.reporting.labels = labels;
        self
    }

    /// Hands every metric on to a recorder of the `metrics` facade, with the names and labels that
    /// [`Telemetry::prometheus`] shows. Nothing is installed globally.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn with(builder: mesh_tower::MeshBuilder, prometheus: metrics::NoopRecorder)
    /// # -> mesh_tower::MeshBuilder {
    /// builder.metrics_recorder(std::sync::Arc::new(prometheus))
    /// # }
    /// ```
    #[cfg(feature = "metrics")]
    pub fn metrics_recorder(
        mut self,
        recorder: std::sync::Arc<dyn metrics::Recorder + Send + Sync>,
    ) -> Self {
        self.reporting.maker = Maker::with_recorder(recorder);
        self
    }
}

impl Mesh {
    /// `own` is who we were in the configuration that decided; `explanation` is for the one who looks
    /// at refusals.
    #[cfg_attr(
        not(feature = "admin"),
        expect(unused_variables, reason = "nobody looks at refusals")
    )]
    pub(crate) fn report_decision(
        &self,
        own: &SpiffeId,
        event: &DecisionEvent<'_>,
        explanation: Option<&str>,
    ) {
        self.observer().decided(event);
        #[cfg(feature = "admin")]
        self.recent().refused(event, explanation, || self.clock().precise());
        let time = || self.clock().precise();
        self.count_lost(self.logs().decided(event, own, time));
    }

    pub(crate) fn report_access(&self, entry: &AccessEntry) {
        if self.observer().wants_access_log() {
            self.observer().answered(entry);
        }
        self.count_lost(self.logs().answered(entry));
    }

    pub(crate) fn observe_refused_connection(&self, peer: SocketAddr, why: &dyn fmt::Display) {
        self.telemetry().count_refused_connection();
        let event = ConnectionEvent { peer, reason: why.to_string() };
        self.observer().connection_refused(&event);
        let snapshot = self.snapshot();
        let time = || self.clock().precise();
        self.count_lost(self.logs().refused(&event, snapshot.svid.id(), time));
    }

    fn count_lost(&self, written: bool) {
        if !written {
            self.telemetry().count_lost_line();
        }
    }

    /// Sets the gauges that a new configuration changes.
    pub(crate) fn report_configuration(&self) {
        let (snapshot, telemetry) = (self.snapshot(), self.telemetry());
        telemetry.set("mesh_configuration_generation", Vec::new(), snapshot.generation);
        let own = if snapshot.withdrawn { 0 } else { snapshot.svid.not_after().as_secs() };
        let own = (vec![("certificate", "own".to_owned())], own);
        let roots = snapshot.bundles.iter().filter_map(|bundle| {
            let domain = bundle.trust_domain().as_str();
            let authorities = bundle.x509_authorities().iter();
            // Of several authorities the first to end is the one to know.
            let first = authorities.map(|one| one.validity().not_after().as_secs()).min();
            first.map(|end| (vec![("certificate", format!("root of {domain}"))], end))
        });
        let all = std::iter::once(own).chain(roots).collect();
        telemetry.set_all("mesh_certificate_expiration_timestamp_seconds", all);
    }

    /// Sets the gauges of key sets.
    pub(crate) fn report_key_sets(&self, states: &[(KeySource, KeyState)]) {
        let now = self.clock().now().as_secs();
        let (mut usable, mut fetched, mut failures) = (Vec::new(), Vec::new(), Vec::new());
        for (source, state) in states {
            let labels = vec![("source", shown(source))];
            let (is_usable, age, failed) = match *state {
                KeyState::Missing { failures } => (0, None, failures),
                KeyState::Fresh { age } => (1, Some(age), 0),
                KeyState::Stale { age, failures } => (1, Some(age), failures),
                KeyState::TooOld { age } => (0, Some(age), 0),
                _ => continue,
            };
            usable.push((labels.clone(), is_usable));
            failures.push((labels.clone(), u64::from(failed)));
            if let Some(age) = age {
                fetched.push((labels, now.saturating_sub(age)));
            }
        }
        let telemetry = self.telemetry();
        telemetry.set_all("mesh_jwks_usable", usable);
        telemetry.set_all("mesh_jwks_failures", failures);
        telemetry.set_all("mesh_jwks_fetched_timestamp_seconds", fetched);
    }
}

/// A source of keys as it may be shown: without a password, a query, or what looks like a token.
pub(crate) fn shown(source: &KeySource) -> String {
    let text = match source {
        KeySource::Discovery(text) | KeySource::Url(text) => text.as_str(),
        _ => return "other".to_owned(),
    };
    let text = text.split(['?', '#']).next().unwrap_or_default();
    let (scheme, rest) = text.split_once("://").unwrap_or(("", text));
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    mask::tokens(&format!("{scheme}://{host}/{path}")).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// [SEC-OPS-4]
    #[test]
    fn sec_ops_4_a_source_of_keys_is_shown_without_its_password() {
        let shown = |url: &str| shown(&KeySource::Url(url.to_owned()));
        assert_eq!(shown("https://u:p@keys.example/jwks?key=1#x"), "https://keys.example/jwks");
        assert_eq!(shown("https://keys.example"), "https://keys.example/");
        assert_eq!(shown("https://a.example/p@q"), "https://a.example/p@q");
    }
}
