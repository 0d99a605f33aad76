//! The pass over compiled code that makes it decide as OPA does, and deny where something fails.
//!
//! regorus 0.14.1's virtual machine loses errors: a rule whose body meets one is merely undefined,
//! so `not blocked` holds because `blocked` broke. And where its compiler gives a program another
//! meaning than OPA does, a policy can allow too much. Its program is plain data, so this pass
//! rewrites it once, at load:
//!
//! | in the program | would | so |
//! |---|---|---|
//! | arithmetic | lose an error of types | it calls our operators, whose faults end evaluation |
//! | builtins | lose their errors and limits | each is linked to a checked function |
//! | host functions | suspend | they are called like builtins |
//! | a comprehension | on a false condition leave its caller's loop, or never end | its body runs in a loop of one step |
//! | a yield | keep undefined elements | a guard skips them |
//! | a key given twice | keep the last value | a second, different value ends evaluation |
//! | the end of a body | take undefined for success and skip `else` | a guard fails it |
//! | `x := y` | go on when `y` is undefined | a guard behind it |
//! | `x in y` | be false when either is undefined | a call that is undefined then |
//! | `not f(x)` | hold when `x` is undefined | guards before it |
//! | a function's arguments | be undefined where it does not look at them | a guard for each at its beginning |
//! | `input` and `data` | be loaded once, in code that may be skipped | they are loaded at the beginning of each body |
//! | a package read as an object | have undefined members | a call takes them out |
//! | several values of a rule | be undefined, or be the last | its definitions collect sets, which must agree |
//! | comparisons, lookups, literals | take as long as their values are large | a call beside each charges for it; not for lookups in data with short keys |
//!
//! The cases are pinned by tests against regorus' interpreter, so that a new version of regorus
//! cannot change them unseen.

mod charge;
mod negation;
mod registers;
mod split;

use std::collections::BTreeMap;

use regorus::Value;
use regorus::rvm::Instruction;
use regorus::rvm::instructions::{BuiltinCallParams, GuardMode, LoopMode, LoopStartParams};
use regorus::rvm::program::{BuiltinInfo, Program, RuleInfo, RuleType};

use super::builtins::{self, Link};
use super::error::RegoLoadError;
use super::policy::BuiltinErrors;
use split::must_agree;

/// Registers that the pass adds to a rule: one that holds the step of a comprehension's loop, and
/// one for results that nobody reads.
const SCRATCH_REGISTERS: u8 = 2;

/// Rewrites a program and links its builtins.
pub(super) fn harden(
    program: Program,
    errors: BuiltinErrors,
    data: Option<&serde_json::Value>,
) -> Result<Program, RegoLoadError> {
    let mut pass = Pass::new(program, data.is_none_or(has_short_keys))?;
    pass.rewrite()?;
    pass.trim_registers();
    pass.relocate()?;
    pass.split_rules()?;
    pass.finish(errors)
}

/// The longest key, in bytes, that comparing with is no work worth counting.
const SHORT_KEY: usize = 256;

/// Whether looking for anything in the document, however large, costs about an instruction: keys are
/// texts, and comparing two texts ends with the shorter one, any other pair at once.
fn has_short_keys(data: &serde_json::Value) -> bool {
    let mut pending = vec![data];
    while let Some(value) = pending.pop() {
        match value {
            serde_json::Value::Array(items) => pending.extend(items),
            serde_json::Value::Object(members) => {
                if members.keys().any(|key| key.len() > SHORT_KEY) {
                    return false;
                }
                pending.extend(members.values());
            }
            serde_json::Value::Null
            | serde_json::Value::Bool(_)
            | serde_json::Value::Number(_)
            | serde_json::Value::String(_) => {}
        }
    }
    true
}

fn broken(message: &str) -> RegoLoadError {
    RegoLoadError::Engine { message: format!("unexpected compiled code: {message}") }
}

fn too_large(message: &str) -> RegoLoadError {
    RegoLoadError::ProgramTooLarge { message: message.to_owned() }
}

struct Pass {
    /// The program; its instructions are taken out into `old`.
    program: Program,
    old: Vec<Instruction>,
    new: Vec<Instruction>,
    /// Where the code of each old instruction begins in `new`; one more for the end.
    moved: Vec<usize>,
    /// Which rule an old instruction belongs to.
    rule_of: Vec<Option<usize>>,
    /// Rules whose definitions collect what must agree.
    split: Vec<bool>,
    /// The first scratch register of each rule, and whether its code uses them.
    scratch: Vec<(u8, bool)>,
    /// How many parameters a function has, by where its definitions take them apart.
    parameters: BTreeMap<usize, u8>,
    /// How many loop parameters are the compiler's.
    old_loops: usize,
    /// New instructions whose targets are still old ones.
    to_relocate: Vec<usize>,
    /// Whether the data document has [short keys](has_short_keys) only.
    short_keys: bool,
}

impl Pass {
    fn new(mut program: Program, short_keys: bool) -> Result<Self, RegoLoadError> {
        let old = std::mem::take(&mut program.instructions);
        let rule_of = owners(&program, &old)?;
        let split =
            program.rule_infos.iter().map(|rule| must_agree(rule, &program, &old)).collect();
        let scratch = program.rule_infos.iter().map(|rule| (rule.num_registers, false)).collect();
        for rule in &mut program.rule_infos {
            let registers = rule.num_registers.checked_add(SCRATCH_REGISTERS);
            rule.num_registers = registers.ok_or_else(|| too_large("a rule's registers"))?;
            program.max_rule_window_size = program.max_rule_window_size.max(rule.num_registers);
        }
        let old_loops = program.instruction_data.loop_params.len();
        let parameters = parameters(&program)?;
        Ok(Self {
            parameters,
            program,
            old,
            new: Vec::new(),
            moved: Vec::new(),
            rule_of,
            split,
            scratch,
            old_loops,
            to_relocate: Vec::new(),
            short_keys,
        })
    }

    /// Copies the code, instruction by instruction, with what each needs around it.
    #[expect(clippy::wildcard_enum_match_arm, reason = "all other instructions stay as they are")]
    fn rewrite(&mut self) -> Result<(), RegoLoadError> {
        let mut comprehensions: Vec<Comprehension> = Vec::new();
        let mut opened = false;
        let code = std::mem::take(&mut self.old);
        for (at, instruction) in code.iter().enumerate() {
            let next = at.checked_add(1).and_then(|next| code.get(next));
            self.moved.push(self.new.len());
            self.guard_parameters(at);
            if std::mem::take(&mut opened) {
                let comprehension = comprehensions.last_mut();
                let comprehension = comprehension.ok_or_else(|| broken("a comprehension"))?;
                comprehension.step = Some(self.open_step(at)?);
            }
            self.charge_before(at, *instruction)?;
            match *instruction {
                Instruction::Add { dest, left, right } => {
                    self.call("_add", dest, &[left, right])?;
                }
                Instruction::Sub { dest, left, right } => {
                    self.call("_sub", dest, &[left, right])?;
                }
                Instruction::Mul { dest, left, right } => {
                    self.call("_mul", dest, &[left, right])?;
                }
                Instruction::Div { dest, left, right } => {
                    self.call("_div", dest, &[left, right])?;
                }
                Instruction::Mod { dest, left, right } => {
                    self.call("_mod", dest, &[left, right])?;
                }
                Instruction::HostAwait { dest, arg, id } => self.host_call(at, (dest, arg, id))?,
                Instruction::ComprehensionBegin { params_index } => {
                    let params = &self.program.instruction_data.comprehension_begin_params;
                    let params = params.get(usize::from(params_index));
                    let params = params.ok_or_else(|| broken("a comprehension's parameters"))?;
                    comprehensions.push(Comprehension { result: params.result_reg, step: None });
                    opened = true;
                    self.new.push(*instruction);
                }
                Instruction::ComprehensionYield { value_reg, key_reg } => {
                    let comprehension = comprehensions.last();
                    let result = comprehension.ok_or_else(|| broken("a yield"))?.result;
                    self.guard(value_reg, GuardMode::NotUndefined);
                    if let Some(key) = key_reg {
                        self.unique(at, result, key, value_reg)?;
                    }
                    self.new.push(*instruction);
                }
                Instruction::ComprehensionEnd {} => {
                    let comprehension = comprehensions.pop();
                    let step = comprehension.and_then(|comprehension| comprehension.step);
                    self.close_step(step.ok_or_else(|| broken("a comprehension's end"))?)?;
                    self.new.push(*instruction);
                }
                Instruction::ObjectSet { obj, key, value } => {
                    self.guard(value, GuardMode::NotUndefined);
                    self.unique(at, obj, key, value)?;
                    self.new.push(*instruction);
                }
                Instruction::Move { dest, src } if self.collects(at, dest) => {
                    self.guard(src, GuardMode::NotUndefined);
                    self.new.push(Instruction::SetAdd { set: dest, value: src });
                }
                Instruction::Move { dest, src } => {
                    self.new.push(*instruction);
                    if !self.is_of_a_call(dest, src, next) {
                        self.guard(dest, GuardMode::NotUndefined);
                    }
                }
                // One before a branch belongs to the call of a host function.
                Instruction::Not { operand, .. }
                    if !matches!(next, Some(Instruction::AnyOfNext { .. })) =>
                {
                    self.guard_operands(operand);
                    self.new.push(*instruction);
                }
                // Where a condition is all that it is for, undefined is as good as false.
                Instruction::Contains { dest, collection, value } if !is_asserted(dest, next) => {
                    self.call("_contains", dest, &[collection, value])?;
                }
                Instruction::RuleInit { .. } => {
                    self.new.push(*instruction);
                    self.load_roots(&code, at);
                }
                Instruction::VirtualDataDocumentLookup { params_index } => {
                    self.new.push(*instruction);
                    self.take_out_undefined(params_index)?;
                }
                Instruction::RuleReturn {} => {
                    self.succeed_with_a_value(at)?;
                    self.new.push(*instruction);
                }
                Instruction::LoopNext { .. } | Instruction::AnyOfNext { .. } => {
                    self.to_relocate.push(self.new.len());
                    self.new.push(*instruction);
                }
                other => self.new.push(other),
            }
            self.charge_after(at, *instruction)?;
            self.old.push(*instruction);
        }
        self.moved.push(self.new.len());
        if comprehensions.is_empty() { Ok(()) } else { Err(broken("an open comprehension")) }
    }

    /// The rule that the instruction belongs to.
    fn rule(&self, at: usize) -> Result<usize, RegoLoadError> {
        self.rule_of.get(at).copied().flatten().ok_or_else(|| broken("an instruction of no rule"))
    }

    fn scratch(&mut self, at: usize) -> Result<(u8, u8), RegoLoadError> {
        let rule = self.rule(at)?;
        let pair = self.scratch.get_mut(rule).and_then(|(first, used)| {
            *used = true;
            Some((*first, first.checked_add(1)?))
        });
        pair.ok_or_else(|| broken("a rule without registers"))
    }

    /// Takes the scratch registers from rules that do not use them.
    fn trim_registers(&mut self) {
        for (rule, (first, used)) in self.program.rule_infos.iter_mut().zip(&self.scratch) {
            if !used {
                rule.num_registers = *first;
            }
        }
    }

    /// At the beginning of a function's code: nothing is called with undefined.
    fn guard_parameters(&mut self, at: usize) {
        for register in 1..=self.parameters.get(&at).copied().unwrap_or(0) {
            self.guard(register, GuardMode::NotUndefined);
        }
    }

    /// Loads `input` and `data` where the body begins, into the registers where it will look for them.
    fn load_roots(&mut self, code: &[Instruction], at: usize) {
        let body = block(code, u32::try_from(at).unwrap_or(u32::MAX));
        let loads = code.iter().take(body.end).skip(body.start).filter(|one| {
            matches!(one, Instruction::LoadInput { .. } | Instruction::LoadData { .. })
        });
        self.new.extend(loads);
    }

    /// Behind the lookup of what may be a package.
    fn take_out_undefined(&mut self, params_index: u16) -> Result<(), RegoLoadError> {
        let data = &self.program.instruction_data;
        let params = data.get_virtual_data_document_lookup_params(params_index);
        let dest = params.ok_or_else(|| broken("a lookup's parameters"))?.dest;
        self.call("_defined", dest, &[dest])
    }

    /// Whether a move is part of a call, in which undefined has its place: behind the arguments of a host
    /// function, or taking over how its result compares with what was expected.
    fn is_of_a_call(&self, dest: u8, src: u8, next: Option<&Instruction>) -> bool {
        let of_arguments =
            matches!(next, Some(Instruction::Not { operand, .. }) if *operand == src);
        let of_result = matches!(
            self.old.last(),
            Some(Instruction::Eq { dest: compared, left, .. }) if *compared == src && *left == dest
        );
        of_arguments || of_result
    }

    /// Whether the register is where the instruction's rule collects its values.
    fn collects(&self, at: usize, register: u8) -> bool {
        let rule = self.rule_of.get(at).copied().flatten();
        let rule = rule.filter(|rule| self.split.get(*rule) == Some(&true));
        let info = rule.and_then(|rule| self.program.rule_infos.get(rule));
        info.is_some_and(|info| info.result_reg == register)
    }

    fn guard(&mut self, register: u8, mode: GuardMode) {
        self.new.push(Instruction::Guard { register, mode });
    }

    fn call(&mut self, name: &str, dest: u8, args: &[u8]) -> Result<(), RegoLoadError> {
        let num_args = u8::try_from(args.len()).map_err(|_many| broken("a call's arguments"))?;
        let builtin_index = self.builtin(name, u16::from(num_args))?;
        let mut registers = [0; 8];
        for (register, arg) in registers.iter_mut().zip(args) {
            *register = *arg;
        }
        let params = BuiltinCallParams { dest, builtin_index, num_args, args: registers };
        let params_index = self.program.add_builtin_call_params(params);
        self.new.push(Instruction::BuiltinCall { params_index });
        Ok(())
    }

    fn builtin(&mut self, name: &str, num_args: u16) -> Result<u16, RegoLoadError> {
        let table = &self.program.builtin_info_table;
        let known = table.iter().position(|info| info.name == name);
        let index = known.unwrap_or(table.len());
        if known.is_none() {
            self.program.add_builtin_info(BuiltinInfo { name: name.to_owned(), num_args });
        }
        u16::try_from(index).map_err(|_many| too_large("builtins"))
    }

    /// A host function's name is loaded by the instruction before.
    fn host_call(&mut self, at: usize, call: (u8, u8, u8)) -> Result<(), RegoLoadError> {
        let (dest, arg, id) = call;
        let name = match self.old.last() {
            Some(Instruction::Load { dest, literal_idx }) if *dest == id => {
                self.program.literals.get(usize::from(*literal_idx))
            }
            _ => None,
        };
        let name = name.and_then(|name| name.as_string().ok()).map(ToString::to_string);
        let name = name.ok_or_else(|| broken("a host function without a name"))?;
        match builtins::link(&name) {
            Some(Link::Packed(_)) => self.call(&name, dest, &[arg]),
            Some(Link::PackedWithNow(_)) => {
                let (_, now) = self.scratch(at)?;
                self.new.push(Instruction::LoadContext { dest: now });
                self.call(&name, dest, &[arg, now])
            }
            Some(Link::Context) => {
                let (_, now) = self.scratch(at)?;
                self.new.push(Instruction::LoadContext { dest: now });
                self.call("_now", dest, &[now])
            }
            Some(Link::Native | Link::Operator) | None => Err(broken("a host function")),
        }
    }

    /// Ends evaluation when the object has another value at the key.
    fn unique(&mut self, at: usize, object: u8, key: u8, value: u8) -> Result<(), RegoLoadError> {
        self.guard(key, GuardMode::NotUndefined);
        let (_, unread) = self.scratch(at)?;
        self.call("_unique", unread, &[object, key, value])
    }

    /// Begins the loop of one step that a comprehension's body runs in.
    fn open_step(&mut self, at: usize) -> Result<Step, RegoLoadError> {
        let (step, unread) = self.scratch(at)?;
        let once = self.program.add_literal(Value::from(vec![Value::Null]));
        let literal_idx = u16::try_from(once).map_err(|_many| too_large("literals"))?;
        self.new.push(Instruction::Load { dest: step, literal_idx });
        let params_index = self.program.add_loop_params(LoopStartParams {
            mode: LoopMode::ForEach,
            collection: step,
            key_reg: step,
            value_reg: step,
            result_reg: unread,
            body_start: 0,
            loop_end: 0,
        });
        self.new.push(Instruction::LoopStart { params_index });
        Ok(Step { params_index, body_start: position(&self.new)? })
    }

    fn close_step(&mut self, step: Step) -> Result<(), RegoLoadError> {
        let Step { params_index, body_start } = step;
        let loop_end = position(&self.new)?.checked_add(1).ok_or_else(|| too_large("code"))?;
        self.new.push(Instruction::LoopNext { body_start, loop_end });
        self.program.update_loop_params(params_index, |params| {
            params.body_start = body_start;
            params.loop_end = loop_end;
        });
        Ok(())
    }

    /// A body of a complete rule fails when it gave no value, so that `else` is tried.
    fn succeed_with_a_value(&mut self, at: usize) -> Result<(), RegoLoadError> {
        let rule = self.rule(at)?;
        let info = self.program.rule_infos.get(rule).ok_or_else(|| broken("a rule"))?;
        let (is_complete, result) = (info.rule_type == RuleType::Complete, info.result_reg);
        if self.collects(at, result) {
            let (_, found) = self.scratch(at)?;
            self.call("_not_empty", found, &[result])?;
            self.guard(found, GuardMode::Condition);
        } else if is_complete && !self.is_given(result) {
            self.guard(result, GuardMode::NotUndefined);
        }
        Ok(())
    }

    /// Turns old targets into new ones.
    fn relocate(&mut self) -> Result<(), RegoLoadError> {
        let Self { program, new, moved, to_relocate, old_loops, .. } = self;
        let wide = |old: usize| moved.get(old).copied().ok_or_else(|| broken("a target"));
        let narrow = |old: u16| {
            let target = u16::try_from(wide(usize::from(old))?);
            target.map_err(|_far| too_large("instructions"))
        };
        for at in to_relocate.iter() {
            match new.get_mut(*at) {
                Some(Instruction::LoopNext { body_start, loop_end }) => {
                    *body_start = narrow(*body_start)?;
                    *loop_end = narrow(*loop_end)?;
                }
                Some(Instruction::AnyOfNext { end_pc, .. }) => {
                    // It goes on behind this instruction.
                    let behind = end_pc.checked_add(1).ok_or_else(|| too_large("code"))?;
                    let target = narrow(behind)?.checked_sub(1);
                    *end_pc = target.ok_or_else(|| broken("a branch"))?;
                }
                _ => return Err(broken("a branch")),
            }
        }
        for params in program.instruction_data.loop_params.iter_mut().take(*old_loops) {
            params.body_start = narrow(params.body_start)?;
            params.loop_end = narrow(params.loop_end)?;
        }
        for params in &mut program.instruction_data.comprehension_begin_params {
            params.body_start = narrow(params.body_start)?;
            params.comprehension_end = narrow(params.comprehension_end)?;
        }
        let entry = |old: u32| {
            let old = usize::try_from(old).map_err(|_far| broken("an entry"))?;
            u32::try_from(wide(old)?).map_err(|_far| too_large("instructions"))
        };
        for rule in &mut program.rule_infos {
            let definitions = rule.definitions.iter();
            let definitions =
                definitions.map(|bodies| bodies.iter().map(|at| entry(*at)).collect());
            rule.definitions = std::sync::Arc::new(definitions.collect::<Result<_, _>>()?);
            for block in rule.destructuring_blocks.iter_mut().flatten() {
                *block = entry(*block)?;
            }
        }
        for at in program.entry_points.values_mut() {
            *at = wide(*at)?;
        }
        program.main_entry_point = entry(program.main_entry_point)?;
        Ok(())
    }

    fn finish(self, errors: BuiltinErrors) -> Result<Program, RegoLoadError> {
        let Self { mut program, new, .. } = self;
        program.instruction_spans = vec![None; new.len()];
        program.instructions = new;
        program.recompute_host_await_presence();
        let functions = program.builtin_info_table.iter().map(|info| {
            let function = builtins::function(&info.name, errors);
            function.ok_or_else(|| broken("a builtin that is not offered"))
        });
        program.resolved_builtins = functions.collect::<Result<_, _>>()?;
        program.rule_infos.iter_mut().for_each(lighten);
        program.validate_limits().map_err(|message| RegoLoadError::ProgramTooLarge { message })?;
        Ok(program)
    }
}

/// Takes out what the virtual machine does not read, or reads as it would read nothing: it copies
/// all of this at each call of the rule, its result at hand or not.
fn lighten(rule: &mut RuleInfo) {
    rule.name = String::new();
    if let Some(function) = &mut rule.function_info {
        function.param_names = Vec::new();
    }
    if rule.destructuring_blocks.iter().all(Option::is_none) {
        rule.destructuring_blocks = Vec::new();
    }
    if !rule.else_bodies.iter().flatten().any(|is_else| *is_else) {
        rule.else_bodies = Vec::new();
    }
}

/// Whether the next instruction demands that the register holds true.
fn is_asserted(register: u8, next: Option<&Instruction>) -> bool {
    let condition = GuardMode::Condition;
    matches!(next, Some(Instruction::Guard { register: guarded, mode })
        if *guarded == register && *mode == condition)
}

/// How many parameters functions have, by the beginnings of the code that takes them apart.
fn parameters(program: &Program) -> Result<BTreeMap<usize, u8>, RegoLoadError> {
    let mut parameters = BTreeMap::new();
    for rule in &program.rule_infos {
        let Some(function) = &rule.function_info else { continue };
        let count = u8::try_from(function.num_params).map_err(|_many| too_large("parameters"))?;
        for entry in rule.destructuring_blocks.iter().flatten() {
            let entry = usize::try_from(*entry).map_err(|_far| broken("an entry"))?;
            parameters.insert(entry, count);
        }
    }
    Ok(parameters)
}

/// A comprehension that is open.
struct Comprehension {
    result: u8,
    step: Option<Step>,
}

/// The loop of one step around a comprehension's body.
#[derive(Clone, Copy)]
struct Step {
    params_index: u16,
    body_start: u16,
}

fn position(code: &[Instruction]) -> Result<u16, RegoLoadError> {
    u16::try_from(code.len()).map_err(|_far| too_large("instructions"))
}

fn narrow_rule(index: usize) -> Result<u16, RegoLoadError> {
    u16::try_from(index).map_err(|_many| too_large("rules"))
}

/// The rule of each instruction: bodies up to their return, parameters up to their success.
fn owners(program: &Program, code: &[Instruction]) -> Result<Vec<Option<usize>>, RegoLoadError> {
    let mut owners = vec![None; code.len()];
    for (index, rule) in program.rule_infos.iter().enumerate() {
        let blocks = rule.destructuring_blocks.iter().flatten();
        for entry in rule.definitions.iter().flatten().chain(blocks) {
            for at in block(code, *entry) {
                *owners.get_mut(at).ok_or_else(|| broken("an entry"))? = Some(index);
            }
        }
    }
    Ok(owners)
}

/// The instructions from an entry to the end of its block.
fn block(code: &[Instruction], entry: u32) -> std::ops::Range<usize> {
    let entry = usize::try_from(entry).unwrap_or(usize::MAX);
    let length = code.iter().skip(entry).position(|instruction| {
        matches!(instruction, Instruction::RuleReturn {} | Instruction::DestructuringSuccess {})
    });
    match length.and_then(|length| entry.checked_add(length)?.checked_add(1)) {
        Some(end) => entry..end,
        None => entry..code.len(),
    }
}
