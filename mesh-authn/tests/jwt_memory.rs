//! What the cache of tokens says it holds is what it holds, and that stays below its bound
//! ([SEC-JWT-11]). One test: the counting allocator is the process's.

#![expect(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

#[expect(dead_code, reason = "shared with the other tests")]
mod jwt_idp;

use std::alloc::System;

use http::HeaderMap;
use jwt_idp::{Idp, NOW, bearer, compile, judge_at};
use mesh_authn::request::{Authentication, MAX_CACHE_BYTES, RequestAuthenticator};
use serde_json::{Value, json};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Tokens of each shape; so few that every part of the cache has room for its share.
const TOKENS: usize = 100;

/// Bytes that are held more than when the region began, with what allocators add to each.
fn held(region: &Region<'_, System>) -> u64 {
    let change = region.change();
    let blocks = change.allocations - change.deallocations;
    let bytes = change.bytes_allocated + blocks * 16 - change.bytes_deallocated;
    u64::try_from(bytes).unwrap()
}

/// Verifies a token as a service does that reads typed claims.
fn accept(authenticator: &RequestAuthenticator, headers: &HeaderMap) {
    match judge_at(authenticator, headers, "/", NOW) {
        Authentication::Authenticated { token, .. } => assert!(token.payload().subject().is_some()),
        other @ (Authentication::Anonymous(_) | Authentication::Refused(_)) => panic!("{other:?}"),
    }
}

/// Claims of a shape that costs much memory for its text.
fn claims(shape: &str, number: usize) -> Value {
    let mut claims = json!({"iss": "https://idp.example", "sub": format!("user-{number}"),
        "exp": NOW + 3600});
    match shape {
        "few" => {}
        "groups" => {
            let groups = (0..40).map(|n| format!("team-{n:03}-of-department-7"));
            claims["groups"] = groups.collect();
        }
        "objects in objects" => {
            claims["a"] = (0..90).fold(json!(1), |inner, _| json!({"a": inner}));
        }
        "many members" => {
            for n in 0..150 {
                claims[format!("claim-{n}")] = json!(n);
            }
        }
        "lists in lists" => {
            claims["l"] = (0..200).map(|n| json!([[n], [], [n, n, n]])).collect();
        }
        "a scope of many words" => claims["scope"] = json!("a ".repeat(700)),
        "long" => claims["text"] = json!("x".repeat(20_000)),
        other => panic!("{other}"),
    }
    claims
}

#[test]
fn sec_jwt_11_the_cache_weighs_what_it_holds() {
    let idp = Idp::new("https://idp.example", "a");
    let mut rule = idp.rule();
    rule["outputPayloadToHeader"] = json!("x-payload");
    rule["outputClaimToHeaders"] = json!([{"header": "x-groups", "claim": "groups"}]);
    println!("claims                   tokens  heap B each  weight B each");
    for shape in [
        "few",
        "groups",
        "objects in objects",
        "many members",
        "lists in lists",
        "a scope of many words",
        "long",
    ] {
        let authenticator = compile(&[rule.clone()]);
        let headers = |number: usize| bearer(&idp.sign_claims(&claims(shape, number)));
        accept(&authenticator, &headers(0));
        let all: Vec<HeaderMap> = (1..=TOKENS).map(headers).collect();
        let before = authenticator.cached_bytes();
        let region = Region::new(ALLOCATOR);
        for headers in &all {
            accept(&authenticator, headers);
        }
        let heap = held(&region);
        let weight = authenticator.cached_bytes() - before;
        let count = u64::try_from(TOKENS).unwrap();
        println!("{shape:<24} {:>6} {:>12} {:>14}", all.len(), heap / count, weight / count);
        assert_eq!(authenticator.cached_tokens(), TOKENS + 1, "{shape}: none had to go");
        assert!(heap <= weight, "{shape}: {heap} bytes held, {weight} counted");
        assert!(weight <= 3 * heap, "{shape}: {weight} counted for {heap} bytes held");
    }

    // More than fits: what is held stays below the bound.
    let authenticator = compile(&[rule]);
    let region = Region::new(ALLOCATOR);
    let mut most = 0;
    for number in 0..1500 {
        accept(&authenticator, &bearer(&idp.sign_claims(&claims("long", number))));
        most = most.max(held(&region));
    }
    println!("1500 tokens of 27 kB: at most {most} bytes held, bound {MAX_CACHE_BYTES}");
    assert!(authenticator.cached_tokens() < 1500, "they do not fit");
    assert!(most <= MAX_CACHE_BYTES, "{most} bytes held");
}
