//! What a hostile or careless policy cannot do: it is refused at load, or stopped.
#![cfg(feature = "rego")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::disallowed_methods, reason = "measures how long the library takes")]

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderValue};
use mesh_authz::rego::{
    BodyView, MAX_MODULE_BYTES, MAX_NESTING, MAX_OPERATORS, MAX_RULE_CHAIN, PoolFull, RegoAnswer,
    RegoDecision, RegoDenyReason, RegoInput, RegoLoadError, RegoOptions, RegoPolicy, RegoPool,
    on_large_stack,
};
use serde_json::json;

fn compile(body: &str) -> Result<RegoPolicy, RegoLoadError> {
    let module = format!("package envoy.authz\n{body}\n");
    RegoPolicy::compile(&[("p.rego", &module)], None, RegoOptions::default())
}

fn get(path: &str) -> RegoInput {
    RegoInput::builder("GET", path, &HeaderMap::new()).build()
}

/// Evaluates on a thread of the pool, as servers do.
fn decide(policy: RegoPolicy, input: RegoInput) -> RegoDecision {
    let pool = RegoPool::start(1, 1).unwrap();
    let (sender, receiver) = mpsc::channel();
    pool.submit(Arc::new(policy), input, move |_, answer| {
        sender.send(answer.into_decision()).unwrap();
    })
    .unwrap();
    receiver.recv().unwrap()
}

/// Generous for a debug build on a busy machine; what it guards against took seconds to minutes.
const SOON: Duration = Duration::from_secs(4);

fn soon<T>(what: &str, run: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = run();
    assert!(start.elapsed() < SOON, "{what} took {:?}", start.elapsed());
    result
}

#[test]
fn sec_rego_2_recursion_is_refused() {
    for body in [
        "allow := allow",
        "allow if a\na if b\nb if a",
        "f(x) := f(x - 1)\nallow := f(3)",
        "f(x) := g(x)\ng(x) := f(x)\nallow := true",
        "allow if data.envoy.authz.a\na if allow",
        "allow if data.envoy[input.x].allow",
        "allow if data[input.x]",
        "allow if count(data.envoy.authz) > 0",
        "allow := [x | x := allow]",
        "allow if { every x in allow { x } }",
        "a[x] := y if { some x; y := a[x] }\nallow := true",
        "allow := 1 if input.a else := allow",
        "default allow := false\nallow if not allow",
    ] {
        let error = compile(body).unwrap_err();
        assert!(matches!(error, RegoLoadError::Recursion { .. }), "{body}: {error}");
    }
    let other = ("other.rego", "package other\nimport data.envoy.authz as back\nx := back.allow");
    let module = ("p.rego", "package envoy.authz\nimport data.other\nallow if other.x");
    let error = RegoPolicy::compile(&[module, other], None, RegoOptions::default()).unwrap_err();
    let RegoLoadError::Recursion { place, .. } = error else { panic!("{error}") };
    assert_eq!(place.line, 3);
}

#[test]
fn sec_rego_2_variables_are_no_recursion() {
    for body in [
        "allow if f(input)\nf(allow) if allow.parsed_path",
        "r if { u := input.parsed_path; u[0] == \"a\" }\nu if r\nallow if u",
        "r if { x := [u | u := input.parsed_path[_]]; count(x) == 1 }\nu if r\nallow if u",
        "r := u if { u := input.parsed_path; f(u) }\nf(r) if r[0] == \"a\"\nallow if r",
        "r if { every u in input.parsed_path { u == \"a\" } }\nu if r\nallow if u",
        "allow if input.allow == input.allow2\nallow if input.parsed_path",
    ] {
        let policy = compile(body).unwrap_or_else(|error| panic!("{body}: {error}"));
        assert!(decide(policy, get("/a")).is_allow(), "{body}");
    }
}

#[test]
fn sec_rego_2_chains_are_bounded_and_fit_the_stack() {
    let chain = |length: usize| {
        let mut body = String::from("allow if r1\n");
        for at in 1..length - 1 {
            writeln!(body, "r{at} if r{}", at + 1).unwrap();
        }
        writeln!(body, "r{} if input.parsed_path", length - 1).unwrap();
        body
    };
    assert!(decide(compile(&chain(MAX_RULE_CHAIN)).unwrap(), get("/a")).is_allow());
    let error = compile(&chain(MAX_RULE_CHAIN + 1)).unwrap_err();
    let RegoLoadError::ChainTooLong { rule, .. } = error else { panic!("{error}") };
    assert_eq!(rule, "data.envoy.authz.allow");
    // As deep as modules go: still an error, not a dead process.
    assert!(compile(&chain(3_900)).is_err());
}

#[test]
fn sec_rego_3_functions_nest_within_the_stack() {
    let mut body = String::from("allow if f1(input.parsed_path)\n");
    for at in 1..MAX_RULE_CHAIN - 1 {
        writeln!(body, "f{at}(x) if {{ count([y | some y in x; f{}([y])]) == 1 }}", at + 1)
            .unwrap();
    }
    writeln!(body, "f{}(x) if x[0] == \"a\"", MAX_RULE_CHAIN - 1).unwrap();
    assert!(decide(compile(&body).unwrap(), get("/a")).is_allow());
}

/// A value that nests as deep as the budget allows is taken apart on the worker's stack, and reaches no
/// smaller one.
#[test]
fn sec_rego_3_deep_values_end_no_process() {
    let layers = |inner: &str| format!("{}{inner}{}", "[".repeat(10), "]".repeat(10));
    let mut body = format!("f0(x) := {}\n", layers("x"));
    for at in 1..6 {
        let mut call = "x".to_owned();
        for _ in 0..8 {
            call = format!("f{}({call})", at - 1);
        }
        writeln!(body, "f{at}(x) := {call}").unwrap();
    }
    for deep in 2..6 {
        for given in ["dynamic_metadata\": {\"d\": ", "http_status\": {\"d\": "] {
            let result = format!("{{\"allowed\": true, \"{given}f{deep}(1)}}}}");
            let allow = "allow := r if {\n input.parsed_path[0] == \"boom\"\n r := ";
            let kept = "\n r != null\n}";
            let policy = Arc::new(compile(&format!("{body}{allow}{result}{kept}")).unwrap());
            let pool = RegoPool::start(1, 1).unwrap();
            let (sender, receiver) = mpsc::channel();
            let done = move |_: RegoInput, answer: RegoAnswer| sender.send(answer).unwrap();
            pool.submit(policy, get("/boom"), done).unwrap();
            let answer = receiver.recv().unwrap();
            assert!(!answer.decision().is_allow(), "{deep}");
        }
    }
}

#[test]
fn sec_rego_4_the_instruction_budget_ends_loops() {
    let body = "allow if {\n\
        xs := numbers.range(1, 5000)\n some x in xs\n some y in xs\n some z in xs\n\
        x + y + z == count(input.parsed_path) - 9\n}";
    let error = soon("load", || compile(body)).unwrap_err();
    assert!(matches!(error, RegoLoadError::ExceedsBudget { .. }), "{error}");

    let body = body.replace("allow if {", "allow if {\n input.parsed_path[0] == \"slow\"\n");
    let policy = compile(&body).unwrap();
    let decision = soon("evaluation", || decide(policy, get("/slow")));
    assert_eq!(decision.reason(), Some(RegoDenyReason::LimitExceeded));
}

#[test]
fn sec_rego_4_limits_are_not_lost_under_not() {
    let body = "slow if {\n input.parsed_path[0] == \"slow\"\n xs := numbers.range(1, 5000)\n\
        some x in xs\n some y in xs\n x + y == -1\n}\nallow if not slow";
    let policy = compile(body).unwrap();
    assert!(policy.decide(&get("/fast")).is_allow());
    assert_eq!(policy.decide(&get("/slow")).reason(), Some(RegoDenyReason::LimitExceeded));
}

#[test]
fn sec_rego_1_builtins_check_what_they_would_cost() {
    let long = "x".repeat(8_000);
    let mut headers = HeaderMap::new();
    headers.insert("x-long", HeaderValue::from_str(&long).unwrap());
    for call in [
        "numbers.range(1, 20000000)",
        "numbers.range(1, 100000000000000000000)",
        "numbers.range_step(1, 20000000, 1)",
        "numbers.range_step(1, 5, 0)",
        "sprintf(\"%2000000000d\", [1])",
        "sprintf(\"%.2000000000f\", [1.5])",
        "sprintf(\"%٣d\", [1])",
        "replace(s, \"x\", s)",
        "replace(s, \"\", s)",
        "regex.replace(s, \"x\", s)",
        "concat(s, numbers.range(1, 9999))",
        "bits.lsh(1, 100000000000)",
        "product([y | some y in numbers.range(1, 5000)])",
        "indexof(concat(\"\", [s, s, s]), concat(\"\", [s, s]))",
        "json.unmarshal(concat(\"\", [s, s, s, s, s, s, s, s, s]))",
        "regex.match(concat(\"\", [s, s]), \"x\")",
        "glob.match(\"*\", [], concat(\"\", [s, s]))",
    ] {
        let body = format!(
            "f(s) := x if {{ s != \"\"; x := {call} }}\n\
            allow if {{ s := input.attributes.request.http.headers[\"x-long\"]; not f(s) }}"
        );
        let policy = compile(&body).unwrap_or_else(|error| panic!("{call}: {error}"));
        let input = RegoInput::builder("GET", "/", &headers).build();
        let decision = soon(call, || decide(policy, input));
        let reasons = [RegoDenyReason::LimitExceeded, RegoDenyReason::EvaluationError];
        assert!(reasons.contains(&decision.reason().unwrap()), "{call}: {decision:?}");
    }
}

#[test]
fn sec_rego_1_doubling_ends() {
    const STEPS: usize = 40;
    for (first, double) in [
        ("s0 := input.parsed_path[0]", "concat(\"\", [sN, sN])"),
        ("s0 := \"\\\"\"", "json.marshal(sN)"),
        ("s0 := [1]", "array.concat(sN, sN)"),
        ("s0 := \"ab\"", "sprintf(\"%s%s\", [sN, sN])"),
        ("s0 := 123456789012345678901234567890", "sN * sN"),
        ("s0 := [1]", "sprintf(\"%v\", [[sN, sN]])"),
    ] {
        let mut body = format!("allow if {{\n{first}\n");
        for at in 0..STEPS {
            let call = double.replace("sN", &format!("s{at}"));
            writeln!(body, "s{} := {call}", at + 1).unwrap();
        }
        writeln!(body, "input.parsed_path\n s{STEPS} != 0\n}}").unwrap();
        let decision = match soon(double, || compile(&body)) {
            Err(error) => {
                assert!(matches!(error, RegoLoadError::ExceedsBudget { .. }), "{double}: {error}");
                continue;
            }
            Ok(policy) => soon(double, || decide(policy, get("/abc"))),
        };
        assert_eq!(decision.reason(), Some(RegoDenyReason::LimitExceeded), "{double}");
    }
}

/// The least time of a few evaluations on a thread as a pool has them, and why they denied.
fn quickest(policy: &Arc<RegoPolicy>, input: &RegoInput) -> (Duration, Option<RegoDenyReason>) {
    let (sender, receiver) = mpsc::channel();
    let (policy, input) = (Arc::clone(policy), input.clone());
    let runs = on_large_stack("rego-test", move || {
        for _ in 0..5 {
            let start = Instant::now();
            let reason = policy.decide(&input).reason();
            sender.send((start.elapsed(), reason)).unwrap();
        }
    });
    runs.unwrap().join().unwrap();
    receiver.iter().min_by_key(|(took, _)| *took).unwrap()
}

/// What fits into few instructions all the same: values that share their parts, so that comparing
/// or printing them has no end, and builtins that each stay within their own bounds.
#[test]
fn sec_rego_4_work_that_instructions_do_not_count_ends_too() {
    let doubled = |name: &str| {
        let mut text = format!("{name}0 := [input.parsed_path]\n");
        for at in 0..40 {
            writeln!(text, "{name}{} := [{name}{at}, {name}{at}]", at + 1).unwrap();
        }
        text
    };
    let pair = format!("{}{}", doubled("x"), doubled("y"));
    let many = "some i in numbers.range(1, 2000)\nsome j in numbers.range(1, 2000)\n";
    // The limit in time: what as many plain instructions take as a policy may execute.
    let limit = {
        let body = format!("allow if {{\ninput.parsed_path[0] == \"slow\"\n{many} i + j == -1\n}}");
        let (took, reason) = quickest(&Arc::new(compile(&body).unwrap()), &get("/slow"));
        assert_eq!(reason, Some(RegoDenyReason::LimitExceeded));
        took
    };
    eprintln!("{:24} {limit:?}", "instructions");
    for (what, body) in [
        ("comparing", format!("{pair} x40 == y40")),
        ("ordering", format!("{pair} x40 < y40")),
        ("a member of an array", format!("{pair} x40 in [y40]")),
        ("a member of a set", format!("{pair} x40 in {{y40}}")),
        ("a set", format!("{pair} count({{x40, y40}}) == 1")),
        ("a key", format!("{pair} at({{x40: 1}}, y40) == 1")),
        ("collected keys", format!("{pair} count({{k: 1 | some k in [x40, y40]}}) == 1")),
        ("collected elements", format!("{pair} count({{k | some k in [x40, y40]}}) == 1")),
        ("the largest", format!("{pair} max([x40, y40]) == 1")),
        ("sorting", format!("{pair} sort([x40, y40]) == 1")),
        ("a union", format!("{pair} {{x40}} | {{y40}} == 1")),
        (
            "objects",
            format!("{} x40 == 1", doubled("x").replace('[', "{\"a\": [").replace(']', "]}")),
        ),
        (
            "patterns",
            format!("{many} regex.match(sprintf(\"(%d|%d|[a-z]+\\\\w){{1,9}}$\", [i, j]), s)"),
        ),
        (
            "globs with classes",
            format!(
                "c := concat(\"\", [\"*[\", replace(s, \"x\", \"y\"), \"]z\"])\n{many} glob.match(c, [], s)"
            ),
        ),
        (
            "globs with alternatives",
            format!(
                "a := concat(\"\", [\"{{\", replace(substring(s, 0, 2700), \"x\", \"y,\"), \"z}}\"])\n{many} glob.match(a, [], s)"
            ),
        ),
        ("globs", format!("{many} glob.match(sprintf(\"*%d*%d*\", [i, j]), [], s)")),
        (
            "digests",
            format!("{many} crypto.sha256(concat(\"\", [s, sprintf(\"%d\", [i + j])])) == \"\""),
        ),
        ("JSON", format!("{many} json.marshal([input, i, j]) == \"\"")),
        (
            "texts",
            format!("count([x | {many} x := concat(\"\", [s, sprintf(\"%d %d\", [i, j])])]) == 1"),
        ),
        ("cases", format!("{many} upper(concat(\"\", [s, s, s, s])) == \"\"")),
        ("searches", format!("{many} indexof(s, \"xxxxxxy\") == i")),
        ("members", format!("{many} s in data.list")),
        ("signatures", format!("{many} io.jwt.verify_es256(data.token, data.jwk)")),
        ("large data", format!("{many} data.list == data.same")),
        ("keys of data", format!("{many} data.names[s] == i")),
        ("long keys of data", format!("{many} data.names[s] == i")),
        ("a large key in data", format!("{pair} count([1 | {many} not data.names[x40]]) == 1")),
        ("a large key of it", format!("{pair} count([1 | {many} not data.names[s][x40]]) == 1")),
    ] {
        let module = format!(
            "package envoy.authz\nallow if {{\ninput.parsed_path[0] == \"slow\"\n\
            s := input.attributes.request.http.headers[\"x-long\"]\n{body}\n}}\nat(map, key) := map[key]"
        );
        let list: Vec<String> = (0..5_000).map(|at| format!("entry {at}")).collect();
        let length = if what == "long keys of data" { 7_990 } else { 250 };
        let names = (0..1_000).map(|at| (format!("{}{at}", "x".repeat(length)), at.into()));
        let names: serde_json::Map<_, _> = names.collect();
        let data = json!({"list": list, "same": list, "token": TOKEN, "jwk": JWK, "names": names});
        let mut headers = HeaderMap::new();
        headers.insert("x-long", HeaderValue::from_str(&"x".repeat(8_000)).unwrap());
        let input = RegoInput::builder("GET", "/slow", &headers).build();
        let modules = [("p.rego", module.as_str())];
        let policy = RegoPolicy::compile(&modules, Some(data), RegoOptions::default());
        let policy = policy.unwrap_or_else(|error| panic!("{what}: {error}"));
        let (took, reason) = quickest(&Arc::new(policy), &input);
        assert_eq!(reason, Some(RegoDenyReason::LimitExceeded), "{what}");
        eprintln!("{what:24} {took:?}");
        assert!(took < 2 * limit, "{what} took {took:?}, instructions alone {limit:?}");
    }
}

/// An ES256 token that does not verify, and a key for it (RFC 7515 appendix A.3).
const TOKEN: &str = "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UifQ.\
    DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q";
const JWK: &str = r#"{"kty":"EC","crv":"P-256",
    "x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
    "y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}"#;

#[test]
fn sec_rego_6_nesting_is_bounded_before_parsing() {
    for (open, close) in [("[", "]"), ("{\"a\": ", "}"), ("(", ")"), ("{", "}"), ("count([", "])")]
    {
        let nested = |depth: usize| {
            format!("allow if {{ x := {}1{}\n x }}", open.repeat(depth), close.repeat(depth))
        };
        let error = soon(open, || compile(&nested(MAX_NESTING))).unwrap_err();
        assert!(matches!(error, RegoLoadError::TooDeep { .. }), "{open}: {error}");
        let error = soon(open, || compile(&nested(20_000))).unwrap_err();
        assert!(
            matches!(error, RegoLoadError::TooDeep { .. } | RegoLoadError::Syntax { .. }),
            "{open}: {error}"
        );
    }
    let deepest = "[".repeat(MAX_NESTING - 1) + "1" + &"]".repeat(MAX_NESTING - 1);
    soon("the deepest", || compile(&format!("allow if {{ {deepest} }}"))).unwrap();
}

#[test]
fn sec_rego_6_operator_chains_are_bounded() {
    let chain = |operators: usize, between: &str| {
        format!("allow if {{\n x := 1{}\n x\n}}", format!("{between}+ 1").repeat(operators))
    };
    soon("the longest", || compile(&chain(MAX_OPERATORS - 10, "\n"))).unwrap();
    for between in [" ", "\n"] {
        let error = soon("a chain", || compile(&chain(MAX_OPERATORS + 1, between))).unwrap_err();
        assert!(
            matches!(error, RegoLoadError::TooManyOperators { .. } | RegoLoadError::Syntax { .. }),
            "{error}"
        );
    }
    let error = soon("100,000", || compile(&chain(15_000, "\n"))).unwrap_err();
    assert!(matches!(error, RegoLoadError::TooManyOperators { .. }), "{error}");
    let path = format!("allow if input{}", ".a".repeat(MAX_OPERATORS + 1));
    assert!(compile(&path).is_err());
    // Many statements are no chain.
    let lines = "  input.parsed_path[0] == \"a\"\n".repeat(2_000);
    soon("statements", || compile(&format!("allow if {{\n{lines}}}"))).unwrap_err();
}

#[test]
fn sec_rego_6_sizes_are_bounded() {
    let filler = format!("# {}\n", "filler ".repeat(100));
    let error = compile(&filler.repeat(MAX_MODULE_BYTES / filler.len() + 1)).unwrap_err();
    assert!(matches!(error, RegoLoadError::TooLong { .. }), "{error}");
    let half = format!("package a\n{}", filler.repeat(MAX_MODULE_BYTES / filler.len() / 2));
    let modules = [("a.rego", half.as_str()), ("b.rego", &half), ("c.rego", &half)];
    let error = RegoPolicy::compile(&modules, None, RegoOptions::default()).unwrap_err();
    assert!(matches!(error, RegoLoadError::TooLong { .. }), "{error}");
}

#[test]
fn many_rules_are_reported_or_work() {
    let rules = |count: usize| {
        let mut body = String::from("default allow := false\n");
        for at in 0..count {
            writeln!(body, "allow if input.parsed_path[0] == \"p{at}\"").unwrap();
        }
        body
    };
    let policy = compile(&rules(2_000)).unwrap();
    assert!(decide(policy, get("/p1999")).is_allow());
    let policy = compile(&rules(2_000)).unwrap();
    assert_eq!(decide(policy, get("/p2000")).reason(), Some(RegoDenyReason::Policy));
    // regorus' compiled form ends somewhere above 3,800 literals of one kind; its virtual machine
    // would stop after 25,000 instructions. Neither may decide anything.
    for count in [3_700, 3_900, 5_000] {
        match compile(&rules(count)) {
            Err(RegoLoadError::ProgramTooLarge { .. } | RegoLoadError::Compile { .. }) => {}
            Err(other) => panic!("{count}: {other:?}"),
            Ok(policy) => {
                let policy = Arc::new(policy);
                let last = get(&format!("/p{}", count - 1));
                assert_eq!(quickest(&policy, &last).1, None, "{count}");
                let beyond = get(&format!("/p{count}"));
                assert_eq!(quickest(&policy, &beyond).1, Some(RegoDenyReason::Policy), "{count}");
            }
        }
    }
    match compile(&rules(15_000)) {
        Err(RegoLoadError::ProgramTooLarge { .. } | RegoLoadError::Compile { .. }) => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn large_data_is_looked_up_not_walked() {
    let users: serde_json::Map<_, _> =
        (0..10_000).map(|at| (format!("u{at}"), json!({"role": "admin"}))).collect();
    let module = "package envoy.authz\n\
        allow if data.users[input.parsed_path[0]].role == \"admin\"\n\
        allow if object.get(data.users, input.parsed_path[1], null) != null";
    let data = Some(json!({ "users": users }));
    let policy = RegoPolicy::compile(&[("p.rego", module)], data, RegoOptions::default()).unwrap();
    assert!(policy.decide(&get("/u9999")).is_allow());
    assert!(policy.decide(&get("/x/u1")).is_allow());
    assert!(!policy.decide(&get("/x/y")).is_allow());
}

#[test]
fn sec_rego_3_a_full_queue_refuses_and_late_work_is_written_off() {
    let slow = "allow if {\n input.parsed_path[0] == \"slow\"\n xs := numbers.range(1, 5000)\n\
        some x in xs\n some y in xs\n x + y == -1\n}\nallow if input.parsed_path[0] == \"fast\"";
    let module = format!("package envoy.authz\n{slow}");
    let options = RegoOptions::default().with_instructions(20_000_000);
    let policy = Arc::new(RegoPolicy::compile(&[("p.rego", &module)], None, options).unwrap());
    let pool = RegoPool::start(1, 1).unwrap();
    let (sender, receiver) = mpsc::channel();
    let submit = |path: &'static str| {
        let sender = sender.clone();
        let done = move |_: RegoInput, answer: RegoAnswer| {
            sender.send((path, answer.decision().is_allow())).unwrap();
        };
        pool.submit(Arc::clone(&policy), get(path), done)
    };
    let stuck = submit("/slow").unwrap();
    // Until the worker has taken it, the queue is full; then one more fits and no third.
    let waiting = loop {
        if let Ok(ticket) = submit("/fast") {
            break ticket;
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    assert_eq!(submit("/fast"), Err(PoolFull));
    assert_eq!(RegoDecision::from(PoolFull).reason(), Some(RegoDenyReason::Overloaded));
    // Written off while it waits, it never runs; written off while it runs, it blocks nobody.
    assert!(!pool.write_off(waiting));
    assert!(pool.write_off(stuck));
    submit("/fast").unwrap();
    assert_eq!(receiver.recv().unwrap(), ("/fast", true));
    // What is done already is left alone.
    let _done_or_not: bool = pool.write_off(stuck);
    submit("/fast").unwrap();
    let rest = [receiver.recv().unwrap(), receiver.recv().unwrap()];
    assert!(rest.contains(&("/fast", true)) && rest.contains(&("/slow", false)));
}

#[test]
fn a_worker_survives_a_panic_of_its_caller() {
    let policy = Arc::new(compile("allow := true").unwrap());
    let pool = RegoPool::start(1, 4).unwrap();
    pool.submit(Arc::clone(&policy), get("/"), |_, _| panic!("the caller's own")).unwrap();
    let (sender, receiver) = mpsc::channel();
    pool.submit(policy, get("/"), move |_, answer| sender.send(answer.into_decision()).unwrap())
        .unwrap();
    assert!(receiver.recv().unwrap().is_allow());
}

#[test]
fn sec_rego_8_evaluations_share_nothing() {
    let policy = Arc::new(compile("seen := input.parsed_path\nallow if seen[0] == \"a\"").unwrap());
    let threads: Vec<_> = (0..4)
        .map(|thread| {
            let policy = Arc::clone(&policy);
            std::thread::spawn(move || {
                for at in 0..200 {
                    let allowed = (at + thread) % 2 == 0;
                    let input = get(if allowed { "/a" } else { "/b" });
                    assert_eq!(policy.decide(&input).is_allow(), allowed);
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
}

#[test]
fn a_large_body_is_bounded_with_its_parse() {
    let body = format!("[{}1]", "[1,2,3,4,5,6,7,8],".repeat(300));
    let mut headers = HeaderMap::new();
    headers.insert("content-type", HeaderValue::from_static("application/json"));
    let input =
        RegoInput::builder("POST", "/", &headers).body(BodyView::Complete(body.as_bytes())).build();
    let policy = compile("allow if count(input.parsed_body) > 0").unwrap();
    assert!(decide(policy, input).is_allow());
}
