//! Bytes per second through AES-GCM: the record protection of our settings against ring alone.

use std::io::{self, IoSlice, Write};
use std::time::{Duration, Instant};

use ring::aead::{AES_128_GCM, AES_256_GCM, Aad, Algorithm, LessSafeKey, Nonce, UnboundKey};
use rustls::{CipherSuite, ServerConnection};

use crate::world::World;
use crate::{median, shake};

const RECORD: usize = 16 * 1024;
const RECORDS: usize = 64;

/// Records of a write: as much as rustls keeps before it wants to be emptied, and what a body that
/// streams arrives in.
const TOGETHER: usize = 4;
/// Short ones, in turns: whatever else the machine does meets both sides of a ratio.
const ROUNDS: usize = 480;

pub(crate) fn measure(world: &World) {
    println!("\nAES-GCM, records of 16 kB, one core; ring takes the path {}", path());
    println!(
        "{:<14}{:>15}{:>15}{:>15}{:>9}",
        "", "ring in place", "ring, copied", "connection", "ratio"
    );
    for (name, suite, algorithm, key) in [
        ("AES-128-GCM", CipherSuite::TLS13_AES_128_GCM_SHA256, &AES_128_GCM, &[7; 16][..]),
        ("AES-256-GCM", CipherSuite::TLS13_AES_256_GCM_SHA384, &AES_256_GCM, &[7; 32][..]),
    ] {
        let (_, mut server) = shake(world.client(0, false), world.ours_with(suite).config());
        assert_eq!(server.negotiated_cipher_suite().map(|suite| suite.suite()), Some(suite));
        let plain = vec![0x5a; RECORD * TOGETHER];
        let (mut in_place, mut copied, mut through) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            in_place.push(seal_in_place(algorithm, key, &plain));
            copied.push(copy_and_seal(algorithm, key, &plain));
            through.push(through_connection(&mut server, &plain));
        }
        let rate = |times: &mut Vec<Duration>| {
            (RECORD * RECORDS) as f64 / median(times).as_secs_f64() / 1e9
        };
        let ratio = middle_ratio(&copied, &through);
        let (alone, copy, ours) = (rate(&mut in_place), rate(&mut copied), rate(&mut through));
        println!("{name:<14}{alone:>10.2} GB/s{copy:>10.2} GB/s{ours:>10.2} GB/s{ratio:>9.3}");
    }
    println!("(each record is sealed in a buffer of its own, so for the ratio ring copies too)");
}

/// The middle one of the ratios of rounds.
fn middle_ratio(copied: &[Duration], through: &[Duration]) -> f64 {
    let rounds = copied.iter().zip(through);
    let mut ratios: Vec<f64> = rounds.map(|(one, other)| one.div_duration_f64(*other)).collect();
    ratios.sort_by(f64::total_cmp);
    *ratios.get(ratios.len() / 2).unwrap()
}

/// ring on one buffer, again and again.
fn seal_in_place(algorithm: &'static Algorithm, key: &[u8], plain: &[u8]) -> Duration {
    let key = LessSafeKey::new(UnboundKey::new(algorithm, key).unwrap());
    let mut buffer = plain.get(..RECORD).unwrap().to_vec();
    let begin = Instant::now();
    for number in 0..RECORDS {
        let tag = key.seal_in_place_separate_tag(nonce(number), Aad::from([0; 5]), &mut buffer);
        assert!(std::hint::black_box(tag).is_ok());
    }
    begin.elapsed()
}

/// ring on copies of the records, each in a buffer of the record's final length.
fn copy_and_seal(algorithm: &'static Algorithm, key: &[u8], plain: &[u8]) -> Duration {
    let key = LessSafeKey::new(UnboundKey::new(algorithm, key).unwrap());
    let mut kept = Vec::with_capacity(TOGETHER);
    let begin = Instant::now();
    for first in (0..RECORDS).step_by(TOGETHER) {
        for (number, plain) in (first..).zip(plain.chunks(RECORD)) {
            let mut buffer = Vec::with_capacity(RECORD + 22);
            buffer.extend_from_slice(&[0x17, 3, 3, 0x40, 0x11]);
            buffer.extend_from_slice(plain);
            buffer.push(0x17);
            let sealed = buffer.get_mut(5..).unwrap();
            let tag = key.seal_in_place_separate_tag(nonce(number), Aad::from([0; 5]), sealed);
            buffer.extend_from_slice(tag.unwrap().as_ref());
            kept.push(buffer);
        }
        std::hint::black_box(&kept);
        kept.clear();
    }
    begin.elapsed()
}

/// A connection of our settings, from the plain text to the bytes for the socket.
fn through_connection(server: &mut ServerConnection, plain: &[u8]) -> Duration {
    let begin = Instant::now();
    for _ in (0..RECORDS).step_by(TOGETHER) {
        server.writer().write_all(plain).unwrap();
        while server.wants_write() {
            server.write_tls(&mut Discard).unwrap();
        }
    }
    begin.elapsed()
}

/// A socket that takes everything.
struct Discard;

impl Write for Discard {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(std::hint::black_box(bytes).len())
    }

    fn write_vectored(&mut self, all: &[IoSlice<'_>]) -> io::Result<usize> {
        Ok(all.iter().map(|bytes| std::hint::black_box(bytes).len()).sum())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn nonce(number: usize) -> Nonce {
    let mut bytes = [9; 12];
    bytes[4..].copy_from_slice(&(number as u64).to_be_bytes());
    Nonce::assume_unique_for_key(bytes)
}

/// ring's choice (`aes_gcm` in ring 0.17.14), from the processor's features.
fn path() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    {
        let has = |all: [bool; 3]| all.iter().all(|one| *one);
        if has([
            is_x86_feature_detected!("vaes"),
            is_x86_feature_detected!("vpclmulqdq"),
            is_x86_feature_detected!("avx2"),
        ]) {
            return "VAES and VPCLMULQDQ, 256 bits wide";
        }
        if has([
            is_x86_feature_detected!("aes"),
            is_x86_feature_detected!("pclmulqdq"),
            is_x86_feature_detected!("avx"),
        ]) {
            return "AES-NI and PCLMULQDQ with AVX";
        }
        if is_x86_feature_detected!("aes") { "AES-NI" } else { "without AES instructions" }
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        "of another architecture than x86-64"
    }
}
