//! Which instruction gives which register its value.

use regorus::rvm::Instruction;
use regorus::rvm::instructions::LiteralOrRegister;

use super::Pass;

impl Pass {
    /// The register that an instruction of straight code gives a value.
    #[expect(clippy::wildcard_enum_match_arm, reason = "others give none, or move on elsewhere")]
    pub(super) fn dest(&self, instruction: Instruction) -> Option<u8> {
        let data = &self.program.instruction_data;
        Some(match instruction {
            Instruction::Load { dest, .. }
            | Instruction::LoadTrue { dest }
            | Instruction::LoadFalse { dest }
            | Instruction::LoadNull { dest }
            | Instruction::LoadBool { dest, .. }
            | Instruction::LoadData { dest }
            | Instruction::LoadInput { dest }
            | Instruction::Move { dest, .. }
            | Instruction::CallRule { dest, .. }
            | Instruction::Index { dest, .. }
            | Instruction::IndexLiteral { dest, .. }
            | Instruction::Add { dest, .. }
            | Instruction::Sub { dest, .. }
            | Instruction::Mul { dest, .. }
            | Instruction::Div { dest, .. }
            | Instruction::Mod { dest, .. }
            | Instruction::Eq { dest, .. }
            | Instruction::Ne { dest, .. }
            | Instruction::Lt { dest, .. }
            | Instruction::Le { dest, .. }
            | Instruction::Gt { dest, .. }
            | Instruction::Ge { dest, .. }
            | Instruction::And { dest, .. }
            | Instruction::Or { dest, .. }
            | Instruction::Not { dest, .. }
            | Instruction::Contains { dest, .. }
            | Instruction::Count { dest, .. }
            | Instruction::HostAwait { dest, .. } => dest,
            Instruction::ChainedIndex { params_index } => {
                data.chained_index_params.get(usize::from(params_index))?.dest
            }
            Instruction::VirtualDataDocumentLookup { params_index } => {
                data.get_virtual_data_document_lookup_params(params_index)?.dest
            }
            Instruction::BuiltinCall { params_index } => {
                data.builtin_call_params.get(usize::from(params_index))?.dest
            }
            Instruction::FunctionCall { params_index } => {
                data.function_call_params.get(usize::from(params_index))?.dest
            }
            Instruction::ArrayCreate { params_index } => {
                data.get_array_create_params(params_index)?.dest
            }
            Instruction::SetCreate { params_index } => {
                data.get_set_create_params(params_index)?.dest
            }
            Instruction::ObjectCreate { params_index } => {
                data.get_object_create_params(params_index)?.dest
            }
            Instruction::ComprehensionBegin { params_index } => {
                let params = data.comprehension_begin_params.get(usize::from(params_index));
                params?.result_reg
            }
            _ => return None,
        })
    }
}

/// The registers among the parts of a path.
pub(super) fn registers(path: &[LiteralOrRegister]) -> Vec<u8> {
    let register = |part: &LiteralOrRegister| match part {
        LiteralOrRegister::Register(register) => Some(*register),
        LiteralOrRegister::Literal(_) => None,
    };
    path.iter().filter_map(register).collect()
}
