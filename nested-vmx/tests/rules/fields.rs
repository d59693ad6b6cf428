//! Encodings, against the structure that the manual gives them (SDM vol. 3, table 26-21).

use std::collections::BTreeSet;

use nested_vmx::field as f;
use nested_vmx::field::{Field, Natural, Segment, Vmcs, Width};
use proptest::prelude::*;

use crate::fake::FakeVmcs;

/// Bits 11:10 of an encoding.
#[derive(Clone, Copy)]
enum Type {
    Control,
    ReadOnly,
    Guest,
    Host,
}

/// What the manual says about a field: bits 14:13, bits 11:10 and bits 9:1 of its encoding.
struct Row {
    width: u32,
    kind: Type,
    index: u32,
}

fn number(kind: Type) -> u32 {
    match kind {
        Type::Control => 0,
        Type::ReadOnly => 1,
        Type::Guest => 2,
        Type::Host => 3,
    }
}

/// Adds fields whose indices follow each other from `first` on; `None` is one that the visor lacks.
fn rows<T: Width>(
    table: &mut Vec<(u32, Row)>,
    kind: Type,
    first: u32,
    fields: &[Option<Field<T>>],
) {
    let numbered = (first..).zip(fields);
    table.extend(numbered.filter_map(|(index, field)| {
        let width = match size_of::<T::Value>() {
            2 => 0,
            4 => 2,
            _ if T::CODE == Natural::CODE => 3,
            _ => 1,
        };
        field.map(|field| (field.encoding(), Row { width, kind, index }))
    }));
}

/// Every field of the crate in the order of appendix B.
fn table() -> Vec<(u32, Row)> {
    let mut t = Vec::new();
    sixteen_and_sixty_four_bits(&mut t);
    thirty_two_bits(&mut t);
    natural_width(&mut t);
    t
}

fn segments<T>(pick: impl Fn(f::SegmentFields) -> Field<T>) -> Vec<Option<Field<T>>> {
    // The order of tables B-2, B-12 and B-14.
    let order = [
        Segment::Es,
        Segment::Cs,
        Segment::Ss,
        Segment::Ds,
        Segment::Fs,
        Segment::Gs,
        Segment::Ldtr,
        Segment::Tr,
    ];
    order.map(|s| Some(pick(s.fields()))).to_vec()
}

fn sixteen_and_sixty_four_bits(t: &mut Vec<(u32, Row)>) {
    rows(t, Type::Control, 0, &[Some(f::VPID)]);
    rows(t, Type::Guest, 0, &segments(|s| s.selector));
    let host = [
        f::HOST_ES_SELECTOR,
        f::HOST_CS_SELECTOR,
        f::HOST_SS_SELECTOR,
        f::HOST_DS_SELECTOR,
        f::HOST_FS_SELECTOR,
        f::HOST_GS_SELECTOR,
        f::HOST_TR_SELECTOR,
    ];
    rows(t, Type::Host, 0, &host.map(Some));
    let bitmaps = [f::IO_BITMAP_A, f::IO_BITMAP_B, f::MSR_BITMAP];
    rows(t, Type::Control, 0, &bitmaps.map(Some));
    rows(t, Type::Control, 13, &[Some(f::EPT_POINTER)]);
    rows(t, Type::Control, 22, &[Some(f::XSS_EXITING_BITMAP)]);
    rows(t, Type::ReadOnly, 0, &[Some(f::GUEST_PHYSICAL_ADDRESS)]);
    let guest = [
        Some(f::VMCS_LINK_POINTER),
        Some(f::GUEST_DEBUGCTL),
        Some(f::GUEST_PAT),
        Some(f::GUEST_EFER),
        None, // IA32_PERF_GLOBAL_CTRL
        Some(f::GUEST_PDPTE0),
        Some(f::GUEST_PDPTE1),
        Some(f::GUEST_PDPTE2),
        Some(f::GUEST_PDPTE3),
    ];
    rows(t, Type::Guest, 0, &guest);
    rows(t, Type::Host, 0, &[f::HOST_PAT, f::HOST_EFER].map(Some));
}

fn thirty_two_bits(t: &mut Vec<(u32, Row)>) {
    let controls = [
        Some(f::PIN_CONTROLS),
        Some(f::PRIMARY_CONTROLS),
        Some(f::EXCEPTION_BITMAP),
        Some(f::PAGE_FAULT_MASK),
        Some(f::PAGE_FAULT_MATCH),
        Some(f::CR3_TARGET_COUNT),
        Some(f::EXIT_CONTROLS),
        Some(f::EXIT_MSR_STORE_COUNT),
        Some(f::EXIT_MSR_LOAD_COUNT),
        Some(f::ENTRY_CONTROLS),
        Some(f::ENTRY_MSR_LOAD_COUNT),
        Some(f::ENTRY_INTERRUPTION),
        Some(f::ENTRY_ERROR_CODE),
        Some(f::ENTRY_INSTRUCTION_LENGTH),
        None, // TPR threshold
        Some(f::SECONDARY_CONTROLS),
    ];
    rows(t, Type::Control, 0, &controls);
    let exit = [
        Some(f::INSTRUCTION_ERROR),
        Some(f::EXIT_REASON),
        Some(f::EXIT_INTERRUPTION),
        None, // its error code
        Some(f::IDT_VECTORING),
        Some(f::IDT_VECTORING_CODE),
        Some(f::EXIT_INSTRUCTION_LENGTH),
    ];
    rows(t, Type::ReadOnly, 0, &exit);
    rows(t, Type::Guest, 0, &segments(|s| s.limit));
    let tables = [f::GUEST_GDTR_LIMIT, f::GUEST_IDTR_LIMIT];
    rows(t, Type::Guest, 8, &tables.map(Some));
    rows(t, Type::Guest, 10, &segments(|s| s.rights));
    let rest = [
        Some(f::GUEST_INTERRUPTIBILITY),
        Some(f::GUEST_ACTIVITY),
        None, // SMBASE
        Some(f::GUEST_SYSENTER_CS),
    ];
    rows(t, Type::Guest, 18, &rest);
    rows(t, Type::Host, 0, &[Some(f::HOST_SYSENTER_CS)]);
}

fn natural_width(t: &mut Vec<(u32, Row)>) {
    let masks = [f::CR0_MASK, f::CR4_MASK, f::CR0_SHADOW, f::CR4_SHADOW];
    rows(t, Type::Control, 0, &masks.map(Some));
    rows(t, Type::ReadOnly, 0, &[Some(f::EXIT_QUALIFICATION)]);
    rows(t, Type::ReadOnly, 5, &[Some(f::GUEST_LINEAR_ADDRESS)]);
    let control = [f::GUEST_CR0, f::GUEST_CR3, f::GUEST_CR4];
    rows(t, Type::Guest, 0, &control.map(Some));
    rows(t, Type::Guest, 3, &segments(|s| s.base));
    let rest = [
        f::GUEST_GDTR_BASE,
        f::GUEST_IDTR_BASE,
        f::GUEST_DR7,
        f::GUEST_RSP,
        f::GUEST_RIP,
        f::GUEST_RFLAGS,
        f::GUEST_PENDING_DEBUG,
        f::GUEST_SYSENTER_ESP,
        f::GUEST_SYSENTER_EIP,
    ];
    rows(t, Type::Guest, 11, &rest.map(Some));
    let host = [
        f::HOST_CR0,
        f::HOST_CR3,
        f::HOST_CR4,
        f::HOST_FS_BASE,
        f::HOST_GS_BASE,
        f::HOST_TR_BASE,
        f::HOST_GDTR_BASE,
        f::HOST_IDTR_BASE,
        f::HOST_SYSENTER_ESP,
        f::HOST_SYSENTER_EIP,
        f::HOST_RSP,
        f::HOST_RIP,
    ];
    rows(t, Type::Host, 0, &host.map(Some));
}

#[test]
fn every_field_has_the_encoding_that_its_place_in_the_manual_gives() {
    for (encoding, row) in table() {
        let expected = row.width << 13 | number(row.kind) << 10 | row.index << 1;
        assert_eq!(encoding, expected, "{encoding:#x}, not {expected:#x}");
    }
}

#[test]
fn no_two_fields_share_an_encoding() {
    let table = table();
    let distinct: BTreeSet<u32> = table.iter().map(|(encoding, _)| *encoding).collect();
    assert_eq!(distinct.len(), table.len());
}

#[test]
fn all_segments_are_listed_once_in_the_order_of_their_encodings() {
    let encodings = Segment::ALL.map(|segment| segment.fields().selector.encoding());
    assert_eq!(encodings.to_vec(), (0x800..0x810).step_by(2).collect::<Vec<_>>());
}

/// Whether a field of width `T` may have this encoding.
fn takes<T: Width>(encoding: u32) -> bool {
    std::panic::catch_unwind(|| Field::<T>::new(encoding)).is_ok()
}

#[test]
fn an_encoding_of_another_width_is_refused() {
    let found = [0x0000, 0x2000, 0x4000, 0x6000].map(|encoding| {
        [
            takes::<u16>(encoding),
            takes::<u64>(encoding),
            takes::<u32>(encoding),
            takes::<Natural>(encoding),
        ]
    });
    for (row, column) in (0..4).flat_map(|row| (0..4).map(move |column| (row, column))) {
        assert_eq!(found[row][column], row == column);
    }
}

proptest! {
    #[test]
    fn a_read_keeps_as_many_bits_as_the_field_has(raw: u64) {
        let mut vmcs = FakeVmcs::default();
        for encoding in [0x0000, 0x2000, 0x4000, 0x6000] {
            vmcs.write_raw(encoding, raw);
        }
        prop_assert_eq!(u64::from(vmcs.read(Field::<u16>::new(0x0000))), raw % (1 << 16));
        prop_assert_eq!(vmcs.read(Field::<u64>::new(0x2000)), raw);
        prop_assert_eq!(u64::from(vmcs.read(Field::<u32>::new(0x4000))), raw % (1 << 32));
        prop_assert_eq!(vmcs.read(Field::<Natural>::new(0x6000)), raw);
    }

    #[test]
    fn a_write_reaches_the_field_of_that_encoding_alone(value: u32) {
        let mut vmcs = FakeVmcs::default();
        vmcs.write(f::EXCEPTION_BITMAP, value);
        prop_assert_eq!(vmcs.read_raw(0x4004), u64::from(value));
        prop_assert_eq!(vmcs, FakeVmcs::default().with(f::EXCEPTION_BITMAP, value));
    }
}
