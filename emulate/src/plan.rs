//! What an instruction does with devices, piece by piece, and with everything else.
//!
//! All operands are translated, and memory is read, before the first piece: from then on nothing can
//! fault. What the instruction changes besides devices is changed at the end.

use core::fmt;

use crate::access::{ask, load, store};
use crate::context::Access;
use crate::instruction::{Action, Instruction};
use crate::operand::{Base, Place, Segments};
use crate::store::{Outcome, Registers, Size, Store};
use crate::walk::{AddressSpace, Error, Memory};

const PAGE: u64 = 4096;

/// A part of an operand that a device has: 1, 2, 4 or 8 bytes in one page, aligned or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Guest-physical address.
    pub physical: u64,
    /// Number of bytes.
    pub bytes: u8,
}

/// What is to be done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Load this from a device.
    Load(Piece),
    /// Store this value to a device.
    Store(Piece, u64),
    /// Read so many bytes from the port of ins.
    In(u8),
    /// Write so many bytes, this value, to the port of outs.
    Out(u8, u64),
    /// [`Plan::finish`].
    Finish,
}

/// Why there is no plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// Memory was not reached.
    Memory(Error),
    /// The segment does not permit the access, or the address is not canonical: the guest gets
    /// #SS(0) for SS, #GP(0) for others.
    Segment(Base),
    /// No operand is a device's or a port: the guest can execute the instruction by itself.
    Ordinary,
    /// The memory of ins or outs is a device's.
    Unsupported,
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory(error) => error.fmt(f),
            Self::Segment(base) => write!(f, "{base:?} does not permit the access"),
            Self::Ordinary => f.write_str("no operand is a device's"),
            Self::Unsupported => f.write_str("ins or outs with a device's memory"),
        }
    }
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Self::Memory(error)
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Kind {
    #[default]
    Memory,
    Device,
    Port,
}

/// What of an operand lies in one page; nothing if it has no bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Part {
    physical: u64,
    bytes: u8,
    kind: Kind,
}

/// An operand, in one page or in two.
type Operand = [Part; 2];

/// The piece of `operand` from byte `at` on; `None` behind its end.
fn piece(operand: Operand, at: u8) -> Option<(Kind, Piece)> {
    let [first, second] = operand;
    let (part, at) = match at.checked_sub(first.bytes) {
        Some(at) => (second, at),
        None => (first, at),
    };
    let bytes = 1 << part.bytes.checked_sub(at)?.checked_ilog2()?;
    Some((part.kind, Piece { physical: part.physical + u64::from(at), bytes }))
}

/// The parts of `operand` that are memory, each with its first byte in the operand.
fn memory(operand: Operand) -> impl Iterator<Item = (u8, Part)> {
    let [first, second] = operand;
    [(0, first), (first.bytes, second)].into_iter().filter(|(_, part)| part.kind == Kind::Memory)
}

/// An instruction on its way: one round of it, if it is repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    action: Action,
    store: Store,
    extend: (Size, bool),
    read: Operand,
    written: Operand,
    /// What was read so far.
    loaded: u64,
    /// How many bytes of both operands are done.
    done: u8,
    begun: bool,
}

impl Plan {
    /// Translates the operands and reads memory. `is_device` tells whether a guest-physical address
    /// is a device's.
    ///
    /// # Errors
    /// All of [`Trouble`]; nothing has happened then.
    pub fn new<M: Memory>(
        instruction: &Instruction,
        space: &AddressSpace<'_, M>,
        registers: &impl Registers,
        segments: &impl Segments,
        is_device: impl Fn(u64) -> bool,
    ) -> Result<Self, Trouble> {
        let Instruction { action, store, extend, source, target } = *instruction;
        if store.series.is_some_and(|series| series.left(registers) == 0) {
            return Err(Trouble::Ordinary);
        }
        let bytes = store.size.bytes();
        let locate = |place: &Place, access| {
            let denied = Trouble::Segment(place.segment);
            let linear = place.linear((bytes, access), registers, segments).ok_or(denied)?;
            let last = linear.wrapping_add(bytes - 1);
            if !space.context.is_canonical(linear) || !space.context.is_canonical(last) {
                return Err(denied);
            }
            locate(space, linear, bytes, access, &is_device)
        };
        let count = u8::try_from(bytes).unwrap_or_default();
        let port = [Part { bytes: count, kind: Kind::Port, physical: 0 }, Part::default()];
        let none = Operand::default();
        let (read, written) = match action {
            Action::Store => (none, locate(&target, Access::Write)?),
            Action::Change => {
                let operand = locate(&target, Access::Write)?;
                (operand, operand)
            }
            Action::Test | Action::Load | Action::Compare => (locate(&source, Access::Read)?, none),
            Action::Move => (locate(&source, Access::Read)?, locate(&target, Access::Write)?),
            Action::In => (port, locate(&target, Access::Write)?),
            Action::Out => (locate(&source, Access::Read)?, port),
        };
        let has = |kind| read.iter().chain(&written).any(|part| part.kind == kind);
        match (has(Kind::Port), has(Kind::Device)) {
            (true, true) => return Err(Trouble::Unsupported),
            (false, false) => return Err(Trouble::Ordinary),
            _ => {}
        }
        let mut loaded = 0;
        for (at, part) in memory(read) {
            let mut bytes = [0; 8];
            let end = usize::from(part.bytes);
            load(space.memory, part.physical, bytes.get_mut(..end).unwrap_or_default())?;
            loaded |= u64::from_le_bytes(bytes) << (8 * at);
        }
        Ok(Self { action, store, extend, read, written, loaded, done: 0, begun: false })
    }

    /// Takes the `answer` to what was the next step before: what was loaded, of which no more counts
    /// than was asked for, or anything for a store. Without one, that step is the next again.
    pub fn next(&mut self, mut answer: Option<u64>, registers: &impl Registers) -> Step {
        let [first, second] = self.read;
        let end = first.bytes + second.bytes;
        loop {
            let (loads, at) = match self.done.checked_sub(end) {
                Some(at) => (false, at),
                None => (true, self.done),
            };
            let operand = if loads { self.read } else { self.written };
            let Some((kind, piece)) = piece(operand, at) else {
                return Step::Finish;
            };
            let mask = u64::MAX >> (64 - 8 * piece.bytes);
            if kind != Kind::Memory {
                let Some(value) = answer.take() else {
                    let value = || self.outcome(registers).new >> (8 * at) & mask;
                    return match (kind == Kind::Port, loads) {
                        (false, true) => Step::Load(piece),
                        (false, false) => Step::Store(piece, value()),
                        (true, true) => Step::In(piece.bytes),
                        (true, false) => Step::Out(piece.bytes, value()),
                    };
                };
                self.begun = true;
                if loads {
                    self.loaded |= (value & mask) << (8 * at);
                }
            }
            self.done += piece.bytes;
        }
    }

    /// Whether a step was answered: then the instruction must not be begun anew.
    #[must_use]
    pub const fn is_begun(&self) -> bool {
        self.begun
    }

    /// Whether there is one step only, but for the last.
    #[must_use]
    pub fn is_single(&self) -> bool {
        let parts = self.read.iter().chain(&self.written);
        // As many pieces as powers of two.
        let pieces =
            parts.filter(|part| part.kind != Kind::Memory).map(|part| part.bytes.count_ones());
        pieces.sum::<u32>() == 1
    }

    /// What the operation gives with what was loaded.
    fn outcome(&self, registers: &impl Registers) -> Outcome {
        let (store, (size, signed)) = (&self.store, self.extend);
        match self.action {
            Action::Store | Action::Change | Action::Test => store.apply(self.loaded, registers),
            Action::Load | Action::Compare | Action::Move | Action::In | Action::Out => {
                let mask = store.size.mask();
                let negative = signed && self.loaded & (mask ^ mask >> 1) != 0;
                let value = if negative { self.loaded | !mask } else { self.loaded };
                let immediate = Some(value & size.mask());
                let old = store.register.get(size, registers);
                Store { size, immediate, ..*store }.apply(old, registers)
            }
        }
    }

    /// Does all that is left, after the last step: to memory, to registers, to flags. Returns by how
    /// much RIP advances: by 0 if the instruction is to be repeated.
    ///
    /// # Errors
    /// Memory was taken away meanwhile. No register has changed then; it can be done again.
    pub fn finish(
        &self,
        memory: &impl Memory,
        registers: &mut impl Registers,
    ) -> Result<u64, Error> {
        let outcome = self.outcome(registers);
        for (at, part) in self::memory(self.written) {
            let (start, len) = (usize::from(at), usize::from(part.bytes));
            let bytes = outcome.new.to_le_bytes();
            store(memory, part.physical, bytes.get(start..start + len).unwrap_or_default())?;
        }
        if self.action == Action::Load {
            self.store.register.set(self.extend.0, outcome.new, registers);
        }
        Ok(self.store.finish(outcome, registers))
    }
}

/// Translates so many bytes at `linear`.
fn locate<M: Memory>(
    space: &AddressSpace<'_, M>,
    linear: u64,
    bytes: u64,
    access: Access,
    is_device: &impl Fn(u64) -> bool,
) -> Result<Operand, Trouble> {
    let first = bytes.min(PAGE - linear % PAGE);
    let part = |linear: u64, bytes: u64| {
        let physical = space.translate(linear, access)?;
        let kind = if is_device(physical) { Kind::Device } else { Kind::Memory };
        if kind == Kind::Memory && access == Access::Write {
            ask(space.memory, physical)?;
        }
        Ok::<_, Trouble>(Part { physical, bytes: u8::try_from(bytes).unwrap_or_default(), kind })
    };
    let second = match bytes - first {
        0 => Part::default(),
        rest => part(linear.wrapping_add(first), rest)?,
    };
    Ok([part(linear, first)?, second])
}
