//! What the layer adds to a request: `cargo bench -p mesh-benches --bench layer`.
//!
//! One thread is client and server; bare and guarded take turns in short rounds, so that whatever
//! else the machine does meets both. The difference of the medians is what the layer costs. Its
//! allocations are counted by `cargo test -p mesh-benches --test layer`.
#![expect(
    clippy::as_conversions,
    clippy::cast_precision_loss,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a measurement that goes wrong must stop"
)]

use mesh_benches::service::{Guarded, ask, connect_bare, request, token};
use rustix::time::{ClockId, clock_gettime};

const ROUNDS: usize = 200;
const REQUESTS: usize = 500;

fn cpu_nanos() -> f64 {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    now.tv_sec as f64 * 1e9 + now.tv_nsec as f64
}

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(measure());
}

async fn measure() {
    let guarded = Guarded::new().await;
    let (mut bare, mut layered) = (connect_bare(&guarded.info).await, guarded.connect().await);
    let token = token();
    assert_eq!(ask(&mut bare, request(&token)).await, 200);
    assert_eq!(ask(&mut layered, request(&token)).await, 200, "the policies must admit it");
    assert_eq!(ask(&mut layered, request("")).await, 401, "the token must be looked at");

    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        for (at, send) in [&mut bare, &mut layered].into_iter().enumerate() {
            let requests: Vec<_> = (0..REQUESTS).map(|_| request(&token)).collect();
            let begin = cpu_nanos();
            for request in requests {
                ask(send, request).await;
            }
            times[at].push((cpu_nanos() - begin) / REQUESTS as f64);
        }
    }
    let of = |times: &mut Vec<f64>| {
        times.sort_by(f64::total_cmp);
        (times[times.len() / 2], times[times.len() / 10])
    };
    let [bare, layered] = &mut times;
    let (bare, layered) = (of(bare), of(layered));
    println!("HTTP/1.1 keep-alive in one process, hello handler, 20 policies, cached token;");
    println!("client and server on one thread, {ROUNDS} rounds of {REQUESTS} requests, in turns\n");
    println!("{:<22}{:>14}{:>14}", "", "median", "10th percent");
    let added = (layered.0 - bare.0, layered.1 - bare.1);
    for (name, times) in
        [("bare axum router", bare), ("behind the layer", layered), ("added", added)]
    {
        println!("{name:<22}{:>11.0} ns{:>11.0} ns", times.0, times.1);
    }
}
