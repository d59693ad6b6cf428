//! Events: the host's, and those of the VM whose delivery an exit cut short.

use ept::shadow::Access;
use nested_vmx::field::{self as f, Vmcs};
use nested_vmx::guard::Verdict;
use proptest::prelude::*;

use super::{IF, VALID, Vm};

/// Entered, in 64-bit mode, with interrupts enabled.
fn open() -> Vm {
    let mut vm = Vm::running();
    vm.v02.write(f::GUEST_RFLAGS, IF | 2);
    vm
}

#[test]
fn interrupts_have_vectors_of_devices() {
    for vector in 0..=0xff {
        for mut vm in [open(), Vm::in_real_mode()] {
            vm.v02.write(f::GUEST_RFLAGS, IF | 2);
            let real = vm.v02.read(f::GUEST_CR0) & 1 == 0;
            vm.exit_to_host(12, 0);
            vm.inject(VALID | vector);
            vm.complete().unwrap();
            let first = if real { 8 } else { 32 };
            let taken = vector >= first && vector != 0x80;
            assert_eq!(vm.injected(), taken.then_some(vector), "{vector:#x}");
        }
    }
}

#[test]
fn only_interrupts_and_nmis_are_injected() {
    for (information, taken) in [
        (0x31, true),
        (0x202, true),
        (0x203, false),
        (0x131, false),
        (0x331, false),
        (0x431, false),
        (0x301, false),
        (0x531, false),
        (0x631, false),
        (0x700, false),
    ] {
        let mut vm = open();
        vm.exit_to_host(1, 0);
        vm.inject(VALID | information);
        vm.enter().unwrap();
        assert_eq!(vm.injected(), taken.then_some(information), "{information:#x}");
        vm.exit_to_host(1, 0);
        vm.inject(information);
        vm.enter().unwrap();
        assert_eq!(vm.injected(), None);
    }
}

#[test]
fn what_the_vm_cannot_take_is_not_injected() {
    for (information, flags, interruptibility, taken) in [
        (0x31, 2, 0, false),
        (0x31, IF | 2, 1, false),
        (0x31, IF | 2, 2, false),
        (0x31, IF | 2, 8, true),
        (0x202, 2, 0, true),
        (0x202, 2, 1, false),
        (0x202, 2, 2, false),
        (0x202, 2, 8, false),
    ] {
        let mut vm = open();
        vm.v02.write(f::GUEST_RFLAGS, flags);
        vm.v02.write(f::GUEST_INTERRUPTIBILITY, interruptibility);
        vm.exit_to_host(1, 0);
        vm.shown.write(f::GUEST_INTERRUPTIBILITY.encoding(), 0);
        vm.shown.write(f::GUEST_RFLAGS.encoding(), IF);
        vm.inject(VALID | information);
        vm.enter().unwrap();
        assert_eq!(vm.injected(), taken.then_some(information), "{information:#x}");
        assert_eq!(vm.v02.read(f::GUEST_INTERRUPTIBILITY), interruptibility);
        assert_eq!(vm.v02.read(f::GUEST_RFLAGS), flags);
    }
}

#[test]
fn an_injected_event_is_not_pending_after_the_next_exit() {
    let mut vm = open();
    vm.exit_to_host(1, 0);
    vm.inject(VALID | 0x31);
    vm.enter().unwrap();
    vm.exit_to_host(1, 0);
    assert_eq!(vm.reads(f::ENTRY_INTERRUPTION.encoding()), 0x31);
    vm.enter().unwrap();
    assert_eq!(vm.injected(), None);
}

/// Cut short: interruption information, error code.
fn interrupted(vm: &mut Vm, information: u32) {
    vm.v02.write(f::IDT_VECTORING, VALID | 1 << 12 | information);
    vm.v02.write(f::IDT_VECTORING_CODE, 0x1234);
}

#[test]
fn the_hosts_own_event_comes_back_to_it() {
    for information in [0x31, 0x202] {
        let mut vm = open();
        vm.v02.write(f::GUEST_INTERRUPTIBILITY, if information == 0x202 { 8 } else { 0 });
        interrupted(&mut vm, information);
        vm.exit_by_page();
        assert_eq!(vm.reads(f::IDT_VECTORING.encoding()), u64::from(VALID | information));
        assert_eq!(vm.reads(f::IDT_VECTORING_CODE.encoding()), 0);
        assert_eq!(vm.reads(f::GUEST_INTERRUPTIBILITY.encoding()), 0);
        vm.inject(VALID | information);
        vm.enter().unwrap();
        assert_eq!(vm.injected(), Some(information));
    }
}

#[test]
fn the_vms_own_event_is_hidden_and_delivered_again() {
    for (information, code) in [(0xb0e, true), (0x306, false), (0x480, false), (0x603, false)] {
        let mut vm = open();
        interrupted(&mut vm, information);
        vm.v02.write(f::GUEST_INTERRUPTIBILITY, 0);
        vm.exit_by_page();
        assert_eq!(vm.reads(f::IDT_VECTORING.encoding()), 0);
        assert_eq!(vm.reads(f::EXIT_INSTRUCTION_LENGTH.encoding()), 0);
        vm.inject(VALID | 0xb0d);
        vm.enter().unwrap();
        assert_eq!(vm.injected(), Some(information));
        assert_eq!(vm.v02.read(f::ENTRY_INSTRUCTION_LENGTH), 2);
        if code {
            assert_eq!(vm.v02.read(f::ENTRY_ERROR_CODE), 0x1234);
        }
        // Once.
        vm.v02.write(f::IDT_VECTORING, 0);
        vm.exit_to_host(1, 0);
        vm.enter().unwrap();
        assert_eq!(vm.injected(), None);
    }
}

#[test]
fn an_interrupt_goes_before_what_comes_again_and_after_what_does_not() {
    for (own, again) in [
        (0xb0e, true),
        (0x480, true),
        (0x501, true),
        (0x603, true),
        (0x301, false),
        (0xb08, false),
        (0x312, false),
    ] {
        let mut vm = open();
        interrupted(&mut vm, own);
        vm.exit_by_page();
        vm.inject(VALID | 0x31);
        vm.enter().unwrap();
        assert_eq!(vm.injected(), Some(if again { 0x31 } else { own }), "{own:#x}");
    }
    // An answer that faults comes again, too.
    let mut vm = open();
    vm.gprs.0[0] = 0x10;
    vm.exit_to_host(28, 0);
    vm.inject(VALID | 0x31);
    vm.complete().unwrap();
    assert_eq!(vm.injected(), Some(0x31));
}

#[test]
fn an_iret_that_did_not_happen_leaves_nmis_blocked() {
    let mut vm = open();
    assert!(matches!(vm.exit(48, 0x1184), Verdict::Fault { .. }));
    let Vm { guarded, shown, gprs, v02 } = &mut vm;
    let _ = guarded.tell_page(shown, gprs, v02, (0, Access::NONE));
    assert_eq!(vm.reads(f::GUEST_INTERRUPTIBILITY.encoding()), 8);
    vm.inject(VALID | 0x202);
    vm.enter().unwrap();
    assert_eq!(vm.v02.read(f::GUEST_INTERRUPTIBILITY), 8);
    assert_eq!(vm.injected(), None);
    let mut vm = open();
    vm.v02.write(f::EXIT_INTERRUPTION, VALID | 0x1312);
    vm.exit_to_host(0, 0);
    assert_eq!(vm.reads(f::EXIT_INTERRUPTION.encoding()), u64::from(VALID | 0x312));
    assert_eq!(vm.reads(f::GUEST_INTERRUPTIBILITY.encoding()), 8);
}

#[test]
fn exceptions_that_are_intercepted_for_the_hosts_sake_are_delivered() {
    let mut vm = open();
    vm.v02.write(f::EXIT_INTERRUPTION, VALID | 0x1b11);
    vm.v02.write(f::EXIT_ERROR_CODE, 0);
    vm.v02.write(f::ENTRY_ERROR_CODE, 5);
    assert_eq!(vm.exit(0, 0), Verdict::Stay);
    assert_eq!(vm.injected(), Some(0xb11));
    assert_eq!(vm.v02.read(f::ENTRY_ERROR_CODE), 0);
    assert_eq!(vm.v02.read(f::GUEST_PENDING_DEBUG), 0);
    for event in [0x301, 0x501] {
        let mut vm = open();
        vm.v02.write(f::EXIT_INTERRUPTION, VALID | event);
        vm.v02.write(f::GUEST_DR7, 0x2455);
        assert_eq!(vm.exit(0, 0xffff_ffff), Verdict::Debug(0x600f));
        assert_eq!(vm.injected(), Some(event));
        assert_eq!(vm.v02.read(f::ENTRY_INSTRUCTION_LENGTH), 2);
        assert_eq!(vm.v02.read(f::GUEST_DR7), 0x455);
    }
}

#[test]
fn an_exception_is_delivered_where_a_single_step_waits_for_the_next_instruction() {
    for (flags, interruptibility, pending) in
        [(0x102, 0, 0), (0x102, 1, 1 << 14), (0x102, 2, 1 << 14), (0x102, 8, 0), (2, 1, 0)]
    {
        let mut vm = open();
        vm.v02.write(f::GUEST_RFLAGS, flags);
        vm.v02.write(f::GUEST_INTERRUPTIBILITY, interruptibility);
        vm.v02.write(f::EXIT_INTERRUPTION, VALID | 0xb11);
        assert_eq!(vm.exit(0, 0), Verdict::Stay);
        assert_eq!(vm.v02.read(f::GUEST_PENDING_DEBUG), pending);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_exception_other_than_the_entitled_one_reaches_the_vm(
        information: u32, reason in 0..70_u32, own in prop_oneof![Just(0), Just(VALID | 0xb0e)],
        completes: bool,
    ) {
        let mut vm = open();
        vm.v02.write(f::IDT_VECTORING, own);
        vm.v02.write(f::EXIT_INTERRUPTION, VALID | 0x202);
        let verdict = vm.exit(reason, 0x0070_0000);
        if verdict != Verdict::Host {
            return Ok(());
        }
        vm.inject(information);
        if completes {
            vm.complete().unwrap();
        } else {
            vm.enter().unwrap();
        }
        let injected = vm.injected();
        let external = injected.is_some_and(|event| {
            matches!(event, 0x20..=0x7f | 0x81..=0xff | 0x202)
        });
        let entitled = match reason {
            28 | 31 | 32 | 55 => injected == Some(0xb0d),
            36 | 39 => injected == Some(0x306),
            _ => false,
        };
        let kept = own != 0 && injected == Some(own & !VALID);
        prop_assert!(injected.is_none() || external || entitled || kept, "{injected:x?}");
    }
}
