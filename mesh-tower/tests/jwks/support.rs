//! A service in the mesh, and an issuer of ES256 tokens.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use mesh_ca::Authority;
use mesh_tower::identity::{BundleSet, MeshSettings, Workload};
use mesh_tower::{Clock, Mesh, Policies, SystemClock};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A P-256 key that signs tokens.
pub(crate) struct TokenKey {
    kid: &'static str,
    pair: EcdsaKeyPair,
}

impl TokenKey {
    pub(crate) fn generate(kid: &'static str) -> Self {
        let random = SystemRandom::new();
        let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), &random).unwrap();
        Self { kid, pair }
    }

    pub(crate) fn jwks(&self) -> String {
        let (x, y) = self.pair.public_key().as_ref()[1..].split_at(32);
        let [x, y] = [x, y].map(|part| URL_SAFE_NO_PAD.encode(part));
        let kid = self.kid;
        format!(
            "{{\"keys\":[{{\"kty\":\"EC\",\"crv\":\"P-256\",\"alg\":\"ES256\",\
             \"kid\":\"{kid}\",\"x\":\"{x}\",\"y\":\"{y}\"}}]}}"
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

/// One service on plain text.
pub(crate) struct World {
    pub(crate) mesh: Mesh,
    address: SocketAddr,
}

impl World {
    pub(crate) async fn start() -> Self {
        let home = "cluster.local".parse().unwrap();
        let now = SystemClock.now();
        let day = Duration::from_secs(24 * 3600);
        let authority = Authority::new_root(&home, day, now).unwrap();
        let id = "spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap();
        let svid = Arc::new(authority.issue_svid(&id, Duration::ZERO, now).unwrap());
        let bundles = Arc::new(BundleSet::from_bundles([authority.bundle()]).unwrap());
        let mesh = Mesh::builder(Workload::new("shop"), MeshSettings::new(home))
            .build(svid, bundles, Policies::none())
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let app = Router::new().route("/", get(|| async { "ok" }));
        let serving = mesh.clone();
        tokio::spawn(async move { serving.serve(listener, app, std::future::pending()).await });
        Self { mesh, address }
    }

    /// The status of a request with this bearer token.
    pub(crate) async fn status_with(&self, token: &str) -> u16 {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let request = format!(
            "GET / HTTP/1.1\r\nhost: cart\r\nauthorization: Bearer {token}\r\n\
             connection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer.split(' ').nth(1).unwrap().parse().unwrap()
    }
}
