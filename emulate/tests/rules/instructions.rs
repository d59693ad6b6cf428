//! Byte strings that are likely to be instructions.

use proptest::prelude::*;
use proptest::sample::select;

use crate::other::Registers;

/// Opcodes of which some form stores, and others beside them.
const OPCODES: [&[u8]; 12] = [
    &[0x00, 0x01, 0x08, 0x09, 0x10, 0x11, 0x18, 0x19, 0x20, 0x21, 0x28, 0x29, 0x30, 0x31],
    &[0x80, 0x81, 0x83],
    &[0x80, 0x81, 0x83, 0x86, 0x87, 0x88, 0x89],
    &[0xa2, 0xa3, 0xaa, 0xab],
    &[0xc6, 0xc7],
    &[0xf6, 0xf7, 0xfe, 0xff],
    &[0x02, 0x03, 0x38, 0x39, 0x82, 0x8a, 0x8b, 0x8c, 0x8f, 0xa4, 0xa5, 0xc0, 0xd1, 0xd3],
    &[0x0f],
    &[0x0f],
    &[0x0f],
    &[0x0f],
    &[0x0f],
];
const SECOND: [u8; 13] =
    [0xab, 0xb3, 0xbb, 0xba, 0xb0, 0xb1, 0xc0, 0xc1, 0xc3, 0xa3, 0xc7, 0x11, 0x7f];

/// A value whose top or bottom bits matter, or any.
pub(crate) fn number() -> impl Strategy<Value = u64> {
    let edge = select(vec![0, 1, 0x7f, 0x80, 0xff, 0x7fff, 0x8000, 0xffff, 0x7fff_ffff]);
    let high = select(vec![0x8000_0000, 0xffff_ffff, i64::MAX.cast_unsigned(), 1 << 63, u64::MAX]);
    prop_oneof![any::<u64>(), edge, high, 0..64_u64]
}

/// Registers of any content.
pub(crate) fn registers() -> impl Strategy<Value = Registers> {
    (proptest::array::uniform16(number()), any::<u64>())
        .prop_map(|(general, flags)| Registers { general, rflags: flags & 0x3f_7fd7 })
}

fn opcode() -> impl Strategy<Value = Vec<u8>> {
    let known = select(OPCODES.to_vec()).prop_flat_map(|row| select(row.to_vec()));
    let is_prefix = |byte: &u8| matches!(byte, 0x26 | 0x2e | 0x36 | 0x3e | 0x40..=0x4f | 0x64..=0x67 | 0xf0..=0xf3);
    let other = any::<u8>().prop_filter("a prefix is no opcode", move |byte| !is_prefix(byte));
    let first = prop_oneof![9 => known, 1 => other];
    let second = prop_oneof![9 => select(SECOND.to_vec()), 1 => any::<u8>()];
    (first, second).prop_map(|(first, second)| match first {
        0x0f => vec![first, second],
        _ => vec![first],
    })
}

/// Prefixes as compilers put them: each at most once, REX the last.
pub(crate) fn tidy_prefixes() -> impl Strategy<Value = Vec<u8>> {
    let prefix = |byte: u8| prop_oneof![2 => Just(None), 1 => Just(Some(byte))];
    let rex = proptest::option::of(0x40..=0x4f_u8);
    let segment = proptest::option::of(select(vec![0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65_u8]));
    (segment, prefix(0x66), prefix(0xf0), rex)
        .prop_map(|(a, b, c, d)| [a, b, c, d].into_iter().flatten().collect())
}

/// Prefixes in any number and order.
fn wild_prefixes() -> impl Strategy<Value = Vec<u8>> {
    let legacy = select(vec![0x26, 0x2e, 0x65, 0x66, 0x66, 0x67, 0xf0, 0xf0, 0xf2, 0xf3, 0xf3_u8]);
    proptest::collection::vec(prop_oneof![3 => legacy, 1 => 0x40..=0x4f_u8], 0..6)
}

fn instruction(prefixes: impl Strategy<Value = Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    (prefixes, opcode(), any::<[u8; 12]>())
        .prop_map(|(prefixes, opcode, rest)| [&prefixes[..], &opcode, &rest].concat())
}

/// Likely instructions with prefixes as compilers put them.
pub(crate) fn tidy() -> impl Strategy<Value = Vec<u8>> {
    instruction(tidy_prefixes())
}

/// Opcodes that access devices: strings, loads, tests.
const ACCESSES: [&[u8]; 7] = [
    &[0x6c, 0x6d, 0x6e, 0x6f, 0xa4, 0xa5, 0xaa, 0xab, 0xac, 0xad],
    &[0x02, 0x03, 0x0a, 0x0b, 0x12, 0x13, 0x1a, 0x1b, 0x22, 0x23, 0x2a, 0x2b, 0x32, 0x33],
    &[0x38, 0x39, 0x3a, 0x3b, 0x84, 0x85],
    &[0x80, 0x81, 0x83, 0xf6, 0xf7],
    &[0x63, 0x8a, 0x8b, 0xa0, 0xa1],
    &[0x63, 0x8a, 0x8b, 0x88, 0x89],
    &[0x0f],
];

/// Likely accesses with prefixes as compilers put them.
pub(crate) fn access() -> impl Strategy<Value = Vec<u8>> {
    let first = select(ACCESSES.to_vec()).prop_flat_map(|row| select(row.to_vec()));
    let second = select(vec![0xb6, 0xb7, 0xbe, 0xbf, 0xba, 0xa3, 0xc3_u8]);
    let opcode = (first, second).prop_map(|(first, second)| match first {
        0x0f => vec![first, second],
        _ => vec![first],
    });
    let rep = proptest::option::of(Just(0xf3_u8));
    let width = proptest::option::of(Just(0x67_u8));
    let prefixes = (rep, width, tidy_prefixes())
        .prop_map(|(rep, width, others)| rep.into_iter().chain(width).chain(others).collect());
    let access = (prefixes, opcode, any::<[u8; 12]>());
    let access = access.prop_map(|(prefixes, opcode, rest): (Vec<u8>, Vec<u8>, [u8; 12])| {
        [&prefixes[..], &opcode, &rest].concat()
    });
    prop_oneof![3 => access, 1 => tidy()]
}

/// Byte strings of up to 20 bytes that may be instructions.
pub(crate) fn wild() -> impl Strategy<Value = Vec<u8>> {
    let cut = (instruction(wild_prefixes()), 0..=20_usize);
    let cut = cut.prop_map(|(bytes, len)| bytes[..len.min(bytes.len())].to_vec());
    prop_oneof![4 => instruction(wild_prefixes()), 1 => cut]
}
