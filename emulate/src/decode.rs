//! Which instruction accessed memory (SDM vol. 2, chapter 2 and the opcode maps in appendix A).
//!
//! Known are the instructions by which page tables are written, and those by which devices are
//! accessed. Any other is `None`, and so is any form of these that no compiler makes.

use crate::access::LONGEST;
use crate::instruction::{Action, Instruction};
use crate::operand::{Base, Place};
use crate::store::{Operation, RAX, Register, Series, Size, Store};

const REX_W: u8 = 8;
const REX_R: u8 = 4;
const REX_X: u8 = 2;
const REX_B: u8 = 1;

// Numbers of registers.
const BX: u8 = 3;
const SP: u8 = 4;
const BP: u8 = 5;
const SI: u8 = 6;
const DI: u8 = 7;

/// The kind of code that is executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// 16-bit code: CS.D = 0 outside 64-bit mode.
    Bits16,
    /// 32-bit code: protected or compatibility mode, CS.D = 1.
    Bits32,
    /// 64-bit mode.
    Bits64,
}

/// The store that the instruction at the start of `bytes` does. It has a memory operand and was
/// executed up to the store. The address is not computed: the processor has reported where the
/// store went.
#[must_use]
pub fn decode(bytes: &[u8], mode: Mode) -> Option<Store> {
    let found = parse(bytes, mode, 0)?;
    matches!(found.action, Action::Store | Action::Change).then_some(found.store)
}

/// The instruction at the start of `bytes`, which lies at `rip`.
pub(crate) fn parse(bytes: &[u8], mode: Mode, rip: u64) -> Option<Instruction> {
    let bytes = bytes.get(..LONGEST).unwrap_or(bytes);
    let mut decoder = Decoder::new(bytes, mode);
    let opcode = decoder.opcode()?;
    let (size, to) = decoder.sizes(opcode);
    let (reg, register) = decoder.operands(opcode, to)?;
    let immediate = decoder.immediate(opcode, reg, size)?;
    let (action, operation) = decoder.form(opcode, reg)?;
    let is_string = is_string(opcode);
    if decoder.lock && action != Action::Change || decoder.repeat && !is_string {
        return None;
    }
    let length = u64::try_from(bytes.len() - decoder.rest.len()).ok()?;
    let mut source = decoder.place;
    if decoder.relative {
        source.displacement = source.displacement.wrapping_add(rip).wrapping_add(length);
    }
    let reads = !matches!(action, Action::Store | Action::In);
    let writes = matches!(action, Action::Store | Action::Change | Action::Move | Action::In);
    let (mut target, mut series) = (source, None);
    if is_string {
        (target.base, target.segment) = (Some(DI), Base::Es);
        let (address_size, counted) = (source.width, decoder.repeat);
        series = Some(Series { address_size, counted, moves: (reads, writes) });
    }
    // xchg and xadd
    let exchange = matches!(opcode, 0x86 | 0x87 | 0x0fc0 | 0x0fc1);
    let signed = matches!(opcode, 0x63 | 0x0fbe | 0x0fbf);
    let store = Store { length, size, operation, series, register, immediate, exchange };
    let (source, target) = (reads.then_some(source), writes.then_some(target));
    Some(Instruction { action, store, extend: (to, signed), source, target })
}

struct Decoder<'a> {
    rest: &'a [u8],
    lock: bool,
    repeat: bool,
    /// Whether a prefix asks for the other size of operands.
    other: bool,
    segment: Option<Base>,
    /// 0 if there is none: a REX prefix is never 0.
    rex: u8,
    place: Place,
    /// Whether the place is relative to the next instruction's.
    relative: bool,
}

impl<'a> Decoder<'a> {
    const fn new(rest: &'a [u8], mode: Mode) -> Self {
        let width = match mode {
            Mode::Bits16 => Size::TWO,
            Mode::Bits32 => Size::FOUR,
            Mode::Bits64 => Size::EIGHT,
        };
        let (segment, base, index) = (Base::Ds, None, None);
        let place = Place { segment, base, index, scale: 0, displacement: 0, width, mode };
        let (lock, repeat, other, segment, rex, relative) = (false, false, false, None, 0, false);
        Self { rest, lock, repeat, other, segment, rex, place, relative }
    }

    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(*first)
    }

    /// Reads a number of so many bytes, and extends its sign.
    fn number(&mut self, bytes: u64) -> Option<u64> {
        let (value, rest) = self.rest.split_at_checked(usize::try_from(bytes).ok()?)?;
        self.rest = rest;
        let sign = if value.last()? & 0x80 != 0 { u64::MAX } else { 0 };
        Some(value.iter().rev().fold(sign, |value, byte| value << 8 | u64::from(*byte)))
    }

    /// Reads prefixes and opcode. One of two bytes begins with 0x0f.
    fn opcode(&mut self) -> Option<u16> {
        let mut byte = self.byte()?;
        loop {
            match byte {
                0x26 | 0x2e | 0x36 | 0x3e if self.place.mode == Mode::Bits64 => {}
                0x26 => self.segment = Some(Base::Es),
                0x2e => self.segment = Some(Base::Cs),
                0x36 => self.segment = Some(Base::Ss),
                0x3e => self.segment = Some(Base::Ds),
                0x64 => self.segment = Some(Base::Fs),
                0x65 => self.segment = Some(Base::Gs),
                0x66 => self.other = true,
                0x67 if self.place.mode == Mode::Bits32 => self.place.width = Size::TWO,
                0x67 => self.place.width = Size::FOUR,
                0xf0 => self.lock = true,
                0xf3 => self.repeat = true,
                _ => break,
            }
            byte = self.byte()?;
        }
        // REX counts only as the last prefix: what follows is taken for an opcode, and no opcode
        // known here equals a prefix.
        if byte & 0xf0 == 0x40 && self.place.mode == Mode::Bits64 {
            self.rex = byte;
            byte = self.byte()?;
        }
        let bytes = if byte == 0x0f { [byte, self.byte()?] } else { [0, byte] };
        Some(u16::from_be_bytes(bytes))
    }

    /// Sizes of the operand in memory and of that in a register. Bit 0 of nearly all opcodes tells
    /// one byte from more.
    fn sizes(&self, opcode: u16) -> (Size, Size) {
        let small = self.other != (self.place.mode == Mode::Bits16);
        let wide = match (self.rex & REX_W, small) {
            (REX_W, _) => Size::EIGHT,
            // movnti has no operands of 2 bytes.
            (_, true) if opcode != 0x0fc3 => Size::TWO,
            _ => Size::FOUR,
        };
        match opcode {
            0x0fb6 | 0x0fbe => (Size::ONE, wide),
            0x0fb7 | 0x0fbf => (Size::TWO, wide),
            // Ports, and what movsxd extends, have 4 bytes at most.
            0x63 | 0x6d | 0x6f if self.rex & REX_W != 0 => (Size::FOUR, wide),
            _ if opcode & 1 == 0 && opcode != 0x0fba => (Size::ONE, Size::ONE),
            _ => (wide, wide),
        }
    }

    /// Reads what names the operands: where memory is, of a string that which is read; ModRM.reg;
    /// and the register.
    fn operands(&mut self, opcode: u16, size: Size) -> Option<(u8, Register)> {
        let mut named = (0, RAX);
        if is_string(opcode) {
            self.place.base = Some(SI);
        } else if matches!(opcode, 0xa0..=0xa3) {
            self.place.displacement = self.number(self.place.width.bytes())?;
        } else {
            let reg = self.memory()?;
            named = (reg, self.register(reg, size));
        }
        self.place.segment = self.segment.unwrap_or(self.place.segment);
        Some(named)
    }

    /// Reads ModRM, SIB and displacement of a memory operand (SDM vol. 2, 2.1.5). Returns ModRM.reg.
    fn memory(&mut self) -> Option<u8> {
        /// Base and index by ModRM.rm where addresses have 2 bytes. SP stands for no index.
        const SHORT: [(u8, u8); 8] =
            [(BX, SI), (BX, DI), (BP, SI), (BP, DI), (SI, SP), (DI, SP), (BP, SP), (BX, SP)];
        let modrm = self.byte()?;
        let (form, reg, rm) = (modrm >> 6, modrm >> 3 & 7, modrm & 7);
        let short = self.place.width == Size::TWO;
        let (mut base, mut index, mut scale) = (rm, SP, 0);
        if form == 3 {
            return None;
        } else if short {
            (base, index) = *SHORT.get(usize::from(rm))?;
        } else if rm == SP {
            let sib = self.byte()?;
            (base, index, scale) = (sib & 7, sib >> 3 & 7 | self.extension(REX_X), sib >> 6);
        }
        // What would be plain [BP] has a displacement and no base.
        let no_base = form == 0 && base == BP && !(short && index != SP);
        self.relative = no_base && rm == BP && !short && self.place.mode == Mode::Bits64;
        let displacement = match form {
            1 => self.number(1)?,
            0 if !no_base => 0,
            _ => self.number(if short { 2 } else { 4 })?,
        };
        base |= self.extension(REX_B);
        let segment = if !no_base && matches!(base, SP | BP) { Base::Ss } else { Base::Ds };
        let (base, index) = ((!no_base).then_some(base), (index != SP).then_some(index));
        self.place = Place { segment, base, index, scale, displacement, ..self.place };
        Some(reg)
    }

    /// The high bit of a register's number.
    const fn extension(&self, bit: u8) -> u8 {
        if self.rex & bit == 0 { 0 } else { 8 }
    }

    /// The register that ModRM.reg names.
    fn register(&self, reg: u8, size: Size) -> Register {
        match (size, self.rex) {
            (Size::ONE, 0) if reg >= 4 => Register { number: reg - 4, shift: 8 },
            _ => Register { number: reg | self.extension(REX_R), shift: 0 },
        }
    }

    /// The sign-extended immediate operand, cut to `size`; `Some(None)` if there is none.
    fn immediate(&mut self, opcode: u16, reg: u8, size: Size) -> Option<Option<u64>> {
        let bytes = match (opcode, reg) {
            (0x80 | 0x83 | 0xc6 | 0x0fba, _) => 1,
            // There are no immediate operands of 8 bytes.
            (0x81 | 0xc7, _) | (0xf6 | 0xf7, 0) => size.bytes().min(4),
            _ => return Some(None),
        };
        Some(Some(self.number(bytes)? & size.mask()))
    }

    /// What an opcode with its ModRM.reg stands for.
    fn form(&self, opcode: u16, reg: u8) -> Option<(Action, Operation)> {
        Some(match (opcode, reg) {
            (0x38 | 0x39, _) | (0x80 | 0x81 | 0x83, 7) => (Action::Test, Operation::Subtract),
            (0x3a | 0x3b, _) => (Action::Compare, Operation::Subtract),
            (0x00..=0x3f, _) if opcode & 6 == 0 => (Action::Change, arithmetic(opcode >> 3)?),
            (0x00..=0x3f, _) if opcode & 6 == 2 => (Action::Load, arithmetic(opcode >> 3)?),
            (0x80 | 0x81 | 0x83, _) => (Action::Change, arithmetic(reg.into())?),
            (0x84 | 0x85, _) | (0xf6 | 0xf7, 0) => (Action::Test, Operation::And),
            (0x86 | 0x87, _) => (Action::Change, Operation::Set),
            (0x88 | 0x89 | 0xa2 | 0xa3 | 0xaa | 0xab, _) | (0xc6 | 0xc7, 0) => {
                (Action::Store, Operation::Set)
            }
            (0x0fc3, _) if !self.other => (Action::Store, Operation::Set),
            (0x63, _) if self.place.mode != Mode::Bits64 => return None,
            (0x63 | 0x8a | 0x8b | 0xa0 | 0xa1 | 0xac | 0xad, _)
            | (0x0fb6 | 0x0fb7 | 0x0fbe | 0x0fbf, _) => (Action::Load, Operation::Set),
            (0xa4 | 0xa5, _) => (Action::Move, Operation::Set),
            (0x6c | 0x6d, _) => (Action::In, Operation::Set),
            (0x6e | 0x6f, _) => (Action::Out, Operation::Set),
            (0xf6 | 0xf7, 2) => (Action::Change, Operation::Not),
            (0xf6 | 0xf7, 3) => (Action::Change, Operation::Negate),
            (0xfe | 0xff, 0) => (Action::Change, Operation::Increment),
            (0xfe | 0xff, 1) => (Action::Change, Operation::Decrement),
            (0x0fba, 4) => (Action::Test, Operation::SetBit),
            (0x0fab, _) | (0x0fba, 5) => (Action::Change, Operation::SetBit),
            (0x0fb3, _) | (0x0fba, 6) => (Action::Change, Operation::ResetBit),
            (0x0fbb, _) | (0x0fba, 7) => (Action::Change, Operation::ComplementBit),
            (0x0fb0 | 0x0fb1, _) => (Action::Change, Operation::CompareExchange),
            (0x0fc0 | 0x0fc1, _) => (Action::Change, Operation::Add),
            _ => return None,
        })
    }
}

/// ins, outs, movs, stos, lods
const fn is_string(opcode: u16) -> bool {
    matches!(opcode, 0x6c..=0x6f | 0xa4 | 0xa5 | 0xaa..=0xad)
}

/// The operation of this number in the opcode maps; 7 is cmp, a subtraction that stores nothing.
fn arithmetic(number: u16) -> Option<Operation> {
    use Operation::{Add, AddWithCarry, And, Or, Subtract, SubtractWithBorrow, Xor};
    let operations = [Add, Or, AddWithCarry, SubtractWithBorrow, And, Subtract, Xor];
    operations.get(usize::from(number)).copied()
}
