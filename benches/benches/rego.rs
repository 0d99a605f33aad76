//! What a Rego decision costs: ours beside regorus' bare virtual machine and its interpreter, on
//! the policy of the walk-through and on a lookup in small and large data.
//!
//! "Bare" is the least that regorus can be asked with: its own program of the policy, unchanged, on a
//! machine that is kept, with an input that is a value already; what it answers is dropped. It has no
//! limits but the machine's own, loses errors as `harden` in mesh-authz says, and says nothing about
//! requests. "Ours" is [`RegoEvaluator::answer`] on the same document, as the workers of a pool call
//! it: the hardened program within its limits, and the decision with its headers read out of the
//! value. "Fresh" makes a machine for each evaluation.
//!
//! All in one run and in the thread's own processor time. The lines with "times" come first: both
//! sides in turn, a hundred evaluations each, and of two hundred such pairs the middle ratio.
#![expect(clippy::unwrap_used, reason = "a mistake in a policy must stop the measurement")]

mod thread_time;

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::measurement::Measurement as _;
use criterion::{Criterion, criterion_group, criterion_main};
use http::{HeaderMap, HeaderName, HeaderValue};
use mesh_authz::rego::{BodyView, InputParts, RegoEvaluator, RegoInput, RegoOptions, RegoPolicy};
use mesh_identity::{Claims, VerifiedPeer, VerifiedToken};
use regorus::languages::rego::compiler::Compiler;
use regorus::rvm::program::Program;
use regorus::rvm::vm::RegoVM;
use regorus::{Engine, Value};
use rustls_pki_types::UnixTime;
use serde_json::json;
use thread_time::ThreadTime;

const BOOKINFO: &str = include_str!("../../mesh-authz/tests/rego/bookinfo.rego");
const LOOKUP: &str = r#"package envoy.authz
default allow := false
allow if data.users[input.parsed_path[0]].role == "admin"
"#;
const QUERY: &str = "data.envoy.authz.allow";

/// A policy three times: as we decide, as the bare virtual machine and as the interpreter do.
struct Case {
    ours: Arc<RegoPolicy>,
    program: Arc<Program>,
    data: Value,
    engine: Engine,
}

impl Case {
    fn new(module: &str, data: &serde_json::Value) -> Self {
        let modules = [("policy.rego", module)];
        let ours = RegoPolicy::compile(&modules, Some(data.clone()), RegoOptions::default());
        let mut engine = Engine::new();
        engine.add_policy("policy.rego".to_owned(), module.to_owned()).unwrap();
        engine.add_data(Value::from(data.clone())).unwrap();
        let compiled = engine.compile_with_entrypoint(&QUERY.into()).unwrap();
        let program = Compiler::compile_from_policy(&compiled, &[QUERY]).unwrap();
        Self { ours: Arc::new(ours.unwrap()), program, data: Value::from(data.clone()), engine }
    }

    fn machine(&self) -> RegoVM {
        let mut vm = RegoVM::new();
        vm.load_program(Arc::clone(&self.program));
        vm.set_data(self.data.clone()).unwrap();
        vm
    }

    fn bare(&self, input: &Value) -> Value {
        let mut vm = self.machine();
        vm.set_input(input.clone());
        vm.execute_entry_point_by_index(0).unwrap()
    }

    fn interpreted(&self, input: &Value) -> Value {
        let mut engine = self.engine.clone();
        engine.set_input(input.clone());
        engine.eval_rule(QUERY.to_owned()).unwrap()
    }

    /// How many times as long as the bare machine ours takes, each kept or each made anew.
    fn compare(&self, name: &str, input: &RegoInput, value: &Value) {
        let mut ours = RegoEvaluator::new(Arc::clone(&self.ours));
        let mut machine = self.machine();
        let kept = ratio(
            || drop(black_box(ours.answer(black_box(input)))),
            || {
                machine.set_input(black_box(value).clone());
                drop(black_box(machine.execute_entry_point_by_index(0).unwrap()));
            },
        );
        let fresh = ratio(
            || drop(black_box(self.ours.answer(black_box(input)))),
            || drop(black_box(self.bare(black_box(value)))),
        );
        println!("{name}: {kept:.3} times bare, fresh {fresh:.3} times bare");
    }

    /// Ours with the input at hand, the bare machine, the interpreter.
    fn bench(&self, c: &mut Criterion<ThreadTime>, name: &str, input: &RegoInput) {
        let value = Value::from(input.to_json());
        let answer = self.ours.answer(input).result();
        assert_eq!(answer, serde_json::to_value(self.bare(&value)).ok(), "one meaning");
        assert_eq!(answer, serde_json::to_value(self.interpreted(&value)).ok(), "one meaning");
        self.compare(name, input, &value);
        let mut group = c.benchmark_group(name);
        let mut ours = RegoEvaluator::new(Arc::clone(&self.ours));
        group.bench_function("ours", |b| b.iter(|| black_box(ours.answer(black_box(input)))));
        group.bench_function("ours, fresh", |b| {
            b.iter(|| black_box(self.ours.answer(black_box(input))));
        });
        group.bench_function("bare", |b| b.iter(|| black_box(self.bare(black_box(&value)))));
        let mut reused = self.machine();
        group.bench_function("bare, reused", |b| {
            b.iter(|| {
                reused.set_input(black_box(&value).clone());
                black_box(reused.execute_entry_point_by_index(0).unwrap())
            });
        });
        group.bench_function("interpreter", |b| {
            b.iter(|| black_box(self.interpreted(black_box(&value))));
        });
        group.finish();
    }
}

/// The middle of what `a` takes in times of `b`, both in turn.
fn ratio(mut a: impl FnMut(), mut b: impl FnMut()) -> f64 {
    const PAIRS: usize = 200;
    let time = |run: &mut dyn FnMut()| {
        let begun = ThreadTime.start();
        (0..100).for_each(|_| run());
        ThreadTime.to_f64(&ThreadTime.end(begun))
    };
    let mut ratios: Vec<f64> = (0..PAIRS).map(|_| time(&mut a) / time(&mut b)).collect();
    ratios.sort_by(f64::total_cmp);
    ratios.get(PAIRS / 2).copied().unwrap_or(f64::NAN)
}

/// What a service of the walk-through gets from another.
struct Request {
    headers: HeaderMap,
    peer: VerifiedPeer,
    token: VerifiedToken,
    body: &'static [u8],
}

impl Request {
    fn new() -> Self {
        let headers = [
            ("user-agent", "curl/8.5.0"),
            ("accept", "*/*"),
            ("content-type", "application/json"),
            ("content-length", "15"),
            ("x-request-id", "8f3c1f9e-6f0e-4a57-9d5c-1b0c9d0f9a11"),
            ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ];
        let headers = headers
            .into_iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
        let claims = json!({
            "iss": "testing@secure.istio.io", "sub": "bob", "role": "admin", "name": "bob",
            "iat": 1_700_000_000, "exp": 1_700_003_600, "scope": "read write",
        });
        let claims = Claims::new(claims.as_object().unwrap().clone());
        let id = "spiffe://cluster.local/ns/default/sa/bookinfo-productpage".parse().unwrap();
        Self {
            headers: headers.collect(),
            peer: VerifiedPeer::assert_verified(id),
            token: VerifiedToken::assert_verified(claims, ["scope"]),
            body: br#"{"Reviewer1":3}"#,
        }
    }

    fn input(&self, only: &InputParts) -> RegoInput {
        RegoInput::builder("POST", "/ratings/0", &self.headers)
            .authority("ratings.default.svc.cluster.local:9080")
            .scheme("https")
            .protocol("HTTP/1.1")
            .source("127.0.0.1:50000".parse().unwrap())
            .destination("127.0.0.1:9080".parse().unwrap())
            .peer(&self.peer)
            .token(&self.token)
            .time(UnixTime::since_unix_epoch(Duration::from_secs(1_700_000_000)), 0)
            .body(BodyView::Complete(self.body))
            .only(only)
            .build()
    }
}

fn bookinfo(c: &mut Criterion<ThreadTime>) {
    let case = Case::new(BOOKINFO, &json!({}));
    let request = Request::new();
    let input = request.input(&InputParts::ALL);
    assert!(case.ours.decide(&input).is_allow());
    case.bench(c, "bookinfo", &input);
    let mut group = c.benchmark_group("bookinfo");
    let only = case.ours.reads();
    group.bench_function("whole input", |b| {
        b.iter(|| black_box(request.input(&InputParts::ALL)));
    });
    group.bench_function("input", |b| b.iter(|| black_box(request.input(only))));
    let mut ours = RegoEvaluator::new(Arc::clone(&case.ours));
    group.bench_function("input and decision", |b| {
        b.iter(|| black_box(ours.answer(&black_box(&request).input(only))));
    });
    group.finish();
}

fn data(c: &mut Criterion<ThreadTime>) {
    for entries in [0, 10_000] {
        let users: BTreeMap<String, serde_json::Value> =
            (0..entries).map(|at| (format!("u{at}"), json!({"role": "guest"}))).collect();
        let case = Case::new(LOOKUP, &json!({ "users": users }));
        let input = RegoInput::builder("GET", "/u9999", &HeaderMap::new()).build();
        case.bench(c, &format!("data of {entries}"), &input);
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .with_measurement(ThreadTime)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .sample_size(50);
    targets = bookinfo, data
}
criterion_main!(benches);
