//! Which instruction accessed memory that is a device's, or a port by ins or outs.

use crate::decode::{Mode, parse};
use crate::operand::Place;
use crate::store::{Operation, Size, Store};

/// What is done with the operation of [`Instruction::store`]. It takes two operands, of which it may
/// change the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Memory is overwritten: mov, movnti, stos.
    Store,
    /// Memory is the first operand.
    Change,
    /// Memory is the first operand, and only flags change: cmp, test, bt.
    Test,
    /// A register is the first operand, memory the second: mov, movzx, movsx, lods, add and others.
    Load,
    /// So it is, and only flags change: cmp.
    Compare,
    /// Memory is overwritten by memory: movs.
    Move,
    /// Memory is overwritten by what a port has: ins.
    In,
    /// A port gets what memory has: outs.
    Out,
}

/// An instruction that accesses memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// What is done.
    pub action: Action,
    /// The operation, its size in memory, and the length.
    pub store: Store,
    /// For loads: the register's size, and whether it is filled with the sign.
    pub(crate) extend: (Size, bool),
    /// The memory that is read.
    pub(crate) source: Option<Place>,
    /// The memory that is written; where both are, it is the same but for movs.
    pub(crate) target: Option<Place>,
}

/// The instruction at the start of `bytes`, which lies at `rip`. `None` if it is not known, or not
/// supported: among them are those that select a bit of a string by a register.
#[must_use]
pub fn instruction(bytes: &[u8], mode: Mode, rip: u64) -> Option<Instruction> {
    let bits = [Operation::SetBit, Operation::ResetBit, Operation::ComplementBit];
    let known = |store: &Store| store.immediate.is_some() || !bits.contains(&store.operation);
    parse(bytes, mode, rip).filter(|found| known(&found.store))
}
