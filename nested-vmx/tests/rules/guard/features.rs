//! What the visor remembers of the host's answers to CPUID.

use nested_vmx::field::{self as f, Vmcs};
use nested_vmx::guard::Verdict;

use super::{Gprs, RAX, RBX, RCX, RDX, Vm};

const HIGH: u64 = 0x7777_7777_0000_0000;

/// The VM executes CPUID.
fn ask(vm: &mut Vm, leaf: u64, subleaf: u64) -> Verdict {
    vm.gprs = Gprs([HIGH; 16]);
    (vm.gprs.0[RAX], vm.gprs.0[RCX]) = (HIGH | leaf, HIGH | subleaf);
    vm.exit(10, 0)
}

/// Likewise; the host answers this.
fn answered(vm: &mut Vm, leaf: u64, subleaf: u64, answer: [u64; 4]) {
    assert_eq!(ask(vm, leaf, subleaf), Verdict::Host, "{leaf:#x}.{subleaf:#x}");
    [vm.gprs.0[RAX], vm.gprs.0[RBX], vm.gprs.0[RCX], vm.gprs.0[RDX]] = answer;
    vm.complete().unwrap();
}

/// Likewise; the visor answers.
fn known(vm: &mut Vm, leaf: u64, subleaf: u64) -> [u64; 4] {
    let told = vm.reads(f::EXIT_REASON.encoding());
    assert_eq!(ask(vm, leaf, subleaf), Verdict::Step, "{leaf:#x}.{subleaf:#x}");
    assert_eq!(vm.reads(f::EXIT_REASON.encoding()), told);
    let mut gprs = Gprs([HIGH; 16]);
    for number in [RAX, RBX, RCX, RDX] {
        gprs.0[number] = vm.gprs.0[number];
    }
    assert_eq!(vm.gprs, gprs);
    [RAX, RBX, RCX, RDX].map(|number| vm.gprs.0[number])
}

#[test]
fn the_host_is_asked_once() {
    let mut vm = Vm::running();
    answered(&mut vm, 4, 0, [1, 2, 3, 4]);
    answered(&mut vm, 4, 1, [5, 6, 7, 8]);
    answered(&mut vm, 0x8000_0008, 0, [9, 10, 11, 12]);
    for _ in 0..2 {
        assert_eq!(known(&mut vm, 4, 0), [1, 2, 3, 4]);
        assert_eq!(known(&mut vm, 4, 1), [5, 6, 7, 8]);
        // This leaf has no subleaves.
        assert_eq!(known(&mut vm, 0x8000_0008, 0x55), [9, 10, 11, 12]);
    }
    answered(&mut vm, 0, 0, [13, 14, 15, 16]);
}

#[test]
fn what_was_not_answered_is_not_known() {
    let mut vm = Vm::running();
    assert_eq!(ask(&mut vm, 4, 0), Verdict::Host);
    vm.enter().unwrap();
    answered(&mut vm, 4, 0, [1, 2, 3, 4]);
}

#[test]
fn what_the_vm_may_not_see_is_hidden_each_time() {
    const OSXSAVE: u64 = 1 << 27;
    const VMX: u64 = 1 << 5;
    let mut vm = Vm::running();
    answered(&mut vm, 1, 0, [u64::MAX; 4]);
    for cr4 in [0x26e0, 0x26e0 | 1 << 18, 0x26e0] {
        // Whichever of them the host owns: the processor has it as the VM does.
        vm.v02.write(f::CR4_MASK, if cr4 == 0x26e0 { u64::MAX } else { 0x6040 });
        vm.v02.write(f::CR4_SHADOW, cr4);
        vm.v02.write(f::GUEST_CR4, cr4);
        let [_, _, ecx, _] = known(&mut vm, 1, 0);
        assert_eq!(ecx & OSXSAVE != 0, cr4 != 0x26e0);
        assert_eq!(ecx & VMX, 0);
    }
}

#[test]
fn a_host_that_was_asked_too_much_is_asked_each_time() {
    let mut vm = Vm::running();
    for subleaf in 0..64 {
        answered(&mut vm, 4, subleaf, [subleaf; 4]);
    }
    for _ in 0..2 {
        answered(&mut vm, 4, 64, [0; 4]);
    }
    for subleaf in 0..64 {
        assert_eq!(known(&mut vm, 4, subleaf), [subleaf; 4]);
    }
}

#[test]
fn leaves_in_which_the_vm_finds_nothing_cost_no_question_and_no_memory() {
    let mut vm = Vm::running();
    // As systems look for hypervisors, one after the other.
    for leaf in (1..256).map(|number| 0x4000_0000 + number * 0x100) {
        assert_eq!(known(&mut vm, leaf, 0), [0; 4]);
    }
    for leaf in [0xa, 0x12, 0x1d, 0x1e, 0x4000_0001, 0x4fff_ffff] {
        assert_eq!(known(&mut vm, leaf, 1), [0; 4]);
    }
    answered(&mut vm, 0x4000_0000, 0, [1; 4]);
    answered(&mut vm, 2, 0, [2; 4]);
    assert_eq!(known(&mut vm, 2, 0), [2; 4]);
}

#[test]
fn the_size_of_the_extended_state_is_never_remembered() {
    let mut vm = Vm::running();
    for _ in 0..2 {
        assert_eq!(ask(&mut vm, 0xd, 0), Verdict::ExtendedState);
    }
}
