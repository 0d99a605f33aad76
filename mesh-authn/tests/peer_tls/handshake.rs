//! Handshakes that succeed, and what they have agreed on.

use std::io::{Read as _, Write as _};
use std::sync::Arc;

use mesh_authn::peer::{ClientProtocol, ClientTls, ExpectedServer, PeerError};
use rustls::crypto::CryptoProvider;
use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection};

use crate::mint::{CLIENT, Ca, NOW, SERVER, at, clock, now, provider};

/// Both ends after a handshake.
pub(crate) type Ends = (ClientConnection, ServerConnection);

/// Who failed first.
#[derive(Debug)]
pub(crate) enum Failed {
    Client(rustls::Error),
    Server(rustls::Error),
}

/// Carries records to and fro until both ends are content and silent.
pub(crate) fn shake(client: Arc<ClientConfig>, server: Arc<ServerConfig>) -> Result<Ends, Failed> {
    let name = "outbound_.9080_._.reviews.default.svc.cluster.local".try_into().unwrap();
    let mut client = ClientConnection::new(client, name).unwrap();
    let mut server = ServerConnection::new(server).unwrap();
    loop {
        let mut moved = false;
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        moved |= !wire.is_empty();
        let mut unread = wire.as_slice();
        while !unread.is_empty() {
            server.read_tls(&mut unread).unwrap();
            server.process_new_packets().map_err(Failed::Server)?;
        }
        let mut wire = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        moved |= !wire.is_empty();
        let mut unread = wire.as_slice();
        while !unread.is_empty() {
            client.read_tls(&mut unread).unwrap();
            client.process_new_packets().map_err(Failed::Client)?;
        }
        if !moved {
            assert!(!client.is_handshaking() && !server.is_handshaking());
            return Ok((client, server));
        }
    }
}

#[test]
fn sec_tls_5_each_end_knows_the_other() {
    let ca = Ca::new();
    let (server_tls, client_tls) = (ca.server(), ca.client());
    let (mut client, mut server) = shake(client_tls.config(), server_tls.config()).unwrap();
    let peer = server_tls.verified_peer(&server, now()).unwrap();
    assert_eq!(peer.id().as_str(), CLIENT);
    let peer = client_tls.verified_peer(&client, now()).unwrap();
    assert_eq!(peer.id().as_str(), SERVER);
    assert_eq!(client.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    // And bytes go through.
    client.writer().write_all(b"hello").unwrap();
    let mut wire = Vec::new();
    client.write_tls(&mut wire).unwrap();
    server.read_tls(&mut wire.as_slice()).unwrap();
    server.process_new_packets().unwrap();
    let mut got = [0; 5];
    server.reader().read_exact(&mut got).unwrap();
    assert_eq!(&got, b"hello");
    // Nothing of this needed or left a process-wide provider.
    assert!(CryptoProvider::get_default().is_none());
}

#[test]
fn sec_tls_2_no_peer_before_the_handshake_is_done() {
    let ca = Ca::new();
    let (server_tls, client_tls) = (ca.server(), ca.client());
    let server = ServerConnection::new(server_tls.config()).unwrap();
    let client = ClientConnection::new(client_tls.config(), "x".try_into().unwrap()).unwrap();
    let none = Err(PeerError::NoCertificate);
    assert_eq!(server_tls.verified_peer(&server, now()).map(drop), none);
    assert_eq!(client_tls.verified_peer(&client, now()).map(drop), none);
}

/// The verdict is about now, and about these settings' own bundles.
#[test]
fn sec_tls_4_a_finished_connection_is_judged_again() {
    let (ca, other) = (Ca::new(), Ca::new());
    let server_tls = ca.server();
    let (client, server) = shake(ca.client().config(), server_tls.config()).unwrap();
    let day = 24 * 3600;
    assert!(server_tls.verified_peer(&server, now()).is_ok());
    for late in [NOW + day, NOW - day, 0] {
        let got = server_tls.verified_peer(&server, at(late));
        assert!(matches!(got, Err(PeerError::Svid(_))), "{got:?}");
    }
    let got = other.server().verified_peer(&server, now());
    assert!(matches!(got, Err(PeerError::Svid(_))), "{got:?}");
    let got = other.client().verified_peer(&client, now());
    assert!(matches!(got, Err(PeerError::Svid(_))), "{got:?}");
}

/// [SEC-TLS-9] Neither end offers or takes early data, whatever the other would like.
#[test]
fn sec_tls_9_no_early_data() {
    let ca = Ca::new();
    let (server, ours) = (ca.server(), ca.client());
    assert_eq!(server.config().max_early_data_size, 0);
    assert!(!ours.config().enable_early_data);
    let mut eager = (*ours.config()).clone();
    eager.enable_early_data = true;
    let mut generous = (*server.config()).clone();
    generous.max_early_data_size = 16_384;
    generous.session_storage = rustls::server::ServerSessionMemoryCache::new(32);
    for (client, server) in
        [(Arc::new(eager), server.config()), (ours.config(), Arc::new(generous))]
    {
        for _ in 0..3 {
            let (mut client, _) = shake(Arc::clone(&client), Arc::clone(&server)).unwrap();
            assert!(client.early_data().is_none());
            assert!(!client.is_early_data_accepted());
        }
    }
}

/// A client of TLS 1.2 alone, otherwise as ours.
pub(crate) fn only_tls12(ca: &Ca) -> ClientConfig {
    let ours = ca.client_for(ExpectedServer::exact(SERVER.parse().unwrap()), true).config();
    let mut config = ClientConfig::builder_with_details(provider(), clock())
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    config.client_auth_cert_resolver = Arc::clone(&ours.client_auth_cert_resolver);
    config.dangerous().set_certificate_verifier(Arc::new(crate::possession::Trusting));
    config
}

#[test]
fn sec_tls_1_tls12_only_when_asked_for() {
    let ca = Ca::new();
    let client = Arc::new(only_tls12(&ca));
    let refused = shake(Arc::clone(&client), ca.server().config());
    let Err(Failed::Server(rustls::Error::PeerIncompatible(_))) = refused else {
        panic!("{:?}", refused.map(drop));
    };
    let server = ca.server_as(ca.svid(SERVER), true);
    let (client, connection) = shake(client, server.config()).unwrap();
    assert_eq!(client.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_2));
    assert_eq!(server.verified_peer(&connection, now()).unwrap().id().as_str(), CLIENT);

    // The same for our client and a server of TLS 1.2 alone.
    let mut old = ServerConfig::builder_with_details(provider(), clock())
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::clone(&server.config().cert_resolver));
    old.alpn_protocols = vec![b"h2".to_vec()];
    let old = Arc::new(old);
    assert!(shake(ca.client().config(), Arc::clone(&old)).is_err());
    let ours = ca.client_for(ExpectedServer::exact(SERVER.parse().unwrap()), true);
    let (client, _) = shake(ours.config(), old).unwrap();
    assert_eq!(ours.verified_peer(&client, now()).unwrap().id().as_str(), SERVER);
}

/// Pinned: whatever rustls can do with this provider is ECDHE with AEAD.
#[test]
fn sec_tls_1_only_ecdhe_with_aead() {
    let ca = Ca::new();
    let server = ca.server_as(ca.svid(SERVER), true).config();
    let suites = &server.crypto_provider().cipher_suites;
    assert!(!suites.is_empty());
    for suite in suites {
        let name = format!("{:?}", suite.suite());
        assert!(name.contains("_GCM_") || name.contains("_POLY1305_"), "{name}");
        assert!(name.starts_with("TLS13_") || name.starts_with("TLS_ECDHE_"), "{name}");
    }
}

#[test]
fn sec_tls_6_protocols_as_sidecars_offer_them() {
    let ca = Ca::new();
    let (server, ours) = (ca.server(), ca.client());
    let negotiate = |names: &[&str]| {
        let mut client = (*ours.config()).clone();
        client.alpn_protocols = names.iter().map(|name| name.as_bytes().to_vec()).collect();
        let (_, server) = shake(Arc::new(client), server.config()).ok()?;
        Some(server.alpn_protocol().map(|name| String::from_utf8(name.to_vec()).unwrap()))
    };
    let some = |name: &str| Some(Some(name.to_owned()));
    assert_eq!(negotiate(&["istio-http/1.1", "istio", "http/1.1"]), some("http/1.1"));
    assert_eq!(negotiate(&["istio-h2", "istio", "h2"]), some("h2"));
    assert_eq!(negotiate(&["istio-http/1.0", "istio", "http/1.0"]), some("istio"));
    assert_eq!(negotiate(&["istio-peer-exchange", "istio"]), some("istio"));
    // Nothing in common is no connection; nothing offered is nothing agreed on.
    assert_eq!(negotiate(&["istio-peer-exchange"]), None);
    assert_eq!(negotiate(&["http/1.0"]), None);
    assert_eq!(negotiate(&[]), Some(None));
}

/// A PERMISSIVE sidecar terminates TLS only when one of Istio's names is offered.
#[test]
fn sec_tls_6_our_client_offers_istios_names() {
    let ca = Ca::new();
    for (protocol, want) in [
        (ClientProtocol::Any, "istio-h2,istio-http/1.1,istio,h2,http/1.1"),
        (ClientProtocol::Http1, "istio-http/1.1,istio,http/1.1"),
        (ClientProtocol::Http2, "istio-h2,istio,h2"),
    ] {
        let server = ExpectedServer::exact(SERVER.parse().unwrap());
        let tls = ClientTls::builder(provider(), clock())
            .protocol(protocol)
            .identity(ca.svid(CLIENT))
            .trust(ca.trust())
            .expect_server(server)
            .build()
            .unwrap();
        let names: Vec<_> = tls
            .config()
            .alpn_protocols
            .iter()
            .map(|name| String::from_utf8(name.clone()).unwrap())
            .collect();
        assert_eq!(names.join(","), want);
        assert!(shake(tls.config(), ca.server().config()).is_ok());
    }
}
