//! Ends of TLS that keep no rule: what an attacker brings to a real socket.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use mesh_tower::identity::{TrustBundle, X509Authority, X509Svid};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::sign::{CertifiedKey, SigningKey};
use rustls::{
    ClientConfig, DigitallySignedStruct, HandshakeKind, ServerConfig, SignatureScheme,
    SupportedProtocolVersion,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::support::PATIENCE;

pub(crate) type Versions = &'static [&'static SupportedProtocolVersion];
pub(crate) const TLS13: Versions = &[&rustls::version::TLS13];
pub(crate) const TLS12: Versions = &[&rustls::version::TLS12];

/// Believes everybody.
#[derive(Debug)]
struct Trusting;

impl ServerCertVerifier for Trusting {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let provider = rustls::crypto::ring::default_provider();
        provider.signature_verification_algorithms.supported_schemes()
    }
}

/// A chain that nobody has looked at, and a key that need not belong to it.
#[derive(Clone, Debug)]
pub(crate) struct Shown(Arc<CertifiedKey>);

impl Shown {
    pub(crate) fn new(chain: Vec<CertificateDer<'static>>, key: &KeyPair) -> Self {
        Self::with(chain, &PrivatePkcs8KeyDer::from(key.serialize_der()).into())
    }

    pub(crate) fn svid(svid: &X509Svid) -> Self {
        Self::with(svid.chain().to_vec(), &svid.private_key())
    }

    /// One's chain with the other's key.
    pub(crate) fn stolen(chain: &X509Svid, key: &X509Svid) -> Self {
        Self::with(chain.chain().to_vec(), &key.private_key())
    }

    pub(crate) fn of(chain: Vec<CertificateDer<'static>>, key: &X509Svid) -> Self {
        Self::with(chain, &key.private_key())
    }

    fn with(chain: Vec<CertificateDer<'static>>, key: &PrivateKeyDer<'_>) -> Self {
        let key: Arc<dyn SigningKey> = rustls::crypto::ring::sign::any_supported_type(key).unwrap();
        Self(Arc::new(CertifiedKey::new(chain, key)))
    }
}

impl rustls::client::ResolvesClientCert for Shown {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl rustls::server::ResolvesServerCert for Shown {
    fn resolve(&self, _: rustls::server::ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

/// A client that believes every server, shows what it was given, resumes what it can, and would
/// send early data.
#[derive(Clone)]
pub(crate) struct RawClient(pub(crate) ClientConfig);

impl RawClient {
    pub(crate) fn new(shown: Option<Shown>, versions: Versions) -> Self {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Trusting));
        let mut config = match shown {
            Some(shown) => builder.with_client_cert_resolver(Arc::new(shown)),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config.enable_early_data = true;
        Self(config)
    }

    /// Keeps sessions between connections, where the caller keeps the result.
    pub(crate) fn shared(&self) -> Arc<ClientConfig> {
        Arc::new(self.0.clone())
    }
}

/// One request on a connection of its own: how the handshake went, and the answer.
///
/// In TLS 1.3 a client is done before the server has judged it: only the answer tells.
pub(crate) async fn ask(
    config: &Arc<ClientConfig>,
    address: SocketAddr,
    path: &str,
) -> io::Result<(HandshakeKind, u16, String)> {
    let mut stream = open(config, address).await?;
    let kind = stream.get_ref().1.handshake_kind().unwrap();
    assert!(!stream.get_ref().1.is_early_data_accepted(), "[SEC-TLS-9] early data was taken");
    let (status, body) = converse(&mut stream, path).await?;
    Ok((kind, status, body))
}

pub(crate) async fn open(
    config: &Arc<ClientConfig>,
    address: SocketAddr,
) -> io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::try_from("server").unwrap();
    let connecting = TlsConnector::from(Arc::clone(config)).connect(name, stream);
    timeout(PATIENCE, connecting).await.expect("a handshake or an error in time")
}

/// Status and body of an answer to HTTP/1.1; an error where there is none.
pub(crate) async fn converse(
    stream: &mut TlsStream<TcpStream>,
    path: &str,
) -> io::Result<(u16, String)> {
    let head = format!("GET {path} HTTP/1.1\r\nhost: server\r\nconnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    stream.flush().await?;
    let mut answer = Vec::new();
    let read = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("an end in time");
    let answer = String::from_utf8_lossy(&answer);
    let parsed = answer.strip_prefix("HTTP/1.1 ").and_then(|answer| {
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        Some((answer.get(..3)?.parse().ok()?, body.to_owned()))
    });
    parsed.ok_or_else(|| read.err().unwrap_or_else(|| io::ErrorKind::UnexpectedEof.into()))
}

/// A server that asks for no certificate unless told, shows what it was given and takes early data.
pub(crate) fn raw_server(shown: Shown, versions: Versions) -> ServerConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(shown));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.max_early_data_size = 16 * 1024;
    config
}

/// Serves TLS with this configuration; each connection gets `answer` as soon as it has sent
/// anything. Tells how many bytes of application data and of early data were received.
pub(crate) async fn serve_raw(
    config: ServerConfig,
    answer: &'static [u8],
) -> (SocketAddr, tokio::sync::mpsc::UnboundedReceiver<(HandshakeKind, usize, bool)>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let (tell, told) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, tell) = (acceptor.clone(), tell.clone());
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let kind = stream.get_ref().1.handshake_kind().unwrap();
                let early = stream.get_mut().1.early_data().is_some();
                let mut room = [0; 4096];
                let got = stream.read(&mut room).await.unwrap_or(0);
                drop(stream.write_all(answer).await);
                drop(stream.flush().await);
                // The test may not care.
                tell.send((kind, got, early)).ok();
                drop(stream.read(&mut room).await);
            });
        }
    });
    (address, told)
}

/// An authority that signs whatever it is given.
pub(crate) struct AnyCa {
    pub(crate) certificate: CertificateDer<'static>,
    pub(crate) issuer: Issuer<'static, KeyPair>,
}

pub(crate) fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

pub(crate) fn ca_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// A leaf with everything right.
pub(crate) fn leaf_params(id: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![uri(id)];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params
}

impl AnyCa {
    pub(crate) fn root(params: CertificateParams) -> Self {
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap().der().clone();
        Self { certificate, issuer: Issuer::new(params, key) }
    }

    pub(crate) fn sub(&self, params: CertificateParams) -> Self {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        Self { certificate, issuer: Issuer::new(params, key) }
    }

    /// A leaf, shown with what else is sent along.
    pub(crate) fn leaf(&self, params: &CertificateParams, along: &[&Self]) -> Shown {
        let key = KeyPair::generate().unwrap();
        let leaf = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        let along = along.iter().map(|ca| ca.certificate.clone());
        Shown::new(std::iter::once(leaf).chain(along).collect(), &key)
    }

    /// A leaf for an RSA key of so many bits that nobody has.
    pub(crate) fn rsa_leaf(&self, params: &CertificateParams, bits: usize) -> Shown {
        let leaf = params.signed_by(&RsaKey::new(bits), &self.issuer).unwrap().der().clone();
        Shown::new(vec![leaf], &KeyPair::generate().unwrap())
    }

    pub(crate) fn bundle(&self, domain: &str) -> TrustBundle {
        let authority = X509Authority::from_der(self.certificate.clone()).unwrap();
        TrustBundle::new(domain.parse().unwrap()).with_authority(authority)
    }
}

/// An RSA public key without its private part: the modulus odd and its top bit set.
struct RsaKey(Vec<u8>);

impl RsaKey {
    fn new(bits: usize) -> Self {
        fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
            let length = u16::try_from(content.len()).unwrap().to_be_bytes();
            [&[tag, 0x82], &length[..], content].concat()
        }
        let top: u8 = 0xff >> (bits.div_ceil(8) * 8 - bits);
        let sign = if top & 0x80 == 0 { &[][..] } else { &[0] };
        let modulus = [sign, &[top], &vec![0x5b; bits.div_ceil(8) - 1]].concat();
        Self(tlv(0x30, &[tlv(2, &modulus), vec![2, 3, 1, 0, 1]].concat()))
    }
}

impl PublicKeyData for RsaKey {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_RSA_SHA256
    }
}
