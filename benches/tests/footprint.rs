//! What a policy set costs besides time: no allocation per decision, and the memory it keeps.

use std::alloc::System;
use std::time::Instant;

use mesh_benches::{Shape, Unindexed};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// The allocator counts for the whole process, so one test measures all.
#[test]
#[expect(clippy::disallowed_methods, reason = "prints how long compiling takes")]
fn sec_authz_1_decisions_allocate_nothing_and_sets_stay_small() {
    for shape in Shape::ALL {
        let set = shape.compile(1_000);
        for at in [0, 999, 1_000] {
            let request = shape.request(at);
            let region = Region::new(ALLOCATOR);
            let allowed = request.decide(&set);
            let change = region.change();
            assert_eq!(change.allocations + change.reallocations, 0, "{shape:?} {at}");
            // [SEC-AUTHZ-1] And the answer is the one that the shape promises.
            let is_refusing = matches!(
                shape,
                Shape::Negations
                    | Shape::AllCandidates
                    | Shape::StraightLoop
                    | Shape::ManyKeys
                    | Shape::OwnHeaders
            );
            let promised = at < 1_000 && !is_refusing;
            assert_eq!(allowed, promised, "{shape:?} {at}");
        }
    }
    // Rules that no index serves, and none matches.
    let request = mesh_benches::unindexed_request();
    for one in Unindexed::all() {
        for set in [one.compile(100), one.compile_strict(100)] {
            let region = Region::new(ALLOCATOR);
            let allowed = request.decide(&set);
            let change = region.change();
            assert_eq!(change.allocations + change.reallocations, 0, "{}", one.name());
            assert!(!allowed, "{}", one.name());
        }
    }
    // Strict semantics and a request that has everything to look at, escapes and capitals too.
    let everything = mesh_benches::everything();
    let region = Region::new(ALLOCATOR);
    let decided = everything.decide();
    let change = region.change();
    assert_eq!(change.allocations + change.reallocations, 0, "strict");
    assert!(decided, "the request must get past every rule");
    for shape in Shape::ALL {
        let policies = shape.policies(10_000);
        let (region, begin) = (Region::new(ALLOCATOR), Instant::now());
        let set = mesh_benches::compile(&policies);
        let took = begin.elapsed();
        let change = region.change();
        let kept = change.bytes_allocated - change.bytes_deallocated;
        println!(
            "{shape:?}: 10000 rules compiled in {took:?}, {} bytes kept a rule",
            kept / 10_000
        );
        assert!(kept / 10_000 <= 1024, "{shape:?}: {kept} bytes");
        drop(set);
    }
}
