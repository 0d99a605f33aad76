//! Time to parse a SPIFFE ID, borrowed and owned, and to read a certificate's profile.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use mesh_identity::{SpiffeId, SpiffeIdRef};

const ID: &str = "spiffe://cluster.local/ns/bookinfo/sa/bookinfo-productpage";

fn spiffe_id(c: &mut Criterion) {
    let mut group = c.benchmark_group("spiffe_id");
    group.bench_function("parse borrowed", |b| {
        b.iter(|| black_box(SpiffeIdRef::parse(black_box(ID))));
    });
    group.bench_function("parse borrowed, Istio's view", |b| {
        b.iter(|| black_box(SpiffeIdRef::parse(black_box(ID)).map(|id| id.istio().is_some())));
    });
    group.bench_function("parse owned", |b| {
        b.iter(|| black_box(black_box(ID).parse::<SpiffeId>()));
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(std::time::Duration::from_millis(200))
        .measurement_time(std::time::Duration::from_millis(600))
        .sample_size(30);
    targets = spiffe_id
}
criterion_main!(benches);
