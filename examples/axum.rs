//! An axum service in the mesh, as you would write it: `cargo run --example axum`.
//!
//! The certificate authority is in the process so that the program runs anywhere; in production
//! the identity comes from files or from the SPIFFE Workload API.

use std::sync::Arc;
use std::time::Duration;

use axum::routing::get;
use axum::{Extension, Router};
use mesh_tower::ca::Authority;
use mesh_tower::identity::{BundleSet, MeshSettings, SpiffeId, TrustDomain, Workload};
use mesh_tower::{Clock, Mesh, Permit, Policies, SystemClock};
use tokio::net::TcpListener;

/// What the platform team writes: mutual TLS or nothing, and only `web` may ask.
const POLICIES: &str = "
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: { name: strict, namespace: shop }
spec: { mtls: { mode: STRICT } }
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: { name: web-only, namespace: shop }
spec:
  action: ALLOW
  rules:
  - from: [{ source: { principals: [cluster.local/ns/shop/sa/web] } }]
    to: [{ operation: { methods: [GET] } }]
";

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let trust_domain: TrustDomain = "cluster.local".parse()?;
    let id = SpiffeId::for_service_account(&trust_domain, "shop", "cart")?;
    let now = SystemClock.now();
    let authority = Authority::new_root(&trust_domain, Duration::from_secs(3600), now)?;
    let svid = authority.issue_svid(&id, Duration::from_secs(3600), now)?;
    let bundles = BundleSet::from_bundles([authority.bundle()])?;

    let workload = Workload::new("shop").with_label("app", "cart");
    let mesh = Mesh::builder(workload, MeshSettings::new(trust_domain)).build(
        Arc::new(svid),
        Arc::new(bundles),
        Policies::read([("policies.yaml", POLICIES)], "shop")?,
    )?;

    let app = Router::new().route("/cart", get(cart));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("serving https://{} as {id}; press Ctrl-C to end", listener.local_addr()?);
    let stop = async { drop(tokio::signal::ctrl_c().await) };
    Ok(mesh.serve(listener, app, stop).await?)
}

/// Only requests that every policy has admitted arrive here, with proof of who asks.
async fn cart(Extension(permit): Extension<Permit>) -> String {
    let caller = permit.peer().map_or("nobody".to_owned(), |peer| peer.id().to_string());
    format!("the cart of {caller}\n")
}
