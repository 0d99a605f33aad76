//! What must be defined for a negation to hold.
//!
//! OPA evaluates the operands of calls before the negation of the call: `not f(input.x)` and
//! `not input.x in data.blocked` are undefined where `input.x` is, and only the call's own answer is
//! negated. `not input.x`, and `not input.x == 1`, hold then. Compiled code has all of it under the
//! negation, so guards before it say what OPA finds first.

use regorus::rvm::Instruction;
use regorus::rvm::instructions::GuardMode;

use super::Pass;
use super::registers::registers;

impl Pass {
    /// Before a negation.
    pub(super) fn guard_operands(&mut self, operand: u8) {
        for register in self.evaluated_before_not(operand) {
            self.guard(register, GuardMode::NotUndefined);
        }
    }

    /// The registers that must be defined for the negation of this one to say anything.
    fn evaluated_before_not(&self, operand: u8) -> Vec<u8> {
        match self.maker(operand) {
            Some(Instruction::Eq { left, right, .. }) => {
                [left, right].into_iter().flat_map(|side| self.evaluated_before(side)).collect()
            }
            Some(maker) if is_reference(maker) => self.evaluated_before(operand),
            Some(maker) => self.operands(maker),
            None => Vec::new(),
        }
    }

    /// The same for a side of an equation, which may be undefined itself when it is a reference.
    fn evaluated_before(&self, register: u8) -> Vec<u8> {
        let mut found = Vec::new();
        let mut pending = vec![register];
        while let Some(register) = pending.pop() {
            let Some(maker) = self.maker(register) else { continue };
            if !is_reference(maker) {
                found.push(register);
                continue;
            }
            let (root, keys) = self.path(maker);
            pending.extend(root);
            found.extend(keys);
        }
        found
    }

    /// What a lookup begins with, and the registers that it looks up.
    #[expect(clippy::wildcard_enum_match_arm, reason = "others look nothing up")]
    fn path(&self, lookup: Instruction) -> (Option<u8>, Vec<u8>) {
        let data = &self.program.instruction_data;
        match lookup {
            Instruction::Index { container, key, .. } => (Some(container), vec![key]),
            Instruction::IndexLiteral { container, .. } => (Some(container), Vec::new()),
            Instruction::ChainedIndex { params_index } => {
                let params = data.chained_index_params.get(usize::from(params_index));
                params.map_or((None, Vec::new()), |params| {
                    (Some(params.root), registers(&params.path_components))
                })
            }
            Instruction::VirtualDataDocumentLookup { params_index } => {
                let params = data.get_virtual_data_document_lookup_params(params_index);
                (None, params.map_or_else(Vec::new, |params| registers(&params.path_components)))
            }
            _ => (None, Vec::new()),
        }
    }

    /// The operands of a call, an operator, or a literal with parts.
    #[expect(clippy::wildcard_enum_match_arm, reason = "others have none, or their own queries")]
    fn operands(&self, call: Instruction) -> Vec<u8> {
        let data = &self.program.instruction_data;
        match call {
            Instruction::Add { left, right, .. }
            | Instruction::Sub { left, right, .. }
            | Instruction::Mul { left, right, .. }
            | Instruction::Div { left, right, .. }
            | Instruction::Mod { left, right, .. }
            | Instruction::Ne { left, right, .. }
            | Instruction::Lt { left, right, .. }
            | Instruction::Le { left, right, .. }
            | Instruction::Gt { left, right, .. }
            | Instruction::Ge { left, right, .. }
            | Instruction::And { left, right, .. }
            | Instruction::Or { left, right, .. } => vec![left, right],
            Instruction::Contains { collection, value, .. } => vec![collection, value],
            Instruction::Count { collection, .. } => vec![collection],
            Instruction::HostAwait { arg, .. } => vec![arg],
            Instruction::BuiltinCall { params_index } => data
                .builtin_call_params
                .get(usize::from(params_index))
                .map_or_else(Vec::new, |params| params.arg_registers().to_vec()),
            Instruction::FunctionCall { params_index } => data
                .function_call_params
                .get(usize::from(params_index))
                .map_or_else(Vec::new, |params| params.arg_registers().to_vec()),
            Instruction::ArrayCreate { params_index } => data
                .get_array_create_params(params_index)
                .map_or_else(Vec::new, |params| params.elements.clone()),
            Instruction::SetCreate { params_index } => data
                .get_set_create_params(params_index)
                .map_or_else(Vec::new, |params| params.elements.clone()),
            Instruction::ObjectCreate { params_index } => {
                data.get_object_create_params(params_index).map_or_else(Vec::new, |params| {
                    let literal = params.literal_key_fields.iter().map(|(_, value)| *value);
                    let fields = params.fields.iter().flat_map(|(key, value)| [*key, *value]);
                    literal.chain(fields).collect()
                })
            }
            _ => Vec::new(),
        }
    }

    /// The instruction that gave a register its value: each is written in one place.
    fn maker(&self, register: u8) -> Option<Instruction> {
        let own = self.old.iter().rev();
        let own = own.take_while(|one| !matches!(one, Instruction::RuleInit { .. }));
        own.copied().find(|one| self.dest(*one) == Some(register))
    }
}

/// Whether an instruction looks something up, or has it at hand.
fn is_reference(instruction: Instruction) -> bool {
    matches!(
        instruction,
        Instruction::Load { .. }
            | Instruction::LoadTrue { .. }
            | Instruction::LoadFalse { .. }
            | Instruction::LoadNull { .. }
            | Instruction::LoadBool { .. }
            | Instruction::LoadData { .. }
            | Instruction::LoadInput { .. }
            | Instruction::Move { .. }
            | Instruction::CallRule { .. }
            | Instruction::Index { .. }
            | Instruction::IndexLiteral { .. }
            | Instruction::ChainedIndex { .. }
            | Instruction::VirtualDataDocumentLookup { .. }
    )
}
