//! Execution, against the processor.

use emulate::decode::{Mode, decode};
use emulate::instruction::instruction;
use emulate::plan::Plan;
use emulate::store::{Operation, Store};
use emulate::walk::AddressSpace;
use processor::{CELL, State, execute};
use proptest::prelude::*;
use proptest::sample::select;

use crate::devices::{Bases, World, serve, unpaged};
use crate::instructions::{number, registers, tidy_prefixes};
use crate::other::Registers;

const OPERAND_SIZE: u8 = 0x66;
const REX_W: u8 = 8;
const RAX: usize = 0;
const RCX: usize = 1;
const RSI: usize = 6;
const RDI: usize = 7;

/// An opcode with a memory operand; ModRM.reg, where that selects the operation; whether an
/// immediate operand follows.
#[derive(Clone, Debug)]
struct Form {
    opcode: Vec<u8>,
    reg: Option<u8>,
    immediate: bool,
}

/// All forms that store, and only those.
fn forms() -> Vec<Form> {
    let form = |opcode: &[u8], reg, immediate| Form { opcode: opcode.to_vec(), reg, immediate };
    let mut forms = Vec::new();
    for operation in 0..7 {
        forms.extend([0, 1].map(|wide| form(&[8 * operation + wide], None, false)));
        forms.extend([0x80, 0x81, 0x83].map(|opcode| form(&[opcode], Some(operation), true)));
    }
    forms.extend([0x86, 0x87, 0x88, 0x89].map(|opcode| form(&[opcode], None, false)));
    for wide in [0, 1] {
        forms.push(form(&[0xc6 + wide], Some(0), true));
        forms.extend([2, 3].map(|reg| form(&[0xf6 + wide], Some(reg), false)));
        forms.extend([0, 1].map(|reg| form(&[0xfe + wide], Some(reg), false)));
        forms.extend([0xb0, 0xc0].map(|second| form(&[0x0f, second + wide], None, false)));
    }
    forms.extend([0xab, 0xb3, 0xbb, 0xc3].map(|second| form(&[0x0f, second], None, false)));
    forms.extend([5, 6, 7].map(|reg| form(&[0x0f, 0xba], Some(reg), true)));
    forms
}

/// All forms that load or only ask, and only those.
fn loads() -> Vec<Form> {
    let form = |opcode: &[u8], reg, immediate| Form { opcode: opcode.to_vec(), reg, immediate };
    let mut forms = Vec::new();
    for operation in 0..8 {
        forms.extend([2, 3].map(|wide| form(&[8 * operation + wide], None, false)));
    }
    forms.extend([0x38, 0x39, 0x84, 0x85, 0x8a, 0x8b, 0x63].map(|op| form(&[op], None, false)));
    forms.extend([0x80, 0x81, 0x83].map(|opcode| form(&[opcode], Some(7), true)));
    forms.extend([0xf6, 0xf7].map(|opcode| form(&[opcode], Some(0), true)));
    forms.extend([0xb6, 0xb7, 0xbe, 0xbf].map(|second| form(&[0x0f, second], None, false)));
    forms.push(form(&[0x0f, 0xba], Some(4), true));
    forms
}

/// Prefixes, but none that would change the address: FS, GS, REX.X.
fn prefixes() -> impl Strategy<Value = Vec<u8>> {
    let harmless = |byte: u8| match byte {
        0x64 | 0x65 => 0x3e,
        0x40..=0x4f => byte & !2,
        _ => byte,
    };
    tidy_prefixes().prop_map(move |bytes| bytes.into_iter().map(harmless).collect())
}

/// Instructions that access [`CELL`] by a displacement of 32 bits and no base register.
fn access(forms: Vec<Form>) -> impl Strategy<Value = (Form, Vec<u8>)> {
    let parts = (prefixes(), select(forms), 0..8_u8, any::<[u8; 4]>());
    parts.prop_map(|(prefixes, form, reg, immediate)| {
        let modrm = form.reg.unwrap_or(reg) << 3 | 4;
        let cell = u32::try_from(CELL).unwrap().to_le_bytes();
        let immediate = if form.immediate { &immediate[..] } else { &[] };
        let bytes = [&prefixes[..], &form.opcode, &[modrm, 0x25], &cell, immediate].concat();
        (form, bytes)
    })
}

/// Status flags that the processor leaves in any state (SDM vol. 2, the instructions' pages).
const fn undefined(operation: Operation) -> u64 {
    const PARITY_ADJUST_SIGN_OVERFLOW: u64 = 0x894;
    const ADJUST: u64 = 0x10;
    match operation {
        Operation::Or | Operation::And | Operation::Xor => ADJUST,
        Operation::SetBit | Operation::ResetBit | Operation::ComplementBit => {
            PARITY_ADJUST_SIGN_OVERFLOW
        }
        Operation::Set
        | Operation::CompareExchange
        | Operation::Add
        | Operation::AddWithCarry
        | Operation::Subtract
        | Operation::SubtractWithBorrow
        | Operation::Increment
        | Operation::Decrement
        | Operation::Not
        | Operation::Negate => 0,
    }
}

/// What `store` makes of `before` when all of it is done.
fn emulate(store: &Store, before: &State) -> State {
    let mut registers = Registers { general: before.general, rflags: before.rflags };
    let mut memory = before.memory;
    let mut shift = 0;
    loop {
        let outcome = store.apply(before.memory >> shift, &registers);
        memory = memory & !(store.size.mask() << shift) | outcome.new << shift;
        shift += 8 * store.size.bytes();
        match store.finish(outcome, &mut registers) {
            0 => {}
            length => {
                assert_eq!(length, store.length);
                return State { general: registers.general, rflags: registers.rflags, memory };
            }
        }
    }
}

/// Executes `bytes` in both ways, if they are decoded.
fn compare(bytes: &[u8], before: &State) -> Result<(), TestCaseError> {
    let Some(store) = decode(bytes, Mode::Bits64) else {
        return Ok(());
    };
    let length = usize::try_from(store.length).unwrap();
    let real = execute(&bytes[..length], before);
    let ours = emulate(&store, before);
    let defined = !undefined(store.operation);
    prop_assert_eq!(ours.memory, real.memory, "memory of {:?}", store);
    prop_assert_eq!(ours.general, real.general, "registers of {:?}", store);
    prop_assert_eq!(ours.rflags & defined, real.rflags & defined, "flags of {:?}", store);
    Ok(())
}

/// Does to `before` what `bytes` do, as if [`CELL`] were a device's; all rounds of a repetition.
fn serve_device(bytes: &[u8], before: &State) -> Option<State> {
    let found = instruction(bytes, Mode::Bits64, 0)?;
    let mut registers = Registers { general: before.general, rflags: before.rflags };
    let world = World::default();
    world.put(CELL, 8, before.memory);
    let context = unpaged(Mode::Bits64);
    let space = AddressSpace { context: &context, memory: &world };
    loop {
        let flat = Bases([0; 6], u64::MAX);
        let mut plan = Plan::new(&found, &space, &registers, &flat, |_| true).unwrap();
        let _steps = serve(&mut plan, &registers, &world);
        match plan.finish(&world, &mut registers).unwrap() {
            0 => {}
            length => {
                assert_eq!(length, found.store.length);
                let Registers { general, rflags } = registers;
                return Some(State { general, rflags, memory: world.number(CELL, 8) });
            }
        }
    }
}

/// Executes `bytes` in both ways, if they are known.
fn compare_device(bytes: &[u8], before: &State) -> Result<(), TestCaseError> {
    let Some(ours) = serve_device(bytes, before) else {
        return Ok(());
    };
    let found = instruction(bytes, Mode::Bits64, 0).unwrap();
    let real = execute(&bytes[..usize::try_from(found.store.length).unwrap()], before);
    let defined = !undefined(found.store.operation);
    prop_assert_eq!(ours.memory, real.memory, "memory of {:?}", found);
    prop_assert_eq!(ours.general, real.general, "registers of {:?}", found);
    prop_assert_eq!(ours.rflags & defined, real.rflags & defined, "flags of {:?}", found);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_500))]

    #[test]
    fn memory_registers_and_flags_are_the_processors(
        (form, bytes) in access(forms()), registers in registers(), memory in number(),
        equal in any::<bool>(),
    ) {
        let memory = if equal { registers.general[RAX] } else { memory };
        let rflags = registers.rflags & 0x8d5 | 2;
        let mut before = State { general: registers.general, rflags, memory };
        if matches!(form.opcode[..], [0x0f, 0xab | 0xb3 | 0xbb]) {
            // The offset must not lead to another word.
            let wide = bytes.iter().any(|byte| byte & 0xf0 == 0x40 && byte & REX_W != 0);
            let bits = if wide { 64 } else if bytes.contains(&OPERAND_SIZE) { 16 } else { 32 };
            before.general.iter_mut().for_each(|register| *register %= bits);
        }
        compare(&bytes, &before)?;
    }

    #[test]
    fn a_device_gets_and_gives_what_memory_does(
        (_, bytes) in prop_oneof![access(forms()), access(loads())],
        registers in registers(), memory in number(), equal in any::<bool>(),
    ) {
        let memory = if equal { registers.general[RAX] } else { memory };
        let rflags = registers.rflags & 0x8d5 | 2;
        compare_device(&bytes, &State { general: registers.general, rflags, memory })?;
    }

    #[test]
    fn a_device_and_the_accumulator_are_the_processors(
        prefixes in prefixes(), opcode in 0xa0..=0xa3_u8, registers in registers(),
        memory in number(),
    ) {
        let before = State { general: registers.general, rflags: 2, memory };
        let bytes = [&prefixes[..], &[opcode], &CELL.to_le_bytes()].concat();
        compare_device(&bytes, &before)?;
    }

    #[test]
    fn strings_of_a_device_are_the_processors(
        prefixes in prefixes(), repeat in any::<bool>(),
        opcode in select(vec![0xa4, 0xa5, 0xaa, 0xab, 0xac, 0xad_u8]),
        (source, target) in (0..=8_u64, 0..=8_u64), elements in 1..=8_u64,
        registers in registers(), memory in number(),
    ) {
        let mut before = State { general: registers.general, rflags: 2, memory };
        let repeat = if repeat { &[0xf3][..] } else { &[] };
        let bytes = [repeat, &prefixes, &[opcode]].concat();
        if let Some(found) = instruction(&bytes, Mode::Bits64, 0) {
            let size = found.store.size.bytes();
            let (source, target) = (source.min(8 - size), target.min(8 - size));
            before.general[RSI] = CELL + source;
            before.general[RDI] = CELL + target;
            before.general[RCX] = elements.min((8 - source.max(target)) / size);
            compare_device(&bytes, &before)?;
        }
    }

    #[test]
    fn stores_of_the_accumulator_are_the_processors(
        prefixes in prefixes(), opcode in 0xa2..=0xa3_u8, registers in registers(),
        memory in number(),
    ) {
        let before = State { general: registers.general, rflags: 2, memory };
        let bytes = [&prefixes[..], &[opcode], &CELL.to_le_bytes()].concat();
        compare(&bytes, &before)?;
    }

    #[test]
    fn strings_are_the_processors(
        prefixes in prefixes(), repeat in any::<bool>(), wide in 0..2_u8, elements in 1..=8_u64,
        registers in registers(), memory in number(),
    ) {
        let mut before = State { general: registers.general, rflags: 2, memory };
        before.general[RDI] = CELL;
        before.general[RCX] = elements;
        let repeat = if repeat { &[0xf3][..] } else { &[] };
        let bytes = [repeat, &prefixes, &[0xaa + wide]].concat();
        let size = decode(&bytes, Mode::Bits64).map_or(1, |store| store.size.bytes());
        before.general[RCX] = elements.min(8 / size);
        compare(&bytes, &before)?;
    }
}

#[test]
fn every_form_is_decoded() {
    for form in forms() {
        let modrm = form.reg.unwrap_or(0) << 3 | 7;
        let bytes = [&form.opcode[..], &[modrm, 0, 0, 0, 0]].concat();
        let store = decode(&bytes, Mode::Bits64);
        assert!(store.is_some(), "{form:?}");
    }
    for form in loads() {
        let modrm = form.reg.unwrap_or(0) << 3 | 7;
        let bytes = [&form.opcode[..], &[modrm, 0, 0, 0, 0]].concat();
        assert!(instruction(&bytes, Mode::Bits64, 0).is_some(), "{form:?}");
        assert_eq!(decode(&bytes, Mode::Bits64), None, "{form:?}");
    }
}
