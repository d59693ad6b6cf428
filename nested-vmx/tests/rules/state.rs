//! The states in which a processor of the host begins to run.

use nested_vmx::field as f;
use nested_vmx::field::{Field, Natural, Segment, Vmcs};
use nested_vmx::state::{flat_32_bit, init, start_up, wait_for_sipi};
use proptest::prelude::*;

use crate::entry_checks::refusals;
use crate::fake::FakeVmcs;

const NATURAL: [Field<Natural>; 13] = [
    f::GUEST_CR0,
    f::GUEST_CR3,
    f::GUEST_CR4,
    f::CR0_SHADOW,
    f::GUEST_DR7,
    f::GUEST_RSP,
    f::GUEST_RIP,
    f::GUEST_RFLAGS,
    f::GUEST_PENDING_DEBUG,
    f::GUEST_GDTR_BASE,
    f::GUEST_IDTR_BASE,
    f::GUEST_SYSENTER_ESP,
    f::GUEST_SYSENTER_EIP,
];
const DWORDS: [Field<u32>; 5] = [
    f::GUEST_INTERRUPTIBILITY,
    f::GUEST_ACTIVITY,
    f::ENTRY_INTERRUPTION,
    f::GUEST_GDTR_LIMIT,
    f::GUEST_IDTR_LIMIT,
];
/// Entry controls but for the guest's mode, which is bit 9.
const OTHER_ENTRY_CONTROLS: u32 = 0xd1ff;

/// A VMCS as the visor prepares it, with every bit set in what INIT overwrites.
fn dirty() -> FakeVmcs {
    let mut v = FakeVmcs::default()
        .with(f::VMCS_LINK_POINTER, u64::MAX)
        .with(f::GUEST_PAT, 0x0007_0406_0007_0406)
        .with(f::GUEST_EFER, u64::MAX)
        .with(f::GUEST_DEBUGCTL, u64::MAX)
        .with(f::ENTRY_CONTROLS, u32::MAX);
    for field in NATURAL {
        v.write(field, u64::MAX);
    }
    for field in DWORDS {
        v.write(field, u32::MAX);
    }
    for fields in Segment::ALL.map(Segment::fields) {
        v.write(fields.selector, u16::MAX);
        v.write(fields.base, u64::MAX);
        v.write(fields.limit, u32::MAX);
        v.write(fields.rights, u32::MAX);
    }
    v.write(f::GUEST_SYSENTER_ESP, 0x1000);
    v.write(f::GUEST_SYSENTER_EIP, 0x2000);
    v
}

/// `dirty()` after `change`, checked by the processor's rules.
fn entered(change: impl Fn(&mut FakeVmcs)) -> FakeVmcs {
    let mut v = dirty();
    change(&mut v);
    let none: [&str; 0] = [];
    assert_eq!(refusals(&v), none);
    v
}

/// Selector, base, limit, access rights.
fn segment(v: &FakeVmcs, segment: Segment) -> (u16, u64, u32, u32) {
    let fields = segment.fields();
    (v.read(fields.selector), v.read(fields.base), v.read(fields.limit), v.read(fields.rights))
}

const DATA: [Segment; 5] = [Segment::Es, Segment::Ss, Segment::Ds, Segment::Fs, Segment::Gs];

#[test]
fn the_checks_refuse_a_state_that_nobody_set_up() {
    assert!(refusals(&dirty()).len() > 20);
}

#[test]
fn init_leaves_the_registers_that_the_manual_lists() {
    // SDM vol. 3, table 11-1.
    let v = entered(init);
    for (field, value) in [
        (f::CR0_SHADOW, 0x10),
        (f::GUEST_CR0, 0x30),
        (f::GUEST_CR3, 0),
        (f::GUEST_CR4, 0x2000),
        (f::GUEST_DR7, 0x400),
        (f::GUEST_RFLAGS, 2),
        (f::GUEST_RIP, 0xfff0),
        (f::GUEST_RSP, 0),
        (f::GUEST_GDTR_BASE, 0),
        (f::GUEST_IDTR_BASE, 0),
    ] {
        assert_eq!(v.read(field), value, "{field:x?}");
    }
    assert_eq!(v.read(f::GUEST_EFER), 0);
    assert_eq!(v.read(f::GUEST_DEBUGCTL), 0);
    assert_eq!(v.read(f::GUEST_GDTR_LIMIT), 0xffff);
    assert_eq!(v.read(f::GUEST_IDTR_LIMIT), 0xffff);
}

#[test]
fn init_leaves_the_segments_that_the_manual_lists() {
    let v = entered(init);
    let code = (0xf000, 0xffff_0000, 0xffff, 0x9b);
    assert_eq!(segment(&v, Segment::Cs), code);
    for data in DATA {
        assert_eq!(segment(&v, data), (0, 0, 0xffff, 0x93));
    }
    assert_eq!(segment(&v, Segment::Ldtr), (0, 0, 0xffff, 0x82));
    assert_eq!(segment(&v, Segment::Tr), (0, 0, 0xffff, 0x8b));
}

#[test]
fn after_init_nothing_is_pending_and_the_processor_runs() {
    let v = entered(init);
    assert_eq!(v.read(f::GUEST_PENDING_DEBUG), 0);
    assert_eq!(v.read(f::GUEST_INTERRUPTIBILITY), 0);
    assert_eq!(v.read(f::ENTRY_INTERRUPTION), 0);
    assert_eq!(v.read(f::GUEST_ACTIVITY), 0);
    assert_eq!(v.read(f::ENTRY_CONTROLS), !(1 << 9));
}

#[test]
fn init_leaves_alone_what_the_manual_says_is_unchanged() {
    let v = entered(init);
    assert_eq!(v.read(f::GUEST_PAT), dirty().read(f::GUEST_PAT));
    assert_eq!(v.read(f::GUEST_SYSENTER_ESP), 0x1000);
    assert_eq!(v.read(f::GUEST_SYSENTER_EIP), 0x2000);
}

#[test]
fn a_start_up_vector_names_a_page_below_1_mib() {
    for vector in 0..=u8::MAX {
        let v = entered(|v| start_up(v, vector));
        let page = u16::from(vector) * 0x100;
        let expected = (page, u64::from(vector) * 0x1000, 0xffff, 0x9b);
        assert_eq!(segment(&v, Segment::Cs), expected);
        assert_eq!(v.read(f::GUEST_RIP), 0);
        // The rest is as after INIT.
        let cs = Segment::Cs.fields();
        let rest =
            v.with(cs.selector, 0xf000).with(cs.base, 0xffff_0000).with(f::GUEST_RIP, 0xfff0);
        assert_eq!(rest, entered(init));
    }
}

#[test]
fn a_waiting_processor_keeps_everything_that_a_start_up_ipi_will_overwrite() {
    let mut v = dirty();
    wait_for_sipi(&mut v);
    let expected = dirty()
        .with(f::GUEST_ACTIVITY, 3)
        .with(f::GUEST_INTERRUPTIBILITY, 0)
        .with(f::GUEST_PENDING_DEBUG, 0)
        .with(f::ENTRY_INTERRUPTION, 0);
    assert_eq!(v, expected);
}

proptest! {
    #[test]
    fn a_processor_can_wait_for_sipi_whatever_it_did(
        vector: u8,
        blocking in 0..0x20_u32,
        activity in 0..4_u32,
        injected: u32,
        pending: u64,
        stepping: bool,
    ) {
        let v = entered(|v| {
            start_up(v, vector);
            v.write(f::GUEST_INTERRUPTIBILITY, blocking);
            v.write(f::GUEST_ACTIVITY, activity);
            v.write(f::ENTRY_INTERRUPTION, injected);
            v.write(f::GUEST_PENDING_DEBUG, pending);
            v.write(f::GUEST_RFLAGS, 2 | u64::from(stepping) << 8);
            wait_for_sipi(v);
        });
        prop_assert_eq!(v.read(f::GUEST_ACTIVITY), 3);
    }

    #[test]
    fn the_host_is_entered_in_flat_32_bit_mode_without_paging(entry: u32) {
        // Multiboot 2, 3.3.
        let v = entered(|v| flat_32_bit(v, entry));
        prop_assert_eq!(v.read(f::GUEST_RIP), u64::from(entry));
        prop_assert_eq!(v.read(f::CR0_SHADOW), 0x11);
        prop_assert_eq!(v.read(f::GUEST_CR0), 0x31);
        prop_assert_eq!(v.read(f::GUEST_RFLAGS), 2);
        prop_assert_eq!(v.read(f::GUEST_EFER), 0);
        prop_assert_eq!(v.read(f::GUEST_ACTIVITY), 0);
        prop_assert_eq!(segment(&v, Segment::Cs), (0x10, 0, u32::MAX, 0xc09b));
        for data in DATA {
            prop_assert_eq!(segment(&v, data), (0x18, 0, u32::MAX, 0xc093));
        }
        prop_assert_eq!(v.read(f::ENTRY_CONTROLS) & OTHER_ENTRY_CONTROLS, OTHER_ENTRY_CONTROLS);
    }
}
