//! Server settings: a certificate is shown, and one is demanded.

use std::sync::Arc;

use mesh_identity::{BundleSet, VerifiedPeer, X509Svid};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::UnixTime;
use rustls::server::ServerConnection;
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::SingleCertAndKey;
use rustls::time_provider::TimeProvider;
use rustls::{CipherSuite, ServerConfig, SupportedCipherSuite, version};

use super::error::{PeerError, TlsError};
use super::own_key::own_key;
use super::sessions::ServerSessions;
use super::verifier::{Peer, PeerVerifier};

/// What a server offers: HTTP first, then Istio's name for plain TCP, which the acceptor sniffs.
/// Never `istio-peer-exchange`, which obliges to a preamble.
const PROTOCOLS: &[&[u8]] = &[b"h2", b"http/1.1", b"istio"];

/// Tickets for each handshake of TLS 1.3. Each is taken once, so a client that opens as many
/// connections as before resumes them all.
const TICKETS: usize = 1;

/// Immutable TLS settings of a server; cloning shares them.
///
/// Client certificates are demanded and verified as SVIDs. TLS 1.3, and 1.2 if asked for. Sessions
/// are resumed, each only while its peer's chain is still verified, and only by the settings that
/// it began with: they are kept in these settings' own storage, which no others share
/// ([SEC-TLS-10]). Of the provider's cipher suites AES-128-GCM is preferred, as BoringSSL's and
/// Go's servers prefer it: with AES-256-GCM, TLS derives its keys by SHA-384, which doubles what a
/// resumed handshake costs. A provider without AES-128 has its way. No early data ([SEC-TLS-9]); no key log ([SEC-TLS-16]).
#[derive(Clone, Debug)]
pub struct ServerTls {
    config: Arc<ServerConfig>,
    verifier: Arc<PeerVerifier>,
}

/// Builds a [`ServerTls`]; what is required changes the type, so that it cannot be forgotten.
///
/// ```compile_fail,E0599
/// # fn no_trust(builder: mesh_authn::peer::ServerTlsBuilder<mesh_authn::peer::ServerTls>) {
/// builder.build();
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use = "call `build`"]
pub struct ServerTlsBuilder<State> {
    provider: Arc<CryptoProvider>,
    time: Arc<dyn TimeProvider>,
    tls12: bool,
    state: State,
}

/// The builder still needs [`ServerTlsBuilder::identity`].
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct WantsIdentity;

/// The builder still needs [`ServerTlsBuilder::trust`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct WantsTrust {
    identity: Arc<X509Svid>,
}

/// The builder can be built.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Ready {
    identity: Arc<X509Svid>,
    bundles: Arc<BundleSet>,
}

impl ServerTls {
    /// Begins with the cryptography to use and the clock to judge by.
    pub fn builder(
        provider: Arc<CryptoProvider>,
        time: Arc<dyn TimeProvider>,
    ) -> ServerTlsBuilder<WantsIdentity> {
        ServerTlsBuilder { provider, time, tls12: false, state: WantsIdentity }
    }

    /// The settings for rustls.
    #[must_use]
    pub fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.config)
    }

    /// The peer of a finished handshake, full or resumed, that was made with these settings.
    ///
    /// All checks are made, by the time that is given; of a chain seen before they cost a
    /// comparison.
    ///
    /// # Errors
    ///
    /// Why the peer is not accepted; the connection must be closed then.
    pub fn verified_peer(
        &self,
        connection: &ServerConnection,
        now: UnixTime,
    ) -> Result<VerifiedPeer, PeerError> {
        self.verifier.peer_of(connection.peer_certificates(), connection.is_handshaking(), now)
    }

    /// Judges the peer of an open connection by these settings, which may be newer than those that
    /// the connection was made with ([SEC-TLS-12], [SEC-TLS-13]).
    ///
    /// # Errors
    ///
    /// Why the peer is no longer accepted; the connection must be closed then.
    pub fn recheck(&self, peer: &VerifiedPeer, now: UnixTime) -> Result<VerifiedPeer, PeerError> {
        self.verifier.recheck(peer, now)
    }
}

impl ServerTlsBuilder<WantsIdentity> {
    /// The certificate chain to show and its key.
    pub fn identity(self, identity: Arc<X509Svid>) -> ServerTlsBuilder<WantsTrust> {
        let Self { provider, time, tls12, state: WantsIdentity } = self;
        ServerTlsBuilder { provider, time, tls12, state: WantsTrust { identity } }
    }
}

impl ServerTlsBuilder<WantsTrust> {
    /// Whose identities are believed.
    pub fn trust(self, bundles: Arc<BundleSet>) -> ServerTlsBuilder<Ready> {
        let Self { provider, time, tls12, state: WantsTrust { identity } } = self;
        ServerTlsBuilder { provider, time, tls12, state: Ready { identity, bundles } }
    }
}

impl ServerTlsBuilder<Ready> {
    /// Accepts TLS 1.2 too, with ECDHE and AEAD only, for peers that cannot speak 1.3. They must
    /// speak RFC 7627 (extended master secret): without it, a session could be resumed on behalf of
    /// somebody else's certificate.
    pub fn with_tls12(mut self) -> Self {
        self.tls12 = true;
        self
    }

    /// Makes the settings.
    ///
    /// # Errors
    ///
    /// A key that does not belong to the certificate, or that the provider cannot use.
    pub fn build(self) -> Result<ServerTls, TlsError> {
        let Self { provider, time, tls12, state: Ready { identity, bundles } } = self;
        let key = own_key(&identity, &provider)?;
        let algorithms = provider.signature_verification_algorithms;
        let verifier = Arc::new(PeerVerifier::new(bundles, algorithms, Peer::Client));
        let versions: &[_] =
            if tls12 { &[&version::TLS13, &version::TLS12] } else { &[&version::TLS13] };
        let judge: Arc<dyn ClientCertVerifier> = Arc::<PeerVerifier>::clone(&verifier);
        let provider = prefer_aes_128(provider);
        let sessions = ServerSessions::new(Arc::clone(&verifier), Arc::clone(&time));
        let mut config = ServerConfig::builder_with_details(provider, time)
            .with_protocol_versions(versions)?
            .with_client_cert_verifier(judge)
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
        config.alpn_protocols = PROTOCOLS.iter().map(|name| name.to_vec()).collect();
        config.session_storage = Arc::new(sessions);
        config.send_tls13_tickets = TICKETS;
        config.ignore_client_order = true;
        config.max_early_data_size = 0;
        config.require_ems = true;
        Ok(ServerTls { config: Arc::new(config), verifier })
    }
}

/// The same suites, those with AES-128-GCM first.
fn prefer_aes_128(mut provider: Arc<CryptoProvider>) -> Arc<CryptoProvider> {
    let preferred = |suite: &SupportedCipherSuite| {
        matches!(
            suite.suite(),
            CipherSuite::TLS13_AES_128_GCM_SHA256
                | CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
                | CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256
        )
    };
    if !provider.cipher_suites.is_sorted_by_key(|suite| !preferred(suite)) {
        Arc::make_mut(&mut provider).cipher_suites.sort_by_key(|suite| !preferred(suite));
    }
    provider
}
