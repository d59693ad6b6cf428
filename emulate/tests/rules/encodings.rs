//! Encodings as assemblers and compilers make them for the stores of hypervisors.

use emulate::decode::{Mode, decode};
use emulate::store::{Operation, Store};

use crate::other::Registers;

/// RAX 0xa0a1a2a3a4a5a6a7, RCX 0xb0b1..., and so on to RDI.
fn registers() -> Registers {
    let mut general = [0; 16];
    for (number, register) in (0..).zip(&mut general) {
        let bytes: [u8; 8] = [0, 1, 2, 3, 4, 5, 6, 7].map(|byte| byte + 16 * ((10 + number) & 15));
        *register = u64::from_be_bytes(bytes);
    }
    Registers { general, rflags: 0x202 }
}

/// Name, bytes, size of the memory operand, operation, source operand: 0 if there is none.
pub(crate) type Row = (&'static str, &'static [u8], u64, Operation, u64);

const RAX: u64 = 0xa0a1_a2a3_a4a5_a6a7;
const RCX: u64 = 0xb0b1_b2b3_b4b5_b6b7;
const RDX: u64 = 0xc0c1_c2c3_c4c5_c6c7;
const RSI: u64 = 0x0001_0203_0405_0607;
const R8: u64 = 0x2021_2223_2425_2627;
const R9: u64 = 0x3031_3233_3435_3637;

pub(crate) const BITS64: &[Row] = &[
    ("mov %rax,(%rdi)", &[0x48, 0x89, 0x07], 8, Operation::Set, RAX),
    ("mov %rsi,0x8(%rdi)", &[0x48, 0x89, 0x77, 0x08], 8, Operation::Set, RSI),
    ("mov %rdx,(%rax,%rcx,8)", &[0x48, 0x89, 0x14, 0xc8], 8, Operation::Set, RDX),
    ("mov %r8,(%r12)", &[0x4d, 0x89, 0x04, 0x24], 8, Operation::Set, R8),
    ("mov %r9,0x0(%r13)", &[0x4d, 0x89, 0x4d, 0x00], 8, Operation::Set, R9),
    ("mov %rax,0x10(%rip)", &[0x48, 0x89, 0x05, 0x10, 0, 0, 0], 8, Operation::Set, RAX),
    ("mov %rax,0x1000(%rbx)", &[0x48, 0x89, 0x83, 0, 0x10, 0, 0], 8, Operation::Set, RAX),
    ("mov %rax,0x1000(,%rcx,8)", &[0x48, 0x89, 4, 0xcd, 0, 16, 0, 0], 8, Operation::Set, RAX),
    ("mov %rax,%gs:0x28", &[0x65, 0x48, 0x89, 4, 0x25, 0x28, 0, 0, 0], 8, Operation::Set, RAX),
    ("movabs %rax,0x1000", &[0x48, 0xa3, 0, 0x10, 0, 0, 0, 0, 0, 0], 8, Operation::Set, RAX),
    ("movq $0,(%rdi)", &[0x48, 0xc7, 0x07, 0, 0, 0, 0], 8, Operation::Set, 0),
    ("movq $-2,(%rdi)", &[0x48, 0xc7, 0x07, 0xfe, 0xff, 0xff, 0xff], 8, Operation::Set, !1),
    ("movl $-2,(%rdi)", &[0xc7, 0x07, 0xfe, 0xff, 0xff, 0xff], 4, Operation::Set, 0xffff_fffe),
    ("movw $0x1234,(%rdi)", &[0x66, 0xc7, 0x07, 0x34, 0x12], 2, Operation::Set, 0x1234),
    ("movb $7,(%rdi)", &[0xc6, 0x07, 7], 1, Operation::Set, 7),
    ("mov %ch,(%rdi)", &[0x88, 0x2f], 1, Operation::Set, 0xb6),
    ("mov %bpl,(%rdi)", &[0x40, 0x88, 0x2f], 1, Operation::Set, 0xf7),
    ("movnti %rax,(%rdi)", &[0x48, 0x0f, 0xc3, 0x07], 8, Operation::Set, RAX),
    ("movnti %eax,(%rdi)", &[0x0f, 0xc3, 0x07], 4, Operation::Set, RAX & 0xffff_ffff),
    ("xchg %rax,(%rdi)", &[0x48, 0x87, 0x07], 8, Operation::Set, RAX),
    ("lock xchg %rax,(%rdi)", &[0xf0, 0x48, 0x87, 0x07], 8, Operation::Set, RAX),
    (
        "lock cmpxchg %rdx,(%rsi)",
        &[0xf0, 0x48, 0x0f, 0xb1, 0x16],
        8,
        Operation::CompareExchange,
        RDX,
    ),
    ("lock btr $6,(%rdi)", &[0xf0, 0x48, 0x0f, 0xba, 0x37, 6], 8, Operation::ResetBit, 6),
    ("lock btrq $1,(%rbx)", &[0xf0, 0x48, 0x0f, 0xba, 0x33, 1], 8, Operation::ResetBit, 1),
    ("btsl $0x21,(%rdi)", &[0x0f, 0xba, 0x2f, 0x21], 4, Operation::SetBit, 0x21),
    ("btc %rcx,(%rdi)", &[0x48, 0x0f, 0xbb, 0x0f], 8, Operation::ComplementBit, RCX),
    ("lock bts %rcx,(%rdi)", &[0xf0, 0x48, 0x0f, 0xab, 0x0f], 8, Operation::SetBit, RCX),
    ("lock and %rax,(%rdi)", &[0xf0, 0x48, 0x21, 0x07], 8, Operation::And, RAX),
    ("lock andq $-3,(%rdi)", &[0xf0, 0x48, 0x83, 0x27, 0xfd], 8, Operation::And, !2),
    ("lock andb $0xdf,(%rdi)", &[0xf0, 0x80, 0x27, 0xdf], 1, Operation::And, 0xdf),
    ("orq $0x100,(%rdi)", &[0x48, 0x81, 0x0f, 0, 1, 0, 0], 8, Operation::Or, 0x100),
    ("orw $0x100,(%rdi)", &[0x66, 0x81, 0x0f, 0, 1], 2, Operation::Or, 0x100),
    ("xor %rax,(%rdi)", &[0x48, 0x31, 0x07], 8, Operation::Xor, RAX),
    ("add %rax,(%rdi)", &[0x48, 0x01, 0x07], 8, Operation::Add, RAX),
    ("sub %ecx,(%rdi)", &[0x29, 0x0f], 4, Operation::Subtract, 0xb4b5_b6b7),
    ("lock xadd %rdx,(%rdi)", &[0xf0, 0x48, 0x0f, 0xc1, 0x17], 8, Operation::Add, RDX),
    ("incq (%rdi)", &[0x48, 0xff, 0x07], 8, Operation::Increment, 0),
    ("decw (%rdi)", &[0x66, 0xff, 0x0f], 2, Operation::Decrement, 0),
    ("notq (%rdi)", &[0x48, 0xf7, 0x17], 8, Operation::Not, 0),
    ("negb (%rdi)", &[0xf6, 0x1f], 1, Operation::Negate, 0),
    ("rep stos %rax,(%rdi)", &[0xf3, 0x48, 0xab], 8, Operation::Set, RAX),
    ("stos %al,(%rdi)", &[0xaa], 1, Operation::Set, 0xa7),
];

pub(crate) const BITS32: &[Row] = &[
    ("mov %eax,(%edi)", &[0x89, 0x07], 4, Operation::Set, 0xa4a5_a6a7),
    ("mov %eax,0x1000", &[0xa3, 0, 0x10, 0, 0], 4, Operation::Set, 0xa4a5_a6a7),
    ("mov %ax,0x1000", &[0x66, 0xa3, 0, 0x10, 0, 0], 2, Operation::Set, 0xa6a7),
    ("movl $1,0x1000", &[0xc7, 0x05, 0, 0x10, 0, 0, 1, 0, 0, 0], 4, Operation::Set, 1),
    ("xchg %eax,(%esp)", &[0x87, 0x04, 0x24], 4, Operation::Set, 0xa4a5_a6a7),
    ("lock btrl $6,(%edi)", &[0xf0, 0x0f, 0xba, 0x37, 6], 4, Operation::ResetBit, 6),
    ("rep stos %eax,%es:(%edi)", &[0xf3, 0xab], 4, Operation::Set, 0xa4a5_a6a7),
];

#[test]
fn the_stores_of_hypervisors_are_decoded() {
    for (mode, rows) in [(Mode::Bits64, BITS64), (Mode::Bits32, BITS32)] {
        for (name, bytes, size, operation, source) in rows {
            let padded = [bytes, &[0xcc; 15][..]].concat();
            let store = decode(&padded, mode).unwrap_or_else(|| panic!("{name}"));
            let found = (store.length, store.size.bytes(), store.operation);
            assert_eq!(found, (u64::try_from(bytes.len()).unwrap(), *size, *operation), "{name}");
            let none =
                [Operation::Increment, Operation::Decrement, Operation::Not, Operation::Negate];
            if !none.contains(operation) {
                assert_eq!(store.source(&registers()), *source, "{name}");
            }
        }
    }
}

#[test]
fn what_does_not_store_or_is_not_known_is_not_decoded() {
    let rows: [(&str, &[u8]); 21] = [
        ("mov (%rdi),%rax", &[0x48, 0x8b, 0x07]),
        ("mov %rax,%rdi", &[0x48, 0x89, 0xc7]),
        ("cmp %rax,(%rdi)", &[0x48, 0x39, 0x07]),
        ("cmpq $1,(%rdi)", &[0x48, 0x83, 0x3f, 1]),
        ("testb $1,(%rdi)", &[0xf6, 0x07, 1]),
        ("btq $1,(%rdi)", &[0x48, 0x0f, 0xba, 0x27, 1]),
        ("movsq", &[0x48, 0xa5]),
        ("push (%rdi)", &[0xff, 0x37]),
        ("cmpxchg16b (%rdi)", &[0x48, 0x0f, 0xc7, 0x0f]),
        ("movups %xmm0,(%rdi)", &[0x0f, 0x11, 0x07]),
        ("shlq (%rdi)", &[0x48, 0xd1, 0x27]),
        ("xabort $1", &[0xc6, 0xf8, 1]),
        ("lock mov %rax,(%rdi)", &[0xf0, 0x48, 0x89, 0x07]),
        ("lock stos", &[0xf0, 0x48, 0xab]),
        ("lock movnti %rax,(%rdi)", &[0xf0, 0x48, 0x0f, 0xc3, 0x07]),
        ("data16 movnti", &[0x66, 0x0f, 0xc3, 0x07]),
        ("repne stos", &[0xf2, 0x48, 0xab]),
        ("xrelease mov %rax,(%rdi)", &[0xf3, 0x48, 0x89, 0x07]),
        ("REX before another prefix", &[0x48, 0x66, 0x89, 0x07]),
        ("REX twice", &[0x48, 0x40, 0x89, 0x07]),
        ("nothing", &[]),
    ];
    for (name, bytes) in rows {
        assert_eq!(decode(bytes, Mode::Bits64), None, "{name}");
    }
    assert_eq!(decode(&[0x48, 0x89, 0x07], Mode::Bits32), None, "dec %eax");
}

#[test]
fn nothing_is_stored_downwards_or_by_an_empty_series() {
    let series = |bytes: &[u8]| decode(bytes, Mode::Bits64).unwrap().series.unwrap();
    let (stos, rep_stos) = (series(&[0x48, 0xab]), series(&[0xf3, 0x48, 0xab]));
    let next = |registers| (stos.offset(&registers), rep_stos.offset(&registers));
    let mut registers = registers();
    registers.general[7] = 0x1000;
    assert_eq!(next(registers), (Some(0x1000), Some(0x1000)));
    assert_eq!(next(Registers { rflags: 0x402, ..registers }), (None, None));
    registers.general[1] = 0;
    assert_eq!(next(registers), (Some(0x1000), None));
}

/// Executes `store`; returns by how much RIP advances, and what is in memory.
fn execute(store: &Store, old: u64, registers: &mut Registers) -> (u64, u64) {
    let outcome = store.apply(old, registers);
    (store.finish(outcome, registers), outcome.new)
}

#[test]
fn a_series_goes_on_until_all_is_stored() {
    let mut registers = registers();
    (registers.general[1], registers.general[7], registers.rflags) = (2, 0x1000, 0x1_0202);
    let store = decode(&[0xf3, 0x48, 0xab], Mode::Bits64).unwrap();
    assert_eq!(execute(&store, 0, &mut registers), (0, RAX));
    assert_eq!((registers.general[1], registers.general[7]), (1, 0x1008));
    assert_eq!(registers.rflags, 0x1_0202);

    assert_eq!(execute(&store, 0, &mut registers), (3, RAX));
    assert_eq!((registers.general[1], registers.general[7]), (0, 0x1010));
    // The instruction is over, and with it RFLAGS.RF.
    assert_eq!(registers.rflags, 0x202);
}

#[test]
fn a_series_of_32_bit_code_counts_in_32_bits() {
    let mut registers = registers();
    registers.general[1] = 0xffff_0000_0000_0001;
    registers.general[7] = 0x1_ffff_fffc;
    let store = decode(&[0xf3, 0xab], Mode::Bits32).unwrap();
    assert_eq!(store.series.unwrap().offset(&registers), Some(0xffff_fffc));
    assert_eq!(execute(&store, 0, &mut registers).0, 2);
    assert_eq!((registers.general[1], registers.general[7]), (0, 0));
}

#[test]
fn a_series_with_an_address_size_prefix_counts_in_that_size() {
    let mut registers = registers();
    registers.general[1] = 0xffff_0000_0000_0001;
    registers.general[7] = 0x1_ffff_fffc;
    let store = decode(&[0x67, 0xf3, 0xab], Mode::Bits64).unwrap();
    assert_eq!(store.series.unwrap().offset(&registers), Some(0xffff_fffc));
    assert_eq!(execute(&store, 0, &mut registers).0, 3);
    assert_eq!((registers.general[1], registers.general[7]), (0, 0));

    (registers.general[1], registers.general[7]) = (0x5_0001, 0x5_fffc);
    let store = decode(&[0x67, 0xf3, 0xab], Mode::Bits32).unwrap();
    assert_eq!(store.series.unwrap().offset(&registers), Some(0xfffc));
    assert_eq!(execute(&store, 0, &mut registers).0, 3);
    assert_eq!((registers.general[1], registers.general[7]), (0x5_0000, 0x5_0000));
}

#[test]
fn a_failed_comparison_loads_the_accumulator() {
    let mut registers = registers();
    let store = decode(&[0xf0, 0x0f, 0xb1, 0x16], Mode::Bits64).unwrap();
    assert_eq!(execute(&store, 5, &mut registers), (4, 5));
    assert_eq!((registers.general[0], registers.rflags & 0x40), (5, 0));

    let mut registers = self::registers();
    assert_eq!(execute(&store, 0xa4a5_a6a7, &mut registers), (4, 0xc4c5_c6c7));
    assert_eq!((registers.general[0], registers.rflags & 0x40), (RAX, 0x40));
}
