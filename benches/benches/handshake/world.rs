//! Identities for the handshakes: one root, one intermediate, a server and as many clients as there
//! are rounds.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use mesh_authn::peer::ServerTls;
use mesh_identity::{BundleSet, TrustBundle, X509Authority, X509Svid};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType, date_time_ymd,
};
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::time_provider::TimeProvider;
use rustls::{
    CipherSuite, ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme,
    version,
};

/// 2027-01-15T08:00:00Z.
const NOW: u64 = 1_800_000_000;

pub(crate) struct World {
    root: CertificateDer<'static>,
    server: Leaf,
    clients: Vec<Leaf>,
    provider: Arc<CryptoProvider>,
}

struct Leaf {
    chain: Vec<CertificateDer<'static>>,
    key: KeyPair,
}

impl Leaf {
    fn key(&self) -> PrivatePkcs8KeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key.serialized_der().to_vec())
    }
}

#[derive(Debug)]
struct Fixed;

impl TimeProvider for Fixed {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(NOW)))
    }
}

impl World {
    pub(crate) fn new(clients: usize) -> Self {
        let mut params = params();
        params.distinguished_name.push(DnType::CommonName, "root");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().unwrap();
        let root = params.self_signed(&key).unwrap().der().clone();
        let issuer = Issuer::new(params.clone(), key);
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "intermediate");
        let key = KeyPair::generate().unwrap();
        let between = params.signed_by(&key, &issuer).unwrap().der().clone();
        let issuer = Issuer::new(params, key);
        let leaf = |account: &str| {
            let key = KeyPair::generate().unwrap();
            let leaf = leaf_params(account).signed_by(&key, &issuer).unwrap();
            Leaf { chain: vec![leaf.der().clone(), between.clone()], key }
        };
        let server = leaf("server");
        let clients = (0..=clients).map(|number| leaf(&format!("client-{number}"))).collect();
        Self { root, server, clients, provider: provider() }
    }

    /// The server as this project builds it.
    pub(crate) fn ours(&self) -> ServerTls {
        self.ours_by(Arc::clone(&self.provider))
    }

    /// The same with one cipher suite.
    pub(crate) fn ours_with(&self, suite: CipherSuite) -> ServerTls {
        let mut provider = CryptoProvider::clone(&self.provider);
        provider.cipher_suites.retain(|one| one.suite() == suite);
        self.ours_by(Arc::new(provider))
    }

    fn ours_by(&self, provider: Arc<CryptoProvider>) -> ServerTls {
        let svid = X509Svid::from_der(self.server.chain.clone(), &self.server.key()).unwrap();
        let bundle = TrustBundle::new("a.test".parse().unwrap())
            .with_authority(X509Authority::from_der(self.root.clone()).unwrap());
        ServerTls::builder(provider, Arc::new(Fixed))
            .identity(Arc::new(svid))
            .trust(Arc::new(BundleSet::from_bundles([bundle]).unwrap()))
            .build()
            .unwrap()
    }

    /// The server as rustls' documentation builds it; on request it takes AES-128 as ours does.
    pub(crate) fn bare(&self, aes_128: bool) -> Arc<ServerConfig> {
        let mut provider = CryptoProvider::clone(&self.provider);
        if aes_128 {
            let suite = CipherSuite::TLS13_AES_128_GCM_SHA256;
            provider.cipher_suites.retain(|one| one.suite() == suite);
        }
        let provider = Arc::new(provider);
        let mut roots = RootCertStore::empty();
        roots.add(self.root.clone()).unwrap();
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
                .build()
                .unwrap();
        let mut config = ServerConfig::builder_with_details(Arc::clone(&provider), Arc::new(Fixed))
            .with_protocol_versions(&[&version::TLS13])
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(self.server.chain.clone(), self.server.key().into())
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Arc::new(config)
    }

    /// A client of its own; its work is not measured.
    pub(crate) fn client(&self, number: usize, resumes: bool) -> Arc<ClientConfig> {
        let leaf = self.clients.get(number).unwrap();
        let mut config =
            ClientConfig::builder_with_details(Arc::clone(&self.provider), Arc::new(Fixed))
                .with_protocol_versions(&[&version::TLS13])
                .unwrap()
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(Trusting(Arc::clone(&self.provider))))
                .with_client_auth_cert(leaf.chain.clone(), leaf.key().into())
                .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        if !resumes {
            config.resumption = Resumption::disabled();
        }
        Arc::new(config)
    }
}

pub(crate) fn now() -> UnixTime {
    Fixed.current_time().unwrap()
}

pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.not_before = date_time_ymd(2027, 1, 15);
    params.not_after = date_time_ymd(2027, 1, 16);
    params
}

fn leaf_params(account: &str) -> CertificateParams {
    let mut params = params();
    let id = format!("spiffe://a.test/ns/shop/sa/{account}");
    params.subject_alt_names = vec![SanType::URI(id.try_into().unwrap())];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params
}

/// Believes every server: the clients are here to make work for servers.
struct Trusting(Arc<CryptoProvider>);

impl fmt::Debug for Trusting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Trusting")
    }
}

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
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
