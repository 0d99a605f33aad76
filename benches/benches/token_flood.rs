//! A flood of distinct good tokens against the cache: memory, and which useful users it costs
//! their place ([SEC-JWT-11]).
//!
//! `cargo bench -p mesh-benches --bench token_flood` prints a table. Memory is what the allocator
//! has handed out; a token that is found in the cache is one that costs no allocation.

#![expect(
    clippy::arithmetic_side_effects,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a program that measures, and ends by panicking when something is wrong"
)]

use std::alloc::System;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{HeaderMap, Method};
use mesh_authn::request::{
    Authentication, KeySets, MAX_CACHE_BYTES, RequestAuthentication, RequestAuthenticator,
    RequestView, TokenOptions,
};
use mesh_identity::{MeshSettings, Workload};
use ring::hmac;
use rustls_pki_types::UnixTime;
use serde_json::json;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const ISSUER: &str = "https://idp.example";
const NOW: u64 = 1_800_000_000;
const SECRET: [u8; 32] = [7; 32];

/// Distinct tokens that come once each.
const FLOOD: usize = 1_000_000;

fn main() {
    println!("{FLOOD} distinct good tokens, each once; bound {} KiB", MAX_CACHE_BYTES / 1024);
    println!("groups  token B  users  ask meanwhile  cached before  kept after  heap KiB at most");
    for (groups, users, rounds) in
        [(0, 10_000, 10), (0, 10_000, 0), (35, 2_000, 10), (35, 2_000, 0)]
    {
        flood(groups, users, rounds);
    }
}

/// `users` send two requests each and then `rounds` more while the flood comes.
fn flood(groups: usize, users: usize, rounds: usize) {
    let key = hmac::Key::new(hmac::HMAC_SHA256, &SECRET);
    let ours = authenticator();
    let useful: Vec<HeaderMap> =
        (0..users).map(|user| token(&key, &format!("user-{user}"), groups)).collect();
    let region = Region::new(ALLOCATOR);
    for _ in 0..2 {
        for headers in &useful {
            authenticate(&ours, headers);
        }
    }
    let before = useful.iter().filter(|headers| is_cached(&ours, headers)).count();
    let mut most = held(&region);
    let pause = FLOOD.checked_div(rounds).unwrap_or(usize::MAX);
    for number in 0..FLOOD {
        let headers = token(&key, &format!("flood-{number}"), groups);
        authenticate(&ours, &headers);
        drop(headers);
        if number % 1000 == 0 {
            most = most.max(held(&region));
        }
        if number % pause == pause - 1 {
            for headers in &useful {
                authenticate(&ours, headers);
            }
        }
    }
    most = most.max(held(&region));
    let kept = useful.iter().filter(|headers| is_cached(&ours, headers)).count();
    let bytes = useful.first().unwrap()["authorization"].len() - "Bearer ".len();
    println!(
        "{groups:>6} {bytes:>8} {users:>6} {rounds:>8} times {before:>14} {kept:>11} {:>17}",
        most / 1024
    );
    assert!(most <= usize::try_from(MAX_CACHE_BYTES).unwrap(), "{most} bytes held");
}

/// Bytes that are held more than when the region began, with what allocators add to each block.
fn held(region: &Region<'_, System>) -> usize {
    let change = region.change();
    let blocks = change.allocations - change.deallocations;
    change.bytes_allocated + blocks * 16 - change.bytes_deallocated
}

fn is_cached(ours: &RequestAuthenticator, headers: &HeaderMap) -> bool {
    let region = Region::new(ALLOCATOR);
    authenticate(ours, headers);
    region.change().allocations == 0
}

fn token(key: &hmac::Key, subject: &str, groups: usize) -> HeaderMap {
    let groups: Vec<String> = (0..groups).map(|n| format!("team-{n:03}-of-department")).collect();
    let claims = json!({"iss": ISSUER, "sub": subject, "exp": NOW + 3600, "groups": groups});
    let [header, claims] = [r#"{"alg":"HS256"}"#.to_owned(), claims.to_string()]
        .map(|part| URL_SAFE_NO_PAD.encode(part));
    let signed = format!("{header}.{claims}");
    let signature = URL_SAFE_NO_PAD.encode(hmac::sign(key, signed.as_bytes()));
    let mut headers = HeaderMap::new();
    headers.insert("authorization", format!("Bearer {signed}.{signature}").parse().unwrap());
    headers
}

fn authenticator() -> RequestAuthenticator {
    let jwks =
        json!({"keys": [{"kty": "oct", "alg": "HS256", "k": URL_SAFE_NO_PAD.encode(SECRET)}]});
    let text = json!({
        "apiVersion": "security.istio.io/v1", "kind": "RequestAuthentication",
        "metadata": {"name": "idp", "namespace": "shop"},
        "spec": {"jwtRules": [{"issuer": ISSUER, "jwks": jwks.to_string()}]},
    });
    let read = mesh_identity::manifest::read(&text.to_string(), "idp.json", "shop").unwrap();
    let resource = RequestAuthentication::from_manifest(read.resources.first().unwrap()).unwrap();
    let mesh = MeshSettings::new("cluster.local".parse().unwrap());
    let (workload, options) = (Workload::new("shop"), TokenOptions::strict());
    RequestAuthenticator::compile(&[resource], &workload, &mesh, options, &KeySets::new()).unwrap()
}

fn authenticate(ours: &RequestAuthenticator, headers: &HeaderMap) {
    let view = RequestView {
        method: &Method::GET,
        scheme: "https",
        host: "shop.example",
        path_and_query: "/orders?page=2",
        headers,
    };
    let now = UnixTime::since_unix_epoch(Duration::from_secs(NOW));
    match ours.authenticate(&view, now) {
        Authentication::Authenticated { .. } => {}
        other @ (Authentication::Anonymous(_) | Authentication::Refused(_)) => panic!("{other:?}"),
    }
}
