//! Calls beside the instructions whose cost depends on their values ([SEC-REGO-4]).
//!
//! A value may look far larger than it is: `x1 := [x0, x0]`, `x2 := [x1, x1]` and so on share
//! their parts, but are compared and printed part by part.

use regorus::Value;
use regorus::rvm::Instruction;

use super::registers::registers;
use super::{Pass, broken};
use crate::rego::error::RegoLoadError;

/// How far back in straight code the origin of a register is looked for.
const LOOK_BACK: usize = 16;

/// How many values are few.
const FEW: usize = 64;

impl Pass {
    /// Charges for comparing values, and for making them keys or parts of others.
    #[expect(clippy::wildcard_enum_match_arm, reason = "all other instructions cost the same")]
    pub(super) fn charge_before(
        &mut self,
        at: usize,
        instruction: Instruction,
    ) -> Result<(), RegoLoadError> {
        let data = &self.program.instruction_data;
        let missing = || broken("an instruction's parameters");
        match instruction {
            Instruction::Eq { left, right, .. }
            | Instruction::Ne { left, right, .. }
            | Instruction::Lt { left, right, .. }
            | Instruction::Le { left, right, .. }
            | Instruction::Gt { left, right, .. }
            | Instruction::Ge { left, right, .. }
            | Instruction::AssertEq { left, right } => {
                if self.is_plain(left) || self.is_plain(right) {
                    return Ok(());
                }
                self.weigh(at, "_weigh_pair", &[left, right])
            }
            Instruction::Contains { collection, .. } if self.is_flat(collection) => Ok(()),
            Instruction::Contains { collection, value, .. } => {
                self.weigh(at, "_weigh_in", &[collection, value])
            }
            Instruction::Index { container, .. } if self.is_data(container) => Ok(()),
            Instruction::Index { key, .. } => self.weigh_each(at, &[key]),
            Instruction::ChainedIndex { params_index } => {
                let params = data.chained_index_params.get(usize::from(params_index));
                let params = params.ok_or_else(missing)?;
                if self.is_data(params.root) {
                    return Ok(());
                }
                let keys = registers(&params.path_components);
                self.weigh_each(at, &keys)
            }
            Instruction::VirtualDataDocumentLookup { params_index } => {
                let params =
                    data.virtual_data_document_lookup_params.get(usize::from(params_index));
                let keys = registers(&params.ok_or_else(missing)?.path_components);
                self.weigh_each(at, &keys)
            }
            Instruction::ArrayPush { value, .. }
            | Instruction::SetAdd { value, .. }
            | Instruction::ObjectSet { value, .. }
            | Instruction::ComprehensionYield { value_reg: value, .. } => {
                self.weigh_each(at, &[value])
            }
            Instruction::Move { dest, src } if self.collects(at, dest) => {
                self.weigh_each(at, &[src])
            }
            Instruction::SetCreate { params_index } => {
                let params = data.get_set_create_params(params_index).ok_or_else(missing)?;
                let elements = params.elements.clone();
                self.weigh_each(at, &elements)
            }
            Instruction::ObjectCreate { params_index } => {
                let params = data.get_object_create_params(params_index).ok_or_else(missing)?;
                let keys: Vec<u8> = params.fields.iter().map(|(key, _)| *key).collect();
                self.weigh_each(at, &keys)
            }
            _ => Ok(()),
        }
    }

    /// Charges for what a literal has become.
    #[expect(clippy::wildcard_enum_match_arm, reason = "all others are charged before")]
    pub(super) fn charge_after(
        &mut self,
        at: usize,
        instruction: Instruction,
    ) -> Result<(), RegoLoadError> {
        let data = &self.program.instruction_data;
        let made = match instruction {
            Instruction::ArrayCreate { params_index } => data
                .get_array_create_params(params_index)
                .map(|params| (params.dest, params.elements.clone())),
            Instruction::ObjectCreate { params_index } => {
                data.get_object_create_params(params_index).map(|params| {
                    let literal = params.literal_key_fields.iter().map(|(_, value)| *value);
                    let values = literal.chain(params.fields.iter().map(|(_, value)| *value));
                    (params.dest, values.collect())
                })
            }
            _ => return Ok(()),
        };
        let (made, values) = made.ok_or_else(|| broken("an instruction's parameters"))?;
        // Around one value with parts, the new one is hardly larger; with two, values can double.
        if values.iter().filter(|value| !self.is_plain(**value)).count() > 1 {
            self.weigh(at, "_weigh1", &[made])?;
        }
        Ok(())
    }

    fn weigh(&mut self, at: usize, how: &str, registers: &[u8]) -> Result<(), RegoLoadError> {
        let (_, unread) = self.scratch(at)?;
        self.call(how, unread, registers)
    }

    fn weigh_each(&mut self, at: usize, registers: &[u8]) -> Result<(), RegoLoadError> {
        let heavy: Vec<u8> = registers.iter().copied().filter(|one| !self.is_plain(*one)).collect();
        for pair in heavy.chunks(2) {
            let how = if pair.len() == 1 { "_weigh1" } else { "_weigh2" };
            self.weigh(at, how, pair)?;
        }
        Ok(())
    }

    /// Whether the register was just loaded with something that has no parts.
    fn is_plain(&self, register: u8) -> bool {
        match self.origin(register) {
            Some(Instruction::Load { literal_idx, .. }) => {
                self.literal(literal_idx).is_some_and(is_plain)
            }
            Some(
                Instruction::LoadTrue { .. }
                | Instruction::LoadFalse { .. }
                | Instruction::LoadNull { .. }
                | Instruction::LoadBool { .. },
            ) => true,
            _ => false,
        }
    }

    /// Whether the register was just loaded with the data document, in which nothing is dear to find.
    fn is_data(&self, register: u8) -> bool {
        self.short_keys && matches!(self.origin(register), Some(Instruction::LoadData { .. }))
    }

    /// Whether the register was just loaded with a few values without parts: comparing with them
    /// costs next to nothing, whatever is compared.
    fn is_flat(&self, register: u8) -> bool {
        let Some(Instruction::Load { literal_idx, .. }) = self.origin(register) else {
            return false;
        };
        match self.literal(literal_idx) {
            Some(Value::Set(set)) => set.len() <= FEW && set.iter().all(is_plain),
            Some(Value::Array(array)) => array.len() <= FEW && array.iter().all(is_plain),
            _ => false,
        }
    }

    /// Whether the register was just given a literal, so that it is not undefined.
    pub(super) fn is_given(&self, register: u8) -> bool {
        let value = self.origin_before(self.old.len(), register);
        let value = match value {
            Some((at, Instruction::Move { src, .. })) => self.origin_before(at, src),
            other => other,
        };
        match value.map(|(_, instruction)| instruction) {
            Some(Instruction::Load { literal_idx, .. }) => {
                self.literal(literal_idx).is_some_and(|literal| *literal != Value::Undefined)
            }
            Some(
                Instruction::LoadTrue { .. }
                | Instruction::LoadFalse { .. }
                | Instruction::LoadNull { .. }
                | Instruction::LoadBool { .. },
            ) => true,
            _ => false,
        }
    }

    fn literal(&self, at: u16) -> Option<&Value> {
        self.program.literals.get(usize::from(at))
    }

    /// The instruction that gave a register its value, as far as straight code tells.
    fn origin(&self, register: u8) -> Option<Instruction> {
        self.origin_before(self.old.len(), register).map(|(_, instruction)| instruction)
    }

    /// The same for the value that it has before an instruction, with its place.
    fn origin_before(&self, end: usize, register: u8) -> Option<(usize, Instruction)> {
        let before = self.old.get(..end)?;
        for (at, instruction) in before.iter().enumerate().rev().take(LOOK_BACK) {
            // Behind what is none, nothing is known.
            if self.dest(*instruction)? == register {
                return Some((at, *instruction));
            }
        }
        None
    }
}

fn is_plain(value: &Value) -> bool {
    !matches!(value, Value::Array(_) | Value::Set(_) | Value::Object(_))
}
