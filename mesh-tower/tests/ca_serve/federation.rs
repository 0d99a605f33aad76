//! The bundle endpoint, asked by this workspace's own client.

use std::sync::Arc;
use std::time::Duration;

use mesh_ca::Authority;
use mesh_ca::serve::BundleEndpoint;
use mesh_tower::identity::{
    BundleSet, EndpointProfile, FederatedBundle, FederationEndpoint, TrustBundle,
};
use mesh_tower::{Clock, Federated, Identity, IdentitySource as _, IdentityUpdate};
use rustls::pki_types::UnixTime;
use tokio::net::TcpListener;
use tokio::time::timeout;

use crate::support::{PATIENCE, SetClock, World};

const HOUR: Duration = Duration::from_secs(3600);

#[derive(Clone)]
struct Shared(SetClock);

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Shared")
    }
}

impl Clock for Shared {
    fn now(&self) -> UnixTime {
        self.0.now()
    }
}

async fn next(source: &mut Federated<Option<Identity>>) -> Option<TrustBundle> {
    let update = timeout(PATIENCE, source.next()).await.unwrap();
    let IdentityUpdate::Identity(Identity { bundles, .. }) = update else { panic!("{update:?}") };
    bundles.get("cluster.local").cloned()
}

/// [SEC-ID-10] Profile `https_spiffe`: the endpoint proves itself with the bundle held, and a rotated
/// root arrives by the next fetch that is due, not before.
#[tokio::test]
async fn sec_id_10_a_partner_follows_the_endpoint_through_a_rotation() {
    let world = World::start();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://localhost:{}/", listener.local_addr().unwrap().port());
    let endpoint_id = "spiffe://cluster.local/ca".parse().unwrap();
    let (service, endpoint) = (world.service.clone(), BundleEndpoint::Spiffe(endpoint_id));
    tokio::spawn(
        async move { service.serve_bundle(listener, endpoint, std::future::pending()).await },
    );
    let now = world.clock.now();
    let own = Authority::new_root(&"partner.test".parse().unwrap(), 24 * HOUR, now).unwrap();
    let svid = own.issue_svid(&"spiffe://partner.test/web".parse().unwrap(), HOUR, now).unwrap();
    let trust = BundleSet::from_bundles([own.bundle()]).unwrap();
    let identity = Identity::new(Arc::new(svid), Arc::new(trust));
    let profile = EndpointProfile::HttpsSpiffe("spiffe://cluster.local/ca".parse().unwrap());
    let domain = "cluster.local".parse().unwrap();
    let endpoint = FederationEndpoint::new(domain, &url, profile).unwrap();
    // What an administrator carries over once: the authorities alone.
    let first = world.service.ca().bundle();
    let authorities = first.x509_authorities().iter().cloned();
    let carried = authorities
        .fold(TrustBundle::new(first.trust_domain().clone()), TrustBundle::with_authority);
    let federated = FederatedBundle::new(endpoint, Some(carried));
    let clock = Arc::new(Shared(world.clock.clone()));
    let mut source = Federated::new(Some(identity), [federated]).with_clock(clock);
    assert_eq!(next(&mut source).await.unwrap().sequence(), None, "what was carried");
    let fetched = next(&mut source).await.unwrap();
    assert_eq!(fetched.sequence(), first.sequence());
    world.service.ca().rotate_root_now(world.clock.now()).unwrap();
    let early = timeout(Duration::from_millis(500), source.next()).await;
    assert!(early.is_err(), "asked before the hint: {early:?}");
    world.clock.forward(fetched.refresh_hint().as_secs() * 11 / 10 + 1);
    let rotated = next(&mut source).await.unwrap();
    assert_eq!(rotated.x509_authorities().len(), 2);
    assert!(rotated.sequence() > fetched.sequence());
}
