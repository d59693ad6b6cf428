//! Which instruction stored to memory (SDM vol. 2, chapter 2 and the opcode maps in appendix A).
//!
//! Known are the instructions by which page tables are written. Any other is `None`, and so is any
//! form of these that no compiler makes. The address is not computed: the processor has reported
//! where the store went.

use crate::access::LONGEST;
use crate::store::{CARRY, Operation, RAX, RCX, RDI, Register, Registers, Series, Size, Store};

const DIRECTION: u64 = 1 << 10;

const REX_W: u8 = 8;
const REX_R: u8 = 4;

/// The kind of code that is executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// 32-bit code: protected or compatibility mode, CS.D = 1.
    Bits32,
    /// 64-bit mode.
    Bits64,
}

/// The store that the instruction at the start of `bytes` does. It has a memory operand and was
/// executed with `registers`, up to the store.
#[must_use]
pub fn decode(bytes: &[u8], mode: Mode, registers: &Registers) -> Option<Store> {
    let bytes = bytes.get(..LONGEST).unwrap_or(bytes);
    let (lock, repeat, small) = (false, false, false);
    let mut decoder = Decoder { rest: bytes, mode, registers, lock, repeat, small, rex: 0 };
    let opcode = decoder.opcode()?;
    let size = decoder.size(opcode);
    let (mut series, mut register) = (None, None);
    let operation = match opcode {
        0xa2 | 0xa3 => {
            decoder.skip(if mode == Mode::Bits64 { 8 } else { 4 })?;
            Operation::Set(registers.get(RAX, size))
        }
        0xaa | 0xab => {
            series = Some(decoder.series()?);
            Operation::Set(registers.get(RAX, size))
        }
        _ => {
            let reg = decoder.memory()?;
            let source = decoder.register(reg, size);
            // xchg and xadd
            register = matches!(opcode, 0x86 | 0x87 | 0x0fc0 | 0x0fc1).then_some(source);
            decoder.operation((opcode, reg), registers.get(source, size), size)?
        }
    };
    let no_lock = register.is_none() && matches!(operation, Operation::Set(_));
    if decoder.lock && no_lock || decoder.repeat && series.is_none() {
        return None;
    }
    let length = u64::try_from(bytes.len() - decoder.rest.len()).ok()?;
    Some(Store { length, size, operation, series, register })
}

struct Decoder<'a> {
    rest: &'a [u8],
    mode: Mode,
    registers: &'a Registers,
    lock: bool,
    repeat: bool,
    /// Whether a prefix asks for operands of 2 bytes.
    small: bool,
    /// 0 if there is none: a REX prefix is never 0.
    rex: u8,
}

impl Decoder<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(*first)
    }

    fn skip(&mut self, count: usize) -> Option<()> {
        self.rest = self.rest.get(count..)?;
        Some(())
    }

    /// Reads prefixes and opcode. One of two bytes begins with 0x0f.
    fn opcode(&mut self) -> Option<u16> {
        let mut byte = self.byte()?;
        loop {
            match byte {
                0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65 => {}
                0x66 => self.small = true,
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

    /// Size of the memory operand. Bit 0 of nearly all opcodes tells one byte from more.
    fn size(&self, opcode: u16) -> Size {
        match (opcode & 1, self.rex & REX_W, self.small) {
            (0, _, _) if opcode != 0x0fba => Size::ONE,
            (_, REX_W, _) => Size::EIGHT,
            (_, _, true) => Size::TWO,
            (_, _, false) => Size::FOUR,
        }
    }

    /// Passes ModRM, SIB and displacement of a memory operand (SDM vol. 2, 2.1.5). Returns ModRM.reg.
    fn memory(&mut self) -> Option<u8> {
        let modrm = self.byte()?;
        let mut base = modrm & 7;
        if modrm >> 6 == 3 {
            return None;
        }
        if base == 4 {
            base = self.byte()? & 7;
        }
        self.skip(match (modrm >> 6, base) {
            (0, 5) | (2, _) => 4,
            (1, _) => 1,
            _ => 0,
        })?;
        Some(modrm >> 3 & 7)
    }

    /// The register that ModRM.reg names.
    fn register(&self, reg: u8, size: Size) -> Register {
        match (size, self.rex) {
            (Size::ONE, 0) if reg >= 4 => Register { number: reg - 4, shift: 8 },
            (_, rex) if rex & REX_R != 0 => Register { number: reg | 8, shift: 0 },
            _ => Register { number: reg, shift: 0 },
        }
    }

    /// A sign-extended immediate operand, cut to `size`.
    fn immediate(&mut self, bytes: usize, size: Size) -> Option<u64> {
        let (value, rest) = self.rest.split_at_checked(bytes)?;
        self.rest = rest;
        let sign = if value.last()? & 0x80 != 0 { u64::MAX } else { 0 };
        let value = value.iter().rev().fold(sign, |value, byte| value << 8 | u64::from(*byte));
        Some(value & size.mask())
    }

    /// What an opcode with its ModRM.reg stands for, with `value` in the register operand.
    fn operation(&mut self, opcode: (u16, u8), value: u64, size: Size) -> Option<Operation> {
        // There are no immediate operands of 8 bytes.
        let full = usize::try_from(size.bytes().min(4)).ok()?;
        Some(match opcode {
            (0x00..=0x3f, _) if opcode.0 & 6 == 0 => self.arithmetic(opcode.0 >> 3, value)?,
            (0x80 | 0x81 | 0x83, reg) => {
                let value = self.immediate(if opcode.0 == 0x81 { full } else { 1 }, size)?;
                self.arithmetic(reg.into(), value)?
            }
            (0x86..=0x89, _) => Operation::Set(value),
            (0xc6 | 0xc7, 0) => Operation::Set(self.immediate(full, size)?),
            (0xf6 | 0xf7, 2) => Operation::Not,
            (0xf6 | 0xf7, 3) => Operation::Negate,
            (0xfe | 0xff, 0) => Operation::Increment,
            (0xfe | 0xff, 1) => Operation::Decrement,
            (0x0fab, _) => Operation::SetBit(size.bit(value)),
            (0x0fb3, _) => Operation::ResetBit(size.bit(value)),
            (0x0fbb, _) => Operation::ComplementBit(size.bit(value)),
            (0x0fba, 5) => Operation::SetBit(size.bit(self.immediate(1, size)?)),
            (0x0fba, 6) => Operation::ResetBit(size.bit(self.immediate(1, size)?)),
            (0x0fba, 7) => Operation::ComplementBit(size.bit(self.immediate(1, size)?)),
            (0x0fb0 | 0x0fb1, _) => {
                Operation::CompareExchange { expected: self.registers.get(RAX, size), new: value }
            }
            (0x0fc0 | 0x0fc1, _) => Operation::Add { value, carry: 0 },
            (0x0fc3, _) if !self.small => Operation::Set(value),
            _ => return None,
        })
    }

    /// The operation of this number in the opcode maps; 7 is cmp, which does not store.
    fn arithmetic(&self, number: u16, value: u64) -> Option<Operation> {
        let carry = self.registers.rflags & CARRY;
        Some(match number {
            0 => Operation::Add { value, carry: 0 },
            1 => Operation::Or(value),
            2 => Operation::Add { value, carry },
            3 => Operation::Subtract { value, borrow: carry },
            4 => Operation::And(value),
            5 => Operation::Subtract { value, borrow: 0 },
            6 => Operation::Xor(value),
            _ => return None,
        })
    }

    /// What stos stores, if it goes upwards.
    fn series(&self) -> Option<Series> {
        let address_size = if self.mode == Mode::Bits64 { Size::EIGHT } else { Size::FOUR };
        let counted = self.repeat;
        let count = if counted { self.registers.get(RCX, address_size) } else { 1 };
        let offset = self.registers.get(RDI, address_size);
        let upwards = self.registers.rflags & DIRECTION == 0;
        (upwards && count > 0).then_some(Series { count, offset, address_size, counted })
    }
}
