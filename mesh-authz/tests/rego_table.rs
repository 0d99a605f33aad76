//! The table of what hostile policies come to ([SEC-REGO-1] to [SEC-REGO-6]): each in a process of
//! its own, with the time until it was stopped and the most memory that the process ever held.
//!
//! `cargo test --release -p mesh-authz --all-features --test rego_table -- --nocapture` prints it.
#![cfg(all(feature = "rego", target_os = "linux"))]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::disallowed_methods, reason = "measures how long the library takes")]

use std::fmt::Write as _;
use std::process::Command;
use std::time::{Duration, Instant};
use std::{env, fs};

use http::{HeaderMap, HeaderValue};
use mesh_authz::rego::{RegoInput, RegoLoadError, RegoOptions, RegoPolicy, on_large_stack};

/// Tells the child which attack it is.
const CASE: &str = "MESH_REGO_ATTACK";

/// What every process with a policy holds, thread stacks and the test's harness among it.
const MOST_KIB: u64 = 48 * 1024;

/// How many times the limit an attack may take. A debug build optimises regorus, by which the limit
/// is measured, and not what is ours.
const TIMES: u64 = if cfg!(debug_assertions) { 8 } else { 2 };

/// A rule that does as much only for `/slow`, so that it is stopped at a request and not at load.
fn at_request(body: &str) -> String {
    let long = "s := input.attributes.request.http.headers[\"x-long\"]";
    format!("allow if {{\ninput.parsed_path[0] == \"slow\"\n{long}\n{body}\n}}")
}

fn chain(length: usize, rule: impl Fn(usize) -> String) -> String {
    (0..length).map(|at| rule(at) + "\n").collect()
}

/// `x0` and forty times twice the one before, with `double` of the one before.
fn doubling(first: &str, double: &str) -> String {
    let mut body = format!("x0 := {first}\n");
    for at in 0..40_usize {
        let value = double.replace("xN", &format!("x{at}"));
        writeln!(body, "x{} := {value}", at.saturating_add(1)).unwrap();
    }
    body + "x40 != 0"
}

/// What is attacked, and the module that does it.
fn attacks() -> Vec<(&'static str, String)> {
    let many = "some i in numbers.range(1, 9000)\nsome j in numbers.range(1, 9000)\n";
    let at_each = |call: &str| at_request(&format!("{many}{call}"));
    vec![
        // What as many plain instructions take as a policy may execute: the limit of all others.
        ("plain instructions", at_each("i + j == -1")),
        ("a loop of loops", at_each("some k in numbers.range(1, 9000)\ni + j + k == -1")),
        (
            "every in every",
            at_request(
                "every i in numbers.range(1, 9000) { every j in numbers.range(1, 9000) { i + j > 0 } }",
            ),
        ),
        (
            "comprehensions",
            at_request(
                "count([1 | some i in numbers.range(1, 9000); some j in numbers.range(1, 9000)]) == 1",
            ),
        ),
        ("a rule of itself", "allow if r\nr if not allow".to_owned()),
        ("a function of itself", "f(x) := f(x + 1)\nallow := f(0)".to_owned()),
        (
            "500 rules deep",
            chain(500, |at| format!("r{at} if r{}", at.saturating_add(1)))
                + "r500 if input\nallow if r0",
        ),
        (
            "500 functions deep",
            chain(500, |at| format!("f{at}(x) := f{}(x)", at.saturating_add(1)))
                + "f500(x) := x\nallow := f0(1)",
        ),
        ("5,000 brackets", format!("allow if {}1{}", "[".repeat(5000), "]".repeat(5000))),
        ("texts that double", at_request(&doubling("s", "concat(\"\", [xN, xN])"))),
        ("arrays that double", at_request(&doubling("[s]", "array.concat(xN, xN)"))),
        (
            "shared parts, compared",
            at_request(&(doubling("[s]", "[xN, xN]") + "\nx40 == [x39, x39]")),
        ),
        (
            "shared parts, printed",
            at_request(&(doubling("[s]", "[xN, xN]") + "\njson.marshal(x40) != s")),
        ),
        ("numbers that square", at_request(&doubling("to_number(\"123456789\")", "xN * xN"))),
        ("a set of everything", at_request(&format!("count({{[i, j, s] | {many}}}) == 1"))),
        (
            "an object of everything",
            at_request(&format!("count({{sprintf(\"%d %d\", [i, j]): s | {many}}}) == 1")),
        ),
        (
            "texts of everything",
            at_request(&format!(
                "count([x | {many}x := concat(\"\", [s, sprintf(\"%d %d\", [i, j])])]) == 1"
            )),
        ),
        ("sprintf, wide", at_request("sprintf(\"%2000000000d\", [1]) != s")),
        ("sprintf, long", at_request(&doubling("s", "sprintf(\"%s%s\", [xN, xN])"))),
        ("sprintf, often", at_each("sprintf(\"%999d %v %s\", [i, input, s]) == s")),
        ("numbers.range", at_request("count(numbers.range(1, 30000000)) == 1")),
        ("bits.lsh", at_request("bits.lsh(1, 100000000000) != 1")),
        ("replace", at_request("replace(s, \"x\", s) != s")),
        (
            "regex.match, often",
            at_each("regex.match(sprintf(\"(%d|%d|[a-z]+\\\\w){1,9}$\", [i, j]), s)"),
        ),
        ("regex.match, large", at_each("regex.match(\"((a{1,99}){1,99}){1,99}\", s)")),
        ("regex.replace, often", at_each("regex.replace(s, \"x*x*x*y\", \"z\") == \"\"")),
        ("glob.match, often", at_each("glob.match(sprintf(\"*%d*%d*\", [i, j]), [], s)")),
        (
            "json.unmarshal, often",
            at_each("json.unmarshal(sprintf(\"[%d,%d,[[[[1]]]]]\", [i, j])) == s"),
        ),
        (
            "crypto.sha256, often",
            at_each("crypto.sha256(concat(\"\", [s, sprintf(\"%d\", [i + j])])) == s"),
        ),
        ("crypto.hmac.md5, often", at_each("crypto.hmac.md5(s, sprintf(\"%d\", [i + j])) == s")),
        (
            "io.jwt.verify_es256, often",
            at_each(&format!("io.jwt.verify_es256(\"{TOKEN}\", `{JWK}`)")),
        ),
        (
            "net.cidr_merge, often",
            at_each("net.cidr_merge([sprintf(\"10.%d.0.0/16\", [i % 256]), \"0.0.0.0/1\"]) == s"),
        ),
        (
            "net.cidr_contains_matches",
            at_request(
                "a := [\"10.0.0.0/8\" | some i in numbers.range(1, 9000)]\ncount(net.cidr_contains_matches(a, a)) == 1",
            ),
        ),
        ("http.send", at_request("not http.send({\"method\": \"get\", \"url\": \"http://x\"})")),
    ]
}

/// An ES256 token that does not verify, and a key for it (RFC 7515 appendix A.3).
const TOKEN: &str = "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UifQ.\
    DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q";
const JWK: &str = r#"{"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}"#;

/// One attack: how it ended and after how many microseconds, the quickest of five.
fn attack(module: &str) -> (String, u128) {
    let module = format!("package envoy.authz\n{module}\n");
    let begun = Instant::now();
    let policy = match RegoPolicy::compile(&[("p.rego", &module)], None, RegoOptions::default()) {
        Ok(policy) => policy,
        Err(RegoLoadError::ExceedsBudget { .. }) => return ("stopped too soon".to_owned(), 0),
        Err(error) => return (format!("refused at load: {error}"), begun.elapsed().as_micros()),
    };
    let mut headers = HeaderMap::new();
    headers.insert("x-long", HeaderValue::from_str(&"x".repeat(8_000)).unwrap());
    let input = RegoInput::builder("GET", "/slow", &headers).build();
    let (sender, receiver) = std::sync::mpsc::channel();
    let thread = on_large_stack("rego", move || {
        for _ in 0..5 {
            let begun = Instant::now();
            let reason = policy.decide(&input).reason().unwrap();
            sender.send((format!("denied, {}", reason.as_str()), begun.elapsed())).unwrap();
        }
    });
    thread.unwrap().join().unwrap();
    let (ended, took) = receiver.iter().min_by_key(|(_, took): &(_, Duration)| *took).unwrap();
    (ended, took.as_micros())
}

/// The child: it does nothing unless it is told which attack it is.
#[test]
fn one_attack() {
    let Ok(case) = env::var(CASE) else { return };
    let attacks = attacks();
    let (_, module) = attacks.into_iter().find(|(what, _)| *what == case).unwrap();
    let (ended, micros) = attack(&module);
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak = peak.trim().trim_end_matches(" kB");
    println!("\n@{ended}@{micros}@{peak}@");
}

/// [SEC-REGO-1] [SEC-REGO-2] [SEC-REGO-4] [SEC-REGO-6] A policy that loops, recurses, explodes or
/// calls what is expensive is refused at load, or stopped within twice the limit and in little
/// memory; the process lives.
#[test]
fn sec_rego_4_every_attack_is_refused_or_stopped() {
    if env::var(CASE).is_ok() {
        return;
    }
    let mut limit = None;
    println!("{:28} {:>10} {:>10} {:>9}  ended", "attack", "limit ms", "after ms", "peak MiB");
    for (what, _) in attacks() {
        let child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "one_attack", "--nocapture", "--test-threads=1"])
            .env(CASE, what)
            .output()
            .unwrap();
        let told = String::from_utf8(child.stdout).unwrap();
        assert!(child.status.success(), "{what}: {told}{}", String::from_utf8_lossy(&child.stderr));
        let mut told = told.split('@').skip(1);
        let mut next = || told.next().unwrap().to_owned();
        let (ended, micros, peak) = (next(), next(), next());
        let (took, peak): (u64, u64) = (micros.parse().unwrap(), peak.parse().unwrap());
        let limit = *limit.get_or_insert(took);
        let milli = |micros: u64| format!("{}.{}", micros / 1000, micros / 100 % 10);
        println!(
            "{what:28} {:>10} {:>10} {:>9}  {ended:.100}",
            milli(limit),
            milli(took),
            peak / 1024
        );
        let loads = ended.starts_with("refused");
        assert!(loads || ended == "denied, limit_exceeded", "{what}: {ended}");
        // Reading a module has its own bounds; what is refused there is no request's time.
        assert!(loads || took < TIMES * limit, "{what}: {took} µs, the limit is {limit} µs");
        assert!(peak < MOST_KIB, "{what}: {peak} KiB");
    }
}
