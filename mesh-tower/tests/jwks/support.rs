//! A service in the mesh, and an issuer of ES256 tokens.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::routing::get;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Empty};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use mesh_ca::Authority;
use mesh_tower::authn::request::RefreshPolicy;
use mesh_tower::identity::{BundleSet, MeshSettings, Workload};
use mesh_tower::{Clock, HttpKeyFetcher, Mesh, MeshBuilder, Policies, SystemClock};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use rustls::RootCertStore;
use tokio::net::TcpListener;

/// A P-256 key that signs tokens.
pub(crate) struct TokenKey {
    kid: String,
    pair: EcdsaKeyPair,
}

impl TokenKey {
    pub(crate) fn generate(kid: &str) -> Self {
        let random = SystemRandom::new();
        let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), &random).unwrap();
        Self { kid: kid.to_owned(), pair }
    }

    pub(crate) fn jwks(&self) -> String {
        jwks([self])
    }

    fn jwk(&self) -> String {
        let (x, y) = self.pair.public_key().as_ref()[1..].split_at(32);
        let [x, y] = [x, y].map(|part| URL_SAFE_NO_PAD.encode(part));
        let kid = &self.kid;
        format!(
            "{{\"kty\":\"EC\",\"crv\":\"P-256\",\"alg\":\"ES256\",\
             \"kid\":\"{kid}\",\"x\":\"{x}\",\"y\":\"{y}\"}}"
        )
    }

    pub(crate) fn token(&self, issuer: &str) -> String {
        let expires = SystemClock.now().as_secs() + 3600;
        let header = format!("{{\"alg\":\"ES256\",\"kid\":\"{}\"}}", self.kid);
        let claims = format!("{{\"iss\":\"{issuer}\",\"sub\":\"u\",\"exp\":{expires}}}");
        let [header, claims] = [header, claims].map(|part| URL_SAFE_NO_PAD.encode(part));
        let text = format!("{header}.{claims}");
        let signature = self.pair.sign(&SystemRandom::new(), text.as_bytes()).unwrap();
        format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

/// A set of these keys.
pub(crate) fn jwks<'k>(keys: impl IntoIterator<Item = &'k TokenKey>) -> String {
    let keys: Vec<String> = keys.into_iter().map(TokenKey::jwk).collect();
    format!("{{\"keys\":[{}]}}", keys.join(","))
}

/// One service on plain text.
pub(crate) struct World {
    pub(crate) mesh: Mesh,
    pub(crate) address: SocketAddr,
    client: Client<HttpConnector, Empty<Bytes>>,
}

impl World {
    pub(crate) async fn start() -> Self {
        Self::start_with(|builder| builder).await
    }

    pub(crate) async fn start_with(more: impl FnOnce(MeshBuilder) -> MeshBuilder) -> Self {
        let home = "cluster.local".parse().unwrap();
        let now = SystemClock.now();
        let day = Duration::from_secs(24 * 3600);
        let authority = Authority::new_root(&home, day, now).unwrap();
        let id = "spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap();
        let svid = Arc::new(authority.issue_svid(&id, Duration::ZERO, now).unwrap());
        let bundles = Arc::new(BundleSet::from_bundles([authority.bundle()]).unwrap());
        let mesh = more(Mesh::builder(Workload::new("shop"), MeshSettings::new(home)))
            .build(svid, bundles, Policies::none())
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let app = Router::new().route("/", get(|| async { "ok" }));
        let serving = mesh.clone();
        tokio::spawn(async move { serving.serve(listener, app, std::future::pending()).await });
        let client = Client::builder(TokioExecutor::new()).build_http();
        Self { mesh, address, client }
    }

    /// Puts rules into force.
    pub(crate) fn set_rules(&self, rules: &str) {
        let text = format!(
            "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\n\
             metadata: {{name: jwt, namespace: shop}}\nspec: {{jwtRules: [{rules}]}}\n"
        );
        self.mesh.set_policies(Policies::read([("p", &*text)], "shop").unwrap()).unwrap();
    }

    /// The status of a request with this bearer token.
    pub(crate) async fn status_with(&self, token: &str) -> u16 {
        let request = Request::get(format!("http://{}/", self.address))
            .header("authorization", format!("Bearer {token}"))
            .body(Empty::new())
            .unwrap();
        let response = self.client.request(request).await.unwrap();
        let status = response.status().as_u16();
        response.into_body().collect().await.unwrap();
        status
    }

    /// Waits until a token is accepted.
    pub(crate) async fn accepts(&self, token: &str) {
        let begun = Instant::now();
        while self.status_with(token).await != 200 {
            assert!(begun.elapsed() < Duration::from_secs(10), "never accepted");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// A fetcher that may use plain HTTP.
pub(crate) fn fetcher() -> HttpKeyFetcher {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    HttpKeyFetcher::new(provider, RootCertStore::empty()).unwrap().allow_plain_http()
}

/// Keys are looked at every second.
pub(crate) fn every_second() -> RefreshPolicy {
    let mut refresh = RefreshPolicy::default();
    (refresh.interval, refresh.cool_down) = (1, 1);
    refresh
}
