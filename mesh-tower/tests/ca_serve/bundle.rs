//! The SPIFFE bundle endpoint, both profiles, and OIDC's documents.

use std::sync::Arc;

use http_body_util::{BodyExt as _, Empty};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use mesh_ca::serve::BundleEndpoint;
use mesh_tower::identity::BundleSet;
use mesh_tower::identity::TrustBundle;
use mesh_tower::identity::x509::{Role, verify_svid};
use rcgen::{CertificateParams, KeyPair};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::client::TlsStream;

use crate::support::{World, ends};

/// What the server proves itself with is looked at by the test.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}

async fn shake_hands(address: std::net::SocketAddr, config: ClientConfig) -> TlsStream<TcpStream> {
    let stream = TcpStream::connect(address).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    connector.connect("ca.example".try_into().unwrap(), stream).await.unwrap()
}

struct Client {
    send: http1::SendRequest<Empty<Bytes>>,
    chain: Vec<CertificateDer<'static>>,
}

impl Client {
    async fn connect(address: std::net::SocketAddr, config: ClientConfig) -> Self {
        let stream = shake_hands(address, config).await;
        let chain = stream.get_ref().1.peer_certificates().unwrap().to_vec();
        let (send, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(async move { connection.await.ok() });
        Self { send, chain }
    }

    async fn get(&mut self, method: &str, path: &str) -> (u16, String, String) {
        let request = http::Request::builder().method(method).uri(path).header("host", "ca");
        let request = request.body(Empty::new()).unwrap();
        let response = self.send.send_request(request).await.unwrap();
        let kind = response.headers().get("content-type");
        let kind = kind.map_or("", |kind| kind.to_str().unwrap()).to_owned();
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, kind, String::from_utf8(body.to_vec()).unwrap())
    }
}

fn builder() -> rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap()
}

/// SPIFFE Federation section 5.2.2: the server shows an SVID of the endpoint's identity, which the
/// bundle that it serves verifies.
#[tokio::test]
async fn https_spiffe_serves_the_bundle_and_proves_itself_with_an_svid() {
    let world = World::start();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let endpoint_id = "spiffe://cluster.local/ca".parse().unwrap();
    let (service, endpoint) = (world.service.clone(), BundleEndpoint::Spiffe(endpoint_id));
    tokio::spawn(
        async move { service.serve_bundle(listener, endpoint, std::future::pending()).await },
    );
    let anybody = builder().dangerous().with_custom_certificate_verifier(Arc::new(Anybody));
    let mut client = Client::connect(address, anybody.with_no_client_auth()).await;
    let (status, kind, body) = client.get("GET", "/").await;
    assert_eq!((status, kind.as_str()), (200, "application/json"));
    let bundle = TrustBundle::from_json("cluster.local".parse().unwrap(), &body).unwrap();
    assert_eq!(bundle.x509_authorities(), world.service.ca().bundle().x509_authorities());
    assert_eq!(bundle.jwt_authorities().len(), 1);
    assert!(bundle.sequence().is_some());
    let bundles = BundleSet::from_bundles([bundle]).unwrap();
    let algorithms = rustls::crypto::ring::default_provider().signature_verification_algorithms.all;
    let now = world.clock.now();
    let verified = verify_svid(&client.chain, &bundles, now, Role::Server, algorithms).unwrap();
    assert_eq!(verified.id().as_str(), "spiffe://cluster.local/ca");

    let (status, _, body) = client.get("GET", "/.well-known/openid-configuration").await;
    let document: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, &document["jwks_uri"]), (200, &"https://ca.cluster.local/keys".into()));
    let (status, _, body) = client.get("GET", "/keys").await;
    let keys: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, &keys["keys"][0]["use"]), (200, &"sig".into()));
    for (method, path, want) in
        [("GET", "/other", 404), ("POST", "/", 405), ("DELETE", "/keys", 405), ("HEAD", "/", 200)]
    {
        assert_eq!(client.get(method, path).await.0, want, "{method} {path}");
    }
    // A new root is there as soon as it is published, with a higher sequence.
    let before = world.service.ca().bundle().sequence();
    world.service.ca().rotate_root_now(world.clock.now()).unwrap();
    let (_, _, body) = client.get("GET", "/").await;
    let bundle = TrustBundle::from_json("cluster.local".parse().unwrap(), &body).unwrap();
    assert_eq!(bundle.x509_authorities().len(), 2);
    assert!(bundle.sequence() > before);
}

/// SPIFFE Federation section 5.2.1: an ordinary certificate of the web.
#[tokio::test]
async fn https_web_proves_itself_with_a_certificate_of_the_web() {
    let world = World::start();
    let key = KeyPair::generate().unwrap();
    let certificate =
        CertificateParams::new(vec!["ca.example".to_owned()]).unwrap().self_signed(&key).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let folder = std::env::temp_dir().join(format!("mesh-ca-web-{}", address.port()));
    std::fs::create_dir_all(&folder).unwrap();
    let (chain_file, key_file) = (folder.join("chain.pem"), folder.join("key.pem"));
    std::fs::write(&key_file, key.serialize_pem()).unwrap();
    let endpoint = || BundleEndpoint::Web { chain: chain_file.clone(), key: key_file.clone() };
    // Without a certificate it says which file is missing and does not start.
    let none = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let error = world.service.serve_bundle(none, endpoint(), std::future::pending()).await;
    let error = error.unwrap_err().to_string();
    assert!(error.contains("chain.pem"), "{error}");
    std::fs::write(&chain_file, certificate.pem()).unwrap();
    let (service, web) = (world.service.clone(), endpoint());
    tokio::spawn(async move { service.serve_bundle(listener, web, std::future::pending()).await });
    let mut roots = RootCertStore::empty();
    roots.add(certificate.der().clone()).unwrap();
    let config = builder().with_root_certificates(roots).with_no_client_auth();
    let (status, _, body) = Client::connect(address, config).await.get("GET", "/").await;
    assert_eq!(status, 200);
    assert!(TrustBundle::from_json("cluster.local".parse().unwrap(), &body).is_ok());
    std::fs::remove_dir_all(folder).unwrap();
}

/// [SEC-HTTP-14] Who has shaken hands and asks nothing keeps no place for long, whatever protocol
/// he has in mind.
#[tokio::test]
async fn sec_http_14_a_silent_reader_is_sent_away() {
    let world = World::start();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let endpoint = BundleEndpoint::Spiffe("spiffe://cluster.local/ca".parse().unwrap());
    let service = world.service.clone();
    tokio::spawn(
        async move { service.serve_bundle(listener, endpoint, std::future::pending()).await },
    );
    let silent = [&b""[..], b"GET / HTTP/1.1\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"];
    let mut ending = tokio::task::JoinSet::new();
    for said in silent {
        let anybody = builder().dangerous().with_custom_certificate_verifier(Arc::new(Anybody));
        let mut stream = shake_hands(address, anybody.with_no_client_auth()).await;
        stream.write_all(said).await.unwrap();
        ending.spawn(ends(stream));
    }
    ending.join_all().await;
}
