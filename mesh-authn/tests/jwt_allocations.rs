//! A token seen before costs no allocation, and this prints what it costs in time.

#![expect(
    clippy::disallowed_methods,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test that measures, and fails by panicking"
)]

#[expect(dead_code, reason = "shared with the other tests")]
mod jwt_idp;

use std::alloc::System;
use std::hint::black_box;
use std::time::{Duration, Instant};

use http::Method;
use jwt_idp::{Idp, NOW, bearer, compile};
use mesh_authn::request::{Authentication, RequestView};
use rustls_pki_types::UnixTime;
use serde_json::json;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

#[test]
fn sec_jwt_11_a_token_seen_before_costs_no_allocation() {
    let idp = Idp::new("https://idp.example", "a");
    let authenticator = compile(&[idp.rule()]);
    let groups: Vec<String> = (0..40).map(|n| format!("some-group-name-{n:04}")).collect();
    let claims = json!({"iss": idp.issuer, "sub": "alice", "exp": NOW + 3600, "groups": groups});
    let token = idp.sign_claims(&claims);
    let headers = bearer(&token);
    let view = RequestView {
        method: &Method::GET,
        scheme: "https",
        host: "shop.example",
        path_and_query: "/orders?page=2",
        headers: &headers,
    };
    let now = UnixTime::since_unix_epoch(Duration::from_secs(NOW));
    let good = |authentication: &Authentication| {
        matches!(authentication, Authentication::Authenticated { .. })
    };

    let start = Instant::now();
    assert!(good(&authenticator.authenticate(&view, now)));
    let first = start.elapsed();

    // The counters are the process's, and the harness' own thread allocates now and then: a lookup
    // that allocated would do so in every round.
    let quiet = (0..10).any(|_| {
        let region = Region::new(ALLOCATOR);
        for _ in 0..1000 {
            assert!(good(&black_box(authenticator.authenticate(&view, now))));
        }
        let change = region.change();
        (change.allocations, change.reallocations) == (0, 0)
    });
    assert!(quiet, "a token seen before allocates");

    let rounds = 200_000;
    let start = Instant::now();
    for _ in 0..rounds {
        black_box(authenticator.authenticate(black_box(&view), now));
    }
    let each = start.elapsed() / rounds;
    println!("token of {} bytes: first {first:?}, seen before {each:?}", token.len());
}
