//! Which instruction accessed memory (SDM vol. 2, chapter 2 and the opcode maps in appendix A).
//!
//! Known are the instructions by which page tables are written, and those by which devices are
//! accessed. Any other is `None`, and so is any form of these that no compiler makes.

use crate::access::LONGEST;
use crate::instruction::Action;
use crate::operand::Base;
use crate::store::{Operation, RAX, Register, Series, Size, Store};

const REX_W: u8 = 8;
const REX_R: u8 = 4;

/// The kind of code that is executed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// 16-bit code: CS.D = 0 outside 64-bit mode.
    Bits16,
    /// 32-bit code: protected or compatibility mode, CS.D = 1.
    Bits32,
    /// 64-bit mode.
    #[default]
    Bits64,
}

/// The store that the instruction at the start of `bytes` does. It has a memory operand and was
/// executed up to the store. The address is not computed: the processor has reported where the
/// store went.
#[must_use]
pub fn decode(bytes: &[u8], mode: Mode) -> Option<Store> {
    let mut decoder = Decoder::new(bytes, mode);
    let store = decoder.parse();
    if matches!(decoder.action, Some(Action::Store | Action::Change)) { store } else { None }
}

/// What was read of an instruction.
#[derive(Default)]
pub(crate) struct Decoder<'a> {
    rest: &'a [u8],
    pub(crate) mode: Mode,
    lock: bool,
    repeat: bool,
    /// Whether prefixes ask for the other size of operands, and of addresses.
    other: bool,
    other_width: bool,
    pub(crate) segment: Option<Base>,
    /// 0 if there is none: a REX prefix is never 0.
    rex: u8,
    pub(crate) opcode: u16,
    pub(crate) modrm: u8,
    pub(crate) sib: u8,
    pub(crate) displacement: u64,
    /// What [`Decoder::parse`] has found.
    pub(crate) action: Option<Action>,
}

impl<'a> Decoder<'a> {
    pub(crate) fn new(bytes: &'a [u8], mode: Mode) -> Self {
        let rest = bytes.get(..LONGEST).unwrap_or(bytes);
        Self { rest, mode, ..Self::default() }
    }

    /// Reads the whole instruction.
    pub(crate) fn parse(&mut self) -> Option<Store> {
        let start = self.rest.len();
        self.opcode = self.read_opcode()?;
        let (size, to) = self.sizes();
        let (is_string, mut reg, mut register) = (self.is_string(), 0, RAX);
        if self.is_offset() {
            self.displacement = self.number(self.width().bytes())?;
        } else if !is_string {
            reg = self.memory()?;
            register = self.register(reg, to);
        }
        let immediate = self.immediate(reg, size)?;
        let (action, operation) = self.form(reg)?;
        if self.lock && action != Action::Change || self.repeat && !is_string {
            return None;
        }
        let series = is_string.then(|| Series {
            address_size: self.width(),
            counted: self.repeat,
            moves: (action.reads(), action.writes()),
        });
        // xchg and xadd
        let exchange = matches!(self.opcode, 0x86 | 0x87 | 0x0fc0 | 0x0fc1);
        let length = u64::try_from(start - self.rest.len()).ok()?;
        self.action = Some(action);
        Some(Store { length, size, operation, series, register, immediate, exchange })
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
        let negative = value.last().is_some_and(|last| last & 0x80 != 0);
        let sign = if negative { u64::MAX } else { 0 };
        Some(value.iter().rev().fold(sign, |value, byte| value << 8 | u64::from(*byte)))
    }

    /// Reads prefixes and opcode. One of two bytes begins with 0x0f.
    fn read_opcode(&mut self) -> Option<u16> {
        let mut byte = self.byte()?;
        loop {
            match byte {
                0x26 | 0x2e | 0x36 | 0x3e if self.mode == Mode::Bits64 => {}
                0x26 => self.segment = Some(Base::Es),
                0x2e => self.segment = Some(Base::Cs),
                0x36 => self.segment = Some(Base::Ss),
                0x3e => self.segment = Some(Base::Ds),
                0x64 => self.segment = Some(Base::Fs),
                0x65 => self.segment = Some(Base::Gs),
                0x66 => self.other = true,
                0x67 => self.other_width = true,
                0xf0 => self.lock = true,
                0xf3 => self.repeat = true,
                _ => break,
            }
            byte = self.byte()?;
        }
        // REX counts only as the last prefix: what follows is taken for an opcode, and no opcode
        // known here equals a prefix.
        if byte & 0xf0 == 0x40 && self.mode == Mode::Bits64 {
            self.rex = byte;
            byte = self.byte()?;
        }
        let bytes = if byte == 0x0f { [byte, self.byte()?] } else { [0, byte] };
        Some(u16::from_be_bytes(bytes))
    }

    /// Size of addresses.
    pub(crate) const fn width(&self) -> Size {
        match (self.mode, self.other_width) {
            (Mode::Bits64, false) => Size::EIGHT,
            (Mode::Bits16, false) | (Mode::Bits32, true) => Size::TWO,
            _ => Size::FOUR,
        }
    }

    /// Sizes of the operand in memory and of that in a register. Bit 0 of nearly all opcodes tells
    /// one byte from more.
    pub(crate) fn sizes(&self) -> (Size, Size) {
        let opcode = self.opcode;
        let small = self.other != (self.mode == Mode::Bits16);
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

    /// mov with an address and no ModRM
    pub(crate) const fn is_offset(&self) -> bool {
        matches!(self.opcode, 0xa0..=0xa3)
    }

    /// ins, outs, movs, stos, lods
    pub(crate) const fn is_string(&self) -> bool {
        matches!(self.opcode, 0x6c..=0x6f | 0xa4 | 0xa5 | 0xaa..=0xad)
    }

    /// Reads ModRM, SIB and displacement of a memory operand (SDM vol. 2, 2.1.5). Returns ModRM.reg.
    fn memory(&mut self) -> Option<u8> {
        self.modrm = self.byte()?;
        let (form, reg, mut base) = (self.modrm >> 6, self.modrm >> 3 & 7, self.modrm & 7);
        if form == 3 {
            return None;
        }
        let short = self.width() == Size::TWO;
        if base == 4 && !short {
            self.sib = self.byte()?;
            base = self.sib & 7;
        }
        self.displacement = match (form, base) {
            (1, _) => self.number(1)?,
            (2, _) => self.number(if short { 2 } else { 4 })?,
            (_, 5) if !short => self.number(4)?,
            (_, 6) if short => self.number(2)?,
            _ => 0,
        };
        Some(reg)
    }

    /// The high bit of a register's number.
    pub(crate) const fn extension(&self, bit: u8) -> u8 {
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
    fn immediate(&mut self, reg: u8, size: Size) -> Option<Option<u64>> {
        let bytes = match (self.opcode, reg) {
            (0x80 | 0x83 | 0xc6 | 0x0fba, _) => 1,
            // There are no immediate operands of 8 bytes.
            (0x81 | 0xc7, _) | (0xf6 | 0xf7, 0) => size.bytes().min(4),
            _ => return Some(None),
        };
        Some(Some(self.number(bytes)? & size.mask()))
    }

    /// What an opcode with its ModRM.reg stands for.
    fn form(&self, reg: u8) -> Option<(Action, Operation)> {
        let opcode = self.opcode;
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
            (0x63, _) if self.mode != Mode::Bits64 => return None,
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

/// The operation of this number in the opcode maps; 7 is cmp, a subtraction that stores nothing.
fn arithmetic(number: u16) -> Option<Operation> {
    use Operation::{Add, AddWithCarry, And, Or, Subtract, SubtractWithBorrow, Xor};
    let operations = [Add, Or, AddWithCarry, SubtractWithBorrow, And, Subtract, Xor];
    operations.get(usize::from(number)).copied()
}
