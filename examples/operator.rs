//! What an operator of a service sees: `cargo run --example operator`, then open the address it
//! prints. With `--once` it fetches the page itself and ends.
//!
//! An axum service with an access log in Istio's form, an audit log, metrics and the admin page; a few
//! requests are made so that there is something to see. The certificate authority is in the process
//! so that the program runs anywhere.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::any;
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Empty};
use mesh_tower::authn::peer::ExpectedServer;
use mesh_tower::ca::Authority;
use mesh_tower::identity::{BundleSet, MeshSettings, SpiffeId, TrustDomain, Workload};
use mesh_tower::{
    AccessLog, AuditLog, Clock as _, Connector, Mesh, MetricLabels, Policies, SystemClock,
};
use tokio::net::TcpListener;
use tower::ServiceExt as _;

const POLICIES: &str = "
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: { name: strict, namespace: shop }
spec: { mtls: { mode: STRICT } }
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: { name: no-admin, namespace: shop }
spec:
  action: DENY
  rules:
  - from: [{ source: { notPrincipals: [cluster.local/ns/ops/sa/console] } }]
    to: [{ operation: { paths: [/admin*] } }]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: { name: storefront, namespace: shop }
spec:
  rules:
  - from: [{ source: { principals: [cluster.local/ns/shop/sa/web] } }]
    to: [{ operation: { methods: [GET], paths: [/cart, /cart/*] } }]
  - from: [{ source: { principals: [cluster.local/ns/shop/sa/checkout] } }]
    to: [{ operation: { methods: [GET, POST], paths: [/cart/*] } }]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: read-only-checkout
  namespace: shop
  annotations: { istio.io/dry-run: 'true' }
spec:
  action: DENY
  rules:
  - from: [{ source: { principals: [cluster.local/ns/shop/sa/checkout] } }]
    to: [{ operation: { notMethods: [GET] } }]
";

type Error = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), Error> {
    let trust_domain: TrustDomain = "cluster.local".parse()?;
    let day = Duration::from_secs(24 * 3600);
    let authority = Authority::new_root(&trust_domain, 30 * day, SystemClock.now())?;
    let bundles = Arc::new(BundleSet::from_bundles([authority.bundle()])?);
    let svid = |account: &str| -> Result<_, Error> {
        let id = SpiffeId::for_service_account(&trust_domain, "shop", account)?;
        Ok(Arc::new(authority.issue_svid(&id, day, SystemClock.now())?))
    };

    // The service, with everything an operator wants.
    let workload = Workload::new("shop").with_label("app", "cart").with_label("version", "v1");
    let labels = MetricLabels::default().workload("cart-v1").service("cart.shop.svc.cluster.local");
    let cart = Mesh::builder(workload, MeshSettings::new(trust_domain.clone()))
        .access_log(AccessLog::text(std::io::stdout())?)
        .audit_log(AuditLog::new(std::io::stderr())?)
        .metric_labels(labels)
        .build(
            svid("cart")?,
            Arc::clone(&bundles),
            Policies::read([("policies.yaml", POLICIES)], "shop")?,
        )?;
    let page = TcpListener::bind("127.0.0.1:0").await?;
    let page_address = page.local_addr()?;
    tokio::spawn(cart.admin().serve(page, std::future::pending()));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let app = Router::new().fallback(any(|| async { "the cart\n" }));
    let serving = cart.clone();
    tokio::spawn(async move { serving.serve(listener, app, std::future::pending()).await });
    cart.ready().await;

    // Something to see.
    let expected = ExpectedServer::exact("spiffe://cluster.local/ns/shop/sa/cart".parse()?);
    for (account, method, path, count) in [
        ("web", "GET", "/cart/42", 120),
        ("checkout", "POST", "/cart/42/order", 14),
        ("web", "DELETE", "/cart/42", 1),
        ("reports", "GET", "/cart/42", 1),
        ("web", "GET", "/admin/users", 1),
    ] {
        let settings = MeshSettings::new(trust_domain.clone());
        let mesh = Mesh::builder(Workload::new("shop"), settings).build(
            svid(account)?,
            Arc::clone(&bundles),
            Policies::none(),
        )?;
        let client = Connector::new(mesh).service("cart", address, &expected).client();
        for _ in 0..count {
            let request = Request::builder().method(method).uri(format!("https://cart{path}"));
            let response = client.clone().oneshot(request.body(Empty::<Bytes>::new())?).await?;
            response.into_body().collect().await?;
        }
        // One explanation every tenth of a second.
        tokio::time::sleep(Duration::from_millis(120)).await;
    }
    println!("the admin page is at http://{page_address}/");
    if std::env::args().any(|argument| argument == "--once") {
        println!("{}", cart.telemetry().prometheus());
        return Ok(());
    }
    Ok(tokio::signal::ctrl_c().await?)
}
