//! A tonic service in the mesh, server and client: `cargo run --example tonic`.
//!
//! The service is gRPC's own health check; yours goes in the same way. Policies name gRPC methods by
//! their paths, `/package.Service/Method`. The certificate authority is in the process so that the
//! program runs anywhere.

use std::sync::Arc;
use std::time::Duration;

use mesh_tower::authn::peer::{ClientProtocol, ExpectedServer};
use mesh_tower::ca::Authority;
use mesh_tower::identity::{BundleSet, MeshSettings, SpiffeId, TrustDomain, Workload};
use mesh_tower::{Clock as _, Connector, Mesh, Policies, SystemClock};
use tokio::net::TcpListener;
use tonic::service::Routes;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

/// `web` may call one method.
const POLICIES: &str = "
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: { name: strict, namespace: shop }
spec: { mtls: { mode: STRICT } }
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: { name: web-checks, namespace: shop }
spec:
  rules:
  - from: [{ source: { principals: [cluster.local/ns/shop/sa/web] } }]
    to: [{ operation: { paths: [/grpc.health.v1.Health/Check] } }]
";

type Error = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), Error> {
    let trust_domain: TrustDomain = "cluster.local".parse()?;
    let hour = Duration::from_secs(3600);
    let authority = Authority::new_root(&trust_domain, hour, SystemClock.now())?;
    let bundles = Arc::new(BundleSet::from_bundles([authority.bundle()])?);
    let join = |account: &str, policies: Policies| -> Result<Mesh, Error> {
        let id = SpiffeId::for_service_account(&trust_domain, "shop", account)?;
        let svid = Arc::new(authority.issue_svid(&id, hour, SystemClock.now())?);
        let builder = Mesh::builder(Workload::new("shop"), MeshSettings::new(trust_domain.clone()));
        Ok(builder.build(svid, Arc::clone(&bundles), policies)?)
    };

    // The server: tonic's routes are a tower service like any other.
    let cart = join("cart", Policies::read([("policies.yaml", POLICIES)], "shop")?)?;
    let (_reporter, health) = tonic_health::server::health_reporter();
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let serving = cart.clone();
    tokio::spawn(async move {
        serving.serve(listener, Routes::new(health), std::future::pending()).await
    });

    // Two clients: one that may call, and one that gets gRPC's PERMISSION_DENIED.
    let expected = ExpectedServer::exact("spiffe://cluster.local/ns/shop/sa/cart".parse()?);
    for account in ["web", "stranger"] {
        let connector = Connector::new(join(account, Policies::none())?)
            .protocol(ClientProtocol::Http2)
            .service("cart", address, &expected);
        let mut client = HealthClient::with_origin(connector.client(), "https://cart".parse()?);
        match client.check(HealthCheckRequest::default()).await {
            Ok(answer) => println!("{account}: {:?}", answer.into_inner().status()),
            Err(status) => println!("{account}: {:?}: {}", status.code(), status.message()),
        }
    }
    Ok(())
}
