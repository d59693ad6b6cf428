//! Which instruction stored to memory (SDM vol. 2, chapter 2 and the opcode maps in appendix A).
//!
//! Known are the instructions by which page tables are written. Any other is `None`, and so is any
//! form of these that no compiler makes. The address is not computed: the processor has reported
//! where the store went.

use crate::access::LONGEST;
use crate::store::{Operation, RAX, Register, Series, Size, Store};

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
/// executed up to the store.
#[must_use]
pub fn decode(bytes: &[u8], mode: Mode) -> Option<Store> {
    let bytes = bytes.get(..LONGEST).unwrap_or(bytes);
    let mut decoder =
        Decoder { rest: bytes, mode, lock: false, repeat: false, small: false, rex: 0 };
    let opcode = decoder.opcode()?;
    let size = decoder.size(opcode);
    let address_size = if mode == Mode::Bits64 { Size::EIGHT } else { Size::FOUR };
    let (mut series, mut register, mut immediate) = (None, RAX, None);
    let operation = match opcode {
        0xa2 | 0xa3 => {
            decoder.skip(usize::try_from(address_size.bytes()).ok()?)?;
            Operation::Set
        }
        0xaa | 0xab => {
            series = Some(Series { address_size, counted: decoder.repeat });
            Operation::Set
        }
        _ => {
            let reg = decoder.memory()?;
            register = decoder.register(reg, size);
            immediate = decoder.immediate(opcode, size)?;
            decoder.operation(opcode, reg)?
        }
    };
    // xchg and xadd
    let exchange = matches!(opcode, 0x86 | 0x87 | 0x0fc0 | 0x0fc1);
    let no_lock = operation == Operation::Set && !exchange;
    if decoder.lock && no_lock || decoder.repeat && series.is_none() {
        return None;
    }
    let length = u64::try_from(bytes.len() - decoder.rest.len()).ok()?;
    Some(Store { length, size, operation, series, register, immediate, exchange })
}

struct Decoder<'a> {
    rest: &'a [u8],
    mode: Mode,
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

    /// The sign-extended immediate operand, cut to `size`; `Some(None)` if there is none.
    fn immediate(&mut self, opcode: u16, size: Size) -> Option<Option<u64>> {
        let bytes = match opcode {
            0x80 | 0x83 | 0xc6 | 0x0fba => 1,
            // There are no immediate operands of 8 bytes.
            0x81 | 0xc7 => size.bytes().min(4),
            _ => return Some(None),
        };
        let (value, rest) = self.rest.split_at_checked(usize::try_from(bytes).ok()?)?;
        self.rest = rest;
        let sign = if value.last()? & 0x80 != 0 { u64::MAX } else { 0 };
        let value = value.iter().rev().fold(sign, |value, byte| value << 8 | u64::from(*byte));
        Some(Some(value & size.mask()))
    }

    /// What an opcode with its ModRM.reg stands for.
    fn operation(&self, opcode: u16, reg: u8) -> Option<Operation> {
        Some(match (opcode, reg) {
            (0x00..=0x3f, _) if opcode & 6 == 0 => return arithmetic(opcode >> 3),
            (0x80 | 0x81 | 0x83, _) => return arithmetic(reg.into()),
            (0x86..=0x89, _) | (0xc6 | 0xc7, 0) => Operation::Set,
            (0xf6 | 0xf7, 2) => Operation::Not,
            (0xf6 | 0xf7, 3) => Operation::Negate,
            (0xfe | 0xff, 0) => Operation::Increment,
            (0xfe | 0xff, 1) => Operation::Decrement,
            (0x0fab, _) | (0x0fba, 5) => Operation::SetBit,
            (0x0fb3, _) | (0x0fba, 6) => Operation::ResetBit,
            (0x0fbb, _) | (0x0fba, 7) => Operation::ComplementBit,
            (0x0fb0 | 0x0fb1, _) => Operation::CompareExchange,
            (0x0fc0 | 0x0fc1, _) => Operation::Add,
            (0x0fc3, _) if !self.small => Operation::Set,
            _ => return None,
        })
    }
}

/// The operation of this number in the opcode maps; 7 is cmp, which does not store.
fn arithmetic(number: u16) -> Option<Operation> {
    Some(match number {
        0 => Operation::Add,
        1 => Operation::Or,
        2 => Operation::AddWithCarry,
        3 => Operation::SubtractWithBorrow,
        4 => Operation::And,
        5 => Operation::Subtract,
        6 => Operation::Xor,
        _ => return None,
    })
}
