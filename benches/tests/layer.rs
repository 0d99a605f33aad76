//! What the layer adds to a request in allocations, and what a mesh keeps in memory.

use std::alloc::System;

use mesh_benches::service::{Guarded, ask, connect_bare, request, token};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Requests of which the allocations are counted.
const REQUESTS: usize = 1000;

/// At most three allocations over the bare router, with 20 policies and a cached token; at most 3 MiB
/// kept, metrics included. The allocator counts for the whole process, so one test measures both.
#[tokio::test]
async fn the_layer_adds_at_most_three_allocations_and_three_mebibytes() {
    let region = Region::new(ALLOCATOR);
    let guarded = Guarded::new().await;
    let change = region.change();
    let kept = change.bytes_allocated - change.bytes_deallocated;
    let token = token();
    let mut counts = Vec::new();
    let (mut bare, mut layered) = (connect_bare(&guarded.info).await, guarded.connect().await);
    for send in [&mut bare, &mut layered] {
        // The first request verifies the token and makes the metrics' series.
        assert_eq!(ask(send, request(&token)).await, 200);
        let requests: Vec<_> = (0..REQUESTS).map(|_| request(&token)).collect();
        let region = Region::new(ALLOCATOR);
        for request in requests {
            ask(send, request).await;
        }
        let change = region.change();
        counts.push(change.allocations + change.reallocations);
    }
    let [bare, layered] = counts.try_into().expect("two services");
    let added = layered.saturating_sub(bare);
    println!("allocations for {REQUESTS} requests: bare {bare}, behind the layer {layered}");
    println!("kept by a mesh with client, server and 20 policies: {kept} bytes");
    assert!(added <= 3 * REQUESTS, "{added} allocations for {REQUESTS} requests");
    assert!(kept <= 3 * 1024 * 1024, "{kept} bytes");
}
