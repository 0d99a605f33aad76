//! What became of the recorded answers, counted and printed.

use std::collections::BTreeMap;

/// What became of a vector.
pub(crate) enum Verdict {
    Agrees,
    /// Ours differs, for this reason.
    Differs(&'static str),
    Skipped(&'static str),
    Mismatch(String),
}

/// Prints a line for each group, difference and reason to skip, and last the totals; how many agree.
/// A mismatch fails the test. Each verdict comes with its group and id.
pub(crate) fn tally<'v>(
    kind: &str,
    differing: &str,
    verdicts: impl Iterator<Item = (&'v str, &'v str, &'v Verdict)>,
) -> usize {
    let (mut total, mut agree, mut mismatches) = (0_usize, 0_usize, Vec::new());
    let (mut differ, mut skipped) = (BTreeMap::new(), BTreeMap::new());
    let mut by_group: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for (group, id, verdict) in verdicts {
        let group = by_group.entry(group).or_default();
        total += 1;
        group.1 += 1;
        match verdict {
            Verdict::Agrees => {
                agree += 1;
                group.0 += 1;
            }
            Verdict::Differs(why) => *differ.entry(*why).or_insert(0_usize) += 1,
            Verdict::Skipped(why) => *skipped.entry(*why).or_insert(0_usize) += 1,
            Verdict::Mismatch(what) => mismatches.push(format!("{id}: {what}")),
        }
    }
    for (group, (agree, total)) in by_group {
        println!("  {group}: {total} total, {agree} agree");
    }
    for (why, count) in &differ {
        println!("  {count} {differing}: {why}");
    }
    for (why, count) in &skipped {
        println!("  {count} skipped: {why}");
    }
    for line in mismatches.iter().take(40) {
        println!("  MISMATCH {line}");
    }
    println!(
        "{kind} vectors over sockets: {total} total, {agree} agree, {} {differing}, {} skipped, \
         {} mismatches",
        differ.values().sum::<usize>(),
        skipped.values().sum::<usize>(),
        mismatches.len()
    );
    assert!(mismatches.is_empty(), "{} mismatches", mismatches.len());
    agree
}
