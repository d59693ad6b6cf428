//! What another decoder, `iced-x86`, says of a byte string. The fuzz targets use this file too.

use emulate::decode::Mode;
use emulate::store::{self, Operation, Store};
use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};

/// Registers as the processor has them.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Registers {
    pub(crate) general: [u64; 16],
    pub(crate) rflags: u64,
}

impl store::Registers for Registers {
    fn general(&self, number: u8) -> u64 {
        self.general[usize::from(number)]
    }
    fn set_general(&mut self, number: u8, value: u64) {
        self.general[usize::from(number)] = value;
    }
    fn rflags(&self) -> u64 {
        self.rflags
    }
    fn set_rflags(&mut self, value: u64) {
        self.rflags = value;
    }
}

/// What `iced-x86` takes `bytes` for; `None` for what is no instruction.
pub(crate) fn other(bytes: &[u8], mode: Mode) -> Option<Instruction> {
    let bits = match mode {
        Mode::Bits16 => 16,
        Mode::Bits32 => 32,
        Mode::Bits64 => 64,
    };
    let found = Decoder::with_ip(bits, bytes, 0, DecoderOptions::NONE).decode();
    (!found.is_invalid()).then_some(found)
}

/// Number of a general-purpose register, and the bit where it begins.
fn place(register: Register) -> (usize, u32) {
    let high = [Register::AH, Register::CH, Register::DH, Register::BH];
    match high.iter().position(|other| *other == register) {
        Some(number) => (number, 8),
        None => (register.full_register().number(), 0),
    }
}

pub(crate) fn value(registers: &Registers, register: Register) -> u64 {
    let (number, shift) = place(register);
    let bits = 8 * register.size();
    (registers.general[number] >> shift) & (u64::MAX >> (64 - bits))
}

/// The value of the source operand, if there is one.
fn source(found: &Instruction, registers: &Registers) -> Option<u64> {
    let mask = u64::MAX >> (64 - 8 * found.memory_size().size());
    match found.op_count() {
        1 => None,
        _ if found.op1_register().is_gpr() => Some(value(registers, found.op1_register())),
        _ => Some(found.try_immediate(1).unwrap_or(0) & mask),
    }
}

/// Whether it is stos; other string instructions do not only store.
pub(crate) fn is_string(found: &Instruction) -> bool {
    let known = [Mnemonic::Stosb, Mnemonic::Stosw, Mnemonic::Stosd, Mnemonic::Stosq];
    known.contains(&found.mnemonic())
}

/// What should become of the memory operand; `None` for instructions that are not supported.
fn operation(found: &Instruction) -> Option<Operation> {
    let known = [
        (Mnemonic::Mov, Operation::Set),
        (Mnemonic::Movnti, Operation::Set),
        (Mnemonic::Xchg, Operation::Set),
        (Mnemonic::Cmpxchg, Operation::CompareExchange),
        (Mnemonic::Add, Operation::Add),
        (Mnemonic::Xadd, Operation::Add),
        (Mnemonic::Adc, Operation::AddWithCarry),
        (Mnemonic::Sub, Operation::Subtract),
        (Mnemonic::Sbb, Operation::SubtractWithBorrow),
        (Mnemonic::Or, Operation::Or),
        (Mnemonic::And, Operation::And),
        (Mnemonic::Xor, Operation::Xor),
        (Mnemonic::Inc, Operation::Increment),
        (Mnemonic::Dec, Operation::Decrement),
        (Mnemonic::Not, Operation::Not),
        (Mnemonic::Neg, Operation::Negate),
        (Mnemonic::Bts, Operation::SetBit),
        (Mnemonic::Btr, Operation::ResetBit),
        (Mnemonic::Btc, Operation::ComplementBit),
    ];
    if is_string(found) {
        return Some(Operation::Set);
    }
    known.into_iter().find(|(name, _)| *name == found.mnemonic()).map(|(_, operation)| operation)
}

/// Whether the first operand is memory that is written by a supported instruction.
pub(crate) fn is_supported(found: &Instruction) -> bool {
    let kinds = [OpKind::Memory, OpKind::MemoryESRDI, OpKind::MemoryESEDI, OpKind::MemoryESDI];
    let vector = found.op_count() > 1
        && found.op1_kind() == OpKind::Register
        && !found.op1_register().is_gpr();
    kinds.contains(&found.op0_kind())
        && [1, 2, 4, 8].contains(&found.memory_size().size())
        && !vector
        && found.op_count() <= 2
        && operation(found).is_some()
}

/// Whether the source operand selects a bit.
fn is_bit(operation: Operation) -> bool {
    matches!(operation, Operation::SetBit | Operation::ResetBit | Operation::ComplementBit)
}

/// Checks that `store`, decoded from `bytes`, is what the other decoder says.
pub(crate) fn compare(store: &Store, bytes: &[u8], mode: Mode, registers: &Registers) {
    let found = &other(bytes, mode).unwrap();
    let name = found.code();
    assert!(is_supported(found), "{name:?} does not store");
    assert_eq!(store.length, u64::try_from(found.len()).unwrap(), "{name:?}");
    assert_eq!(store.size.bytes(), u64::try_from(found.memory_size().size()).unwrap(), "{name:?}");
    assert_eq!(Some(store.operation), operation(found), "{name:?}");
    assert_eq!(store.series.is_some(), is_string(found), "{name:?}");
    if let Some(source) = source(found, registers) {
        let bits = if is_bit(store.operation) { 8 * store.size.bytes() - 1 } else { u64::MAX };
        assert_eq!(store.source(registers) & bits, source & bits, "{name:?}");
    }
    match store.series {
        Some(_) => compare_series(store, found, registers),
        None => compare_registers(store, found, registers),
    }
}

/// Checks how much a string instruction stores, and where.
fn compare_series(store: &Store, found: &Instruction, registers: &Registers) {
    let kinds = [OpKind::MemoryESDI, OpKind::MemoryESEDI, OpKind::MemoryESRDI];
    let masks = [0xffff, 0xffff_ffff, u64::MAX];
    let mask = kinds.into_iter().zip(masks).find(|(kind, _)| *kind == found.op0_kind()).unwrap().1;
    let left = if found.has_rep_prefix() { registers.general[1] & mask } else { 1 };
    let some = left > 0 && registers.rflags & 1 << 10 == 0;
    let next = store.series.unwrap().offset(registers);
    assert_eq!(next, some.then_some(registers.general[7] & mask), "{:?}", found.code());
}

/// Checks which registers change, whatever memory holds.
fn compare_registers(store: &Store, found: &Instruction, registers: &Registers) {
    assert!(!found.has_rep_prefix(), "{:?}", found.code());
    let old = 0x0123_4567_89ab_cdef;
    let mut after = *registers;
    assert_eq!(store.finish(store.apply(old, registers), &mut after), store.length);
    if [Mnemonic::Xchg, Mnemonic::Xadd].contains(&found.mnemonic()) {
        assert_eq!(value(&after, found.op1_register()), old & store.size.mask());
    } else if found.mnemonic() != Mnemonic::Cmpxchg {
        assert_eq!(after.general, registers.general, "{:?}", found.code());
    }
}
