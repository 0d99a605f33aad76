//! One hello handler, bare and behind the mesh, over HTTP/1.1 keep-alive inside one thread.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::routing::get;
use axum::{Extension, Router};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use mesh_ca::Authority;
use mesh_identity::{BundleSet, MeshSettings, SpiffeId, Workload, X509Svid};
use mesh_tower::authn::peer::{ClientProtocol, ExpectedServer};
use mesh_tower::{Clock as _, ConnectionInfo, Connector, Mesh, Policies, SystemClock};
use ring::rand::SystemRandom;
use ring::rsa::KeyPairComponents;
use ring::signature::{RSA_PKCS1_SHA256, RsaKeyPair, RsaPublicKeyComponents};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tower::{Layer as _, Service, ServiceExt as _};

/// Requests' paths have this before them, one for each of twenty policies.
const POLICIES: usize = 20;

/// Twenty policies that read the peer, the user, method and path, and one issuer of tokens.
///
/// The last ALLOW policy is the one that admits; a DENY stands among them.
#[must_use]
pub fn policies() -> Policies {
    Policies::read([("policies.yaml", policy_text().as_str())], "shop").unwrap()
}

/// [`policies`], and mutual TLS demanded.
#[must_use]
pub fn strict_policies() -> Policies {
    let strict = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
                  metadata: {name: strict, namespace: shop}\nspec: {mtls: {mode: STRICT}}\n";
    Policies::read([("policies.yaml", policy_text().as_str()), ("strict.yaml", strict)], "shop")
        .unwrap()
}

/// The issuer's key, as the mesh knows it.
#[must_use]
pub fn key_set() -> String {
    let [n, e] = ["n", "e"].map(rsa_member);
    let key = json!({"kty": "RSA", "kid": "k", "alg": "RS256", "n": n, "e": e});
    json!({"keys": [key]}).to_string()
}

/// A member of the key of RFC 7515 appendix A.2, which everybody knows.
fn rsa_member(name: &str) -> String {
    let jwk: Value = serde_json::from_str(include_str!("rfc7515-a2.json")).unwrap();
    jwk.get(name).and_then(Value::as_str).unwrap().to_owned()
}

/// The key of [`key_set`], to sign with.
#[must_use]
pub fn rsa_key() -> RsaKeyPair {
    let part = |name: &str| URL_SAFE_NO_PAD.decode(rsa_member(name)).unwrap();
    RsaKeyPair::from_components(&KeyPairComponents {
        public_key: RsaPublicKeyComponents { n: part("n"), e: part("e") },
        d: part("d"),
        p: part("p"),
        q: part("q"),
        dP: part("dp"),
        dQ: part("dq"),
        qInv: part("qi"),
    })
    .unwrap()
}

fn policy_text() -> String {
    let tokens = format!(
        "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\n\
         metadata: {{name: tokens, namespace: shop}}\n\
         spec: {{jwtRules: [{{issuer: issuer, jwks: '{}'}}]}}\n",
        key_set()
    );
    let policies = (1..=POLICIES).map(|at| {
        let action = if at % 5 == 0 && at != POLICIES { "DENY" } else { "ALLOW" };
        format!(
            "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
             metadata: {{name: p{at:02}, namespace: shop}}\nspec:\n  action: {action}\n  rules:\n\
             \x20 - from: [{{source: {{principals: ['cluster.local/ns/shop/sa/web'], \
             requestPrincipals: ['issuer/*']}}}}]\n\
             \x20   to: [{{operation: {{methods: [GET], paths: ['/service-{at}/*']}}}}]\n"
        )
    });
    tokens + &policies.collect::<String>()
}

/// The bare service.
pub fn router() -> Router {
    Router::new().fallback(get(|| async { "hello" }))
}

/// A mesh with [`policies`], and what a connection of the workload `web` brings into a request.
#[derive(Debug)]
#[non_exhaustive]
pub struct Guarded {
    /// The mesh.
    pub mesh: Mesh,
    /// The facts of a mutual TLS connection.
    pub info: ConnectionInfo,
}

/// Identities of one authority.
#[derive(Debug)]
pub struct World {
    authority: Authority,
    bundles: Arc<BundleSet>,
}

impl Default for World {
    fn default() -> Self {
        let home = "cluster.local".parse().unwrap();
        let day = Duration::from_secs(24 * 3600);
        let authority = Authority::new_root(&home, day, SystemClock.now()).unwrap();
        let bundles = Arc::new(BundleSet::from_bundles([authority.bundle()]).unwrap());
        Self { authority, bundles }
    }
}

impl World {
    /// The name of a service account in the namespace `shop`.
    #[must_use]
    pub fn id(account: &str) -> SpiffeId {
        format!("spiffe://cluster.local/ns/shop/sa/{account}").parse().unwrap()
    }

    /// An identity of this world.
    #[must_use]
    pub fn svid(&self, account: &str) -> Arc<X509Svid> {
        let hour = Duration::from_secs(3600);
        let id = Self::id(account);
        Arc::new(self.authority.issue_svid(&id, hour, SystemClock.now()).unwrap())
    }

    /// The root certificate, in PEM.
    #[must_use]
    pub fn root_pem(&self) -> String {
        self.authority.certificate_pem()
    }

    /// A mesh of the workload `account`.
    #[must_use]
    pub fn mesh(&self, account: &str, policies: Policies) -> Mesh {
        let settings = MeshSettings::new("cluster.local".parse().unwrap());
        Mesh::builder(Workload::new("shop"), settings)
            .observer(Arc::new(Silent))
            .build(self.svid(account), Arc::clone(&self.bundles), policies)
            .unwrap()
    }

    /// Connects as a workload to a service with the identity `server`.
    #[must_use]
    pub fn connector(&self, account: &str, address: std::net::SocketAddr) -> Connector {
        let expected = ExpectedServer::exact(Self::id("server"));
        Connector::new(self.mesh(account, Policies::none()))
            .service("server", address, &expected)
            .protocol(ClientProtocol::Http1)
    }
}

/// Counting is what is measured; printing would be measured too.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Silent;

impl mesh_tower::Observer for Silent {
    fn decided(&self, _: &mesh_tower::DecisionEvent<'_>) {}
    fn connection_refused(&self, _: &mesh_tower::ConnectionEvent) {}
}

impl Guarded {
    /// Makes one real connection, to have its facts.
    pub async fn new() -> Self {
        let world = World::default();
        let mesh = world.mesh("server", Policies::none());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let found = Arc::new(Mutex::new(None));
        let place = Arc::clone(&found);
        let app =
            Router::new().fallback(get(async move |Extension(info): Extension<ConnectionInfo>| {
                *place.lock().unwrap() = Some(info);
            }));
        let serving = mesh.clone();
        tokio::spawn(async move { serving.serve(listener, app, std::future::pending()).await });
        let uri = http::Uri::from_static("https://server/");
        let stream = world.connector("web", address).oneshot(uri).await.unwrap();
        let (mut send, connection) = hyper::client::conn::http1::handshake(stream).await.unwrap();
        tokio::spawn(connection);
        send.send_request(request("")).await.unwrap();
        let info = found.lock().unwrap().take().unwrap();
        mesh.set_policies(policies()).unwrap();
        Self { mesh, info }
    }

    /// The guarded service on a connection inside this process.
    pub async fn connect(&self) -> SendRequest<Empty<Bytes>> {
        let info = self.info.clone();
        let service = self.mesh.layer().layer(router());
        let with_info = service.map_request(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(info.clone());
            request
        });
        connect(with_info).await
    }
}

/// The bare service on a connection inside this process; it gets the same facts.
pub async fn connect_bare(info: &ConnectionInfo) -> SendRequest<Empty<Bytes>> {
    let info = info.clone();
    let with_info = router().map_request(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(info.clone());
        request
    });
    connect(with_info).await
}

async fn connect<S, B>(service: S) -> SendRequest<Empty<Bytes>>
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>,
    S: Clone + Send + 'static,
    S::Future: Send,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (client, server) = tokio::io::duplex(64 * 1024);
    tokio::spawn(async move {
        let service = TowerToHyperService::new(service);
        let serving = hyper::server::conn::http1::Builder::new();
        drop(serving.serve_connection(TokioIo::new(server), service).await);
    });
    let (send, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(client)).await.unwrap();
    tokio::spawn(connection);
    send
}

/// A bearer token for an hour.
#[must_use]
pub fn token() -> String {
    let header = URL_SAFE_NO_PAD.encode("{\"alg\":\"RS256\",\"kid\":\"k\"}");
    let expires = SystemClock.now().as_secs().saturating_add(3600);
    let claims = format!("{{\"iss\":\"issuer\",\"sub\":\"user\",\"exp\":{expires}}}");
    let text = format!("{header}.{}", URL_SAFE_NO_PAD.encode(claims));
    let key = rsa_key();
    let mut signature = vec![0; key.public().modulus_len()];
    key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), text.as_bytes(), &mut signature).unwrap();
    format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature))
}

/// A request that the twentieth policy admits, if the token is [`token`].
#[must_use]
pub fn request(token: &str) -> Request<Empty<Bytes>> {
    Request::get("/service-20/cart")
        .header("host", "server")
        .header("authorization", format!("Bearer {token}"))
        .body(Empty::new())
        .unwrap()
}

/// Sends a request and reads its answer.
pub async fn ask(send: &mut SendRequest<Empty<Bytes>>, request: Request<Empty<Bytes>>) -> u16 {
    send.ready().await.unwrap();
    let response = send.send_request(request).await.unwrap();
    let status = response.status().as_u16();
    response.into_body().collect().await.unwrap();
    status
}
