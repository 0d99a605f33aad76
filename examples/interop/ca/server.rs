//! A service in the mesh whose identity comes from the Workload API at `SPIFFE_ENDPOINT_SOCKET`. It
//! demands mutual TLS and answers with whom it sees. `mesh_ca.py` lets Envoy call it.

use axum::routing::get;
use axum::{Extension, Router};
use mesh_tower::identity::{MeshSettings, Workload};
use mesh_tower::{ConnectionInfo, Mesh, Policies, WorkloadApi};
use tokio::net::TcpListener;

const STRICT: &str = "
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: { name: strict, namespace: shop }
spec: { mtls: { mode: STRICT } }
";

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let domain = std::env::args().nth(1).ok_or("usage: mesh_ca_server <trust domain>")?;
    let source = WorkloadApi::from_env()?.x509_source();
    let policies = Policies::read([("strict.yaml", STRICT)], "shop")?;
    let settings = MeshSettings::new(domain.parse()?);
    let mesh = Mesh::builder(Workload::new("shop"), settings).start(source, policies).await?;
    let app = Router::new().route("/", get(peer));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    Ok(mesh.serve(listener, app, std::future::pending()).await?)
}

async fn peer(Extension(info): Extension<ConnectionInfo>) -> String {
    info.peer().map_or("nobody".to_owned(), |peer| peer.id().to_string())
}
