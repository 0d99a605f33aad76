//! Plain hyper in the mesh, server and client: `cargo run --example hyper`.
//!
//! The server is any tower service of http requests; the client is hyper-util's, with a pool that
//! respects rotation. The certificate authority is in the process so that the program runs anywhere.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::body::Incoming;
use mesh_tower::authn::peer::ExpectedServer;
use mesh_tower::ca::Authority;
use mesh_tower::identity::{BundleSet, MeshSettings, SpiffeId, TrustDomain, Workload};
use mesh_tower::{Clock as _, Connector, Mesh, Permit, Policies, RequestBody, SystemClock};
use tokio::net::TcpListener;
use tower::{ServiceExt as _, service_fn};

/// Only `web` may ask, and only over mutual TLS.
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
  rules:
  - from: [{ source: { principals: [cluster.local/ns/shop/sa/web] } }]
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

    // The server.
    let cart = join("cart", Policies::read([("policies.yaml", POLICIES)], "shop")?)?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let serving = cart.clone();
    tokio::spawn(async move {
        serving.serve(listener, service_fn(answer), std::future::pending()).await
    });

    // Two clients: one that may ask, and one that may not.
    let expected = ExpectedServer::exact("spiffe://cluster.local/ns/shop/sa/cart".parse()?);
    for account in ["web", "stranger"] {
        let mesh = join(account, Policies::none())?;
        let client = Connector::new(mesh).service("cart", address, &expected).client();
        let request = Request::get("https://cart/items").body(Empty::<Bytes>::new())?;
        let response = client.oneshot(request).await?;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await?.to_bytes();
        println!("{account}: {status} {}", String::from_utf8_lossy(&body));
    }
    Ok(())
}

/// Only requests that every policy has admitted arrive here, with proof of who asks.
async fn answer(
    request: Request<RequestBody<Incoming>>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let permit = request.extensions().get::<Permit>();
    let peer = permit.and_then(Permit::peer).map(|peer| peer.id().to_string());
    let text = format!("{} for {}", request.uri().path(), peer.as_deref().unwrap_or("nobody"));
    Ok(Response::new(Full::from(text)))
}
