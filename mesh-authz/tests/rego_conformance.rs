//! The builtins that are ours, compared with OPA's: `rego/builtins.json` holds what OPA answers
//! (`examples/interop/opa/record_builtins.py`).
//!
//! [`EXCEPTIONS`] lists where we differ, with the reason; an exception that is none any more fails
//! the test as much as a new difference.
#![cfg(all(feature = "rego", feature = "es512"))]

use mesh_authz::rego::{RegoDenyReason, RegoInput, RegoOptions, RegoPolicy};
use serde_json::{Value, json};

const RECORDED: &str = include_str!("rego/builtins.json");

/// Where our answer is another one: beginning of the call, parts of the input in JSON of which one is
/// there, how many cases that is, and why.
const EXCEPTIONS: &[(&str, &[&str], usize, &str)] = &[
    (
        "io.jwt.",
        &["header no text", "payload no text", "payload surrogate"],
        6,
        "what is no Unicode fails; OPA replaces it, and different names become one",
    ),
    (
        "io.jwt.",
        &["set with point off the curve"],
        12,
        "ring looks at a point when it verifies: it verifies nothing, and the set's other keys stay",
    ),
    (
        "io.jwt.",
        &["ES256 on p384", "ES384 on p256"],
        8,
        "ES256 is P-256 and ES384 is P-384 (RFC 7518 section 3.4)",
    ),
    ("io.jwt.", &["RS256 by 1024 bits"], 2, "RSA has 2048 bits at least (RFC 7518 section 3.3)"),
    (
        "io.jwt.verify_ps",
        &["PS256 salt of 20"],
        6,
        "the salt is as long as the hash (RFC 7518 section 3.5), as in io.jwt.decode_verify",
    ),
    (
        "net.cidr_merge",
        &[
            "[\"10.1.2.3\"]",
            "[\"192.168.1.9\"]",
            "[\"1.2.3.5\"]",
            "[\"0.0.0.0\"]",
            "[\"255.255.255.255\"]",
            "[\"::ffff:10.1.2.3\"]",
            "[\"::ffff:a01:203\"]",
            "\"10.0.0.5\"",
            "\"192.168.1.1\"",
            "\"172.16.3.4\"",
            "[\"224.0.0.1\"]",
            "[\"240.0.0.1\"]",
            "\"10.0.0.1\"",
        ],
        13,
        "an address without a length fails; OPA takes 10.1.2.3 for 10.1.2.3/8",
    ),
    (
        "glob.match",
        &["[!a-c][abc]"],
        4,
        "beside each other, classes take characters; OPA's library takes them for bytes",
    ),
    (
        "net.cidr_merge",
        &["::ffff:10.0.0.0/104"],
        1,
        "IPv4 in IPv6's clothes touches IPv4; OPA leaves two blocks of the same addresses",
    ),
];

/// One way of writing: whole numbers, whether OPA wrote `1000`, `1e3` or `-0`, as integers.
fn plain(value: &Value) -> Value {
    match value {
        Value::Number(number) => {
            // `+ 0.0` takes the sign from a zero.
            let whole = number.as_f64().filter(|float| float.fract() == 0.0);
            let exact = number.as_i64().map(|exact| exact.to_string());
            let text = exact.or_else(|| whole.map(|float| format!("{:.0}", float + 0.0)));
            text.map_or_else(|| value.clone(), |text| json!({ "number": text }))
        }
        Value::Array(items) => items.iter().map(plain).collect(),
        Value::Object(members) => {
            members.iter().map(|(name, value)| (name.clone(), plain(value))).collect()
        }
        Value::Null | Value::Bool(_) | Value::String(_) => value.clone(),
    }
}

fn ours(policy: &RegoPolicy, input: &Value) -> Value {
    let answer = policy.answer(&RegoInput::from_json(input, None));
    match (answer.result(), answer.decision().reason()) {
        (Some(value), _) => json!({ "value": value }),
        (None, Some(RegoDenyReason::Undefined)) => json!({ "undefined": true }),
        (None, Some(RegoDenyReason::EvaluationError)) => json!({ "error": true }),
        (None, other) => json!({ "other": format!("{other:?}") }),
    }
}

/// [SEC-REGO-1] What we have added to regorus answers as OPA does.
#[test]
fn sec_rego_1_our_builtins_answer_as_opa_does() {
    let recorded: Value = serde_json::from_str(RECORDED).unwrap();
    let (mut cases, mut differing) = (0, Vec::new());
    let mut met = vec![0; EXCEPTIONS.len()];
    for group in recorded["groups"].as_array().unwrap() {
        let call = group["call"].as_str().unwrap();
        let module = format!("package p\nallow := {call}\n");
        let options = RegoOptions::default().with_query("data.p.allow");
        let data = Some(recorded["data"].clone());
        let policy = RegoPolicy::compile(&[("p.rego", &module)], data, options);
        let policy = policy.unwrap_or_else(|error| panic!("{call}: {error}"));
        for case in group["cases"].as_array().unwrap() {
            cases += 1;
            let (input, opa) = (&case[0], plain(&case[1]));
            let ours = plain(&ours(&policy, input));
            if ours == opa {
                continue;
            }
            let input = input.to_string();
            let fits = |(of, with, ..): &(&str, &[&str], usize, &str)| {
                call.starts_with(of) && with.iter().any(|part| input.contains(part))
            };
            match EXCEPTIONS.iter().position(fits) {
                Some(at) => met[at] += 1,
                None => differing.push(format!("{call} {input:.300}\n  OPA  {opa}\n  ours {ours}")),
            }
        }
    }
    assert!(differing.is_empty(), "{} differ:\n{}", differing.len(), differing.join("\n"));
    for ((call, input, wanted, _), met) in EXCEPTIONS.iter().zip(met) {
        assert_eq!(met, *wanted, "differences of {call} with {input:?}");
    }
    assert!(cases > 3_000, "{cases}");
}
