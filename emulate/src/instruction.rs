//! Which instruction accessed memory that is a device's, or a port by ins or outs.

use crate::decode::{Decoder, Mode};
use crate::operand::{Base, DI, Place};
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

impl Action {
    pub(crate) const fn reads(self) -> bool {
        !matches!(self, Self::Store | Self::In)
    }

    pub(crate) const fn writes(self) -> bool {
        matches!(self, Self::Store | Self::Change | Self::Move | Self::In)
    }
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
    let mut decoder = Decoder::new(bytes, mode);
    let (store, action) = (decoder.parse()?, decoder.action?);
    let bits = [Operation::SetBit, Operation::ResetBit, Operation::ComplementBit];
    if bits.contains(&store.operation) && store.immediate.is_none() {
        return None;
    }
    let place = Place::of(&decoder, rip.wrapping_add(store.length));
    let string = Place { base: Some(DI), segment: Base::Es, ..place };
    let written = if decoder.is_string() { string } else { place };
    let (source, target) = (action.reads().then_some(place), action.writes().then_some(written));
    let signed = matches!(decoder.opcode, 0x63 | 0x0fbe | 0x0fbf);
    Some(Instruction { action, store, extend: (decoder.sizes().1, signed), source, target })
}
