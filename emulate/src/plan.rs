//! What an instruction does with devices, piece by piece, and with everything else.
//!
//! All operands are translated, and memory is read, before the first piece: from then on nothing can
//! fault. What the instruction changes besides devices is changed at the end.

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
    /// A repeated instruction has no turn left to do.
    Nothing,
    /// The memory of ins or outs is a device's.
    Unsupported,
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
    kind: Kind,
    is_written: bool,
    physical: u64,
    /// Number of bytes, and how many bytes of the operand lie before.
    bytes: u8,
    skip: u8,
}

impl Part {
    fn mask(&self) -> u64 {
        u64::MAX >> (64 - 8 * self.bytes)
    }
}

/// An instruction on its way: one round of it, if it is repeated.
#[derive(Debug, PartialEq, Eq)]
pub struct Plan {
    action: Action,
    store: Store,
    extend: (Size, bool),
    /// What is read, then what is written.
    parts: [[Part; 2]; 2],
    /// What was read so far.
    loaded: u64,
    /// How many bytes of devices and ports are done.
    done: u8,
}

impl Plan {
    /// Translates the operands and reads memory. `is_device` tells whether a guest-physical address
    /// is a device's.
    ///
    /// # Errors
    /// All of [`Trouble`]; nothing but flags of page tables has changed then.
    pub fn new<M: Memory>(
        instruction: &Instruction,
        space: &AddressSpace<'_, M>,
        registers: &impl Registers,
        segments: &impl Segments,
        is_device: impl Fn(u64) -> bool,
    ) -> Result<Self, Trouble> {
        let Instruction { action, store, extend, source, target } = *instruction;
        if store.series.is_some_and(|series| series.left(registers) == 0) {
            return Err(Trouble::Nothing);
        }
        let bytes = store.size.bytes();
        let has_port = matches!(action, Action::In | Action::Out);
        let port = if has_port { u8::try_from(bytes).unwrap_or_default() } else { 0 };
        let kind = |at| if is_device(at) { Kind::Device } else { Kind::Memory };
        let operand = |place: Option<Place>, access| {
            let Some(place) = place else {
                let is_written = access == Access::Write;
                let port = Part { kind: Kind::Port, is_written, bytes: port, ..Part::default() };
                return Ok([port, Part::default()]);
            };
            let denied = Trouble::Segment(place.segment);
            let linear = place.linear((bytes, access), registers, segments).ok_or(denied)?;
            let last = linear.wrapping_add(bytes - 1);
            if !space.context.is_canonical(linear) || !space.context.is_canonical(last) {
                return Err(denied);
            }
            split(space, (linear, bytes), access, kind).map_err(Trouble::Memory)
        };
        let written = operand(target, Access::Write)?;
        let read = if action == Action::Change {
            written.map(|part| Part { is_written: false, ..part })
        } else {
            operand(source, Access::Read)?
        };
        let mut plan = Self { action, store, extend, parts: [read, written], loaded: 0, done: 0 };
        if has_port && plan.parts().any(|part| part.kind == Kind::Device) {
            return Err(Trouble::Unsupported);
        } else if plan.count() == 0 {
            return Err(Trouble::Ordinary);
        }
        for part in read.iter().filter(|part| part.kind == Kind::Memory) {
            let mut bytes = [0; 8];
            let to = bytes.get_mut(..part.bytes.into()).unwrap_or_default();
            load(space.memory, part.physical, to).map_err(Trouble::Memory)?;
            plan.loaded |= u64::from_le_bytes(bytes) << (8 * part.skip);
        }
        Ok(plan)
    }

    fn parts(&self) -> impl Iterator<Item = &Part> {
        self.parts.as_flattened().iter()
    }

    /// The number of pieces of devices and ports: a part has as many as powers of two.
    fn count(&self) -> u32 {
        let parts = self.parts().filter(|part| part.kind != Kind::Memory);
        parts.map(|part| part.bytes.count_ones()).sum()
    }

    /// Takes the `answer` to what was the next step before: what was loaded, of which no more counts
    /// than was asked for, or anything for a store. Without one, that step is the next again.
    pub fn next(&mut self, answer: Option<u64>, registers: &impl Registers) -> Step {
        if let (Some(value), Some(part)) = (answer, self.piece()) {
            self.done += part.bytes;
            if !part.is_written {
                self.loaded |= (value & part.mask()) << (8 * part.skip);
            }
        }
        let Some(part) = self.piece() else {
            return Step::Finish;
        };
        let Part { physical, bytes, .. } = part;
        let value = || self.outcome(registers).new >> (8 * part.skip) & part.mask();
        match (part.kind == Kind::Port, part.is_written) {
            (false, false) => Step::Load(Piece { physical, bytes }),
            (false, true) => Step::Store(Piece { physical, bytes }, value()),
            (true, false) => Step::In(bytes),
            (true, true) => Step::Out(bytes, value()),
        }
    }

    /// The piece that comes next: as much of a part as one access can do.
    fn piece(&self) -> Option<Part> {
        let mut done = self.done;
        for part in self.parts().filter(|part| part.kind != Kind::Memory) {
            if let Some(log) = part.bytes.checked_sub(done).and_then(u8::checked_ilog2) {
                let physical = part.physical + u64::from(done);
                return Some(Part { physical, bytes: 1 << log, skip: part.skip + done, ..*part });
            }
            done -= part.bytes;
        }
        None
    }

    /// Whether a step was answered: then the instruction must not be begun anew.
    #[must_use]
    pub const fn is_begun(&self) -> bool {
        self.done != 0
    }

    /// Whether there is one step only, but for the last.
    #[must_use]
    pub fn is_single(&self) -> bool {
        self.count() == 1
    }

    /// What the operation gives with what was loaded.
    fn outcome(&self, registers: &impl Registers) -> Outcome {
        let (store, (size, signed)) = (&self.store, self.extend);
        if matches!(self.action, Action::Store | Action::Change | Action::Test) {
            return store.apply(self.loaded, registers);
        }
        let sign = if signed { store.size.mask() ^ store.size.mask() >> 1 } else { 0 };
        let value = (self.loaded ^ sign).wrapping_sub(sign);
        let old = store.register.get(size, registers);
        Store { size, immediate: Some(value), ..*store }.apply(old, registers)
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
        for part in self.parts().filter(|part| part.kind == Kind::Memory && part.is_written) {
            let bytes = (outcome.new >> (8 * part.skip)).to_le_bytes();
            store(memory, part.physical, bytes.get(..part.bytes.into()).unwrap_or_default())?;
        }
        if self.action == Action::Load {
            self.store.register.set(self.extend.0, outcome.new, registers);
        }
        Ok(self.store.finish(outcome, registers))
    }
}

/// Translates so many bytes at a linear address.
fn split<M: Memory>(
    space: &AddressSpace<'_, M>,
    (linear, bytes): (u64, u64),
    access: Access,
    kind: impl Fn(u64) -> Kind,
) -> Result<[Part; 2], Error> {
    let first = bytes.min(PAGE - linear % PAGE);
    let mut parts = [Part::default(); 2];
    for (part, (skip, end)) in parts.iter_mut().zip([(0, first), (first, bytes)]) {
        if skip == end {
            break;
        }
        let physical = space.translate(linear.wrapping_add(skip), access)?;
        let (kind, is_written) = (kind(physical), access == Access::Write);
        if kind == Kind::Memory && is_written {
            ask(space.memory, physical)?;
        }
        let [skip, bytes] = [skip, end - skip].map(|n| u8::try_from(n).unwrap_or_default());
        *part = Part { kind, is_written, physical, bytes, skip };
    }
    Ok(parts)
}
