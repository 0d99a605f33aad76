//! Time per decision by the number of rules, for the first, the last and no matching rule.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use mesh_benches::Shape;

fn decide(c: &mut Criterion) {
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

fn compile(c: &mut Criterion) {
    let mut group = c.benchmark_group("compile");
    group.sample_size(10);
    for rules in [10, 10_000] {
        let policies = Shape::PrincipalAndPath.policies(rules);
        group.bench_function(BenchmarkId::from_parameter(rules), |b| {
            b.iter(|| black_box(mesh_benches::compile(black_box(&policies))));
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(std::time::Duration::from_millis(200))
        .measurement_time(std::time::Duration::from_millis(400))
        .sample_size(20);
    targets = decide, compile
}
criterion_main!(benches);
