//! A policy: modules and data, compiled; and the decision.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;

use regorus::languages::rego::compiler::Compiler;
use regorus::rvm::program::Program;
use regorus::rvm::vm::{RegoVM, VmError};
use regorus::{Engine, Value};

use super::builtins::meter::metered;
use super::builtins::{self, Fault, Link};
use super::check::{Checked, check};
use super::decision::{RegoDecision, RegoDenyReason};
use super::error::RegoLoadError;
use super::harden::harden;
use super::input::RegoInput;
use super::parts::InputParts;
use super::plain::plain;
use super::pool::STACK_BYTES;
use super::scan::{scan, split_report, syntax};

/// The rule that OPA's Envoy plugin asks for.
pub const DEFAULT_QUERY: &str = "data.envoy.authz.allow";

/// Instructions that an evaluation may execute. regorus' own default of 25,000 ends a policy that
/// walks 3,000 entries of data; an instruction takes about 30 ns, so these are about 15 ms.
pub const DEFAULT_INSTRUCTIONS: usize = 500_000;

/// How a policy is compiled and evaluated.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RegoOptions {
    query: String,
    instructions: usize,
    builtin_errors: BuiltinErrors,
}

/// What it means when a builtin or an operator gets arguments that it cannot take.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[expect(clippy::exhaustive_enums, reason = "there are these two ways to go on")]
pub enum BuiltinErrors {
    /// The request is denied ([SEC-REGO-7]): OPA's `strict-builtin-errors`.
    #[default]
    Deny,
    /// The call is undefined, as OPA does unless told otherwise. `not f(x)` then holds when `f`
    /// fails.
    Undefined,
}

impl Default for RegoOptions {
    fn default() -> Self {
        Self {
            query: DEFAULT_QUERY.to_owned(),
            instructions: DEFAULT_INSTRUCTIONS,
            builtin_errors: BuiltinErrors::default(),
        }
    }
}

impl RegoOptions {
    /// The rule to ask for, such as `data.envoy.authz.allow`.
    #[must_use]
    pub fn with_query(mut self, query: impl Into<String>) -> Self {
        self.query = query.into();
        self
    }

    /// How many instructions an evaluation may execute, and what it may spend besides on large
    /// values and builtins, in units of about one instruction ([SEC-REGO-4]).
    #[must_use]
    pub fn with_instructions(mut self, instructions: usize) -> Self {
        self.instructions = instructions;
        self
    }

    /// What a failing builtin means.
    #[must_use]
    pub fn with_builtin_errors(mut self, errors: BuiltinErrors) -> Self {
        self.builtin_errors = errors;
        self
    }
}

/// A compiled policy. It is immutable; evaluations share nothing of each other ([SEC-REGO-8]).
pub struct RegoPolicy {
    program: Arc<Program>,
    data: Value,
    instructions: usize,
    query: Arc<str>,
    revision: Arc<str>,
    reads: InputParts,
}

impl RegoPolicy {
    /// Says which revision of a bundle this is.
    #[must_use]
    pub fn with_revision(mut self, revision: impl Into<Arc<str>>) -> Self {
        self.revision = revision.into();
        self
    }

    /// The bundle's revision; empty when it came from no bundle or from one without.
    #[must_use]
    pub fn revision(&self) -> &str {
        &self.revision
    }

    /// The rule that is asked for, such as `data.envoy.authz.allow`.
    #[must_use]
    pub fn query(&self) -> &str {
        &self.query
    }

    /// What the policy reads of the input; [`super::RegoInputBuilder::only`] takes it.
    #[must_use]
    pub fn reads(&self) -> &InputParts {
        &self.reads
    }

    /// Compiles modules, each a name and its text, and the data document that they see.
    ///
    /// It works on a thread of its own with a large stack and waits for it. Its time is bounded by
    /// [`super::MAX_MODULE_BYTES`], [`super::MAX_NESTING`] and the instruction budget, not by a
    /// clock.
    ///
    /// # Errors
    ///
    /// The first [`RegoLoadError`] met: texts before syntax, syntax before functions and
    /// recursion, these before what the compiler refuses.
    pub fn compile(
        modules: &[(&str, &str)],
        data: Option<serde_json::Value>,
        options: RegoOptions,
    ) -> Result<Self, RegoLoadError> {
        let failed = |message: &str| RegoLoadError::Engine { message: message.to_owned() };
        thread::scope(|scope| {
            let thread = thread::Builder::new().name("rego-load".to_owned());
            let load = thread
                .stack_size(STACK_BYTES)
                .spawn_scoped(scope, || load(modules, data, options))
                .map_err(|_no_thread| failed("no thread to load on"))?;
            load.join().unwrap_or_else(|_panic| Err(failed("it panicked while loading")))
        })
    }

    /// What the policy says to a request. Total: whatever fails denies, with the reason.
    ///
    /// Call it on a thread with a large stack, such as one of a [`super::RegoPool`].
    #[must_use]
    pub fn decide(&self, input: &RegoInput) -> RegoDecision {
        self.answer(input).into_decision()
    }

    /// The decision together with the value that it was read from, for a decision log.
    ///
    /// Call it on a thread with a large stack, such as one of a [`super::RegoPool`].
    #[must_use]
    pub fn answer(&self, input: &RegoInput) -> RegoAnswer {
        self.answer_on(&mut None, input)
    }

    /// The same on a machine that this policy has left before, if there is one, and leaves again
    /// where all went well.
    fn answer_on(&self, machine: &mut Option<RegoVM>, input: &RegoInput) -> RegoAnswer {
        let document = match input.document() {
            Ok(document) => document.clone(),
            Err(problem) => return RegoAnswer::deny(RegoDenyReason::BadInput(*problem)),
        };
        let run = || self.evaluate_on(machine, document, input.now_ns());
        // regorus forbids itself to panic; should it do so all the same, that is no allow.
        let reason = match catch_unwind(AssertUnwindSafe(run)) {
            // It goes to threads with small stacks, for which it may not nest as deep as here.
            Ok(Ok(value)) if is_shallow(&value) => {
                return RegoAnswer { decision: RegoDecision::read(&value), value };
            }
            Ok(Ok(_too_deep)) => RegoDenyReason::LimitExceeded,
            Ok(Err(reason)) => reason,
            Err(_panic) => RegoDenyReason::EvaluationError,
        };
        // A machine that failed or panicked is not used again.
        *machine = None;
        RegoAnswer::deny(reason)
    }

    /// The value of the query for any document, as JSON: for policies that are not asked about
    /// requests, such as masks.
    pub(super) fn value_of(
        &self,
        document: &serde_json::Value,
    ) -> Result<Option<serde_json::Value>, RegoDenyReason> {
        let document = Value::from(document.clone());
        let run = || self.evaluate(document, Value::Null);
        match catch_unwind(AssertUnwindSafe(run)) {
            Ok(Ok(value)) if is_shallow(&value) => Ok(json(&value)),
            Ok(Ok(_too_deep)) => Err(RegoDenyReason::LimitExceeded),
            Ok(Err(reason)) => Err(reason),
            Err(_panic) => Err(RegoDenyReason::EvaluationError),
        }
    }

    pub(super) fn evaluate(&self, input: Value, now_ns: Value) -> Result<Value, RegoDenyReason> {
        self.evaluate_on(&mut None, input, now_ns)
    }

    fn evaluate_on(
        &self,
        machine: &mut Option<RegoVM>,
        input: Value,
        now_ns: Value,
    ) -> Result<Value, RegoDenyReason> {
        let vm = match machine {
            Some(vm) => vm,
            None => machine.insert(self.machine()?),
        };
        vm.set_context(now_ns);
        vm.set_input(input);
        let run = || vm.execute_entry_point_by_index(0);
        let value = metered(self.instructions, run).map_err(|error| reason(&error))?;
        vm.set_input(Value::Null);
        Ok(value)
    }

    fn machine(&self) -> Result<RegoVM, RegoDenyReason> {
        let mut vm = RegoVM::new();
        vm.set_max_instructions(self.instructions);
        vm.load_program(Arc::clone(&self.program));
        vm.set_data(self.data.clone()).map_err(|error| reason(&error))?;
        Ok(vm)
    }
}

/// Answers for one policy again and again on one thread, as the workers of a [`super::RegoPool`]
/// do: what need not be set up anew for each request is kept.
///
/// Evaluations share nothing of each other all the same ([SEC-REGO-8]): the machine clears its
/// state before each, and one that failed is not used again.
pub struct RegoEvaluator {
    policy: Arc<RegoPolicy>,
    machine: Option<RegoVM>,
}

impl RegoEvaluator {
    /// Answers for this policy.
    #[must_use]
    pub fn new(policy: Arc<RegoPolicy>) -> Self {
        Self { policy, machine: None }
    }

    /// As [`RegoPolicy::answer`].
    #[must_use]
    pub fn answer(&mut self, input: &RegoInput) -> RegoAnswer {
        self.policy.answer_on(&mut self.machine, input)
    }

    /// Whether it answers for this very policy.
    pub(super) fn is_for(&self, policy: &Arc<RegoPolicy>) -> bool {
        Arc::ptr_eq(&self.policy, policy)
    }
}

impl fmt::Debug for RegoEvaluator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegoEvaluator").field("policy", &self.policy).finish_non_exhaustive()
    }
}

/// A decision, and the value of the query that it was read from.
///
/// `Debug` shows the decision's reason only: values may hold what headers held.
#[derive(Clone)]
pub struct RegoAnswer {
    decision: RegoDecision,
    /// Undefined when evaluation gave none.
    value: Value,
}

impl RegoAnswer {
    /// A denial without a value.
    #[must_use]
    pub fn deny(reason: RegoDenyReason) -> Self {
        Self { decision: RegoDecision::deny(reason), value: Value::Undefined }
    }

    /// The decision.
    #[must_use]
    pub fn decision(&self) -> &RegoDecision {
        &self.decision
    }

    /// The decision alone.
    #[must_use]
    pub fn into_decision(self) -> RegoDecision {
        self.decision
    }

    /// The value of the query as JSON; nothing when there is none.
    #[must_use]
    pub fn result(&self) -> Option<serde_json::Value> {
        json(&self.value)
    }
}

impl fmt::Debug for RegoAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegoAnswer")
            .field("reason", &self.decision.reason())
            .finish_non_exhaustive()
    }
}

/// How deep the value of a query may nest.
const MAX_VALUE_DEPTH: usize = 128;

/// Whether a value nests no deeper than that; found without recursion.
fn is_shallow(value: &Value) -> bool {
    let mut pending = vec![(value, MAX_VALUE_DEPTH)];
    while let Some((value, left)) = pending.pop() {
        let Some(below) = left.checked_sub(1) else { return false };
        match value {
            Value::Array(items) => pending.extend(items.iter().map(|item| (item, below))),
            Value::Set(items) => pending.extend(items.iter().map(|item| (item, below))),
            Value::Object(members) => {
                pending.extend(members.iter().flat_map(|(k, v)| [(k, below), (v, below)]));
            }
            Value::Null
            | Value::Bool(_)
            | Value::Number(_)
            | Value::String(_)
            | Value::Undefined => {}
        }
    }
    true
}

fn json(value: &Value) -> Option<serde_json::Value> {
    if *value == Value::Undefined { None } else { serde_json::to_value(value).ok() }
}

impl fmt::Debug for RegoPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegoPolicy")
            .field("rules", &self.program.rule_infos.len())
            .field("instructions", &self.program.instructions.len())
            .finish_non_exhaustive()
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "all other errors are of evaluation")]
fn reason(error: &VmError) -> RegoDenyReason {
    match error {
        VmError::MemoryLimitExceeded { usage, .. } => match Fault::carried(*usage) {
            Fault::Failed => RegoDenyReason::EvaluationError,
            Fault::TooLarge => RegoDenyReason::LimitExceeded,
            Fault::Conflict => RegoDenyReason::Conflict,
        },
        VmError::InstructionLimitExceeded { .. }
        | VmError::NumericOverflow { .. }
        | VmError::RegexSizeLimitExceeded { .. }
        | VmError::TimeLimitExceeded { .. } => RegoDenyReason::LimitExceeded,
        _ => RegoDenyReason::EvaluationError,
    }
}

fn load(
    modules: &[(&str, &str)],
    data: Option<serde_json::Value>,
    options: RegoOptions,
) -> Result<RegoPolicy, RegoLoadError> {
    let RegoOptions { query, instructions, builtin_errors } = options;
    scan(modules)?;
    let mut engine = Engine::new();
    for (name, text) in modules {
        let add = |engine: &mut Engine, text: &str| {
            let added = engine.add_policy((*name).to_owned(), text.to_owned());
            added.map(drop).map_err(|error| syntax(name, &error.to_string()))
        };
        // Most modules have no such word, and need not be parsed twice.
        let plain = if text.contains("every") {
            let mut alone = Engine::new();
            add(&mut alone, text)?;
            alone.get_modules().first().and_then(|module| plain(module, text))
        } else {
            None
        };
        add(&mut engine, plain.as_deref().unwrap_or(text))?;
    }
    let Checked { called, reads } = check(engine.get_modules(), &query)?;
    let reads = InputParts::of(&reads);

    let refused = |report: &str| {
        let (place, message) = split_report("policy", report);
        RegoLoadError::Compile { place, message }
    };
    let policy = engine.compile_with_entrypoint(&query.as_str().into());
    let policy = policy.map_err(|error| refused(&error.to_string()))?;
    let host_functions: Vec<(&str, usize)> = called
        .iter()
        .filter_map(|name| match builtins::link(name)? {
            Link::Packed(arguments) | Link::PackedWithNow(arguments) => Some((*name, arguments)),
            Link::Context => Some((*name, 0)),
            Link::Native | Link::Operator => None,
        })
        .collect();
    let program =
        Compiler::compile_from_policy_with_host_await(&policy, &[&query], &host_functions);
    let program = Arc::unwrap_or_clone(program.map_err(|error| refused(&error.to_string()))?);
    let program = harden(program, builtin_errors, data.as_ref())?;

    let data = data_document(data)?;
    program.check_rule_data_conflicts(&data).map_err(|_conflict| RegoLoadError::Data {
        message: "a value stands where the modules define a rule".to_owned(),
    })?;
    let (query, revision) = (query.into(), Arc::from(""));
    let program = Arc::new(program);
    let policy = RegoPolicy { program, data, instructions, query, revision, reads };
    // [SEC-REGO-6] A policy that needs more for nothing would never decide anything.
    if policy.decide(&RegoInput::empty()).reason() == Some(RegoDenyReason::LimitExceeded) {
        return Err(RegoLoadError::ExceedsBudget { instructions });
    }
    Ok(policy)
}

fn data_document(data: Option<serde_json::Value>) -> Result<Value, RegoLoadError> {
    let refused = |message: &str| RegoLoadError::Data { message: message.to_owned() };
    match data {
        None => Ok(Value::new_object()),
        Some(data) if data.is_object() => {
            let document = Value::from(data);
            document.as_object().map_err(|_undefined| refused("it cannot be represented"))?;
            Ok(document)
        }
        Some(_) => Err(refused("it must be an object")),
    }
}
