//! Every recorded answer of Envoy against ours, in Istio mode and in strict mode.
//!
//! `MESH_JWT_VECTORS=DIR cargo test --release -p mesh-authn --test jwt_conformance -- --nocapture`
//! reads every `*.jsonl` and `*.jsonl.gz` below DIR; without the variable, the copy in this crate.
//! A difference is a mismatch unless [`Deviation`] has a row for it; a panic is one always. Lines
//! that are no case of this form are listed, and the run goes on.

#![expect(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod jwt_support;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

use jwt_support::vector::{Outcome, Vector};
use jwt_support::{Deviation, compare, compile};
use mesh_authn::request::TokenOptions;

#[test]
fn every_recorded_answer_is_ours_or_a_documented_deviation() {
    let given = std::env::var_os("MESH_JWT_VECTORS").map(PathBuf::from);
    let own = || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/jwt"));
    let lines = jwt_support::read_lines(&given.clone().unwrap_or_else(own));
    let strict = run(&lines, &TokenOptions::strict());
    println!("strict mode\n{strict}\nstrict mode: jwt vectors: {}", strict.all);
    let istio = run(&lines, &TokenOptions::istio());
    println!("istio mode\n{istio}\njwt vectors: {}", istio.all);
    assert!(istio.all.total > 0, "no vectors found");
    assert_eq!((istio.all.mismatches, strict.all.mismatches), (0, 0));
    assert!(given.is_some() || istio.unread.is_empty(), "our own copy is read whole");
}

/// What a run over all vectors found.
#[derive(Default)]
struct Report {
    groups: BTreeMap<String, Counts>,
    deviations: BTreeMap<String, usize>,
    mismatches: Vec<String>,
    /// Lines that are no case of the documented form.
    unread: Vec<String>,
    transport: usize,
    all: Counts,
}

fn run(lines: &[String], options: &TokenOptions) -> Report {
    let mut report = Report::default();
    for line in lines {
        let vector: Vector = match serde_json::from_str(line) {
            Ok(vector) => vector,
            Err(error) => {
                report.unread.push(format!("{error}: {line:.120}"));
                continue;
            }
        };
        let judged = catch_unwind(AssertUnwindSafe(|| {
            let ours = compile(&vector, options);
            if vector.expect.outcome == Outcome::Transport {
                // Refused by the HTTP machinery around Envoy's filter: ours only must not panic.
                drop(ours.map(|authenticator| jwt_support::judge(&authenticator, &vector)));
                return None;
            }
            Some(compare(&vector, &ours, options))
        }));
        let result = match judged {
            Ok(Some(result)) => result,
            Ok(None) => {
                report.transport += 1;
                continue;
            }
            Err(_) => Err("panicked; see above".to_owned()),
        };
        report.all.count(&result);
        report.groups.entry(vector.group.clone()).or_default().count(&result);
        match result {
            Ok(None) => {}
            Ok(Some(deviation)) => {
                *report.deviations.entry(deviation_line(deviation)).or_default() += 1;
            }
            Err(difference) => report.mismatches.push(format!("{}: {difference}", vector.id)),
        }
    }
    report
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (group, counts) in &self.groups {
            writeln!(f, "  {group}: {counts}")?;
        }
        for (deviation, count) in &self.deviations {
            writeln!(f, "  {count} x {deviation}")?;
        }
        for mismatch in self.mismatches.iter().take(60) {
            writeln!(f, "  mismatch {mismatch}")?;
        }
        for line in self.unread.iter().take(20) {
            writeln!(f, "  NOT READ {line}")?;
        }
        write!(
            f,
            "  {} transport cases: run, nothing to compare; {} lines not read",
            self.transport,
            self.unread.len()
        )
    }
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
    fn count(&mut self, result: &Result<Option<Deviation>, String>) {
        self.total += 1;
        match result {
            Ok(None) => self.agree += 1,
            Ok(Some(_)) => self.deviations += 1,
            Err(_) => self.mismatches += 1,
        }
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
