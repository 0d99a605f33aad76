//! rustls' verifiers: the SVID rules for the chain, rustls' own functions for the proof of
//! possession ([SEC-TLS-3], [SEC-TLS-4]).

use std::sync::Arc;

use mesh_identity::x509::{Role, verify_svid};
use mesh_identity::{BundleSet, VerifiedPeer};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, SignatureScheme,
};

use super::chains::{Chains, Presented, SeenChain};
use super::error::PeerError;
use super::expected::ExpectedServer;
use super::sessions::ClientSessions;

/// Verifies chains against one set of bundles. A changed set is a new verifier, with nothing
/// remembered ([SEC-TLS-10]).
#[derive(Debug)]
pub(super) struct PeerVerifier {
    bundles: Arc<BundleSet>,
    algorithms: WebPkiSupportedAlgorithms,
    peer: Peer,
    chains: Chains,
}

/// Who is on the other end, and what is asked of it.
#[derive(Debug)]
pub(super) enum Peer {
    Client,
    Server { expected: ExpectedServer, sessions: Arc<ClientSessions> },
}

impl PeerVerifier {
    pub(super) fn new(
        bundles: Arc<BundleSet>,
        algorithms: WebPkiSupportedAlgorithms,
        peer: Peer,
    ) -> Self {
        Self { bundles, algorithms, peer, chains: Chains::new() }
    }

    /// All checks of a chain, or a refusal. A chain that was verified before is not verified again
    /// while that verdict stands.
    pub(super) fn verify(
        &self,
        presented: Presented<'_>,
        now: UnixTime,
    ) -> Result<Arc<SeenChain>, PeerError> {
        let seen = match self.chains.get(presented, now) {
            Some(seen) => seen,
            None => self.verify_new(presented, now)?,
        };
        match &self.peer {
            Peer::Server { expected, .. } if !expected.accepts(seen.svid.id()) => {
                let (seen, expected) = (seen.svid.id().clone(), expected.clone());
                Err(PeerError::UnexpectedServer { seen, expected })
            }
            Peer::Client | Peer::Server { .. } => Ok(seen),
        }
    }

    fn verify_new(
        &self,
        presented: Presented<'_>,
        now: UnixTime,
    ) -> Result<Arc<SeenChain>, PeerError> {
        let Presented { leaf, intermediates } = presented;
        let role = match self.peer {
            Peer::Client => Role::Client,
            Peer::Server { .. } => Role::Server,
        };
        let chain = std::iter::once(leaf).chain(intermediates);
        let chain: Arc<[_]> = chain.map(|one| one.clone().into_owned()).collect();
        let svid = verify_svid(&chain, &self.bundles, now, role, self.algorithms.all)?;
        let seen = Arc::new(SeenChain { chain, svid });
        self.chains.insert(&seen);
        Ok(seen)
    }

    /// The peer of a finished handshake, full or resumed, from the chain that rustls holds.
    ///
    /// rustls has checked that the peer possesses the leaf's key, or the secret of a session that
    /// began so; the chain is judged again here, by now's time, because that is what the
    /// connection will be used by.
    pub(super) fn peer_of(
        &self,
        chain: Option<&[CertificateDer<'static>]>,
        is_handshaking: bool,
        now: UnixTime,
    ) -> Result<VerifiedPeer, PeerError> {
        let chain = chain.filter(|_| !is_handshaking).ok_or(PeerError::NoCertificate)?;
        self.judge(chain, now)
    }

    /// The peer that a chain is of, which somebody has proven to possess.
    fn judge(
        &self,
        chain: &[CertificateDer<'static>],
        now: UnixTime,
    ) -> Result<VerifiedPeer, PeerError> {
        let (leaf, intermediates) = chain.split_first().ok_or(PeerError::NoCertificate)?;
        let seen = self.verify(Presented { leaf, intermediates }, now)?;
        let peer = VerifiedPeer::assert_verified(seen.svid.id().clone())
            .with_chain(Arc::clone(&seen.chain), seen.svid.not_after())
            .with_authority(seen.svid.authority().clone());
        Ok(peer)
    }

    /// The peer of an open connection, judged again ([SEC-TLS-13]).
    pub(super) fn recheck(
        &self,
        peer: &VerifiedPeer,
        now: UnixTime,
    ) -> Result<VerifiedPeer, PeerError> {
        self.judge(peer.chain(), now)
    }

    fn verify_for_rustls(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<Arc<SeenChain>, rustls::Error> {
        self.verify(Presented { leaf, intermediates }, now).map_err(|error| {
            let error = CertificateError::Other(OtherError(Arc::new(error)));
            rustls::Error::InvalidCertificate(error)
        })
    }
}

impl ClientCertVerifier for PeerVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // Meshes have one identity for each workload; hints would only name our authorities.
        &[]
    }

    fn client_auth_mandatory(&self) -> bool {
        true
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.verify_for_rustls(end_entity, intermediates, now)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ServerCertVerifier for PeerVerifier {
    /// The name is not verified: SPIFFE identifies workloads, not hosts (X509-SVID section 5).
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let seen = self.verify_for_rustls(end_entity, intermediates, now)?;
        if let Peer::Server { sessions, .. } = &self.peer {
            sessions.verified(name, seen.svid.validity());
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
