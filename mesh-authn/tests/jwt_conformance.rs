//! Every recorded answer of Envoy against ours, in Istio mode and in strict mode.
//!
//! `MESH_JWT_VECTORS=DIR cargo test --release -p mesh-authn --test jwt_conformance -- --nocapture`
//! reads every `*.jsonl` and `*.jsonl.gz` below DIR; without the variable, the copy in this crate.
//! A difference is a mismatch unless [`Deviation`] has a row for it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod jwt_support;

use std::collections::BTreeMap;
use std::path::PathBuf;

use jwt_support::vector::{Outcome, Vector};
use jwt_support::{Deviation, compare, compile};
use mesh_authn::request::TokenOptions;

#[test]
fn istio_mode_answers_as_envoy_does() {
    assert_eq!(run("istio", &TokenOptions::istio()), 0);
}

#[test]
fn strict_mode_only_refuses_more() {
    assert_eq!(run("strict", &TokenOptions::strict()), 0);
}

/// Runs all vectors and prints a line for each group; the number of mismatches.
fn run(mode: &str, options: &TokenOptions) -> usize {
    let mut groups: BTreeMap<String, Counts> = BTreeMap::new();
    let mut deviations: BTreeMap<String, usize> = BTreeMap::new();
    let mut lines = Vec::new();
    let mut transport: usize = 0;
    for vector in vectors() {
        let ours = compile(&vector, options);
        if vector.expect.outcome == Outcome::Transport {
            // Refused by the HTTP machinery around Envoy's filter: ours only must not panic.
            drop(ours.map(|authenticator| jwt_support::judge(&authenticator, &vector)));
            transport += 1;
            continue;
        }
        let counts = groups.entry(vector.group.clone()).or_default();
        counts.total += 1;
        match compare(&vector, &ours, options) {
            Ok(None) => counts.agree += 1,
            Ok(Some(deviation)) => {
                counts.deviations += 1;
                *deviations.entry(deviation_line(deviation)).or_default() += 1;
            }
            Err(difference) => {
                counts.mismatches += 1;
                lines.push(format!("  mismatch {}: {difference}", vector.id));
            }
        }
    }
    let mut all = Counts::default();
    let mut report = format!("{mode} mode\n");
    for (group, counts) in &groups {
        report.push_str(&format!("  {group}: {counts}\n"));
        all.add(counts);
    }
    for (deviation, count) in &deviations {
        report.push_str(&format!("  {count} x {deviation}\n"));
    }
    for line in lines.iter().take(60) {
        report.push_str(&format!("{line}\n"));
    }
    report.push_str(&format!("  {transport} transport cases: run, nothing to compare\n"));
    report.push_str(&format!("{mode}: jwt vectors: {all}"));
    println!("{report}");
    assert!(all.total > 0, "no vectors found");
    all.mismatches
}

fn deviation_line(deviation: Deviation) -> String {
    format!("{deviation:?}: {}", deviation.reason())
}

#[derive(Default)]
struct Counts {
    total: usize,
    agree: usize,
    deviations: usize,
    mismatches: usize,
}

impl Counts {
    fn add(&mut self, other: &Self) {
        self.total += other.total;
        self.agree += other.agree;
        self.deviations += other.deviations;
        self.mismatches += other.mismatches;
    }
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { total, agree, deviations, mismatches } = self;
        write!(
            f,
            "{total} total, {agree} agree, {deviations} documented deviations, \
             {mismatches} mismatches"
        )
    }
}

fn vectors() -> Vec<Vector> {
    let own = || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/jwt"));
    let folder = std::env::var_os("MESH_JWT_VECTORS").map_or_else(own, PathBuf::from);
    jwt_support::read_lines(&folder)
        .iter()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line:.200}")))
        .collect()
}
