//! What metrics say about this service, and how much they may say about others.

use std::net::IpAddr;

use mesh_identity::Workload;

/// How many verified peers get metrics of their own by default.
const PEERS: usize = 128;

/// Names of this service in Istio's metrics, and bounds on their labels.
///
/// What Istio takes from the pod's metadata is taken from the workload's labels, as Istio does;
/// the names of workload, service and cluster are not among them and are set here.
///
/// # Examples
///
/// ```
/// use mesh_tower::MetricLabels;
///
/// let labels = MetricLabels::default()
///     .workload("cart-v1")
///     .service("cart.shop.svc.cluster.local")
///     .cluster("Kubernetes")
///     .without("source_principal");
/// ```
#[derive(Clone, Debug)]
pub struct MetricLabels {
    workload: String,
    service: String,
    cluster: String,
    left_out: Vec<String>,
    peers: usize,
}

impl Default for MetricLabels {
    fn default() -> Self {
        let unknown = || "unknown".to_owned();
        Self {
            workload: unknown(),
            service: unknown(),
            cluster: unknown(),
            left_out: Vec::new(),
            peers: PEERS,
        }
    }
}

impl MetricLabels {
    /// The workload's name, such as its Deployment's (`destination_workload`).
    #[must_use]
    pub fn workload(mut self, name: impl Into<String>) -> Self {
        self.workload = name.into();
        self
    }

    /// The host of the service that it serves (`destination_service`), such as
    /// `cart.shop.svc.cluster.local`.
    #[must_use]
    pub fn service(mut self, host: impl Into<String>) -> Self {
        self.service = host.into();
        self
    }

    /// The cluster's name (`destination_cluster`).
    #[must_use]
    pub fn cluster(mut self, name: impl Into<String>) -> Self {
        self.cluster = name.into();
        self
    }

    /// Leaves a label out of all of Istio's metrics, such as `source_principal` where there are many
    /// callers.
    #[must_use]
    pub fn without(mut self, label: impl Into<String>) -> Self {
        self.left_out.push(label.into());
        self
    }

    /// How many verified peers are told apart, callers and servers each: 128 by default. Later ones
    /// are counted together as `unknown`, so that a mesh with many identities cannot fill the memory
    /// ([SEC-HTTP-12]).
    #[must_use]
    pub fn peers(mut self, most: usize) -> Self {
        self.peers = most;
        self
    }

    pub(super) fn most_peers(&self) -> usize {
        self.peers
    }

    pub(super) fn keeps(&self, label: &str) -> bool {
        !self.left_out.iter().any(|left_out| left_out == label)
    }

    /// Everything that Istio's metrics say about a workload of our own.
    pub(super) fn own(&self, workload: &Workload) -> Own {
        let label = |names: &[&str], otherwise: &str| {
            let found = names.iter().find_map(|name| workload.label(name));
            found.unwrap_or(otherwise).to_owned()
        };
        let unknown = "unknown";
        let app = label(&["app"], unknown);
        // The order in which Istio looks for them.
        let names = ["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"];
        let revisions =
            ["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"];
        let (service_name, service_namespace) = service_names(&self.service);
        Own {
            workload: self.workload.clone(),
            namespace: workload.namespace().to_owned(),
            canonical_service: label(&names, &self.workload),
            canonical_revision: label(&revisions, "latest"),
            version: label(&["version"], unknown),
            app,
            service: self.service.clone(),
            service_name: service_name.to_owned(),
            service_namespace: service_namespace.to_owned(),
            cluster: self.cluster.clone(),
        }
    }
}

/// Name and namespace of a service, by its host; the namespace is `unknown` where the host has none.
pub(super) fn service_names(host: &str) -> (&str, &str) {
    match host.split_once('.') {
        Some((name, rest)) if host.parse::<IpAddr>().is_err() => {
            (name, rest.split('.').next().unwrap_or_default())
        }
        Some(_) | None => (host, "unknown"),
    }
}

/// This workload, as Istio's labels name it.
#[derive(Clone, Debug)]
pub(super) struct Own {
    pub(super) workload: String,
    pub(super) namespace: String,
    pub(super) app: String,
    pub(super) version: String,
    pub(super) canonical_service: String,
    pub(super) canonical_revision: String,
    pub(super) service: String,
    pub(super) service_name: String,
    pub(super) service_namespace: String,
    pub(super) cluster: String,
}
