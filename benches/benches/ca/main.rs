//! What issuing costs, against ring's own work in it: `cargo bench -p mesh-benches --bench ca`.
//!
//! `Authority` signs; `Ca` has limits, a policy, the issue log and the choice of what signs around
//! it, as every API of the authority calls it.
//!
//! Processor time of this thread, medians of rounds in which all take turns, so that a busy machine
//! touches all alike. `MESH_CA_SOAK=1` also issues 100,000 certificates of 1 to 5 seconds to 10,000
//! identities and looks at the memory.
#![expect(
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::indexing_slicing,
    clippy::cast_precision_loss,
    reason = "a bench fails by panicking"
)]

mod soak;

use std::hint::black_box;
use std::time::Duration;

use mesh_ca::{Authority, Ca, CaSettings, CertificateRequest, JsonLines};
use mesh_identity::SpiffeId;
use rcgen::{CertificateParams, KeyPair};
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _,
    UnparsedPublicKey,
};
use rustix::time::{ClockId, clock_gettime};
use rustls_pki_types::UnixTime;

const ROUNDS: usize = 60;
const BATCH: usize = 50;

fn thread_time() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec.try_into().unwrap(), now.tv_nsec.try_into().unwrap())
}

type Task = (&'static str, Box<dyn FnMut()>);

/// Medians in microseconds, all taking turns.
fn measure(tasks: &mut [Task]) -> Vec<f64> {
    let mut times = vec![Vec::new(); tasks.len()];
    for _ in 0..ROUNDS {
        for ((_, task), times) in tasks.iter_mut().zip(&mut times) {
            let begun = thread_time();
            for _ in 0..BATCH {
                task();
            }
            times.push(
                thread_time().saturating_sub(begun).as_nanos() as f64 / 1000.0 / BATCH as f64,
            );
        }
    }
    let median = |mut times: Vec<f64>| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    };
    times.into_iter().map(median).collect()
}

fn main() {
    // cargo test --benches runs this with --test: nothing to measure.
    if std::env::args().any(|argument| argument == "--test") {
        return;
    }
    let now = UnixTime::since_unix_epoch(Duration::from_secs(1_800_000_000));
    let hour = Duration::from_secs(3600);
    let domain = "cluster.local".parse().unwrap();
    let root = Authority::new_root(&domain, 240 * hour, now).unwrap();
    let authority = std::rc::Rc::new(root.new_intermediate(100 * hour, now).unwrap());
    let id: SpiffeId = "spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap();
    let csr = {
        let key = KeyPair::generate().unwrap();
        CertificateParams::default().serialize_request(&key).unwrap().der().to_vec()
    };
    let random = SystemRandom::new();
    let signing = &ECDSA_P256_SHA256_ASN1_SIGNING;
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(signing, &random).unwrap();
    let pair = EcdsaKeyPair::from_pkcs8(signing, pkcs8.as_ref(), &random).unwrap();
    let message = [7; 400];
    let signature = pair.sign(&random, &message).unwrap();
    let public =
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, pair.public_key().as_ref().to_vec());

    let mut settings = CaSettings::new().unwrap();
    settings.limits = soak::NO_LIMITS;
    let ca = Ca::new(&domain, settings, JsonLines::new(std::io::sink()), now).unwrap();
    let (ca, names) = (std::rc::Rc::new(ca), std::rc::Rc::new((id.clone(), csr.clone())));
    let (for_key, for_csr) = ((ca.clone(), names.clone()), (ca, names));

    let (sign_random, key_random) = (random.clone(), random);
    let (one, two, names) = (authority.clone(), authority, (id.clone(), id));
    let mut tasks: Vec<Task> = vec![
        (
            "ring: sign",
            Box::new(move || {
                black_box(pair.sign(&sign_random, &message).unwrap());
            }),
        ),
        (
            "ring: make a key",
            Box::new(move || {
                black_box(EcdsaKeyPair::generate_pkcs8(signing, &key_random).unwrap());
            }),
        ),
        (
            "ring: verify",
            Box::new(move || {
                public.verify(&message, signature.as_ref()).unwrap();
            }),
        ),
        (
            "Authority: with a key",
            Box::new(move || {
                black_box(one.issue_svid(&names.0, hour, now).unwrap());
            }),
        ),
        (
            "Authority: a request",
            Box::new(move || {
                let request = CertificateRequest::from_der(&csr).unwrap();
                drop(black_box(two.issue_for_request(&names.1, &request, hour, now).unwrap()));
            }),
        ),
        (
            "Ca: with a key",
            Box::new(move || {
                let (ca, names) = &for_key;
                black_box(ca.issue_svid("bench", &names.0, hour, now).unwrap());
            }),
        ),
        (
            "Ca: a request",
            Box::new(move || {
                let (ca, names) = &for_csr;
                drop(black_box(ca.issue_for_csr("bench", &names.0, &names.1, hour, now).unwrap()));
            }),
        ),
    ];
    let times = measure(&mut tasks);
    for ((name, _), time) in tasks.iter().zip(&times) {
        println!("{name:<21} {time:>8.1} µs {:>8.0} /s", 1e6 / time);
    }
    let [sign, key, verify, with_key, request, ca_with_key, ca_request] = times.as_slice() else {
        return;
    };
    println!(
        "of sign + key generation, with a key:  Authority {:.2}, Ca {:.2}",
        (sign + key) / with_key,
        (sign + key) / ca_with_key
    );
    println!(
        "of sign + verify, for a request:       Authority {:.2}, Ca {:.2}",
        (sign + verify) / request,
        (sign + verify) / ca_request
    );
    soak::run();
}
