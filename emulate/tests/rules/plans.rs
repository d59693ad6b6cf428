//! What instructions do with devices, and with memory beside them.

use emulate::context::{Access, Context};
use emulate::decode::Mode;
use emulate::instruction::{Action, instruction};
use emulate::operand::{Base, Segments};
use emulate::plan::{Piece, Plan, Step, Trouble};
use emulate::walk::{AddressSpace, Error, Memory};
use proptest::prelude::*;
use proptest::sample::select;

use crate::devices::{Bases, PORT, World, outcome, serve};
use crate::fake::Fake;
use crate::other::Registers;
use crate::walk::four_levels;

const FLAT: Bases = Bases([0; 6], 0xffff_ffff);
/// Where devices begin.
const DEVICES: u64 = 0x10_0000;
const RAX: usize = 0;
const RCX: usize = 1;
const RBX: usize = 3;
const RSI: usize = 6;
const RDI: usize = 7;

/// Linear pages from 0 on lead to the pages of these numbers, with entries that have these bits. Of
/// memory there are pages 5 to 7; pages 1 to 4 are the tables.
fn pages(map: &[(u64, u64)]) -> (Context, Fake) {
    let (context, memory) = four_levels(0);
    for (index, (page, bits)) in (0..).zip(map) {
        memory.set(0x4000 + 8 * index, page << 12 | bits);
    }
    (context, memory)
}

fn plan(
    bytes: &[u8],
    (context, memory): (&Context, &impl Memory),
    registers: &Registers,
) -> Result<Plan, Trouble> {
    let found = instruction(bytes, Mode::Bits64, 0).unwrap();
    let space = AddressSpace { context, memory };
    Plan::new(&found, &space, registers, &FLAT, |physical| physical >= DEVICES)
}

fn registers(values: &[(usize, u64)]) -> Registers {
    let mut registers = Registers { general: [0; 16], rflags: 2 };
    for (number, value) in values {
        registers.general[*number] = *value;
    }
    registers
}

fn load(physical: u64, bytes: u8) -> Step {
    Step::Load(Piece { physical, bytes })
}

fn store(physical: u64, bytes: u8, value: u64) -> Step {
    Step::Store(Piece { physical, bytes }, value)
}

const LOAD: [u8; 3] = [0x48, 0x8b, 0x03]; // mov (%rbx),%rax
const STORE: [u8; 3] = [0x48, 0x89, 0x03]; // mov %rax,(%rbx)
const ADD: [u8; 3] = [0x48, 0x01, 0x03]; // add %rax,(%rbx)
const MOVSQ: [u8; 2] = [0x48, 0xa5];
const INSD: [u8; 1] = [0x6d];
const OUTSD: [u8; 1] = [0x6f];

#[test]
fn a_load_is_one_piece_and_ends_in_the_register() {
    let (context, memory) = pages(&[(0x100, 3)]);
    let mut registers = registers(&[(RBX, 0x238), (RCX, u64::MAX)]);
    let mut plan = plan(&[0x8b, 0x4b, 4], (&context, &memory), &registers).unwrap();
    assert!(plan.is_single() && !plan.is_begun());
    assert_eq!(plan.next(None, &registers), load(0x10_023c, 4));
    assert_eq!(plan.next(None, &registers), load(0x10_023c, 4));
    assert!(!plan.is_begun());
    assert_eq!(plan.next(Some(0x1_8765_4321), &registers), Step::Finish);
    assert!(plan.is_begun() && plan.is_single());
    assert_eq!(plan.finish(&memory, &mut registers), Ok(3));
    assert_eq!(registers.general[RCX], 0x8765_4321);
}

#[test]
fn of_a_store_only_the_operand_is_shown() {
    let (context, memory) = pages(&[(0x100, 3)]);
    let mut registers = registers(&[(RBX, 0x234), (RCX, 0x1_8765_4321)]);
    let mut plan = plan(&[0x66, 0x89, 0x0b], (&context, &memory), &registers).unwrap();
    assert_eq!(plan.next(None, &registers), store(0x10_0234, 2, 0x4321));
    assert_eq!(plan.next(Some(u64::MAX), &registers), Step::Finish);
    assert_eq!(plan.finish(&memory, &mut registers), Ok(3));
    assert_eq!(registers.general[RCX], 0x1_8765_4321);
}

#[test]
fn what_touches_no_device_is_no_plan() {
    let (context, memory) = pages(&[(5, 3)]);
    for bytes in [&LOAD[..], &STORE, &ADD, &MOVSQ] {
        let plan = plan(bytes, (&context, &memory), &registers(&[]));
        assert_eq!(plan, Err(Trouble::Ordinary));
    }
}

#[test]
fn a_repetition_that_is_over_is_no_plan() {
    let (context, memory) = pages(&[(0x100, 3)]);
    let counted = |count| plan(&[0xf3, 0xab], (&context, &memory), &registers(&[(RCX, count)]));
    assert_eq!(counted(0), Err(Trouble::Nothing));
    assert!(counted(1).is_ok());
}

#[test]
fn all_is_loaded_before_anything_is_stored() {
    let (context, memory) = pages(&[(0x100, 3), (0x200, 3)]);
    let mut registers = registers(&[(RBX, 0xffb), (RAX, 1)]);
    let mut plan = plan(&ADD, (&context, &memory), &registers).unwrap();
    assert!(!plan.is_single());
    let mut answer = None;
    let mut steps = Vec::new();
    loop {
        let step = plan.next(answer, &registers);
        if step == Step::Finish {
            break;
        }
        steps.push(step);
        answer = Some(0xffff_ffff);
    }
    let expected = [
        load(0x10_0ffb, 4),
        load(0x10_0fff, 1),
        load(0x20_0000, 2),
        load(0x20_0002, 1),
        store(0x10_0ffb, 4, 0),
        store(0x10_0fff, 1, 0),
        store(0x20_0000, 2, 0),
        store(0x20_0002, 1, 0),
    ];
    assert_eq!(steps, expected);
    assert_eq!(plan.finish(&memory, &mut registers), Ok(3));
    // Carry, parity, adjust, zero.
    assert_eq!(registers.rflags, 2 | 0x55);
}

#[test]
fn a_page_fault_comes_before_the_first_piece() {
    // Not present; present, but not for writes.
    for (bits, code) in [(0, 0), (1, 1_u32)] {
        let (mut context, memory) = pages(&[(0x100, 3), (5, bits)]);
        context.cr0 |= 1 << 16;
        let fault =
            |linear, write| Err(Trouble::Memory(Error::Fault { linear, code: code | write }));
        let run = |bytes: &[u8], values: &[(usize, u64)]| {
            plan(bytes, (&context, &memory), &registers(values)).map(|_| ())
        };
        let crossing = [(RBX, 0xffc)];
        if code == 0 {
            assert_eq!(run(&LOAD, &crossing), fault(0x1000, 0));
            assert_eq!(run(&MOVSQ, &[(RSI, 0x1008), (RDI, 8)]), fault(0x1008, 0));
            assert_eq!(run(&OUTSD, &[(RSI, 0x1008)]), fault(0x1008, 0));
        }
        assert_eq!(run(&STORE, &crossing), fault(0x1000, 2));
        assert_eq!(run(&ADD, &crossing), fault(0x1000, 2));
        assert_eq!(run(&MOVSQ, &[(RSI, 8), (RDI, 0x1008)]), fault(0x1008, 2));
        assert_eq!(run(&INSD, &[(RDI, 0x1008)]), fault(0x1008, 2));
    }
}

#[test]
fn memory_that_cannot_be_reached_is_found_before_the_first_piece() {
    let (context, mut memory) = pages(&[(0x100, 3), (8, 3), (5, 3)]);
    memory.read_only.push(0x5000);
    let run = |bytes: &[u8], values: &[(usize, u64)]| {
        plan(bytes, (&context, &memory), &registers(values)).map(|_| ())
    };
    let lacks = |address| Err(Trouble::Memory(Error::Unreachable(address)));
    // There is no page 8, and page 5 cannot be written.
    assert_eq!(run(&MOVSQ, &[(RSI, 0x1008), (RDI, 8)]), lacks(0x8008));
    assert_eq!(run(&MOVSQ, &[(RSI, 8), (RDI, 0x2008)]), lacks(0x5008));
    assert_eq!(run(&MOVSQ, &[(RSI, 0x2008), (RDI, 8)]), Ok(()));
    assert_eq!(run(&STORE, &[(RBX, 0xfff)]), lacks(0x8000));
    assert_eq!(run(&INSD, &[(RDI, 0x2008)]), lacks(0x5008));
    // Reading is not enough for what is written later.
    assert_eq!(run(&ADD, &[(RBX, 0x2ffc)]), lacks(0x5ff8));
}

#[test]
fn memory_is_written_at_the_end_and_again_if_it_was_gone() {
    let (context, mut memory) = pages(&[(5, 3), (0x100, 3)]);
    let mut registers = registers(&[(RSI, 0x1008), (RDI, 0x10), (RCX, 5)]);
    let before = registers;
    let mut plan = plan(&[0xf3, 0x48, 0xa5], (&context, &memory), &registers).unwrap();
    assert_eq!(plan.next(None, &registers), load(0x10_0008, 8));
    assert_eq!(plan.next(Some(0x1234), &registers), Step::Finish);
    assert_eq!(memory.get(0x5010), 0);

    memory.read_only.push(0x5000);
    assert_eq!(plan.finish(&memory, &mut registers), Err(Error::Unreachable(0x5010)));
    assert_eq!((registers.general, registers.rflags), (before.general, before.rflags));
    // The page that was translated counts, wherever the tables lead meanwhile.
    memory.set(0x4000, 0);
    memory.read_only.clear();
    assert_eq!(plan.finish(&memory, &mut registers), Ok(0));
    assert_eq!(memory.get(0x5010), 0x1234);
    let after = [RSI, RDI, RCX].map(|number| registers.general[number]);
    assert_eq!(after, [0x1010, 0x18, 4]);
}

#[test]
fn memory_is_read_once_and_before_the_first_piece() {
    let (context, memory) = pages(&[(5, 3), (0x100, 3)]);
    memory.set(0x5010, 0x1122_3344);
    let registers = registers(&[(RSI, 0x10), (RDI, 0x1008)]);
    let mut plan = plan(&[0xa5], (&context, &memory), &registers).unwrap();
    memory.set(0x5010, 0x5566_7788);
    let reads = memory.reads.get();
    assert_eq!(plan.next(None, &registers), store(0x10_0008, 4, 0x1122_3344));
    assert_eq!(plan.next(Some(0), &registers), Step::Finish);
    assert_eq!(memory.reads.get(), reads);
}

#[test]
fn accessed_and_dirty_are_set_for_devices_too() {
    for (bytes, flags) in [(LOAD, 0x20), (STORE, 0x60), (ADD, 0x60)] {
        let (context, memory) = pages(&[(0x100, 3)]);
        assert!(plan(&bytes, (&context, &memory), &registers(&[])).is_ok());
        assert_eq!(memory.get(0x4000) & 0x60, flags);
    }
}

#[test]
fn rights_of_a_devices_page_count() {
    const SMAP: u64 = 1 << 21;
    const PKE: u64 = 1 << 22;
    let run = |bytes: &[u8], bits: u64, change: &dyn Fn(&mut Context)| {
        let (mut context, memory) = pages(&[(0x100, bits)]);
        for table in [0x1000, 0x2000, 0x3000] {
            memory.set(table, memory.get(table) | 7);
        }
        context.cr0 |= 1 << 16;
        change(&mut context);
        plan(bytes, (&context, &memory), &registers(&[])).map(|_| ())
    };
    let fault = |code| Err(Trouble::Memory(Error::Fault { linear: 0, code }));
    let user = |context: &mut Context| context.cpl = 3;
    assert_eq!(run(&LOAD, 3, &user), fault(5));
    assert_eq!(run(&LOAD, 7, &user), Ok(()));
    assert_eq!(run(&STORE, 5, &user), fault(7));
    assert_eq!(run(&STORE, 1, &|_| ()), fault(3));
    assert_eq!(run(&STORE, 1, &|context| context.cr0 &= !(1 << 16)), Ok(()));
    assert_eq!(run(&LOAD, 7, &|context| context.cr4 |= SMAP), fault(1));
    let allowed =
        |context: &mut Context| (context.cr4, context.rflags) = (context.cr4 | SMAP, 1 << 18);
    assert_eq!(run(&LOAD, 7, &allowed), Ok(()));
    // No-execute is no concern of data.
    assert_eq!(run(&LOAD, 1 << 63 | 3, &|context| context.efer |= 1 << 11), Ok(()));
    let key = |context: &mut Context| (context.cr4, context.pkru) = (context.cr4 | PKE, 0b10 << 6);
    assert_eq!(run(&LOAD, 3 << 59 | 7, &key), Ok(()));
    assert_eq!(run(&STORE, 3 << 59 | 7, &key), fault(0x23));
}

#[test]
fn tables_in_a_device_are_out_of_reach() {
    let (context, memory) = pages(&[]);
    memory.set(0x3000, 0x10_0003);
    let plan = plan(&LOAD, (&context, &memory), &registers(&[]));
    assert_eq!(plan, Err(Trouble::Memory(Error::Unreachable(0x10_0000))));
}

#[test]
fn an_address_that_is_not_canonical_is_not_accessed() {
    const LA57: u64 = 1 << 12;
    let (context, memory) = pages(&[(0x100, 3)]);
    let five = Context { cr4: context.cr4 | LA57, ..context };
    let run = |context: &Context, bytes: &[u8], values: &[(usize, u64)]| {
        plan(bytes, (context, &memory), &registers(values)).unwrap_err()
    };
    let data = Trouble::Segment(Base::Ds);
    assert_eq!(run(&context, &LOAD, &[(RBX, 1 << 47)]), data);
    assert_eq!(run(&context, &LOAD, &[(RBX, (1 << 47) - 4)]), data);
    assert_ne!(run(&context, &LOAD, &[(RBX, (1 << 47) - 8)]), data);
    assert_ne!(run(&context, &LOAD, &[(RBX, u64::MAX << 47)]), data);
    assert_eq!(run(&context, &LOAD, &[(RBX, (u64::MAX << 47) - 4)]), data);
    assert_ne!(run(&five, &LOAD, &[(RBX, 1 << 47)]), data);
    assert_eq!(run(&five, &LOAD, &[(RBX, 1 << 56)]), data);
    // By the stack pointer; and a string's target, though the source is a device's.
    let stack = [0x48, 0x8b, 0x04, 0x24];
    assert_eq!(run(&context, &stack, &[(4, 1 << 47)]), Trouble::Segment(Base::Ss));
    assert_eq!(run(&context, &MOVSQ, &[(RDI, 1 << 47)]), Trouble::Segment(Base::Es));
}

/// Segments of which some begin elsewhere; ES is a device's, and SS permits no writes.
struct Odd;

impl Segments for Odd {
    fn base(&self, segment: Base) -> u64 {
        if segment == Base::Es { DEVICES } else { 0x10 }
    }
    fn permits(&self, segment: Base, offset: u64, bytes: u64, access: Access) -> bool {
        offset + bytes <= 0x800 && (segment, access) != (Base::Ss, Access::Write)
    }
}

#[test]
fn outside_64_bit_mode_segments_are_asked() {
    let context = Context { cr0: 1, physical_bits: 46, ..Context::default() };
    let memory = Fake::pages(1);
    let space = AddressSpace { context: &context, memory: &memory };
    let run = |bytes: &[u8], mode, values: &[(usize, u64)]| {
        let found = instruction(bytes, mode, 0).unwrap();
        let plan = Plan::new(&found, &space, &registers(values), &Odd, |at| at >= DEVICES);
        plan.map(|mut plan| plan.next(None, &registers(values)))
    };
    let [short, long] = [Mode::Bits16, Mode::Bits32];
    // mov %es:(%bx),%ax, and the same of (%bp), which is in SS.
    assert_eq!(run(&[0x26, 0x8b, 0x07], short, &[(RBX, 0x7fe)]), Ok(load(0x10_07fe, 2)));
    let denied = |base| Err(Trouble::Segment(base));
    assert_eq!(run(&[0x26, 0x8b, 0x07], short, &[(RBX, 0x7ff)]), denied(Base::Es));
    assert_eq!(run(&[0x89, 0x46, 0], short, &[]), denied(Base::Ss));
    assert_eq!(run(&[0x8b, 0x46, 0], short, &[]), Err(Trouble::Ordinary));
    // The offset has 16 bits, the linear address 32.
    let low = [(RBX, 0x1_0004)];
    assert_eq!(run(&[0x26, 0x8b, 0x07], short, &low), Ok(load(0x10_0004, 2)));
    assert_eq!(run(&[0x26, 0x8b, 0x03], long, &low), denied(Base::Es));
    // movs: the target is the device's, the source lacks a byte.
    assert_eq!(run(&[0xa5], long, &[(RSI, 0x7fd)]), denied(Base::Ds));
    assert_eq!(run(&[0x36, 0xa5], long, &[(RSI, 0x7fd)]), denied(Base::Ss));
    assert_eq!(run(&[0x36, 0xa5], long, &[(RSI, 0x7fc)]), Ok(store(DEVICES, 4, 0)));
}

#[test]
fn a_linear_address_of_code_other_than_64_bit_wraps() {
    let memory = World::default();
    let found = instruction(&[0x8b, 0x03], Mode::Bits32, 0).unwrap();
    let registers = registers(&[(RBX, 0xe)]);
    let run = |efer, base| {
        let context = Context { cr0: 1, efer, physical_bits: 46, ..Context::default() };
        let space = AddressSpace { context: &context, memory: &memory };
        let bases = Bases([base; 6], u64::MAX);
        let mut plan = Plan::new(&found, &space, &registers, &bases, |_| true).unwrap();
        serve(&mut plan, &registers, &memory)
    };
    assert_eq!(run(0, 0xffff_fff4), [load(2, 4)]);
    assert_eq!(run(0, 0xffff_fff0), [load(0xffff_fffe, 2), load(0, 2)]);
    // Compatibility mode.
    assert_eq!(run(1 << 10, 0xffff_fff4), [load(2, 4)]);
}

#[test]
fn an_operand_that_is_read_and_written_is_translated_once() {
    let (context, memory) = pages(&[(0x100, 3)]);
    assert!(plan(&ADD, (&context, &memory), &registers(&[])).is_ok());
    // Four levels of tables.
    assert_eq!(memory.reads.get(), 4);
}

#[test]
fn outs_reads_memory() {
    let (context, memory) = pages(&[(5, 3), (6, 3)]);
    memory.set(0x5ff8, 0x1122_3344_5566_7788);
    memory.set(0x6000, 0x99aa);
    let mut registers = registers(&[(RSI, 0xffe), (RCX, 2)]);
    let mut plan = plan(&[0xf3, 0x6f], (&context, &memory), &registers).unwrap();
    assert!(plan.is_single());
    assert_eq!(plan.next(None, &registers), Step::Out(4, 0x99aa_1122));
    assert_eq!(plan.next(Some(0), &registers), Step::Finish);
    assert_eq!(plan.finish(&memory, &mut registers), Ok(0));
    assert_eq!([RSI, RCX].map(|number| registers.general[number]), [0x1002, 1]);
}

#[test]
fn ins_writes_memory() {
    let (context, memory) = pages(&[(5, 3), (6, 3)]);
    memory.set(0x5ff8, 0x1122_3344_5566_7788);
    let mut registers = registers(&[(RDI, 0xffe), (RCX, 1), (RAX, 5)]);
    let mut plan = plan(&[0xf3, 0x6d], (&context, &memory), &registers).unwrap();
    assert!(plan.is_single());
    assert_eq!(plan.next(None, &registers), Step::In(4));
    assert_eq!(plan.next(Some(PORT), &registers), Step::Finish);
    assert_eq!(plan.finish(&memory, &mut registers), Ok(2));
    assert_eq!((memory.get(0x5ff8), memory.get(0x6000)), (0x8788_3344_5566_7788, 0x8586));
    assert_eq!([RDI, RCX, RAX].map(|number| registers.general[number]), [0x1002, 0, 5]);
}

#[test]
fn a_port_has_4_bytes_at_most() {
    for bytes in [[0x48, 0x6d], [0x48, 0x6f]] {
        let found = instruction(&bytes, Mode::Bits64, 0).unwrap();
        assert_eq!((found.store.size.bytes(), found.store.length), (4, 2));
    }
}

#[test]
fn ports_and_devices_in_one_instruction_are_not_supported() {
    let (context, memory) = pages(&[(5, 3), (0x100, 3)]);
    let run = |bytes: &[u8], at| {
        plan(bytes, (&context, &memory), &registers(&[(RSI, at), (RDI, at)])).map(|_| ())
    };
    for bytes in [INSD, OUTSD] {
        assert_eq!(run(&bytes, 0x10), Ok(()));
        assert_eq!(run(&bytes, 0xffe), Err(Trouble::Unsupported));
        assert_eq!(run(&bytes, 0x1010), Err(Trouble::Unsupported));
    }
}

#[test]
fn what_compilers_never_use_on_devices_is_not_known() {
    let rows: [(&str, &[u8]); 14] = [
        ("push (%rdi)", &[0xff, 0x37]),
        ("call *(%rdi)", &[0xff, 0x17]),
        ("cmpsb", &[0xa6]),
        ("scasb", &[0xae]),
        ("repne movsb", &[0xf2, 0xa4]),
        ("movups (%rdi),%xmm0", &[0x0f, 0x10, 0x07]),
        ("cmpxchg16b (%rdi)", &[0x48, 0x0f, 0xc7, 0x0f]),
        ("mov (%rdi),%ds", &[0x8e, 0x1f]),
        ("bt %rax,(%rdi)", &[0x48, 0x0f, 0xa3, 0x07]),
        ("bts %rax,(%rdi)", &[0x48, 0x0f, 0xab, 0x07]),
        ("xlat", &[0xd7]),
        ("lock mov (%rdi),%rax", &[0xf0, 0x48, 0x8b, 0x07]),
        ("lock cmp %rax,(%rdi)", &[0xf0, 0x48, 0x39, 0x07]),
        ("rep mov (%rdi),%rax", &[0xf3, 0x48, 0x8b, 0x07]),
    ];
    for (name, bytes) in rows {
        assert_eq!(instruction(bytes, Mode::Bits64, 0), None, "{name}");
    }
    assert_eq!(instruction(&[0x63, 0x07], Mode::Bits32, 0), None, "arpl");
    let add = instruction(&[0xf0, 0x48, 0x01, 0x07], Mode::Bits64, 0);
    assert_eq!(add.map(|add| add.action), Some(Action::Change), "lock add");
}

#[test]
fn what_is_loaded_is_cut_and_extended() {
    const ODD: u64 = 0x8192_a3b4_c5d6_e7f8;
    let rows: [(&str, &[u8], u64); 10] = [
        ("mov (%rbx),%al", &[0x8a, 0x03], 0x1111_1111_1111_11f8),
        ("mov (%rbx),%ah", &[0x8a, 0x23], 0x1111_1111_1111_f811),
        ("mov (%rbx),%ax", &[0x66, 0x8b, 0x03], 0x1111_1111_1111_e7f8),
        ("mov (%rbx),%eax", &[0x8b, 0x03], 0xc5d6_e7f8),
        ("movzbl (%rbx),%eax", &[0x0f, 0xb6, 0x03], 0xf8),
        ("movzwq (%rbx),%rax", &[0x48, 0x0f, 0xb7, 0x03], 0xe7f8),
        ("movsbw (%rbx),%ax", &[0x66, 0x0f, 0xbe, 0x03], 0x1111_1111_1111_fff8),
        ("movswl (%rbx),%eax", &[0x0f, 0xbf, 0x03], 0xffff_e7f8),
        ("movslq (%rbx),%rax", &[0x48, 0x63, 0x03], 0xffff_ffff_c5d6_e7f8),
        ("lodsb", &[0xac], 0x1111_1111_1111_11f8),
    ];
    let (context, memory) = pages(&[(0x100, 3)]);
    for (name, bytes, expected) in rows {
        let mut registers = registers(&[(RAX, 0x1111_1111_1111_1111)]);
        let mut plan = plan(bytes, (&context, &memory), &registers).unwrap();
        assert_ne!(plan.next(None, &registers), Step::Finish);
        assert_eq!(plan.next(Some(ODD), &registers), Step::Finish);
        assert!(plan.finish(&memory, &mut registers).is_ok());
        assert_eq!(registers.general[RAX], expected, "{name}");
    }
}

#[test]
fn a_plan_is_small() {
    assert!(size_of::<Plan>() <= 200, "{}", size_of::<Plan>());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_500))]

    #[test]
    fn it_makes_no_difference_which_bytes_are_a_devices(
        bytes in crate::instructions::access(), registers in crate::instructions::registers(),
        mode in select(vec![Mode::Bits16, Mode::Bits32, Mode::Bits64]),
        near in (0..0x20_u64, 0..0x20_u64), devices in any::<[bool; 4]>(),
    ) {
        let mut registers = registers;
        // Operands lie about the ends of pages, mostly.
        registers.general = registers.general.map(|value| value & 0x3000 | 0xff0);
        registers.general[RSI] = 0xff0 + near.0;
        registers.general[RDI] = 0x2ff0 + near.1;
        let device = |at: u64| devices[usize::try_from(at / 4096 % 4).unwrap()];
        let all = outcome(&bytes, mode, (&registers, &FLAT), |_| true);
        let some = outcome(&bytes, mode, (&registers, &FLAT), device);
        if let (Some(some), Some(all)) = (some, all) {
            prop_assert_eq!(some, all);
        }
    }
}
