//! reqwest in the mesh: `cargo run --example reqwest`.
//!
//! reqwest keeps the TLS settings that it was built with. So the client is made anew when identity or
//! trust have changed, and it is a client for one service: the settings say who must answer. Where you
//! can choose, take `MeshClient` (see `hyper.rs`): it also leaves connections before certificates end,
//! counts requests and traces them. The certificate authority is in the process so that the program
//! runs anywhere.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::Request;
use axum::{Extension, Router};
use mesh_tower::authn::peer::{ClientProtocol, ExpectedServer};
use mesh_tower::ca::Authority;
use mesh_tower::identity::{BundleSet, MeshSettings, SpiffeId, TrustDomain, Workload};
use mesh_tower::{Clock as _, ConnectionInfo, Connector, Mesh, Permit, Policies, SystemClock};
use rustls::ClientConfig;
use tokio::net::TcpListener;

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

/// A service of the mesh as reqwest asks it.
struct Service {
    connector: Connector,
    host: &'static str,
    address: SocketAddr,
    /// The client, and the settings that it was built with.
    held: Mutex<Option<(Arc<ClientConfig>, reqwest::Client)>>,
}

impl Service {
    fn new(mesh: &Mesh, host: &'static str, address: SocketAddr, who: &ExpectedServer) -> Self {
        // reqwest does not know Istio's name for HTTP/2, so it is not offered.
        let connector = Connector::new(mesh.clone()).protocol(ClientProtocol::Http1);
        let connector = connector.service(host, address, who);
        Self { connector, host, address, held: Mutex::default() }
    }

    /// The client to use for the next request. Ask for it each time: it costs a comparison.
    fn client(&self) -> Result<reqwest::Client, Error> {
        let config = self.connector.tls(self.host)?.config();
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, client)) = &*held
            && Arc::ptr_eq(of, &config)
        {
            return Ok(client.clone());
        }
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(ClientConfig::clone(&config))
            // The name stands for the service; who it is, the certificate says.
            .resolve(self.host, self.address)
            // Nothing but this service over mutual TLS, and nobody in between.
            .https_only(true)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            // An idle connection goes soon. One in steady use stays until our own rotation, whatever
            // becomes of the server's certificate.
            .pool_idle_timeout(Duration::from_secs(60))
            .build()?;
        // The one before goes, and with it its idle connections; what it is asking goes on.
        *held = Some((config, client.clone()));
        Ok(client)
    }

    async fn get(&self, path: &str) -> Result<(u16, String), Error> {
        let url = format!("https://{}{path}", self.host);
        let response = self.client()?.get(url).send().await?;
        Ok((response.status().as_u16(), response.text().await?))
    }
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let trust_domain: TrustDomain = "cluster.local".parse()?;
    let hour = Duration::from_secs(3600);
    let authority = Authority::new_root(&trust_domain, hour, SystemClock.now())?;
    let bundles = Arc::new(BundleSet::from_bundles([authority.bundle()])?);
    let svid = |account: &str| -> Result<_, Error> {
        let id = SpiffeId::for_service_account(&trust_domain, "shop", account)?;
        Ok(Arc::new(authority.issue_svid(&id, hour, SystemClock.now())?))
    };
    let join = |account: &str, policies: Policies| -> Result<Mesh, Error> {
        let builder = Mesh::builder(Workload::new("shop"), MeshSettings::new(trust_domain.clone()));
        Ok(builder.build(svid(account)?, Arc::clone(&bundles), policies)?)
    };

    // The server tells what was asked by whom, and from which port.
    let cart = join("cart", Policies::read([("policies.yaml", POLICIES)], "shop")?)?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let app = Router::new().fallback(answer);
    tokio::spawn(async move { cart.serve(listener, app, std::future::pending()).await });

    let web = join("web", Policies::none())?;
    let expected = ExpectedServer::exact("spiffe://cluster.local/ns/shop/sa/cart".parse()?);
    let service = Service::new(&web, "cart", address, &expected);
    let (status, text) = service.get("/items").await?;
    let (answer, first) = text.split_once(" from ").ok_or("no port")?;
    println!("{status} {answer}");
    let again = service.get("/items").await?.1;
    println!("the same connection again: {}", again.ends_with(first));

    // A source of identity does this whenever it has a new certificate.
    web.set_identity(svid("web")?, Arc::clone(&bundles))?;
    let rotated = service.get("/items").await?.1;
    println!("another one after a rotation: {}", !rotated.ends_with(first));

    // Somebody else answers where a service should be.
    let expected = ExpectedServer::exact("spiffe://cluster.local/ns/shop/sa/stock".parse()?);
    let stock = Service::new(&web, "stock", address, &expected);
    match stock.get("/items").await {
        Err(error) if is_refusal(&*error) => println!("an impostor: server is not verified"),
        other => println!("an impostor: {other:?}"),
    }

    web.withdraw_identity();
    match service.get("/items").await {
        Err(_) => println!("a withdrawn identity: asks nobody"),
        other => println!("a withdrawn identity: {other:?}"),
    }
    Ok(())
}

/// Whether the server was refused for who it is.
fn is_refusal(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut causes = std::iter::successors(Some(error), |error| error.source());
    causes.any(|cause| cause.to_string().contains("invalid peer certificate"))
}

/// Only requests that every policy has admitted arrive here, with proof of who asks.
async fn answer(
    Extension(permit): Extension<Permit>,
    Extension(connection): Extension<ConnectionInfo>,
    request: Request,
) -> String {
    let peer = permit.peer().map_or("nobody".to_owned(), |peer| peer.id().to_string());
    let path = request.uri().path();
    format!("{path} for {peer} from {}", connection.peer_address())
}
