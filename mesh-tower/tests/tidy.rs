//! The workspace checks itself: what ARCHITECTURE.md promises and a compiler cannot hold.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Crates whose sources are shipped; examples, fuzz and benches are free to do more.
const CRATES: &[&str] = &["mesh-identity", "mesh-authn", "mesh-authz", "mesh-ca", "mesh-tower"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Every Rust source below the folders, with its path from the workspace's root.
fn sources(folders: &[&str]) -> Vec<(String, String)> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    for folder in folders {
        walk(&root().join(folder), &mut found);
    }
    found.sort();
    let name = |path: &Path| path.strip_prefix(root()).unwrap().display().to_string();
    found.iter().map(|path| (name(path), fs::read_to_string(path).unwrap())).collect()
}

/// The rule ids that a text cites: `[SEM-AREA-1]`, or a test named `sem_area_1_…`.
fn cited(text: &str) -> BTreeSet<String> {
    let mut ids = BTreeSet::new();
    let bracketed = text.split('[').skip(1).filter_map(|rest| rest.split(']').next());
    ids.extend(bracketed.filter(|id| is_rule_id(id)).map(str::to_owned));
    let tests = text.split("fn ").skip(1).filter_map(|rest| rest.split('(').next());
    for name in tests {
        let mut parts = name.split('_');
        if let (Some(kind), Some(area), Some(number)) = (parts.next(), parts.next(), parts.next()) {
            let id = format!("{kind}-{area}-{number}").to_uppercase();
            if matches!(kind, "sem" | "sec") && is_rule_id(&id) {
                ids.insert(id);
            }
        }
    }
    ids
}

fn is_rule_id(text: &str) -> bool {
    let parts: Vec<&str> = text.split('-').collect();
    let [kind, area, number] = parts.as_slice() else { return false };
    matches!(*kind, "SEM" | "SEC")
        && !area.is_empty()
        && area.chars().all(|c| c.is_ascii_uppercase())
        && !number.is_empty()
        && number.chars().all(|c| c.is_ascii_digit())
}

/// RULES.md: each id, and whether its line says why nobody cites it.
fn rules() -> BTreeMap<String, bool> {
    let text = fs::read_to_string(root().join("RULES.md")).unwrap();
    let lines = text.lines().filter_map(|line| line.strip_prefix("- ["));
    lines
        .map(|line| {
            let (id, rest) = line.split_once(']').unwrap();
            assert!(is_rule_id(id), "RULES.md: {id} is no rule id");
            (id.to_owned(), rest.contains("(not cited: "))
        })
        .collect()
}

#[test]
fn rules_and_citations_agree() {
    let all = ["mesh-identity", "mesh-authn", "mesh-authz", "mesh-ca", "mesh-tower"];
    let mut cites = BTreeMap::<String, String>::new();
    for (name, text) in sources(&[&all[..], &["examples", "fuzz", "benches"]].concat()) {
        if name.ends_with("tests/tidy.rs") {
            continue;
        }
        for id in cited(&text) {
            cites.entry(id).or_insert_with(|| name.clone());
        }
    }
    let rules = rules();
    let mut wrong = Vec::new();
    for (id, file) in &cites {
        match rules.get(id) {
            None => wrong.push(format!("{file} cites {id}, which RULES.md does not have")),
            Some(true) => {
                wrong.push(format!("{file} cites {id}: remove the excuse from RULES.md"));
            }
            Some(false) => {}
        }
    }
    for (id, excused) in &rules {
        if !excused && !cites.contains_key(id) {
            wrong.push(format!("nobody cites {id}: write a test, or say why in RULES.md"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Time is a parameter; one module reads clocks.
#[test]
fn only_the_clock_module_reads_a_clock() {
    for (name, text) in sources(&src()) {
        let reads = ["SystemTime::now", "Instant::now", "UnixTime::now"];
        if name != "mesh-tower/src/clock.rs" {
            let code = without_tests_and_comments(&text);
            assert!(!reads.iter().any(|read| code.contains(read)), "{name} reads a clock");
        }
    }
}

/// Evidence is asserted where it is proven: in mesh-authn, and in tests.
#[test]
fn only_mesh_authn_asserts_evidence() {
    for (name, text) in sources(&src()) {
        if name.starts_with("mesh-authn/") {
            continue;
        }
        let code = without_tests_and_comments(&text);
        let asserted = code.lines().filter(|line| line.contains("assert_verified"));
        for line in asserted {
            let defines = line.contains("pub fn assert_verified");
            assert!(defines, "{name} asserts evidence: {}", line.trim());
        }
    }
}

/// [SEC-OPS-6] MACs are verified by ring, which takes the same time wherever they differ; a tag is made
/// only where one is asked for: by whoever signs a token, and by a Rego builtin.
#[test]
fn sec_ops_6_macs_are_verified_by_ring() {
    let signers =
        ["mesh-authn/src/request/provider.rs", "mesh-authz/src/rego/builtins/supplied.rs"];
    let mut verified = Vec::new();
    for (name, text) in sources(&src()) {
        let code = without_tests_and_comments(&text);
        if code.contains("hmac::verify(") {
            verified.push(name.clone());
        }
        let makes = code.contains("hmac::sign(") || code.contains("hmac::Context");
        assert!(
            !makes || signers.contains(&&*name),
            "{name} makes a tag to compare: use hmac::verify"
        );
    }
    assert!(verified.len() > 1, "tokens and Rego verify MACs: {verified:?}");
}

/// The cores never see each other, nor a runtime; but what only mesh-ca's feature `serve` brings in is
/// the network edge of a program that is an authority.
#[test]
fn dependencies_point_one_way() {
    for (name, forbidden) in [
        ("mesh-identity", &["mesh-", "ring", "tokio", "rustls ="][..]),
        ("mesh-authn", &["mesh-authz", "mesh-ca", "mesh-tower", "tokio", "hyper"]),
        ("mesh-authz", &["mesh-authn", "mesh-ca", "mesh-tower", "tokio", "hyper", "rustls ="]),
        ("mesh-ca", &["mesh-authn", "mesh-authz", "mesh-tower", "tokio", "hyper"]),
    ] {
        let text = fs::read_to_string(root().join(name).join("Cargo.toml")).unwrap();
        let (_, rest) = text.split_once("[dependencies]").unwrap();
        let dependencies = rest.split("\n[").next().unwrap();
        let serve = text.split_once("serve = [").map_or("", |(_, rest)| rest);
        let serve = serve.split(']').next().unwrap_or_default();
        for line in dependencies.lines() {
            let crate_name = line.split(' ').next().unwrap_or_default();
            if line.contains("optional = true") && serve.contains(&format!("\"dep:{crate_name}\""))
            {
                continue;
            }
            let found = forbidden.iter().find(|prefix| line.starts_with(**prefix));
            assert!(found.is_none(), "{name} must not depend on {line}");
        }
    }
}

/// A newcomer reads `lib.rs` as a table of contents.
#[test]
fn lib_rs_only_declares() {
    for name in CRATES {
        let path = root().join(name).join("src/lib.rs");
        let text = fs::read_to_string(path).unwrap();
        for word in ["fn ", "struct ", "enum ", "impl ", "const "] {
            let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
            assert!(code.into_iter().all(|line| !line.contains(word)), "{name}/src/lib.rs: {word}");
        }
    }
}

/// Nothing is left for later in silence.
#[test]
fn no_unfinished_code() {
    for (name, text) in sources(&src()) {
        for word in ["todo!", "unimplemented!", "dbg!", "FIXME", "XXX"] {
            assert!(!text.contains(word), "{name} has {word}");
        }
    }
}

fn src() -> Vec<&'static str> {
    vec!["mesh-identity/src", "mesh-authn/src", "mesh-authz/src", "mesh-ca/src", "mesh-tower/src"]
}

/// Tests stand last in a file and may do what the code may not.
fn without_tests_and_comments(text: &str) -> String {
    let code = text.split("#[cfg(test)]").next().unwrap_or_default();
    let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
    lines.collect::<Vec<_>>().join("\n")
}
