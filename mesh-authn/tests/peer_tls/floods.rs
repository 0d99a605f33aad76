//! rustls' limits against floods, pinned ([SEC-TLS-15]).

use rustls::{AlertDescription, Error, InvalidMessage, PeerMisbehaved, ServerConnection};

use crate::handshake::shake;
use crate::mint::Ca;

/// What a server says to a client that sends these records first, again and again.
fn answer<const LEN: usize>(record: &[u8; LEN]) -> (usize, Error) {
    let mut server = ServerConnection::new(Ca::new().server().config()).unwrap();
    for at in 0..20 {
        server.read_tls(&mut &record[..]).unwrap();
        if let Err(error) = server.process_new_packets() {
            return (at, error);
        }
    }
    panic!("twenty records and no end");
}

#[test]
fn sec_tls_15_key_updates() {
    let ca = Ca::new();
    let (mut client, mut server) = shake(ca.client().config(), ca.server().config()).unwrap();
    let refused = (0..100).find_map(|number| {
        client.refresh_traffic_keys().unwrap();
        let mut wire = Vec::new();
        client.write_tls(&mut wire).unwrap();
        server.read_tls(&mut wire.as_slice()).unwrap();
        server.process_new_packets().err().map(|error| (number, error))
    });
    let want = Error::PeerMisbehaved(PeerMisbehaved::TooManyKeyUpdateRequests);
    assert_eq!(refused, Some((32, want)));
}

#[test]
fn sec_tls_15_records_before_a_handshake() {
    // Warnings (user_canceled), which mean nothing yet.
    let (at, error) = answer(&[0x15, 3, 3, 0, 2, 1, 90]);
    assert!(at <= 5, "{at} warnings: {error}");
    // A fatal alert ends it at once.
    let (at, error) = answer(&[0x15, 3, 3, 0, 2, 2, 40]);
    assert_eq!((at, error), (0, Error::AlertReceived(AlertDescription::HandshakeFailure)));
    // ChangeCipherSpec for compatibility, and empty handshake records.
    let (at, error) = answer(&[0x14, 3, 3, 0, 1, 1]);
    assert!(at <= 2, "{at} ChangeCipherSpec: {error}");
    let (at, error) = answer(&[0x16, 3, 1, 0, 0]);
    assert_eq!((at, error), (0, Error::InvalidMessage(InvalidMessage::InvalidEmptyPayload)));
    // A message of 16 MiB is refused when it is announced.
    let (at, error) = answer(&[0x16, 3, 1, 0, 4, 1, 0xff, 0xff, 0xff]);
    let want = Error::InvalidMessage(InvalidMessage::HandshakePayloadTooLarge);
    assert_eq!((at, error), (0, want));
    // A record longer than records are.
    let (at, error) = answer(&[0x16, 3, 1, 0xff, 0xff, 1]);
    assert_eq!((at, error), (0, Error::InvalidMessage(InvalidMessage::MessageTooLarge)));
}
