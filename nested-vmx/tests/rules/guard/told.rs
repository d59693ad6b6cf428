//! What the host is told of exits, in each row of the table.

use ept::shadow::Access;
use nested_vmx::exit::Event;
use nested_vmx::field::{self as f, Segment, Vmcs};
use nested_vmx::guard::{Cause, DECOY_RIP, Verdict, shut_down};

use super::{Gprs, IF, RAX, RBX, RCX, RDX, VALID, Vm};

const GP: Verdict = Verdict::Raise(Event::GeneralProtection(0));

/// All registers of the VM in use.
fn busy() -> Vm {
    let mut vm = Vm::running();
    vm.gprs = Gprs(core::array::from_fn(|n| 0x1111_1111_1111_1111 * u64::try_from(n).unwrap()));
    vm
}

/// Only these registers are not 0.
fn only(registers: &[(usize, u64)]) -> Gprs {
    let mut gprs = Gprs([0; 16]);
    registers.iter().for_each(|(number, value)| gprs.0[*number] = *value);
    gprs.0[4] = 0x4444_4444_4444_4444;
    gprs
}

#[test]
fn the_registers_of_each_exit_are_shown_and_no_others() {
    type Seen = &'static [(usize, u64)];
    const A: u64 = 0xaaaa_aaaa;
    const C: u64 = 0xcccc_cccc;
    const D: u64 = 0xdddd_dddd;
    let rows: [(u32, u64, Seen); 18] = [
        (1, 0, &[]),
        (7, 0, &[]),
        (8, 0, &[]),
        (10, 0, &[(RAX, A), (RCX, C)]),
        (12, 0, &[]),
        (28, 0x0f00, &[(RAX, 0xffff_ffff_ffff_ffff)]),
        (28, 0x0404, &[(RAX, 0x5555)]),
        (28, 0x0308, &[(RAX, 0xb)]),
        (28, 0x0318, &[]),
        (28, 0x20, &[]),
        (28, 0x000b_0030, &[]),
        (30, 0x0cf8_0003, &[(RAX, A)]),
        (30, 0x0070_0000, &[(RAX, 0xaa)]),
        (30, 0x0070_0001, &[(RAX, 0xaaaa)]),
        (30, 0x0070_0009, &[]),
        (40, 0, &[]),
        (52, 0, &[]),
        (55, 0, &[(RAX, A), (RCX, C), (RDX, D)]),
    ];
    for (reason, qualification, expected) in rows {
        let mut vm = busy();
        let wide = |value: u64| 0xf0f0_f0f0 << 32 | value;
        vm.gprs.0[RAX] = wide(A);
        vm.gprs.0[RCX] = wide(C);
        vm.gprs.0[RDX] = wide(D);
        vm.gprs.0[RBX] = 0xb;
        vm.v02.write(f::GUEST_RSP, 0x5555);
        vm.exit_to_host(reason, qualification);
        assert_eq!(vm.gprs, only(expected), "{reason} {qualification:#x}");
        assert_eq!(vm.reads(f::EXIT_REASON.encoding()), reason.into());
        assert_eq!(vm.reads(f::GUEST_RIP.encoding()), DECOY_RIP);
    }
}

#[test]
fn qualifications_keep_what_the_host_needs() {
    for (reason, qualification, told) in [
        (28, 0xffff_ffff_0000_0fc4, 0x04),
        (28, 0x00fb_0170, 0x000b_0030),
        (28, 0xdead_0f08, 0x08),
        (30, 0xffff_ffff_03f8_ffc8, 0x03f8_0008),
        (30, 0x0cf8_0043, 0x0cf8_0003),
        (12, 0x77, 0),
        (1, 0x77, 0),
    ] {
        let mut vm = busy();
        vm.exit_to_host(reason, qualification);
        assert_eq!(vm.reads(f::EXIT_QUALIFICATION.encoding()), told, "{reason}");
    }
}

#[test]
fn events_and_lengths_are_told_of_exits_that_have_them() {
    for (reason, event, length) in [(0, true, 0), (1, true, 0), (12, false, 2), (52, false, 0)] {
        let mut vm = busy();
        vm.v02.write(f::EXIT_INTERRUPTION, VALID | 0x1202);
        vm.exit_to_host(reason, 0);
        let told = u64::from(if event { VALID | 0x202 } else { 0 });
        assert_eq!(vm.reads(f::EXIT_INTERRUPTION.encoding()), told, "{reason}");
        assert_eq!(vm.reads(f::EXIT_INSTRUCTION_LENGTH.encoding()), length, "{reason}");
    }
}

#[test]
fn msr_indexes_are_told_of_registers_that_hosts_emulate() {
    for (index, reads, writes) in [
        (0x10, Verdict::Host, Verdict::Host),
        (0x1b, Verdict::Host, Verdict::Host),
        (0x6e0, Verdict::Host, Verdict::Host),
        (0x830, Verdict::Host, Verdict::Host),
        (0xfe, Verdict::Host, Verdict::Host),
        (0x2ff, Verdict::Host, Verdict::Host),
        (0xc000_0080, Verdict::Step, Verdict::Host),
        (0x1d9, Verdict::Step, GP),
        (0xda0, Verdict::Step, GP),
        // The VM's own do not exit.
        (0xc000_0082, GP, GP),
        (0x277, GP, GP),
        // KVM's clock, Hyper-V, performance counters, VMX, Processor Trace.
        (0x4b56_4d01, GP, GP),
        (0x4000_0000, GP, GP),
        (0xc1, GP, GP),
        (0x480, GP, GP),
        (0x570, GP, GP),
    ] {
        for (reason, expected) in [(31, reads), (32, writes)] {
            let mut vm = busy();
            vm.gprs.0[RCX] = 0xffff_ffff_0000_0000 | index;
            vm.gprs.0[RAX] = 0x77_0000_0400;
            assert_eq!(vm.exit(reason, 0), expected, "{index:#x}");
            if expected == Verdict::Host {
                let written: &[_] = &[(RCX, index), (RAX, 0x400), (RDX, 0x2222_2222)];
                let shown = if reason == 31 { &written[..1] } else { written };
                assert_eq!(vm.gprs, only(shown), "{index:#x}");
            }
        }
    }
}

#[test]
fn registers_without_a_host_are_read_by_the_visor() {
    let mut vm = busy();
    vm.gprs.0[RCX] = 0xc000_0080;
    assert_eq!(vm.exit(31, 0), Verdict::Step);
    assert_eq!((vm.gprs.0[RAX], vm.gprs.0[RDX]), (0xd01, 0));
    vm.gprs.0[RCX] = 0x1d9;
    assert_eq!(vm.exit(31, 0), Verdict::Step);
    assert_eq!((vm.gprs.0[RAX], vm.gprs.0[RDX]), (0, 0));
    (vm.gprs.0[RAX], vm.gprs.0[RDX]) = (3, 0);
    assert_eq!(vm.exit(32, 0), Verdict::Step);
}

#[test]
fn what_the_visor_answers_alone_the_host_does_not_see() {
    for (reason, qualification, expected) in [
        (11, 0, Verdict::Raise(Event::InvalidOpcode)),
        (13, 0, Verdict::Step),
        (15, 0, GP),
        (18, 0, Verdict::Step),
        (19, 0, Verdict::Raise(Event::InvalidOpcode)),
        (27, 0, Verdict::Raise(Event::InvalidOpcode)),
        (50, 0, Verdict::Raise(Event::InvalidOpcode)),
        (2, 0, Verdict::Stop(Cause::Shutdown)),
        (9, 0, Verdict::Stop(Cause::TaskSwitch)),
        (28, 3, Verdict::Stop(Cause::NoRule(28))),
        (29, 0, Verdict::Stop(Cause::NoRule(29))),
        (30, 0x10, Verdict::StringPort),
        (37, 0, Verdict::Stop(Cause::NoRule(37))),
        (70, 0, Verdict::Stop(Cause::NoRule(70))),
    ] {
        let mut vm = busy();
        let (before, shown) = (vm.gprs, vm.reads(f::EXIT_REASON.encoding()));
        assert_eq!(vm.exit(reason, qualification), expected, "{reason}");
        assert_eq!(vm.reads(f::EXIT_REASON.encoding()), shown);
        let call = if reason == 18 { 1000_u64.wrapping_neg() } else { 0 };
        assert_eq!(
            vm.gprs,
            Gprs({
                let mut all = before.0;
                all[RAX] |= call;
                all
            })
        );
    }
    let mut vm = Vm::in_real_mode();
    assert_eq!(vm.exit(18, 0), Verdict::Step);
    assert_eq!(vm.gprs.0[RAX], 0xffff_fc18);
}

#[test]
fn the_size_of_the_extended_state_is_the_visors_to_say() {
    let mut vm = busy();
    vm.gprs.0[RAX] = 0x7_0000_000d;
    assert_eq!(vm.exit(10, 0), Verdict::ExtendedState);
}

#[test]
fn privileged_instructions_outside_ring_0_fault_before_the_host_hears_of_them() {
    for reason in [12, 13, 28, 31, 32, 54, 55] {
        let mut vm = busy();
        vm.gprs.0[RCX] = 0x10;
        vm.v02.write(Segment::Ss.fields().rights, 0xc0f3);
        assert_eq!(vm.exit(reason, 0), GP, "{reason}");
    }
    let mut vm = busy();
    vm.v02.write(Segment::Ss.fields().rights, 0xc0f3);
    vm.exit_to_host(10, 0);
    assert_eq!(vm.reads(Segment::Ss.fields().rights.encoding()), 0xc093);
}

#[test]
fn what_hosts_remember_is_told_as_it_is() {
    let mut vm = busy();
    let rights = Segment::Cs.fields().rights;
    for (encoding, value, told) in [
        (f::GUEST_CR0.encoding(), 0x8005_003b, 0x8005_003b),
        (f::GUEST_CR4.encoding(), 0x36_26e0, 0x36_26e0),
        (f::GUEST_EFER.encoding(), 0x500, 0x500),
        (f::GUEST_ACTIVITY.encoding(), 1, 1),
        (f::GUEST_INTERRUPTIBILITY.encoding(), 9, 9),
        (f::GUEST_RFLAGS.encoding(), 0xffff_ffff, IF | 2),
        (f::GUEST_RFLAGS.encoding(), 0x2, 2),
        (rights.encoding(), 0xc0fb, 0xc09b),
        (rights.encoding(), 0x001_a0fb, 0xa09b),
    ] {
        vm.v02.write_raw(encoding, value);
        vm.exit_to_host(1, 0);
        assert_eq!(vm.reads(encoding), told, "{encoding:#x}");
        vm.enter().unwrap();
    }
    let entry = vm.v02.read(f::ENTRY_CONTROLS);
    vm.v02.write(f::ENTRY_CONTROLS, entry & !(1 << 9));
    vm.exit_to_host(1, 0);
    assert_eq!(vm.reads(f::ENTRY_CONTROLS.encoding()) & 1 << 9, 0);
}

#[test]
fn a_host_does_not_find_again_what_it_has_no_right_to_write() {
    let rights = Segment::Ss.fields().rights.encoding();
    let fields = [f::GUEST_RSP.encoding(), f::GUEST_CR3.encoding(), f::GUEST_RIP.encoding()];
    let mut vm = busy();
    vm.exit_to_host(1, 0);
    for encoding in fields.into_iter().chain([rights]) {
        vm.shown.write(encoding, 0x7777);
    }
    vm.enter().unwrap();
    vm.exit_to_host(1, 0);
    assert_eq!(fields.map(|encoding| vm.reads(encoding)), [0, 0, DECOY_RIP]);
    assert_eq!(vm.reads(rights), 0xc093);
}

#[test]
fn an_absent_page_is_a_write_of_a_page_address() {
    let mut vm = busy();
    vm.v02.write(f::GUEST_LINEAR_ADDRESS, 0x4242);
    vm.exit_by_page();
    assert_eq!(vm.reads(f::EXIT_REASON.encoding()), 48);
    assert_eq!(vm.reads(f::EXIT_QUALIFICATION.encoding()), 0x182);
    assert_eq!(vm.reads(f::GUEST_PHYSICAL_ADDRESS.encoding()), 0x1234_5000);
    assert_eq!(vm.reads(f::GUEST_LINEAR_ADDRESS.encoding()), 0);
    assert_eq!(vm.gprs, only(&[]));
}

#[test]
fn a_page_with_too_few_rights_is_told_with_its_rights() {
    let read = Access::READ;
    for (access, rights, told) in
        [(1, read, 0x18a), (4, read, 0x18c), (2, read.or(Access::FETCH), 0x1aa)]
    {
        let mut vm = busy();
        let Verdict::Fault { .. } = vm.exit(48, access | 0x9100) else { panic!() };
        let Vm { guarded, shown, gprs, v02 } = &mut vm;
        let verdict = guarded.tell_page(shown, gprs, v02, (0x7fff, rights));
        assert_eq!(verdict, Verdict::Host);
        assert_eq!(vm.reads(f::EXIT_QUALIFICATION.encoding()), told);
        assert_eq!(vm.reads(f::GUEST_PHYSICAL_ADDRESS.encoding()), 0x7000);
    }
}

#[test]
fn a_misconfiguration_is_a_fault_of_the_vms_tables() {
    let mut vm = busy();
    vm.v02.write(f::GUEST_PHYSICAL_ADDRESS, 0x1_2345);
    let expected = Verdict::Fault { address: 0x1_2345, access: Access::from_bits(0) };
    assert_eq!(vm.exit(49, 0), expected);
}

#[test]
fn a_vm_that_was_stopped_has_shut_down() {
    let mut vm = busy();
    vm.exit_to_host(30, 0x03f8_0000);
    vm.inject(VALID | 0x33);
    vm.gprs = Gprs([7; 16]);
    shut_down(&mut vm.shown, &mut vm.gprs);
    assert_eq!(vm.reads(f::EXIT_REASON.encoding()), 2);
    assert_eq!(vm.reads(f::EXIT_QUALIFICATION.encoding()), 0);
    assert_eq!(vm.reads(f::EXIT_INSTRUCTION_LENGTH.encoding()), 0);
    assert_eq!(vm.reads(f::ENTRY_INTERRUPTION.encoding()), 0x33);
    assert_eq!(vm.gprs.0[..4], [0; 4]);
}

#[test]
fn an_nmi_that_the_visor_has_taken_is_an_exit_by_nmi() {
    let mut vm = busy();
    vm.v02.write(f::IDT_VECTORING, VALID | 0x30d);
    vm.v02.write(f::EXIT_REASON, 10);
    let Vm { guarded, shown, gprs, v02 } = &mut vm;
    assert_eq!(guarded.tell_nmi(shown, gprs, v02), Verdict::Host);
    assert_eq!(vm.reads(f::EXIT_REASON.encoding()), 0);
    assert_eq!(vm.reads(f::EXIT_INTERRUPTION.encoding()), u64::from(VALID | 0x202));
    assert_eq!(vm.gprs, only(&[]));
    vm.enter().unwrap();
    assert_eq!(vm.injected(), None);
    assert_eq!(vm.gprs.0[15], 0xffff_ffff_ffff_ffff);
}

#[test]
fn the_timer_is_told_to_hosts_that_have_it_saved() {
    for (saves, told) in [(true, 0x77), (false, 0x10)] {
        let mut vm = busy();
        let exit = vm.reads(f::EXIT_CONTROLS.encoding()) & !(1 << 22);
        let saved = if saves { 1 << 22 } else { 0 };
        vm.shown.write(f::EXIT_CONTROLS.encoding(), exit | saved);
        vm.shown.write(f::PREEMPTION_TIMER.encoding(), 0x10);
        vm.enter().unwrap();
        assert_eq!(vm.v02.read(f::PREEMPTION_TIMER), 0x10);
        vm.v02.write(f::PREEMPTION_TIMER, 0x77);
        vm.exit_to_host(1, 0);
        assert_eq!(vm.reads(f::PREEMPTION_TIMER.encoding()), told);
    }
}
