//! Configuration that changes under load.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use axum::routing::get as get_route;
use axum::{Extension, Router};
use mesh_tower::authn::peer::ClientProtocol;
use mesh_tower::{ConnectionEvent, DecisionEvent, Observer, Permit};

use crate::support::{authority, connect};
use crate::{bind, connector, done, get, mesh, read};

/// Only one of two paths is allowed.
fn only(path: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
         metadata: {{name: only, namespace: shop}}\n\
         spec: {{rules: [{{to: [{{operation: {{paths: ['{path}']}}}}]}}]}}\n"
    )
}

/// Odd generations allow `/odd` alone, even ones `/even`.
#[derive(Debug, Default)]
struct Parity {
    decided: AtomicU64,
    wrong: AtomicU64,
}

impl Observer for Parity {
    fn decided(&self, event: &DecisionEvent<'_>) {
        let is_own = (event.path == "/odd") == (event.generation % 2 == 1);
        self.decided.fetch_add(1, Ordering::SeqCst);
        self.wrong.fetch_add(u64::from(is_own != event.allowed), Ordering::SeqCst);
    }
    fn connection_refused(&self, _: &ConnectionEvent) {}
}

/// [SEC-AUTHZ-9] A hundred reloads a second under load: no error, and each request is decided by one
/// configuration, which its handler sees, too. `MESH_RELOAD_SECONDS=30` for the long form.
#[tokio::test(flavor = "multi_thread")]
async fn sec_authz_9_reloads_under_load_lose_nothing() {
    let seconds = std::env::var("MESH_RELOAD_SECONDS").ok().and_then(|text| text.parse().ok());
    let seconds: u64 = seconds.unwrap_or(2);
    let (authority, parity) = (authority(), Arc::<Parity>::default());
    let observer = Arc::<Parity>::clone(&parity);
    let mesh = mesh(&authority, &only("/odd"), |builder| builder.observer(observer));
    let (listener, address) = bind().await;
    let handler =
        |Extension(permit): Extension<Permit>| async move { permit.generation().to_string() };
    let app = Router::new().fallback(get_route(handler));
    let serving = mesh.clone();
    tokio::spawn(async move { serving.serve(listener, app, std::future::pending()).await });

    let done_reloading = Arc::new(AtomicBool::new(false));
    let mut clients = Vec::new();
    for path in ["/odd", "/even", "/odd", "/even"] {
        let connector = connector(&authority, "web", address).protocol(ClientProtocol::Http1);
        let stop = Arc::clone(&done_reloading);
        clients.push(tokio::spawn(async move {
            let stream = connect(&connector).await.unwrap();
            let (mut send, connection) =
                hyper::client::conn::http1::handshake(stream).await.unwrap();
            tokio::spawn(connection);
            let (mut asked, mut answered) = (0_u64, [0_u64; 2]);
            while !stop.load(Ordering::SeqCst) {
                send.ready().await.unwrap();
                let response = send.send_request(done(get(path))).await.unwrap();
                asked += 1;
                match read(response).await {
                    (200, generation) => {
                        let generation: u64 = generation.parse().unwrap();
                        assert_eq!(generation % 2 == 1, path == "/odd", "{generation} {path}");
                        answered[0] += 1;
                    }
                    (403, _) => answered[1] += 1,
                    (status, body) => panic!("{status} {body}"),
                }
            }
            assert!(answered.iter().all(|count| *count > 0), "{path}: {answered:?}");
            asked
        }));
    }
    let reloads = seconds * 100;
    let mut every = tokio::time::interval(Duration::from_millis(10));
    for at in 0..reloads {
        every.tick().await;
        let policies =
            crate::support::policies(&[&only(if at % 2 == 0 { "/even" } else { "/odd" })]);
        mesh.set_policies(policies).unwrap();
    }
    done_reloading.store(true, Ordering::SeqCst);
    let mut asked = 0;
    for client in clients {
        asked += client.await.unwrap();
    }
    println!("{asked} requests, {reloads} reloads in {seconds} s");
    assert_eq!(mesh.generation(), reloads + 1);
    assert_eq!(parity.decided.load(Ordering::SeqCst), asked, "each request is decided once");
    assert_eq!(parity.wrong.load(Ordering::SeqCst), 0, "by one configuration");
}
