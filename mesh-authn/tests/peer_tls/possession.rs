//! Whoever shows a certificate must have its key ([SEC-TLS-3]).

use std::process::Command;
use std::sync::Arc;

use mesh_authn::peer::ExpectedServer;
use rustls::client::ResolvesClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::cipher::{
    AeadKey, Iv, MessageDecrypter, MessageEncrypter, OutboundOpaqueMessage, OutboundPlainMessage,
    Tls13AeadAlgorithm, UnsupportedOperationError,
};
use rustls::crypto::ring::cipher_suite;
use rustls::crypto::{CipherSuiteCommon, CryptoProvider};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::{CertifiedKey, Signer, SigningKey};
use rustls::{
    ConnectionTrafficSecrets, ContentType, DigitallySignedStruct, HandshakeType,
    SignatureAlgorithm, SignatureScheme, SupportedCipherSuite, SupportedProtocolVersion,
    Tls13CipherSuite,
};

use crate::handshake::{Failed, shake};
use crate::mint::{CLIENT, Ca, Leaf, SERVER, leaf_params, provider};

/// A verifier that believes everybody, for the other end of a test.
#[derive(Debug)]
pub(crate) struct Trusting;

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
        provider().signature_verification_algorithms.supported_schemes()
    }
}

/// Shows one certificate and signs with one key, whether they belong together or not.
#[derive(Debug)]
pub(crate) struct Shows(pub(crate) Arc<CertifiedKey>);

impl Shows {
    pub(crate) fn leaf(leaf: &Leaf) -> Self {
        Self::with_key(leaf, key(leaf))
    }

    pub(crate) fn with_key(leaf: &Leaf, key: Arc<dyn SigningKey>) -> Self {
        Self(Arc::new(CertifiedKey::new(leaf.chain.clone(), key)))
    }
}

impl ResolvesClientCert for Shows {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl ResolvesServerCert for Shows {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

pub(crate) fn key(leaf: &Leaf) -> Arc<dyn SigningKey> {
    let der = PrivatePkcs8KeyDer::from(leaf.key.serialized_der().to_vec());
    provider().key_provider.load_private_key(PrivateKeyDer::Pkcs8(der)).unwrap()
}

/// How a signature goes wrong.
#[derive(Clone, Copy, Debug)]
enum Cheat {
    Nothing,
    /// Names a scheme that the signature is not of.
    Claims(SignatureScheme),
    /// Signs for the other end: a signature that was made elsewhere, passed on.
    OtherEnd,
    /// Of nothing.
    Empty,
    /// One bit is wrong.
    Bit,
}

#[derive(Debug)]
struct Cheater {
    key: Arc<dyn SigningKey>,
    cheat: Cheat,
}

impl SigningKey for Cheater {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        let signer = self.key.choose_scheme(offered)?;
        Some(Box::new(CheatingSigner { signer, cheat: self.cheat }))
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        self.key.algorithm()
    }
}

#[derive(Debug)]
struct CheatingSigner {
    signer: Box<dyn Signer>,
    cheat: Cheat,
}

impl Signer for CheatingSigner {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        match self.cheat {
            Cheat::Nothing | Cheat::Claims(_) => self.signer.sign(message),
            Cheat::OtherEnd => {
                // RFC 8446 section 4.4.3: 64 spaces, then who signs.
                let mut other = message.to_vec();
                let role = &mut other[64 + "TLS 1.3, ".len()..][..6];
                role.copy_from_slice(if &*role == b"client" { b"server" } else { b"client" });
                self.signer.sign(&other)
            }
            Cheat::Empty => Ok(Vec::new()),
            Cheat::Bit => {
                let mut signature = self.signer.sign(message)?;
                *signature.last_mut().unwrap() ^= 1;
                Ok(signature)
            }
        }
    }

    fn scheme(&self) -> SignatureScheme {
        match self.cheat {
            Cheat::Claims(scheme) => scheme,
            Cheat::Nothing | Cheat::OtherEnd | Cheat::Empty | Cheat::Bit => self.signer.scheme(),
        }
    }
}

/// A client of one version that believes everybody.
fn trusting_client(
    provider: Arc<CryptoProvider>,
    version: &'static SupportedProtocolVersion,
    shows: Arc<dyn ResolvesClientCert>,
) -> rustls::ClientConfig {
    rustls::ClientConfig::builder_with_details(provider, crate::mint::clock())
        .with_protocol_versions(&[version])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Trusting))
        .with_client_cert_resolver(shows)
}

/// A server of one version that asks for no certificate.
fn careless_server(
    provider: Arc<CryptoProvider>,
    version: &'static SupportedProtocolVersion,
    shows: Arc<dyn ResolvesServerCert>,
) -> rustls::ServerConfig {
    rustls::ServerConfig::builder_with_details(provider, crate::mint::clock())
        .with_protocol_versions(&[version])
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(shows)
}

/// Both ends play the cheat in turn: what our server says of a client, and our client of a server.
fn cheat(
    ca: &Ca,
    tls12: bool,
    shown: [&Leaf; 2],
    keys: [Arc<dyn SigningKey>; 2],
) -> [Result<(), Failed>; 2] {
    let exact = ExpectedServer::exact(SERVER.parse().unwrap());
    let [client_key, server_key] = keys;
    let server = ca.server_as(ca.svid(SERVER), tls12).config();
    let client = ca.client_for(exact, tls12).config();
    let mut bad_client = (*client).clone();
    bad_client.client_auth_cert_resolver = Arc::new(Shows::with_key(shown[0], client_key));
    let mut bad_server = (*server).clone();
    bad_server.cert_resolver = Arc::new(Shows::with_key(shown[1], server_key));
    if tls12 {
        // Our client prefers 1.3, so the server it meets must be of 1.2 alone.
        let resolver = Arc::clone(&bad_server.cert_resolver);
        bad_server = careless_server(provider(), &rustls::version::TLS12, resolver);
        let resolver = Arc::clone(&bad_client.client_auth_cert_resolver);
        bad_client = trusting_client(provider(), &rustls::version::TLS12, resolver);
    }
    [shake(Arc::new(bad_client), server).map(drop), shake(client, Arc::new(bad_server)).map(drop)]
}

#[test]
fn sec_tls_3_anothers_certificate_with_our_key() {
    let ca = Ca::new();
    for tls12 in [false, true] {
        let client = ca.leaf(&leaf_params(CLIENT));
        let server = ca.leaf(&leaf_params(SERVER));
        let own = ca.leaf(&leaf_params("spiffe://a.test/ns/evil/sa/evil"));
        let keys = [key(&own), key(&own)];
        let [by_server, by_client] = cheat(&ca, tls12, [&client, &server], keys);
        assert!(matches!(by_server, Err(Failed::Server(_))), "{by_server:?}");
        assert!(matches!(by_client, Err(Failed::Client(_))), "{by_client:?}");
        let keys = [key(&client), key(&server)];
        let honest = cheat(&ca, tls12, [&client, &server], keys);
        assert!(honest.iter().all(Result::is_ok), "{honest:?}");
    }
}

#[test]
fn sec_tls_3_signatures_that_prove_nothing() {
    let ca = Ca::new();
    let (client, server) = (ca.leaf(&leaf_params(CLIENT)), ca.leaf(&leaf_params(SERVER)));
    let run = |tls12, cheat_by| {
        let cheater =
            |leaf| -> Arc<dyn SigningKey> { Arc::new(Cheater { key: key(leaf), cheat: cheat_by }) };
        let keys = [cheater(&client), cheater(&server)];
        cheat(&ca, tls12, [&client, &server], keys)
    };
    for tls12 in [false, true] {
        let honest = run(tls12, Cheat::Nothing);
        assert!(honest.iter().all(Result::is_ok), "{honest:?}");
        let mut cheats = vec![
            Cheat::Empty,
            Cheat::Bit,
            Cheat::Claims(SignatureScheme::ECDSA_SHA1_Legacy),
            Cheat::Claims(SignatureScheme::RSA_PKCS1_SHA1),
            Cheat::Claims(SignatureScheme::RSA_PKCS1_SHA256),
            Cheat::Claims(SignatureScheme::ECDSA_NISTP384_SHA384),
            Cheat::Claims(SignatureScheme::ED25519),
        ];
        if !tls12 {
            cheats.push(Cheat::OtherEnd);
        }
        for cheat in cheats {
            let [by_server, by_client] = run(tls12, cheat);
            let context = format!("{cheat:?}, TLS 1.2: {tls12}");
            assert!(matches!(by_server, Err(Failed::Server(_))), "{context}: {by_server:?}");
            assert!(matches!(by_client, Err(Failed::Client(_))), "{context}: {by_client:?}");
        }
    }
}

/// A signature that is right in every way, but of a scheme that TLS 1.3 has taken out of handshakes
/// (RFC 8446 section 4.2.3): PKCS#1 by an RSA key. The same key with PSS is let in.
#[test]
fn sec_tls_3_no_pkcs1_in_tls13() {
    let Some(pkcs8) = rsa_key() else { return };
    let ca = Ca::new();
    let (client, server) = (ca.rsa_leaf(CLIENT, &pkcs8), ca.rsa_leaf(SERVER, &pkcs8));
    for (scheme, is_good) in
        [(SignatureScheme::RSA_PSS_SHA256, true), (SignatureScheme::RSA_PKCS1_SHA256, false)]
    {
        let signs = |leaf| -> Arc<dyn SigningKey> { Arc::new(Always(key(leaf), scheme)) };
        let keys = [signs(&client), signs(&server)];
        let [by_server, by_client] = cheat(&ca, false, [&client, &server], keys);
        assert_eq!(by_server.is_ok(), is_good, "{scheme:?}: {by_server:?}");
        assert_eq!(by_client.is_ok(), is_good, "{scheme:?}: {by_client:?}");
        if !is_good {
            assert!(matches!(by_server, Err(Failed::Server(_))), "{by_server:?}");
            assert!(matches!(by_client, Err(Failed::Client(_))), "{by_client:?}");
        }
    }
}

/// Signs by one scheme, whatever the other end offers.
#[derive(Debug)]
struct Always(Arc<dyn SigningKey>, SignatureScheme);

impl SigningKey for Always {
    fn choose_scheme(&self, _: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        self.0.choose_scheme(&[self.1])
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        self.0.algorithm()
    }
}

/// A new RSA key in PKCS#8; ring makes none.
fn rsa_key() -> Option<PrivatePkcs8KeyDer<'static>> {
    let made = Command::new("openssl")
        .args(["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"])
        .output();
    if made.is_err() {
        eprintln!("SKIPPED: there is no openssl to make an RSA key");
    }
    made.ok().map(|made| PrivatePkcs8KeyDer::from_pem_slice(&made.stdout).unwrap())
}

/// Encrypts as it should, but leaves a CertificateVerify out of what it is given.
struct WithoutProof(&'static dyn Tls13AeadAlgorithm);

impl Tls13AeadAlgorithm for WithoutProof {
    fn encrypter(&self, key: AeadKey, iv: Iv) -> Box<dyn MessageEncrypter> {
        Box::new(LeavesOut(self.0.encrypter(key, iv)))
    }

    fn decrypter(&self, key: AeadKey, iv: Iv) -> Box<dyn MessageDecrypter> {
        self.0.decrypter(key, iv)
    }

    fn key_len(&self) -> usize {
        self.0.key_len()
    }

    fn extract_keys(
        &self,
        key: AeadKey,
        iv: Iv,
    ) -> Result<ConnectionTrafficSecrets, UnsupportedOperationError> {
        self.0.extract_keys(key, iv)
    }
}

struct LeavesOut(Box<dyn MessageEncrypter>);

impl MessageEncrypter for LeavesOut {
    fn encrypt(
        &mut self,
        message: OutboundPlainMessage<'_>,
        sequence: u64,
    ) -> Result<OutboundOpaqueMessage, rustls::Error> {
        let mut payload = message.payload.to_vec();
        if message.typ == ContentType::Handshake {
            // A flight: type and length in three bytes, then the message, and the next one.
            let mut kept = Vec::new();
            let mut rest = payload.as_slice();
            while let [kind, a, b, c, ..] = *rest {
                let length = 4 + usize::try_from(u32::from_be_bytes([0, a, b, c])).unwrap();
                let (one, others) = rest.split_at(length);
                if HandshakeType::from(kind) != HandshakeType::CertificateVerify {
                    kept.extend_from_slice(one);
                }
                rest = others;
            }
            payload = kept;
        }
        let payload = payload.as_slice().into();
        self.0.encrypt(OutboundPlainMessage { payload, ..message }, sequence)
    }

    fn encrypted_payload_len(&self, length: usize) -> usize {
        self.0.encrypted_payload_len(length)
    }
}

/// Who shows a certificate and says nothing more of its key has shown nothing.
#[test]
fn sec_tls_3_no_proof_at_all() {
    let ca = Ca::new();
    let suite = cipher_suite::TLS13_AES_128_GCM_SHA256.tls13().unwrap();
    let without = Box::leak(Box::new(Tls13CipherSuite {
        common: CipherSuiteCommon {
            suite: suite.common.suite,
            hash_provider: suite.common.hash_provider,
            confidentiality_limit: suite.common.confidentiality_limit,
        },
        hkdf_provider: suite.hkdf_provider,
        aead_alg: Box::leak(Box::new(WithoutProof(suite.aead_alg))),
        quic: None,
    }));
    let bad = |suite| {
        let provider = CryptoProvider { cipher_suites: vec![suite], ..(*provider()).clone() };
        Arc::new(provider)
    };
    for (suite, is_good) in
        [(SupportedCipherSuite::Tls13(suite), true), (SupportedCipherSuite::Tls13(without), false)]
    {
        let shows = |leaf: &Leaf| Arc::new(Shows::leaf(leaf));
        let leaf = shows(&ca.leaf(&leaf_params(CLIENT)));
        let bad_client = trusting_client(bad(suite), &rustls::version::TLS13, leaf);
        let leaf = shows(&ca.leaf(&leaf_params(SERVER)));
        let bad_server = careless_server(bad(suite), &rustls::version::TLS13, leaf);
        let by_server = shake(Arc::new(bad_client), ca.server().config()).map(drop);
        let by_client = shake(ca.client().config(), Arc::new(bad_server)).map(drop);
        if is_good {
            assert!(by_server.is_ok() && by_client.is_ok(), "{by_server:?} {by_client:?}");
            continue;
        }
        let want = rustls::Error::InappropriateHandshakeMessage {
            expect_types: vec![HandshakeType::CertificateVerify],
            got_type: HandshakeType::Finished,
        };
        assert!(matches!(by_server, Err(Failed::Server(error)) if error == want));
        assert!(matches!(by_client, Err(Failed::Client(error)) if error == want));
    }
}
