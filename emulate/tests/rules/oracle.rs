//! Decoding, against another decoder: `iced-x86`.

use emulate::decode::{Mode, decode};
use emulate::store::{Operation, Registers, Store};
use iced_x86::{Code, Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};
use proptest::prelude::*;

use crate::instructions::{registers, tidy, wild};

/// What `iced-x86` takes `bytes` for; `None` for what is no instruction.
fn other(bytes: &[u8], mode: Mode) -> Option<Instruction> {
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
        _ if found.op1_kind() == OpKind::Register => value(registers, found.op1_register()),
        _ => found.try_immediate(1).unwrap_or(0) & mask,
    }
}

/// Whether it is stos; other string instructions do not only store.
fn is_string(found: &Instruction) -> bool {
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
fn is_supported(found: &Instruction, registers: &Registers) -> bool {
    let kinds = [OpKind::Memory, OpKind::MemoryESRDI, OpKind::MemoryESEDI];
    let segment = found.op_count() > 1 && found.op1_register().is_segment_register();
    kinds.contains(&found.op0_kind())
        && [1, 2, 4, 8].contains(&found.memory_size().size())
        && !segment
        && found.op_count() <= 2
        && operation(found, registers).is_some()
}

/// Checks that `store` is what the other decoder says.
fn compare(store: &Store, found: &Instruction, mode: Mode, registers: &Registers) {
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

fn mode() -> impl Strategy<Value = Mode> {
    prop_oneof![2 => Just(Mode::Bits64), 1 => Just(Mode::Bits32)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_500))]

    #[test]
    fn what_is_decoded_is_what_another_decoder_says(
        bytes in wild(), mode in mode(), registers in registers(),
    ) {
        if let Some(store) = decode(&bytes, mode, &registers) {
            let found = other(&bytes, mode).unwrap_or_else(|| panic!("{bytes:02x?} is invalid"));
            compare(&store, &found, mode, &registers);
        }
    }

    #[test]
    fn every_store_with_the_usual_prefixes_is_decoded(
        bytes in tidy(), mode in mode(), registers in registers(),
    ) {
        let Some(found) = other(&bytes, mode).filter(|found| is_supported(found, &registers)) else {
            prop_assert_eq!(decode(&bytes, mode, &registers), None);
            return Ok(());
        };
        let downwards = is_string(&found) && registers.rflags & 1 << 10 != 0;
        let old_alias = bytes.contains(&0x82);
        let prefixed = found.has_rep_prefix() || found.has_repne_prefix();
        if !downwards && !old_alias && !prefixed {
            let store = decode(&bytes, mode, &registers);
            prop_assert!(store.is_some(), "{:?} is not decoded", found.code());
            compare(&store.unwrap(), &found, mode, &registers);
        }
    }

    #[test]
    fn bytes_behind_the_instruction_do_not_matter_and_missing_ones_do(
        bytes in tidy(), mode in mode(), registers in registers(),
    ) {
        if let Some(store) = decode(&bytes, mode, &registers) {
            let length = usize::try_from(store.length).unwrap();
            prop_assert_eq!(decode(&bytes[..length], mode, &registers), Some(store));
            for cut in 0..length {
                prop_assert_eq!(decode(&bytes[..cut], mode, &registers), None);
            }
        }
    }
}

#[test]
fn an_instruction_of_more_than_15_bytes_is_none() {
    let movl = [0xc7, 0x04, 0x25, 0, 0, 0, 0, 0, 0, 0, 0];
    let long = |prefixes: usize| [vec![0x3e; prefixes], movl.to_vec()].concat();
    let decoded = |bytes: &[u8]| decode(bytes, Mode::Bits64, &Registers::default());
    assert_eq!(decoded(&long(4)).unwrap().length, 15);
    assert_eq!(decoded(&long(5)), None);
    assert_eq!(other(&long(5), Mode::Bits64).map(|found| found.code()), None::<Code>);
}
