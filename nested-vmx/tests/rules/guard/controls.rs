//! Controls with which a protected VM runs.

use nested_vmx::control::{Primary, Secondary};
use nested_vmx::field::{self as f, Vmcs};
use nested_vmx::guard::msr::{BITMAP_BYTES, fill_bitmap};
use nested_vmx::guard::{Guarded, Secrets};
use nested_vmx::vmcs12::{Class, Vmcs12, encodings};
use proptest::prelude::*;

use super::{HOST, Vm};
use crate::good;

/// Entered with these controls of the host's.
fn with(fields: &[(u32, u64)]) -> Vm {
    let mut vm = Vm::running();
    vm.exit_to_host(1, 0);
    fields.iter().for_each(|(encoding, value)| vm.shown.write(*encoding, *value));
    vm.enter().unwrap();
    vm
}

#[test]
fn a_host_that_asks_for_everything_gets_its_share() {
    let ones = encodings(&[Class::Control, Class::HotControl]).map(|field| (field, u64::MAX));
    let vm = with(&ones.collect::<Vec<_>>());
    let v = &vm.v02;
    assert_eq!(v.read(f::PIN_CONTROLS), 0x7f & !0x80);
    // No INVLPG, RDTSC, CR3, debug registers or single steps.
    let primary = v.read(f::PRIMARY_CONTROLS);
    assert_eq!(primary & (1 << 9 | 1 << 12 | 3 << 15 | 1 << 23 | 1 << 27 | 1 << 25), 0);
    // Neither descriptor tables, RDRAND, RDSEED, nor what is not advertised.
    assert_eq!(v.read(f::SECONDARY_CONTROLS), 0x0218_14ca & !(1 << 5));
    assert_eq!(v.read(f::EXCEPTION_BITMAP), 1 << 17 | 1 << 18 | 1 << 1);
    assert_eq!(v.read(f::CR3_TARGET_COUNT), 0);
    for count in [f::ENTRY_MSR_LOAD_COUNT, f::EXIT_MSR_STORE_COUNT, f::EXIT_MSR_LOAD_COUNT] {
        assert_eq!(vm.guarded.effective().fields().read(count), 0);
    }
    assert_eq!(v.read(f::TSC_OFFSET), u64::MAX);
}

#[test]
fn a_host_that_asks_for_nothing_gets_what_must_be() {
    let zeros = encodings(&[Class::Control, Class::HotControl]).map(|field| (field, 0));
    let vm = with(&zeros.collect::<Vec<_>>());
    let v = &vm.v02;
    assert_eq!(v.read(f::PIN_CONTROLS), 0x16 | 1 | 1 << 3 | 1 << 5);
    let primary = Primary::from_bits_retain(v.read(f::PRIMARY_CONTROLS));
    let must = Primary::UNCONDITIONAL_IO | Primary::MSR_BITMAPS | Primary::RDPMC;
    assert!(primary.contains(must | Primary::SECONDARY));
    assert_eq!(v.read(f::SECONDARY_CONTROLS) & !FIRST, Secondary::EPT.bits());
    assert_eq!(v.read(f::MSR_BITMAP), 0x5000);
    assert_eq!(v.read(f::CR0_MASK), 1 << 5 | 3 << 29);
    assert_eq!(v.read(f::CR4_MASK) & 0x6040, 0x6040);
    assert_eq!(v.read(f::ENTRY_CONTROLS) & 0xe204, 0xc204);
    assert_eq!(v.read(f::EXCEPTION_BITMAP), 1 << 17 | 1 << 18 | 1 << 1);
}

/// RDTSCP, unrestricted guest, INVPCID, XSAVES: without them instructions raise exceptions.
const FIRST: u32 = 1 << 3 | 1 << 7 | 1 << 12 | 1 << 20;

#[test]
fn instructions_that_a_vm_had_at_first_it_keeps() {
    let mut vm = Vm::running();
    let first = vm.v02.read(f::SECONDARY_CONTROLS) & FIRST;
    assert!(first != 0, "there is something to lose");
    for asked in [0, FIRST, 0] {
        vm.exit_to_host(1, 0);
        let rest = vm.reads(f::SECONDARY_CONTROLS.encoding()) & !u64::from(FIRST);
        vm.shown.write(f::SECONDARY_CONTROLS.encoding(), rest | u64::from(asked));
        vm.enter().unwrap();
        assert_eq!(vm.v02.read(f::SECONDARY_CONTROLS) & FIRST, first);
    }
}

#[test]
fn windows_open_and_close_as_the_host_likes() {
    let mut vm = Vm::running();
    for window in [1 << 2, 1 << 22, 1 << 2 | 1 << 22, 0] {
        vm.exit_to_host(1, 0);
        let rest = vm.reads(f::PRIMARY_CONTROLS.encoding()) & !(1 << 2 | 1 << 22);
        vm.shown.write(f::PRIMARY_CONTROLS.encoding(), rest | window);
        vm.enter().unwrap();
        let set = vm.v02.read(f::PRIMARY_CONTROLS) & (1 << 2 | 1 << 22);
        assert_eq!(u64::from(set), window);
    }
}

#[test]
fn checks_are_due_again_only_when_the_host_has_changed_what_they_are_about() {
    let mut vm = Vm::running();
    assert!(vm.shown.is_unchecked());
    let advertised = good::advertised();
    assert_eq!(vm.shown.check(&good::context(&advertised)), Ok(()));
    vm.exit_to_host(12, 0);
    vm.complete().unwrap();
    assert!(!vm.shown.is_unchecked());
    for field in [f::PIN_CONTROLS.encoding(), f::HOST_RSP.encoding(), f::GUEST_CR4.encoding()] {
        vm.exit_to_host(12, 0);
        assert!(!vm.shown.is_unchecked());
        vm.shown.write(field, vm.reads(field));
        assert!(vm.shown.is_unchecked());
        assert_eq!(vm.shown.check(&good::context(&advertised)), Ok(()));
        vm.complete().unwrap();
        assert!(!vm.shown.is_unchecked());
    }
}

#[test]
fn translations_have_the_visors_tag_or_none() {
    for (tag, secondary) in [(0, 0), (9, 1 << 5)] {
        let vm = Vm::new(|_| {});
        let page = Box::leak(Box::new(Vmcs12::EMPTY));
        let secrets = Box::leak(Box::new(Secrets::new(tag, (1, u64::MAX))));
        let mut vm = Vm { guarded: Guarded::new(page, secrets), ..vm };
        vm.guarded.first_entry(&mut vm.shown, &HOST, &vm.gprs).unwrap();
        vm.enter().unwrap();
        assert_eq!(vm.v02.read(f::SECONDARY_CONTROLS) & 1 << 5, secondary);
        if tag != 0 {
            assert_eq!(vm.v02.read(f::VPID), tag);
        }
    }
}

#[test]
fn a_vm_moves_to_another_processor_with_its_state() {
    let mut vm = Vm::running();
    for encoding in [0x0800, 0x2804, 0x4810, 0x6806, 0x681a, 0x681c, 0x681e, 0x6824] {
        vm.v02.write_raw(encoding, u64::from(encoding) + 7);
    }
    let before = vm.v02.read_raw(0x6806);
    vm.exit_to_host(12, 0);
    vm.guarded.synchronize(&vm.v02);
    let mut page = Box::new(Vmcs12::EMPTY);
    let mut words = vec![0; 512];
    vm.guarded.effective().fields().store(|index, word| words[index] = word);
    page.load(|index| words[index]);
    assert_eq!(page.read_raw(0x6806), before);
    assert_eq!(page.read_raw(0x6824), 0x682b);
    assert_eq!(page.read_raw(0x681e), 0x6825);
}

#[test]
fn the_bitmaps_open_the_vms_own_registers_only() {
    let mut bitmap = Box::new([0; BITMAP_BYTES]);
    fill_bitmap(&mut bitmap);
    let own = [
        0x174,
        0x175,
        0x176,
        0x277,
        0xc000_0081,
        0xc000_0082,
        0xc000_0083,
        0xc000_0084,
        0xc000_0100,
        0xc000_0101,
        0xc000_0102,
        0xc000_0103_u32,
    ];
    for (base, offset) in [(0_u32, 0), (0xc000_0000, 1024)] {
        for low in 0..0x2000_u32 {
            let place = usize::try_from(low).unwrap();
            for at in [offset, offset + 2048] {
                let exits = bitmap[at + place / 8] >> (place % 8) & 1 == 1;
                assert_eq!(exits, !own.contains(&(base + low)), "{:#x}", base + low);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn whatever_the_host_writes_the_shadows_are_the_vms(mask: u64, shadow: u64, own: u64) {
        let mut vm = Vm::running();
        let (cr0, cr4) = (0x8005_0033, 0x6a0);
        for (masked, value) in [(mask, shadow), (own, !shadow)] {
            vm.exit_to_host(1, 0);
            for field in [f::CR0_MASK, f::CR4_MASK] {
                vm.shown.write(field.encoding(), masked);
            }
            for field in [f::CR0_SHADOW, f::CR4_SHADOW, f::GUEST_CR0, f::GUEST_CR4] {
                vm.shown.write(field.encoding(), value);
            }
            vm.enter().unwrap();
            let v = &vm.v02;
            let read = |register: u64, mask: u64, shadow: u64| register & !mask | shadow & mask;
            let seen = read(v.read(f::GUEST_CR0), v.read(f::CR0_MASK), v.read(f::CR0_SHADOW));
            prop_assert_eq!(seen, cr0);
            let seen = read(v.read(f::GUEST_CR4), v.read(f::CR4_MASK), v.read(f::CR4_SHADOW));
            prop_assert_eq!(seen, cr4);
        }
    }
}
