//! A TCP proxy that puts a service without TLS into the mesh: `cargo run --example tcp_proxy`.
//!
//! Every connection is judged before a byte of it is read; what is admitted is copied to the service
//! behind. The service here is an echo; in production it is a database on loopback. The certificate
//! authority is in the process so that the program runs anywhere.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use mesh_tower::authn::peer::ExpectedServer;
use mesh_tower::ca::Authority;
use mesh_tower::identity::{BundleSet, MeshSettings, SpiffeId, TrustDomain, Workload};
use mesh_tower::{Clock as _, Connector, Mesh, Policies, SystemClock, TcpConnection};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tower::ServiceExt as _;

/// Only the namespace `shop` may connect, and only over mutual TLS.
const POLICIES: &str = "
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: { name: strict, namespace: data }
spec: { mtls: { mode: STRICT } }
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: { name: shop-only, namespace: data }
spec:
  rules:
  - from: [{ source: { namespaces: [shop] } }]
";

type Error = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), Error> {
    let trust_domain: TrustDomain = "cluster.local".parse()?;
    let hour = Duration::from_secs(3600);
    let authority = Authority::new_root(&trust_domain, hour, SystemClock.now())?;
    let bundles = Arc::new(BundleSet::from_bundles([authority.bundle()])?);
    let join = |namespace: &str, account: &str, policies: Policies| -> Result<Mesh, Error> {
        let id = SpiffeId::for_service_account(&trust_domain, namespace, account)?;
        let svid = Arc::new(authority.issue_svid(&id, hour, SystemClock.now())?);
        let settings = MeshSettings::new(trust_domain.clone());
        let builder = Mesh::builder(Workload::new(namespace), settings);
        Ok(builder.build(svid, Arc::clone(&bundles), policies)?)
    };

    // The proxy, in front of a service that knows nothing of the mesh.
    let behind = echo().await?;
    let proxy = join("data", "database", Policies::read([("policies.yaml", POLICIES)], "data")?)?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let serving = proxy.clone();
    tokio::spawn(async move {
        let handler = move |connection| forward(connection, behind);
        serving.serve_tcp(listener, handler, std::future::pending()).await
    });

    // Two clients: one that may connect, and one that may not.
    let expected = ExpectedServer::exact("spiffe://cluster.local/ns/data/sa/database".parse()?);
    for (namespace, account) in [("shop", "cart"), ("other", "stranger")] {
        let mesh = join(namespace, account, Policies::none())?;
        let connector = Connector::new(mesh).service("database", address, &expected);
        let stream = connector.oneshot("https://database".parse()?).await?;
        let mut stream = TokioIo::new(stream);
        let mut answer = [0; 5];
        let asked = async {
            stream.write_all(b"hello").await?;
            stream.read_exact(&mut answer).await
        };
        match asked.await {
            Ok(_) => println!("{account}: {}", String::from_utf8_lossy(&answer)),
            Err(_) => println!("{account}: closed"),
        }
    }
    Ok(())
}

/// Copies in both directions until either side ends.
async fn forward(mut connection: TcpConnection, behind: SocketAddr) {
    if let Some(peer) = connection.permit().peer() {
        eprintln!("connected: {}", peer.id());
    }
    let copied = async {
        let mut service = TcpStream::connect(behind).await?;
        copy_bidirectional(&mut connection, &mut service).await
    };
    if let Err(error) = copied.await {
        eprintln!("connection ended: {error}");
    }
}

/// A service that sends everything back.
async fn echo() -> Result<SocketAddr, Error> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                tokio::io::copy(&mut read, &mut write).await
            });
        }
    });
    Ok(address)
}
