//! Time per decision by the number of rules, for the first, the last and no matching rule.
//!
//! Measured in the thread's own processor time, so that whatever else runs on the machine counts
//! little.

mod thread_time;

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use mesh_benches::{Shape, Unindexed};
use thread_time::ThreadTime;

fn decide(c: &mut Criterion<ThreadTime>) {
    for shape in Shape::ALL {
        let mut group = c.benchmark_group(format!("{shape:?}"));
        for rules in [10, 100, 1_000, 10_000] {
            let set = shape.compile(rules);
            let last = rules.saturating_sub(1);
            for (which, at) in [("first", 0), ("last", last), ("none", rules)] {
                let request = shape.request(at);
                group.bench_function(BenchmarkId::new(which, rules), |b| {
                    b.iter(|| black_box(request.decide(black_box(&set))));
                });
            }
        }
        group.finish();
    }
}

/// Rules that no index serves: a decision over 1,000 of them takes as many microseconds as each
/// costs nanoseconds.
fn unindexed(c: &mut Criterion<ThreadTime>) {
    let request = mesh_benches::unindexed_request();
    let mut group = c.benchmark_group("unindexed");
    for one in Unindexed::all() {
        let (istio, strict) = (one.compile(1_000), one.compile_strict(1_000));
        for (semantics, set) in [("istio", &istio), ("strict", &strict)] {
            group.bench_function(BenchmarkId::new(one.name(), semantics), |b| {
                b.iter(|| black_box(request.decide(black_box(set))));
            });
        }
    }
    group.finish();
}

fn compile(c: &mut Criterion<ThreadTime>) {
    let mut group = c.benchmark_group("compile");
    group.sample_size(10);
    for rules in [10, 10_000] {
        let policies = Shape::PrincipalAndPath.policies(rules);
        group.throughput(Throughput::Elements(u64::try_from(rules).unwrap_or_default()));
        group.bench_function(BenchmarkId::new("rules", rules), |b| {
            b.iter(|| black_box(mesh_benches::compile(black_box(&policies))));
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .with_measurement(ThreadTime)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(200))
        .sample_size(20);
    targets = decide, unindexed, compile
}
criterion_main!(benches);
