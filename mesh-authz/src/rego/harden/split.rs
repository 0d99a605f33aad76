//! Rules whose definitions must agree: each definition becomes a rule that collects its values.

use regorus::Value;
use regorus::rvm::Instruction;
use regorus::rvm::instructions::{FunctionCallParams, GuardMode};
use regorus::rvm::program::{Program, RuleInfo, RuleType};

use super::super::error::RegoLoadError;
use super::{Pass, block, broken, narrow_rule, too_large};

impl Pass {
    /// Gives each definition of a rule whose values must agree a rule of its own, which collects
    /// them, and the rule itself code that compares what they collected.
    pub(super) fn split_rules(&mut self) -> Result<(), RegoLoadError> {
        let split = std::mem::take(&mut self.split);
        for (index, _) in split.into_iter().enumerate().filter(|(_, split)| *split) {
            let info = self.program.rule_infos.get(index).ok_or_else(|| broken("a rule"))?.clone();
            let first = self.program.rule_infos.len();
            self.program.rule_infos.extend(collectors(&info));
            let collectors = first..self.program.rule_infos.len();
            let entry = u32::try_from(self.new.len()).map_err(|_far| too_large("instructions"))?;
            let rule_index = narrow_rule(index)?;
            self.new.push(Instruction::RuleInit { result_reg: 0, rule_index });
            let parameters = info.function_info.as_ref().map(|function| function.num_params);
            let parameters = u8::try_from(parameters.unwrap_or(0));
            let parameters = parameters.ok().filter(|parameters| *parameters <= 8);
            let parameters = parameters.ok_or_else(|| broken("a function's parameters"))?;
            let (sets, set) = (parameters.saturating_add(1), parameters.saturating_add(2));
            self.new.push(Instruction::ArrayNew { dest: sets });
            for collector in collectors {
                let rule_index = narrow_rule(collector)?;
                if info.function_info.is_some() {
                    let mut args = [0; 8];
                    args.iter_mut().zip(1..=parameters).for_each(|(arg, register)| *arg = register);
                    let params = FunctionCallParams {
                        dest: set,
                        func_rule_index: rule_index,
                        num_args: parameters,
                        args,
                    };
                    let params_index = self.program.add_function_call_params(params);
                    self.new.push(Instruction::FunctionCall { params_index });
                } else {
                    self.new.push(Instruction::CallRule { dest: set, rule_index });
                }
                self.new.push(Instruction::ArrayPush { arr: sets, value: set });
            }
            self.call("_agree", 0, &[sets])?;
            self.guard(0, GuardMode::NotUndefined);
            self.new.push(Instruction::RuleReturn {});
            let info = self.program.rule_infos.get_mut(index).ok_or_else(|| broken("a rule"))?;
            info.definitions = std::sync::Arc::new(vec![vec![entry]]);
            info.destructuring_blocks = vec![None];
            info.else_bodies = vec![vec![false]];
            info.early_exit_on_first_success = false;
            info.result_reg = 0;
            info.num_registers = set.saturating_add(1);
        }
        Ok(())
    }
}

/// Whether a complete rule or function could have several values at once.
pub(super) fn must_agree(rule: &RuleInfo, program: &Program, code: &[Instruction]) -> bool {
    let bodies: Vec<_> = rule.definitions.iter().flatten().map(|at| block(code, *at)).collect();
    let has_loop = bodies.iter().any(|body| {
        let mut body = code.iter().take(body.end).skip(body.start);
        body.any(|instruction| matches!(instruction, Instruction::LoopStart { .. }))
    });
    rule.rule_type == RuleType::Complete
        && (has_loop || chains(rule).nth(1).is_some())
        && !is_constant(rule, &bodies, program, code)
}

/// Whether all bodies give the same literal.
fn is_constant(
    rule: &RuleInfo,
    bodies: &[std::ops::Range<usize>],
    program: &Program,
    code: &[Instruction],
) -> bool {
    let mut constant = None;
    bodies.iter().flat_map(Clone::clone).all(|at| {
        let Some(Instruction::Move { dest, src }) = code.get(at) else { return true };
        if *dest != rule.result_reg {
            return true;
        }
        let loaded = at.checked_sub(1).and_then(|before| code.get(before));
        let value = match loaded {
            Some(Instruction::LoadTrue { dest }) if dest == src => Value::Bool(true),
            Some(Instruction::LoadFalse { dest }) if dest == src => Value::Bool(false),
            Some(Instruction::LoadBool { dest, value }) if dest == src => Value::Bool(*value),
            Some(Instruction::Load { dest, literal_idx }) if dest == src => {
                match program.literals.get(usize::from(*literal_idx)) {
                    Some(value) => value.clone(),
                    None => return false,
                }
            }
            _ => return false,
        };
        *constant.get_or_insert_with(|| value.clone()) == value
    })
}

/// The chains of a rule: a definition's body with its `else` bodies.
fn chains(rule: &RuleInfo) -> impl Iterator<Item = (usize, Vec<u32>)> + '_ {
    rule.definitions.iter().enumerate().flat_map(|(definition, bodies)| {
        let flags = rule.else_bodies.get(definition);
        let mut chains: Vec<(usize, Vec<u32>)> = Vec::new();
        for (at, body) in bodies.iter().enumerate() {
            let is_else = flags.and_then(|flags| flags.get(at)).copied().unwrap_or(false);
            match chains.last_mut() {
                Some((_, chain)) if is_else => chain.push(*body),
                _ => chains.push((definition, vec![*body])),
            }
        }
        chains
    })
}

/// A rule for each chain, which collects the chain's values in a set.
fn collectors(rule: &RuleInfo) -> Vec<RuleInfo> {
    let collector = |(at, (definition, chain)): (usize, (usize, Vec<u32>))| {
        let mut collector = rule.clone();
        collector.name = format!("{}#{at}", rule.name);
        collector.rule_type = RuleType::PartialSet;
        collector.default_literal_index = None;
        collector.early_exit_on_first_success = false;
        collector.destructuring_blocks =
            vec![rule.destructuring_blocks.get(definition).copied().flatten()];
        collector.else_bodies = vec![(0..chain.len()).map(|at| at > 0).collect()];
        collector.definitions = std::sync::Arc::new(vec![chain]);
        collector
    };
    chains(rule).enumerate().map(collector).collect()
}
