//! A chain seen before is believed for what it is, and for no more ([SEC-TLS-4]).

use std::sync::Arc;

use mesh_authn::peer::PeerError;
use mesh_identity::x509::SvidError;
use rustls::{ClientConfig, ServerConfig};

use crate::handshake::{Failed, shake};
use crate::mint::{CLIENT, Ca, NOW, SERVER, Settable, at, leaf_params};
use crate::possession::{Shows, key};

/// [SEC-TLS-3] The chain is known by heart; without its key it opens nothing.
#[test]
fn sec_tls_3_a_seen_chain_still_needs_its_key() {
    let ca = Ca::new();
    let (leaf, thief) = (ca.leaf(&leaf_params(CLIENT)), ca.leaf(&leaf_params(CLIENT)));
    let (server, ours) = (ca.server(), ca.client());
    let client = |shows: Shows| {
        let mut config: ClientConfig = (*ours.config()).clone();
        config.client_auth_cert_resolver = Arc::new(shows);
        config.resumption = rustls::client::Resumption::disabled();
        Arc::new(config)
    };
    for _ in 0..3 {
        assert!(shake(client(Shows::leaf(&leaf)), server.config()).is_ok());
        let stolen = shake(client(Shows::with_key(&leaf, key(&thief))), server.config());
        assert!(matches!(stolen, Err(Failed::Server(_))), "{:?}", stolen.map(drop));
    }

    let leaf = ca.leaf(&leaf_params(SERVER));
    let show = |shows: Shows| {
        let mut config: ServerConfig = (*server.config()).clone();
        config.cert_resolver = Arc::new(shows);
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        Arc::new(config)
    };
    for _ in 0..3 {
        assert!(shake(ours.config(), show(Shows::leaf(&leaf))).is_ok());
        let stolen = shake(ours.config(), show(Shows::with_key(&leaf, key(&thief))));
        assert!(matches!(stolen, Err(Failed::Client(_))), "{:?}", stolen.map(drop));
    }
}

/// The verdict ends with the chain's time, and a clock set back does not revive it.
#[test]
fn sec_tls_4_a_seen_chain_is_judged_by_now() {
    let ca = Ca::new();
    let time = Settable::new(NOW);
    let server = ca.server_by(&time);
    let (_, connection) = shake(ca.client_by(&time).config(), server.config()).unwrap();
    let judge = |seconds| server.verified_peer(&connection, at(seconds)).map(drop);
    let (begin, end) = (NOW - 8 * 3600, NOW + 16 * 3600);
    for _ in 0..2 {
        for good in [NOW, begin, end] {
            assert_eq!(judge(good), Ok(()), "{good}");
        }
        for bad in [begin - 1, end + 1, 0, u64::MAX] {
            let got = judge(bad);
            assert!(matches!(got, Err(PeerError::Svid(_))), "{bad}: {got:?}");
        }
    }
}

/// [SEC-OPS-5] Once refused for its time, a chain is verified anew, in full.
#[test]
fn sec_ops_5_what_expired_is_not_revived_from_memory() {
    let ca = Ca::new();
    let time = Settable::new(NOW);
    let server = ca.server_by(&time);
    let (_, connection) = shake(ca.client_by(&time).config(), server.config()).unwrap();
    let shows = |server: &mesh_authn::peer::ServerTls| format!("{server:?}").contains("seen: 1");
    assert!(server.verified_peer(&connection, at(NOW)).is_ok());
    assert!(shows(&server));
    assert!(server.verified_peer(&connection, at(NOW + 24 * 3600)).is_err());
    assert!(!shows(&server), "the entry is gone");
}

/// The whole chain is the key: the same leaf under other certificates is another chain.
#[test]
fn sec_tls_4_another_chain_for_a_seen_leaf_is_verified() {
    let ca = Ca::new();
    let leaf = ca.leaf(&leaf_params(CLIENT));
    let server = ca.server();
    let ours = ca.client();
    let show = |chain: Vec<_>| {
        let mut config: ClientConfig = (*ours.config()).clone();
        let certified = rustls::sign::CertifiedKey::new(chain, key(&leaf));
        config.client_auth_cert_resolver = Arc::new(Shows(Arc::new(certified)));
        config.resumption = rustls::client::Resumption::disabled();
        shake(Arc::new(config), server.config())
    };
    let leaf_der = || leaf.chain[0].clone();
    assert!(show(vec![leaf_der()]).is_ok());
    // Eleven certificates are too many, whoever is first among them.
    let Err(Failed::Server(error)) = show(vec![leaf_der(); 11]) else { panic!("accepted") };
    let error = PeerError::of_handshake(&error);
    assert_eq!(error, Some(PeerError::Svid(SvidError::TooManyCertificates)));
    assert!(show(vec![leaf_der()]).is_ok());
}

/// An open connection's peer is judged by newer settings ([SEC-TLS-13]).
#[test]
fn sec_tls_13_recheck_is_by_the_newer_settings() {
    let ca = Ca::new();
    let (old, client) = (ca.server(), ca.client());
    let (at_client, at_server) = shake(client.config(), old.config()).unwrap();
    let peer = old.verified_peer(&at_server, at(NOW)).unwrap();
    assert_eq!(ca.server().recheck(&peer, at(NOW)), Ok(peer.clone()));
    assert!(old.recheck(&peer, at(NOW + 24 * 3600)).is_err(), "its time is over");
    assert!(Ca::new().server().recheck(&peer, at(NOW)).is_err(), "its authority is gone");
    let peer = client.verified_peer(&at_client, at(NOW)).unwrap();
    assert!(client.recheck(&peer, at(NOW)).is_ok());
    assert!(Ca::new().client().recheck(&peer, at(NOW)).is_err());
    // A peer without a chain cannot be judged, so it is not accepted.
    let bare = mesh_identity::VerifiedPeer::assert_verified(CLIENT.parse().unwrap());
    assert_eq!(old.recheck(&bare, at(NOW)), Err(PeerError::NoCertificate));
}
