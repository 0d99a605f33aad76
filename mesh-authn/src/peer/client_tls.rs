//! Client settings: a certificate is shown, and the server must be who was asked for.

use std::sync::Arc;

use mesh_identity::{BundleSet, VerifiedPeer, X509Svid};
use rustls::client::danger::ServerCertVerifier;
use rustls::client::{ClientConnection, Resumption};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::UnixTime;
use rustls::sign::SingleCertAndKey;
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, version};

use super::error::{PeerError, TlsError};
use super::expected::ExpectedServer;
use super::own_key::own_key;
use super::sessions::ClientSessions;
use super::verifier::{Peer, PeerVerifier};

/// What a client speaks, which decides the names it offers.
///
/// Istio's names must be among them: a sidecar in PERMISSIVE mode terminates TLS only for those.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub enum ClientProtocol {
    /// HTTP/2 or HTTP/1.1, as the server prefers.
    #[default]
    Any,
    /// HTTP/1.1 only.
    Http1,
    /// HTTP/2 only.
    Http2,
}

impl ClientProtocol {
    fn names(self) -> &'static [&'static [u8]] {
        match self {
            Self::Any => &[b"istio-h2", b"istio-http/1.1", b"istio", b"h2", b"http/1.1"],
            Self::Http1 => &[b"istio-http/1.1", b"istio", b"http/1.1"],
            Self::Http2 => &[b"istio-h2", b"istio", b"h2"],
        }
    }
}

/// Immutable TLS settings of a client for one set of expected servers; cloning shares them.
///
/// TLS 1.3, and 1.2 if asked for. Sessions are resumed as with [`super::ServerTls`]: with the
/// settings that they began with, and while what the server has shown is still verified
/// ([SEC-TLS-10]). No early data ([SEC-TLS-9]).
///
/// Servers are told apart by the [`rustls::pki_types::ServerName`] given to rustls, so give
/// different services different names, or settings of their own.
#[derive(Clone, Debug)]
pub struct ClientTls {
    config: Arc<ClientConfig>,
    verifier: Arc<PeerVerifier>,
}

/// Builds a [`ClientTls`]; what is required changes the type, so that it cannot be forgotten.
#[derive(Clone, Debug)]
#[must_use = "call `build`"]
pub struct ClientTlsBuilder<State> {
    provider: Arc<CryptoProvider>,
    time: Arc<dyn TimeProvider>,
    tls12: bool,
    protocol: ClientProtocol,
    state: State,
}

/// The builder still needs [`ClientTlsBuilder::identity`].
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct WantsIdentity;

/// The builder still needs [`ClientTlsBuilder::trust`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct WantsTrust {
    identity: Arc<X509Svid>,
}

/// The builder still needs [`ClientTlsBuilder::expect_server`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct WantsServer {
    identity: Arc<X509Svid>,
    bundles: Arc<BundleSet>,
}

/// The builder can be built.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Ready {
    identity: Arc<X509Svid>,
    bundles: Arc<BundleSet>,
    server: ExpectedServer,
}

impl ClientTls {
    /// Begins with the cryptography to use and the clock to judge by.
    pub fn builder(
        provider: Arc<CryptoProvider>,
        time: Arc<dyn TimeProvider>,
    ) -> ClientTlsBuilder<WantsIdentity> {
        let protocol = ClientProtocol::default();
        ClientTlsBuilder { provider, time, tls12: false, protocol, state: WantsIdentity }
    }

    /// The settings for rustls.
    #[must_use]
    pub fn config(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.config)
    }

    /// The server of a finished handshake, full or resumed, that was made with these settings.
    ///
    /// All checks are made, by the time that is given; of a chain seen before they cost a
    /// comparison.
    ///
    /// # Errors
    ///
    /// Why the server is not accepted; the connection must be closed then.
    pub fn verified_peer(
        &self,
        connection: &ClientConnection,
        now: UnixTime,
    ) -> Result<VerifiedPeer, PeerError> {
        self.verifier.peer_of(connection.peer_certificates(), connection.is_handshaking(), now)
    }

    /// Judges the server of an open connection by these settings, which may be newer than those
    /// that the connection was made with ([SEC-TLS-12], [SEC-TLS-13]).
    ///
    /// # Errors
    ///
    /// Why the server is no longer accepted; the connection must be closed then.
    pub fn recheck(&self, peer: &VerifiedPeer, now: UnixTime) -> Result<VerifiedPeer, PeerError> {
        self.verifier.recheck(peer, now)
    }
}

impl<State> ClientTlsBuilder<State> {
    /// What the client speaks.
    pub fn protocol(mut self, protocol: ClientProtocol) -> Self {
        self.protocol = protocol;
        self
    }

    /// Speaks TLS 1.2 too, with ECDHE and AEAD only, to servers that cannot speak 1.3; with RFC 7627
    /// (extended master secret), as on the other side.
    pub fn with_tls12(mut self) -> Self {
        self.tls12 = true;
        self
    }

    fn map<Next>(self, next: impl FnOnce(State) -> Next) -> ClientTlsBuilder<Next> {
        let Self { provider, time, tls12, protocol, state } = self;
        ClientTlsBuilder { provider, time, tls12, protocol, state: next(state) }
    }
}

impl ClientTlsBuilder<WantsIdentity> {
    /// The certificate chain to show and its key.
    pub fn identity(self, identity: Arc<X509Svid>) -> ClientTlsBuilder<WantsTrust> {
        self.map(|WantsIdentity| WantsTrust { identity })
    }
}

impl ClientTlsBuilder<WantsTrust> {
    /// Whose identities are believed.
    pub fn trust(self, bundles: Arc<BundleSet>) -> ClientTlsBuilder<WantsServer> {
        self.map(|WantsTrust { identity }| WantsServer { identity, bundles })
    }
}

impl ClientTlsBuilder<WantsServer> {
    /// Who must answer.
    pub fn expect_server(self, server: ExpectedServer) -> ClientTlsBuilder<Ready> {
        self.map(|WantsServer { identity, bundles }| Ready { identity, bundles, server })
    }
}

impl ClientTlsBuilder<Ready> {
    /// Makes the settings.
    ///
    /// # Errors
    ///
    /// A key that does not belong to the certificate, or that the provider cannot use.
    pub fn build(self) -> Result<ClientTls, TlsError> {
        let Self { provider, time, tls12, protocol, state } = self;
        let Ready { identity, bundles, server } = state;
        let key = own_key(&identity, &provider)?;
        let algorithms = provider.signature_verification_algorithms;
        let sessions = Arc::new(ClientSessions::new(Arc::clone(&time)));
        let peer = Peer::Server { expected: server, sessions: Arc::clone(&sessions) };
        let verifier = Arc::new(PeerVerifier::new(bundles, algorithms, peer));
        let versions: &[_] =
            if tls12 { &[&version::TLS13, &version::TLS12] } else { &[&version::TLS13] };
        let judge: Arc<dyn ServerCertVerifier> = Arc::<PeerVerifier>::clone(&verifier);
        let mut config = ClientConfig::builder_with_details(provider, time)
            .with_protocol_versions(versions)?
            .dangerous()
            .with_custom_certificate_verifier(judge)
            .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
        config.alpn_protocols = protocol.names().iter().map(|name| name.to_vec()).collect();
        config.resumption = Resumption::store(sessions);
        config.enable_early_data = false;
        config.require_ems = true;
        Ok(ClientTls { config: Arc::new(config), verifier })
    }
}

/// Settings for a server that must prove an SVID to a client that shows none, as a bundle endpoint of
/// the profile `https_spiffe` does (SPIFFE Federation section 5.2.2).
///
/// TLS 1.3 and 1.2; nothing is resumed.
///
/// # Errors
///
/// A provider that can speak neither.
pub fn endpoint_client_config(
    provider: Arc<CryptoProvider>,
    time: Arc<dyn TimeProvider>,
    bundles: Arc<BundleSet>,
    expected: ExpectedServer,
) -> Result<Arc<ClientConfig>, TlsError> {
    let algorithms = provider.signature_verification_algorithms;
    let sessions = Arc::new(ClientSessions::new(Arc::clone(&time)));
    let verifier = PeerVerifier::new(bundles, algorithms, Peer::Server { expected, sessions });
    let mut config = ClientConfig::builder_with_details(provider, time)
        .with_protocol_versions(&[&version::TLS13, &version::TLS12])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    config.require_ems = true;
    Ok(Arc::new(config))
}
