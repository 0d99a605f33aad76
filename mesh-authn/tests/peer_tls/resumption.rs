//! Sessions that are resumed, and above all those that are not ([SEC-TLS-10], [SEM-ADV-50]).
//!
//! rustls copies the old certificates into a resumed connection and verifies nothing. Each
//! situation in which that was measured to let somebody in is here, for both versions of TLS, with
//! us as the server and as the client. The other end is bare rustls, which resumes whenever it can.

use std::sync::Arc;

use mesh_authn::peer::{ClientTls, PeerError, ServerTls};
use mesh_identity::x509::SvidError;
use rcgen::date_time_ymd;
use rustls::client::Resumption;
use rustls::server::ServerSessionMemoryCache;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, HandshakeKind, ServerConfig, SupportedProtocolVersion};

use crate::handshake::{Ends, Failed, shake};
use crate::mint::{CLIENT, Ca, NOW, SERIAL, SERVER, Settable, provider};
use crate::possession::Trusting;

const HOUR: u64 = 3600;
const DAY: u64 = 24 * HOUR;
/// The last second of the leaves' validity.
const END: u64 = NOW + 16 * HOUR;

const VERSIONS: [&SupportedProtocolVersion; 2] = [&TLS13, &TLS12];

/// A client with our certificate that believes every server and resumes what it can.
fn eager_client(ours: &ClientTls, version: &'static SupportedProtocolVersion) -> Arc<ClientConfig> {
    let ours = ours.config();
    let time = Arc::clone(&ours.time_provider);
    let mut config = ClientConfig::builder_with_details(provider(), time)
        .with_protocol_versions(&[version])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Trusting))
        .with_client_cert_resolver(Arc::clone(&ours.client_auth_cert_resolver));
    config.resumption = Resumption::in_memory_sessions(64);
    Arc::new(config)
}

/// A server with our certificate that believes every client and remembers what it can.
fn generous_server(
    ours: &ServerTls,
    version: &'static SupportedProtocolVersion,
) -> Arc<ServerConfig> {
    let ours = ours.config();
    let time = Arc::clone(&ours.time_provider);
    let mut config = ServerConfig::builder_with_details(provider(), time)
        .with_protocol_versions(&[version])
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::clone(&ours.cert_resolver));
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.session_storage = ServerSessionMemoryCache::new(64);
    config.send_tls13_tickets = 2;
    Arc::new(config)
}

/// An authority of ten years with leaves of a day, and a clock.
struct World {
    ca: Ca,
    time: Arc<Settable>,
    version: &'static SupportedProtocolVersion,
}

impl World {
    fn each(test: impl Fn(&World)) {
        for version in VERSIONS {
            let ca = Ca::until(date_time_ymd(2037, 1, 1));
            test(&World { ca, time: Settable::new(NOW), version });
        }
    }

    /// Our server and a foreign client.
    fn server(&self) -> (ServerTls, Arc<ClientConfig>) {
        let client = eager_client(&self.ca.client_by(&self.time), self.version);
        (self.ca.server_by(&self.time), client)
    }

    /// Our client and a foreign server.
    fn client(&self) -> (ClientTls, Arc<ServerConfig>) {
        let server = generous_server(&self.ca.server_by(&self.time), self.version);
        (self.ca.client_by(&self.time), server)
    }
}

fn kind(ends: &Ends) -> HandshakeKind {
    let kind = ends.0.handshake_kind().unwrap();
    assert_eq!(ends.1.handshake_kind(), Some(kind));
    kind
}

#[track_caller]
fn refused_by_server(result: Result<Ends, Failed>) {
    let Err(Failed::Server(error)) = result else { panic!("{:?}", result.map(|ends| kind(&ends))) };
    let Some(PeerError::Svid(error)) = PeerError::of_handshake(&error) else { panic!("{error:?}") };
    let time = matches!(error, SvidError::Expired | SvidError::NotYetValid);
    assert!(time || matches!(error, SvidError::Path(_)), "{error:?}");
}

#[track_caller]
fn refused_by_client(result: Result<Ends, Failed>) {
    let Err(Failed::Client(error)) = result else { panic!("{:?}", result.map(|ends| kind(&ends))) };
    let Some(PeerError::Svid(error)) = PeerError::of_handshake(&error) else { panic!("{error:?}") };
    let time = matches!(error, SvidError::Expired | SvidError::NotYetValid);
    assert!(time || matches!(error, SvidError::Path(_)), "{error:?}");
}

/// By default, with nothing asked for: the second handshake is resumed, and the peer is known.
#[test]
fn sec_tls_10_sessions_are_resumed_at_both_ends() {
    let ca = Ca::new();
    let (server, client) = (ca.server(), ca.client());
    let now = crate::mint::now();
    for round in 0..5 {
        let ends = shake(client.config(), server.config()).unwrap();
        let want = if round == 0 { HandshakeKind::Full } else { HandshakeKind::Resumed };
        assert_eq!(kind(&ends), want);
        assert_eq!(client.verified_peer(&ends.0, now).unwrap().id().as_str(), SERVER);
        let peer = server.verified_peer(&ends.1, now).unwrap();
        assert_eq!(peer.id().as_str(), CLIENT);
        assert_eq!(peer.chain().len(), 1);
        assert_eq!(peer.not_after(), Some(crate::mint::at(END)));
        assert!(peer.authority().is_some());
    }
}

#[test]
fn sec_tls_10_both_versions_are_resumed() {
    World::each(|world| {
        let (server, client) = world.server();
        assert_eq!(kind(&shake(client.clone(), server.config()).unwrap()), HandshakeKind::Full);
        let ends = shake(client, server.config()).unwrap();
        assert_eq!(kind(&ends), HandshakeKind::Resumed);
        let peer = server.verified_peer(&ends.1, world.time.now()).unwrap();
        assert_eq!(peer.id().as_str(), CLIENT);

        let (client, server) = world.client();
        assert_eq!(kind(&shake(client.config(), server.clone()).unwrap()), HandshakeKind::Full);
        let ends = shake(client.config(), server).unwrap();
        assert_eq!(kind(&ends), HandshakeKind::Resumed);
        let peer = client.verified_peer(&ends.0, world.time.now()).unwrap();
        assert_eq!(peer.id().as_str(), SERVER);
    });
}

/// Case 1, Envoy's: an SVID that ended two seconds ago. In its last second it is resumed.
#[test]
fn sec_tls_10_1_an_expired_peer_is_not_resumed() {
    World::each(|world| {
        let (server, client) = world.server();
        shake(client.clone(), server.config()).unwrap();
        world.time.set(END);
        let ends = shake(client.clone(), server.config()).unwrap();
        assert_eq!(kind(&ends), HandshakeKind::Resumed);
        assert!(server.verified_peer(&ends.1, world.time.now()).is_ok());
        // The connection itself is judged by the time at which it is asked about.
        assert!(server.verified_peer(&ends.1, crate::mint::at(END + 2)).is_err());
        world.time.set(END + 2);
        refused_by_server(shake(client, server.config()));

        world.time.set(NOW);
        let (client, server) = world.client();
        shake(client.config(), server.clone()).unwrap();
        world.time.set(END);
        let ends = shake(client.config(), server.clone()).unwrap();
        assert_eq!(kind(&ends), HandshakeKind::Resumed);
        assert!(client.verified_peer(&ends.0, world.time.now()).is_ok());
        assert!(client.verified_peer(&ends.0, crate::mint::at(END + 2)).is_err());
        world.time.set(END + 2);
        refused_by_client(shake(client.config(), server));
    });
}

/// Case 2: reconnecting every day, so that there is always a young ticket. Within the SVID's life
/// every reconnection is resumed, after it none.
#[test]
fn sec_tls_10_2_reconnecting_does_not_prolong() {
    World::each(|world| {
        let (server, client) = world.server();
        let (our_client, their_server) = world.client();
        for hour in 0..17 {
            world.time.set(NOW + hour * HOUR);
            let want = if hour == 0 { HandshakeKind::Full } else { HandshakeKind::Resumed };
            let ends = shake(client.clone(), server.config());
            let other = shake(our_client.config(), their_server.clone());
            if hour < 16 {
                assert_eq!(kind(&ends.unwrap()), want);
                assert_eq!(kind(&other.unwrap()), want);
            } else {
                world.time.set(END + 1);
                refused_by_server(shake(client.clone(), server.config()));
                refused_by_client(shake(our_client.config(), their_server.clone()));
            }
        }
        for day in 1..=365 {
            world.time.set(NOW + day * DAY);
            refused_by_server(shake(client.clone(), server.config()));
            refused_by_client(shake(our_client.config(), their_server.clone()));
        }
    });
}

/// Case 3: one ticket, kept for a year.
#[test]
fn sec_tls_10_3_one_ticket_for_a_year() {
    World::each(|world| {
        for later in [DAY, 7 * DAY - HOUR, 365 * DAY] {
            let (server, _) = world.server();
            // A client whose own clock stands still never thinks a ticket too old.
            let still = Settable::new(NOW);
            let client = eager_client(&world.ca.client_by(&still), world.version);
            world.time.set(NOW);
            shake(client.clone(), server.config()).unwrap();
            world.time.set(NOW + later);
            refused_by_server(shake(client, server.config()));

            let still = Settable::new(NOW);
            let their_server = generous_server(&world.ca.server_by(&still), world.version);
            world.time.set(NOW);
            let our_client = world.ca.client_by(&world.time);
            shake(our_client.config(), their_server.clone()).unwrap();
            world.time.set(NOW + later);
            refused_by_client(shake(our_client.config(), their_server));
        }
        // A clock that was set back does not make a chain valid before its time either.
        world.time.set(NOW);
        let (server, client) = world.server();
        shake(client.clone(), server.config()).unwrap();
        world.time.set(NOW - DAY);
        refused_by_server(shake(client, server.config()));
    });
}

/// Case 4: a program wires one configuration's storage into another that trusts only another
/// authority, which rustls warns of and does not prevent. rustls resumes; we do not believe it.
#[test]
fn sec_tls_10_4_shared_storage_lets_nobody_in() {
    World::each(|world| {
        let (ours, client) = world.server();
        let other = Ca::new().server_by(&world.time);
        let mut shared = (*other.config()).clone();
        shared.session_storage = Arc::clone(&ours.config().session_storage);
        shake(client.clone(), ours.config()).unwrap();
        let ends = shake(client, Arc::new(shared)).unwrap();
        assert_eq!(kind(&ends), HandshakeKind::Resumed, "this is rustls' part of the case");
        let got = other.verified_peer(&ends.1, world.time.now());
        assert!(matches!(got, Err(PeerError::Svid(SvidError::Path(_)))), "{got:?}");

        let (ours, server) = world.client();
        let other = Ca::new().client_by(&world.time);
        let mut shared = (*other.config()).clone();
        shared.resumption = ours.config().resumption.clone();
        let ends = shake(ours.config(), server.clone()).unwrap();
        let got = other.verified_peer(&ends.0, world.time.now());
        assert!(matches!(got, Err(PeerError::Svid(SvidError::Path(_)))), "{got:?}");
        // rustls compares the verifiers of a client, and ours are never the same.
        refused_by_client(shake(Arc::new(shared), server));
    });
}

/// Case 5: each configuration has its own storage, also two of the same inputs.
#[test]
fn sec_tls_10_5_configurations_share_nothing() {
    World::each(|world| {
        let (server, client) = world.server();
        shake(client.clone(), server.config()).unwrap();
        let again = world.ca.server_by(&world.time);
        assert!(!Arc::ptr_eq(&server.config().session_storage, &again.config().session_storage));
        assert!(!again.config().ticketer.enabled(), "no ticket keys at all");
        let ends = shake(client.clone(), again.config()).unwrap();
        assert_eq!(kind(&ends), HandshakeKind::Full);
        // The same settings, cloned, are the same configuration.
        let ends = shake(client, again.clone().config()).unwrap();
        assert_eq!(kind(&ends), HandshakeKind::Resumed);

        let (our_client, server) = world.client();
        shake(our_client.config(), server.clone()).unwrap();
        let again = world.ca.client_by(&world.time);
        let ends = shake(again.config(), server).unwrap();
        assert_eq!(kind(&ends), HandshakeKind::Full);
    });
}

/// Cases 6 and 7: the bundle changes. There is no verifier whose roots could be swapped under its
/// sessions ([SEC-TLS-10] d): a changed bundle is a new configuration, and the peer of a removed
/// authority meets a full handshake in it.
#[test]
fn sec_tls_10_6_a_removed_authority_resumes_nothing() {
    World::each(|world| {
        let (server, client) = world.server();
        shake(client.clone(), server.config()).unwrap();
        refused_by_server(shake(client, Ca::new().server_by(&world.time).config()));

        let (our_client, server) = world.client();
        shake(our_client.config(), server.clone()).unwrap();
        let mut moved = (*Ca::new().client_by(&world.time).config()).clone();
        moved.resumption = our_client.config().resumption.clone();
        refused_by_client(shake(Arc::new(moved), server));
    });
}

/// [SEC-ID-14] A revoked peer: the list makes a new generation, which resumes nothing, and in which
/// the open connection's peer is refused too ([SEC-TLS-13]).
#[test]
fn sec_tls_10_a_revoked_peer_is_not_resumed() {
    let revoked: Result<(), _> = Err(PeerError::Svid(SvidError::Revoked));
    World::each(|world| {
        let (server, client) = world.server();
        let ends = shake(client.clone(), server.config()).unwrap();
        let peer = server.verified_peer(&ends.1, world.time.now()).unwrap();
        let lists = world.ca.trust_without(&[SERIAL], END);
        let newer = world.ca.server_trusting(lists, &world.time);
        let Err(Failed::Server(error)) = shake(client.clone(), newer.config()) else {
            panic!("a revoked client is served");
        };
        assert_eq!(PeerError::of_handshake(&error), revoked.clone().err());
        assert_eq!(newer.verified_peer(&ends.1, world.time.now()).map(drop), revoked);
        assert_eq!(newer.recheck(&peer, world.time.now()).map(drop), revoked);
        let unlisted = world.ca.trust_without(&[1], END);
        let newest = world.ca.server_trusting(unlisted, &world.time);
        assert!(shake(client, newest.config()).is_ok());

        let (client, server) = world.client();
        let ends = shake(client.config(), server.clone()).unwrap();
        let lists = world.ca.trust_without(&[SERIAL], END);
        let newer = world.ca.client_trusting(lists, &world.time);
        assert_eq!(newer.verified_peer(&ends.0, world.time.now()).map(drop), revoked);
        let Err(Failed::Client(error)) = shake(newer.config(), server) else {
            panic!("a revoked server is talked to");
        };
        assert_eq!(PeerError::of_handshake(&error), revoked.clone().err());
    });
}

/// [SEC-ID-14] A list that expires ends the sessions that it vouched for.
#[test]
fn sec_tls_10_an_expired_list_resumes_nothing() {
    World::each(|world| {
        let next = NOW + HOUR;
        let (_, client) = world.server();
        let trust = world.ca.trust_without(&[], next);
        let server = world.ca.server_trusting(Arc::clone(&trust), &world.time);
        shake(client.clone(), server.config()).unwrap();
        world.time.set(next - 1);
        let ends = shake(client.clone(), server.config()).unwrap();
        assert_eq!(kind(&ends), HandshakeKind::Resumed);
        world.time.set(next);
        assert!(server.verified_peer(&ends.1, world.time.now()).is_err());
        assert!(shake(client, server.config()).is_err());

        world.time.set(NOW);
        let (_, server) = world.client();
        let client = world.ca.client_trusting(trust, &world.time);
        shake(client.config(), server.clone()).unwrap();
        world.time.set(next - 1);
        let ends = shake(client.config(), server.clone()).unwrap();
        assert_eq!(kind(&ends), HandshakeKind::Resumed);
        world.time.set(next);
        assert!(client.verified_peer(&ends.0, world.time.now()).is_err());
        assert!(shake(client.config(), server).is_err());
    });
}

#[test]
fn sec_tls_10_7_a_new_generation_begins_with_full_handshakes() {
    World::each(|world| {
        let (server, client) = world.server();
        shake(client.clone(), server.config()).unwrap();
        let renewed = world.ca.server_by(&world.time);
        let ends = shake(client, renewed.config()).unwrap();
        assert_eq!(kind(&ends), HandshakeKind::Full);
        assert!(renewed.verified_peer(&ends.1, world.time.now()).is_ok());
    });
}

/// A server that rotates: the client's sessions end with the shorter chain, then begin again.
#[test]
fn sec_tls_10_a_client_resumes_again_after_the_servers_rotation() {
    World::each(|world| {
        let (client, server) = world.client();
        shake(client.config(), server).unwrap();
        let renewed = generous_server(&world.ca.server_by(&world.time), world.version);
        for round in 0..3 {
            let ends = shake(client.config(), renewed.clone()).unwrap();
            let want = if round == 0 { HandshakeKind::Full } else { HandshakeKind::Resumed };
            assert_eq!(kind(&ends), want);
        }
    });
}

/// Nobody else than who began a session can resume it: the secret is the proof of possession.
#[test]
fn sec_tls_3_a_ticket_without_its_secret_resumes_nothing() {
    let ca = Ca::new();
    let server = ca.server();
    let (one, two) = (ca.client(), ca.client());
    let ends = shake(one.config(), server.config()).unwrap();
    assert_eq!(kind(&ends), HandshakeKind::Full);
    // Another client with the same certificate has no session.
    assert_eq!(kind(&shake(two.config(), server.config()).unwrap()), HandshakeKind::Full);
}
