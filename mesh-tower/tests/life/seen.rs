//! Chains that were verified before are remembered for what they were, and no longer.

use std::time::Duration;

use mesh_tower::identity::X509Svid;

use crate::handshakes::connect_to;
use crate::raw::{RawClient, Shown, TLS13, ask, raw_server, serve_raw};
use crate::support::{STRICT, SetClock, authority, client_mesh, policies, serve, svid, trust};

const HOUR: Duration = Duration::from_secs(3600);

/// Chains that begin with a leaf that was seen, or end with its chain, and are others: a stranger's
/// leaf before it, the leaf with another key, and so many certificates behind it that no chain may
/// have them.
fn others(good: &X509Svid, bad: &X509Svid, spare: &X509Svid) -> [(&'static str, Shown); 3] {
    let mixed = |leaf: &X509Svid| [leaf.chain(), good.chain(), bad.chain()].concat();
    let spares = std::iter::repeat_n(spare.chain().to_vec(), 10).flatten();
    let long = good.chain().iter().cloned().chain(spares).collect();
    [
        ("a stranger's leaf before it", Shown::of(mixed(bad), bad)),
        ("another key", Shown::of(mixed(good), bad)),
        ("ten certificates behind it", Shown::of(long, good)),
    ]
}

/// [SEC-TLS-4] At the server: another order, a certificate more or less, another time, is another
/// question.
#[tokio::test(flavor = "multi_thread")]
async fn sec_tls_4_what_was_seen_is_not_seen_for_others() {
    let (own, other, clock) = (authority(), authority(), SetClock::default());
    let server = serve(&own, &clock, policies(&[STRICT]), |_| {}).await;
    // It outlives whom it remembers: otherwise it would let nobody in for its own sake.
    server.mesh.set_identity(svid(&own, "server", 10 * HOUR), trust(&[&own])).unwrap();
    let (good, lasting) = (svid(&own, "client", HOUR), svid(&own, "client", 10 * HOUR));
    let status = async |shown: &Shown| {
        let client = RawClient::new(Some(shown.clone()), TLS13).shared();
        ask(&client, server.address, "/").await.map_or(0, |(_, status, _)| status)
    };
    assert_eq!(status(&Shown::svid(&good)).await, 200);
    for (what, shown) in others(&good, &svid(&other, "client", HOUR), &lasting) {
        assert_eq!(status(&shown).await, 0, "{what}");
    }
    assert_eq!(status(&Shown::svid(&good)).await, 200, "it is still good");
    clock.set(7200);
    assert_eq!(status(&Shown::svid(&good)).await, 0, "remembered beyond its end");
    assert_eq!(status(&Shown::svid(&lasting)).await, 200, "others are let in");
}

/// [SEC-TLS-4] The same at the client.
#[tokio::test(flavor = "multi_thread")]
async fn sec_tls_4_what_a_client_has_seen_is_not_seen_for_others() {
    let (own, other, clock) = (authority(), authority(), SetClock::default());
    let mesh = client_mesh(svid(&own, "client", 10 * HOUR), trust(&[&own]), &clock);
    let (good, lasting) = (svid(&own, "server", HOUR), svid(&own, "server", 10 * HOUR));
    let shows = async |shown: Shown| serve_raw(raw_server(shown, TLS13), b"").await.0;
    let address = shows(Shown::svid(&good)).await;
    connect_to(&mesh, address).await.unwrap();
    for (what, shown) in others(&good, &svid(&other, "server", HOUR), &lasting) {
        assert!(connect_to(&mesh, shows(shown).await).await.is_err(), "{what}");
    }
    connect_to(&mesh, address).await.expect("it is still good");
    clock.set(7200);
    assert!(connect_to(&mesh, address).await.is_err(), "remembered beyond its end");
    let address = shows(Shown::svid(&lasting)).await;
    connect_to(&mesh, address).await.expect("others are spoken to");
}
