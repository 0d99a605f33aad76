//! The long runs, for whoever asks for them.

use std::time::Duration;

use mesh_ca::{Ca, CaSettings, JsonLines, Limits, Rate};
use mesh_identity::SpiffeId;
use rustls_pki_types::UnixTime;

use crate::thread_time;

const RATE: Rate = Rate { burst: 1_000_000_000, per_second: 1_000_000 };

pub(crate) const NO_LIMITS: Limits = Limits { per_identity: RATE, total: RATE, concurrency: 64 };

const IDENTITIES: usize = 10_000;
const CERTIFICATES: usize = 100_000;

pub(crate) fn run() {
    if std::env::var_os("MESH_CA_SOAK").is_some() {
        soak();
    }
}

fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = text.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok());
    pages.unwrap_or(0) * 4
}

/// The clock goes on by a second for every thousand certificates; keys rotate meanwhile.
fn soak() {
    let at = |seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds));
    let begin = 1_800_000_000;
    let mut settings = CaSettings::new().unwrap();
    settings.limits = NO_LIMITS;
    let domain = "cluster.local".parse().unwrap();
    let ca = Ca::new(&domain, settings, JsonLines::new(std::io::sink()), at(begin)).unwrap();
    let ids: Vec<SpiffeId> = (0..IDENTITIES)
        .map(|n| format!("spiffe://cluster.local/ns/shop/sa/a{n}").parse().unwrap())
        .collect();
    // Written once before, so that it is not what grows.
    let mut serials = vec![u128::MAX; CERTIFICATES];
    println!("certificates   seconds   resident KiB");
    let started = thread_time();
    for n in 0..CERTIFICATES {
        if n % 10_000 == 0 {
            let seconds = thread_time().saturating_sub(started).as_secs_f64();
            println!("{n:>12} {seconds:>9.1} {:>14}", resident());
        }
        // A day for every ten thousand: intermediates and token keys rotate.
        let now = at(begin + u64::try_from(n).unwrap() * 86_400 / 10_000);
        if n % 100 == 0 {
            ca.rotate(now).unwrap();
        }
        let ttl = Duration::from_secs(1 + u64::try_from(n % 5).unwrap());
        let svid = ca.issue_svid("soak", &ids[n % IDENTITIES], ttl, now).unwrap();
        assert_eq!(svid.not_after(), at(now.as_secs() + ttl.as_secs()));
        let (_, leaf) = x509_parser::parse_x509_certificate(&svid.chain()[0]).unwrap();
        serials[n] = u128::from_be_bytes(leaf.raw_serial().try_into().unwrap());
    }
    println!(
        "{CERTIFICATES:>12} {:>9.1} {:>14}",
        thread_time().saturating_sub(started).as_secs_f64(),
        resident()
    );
    serials.sort_unstable();
    serials.dedup();
    assert_eq!(serials.len(), CERTIFICATES, "a serial number repeats");
}
