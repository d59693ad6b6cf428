//! The first entry.

use nested_vmx::field::{self as f, Segment, Vmcs};
use nested_vmx::guard::start::{Start, kind, state};
use nested_vmx::guard::{Cause, DECOY_RIP, ask_again};
use nested_vmx::merge::HostRegisters;
use nested_vmx::state as reset_state;
use nested_vmx::vmcs12::{Class, Vmcs12, encodings};

use super::{Gprs, HOST, RDX, Vm};
use crate::good;

/// The state in which KVM has a virtual processor after reset (arch/x86/kvm/vmx/vmx.c of Linux 6.1,
/// `vmx_vcpu_reset`): the processor's own state, with what VMX wants in CR0 and CR4, behind masks.
pub(crate) fn reset(shown: &mut Vmcs12) {
    reset_state::init(shown);
    for (encoding, value) in [
        (f::CR0_MASK.encoding(), !8),
        (f::CR0_SHADOW.encoding(), 0x6000_0010),
        (f::GUEST_CR0.encoding(), 0x30),
        (f::CR4_MASK.encoding(), !0x7f0),
        (f::CR4_SHADOW.encoding(), 0),
        (f::GUEST_CR4.encoding(), 0x2000),
        (f::GUEST_PAT.encoding(), 0x0007_0406_0007_0406),
        (f::GUEST_SYSENTER_CS.encoding(), 0),
        (f::ENTRY_CONTROLS.encoding(), 0x11ff | 0b111 << 13),
    ] {
        shown.write_raw(encoding, value);
    }
}

fn signed() -> Gprs {
    let mut gprs = Gprs([0; 16]);
    gprs.0[RDX] = 0x806e9;
    gprs
}

fn at_reset(change: impl FnOnce(&mut Vmcs12)) -> Box<Vmcs12> {
    let mut page = good::vmcs12();
    reset(&mut page);
    change(&mut page);
    page
}

#[test]
fn what_kvm_sets_up_is_the_reset_state() {
    assert_eq!(kind(&at_reset(|_| {}), &signed()), Start::Reset);
    assert_eq!(kind(&at_reset(|_| {}), &Gprs([0; 16])), Start::Reset);
}

#[test]
fn a_start_up_state_has_its_vector() {
    // Xen does without the bit of DR7 that is always 1.
    for dr7 in [0x400, 0] {
        let page = at_reset(|page| {
            page.write(Segment::Cs.fields().selector, 0x9a00);
            page.write(Segment::Cs.fields().base, 0x9_a000);
            page.write(f::GUEST_RIP, 0);
            page.write(f::GUEST_DR7, dr7);
        });
        assert_eq!(kind(&page, &signed()), Start::StartUp(0x9a));
    }
}

#[test]
fn every_other_bit_of_the_state_makes_it_another_one() {
    let ignored = [0x2800, 0x2808, 0x280a, 0x280c, 0x280e, 0x2810, 0x4828];
    for encoding in encodings(&[Class::Guest, Class::HotGuest]) {
        // Bits that mask and shadow hide, and CD in CR0, are not the VM's.
        let bits = match encoding {
            0x6800 => 8,
            0x6804 => 1 << 5,
            _ => 1 << 3,
        };
        let page = at_reset(|page| page.write_raw(encoding, page.read_raw(encoding) ^ bits));
        let expected = if ignored.contains(&encoding) { Start::Reset } else { Start::Other };
        assert_eq!(kind(&page, &signed()), expected, "{encoding:#x}");
    }
    for (encoding, value) in [
        (f::CR0_SHADOW.encoding(), 0x6000_0011),
        (f::CR4_SHADOW.encoding(), 1 << 13),
        (f::ENTRY_CONTROLS.encoding(), 0x11ff | 0b101 << 13),
        (f::ENTRY_CONTROLS.encoding(), 0x11ff | 0b011 << 13),
        (f::ENTRY_CONTROLS.encoding(), 0x11fb | 0b111 << 13),
        (f::ENTRY_CONTROLS.encoding(), 0x13ff | 0b111 << 13),
    ] {
        let page = at_reset(|page| page.write_raw(encoding, value));
        assert_eq!(kind(&page, &signed()), Start::Other, "{encoding:#x}");
    }
    for number in (0..16).filter(|number| *number != 4) {
        let mut gprs = signed();
        gprs.0[number] |= 1 << 32;
        assert_eq!(kind(&at_reset(|_| {}), &gprs), Start::Other, "register {number}");
    }
}

fn words(page: &Vmcs12, host: &HostRegisters, gprs: &Gprs) -> Vec<u64> {
    let mut words = Vec::new();
    state(page, host, gprs, |word| words.push(word));
    words
}

#[test]
fn the_canonical_form_is_ascending_fields_and_then_registers() {
    let mut page = at_reset(|_| {});
    for encoding in encodings(&[Class::Guest, Class::HotGuest]) {
        page.write_raw(encoding, encoding.into());
    }
    page.write(f::CR0_MASK, 0xff00);
    page.write(f::CR0_SHADOW, 0x1234);
    page.write(f::CR4_MASK, 0);
    let gprs = Gprs(core::array::from_fn(|number| u64::try_from(number).unwrap() + 100));
    let mut expected: Vec<u64> = [
        (0x0800, 8),
        (0x2804, 2), // PAT, EFER
        (0x4800, 22),
        (0x6800, 20),
    ]
    .into_iter()
    .flat_map(|(first, count)| (0..count).map(move |n| first + 2 * n))
    .filter(|encoding| *encoding != 0x4828)
    .collect();
    let cr0 = expected.iter().position(|encoding| *encoding == 0x6800).unwrap();
    expected[cr0] = 0x1200;
    expected.extend((0..16).map(|number| if number == 4 { 0 } else { number + 100 }));
    assert_eq!(words(&page, &HOST, &gprs), expected);
}

#[test]
fn what_the_entry_does_not_load_the_hash_has_as_the_vm_will_have_it() {
    const PAT: u64 = 0x0007_0406_0007_0406;
    let host = HostRegisters { efer: 0x501, pat: 0x77, dr7: 0x455, debugctl: 9 };
    for (loads, pat, efer, dr7) in [
        (0b1100_0000_0000_0100, PAT, 0, 0x400),
        (0b1100_0000_0000_0000, PAT, 0, 0x455),
        (0b1000_0000_0000_0100, 0x77, 0, 0x400),
        (0b0100_0000_0000_0100, PAT, 0x101, 0x400),
    ] {
        let page = at_reset(|page| page.write(f::ENTRY_CONTROLS, 0x11fb | loads));
        let words = words(&page, &host, &signed());
        assert_eq!(words[8..10], [pat, efer]);
        assert!(words.contains(&dr7) && !words.contains(&(dr7 ^ 0x55)));
    }
}

#[test]
fn the_first_entry_takes_the_state_and_leaves_decoys() {
    let mut vm = Vm::new(|shown| {
        for encoding in encodings(&[Class::Guest]) {
            shown.write_raw(encoding, 0x4242_4242_4242_4242);
        }
        super::set_up(shown);
        shown.write(f::GUEST_ACTIVITY, 0);
        shown.write(f::GUEST_RSP, 0x4242_4242);
        shown.write(f::GUEST_CR3, 0x4242_4000);
        shown.write(f::GUEST_PHYSICAL_ADDRESS, 0x4242_4242);
    });
    vm.gprs.0[3] = 0x4242;
    vm.guarded.first_entry(&mut vm.shown, &HOST, &vm.gprs).unwrap();
    for encoding in encodings(&[Class::Guest, Class::HotGuest, Class::Information]) {
        let value = vm.reads(encoding);
        assert!(encoding == 0x2800 || encoding == 0x4828 || value & 0xffff != 0x4242);
    }
    assert_eq!(vm.reads(f::GUEST_RIP.encoding()), DECOY_RIP);
    vm.gprs = Gprs([9; 16]);
    vm.enter().unwrap();
    let kept = [
        (f::GUEST_RIP.encoding(), 0xffff_ffff_8100_0000),
        (f::GUEST_RSP.encoding(), 0x4242_4242),
        (f::GUEST_CR3.encoding(), 0x4242_4000),
        (f::GUEST_CR0.encoding(), 0x8005_0033),
        (f::GUEST_CR4.encoding(), 0x26e0),
        (f::CR4_SHADOW.encoding(), 0x6a0),
        (f::GUEST_GDTR_BASE.encoding(), 0x4242_4242_4242_4242),
        (f::GUEST_SYSENTER_EIP.encoding(), 0x4242_4242_4242_4242),
        (f::GUEST_EFER.encoding(), 0xd01),
        (f::GUEST_DR7.encoding(), 0x4242_4242_4242_4242),
        // Not the host's to choose.
        (f::GUEST_DEBUGCTL.encoding(), 0),
        (f::VMCS_LINK_POINTER.encoding(), u64::MAX),
    ];
    for (encoding, value) in kept {
        assert_eq!(vm.v02.read_raw(encoding), value, "{encoding:#x}");
    }
    assert_eq!(vm.gprs.0[3], 0x4242);
    let vm = Vm::in_real_mode();
    assert_eq!(vm.v02.read(f::GUEST_CR0), 0x6000_0030);
    assert_eq!(vm.v02.read(f::CR0_SHADOW), 0x6000_0010);
}

#[test]
fn a_vm_that_begins_elsewhere_differs_in_the_base_of_its_code_alone() {
    let plain = Vm::in_real_mode();
    let mut moved = Vm::new(reset);
    moved.guarded.first_entry(&mut moved.shown, &HOST, &moved.gprs).unwrap();
    moved.guarded.reset_in(0x10_0000);
    let shown = |vm: &Vm| encodings(&[Class::Guest]).map(|at| vm.reads(at)).collect::<Vec<_>>();
    assert_eq!(shown(&moved), shown(&plain), "the host sees nothing of it");
    moved.enter().unwrap();
    let base = Segment::Cs.fields().base;
    assert_eq!((plain.v02.read(base), moved.v02.read(base)), (0xffff_0000, 0x10_0000));
    assert_eq!(moved.v02.read(f::GUEST_RIP), 0xfff0);
    for encoding in encodings(&[Class::Guest]).filter(|at| *at != base.encoding()) {
        assert_eq!(moved.v02.read_raw(encoding), plain.v02.read_raw(encoding), "{encoding:#x}");
    }
}

#[test]
fn a_vm_does_not_start_with_hidden_features_or_in_pae_paging() {
    type Change = fn(&mut Vmcs12);
    let rows: [(Change, Cause); 4] = [
        (|page| page.write(f::CR4_SHADOW, 1 << 23), Cause::FirstState),
        (|page| page.write(f::CR4_SHADOW, 1 << 13), Cause::FirstState),
        (|page| page.write(f::ENTRY_CONTROLS, 0xf1ff), Cause::PaePaging),
        (
            |page| {
                page.write(f::CR4_MASK, 0);
                page.write(f::GUEST_CR4, 0x4000);
            },
            Cause::FirstState,
        ),
    ];
    for (change, cause) in rows {
        let mut vm = Vm::new(change);
        assert_eq!(vm.guarded.first_entry(&mut vm.shown, &HOST, &vm.gprs), Err(cause));
    }
}

#[test]
fn what_a_vm_was_before_protection_is_not_overlooked() {
    let mut vm = Vm::new(|_| {});
    vm.shown.capture(&vm.v02);
    let first = vm.guarded.first_entry(&mut vm.shown, &HOST, &vm.gprs);
    assert_eq!(first, Err(Cause::FirstState));
}

#[test]
fn a_host_that_is_asked_to_enter_again_keeps_the_state_that_it_has_set_up() {
    let mut vm = Vm::new(reset);
    let gprs = signed();
    vm.shown.write(f::ENTRY_INTERRUPTION.encoding(), 0x8000_0020);
    ask_again(&mut vm.shown);
    assert_eq!(kind(vm.shown.fields(), &gprs), Start::Reset);
    let told = |field| vm.shown.fields().read_raw(field);
    assert_eq!(told(f::EXIT_REASON.encoding()), 48);
    // A fetch of which nothing is permitted, by a linear address that was translated.
    assert_eq!(told(f::EXIT_QUALIFICATION.encoding()), 0x184);
    assert_eq!(told(f::GUEST_PHYSICAL_ADDRESS.encoding()), 0xffff_f000);
    assert_eq!(told(f::EXIT_INSTRUCTION_LENGTH.encoding()), 0);
    assert_eq!(told(f::IDT_VECTORING.encoding()), 0);
    assert_eq!(told(f::ENTRY_INTERRUPTION.encoding()), 0x20, "it is not pending any more");
    assert!(vm.shown.is_unchecked(), "the host's state is looked at again");
}
