//! Server CPU of a handshake in memory: TLS 1.3, mutual, P-256, leaf and intermediate. Ours with
//! every SPIFFE check and `verified_peer`, against bare rustls with `WebPkiClientVerifier`.
//!
//! All variants take turns in one process, so that a busy machine is busy for all of them; what
//! counts is the ratio. Then bytes per second through the record layer against ring alone.
//!
//! `cargo bench -p mesh-benches --bench handshake`, with a number of rounds if 300 are not enough.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    clippy::arithmetic_side_effects,
    clippy::cast_precision_loss,
    clippy::as_conversions,
    reason = "a measurement: it reads the clock, prints, and stops at a mistake"
)]

mod records;
mod world;

use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_authn::peer::ServerTls;
use rustls::pki_types::UnixTime;
use rustls::{ClientConfig, ClientConnection, HandshakeKind, ServerConfig, ServerConnection};
use world::{World, now};

fn main() {
    // `cargo bench` passes `--bench`; `cargo test --benches` runs a short round.
    let rounds = std::env::args().find_map(|argument| argument.parse().ok()).unwrap_or(300);
    let world = World::new(rounds);
    handshakes(&world, rounds);
    records::measure(&world);
}

/// The server's time in one handshake, and the connection.
fn shake(client: Arc<ClientConfig>, server: Arc<ServerConfig>) -> (Duration, ServerConnection) {
    let mut client = ClientConnection::new(client, "server.test".try_into().unwrap()).unwrap();
    let mut spent = Duration::ZERO;
    let begin = Instant::now();
    let mut server = ServerConnection::new(server).unwrap();
    spent += begin.elapsed();
    let (mut up, mut down) = (Vec::with_capacity(8192), Vec::with_capacity(8192));
    loop {
        up.clear();
        while client.wants_write() {
            client.write_tls(&mut up).unwrap();
        }
        let mut unread = up.as_slice();
        down.clear();
        let begin = Instant::now();
        while !unread.is_empty() {
            server.read_tls(&mut unread).unwrap();
            server.process_new_packets().unwrap();
        }
        while server.wants_write() {
            server.write_tls(&mut down).unwrap();
        }
        spent += begin.elapsed();
        let mut unread = down.as_slice();
        while !unread.is_empty() {
            client.read_tls(&mut unread).unwrap();
            client.process_new_packets().unwrap();
        }
        if up.is_empty() && down.is_empty() {
            return (spent, server);
        }
    }
}

/// One handshake with ours, the peer's verification included.
fn ours(
    client: &Arc<ClientConfig>,
    tls: &ServerTls,
    now: UnixTime,
    kind: HandshakeKind,
) -> Duration {
    let (spent, connection) = shake(Arc::clone(client), tls.config());
    let begin = Instant::now();
    let peer = tls.verified_peer(&connection, now).unwrap();
    let spent = spent + begin.elapsed();
    assert_eq!(connection.handshake_kind(), Some(kind));
    assert_eq!(peer.chain().len(), 2);
    spent
}

fn bare(client: &Arc<ClientConfig>, server: &Arc<ServerConfig>, kind: HandshakeKind) -> Duration {
    let (spent, connection) = shake(Arc::clone(client), Arc::clone(server));
    assert_eq!(connection.handshake_kind(), Some(kind));
    spent
}

/// The variants, in the order of their turns, with what the project asks of the ratio.
const VARIANTS: [(&str, Option<f64>); 6] = [
    ("bare rustls, full", None),
    ("bare rustls, full, AES-128", None),
    ("bare rustls, resumed", None),
    ("ours, new peer", Some(1.02)),
    ("ours, chain seen before", Some(0.62)),
    ("ours, resumed, all re-checks", Some(0.36)),
];

fn handshakes(world: &World, rounds: usize) {
    use HandshakeKind::{Full, Resumed};
    let (ours_tls, bare_tls, bare_128) = (world.ours(), world.bare(false), world.bare(true));
    let regular = world.client(0, false);
    let (resuming_ours, resuming_bare) = (world.client(0, true), world.client(0, true));
    // Everybody has been here once.
    ours(&regular, &ours_tls, now(), Full);
    ours(&resuming_ours, &ours_tls, now(), Full);
    bare(&resuming_bare, &bare_tls, Full);
    let mut times: [Vec<Duration>; 6] = Default::default();
    for round in 1..=rounds {
        let stranger = world.client(round, false);
        let turns = [
            bare(&stranger, &bare_tls, Full),
            bare(&stranger, &bare_128, Full),
            bare(&resuming_bare, &bare_tls, Resumed),
            ours(&stranger, &ours_tls, now(), Full),
            ours(&regular, &ours_tls, now(), Full),
            ours(&resuming_ours, &ours_tls, now(), Resumed),
        ];
        times.iter_mut().zip(turns).for_each(|(times, turn)| times.push(turn));
    }
    println!("server CPU of a handshake in memory, {rounds} rounds, all variants in turn");
    println!("{:<32}{:>10}{:>10}{:>9}{:>9}", "", "median", "fastest", "ratio", "limit");
    let base = median(times.first_mut().unwrap());
    for ((name, limit), times) in VARIANTS.iter().zip(&mut times) {
        let middle = median(times);
        let ratio = middle.as_secs_f64() / base.as_secs_f64();
        let fastest = times.first().unwrap().as_secs_f64() * 1e6;
        let limit = limit.map_or(String::new(), |limit| format!("{limit:.2}"));
        println!(
            "{name:<32}{:>7.1} µs{fastest:>7.1} µs{ratio:>9.3}{limit:>9}",
            middle.as_secs_f64() * 1e6
        );
    }
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    *times.get(times.len() / 2).unwrap()
}
