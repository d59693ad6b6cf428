//! What another decoder, `iced-x86`, says of a byte string. The fuzz targets use this file too.

use emulate::decode::Mode;
use emulate::store::{Operation, Registers, Store};
use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};

/// What `iced-x86` takes `bytes` for; `None` for what is no instruction.
pub(crate) fn other(bytes: &[u8], mode: Mode) -> Option<Instruction> {
    let bits = if mode == Mode::Bits64 { 64 } else { 32 };
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

fn value(registers: &Registers, register: Register) -> u64 {
    let (number, shift) = place(register);
    let bits = 8 * register.size();
    (registers.general[number] >> shift) & (u64::MAX >> (64 - bits))
}

/// The value of the source operand, 0 if there is none.
fn source(found: &Instruction, registers: &Registers) -> u64 {
    let mask = u64::MAX >> (64 - 8 * found.memory_size().size());
    match found.op_count() {
        1 => 0,
        _ if found.op1_register().is_gpr() => value(registers, found.op1_register()),
        _ => found.try_immediate(1).unwrap_or(0) & mask,
    }
}

/// Whether it is stos; other string instructions do not only store.
pub(crate) fn is_string(found: &Instruction) -> bool {
    let known = [Mnemonic::Stosb, Mnemonic::Stosw, Mnemonic::Stosd, Mnemonic::Stosq];
    known.contains(&found.mnemonic())
}

/// What should become of the memory operand; `None` for instructions that are not supported.
fn operation(found: &Instruction, registers: &Registers) -> Option<Operation> {
    let value = source(found, registers);
    let carry = registers.rflags & 1;
    let bits = u64::try_from(8 * found.memory_size().size()).unwrap();
    let accumulator = registers.general[0] & (u64::MAX >> (64 - bits));
    let known = [
        (Mnemonic::Mov, Operation::Set(value)),
        (Mnemonic::Movnti, Operation::Set(value)),
        (Mnemonic::Xchg, Operation::Set(value)),
        (Mnemonic::Cmpxchg, Operation::CompareExchange { expected: accumulator, new: value }),
        (Mnemonic::Add, Operation::Add { value, carry: 0 }),
        (Mnemonic::Xadd, Operation::Add { value, carry: 0 }),
        (Mnemonic::Adc, Operation::Add { value, carry }),
        (Mnemonic::Sub, Operation::Subtract { value, borrow: 0 }),
        (Mnemonic::Sbb, Operation::Subtract { value, borrow: carry }),
        (Mnemonic::Or, Operation::Or(value)),
        (Mnemonic::And, Operation::And(value)),
        (Mnemonic::Xor, Operation::Xor(value)),
        (Mnemonic::Inc, Operation::Increment),
        (Mnemonic::Dec, Operation::Decrement),
        (Mnemonic::Not, Operation::Not),
        (Mnemonic::Neg, Operation::Negate),
        (Mnemonic::Bts, Operation::SetBit(value % bits)),
        (Mnemonic::Btr, Operation::ResetBit(value % bits)),
        (Mnemonic::Btc, Operation::ComplementBit(value % bits)),
    ];
    if is_string(found) {
        return Some(Operation::Set(value));
    }
    known.into_iter().find(|(name, _)| *name == found.mnemonic()).map(|(_, operation)| operation)
}

/// Whether the first operand is memory that is written by a supported instruction.
pub(crate) fn is_supported(found: &Instruction, registers: &Registers) -> bool {
    let kinds = [OpKind::Memory, OpKind::MemoryESRDI, OpKind::MemoryESEDI];
    let vector = found.op_count() > 1
        && found.op1_kind() == OpKind::Register
        && !found.op1_register().is_gpr();
    kinds.contains(&found.op0_kind())
        && [1, 2, 4, 8].contains(&found.memory_size().size())
        && !vector
        && found.op_count() <= 2
        && operation(found, registers).is_some()
}

/// Checks that `store`, decoded from `bytes`, is what the other decoder says.
pub(crate) fn compare(store: &Store, bytes: &[u8], mode: Mode, registers: &Registers) {
    let found = &other(bytes, mode).unwrap();
    let name = found.code();
    assert!(is_supported(found, registers), "{name:?} does not store");
    assert_eq!(store.length, u64::try_from(found.len()).unwrap(), "{name:?}");
    assert_eq!(store.size.bytes(), u64::try_from(found.memory_size().size()).unwrap(), "{name:?}");
    assert_eq!(Some(store.operation), operation(found, registers), "{name:?}");
    assert_eq!(store.series.is_some(), is_string(found), "{name:?}");
    if let Some(series) = store.series {
        let mask = if mode == Mode::Bits64 { u64::MAX } else { 0xffff_ffff };
        let left = if found.has_rep_prefix() { registers.general[1] & mask } else { 1 };
        assert_eq!((series.count, series.offset), (left, registers.general[7] & mask));
        assert_eq!(registers.rflags & 1 << 10, 0, "{name:?}");
    } else {
        assert!(!found.has_rep_prefix(), "{name:?}");
        compare_registers(store, found, registers);
    }
}

/// Checks which registers change, whatever memory holds.
fn compare_registers(store: &Store, found: &Instruction, registers: &Registers) {
    let old = 0x0123_4567_89ab_cdef;
    let mut after = *registers;
    assert_eq!(store.finish(old, 1, &mut after), store.length);
    if [Mnemonic::Xchg, Mnemonic::Xadd].contains(&found.mnemonic()) {
        assert_eq!(value(&after, found.op1_register()), old & store.size.mask());
    } else if found.mnemonic() != Mnemonic::Cmpxchg {
        assert_eq!(after.general, registers.general, "{:?}", found.code());
    }
}
