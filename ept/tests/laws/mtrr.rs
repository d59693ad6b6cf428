//! Memory types against the manual's rules for a single address.

use ept::addr::{PAGE, Span};
use ept::mtrr::{MemoryType, Types, is_mtrr, is_valid_write};
use proptest::prelude::*;

use crate::machine::{CAP, GIB, MIB, Registers, WIDTH, registers};

/// The number of the type at `address`, by the letter of SDM vol. 3, 12.11.4.1.
fn type_at(registers: &Registers, address: u64) -> u8 {
    let sane = |raw: u8| {
        if [0, 1, 4, 5, 6].contains(&raw) { raw } else { 0 }
    };
    let low = |raw: u64| sane(raw.to_le_bytes()[0]);
    if registers.default & 1 << 11 == 0 {
        return 0;
    }
    if registers.cap & registers.default >> 2 & 1 << 8 != 0 && address < MIB {
        let (first, base, size) = match address {
            0..0x8_0000 => (0, 0, 0x1_0000),
            0x8_0000..0xc_0000 => (1, 0x8_0000, 0x4000),
            _ => (3, 0xc_0000, 0x1000),
        };
        let field = usize::try_from((address - base) / size).unwrap();
        return sane(registers.fixed[first + field / 8].to_le_bytes()[field % 8]);
    }
    let mask = |raw: u64| raw & ((1 << WIDTH) - 1) & !0xfff;
    let mut kinds: Vec<u8> = registers
        .variable
        .iter()
        .filter(|(_, m)| m & 1 << 11 != 0)
        .filter(|(b, m)| address & mask(*m) == b & mask(*m))
        .map(|(b, _)| low(*b))
        .collect();
    kinds.sort_unstable();
    kinds.dedup();
    match kinds[..] {
        [] => low(registers.default),
        [kind] => kind,
        [4, 6] => 4,
        _ => 0,
    }
}

fn number(types: Types) -> Option<u8> {
    match types {
        Types::One(kind) => Some(kind.number()),
        Types::Mixed => None,
    }
}

/// The one type of all pages of `span`, asked page by page.
fn slow_type_of(registers: &Registers, span: Span) -> Option<u8> {
    let first = type_at(registers, span.start());
    let pages = span.len() / PAGE;
    (0..pages).all(|page| type_at(registers, span.start() + page * PAGE) == first).then_some(first)
}

proptest! {
    #[test]
    fn a_span_has_one_type_exactly_when_all_its_pages_have(
        registers in registers(), base in 0..4_u64, page in 0..2048_u64, pages in 1..1100_u64,
    ) {
        let base = [0, 0, GIB - 2 * MIB, 9 * GIB][usize::try_from(base).unwrap()];
        let span = Span::sized(base + page * PAGE, pages * PAGE).unwrap();
        prop_assert_eq!(
            number(registers.read().type_of(span)), slow_type_of(&registers, span)
        );
    }

    #[test]
    fn every_page_has_the_type_that_the_manual_gives_it(
        registers in registers(), address in 0..16 * GIB,
    ) {
        let page = Span::sized(address & !0xfff, PAGE).unwrap();
        prop_assert_eq!(
            number(registers.read().type_of(page)), Some(type_at(&registers, page.start()))
        );
    }

    #[test]
    fn no_address_in_a_huge_uniform_span_has_another_type(
        registers in registers(), block in 0..16_u64, offset in 0..GIB,
    ) {
        let span = Span::sized(block * GIB, GIB).unwrap();
        if let Some(kind) = number(registers.read().type_of(span)) {
            prop_assert_eq!(type_at(&registers, span.start() + offset), kind);
        }
    }
}

fn types(registers: &Registers, start: u64, len: u64) -> Types {
    registers.read().type_of(Span::sized(start, len).unwrap())
}

#[test]
fn the_hole_below_4_gib_is_uncacheable_and_the_rest_write_back() {
    let registers = Registers::plain(6).with(3 * GIB, GIB, 0);
    assert_eq!(types(&registers, 0, 3 * GIB), Types::One(MemoryType::Wb));
    assert_eq!(types(&registers, 3 * GIB, GIB), Types::One(MemoryType::Uc));
    assert_eq!(types(&registers, 4 * GIB, 60 * GIB), Types::One(MemoryType::Wb));
    assert_eq!(types(&registers, 0, 4 * GIB), Types::Mixed);
}

#[test]
fn a_range_of_one_page_makes_its_gigabyte_mixed() {
    let registers = Registers::plain(6).with(5 * GIB + 77 * PAGE, PAGE, 1);
    assert_eq!(types(&registers, 5 * GIB, GIB), Types::Mixed);
    assert_eq!(types(&registers, 5 * GIB + 77 * PAGE, PAGE), Types::One(MemoryType::Wc));
    assert_eq!(types(&registers, 6 * GIB, GIB), Types::One(MemoryType::Wb));
}

#[test]
fn a_mask_with_holes_repeats_its_range() {
    let mut registers = Registers::plain(6);
    // Every other 1 MiB of the first 2 GiB.
    let mask = 0xf_8000_0000 | MIB;
    registers.variable.push((MIB, mask | 1 << 11));
    for odd in [1, 3, 2047] {
        assert_eq!(types(&registers, odd * MIB, MIB), Types::One(MemoryType::Uc));
        assert_eq!(types(&registers, (odd - 1) * MIB, MIB), Types::One(MemoryType::Wb));
    }
    assert_eq!(types(&registers, 0, GIB), Types::Mixed);
    assert_eq!(types(&registers, 2 * GIB, GIB), Types::One(MemoryType::Wb));
}

#[test]
fn each_of_several_ranges_may_cut_a_span() {
    // Uncacheable where bit 14 is set; and write back, as everything, where bit 13 is.
    let mut registers = Registers::plain(6);
    registers.variable = vec![(0x4000, 0xf_ffff_4800), (0x2006, 0xf_ffff_2800)];
    assert_eq!(types(&registers, 0, 4 * PAGE), Types::One(MemoryType::Wb));
    assert_eq!(types(&registers, 0, 8 * PAGE), Types::Mixed);
}

#[test]
fn part_of_a_page_has_the_type_of_its_page() {
    let registers = Registers::plain(6).with_legacy_hole();
    assert_eq!(types(&registers, 0x9_ffff, 1), Types::One(MemoryType::Wb));
    assert_eq!(types(&registers, 0xa_0000, 1), Types::One(MemoryType::Uc));
    assert_eq!(types(&registers, 0x9_ffff, 2), Types::Mixed);
}

#[test]
fn many_scattered_ranges_of_the_same_type_are_one_type() {
    let mut registers = Registers::plain(6);
    for bit in 12..20 {
        registers.variable.push((6, 1 << bit | 1 << 11));
    }
    assert_eq!(types(&registers, 0, 64 * GIB), Types::One(MemoryType::Wb));
}

#[test]
fn memory_is_uncacheable_while_the_mtrrs_are_off() {
    let mut registers = Registers::plain(6).with(0, GIB, 6);
    registers.default &= !(1 << 11);
    assert_eq!(types(&registers, 0, 64 * GIB), Types::One(MemoryType::Uc));
}

#[test]
fn fixed_ranges_overrule_variable_ones_below_1_mib() {
    let registers = Registers::plain(6).with(0, MIB, 1).with_legacy_hole();
    assert_eq!(types(&registers, 0, 640 << 10), Types::One(MemoryType::Wb));
    assert_eq!(types(&registers, 640 << 10, 384 << 10), Types::One(MemoryType::Uc));
    assert_eq!(types(&registers, 0, 2 * MIB), Types::Mixed);
}

#[test]
fn an_empty_span_has_no_type() {
    assert_eq!(Registers::plain(6).read().type_of(Span::EMPTY), Types::Mixed);
}

#[test]
fn registers_that_mean_the_same_are_equal() {
    let one = Registers::plain(6).with(GIB, GIB, 0);
    let mut other = one.clone();
    other.variable.push((0x1_4000_0001, 0xf_c000_0000));
    other.variable[0].0 |= 0x7000;
    assert_eq!(one.read(), other.read());
    assert_ne!(one.read(), Registers::plain(6).with(GIB, GIB, 1).read());
}

/// The bits of a register that hold what one likes, provided that the types are valid.
fn writable(index: u32) -> u64 {
    match index {
        0x2ff => 0xcff,
        0x200..0x210 if index.is_multiple_of(2) => 0xf_ffff_f0ff,
        0x200..0x210 => 0xf_ffff_f800,
        0x250 | 0x258 | 0x259 | 0x268..=0x26f => u64::MAX,
        _ => 0,
    }
}

#[test]
fn a_write_is_valid_exactly_without_reserved_bits_in_an_existing_register() {
    for index in 0..0x400 {
        assert_eq!(is_valid_write(index, 0, CAP, WIDTH), writable(index) != 0, "{index:#x}");
        assert!(is_mtrr(index) || writable(index) == 0, "{index:#x}");
        // Types 1 and 4 are valid, 2 is not: single bits of the type fields need no other rule.
        for bit in 0..64 {
            let value = 1 << bit;
            let in_type = match index {
                0x250..=0x26f => true,
                0x200..0x210 => index.is_multiple_of(2) && bit < 8,
                _ => bit < 8,
            };
            let valid = value & writable(index) != 0 && (!in_type || [0, 2].contains(&(bit % 8)));
            assert_eq!(is_valid_write(index, value, CAP, WIDTH), valid, "{index:#x} {value:#x}");
        }
    }
}

#[test]
fn every_type_field_of_a_written_value_is_checked() {
    for number in 0..=u8::MAX {
        let valid = [0, 1, 4, 5, 6].contains(&number);
        let value = u64::from(number);
        for (index, value) in [
            (0x2ff, value),
            (0x200, value),
            (0x250, value << 56 | 0x0006_0606_0606_0606),
            (0x26f, value << 24),
        ] {
            assert_eq!(is_valid_write(index, value, CAP, WIDTH), valid, "{index:#x} {value:#x}");
        }
    }
}

#[test]
fn what_the_processor_lacks_cannot_be_written() {
    let no_combining = CAP & !(1 << 10);
    assert!(!is_valid_write(0x200, 1, no_combining, WIDTH));
    assert!(is_valid_write(0x200, 6, no_combining, WIDTH));
    let no_fixed = CAP & !(1 << 8);
    assert!(!is_valid_write(0x250, 0, no_fixed, WIDTH));
    assert!(!is_valid_write(0x2ff, 1 << 10, no_fixed, WIDTH));
    assert!(is_valid_write(0x2ff, 1 << 11, no_fixed, WIDTH));
}

#[test]
fn a_processor_may_have_every_pair_that_fits_or_no_ranges_at_all() {
    let mut registers = Registers::plain(6);
    registers.cap = 0xff;
    registers.variable = vec![(0, 0xf_c000_0800); 40];
    // Reading beyond the fixed ranges' first index would ask for `no fixed ranges here`.
    assert_eq!(types(&registers, 0, GIB), Types::One(MemoryType::Uc));
    registers.cap = 0;
    registers.default |= 1 << 10;
    assert_eq!(types(&registers, 0, GIB), Types::One(MemoryType::Wb));
}
