//! When a client stops using a connection.

use std::collections::BTreeSet;
use std::time::Duration;

use http::Request;
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Bytes;
use mesh_tower::authn::peer::ClientProtocol;
use mesh_tower::{MeshClient, Policies};
use tower::ServiceExt as _;

use crate::support::{SetClock, authority, client_mesh, connect, connector, serve, svid, trust};

const HOUR: Duration = Duration::from_secs(3600);

type Client = MeshClient<Empty<Bytes>>;

/// The client's own address as the server sees it: one for each connection.
async fn port(client: &Client) -> String {
    let request = Request::get("https://server/who").body(Empty::new()).unwrap();
    let response = client.clone().oneshot(request).await.unwrap();
    assert_eq!(response.status(), 200);
    let body = response.into_body().collect().await.unwrap().to_bytes();
    // The pool takes the connection back a moment after the body has ended.
    tokio::time::sleep(Duration::from_millis(20)).await;
    String::from_utf8(body.to_vec()).unwrap().split(' ').next().unwrap().to_owned()
}

async fn ports(client: &Client, requests: usize) -> usize {
    let mut seen = BTreeSet::new();
    for _ in 0..requests {
        seen.insert(port(client).await);
    }
    seen.len()
}

/// [SEC-TLS-12], [SEC-TLS-11] Connections are reused until identity or trust change, or a tenth of
/// a certificate's life is left; then the next request has a new one.
#[tokio::test(flavor = "multi_thread")]
async fn sec_tls_12_a_client_reuses_connections_and_stops_in_time() {
    let (authority, server_clock) = (authority(), SetClock::default());
    let server = serve(&authority, &server_clock, Policies::none(), |_| {}).await;
    for protocol in [ClientProtocol::Http1, ClientProtocol::Http2] {
        let clock = SetClock::default();
        let own = |life| svid(&authority, "client", life);
        let mesh = client_mesh(own(HOUR), trust(&[&authority]), &clock);
        let client: Client = connector(&mesh, &server).protocol(protocol).client();
        assert_eq!(ports(&client, 5).await, 1, "{protocol:?}: reused");
        let first = port(&client).await;
        // Policies are no reason.
        mesh.set_policies(Policies::none()).unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(port(&client).await, first, "{protocol:?}");
        mesh.set_identity(own(HOUR), trust(&[&authority])).unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        let second = port(&client).await;
        assert_ne!(second, first, "{protocol:?}: an old identity was used after a rotation");
        assert_eq!(port(&client).await, second, "{protocol:?}");
        // 3,660 seconds with the backdating: 366 are the tenth, and a busy machine takes its time.
        clock.set(3600 - 450);
        tokio::time::sleep(Duration::from_millis(1500)).await;
        assert_eq!(port(&client).await, second, "{protocol:?}: too early");
        clock.set(3600 - 300);
        tokio::time::sleep(Duration::from_millis(1500)).await;
        assert_ne!(port(&client).await, second, "{protocol:?}: used in its last tenth");
        // A source that does not rotate costs connections, not requests.
        assert_eq!(ports(&client, 3).await, 3, "{protocol:?}");
        // The server's certificate is as old as ours was: the same holds for it.
        mesh.set_identity(own(10 * HOUR), trust(&[&authority])).unwrap();
        assert_eq!(ports(&client, 3).await, 3, "{protocol:?}: the server's last tenth");
    }
}

/// [SEC-TLS-13] A server whose authority left the client's bundle loses the connection, and a
/// stream of it, within 5 s.
#[tokio::test(flavor = "multi_thread")]
async fn sec_tls_13_a_client_leaves_a_server_it_no_longer_trusts() {
    let (old, new, clock) = (authority(), authority(), SetClock::default());
    let server = serve(&old, &clock, Policies::none(), |_| {}).await;
    let mesh = client_mesh(svid(&old, "client", HOUR), trust(&[&old, &new]), &clock);
    let client: Client = connector(&mesh, &server).client();
    let request = Request::get("https://server/stream").body(Empty::new()).unwrap();
    let response = client.clone().oneshot(request).await.unwrap();
    let stream = tokio::spawn(crate::support::drained(response));
    mesh.set_identity(svid(&old, "client", HOUR), trust(&[&new])).unwrap();
    let took = stream.await.unwrap();
    assert!(took < Duration::from_secs(5), "{took:?}");
    let error = connect(&connector(&mesh, &server)).await.unwrap_err();
    assert!(error.to_string().contains("not verified"), "{error}");
}

/// [SEC-TLS-12] A server's certificate that ends, ends the client's connections to it.
#[tokio::test(flavor = "multi_thread")]
async fn sec_tls_12_a_client_leaves_a_server_whose_certificate_ends() {
    let (authority, clock) = (authority(), SetClock::default());
    let server = serve(&authority, &SetClock::default(), Policies::none(), |limits| {
        limits.drain = Duration::from_secs(60);
    })
    .await;
    let mesh = client_mesh(svid(&authority, "client", 10 * HOUR), trust(&[&authority]), &clock);
    let client: Client = connector(&mesh, &server).client();
    let request = Request::get("https://server/stream").body(Empty::new()).unwrap();
    let response = client.clone().oneshot(request).await.unwrap();
    let stream = tokio::spawn(crate::support::drained(response));
    clock.set(3700);
    // One second to notice the jump, five to drain.
    let took = stream.await.unwrap();
    assert!(took < Duration::from_secs(10), "{took:?}");
}
