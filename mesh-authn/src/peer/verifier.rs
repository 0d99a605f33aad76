//! rustls' verifiers: the SVID rules for the chain, rustls' own functions for the proof of
//! possession ([SEC-TLS-3], [SEC-TLS-4]).

use std::sync::Arc;

use mesh_identity::x509::{Role, VerifiedSvid, verify_svid};
use mesh_identity::{BundleSet, VerifiedPeer};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, SignatureScheme,
};

use super::error::PeerError;
use super::expected::ExpectedServer;

/// Verifies chains against one set of bundles. A changed set is a new verifier ([SEC-TLS-10]).
#[derive(Debug)]
pub(super) struct PeerVerifier {
    bundles: Arc<BundleSet>,
    algorithms: WebPkiSupportedAlgorithms,
    peer: Peer,
}

/// Who is on the other end, and what is asked of it.
#[derive(Debug)]
pub(super) enum Peer {
    Client,
    Server(ExpectedServer),
}

impl PeerVerifier {
    pub(super) fn new(
        bundles: Arc<BundleSet>,
        algorithms: WebPkiSupportedAlgorithms,
        peer: Peer,
    ) -> Self {
        Self { bundles, algorithms, peer }
    }

    /// All checks of a chain, or a refusal.
    fn verify(
        &self,
        chain: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<VerifiedSvid, PeerError> {
        let role = match self.peer {
            Peer::Client => Role::Client,
            Peer::Server(_) => Role::Server,
        };
        let svid = verify_svid(chain, &self.bundles, now, role, self.algorithms.all)?;
        match &self.peer {
            Peer::Server(expected) if !expected.accepts(svid.id()) => {
                let (seen, expected) = (svid.id().clone(), expected.clone());
                Err(PeerError::UnexpectedServer { seen, expected })
            }
            Peer::Client | Peer::Server(_) => Ok(svid),
        }
    }

    /// The peer of a finished handshake, from the chain that rustls holds.
    ///
    /// rustls has checked that the peer possesses the leaf's key; the chain is judged again here,
    /// by now's time, because that is what the connection will be used by.
    pub(super) fn peer_of(
        &self,
        chain: Option<&[CertificateDer<'static>]>,
        is_handshaking: bool,
        now: UnixTime,
    ) -> Result<VerifiedPeer, PeerError> {
        let chain = chain.filter(|_| !is_handshaking).ok_or(PeerError::NoCertificate)?;
        let svid = self.verify(chain, now)?;
        let peer = VerifiedPeer::assert_verified(svid.id().clone());
        Ok(peer.with_chain(chain, svid.not_after()))
    }

    fn verify_for_rustls(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let chain: Vec<CertificateDer<'_>> = std::iter::once(end_entity)
            .chain(intermediates)
            .map(|one| CertificateDer::from(one.as_ref()))
            .collect();
        self.verify(&chain, now).map(drop).map_err(|error| {
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
    /// The name is not looked at: SPIFFE identifies workloads, not hosts (X509-SVID section 5).
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.verify_for_rustls(end_entity, intermediates, now)?;
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
