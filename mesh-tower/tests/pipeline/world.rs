//! Servers in the mesh, with identities of any trust domain, and what they decided.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mesh_ca::Authority;
use mesh_tower::identity::{BundleSet, SpiffeId, TrustDomain, X509Svid};
use mesh_tower::{Clock as _, ConnectionEvent, DecisionEvent, Observer, SystemClock};
use tokio::net::TcpListener;

const HOUR: Duration = Duration::from_secs(3600);

/// An authority for each trust domain, and the identities they issued.
#[derive(Default)]
pub(crate) struct Identities {
    authorities: Mutex<HashMap<TrustDomain, Arc<Authority>>>,
    svids: Mutex<HashMap<SpiffeId, Arc<X509Svid>>>,
}

impl Identities {
    pub(crate) fn authority(&self, domain: &TrustDomain) -> Arc<Authority> {
        let mut authorities = self.authorities.lock().unwrap();
        let new = || Authority::new_root(domain, 24 * HOUR, SystemClock.now()).unwrap();
        Arc::clone(authorities.entry(domain.clone()).or_insert_with(|| Arc::new(new())))
    }

    /// The identity; nothing when our authority does not issue it.
    pub(crate) fn svid(&self, id: &SpiffeId) -> Option<Arc<X509Svid>> {
        if let Some(known) = self.svids.lock().unwrap().get(id) {
            return Some(Arc::clone(known));
        }
        let authority = self.authority(&id.trust_domain().parse().ok()?);
        let svid = Arc::new(authority.issue_svid(id, HOUR, SystemClock.now()).ok()?);
        self.svids.lock().unwrap().insert(id.clone(), Arc::clone(&svid));
        Some(svid)
    }

    /// Whom to believe for these trust domains.
    pub(crate) fn trust<'d>(
        &self,
        domains: impl IntoIterator<Item = &'d TrustDomain>,
    ) -> Arc<BundleSet> {
        let bundles = domains.into_iter().map(|domain| self.authority(domain).bundle());
        Arc::new(BundleSet::from_bundles(bundles).unwrap())
    }
}

/// The last decision of a mesh.
#[derive(Clone, Debug, Default)]
pub(crate) struct Decided {
    pub(crate) allowed: bool,
    pub(crate) rule: Option<String>,
    pub(crate) detail: String,
    pub(crate) dry_run_allow: Option<bool>,
    pub(crate) dry_run_deny: Option<bool>,
    pub(crate) audit: bool,
}

/// Keeps the last decision.
#[derive(Clone, Debug, Default)]
pub(crate) struct Witness(Arc<Mutex<Option<Decided>>>);

impl Witness {
    /// The decision since the last call.
    pub(crate) fn take(&self) -> Option<Decided> {
        self.0.lock().unwrap().take()
    }
}

impl Observer for Witness {
    fn decided(&self, event: &DecisionEvent<'_>) {
        *self.0.lock().unwrap() = Some(Decided {
            allowed: event.allowed,
            rule: event.rule.map(str::to_owned),
            detail: event.detail.to_owned(),
            dry_run_allow: event.dry_run_allow,
            dry_run_deny: event.dry_run_deny,
            audit: event.audit,
        });
    }

    fn connection_refused(&self, _: &ConnectionEvent) {}
}

pub(crate) async fn bind(ip: IpAddr) -> std::io::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind((ip, 0)).await?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

pub(crate) const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
