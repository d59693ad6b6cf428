//! What the host's answers do to the VM.

use nested_vmx::cpuid::Answer;
use nested_vmx::field::{self as f, Segment, Vmcs};
use nested_vmx::guard::{Cause, DECOY_RIP, Verdict};

use super::{Gprs, RAX, RBX, RCX, RDX, VALID, Vm};

const GP: u32 = 0xb0d;
const RIP: u64 = 0xffff_ffff_8100_0000;
const GARBAGE: Gprs = Gprs([0x9999_9999_9999_9999; 16]);

fn busy() -> Vm {
    let mut vm = Vm::running();
    vm.gprs = Gprs(core::array::from_fn(|n| 0x1111_1111_1111_1111 * u64::try_from(n).unwrap()));
    vm
}

const HALF: u64 = 0x9999_9999;
/// Registers and their values.
type Changes = &'static [(usize, u64)];

/// The host answers with garbage in all registers.
fn complete(vm: &mut Vm) {
    vm.gprs = GARBAGE;
    vm.complete().unwrap();
}

#[test]
fn the_registers_of_each_answer_are_taken_and_no_others() {
    let rows: [(u32, u64, Changes); 9] = [
        (12, 0, &[]),
        (28, 0x0f00, &[]),
        (28, 0x0718, &[(7, 9)]),
        (30, 0x0070_0008, &[(RAX, 0x1111_1111_1111_1199)]),
        (30, 0x0070_0009, &[(RAX, 0x1111_1111_1111_9999)]),
        (30, 0x0070_000b, &[(RAX, HALF)]),
        (30, 0x0070_0003, &[]),
        (31, 0, &[(RAX, HALF), (RDX, HALF)]),
        (32, 0, &[]),
    ];
    for (reason, qualification, expected) in rows {
        let mut vm = busy();
        // A new CR0, an MSR that hosts emulate, and RAX.
        (vm.gprs.0[15], vm.gprs.0[RCX]) = (0x8005_0033, 0x10);
        vm.gprs.0[RAX] = 0x1111_1111_1111_1111;
        let mut after = vm.gprs;
        vm.exit_to_host(reason, qualification);
        complete(&mut vm);
        expected.iter().for_each(|(number, value)| after.0[*number] = *value);
        after.0[4] = 0x9999_9999_9999_9999;
        assert_eq!(vm.gprs, after, "{reason} {qualification:#x}");
        assert_eq!(vm.v02.read(f::GUEST_RIP), RIP + 2);
    }
}

#[test]
fn an_answer_counts_only_at_the_next_instruction() {
    for rip in [DECOY_RIP, DECOY_RIP + 1, DECOY_RIP + 3, RIP + 2, 0] {
        let mut vm = busy();
        let before = vm.gprs;
        vm.exit_to_host(30, 0x0070_000b);
        vm.gprs = GARBAGE;
        vm.shown.write(f::GUEST_RIP.encoding(), rip);
        vm.enter().unwrap();
        assert_eq!(vm.v02.read(f::GUEST_RIP), RIP);
        assert_eq!(vm.gprs.0[RAX], before.0[RAX]);
    }
    // Exits that are no instructions do not complete, nor does an instruction without a length.
    let mut vm = busy();
    vm.exit_to_host(1, 0);
    vm.complete().unwrap();
    assert_eq!(vm.v02.read(f::GUEST_RIP), RIP);
    let before = vm.gprs;
    vm.v02.write(f::EXIT_REASON, 31);
    vm.v02.write(f::EXIT_INSTRUCTION_LENGTH, 0);
    vm.gprs.0[RCX] = 0x10;
    let Vm { guarded, shown, gprs, v02 } = &mut vm;
    assert_eq!(guarded.leave(shown, gprs, v02), Verdict::Host);
    vm.gprs = GARBAGE;
    vm.enter().unwrap();
    assert_eq!(vm.gprs.0[RAX], before.0[RAX]);
}

#[test]
fn an_answer_counts_once() {
    let mut vm = busy();
    vm.exit_to_host(12, 0);
    vm.complete().unwrap();
    vm.gprs = GARBAGE;
    vm.guarded.take_back(&mut vm.gprs);
    vm.complete().unwrap();
    assert_eq!(vm.v02.read(f::GUEST_RIP), RIP + 2);
}

#[test]
fn a_refused_entry_leaves_the_host_its_registers() {
    let mut vm = busy();
    vm.exit_to_host(12, 0);
    vm.gprs = GARBAGE;
    vm.gprs.0[4] = 0;
    let host = vm.gprs;
    vm.enter().unwrap();
    assert_ne!(vm.gprs, host);
    vm.guarded.take_back(&mut vm.gprs);
    assert_eq!(vm.gprs, host);
    vm.enter().unwrap();
    assert_eq!(vm.gprs.0[15], 0xffff_ffff_ffff_ffff);
}

#[test]
fn a_completed_instruction_ends_blocking_and_traps() {
    let mut vm = busy();
    vm.v02.write(f::GUEST_INTERRUPTIBILITY, 0b1011);
    vm.v02.write(f::GUEST_RFLAGS, 0x102);
    vm.exit_to_host(12, 0);
    vm.complete().unwrap();
    assert_eq!(vm.v02.read(f::GUEST_INTERRUPTIBILITY), 0b1000);
    assert_eq!(vm.v02.read(f::GUEST_PENDING_DEBUG), 1 << 14);
    let mut vm = busy();
    vm.v02.write(f::GUEST_INTERRUPTIBILITY, 1);
    vm.exit_to_host(1, 0);
    vm.enter().unwrap();
    assert_eq!(vm.v02.read(f::GUEST_INTERRUPTIBILITY), 1);
    assert_eq!(vm.v02.read(f::GUEST_PENDING_DEBUG), 0);
}

#[test]
fn rip_wraps_outside_64_bit_code_and_faults_where_addresses_end() {
    let rights = Segment::Cs.fields().rights;
    let rows = [
        (0xc09b, 0xffff_fffe, 0, None),
        (0xa09b, 0xffff_fffe, 0x1_0000_0000, None),
        (0xa09b, 0x7fff_ffff_fffe, 0x7fff_ffff_fffe, Some(GP)),
        (0xa09b, u64::MAX - 1, 0, None),
    ];
    for (mode, before, after, event) in rows {
        let mut vm = busy();
        vm.v02.write(rights, mode);
        vm.v02.write(f::GUEST_RIP, before);
        vm.exit_to_host(12, 0);
        vm.complete().unwrap();
        assert_eq!(vm.v02.read(f::GUEST_RIP), after);
        assert_eq!(vm.injected(), event);
    }
    let mut vm = busy();
    vm.v02.write(f::GUEST_CR4, 0x36e0);
    vm.v02.write(f::GUEST_RIP, 0x7fff_ffff_fffe);
    vm.guarded.effective_mut().write(f::CR4_MASK.encoding(), 0);
    vm.exit_to_host(12, 0);
    vm.complete().unwrap();
    assert_eq!(vm.v02.read(f::GUEST_RIP), 0x8000_0000_0000);
}

#[test]
fn a_halted_vm_is_woken_by_its_host() {
    for (activity, after) in [(0, 0), (1, 1), (2, 1)] {
        let mut vm = busy();
        vm.v02.write(f::GUEST_ACTIVITY, 1);
        vm.exit_to_host(1, 0);
        vm.shown.write(f::GUEST_ACTIVITY.encoding(), activity);
        vm.enter().unwrap();
        assert_eq!(vm.v02.read(f::GUEST_ACTIVITY), after);
    }
    let mut vm = busy();
    vm.exit_to_host(1, 0);
    vm.shown.write(f::GUEST_ACTIVITY.encoding(), 1);
    vm.enter().unwrap();
    assert_eq!(vm.v02.read(f::GUEST_ACTIVITY), 0);
}

/// The host completes a write of `value` to control register `number`; what is injected then.
fn control(vm: &mut Vm, number: u64, value: u64) -> Result<Option<u32>, Cause> {
    vm.gprs.0[9] = value;
    vm.exit_to_host(28, 0x0900 | number);
    // What the host makes of it does not count.
    vm.shown.write(f::GUEST_CR0.encoding(), 0x33);
    vm.shown.write(f::GUEST_CR4.encoding(), 0x77);
    vm.shown.write(f::CR0_SHADOW.encoding(), 0x1);
    vm.shown.write(f::CR4_SHADOW.encoding(), 0x2);
    vm.gprs = GARBAGE;
    vm.complete()?;
    Ok(vm.injected())
}

/// These fields of VMCS02 have these values.
fn has<const N: usize>(vm: &Vm, fields: [(u32, u64); N]) {
    for (encoding, value) in fields {
        assert_eq!(vm.v02.read_raw(encoding), value, "{encoding:#x}");
    }
}

#[test]
fn a_vm_gets_from_reset_to_64_bit_mode() {
    const LONG: u64 = 1 << 9;
    let (cr0, cr0_shadow) = (f::GUEST_CR0.encoding(), f::CR0_SHADOW.encoding());
    let (cr4, cr4_shadow) = (f::GUEST_CR4.encoding(), f::CR4_SHADOW.encoding());
    let (efer, entry) = (f::GUEST_EFER.encoding(), f::ENTRY_CONTROLS.encoding());
    let mut vm = Vm::in_real_mode();
    assert_eq!(control(&mut vm, 0, 0x6000_0011), Ok(None));
    has(&vm, [(cr0, 0x6000_0031), (cr0_shadow, 0x6000_0011)]);
    assert_eq!(control(&mut vm, 4, 0x20), Ok(None));
    has(&vm, [(cr4, 0x2060), (cr4_shadow, 0x20)]);
    (vm.gprs.0[RCX], vm.gprs.0[RAX], vm.gprs.0[RDX]) = (0xc000_0080, 0x900, 0);
    vm.exit_to_host(32, 0);
    complete(&mut vm);
    has(&vm, [(efer, 0x900)]);
    assert_eq!(vm.reads(entry) & LONG, 0);
    assert!(vm.guarded.take_flush());
    assert_eq!(control(&mut vm, 0, 0x8000_0011), Ok(None));
    has(&vm, [(efer, 0xd00), (cr0, 0x8000_0031), (entry, vm.v02.read_raw(entry) | LONG)]);
    assert_eq!([vm.guarded.take_flush(), vm.guarded.take_flush()], [true, false]);
    vm.exit_to_host(1, 0);
    assert_eq!((vm.reads(entry) & LONG, vm.reads(efer)), (LONG, 0xd00));
}

#[test]
fn control_registers_take_what_the_processor_would_take() {
    let now = (0x8005_0033, 0x6a0);
    let rows = [
        (0, 0x8005_003b, Ok(None), (0x8005_003b, 0x6a0)),
        (0, 1 << 32 | now.0, Ok(Some(GP)), now),
        (0, 0x8000_0010, Ok(Some(GP)), now),
        (0, 0x0005_0033, Ok(Some(GP)), now),
        (4, 0x7_06a0, Ok(None), (now.0, 0x7_06a0)),
        (4, 0x680, Ok(Some(GP)), now),
        (4, 0x16a0, Ok(Some(GP)), now),
        (4, 1 << 13 | now.1, Ok(Some(GP)), now),
        (4, 1 << 23 | now.1, Ok(Some(GP)), now),
        (4, 1 << 24 | now.1, Ok(Some(GP)), now),
        (4, 1 << 25 | now.1, Ok(Some(GP)), now),
        (4, 1 << 32 | now.1, Ok(Some(GP)), now),
    ];
    for (number, value, result, after) in rows {
        let mut vm = busy();
        assert_eq!(control(&mut vm, number, value), result, "CR{number} {value:#x}");
        let step = if result == Ok(None) { 2 } else { 0 };
        assert_eq!(vm.v02.read(f::GUEST_RIP), RIP + step);
        assert_eq!(vm.v02.read(f::GUEST_CR0), after.0);
        assert_eq!(vm.v02.read(f::CR0_SHADOW), after.0);
        assert_eq!(vm.v02.read(f::GUEST_CR4), after.1 | 0x2040);
        assert_eq!(vm.v02.read(f::CR4_SHADOW), after.1);
    }
    // Tags need CR3 to have none.
    let mut vm = busy();
    vm.v02.write(f::GUEST_CR3, 0x1001);
    assert_eq!(control(&mut vm, 4, 0x2_06a0), Ok(Some(GP)));
}

#[test]
fn a_vm_that_goes_to_pae_paging_stops() {
    let mut vm = Vm::in_real_mode();
    assert_eq!(control(&mut vm, 4, 0x20), Ok(None));
    assert_eq!(control(&mut vm, 0, 0x8000_0011), Err(Cause::PaePaging));
    let mut vm = Vm::in_real_mode();
    assert_eq!(control(&mut vm, 0, 0x8000_0011), Ok(None));
    assert_eq!(control(&mut vm, 4, 0x20), Err(Cause::PaePaging));
}

#[test]
fn clts_and_lmsw_change_their_bits() {
    let mut vm = busy();
    vm.v02.write(f::GUEST_CR0, 0x8005_003b);
    vm.exit_to_host(28, 0x20);
    complete(&mut vm);
    assert_eq!(vm.v02.read(f::GUEST_CR0), 0x8005_0033);
    vm.exit_to_host(28, 0x000e_0030);
    complete(&mut vm);
    assert_eq!(vm.v02.read(f::GUEST_CR0), 0x8005_003f);
    vm.exit_to_host(28, 0x0001_0030);
    complete(&mut vm);
    assert_eq!(vm.v02.read(f::GUEST_CR0), 0x8005_0031);
}

#[test]
fn bits_that_the_vm_changes_itself_are_not_lost() {
    let mut vm = busy();
    // TS is the VM's; then the host wants to own it.
    vm.v02.write(f::GUEST_CR0, 0x8005_003b);
    vm.exit_to_host(1, 0);
    vm.shown.write(f::CR0_MASK.encoding(), u64::MAX);
    vm.shown.write(f::CR0_SHADOW.encoding(), 0);
    vm.enter().unwrap();
    assert_eq!(vm.v02.read(f::CR0_SHADOW) & 8, 8);
    assert_eq!(vm.v02.read(f::GUEST_CR0) & 8, 8);
    // So is global pages, and then not.
    for (mask, value) in [(0, 0x2660), (u64::MAX, 0x2660)] {
        vm.shown.write(f::CR4_MASK.encoding(), mask);
        vm.enter().unwrap();
        vm.v02.write(f::GUEST_CR4, value);
        vm.exit_to_host(1, 0);
    }
    assert_eq!(vm.v02.read(f::CR4_SHADOW), 0x620);
}

#[test]
fn efer_takes_what_the_processor_would_take() {
    for (value, after) in [
        (0xd00, Some(0xd00)),
        (0x900, Some(0xd00)),
        (0x801, None),
        (0x1d01, None),
        (1 << 32 | 0xd01, None),
    ] {
        let mut vm = busy();
        let value: u64 = value;
        (vm.gprs.0[RCX], vm.gprs.0[RAX], vm.gprs.0[RDX]) = (0xc000_0080, value, value >> 32);
        vm.v02.write(f::GUEST_SYSENTER_EIP, 0x77);
        vm.exit_to_host(32, 0);
        complete(&mut vm);
        assert_eq!(vm.v02.read(f::GUEST_EFER), after.unwrap_or(0xd01), "{value:#x}");
        assert_eq!(vm.injected(), after.map_or(Some(GP), |_| None));
        assert_eq!(vm.v02.read(f::GUEST_SYSENTER_EIP), 0x77);
    }
}

#[test]
fn xcr0_takes_what_the_processor_has_but_for_amx() {
    let mut vm = busy();
    assert_eq!(vm.guarded.xcr0(), 1);
    for (index, value, after) in [(0, 7, 7), (0, 0x6_0007, 7), (1, 3, 7), (0, 2, 7), (0, 3, 3)] {
        (vm.gprs.0[RCX], vm.gprs.0[RAX], vm.gprs.0[RDX]) = (index, value, 0);
        vm.exit_to_host(55, 0);
        complete(&mut vm);
        assert_eq!(vm.guarded.xcr0(), after, "{value:#x}");
    }
}

#[test]
fn a_host_raises_the_exception_of_the_instruction_and_no_other() {
    let (gp, ud, pf) = (VALID | 0xb0d, VALID | 0x306, VALID | 0xb0e);
    for (reason, qualification, event, injected) in [
        (31, 0, gp, Some(GP)),
        (32, 0, gp & !0x800, Some(GP)),
        (28, 0, gp, Some(GP)),
        (55, 0, gp, Some(GP)),
        (39, 0, ud, Some(0x306)),
        (31, 0, ud, None),
        (39, 0, gp, None),
        (31, 0, pf, None),
        (31, 0, gp & !VALID, None),
        (10, 0, gp, None),
        (12, 0, gp, None),
        (30, 0, gp, None),
        (1, 0, gp, None),
        (31, 0, VALID | 0x40d, None),
    ] {
        let mut vm = busy();
        vm.gprs.0[RCX] = 0x10;
        vm.exit_to_host(reason, qualification);
        vm.inject(event);
        vm.enter().unwrap();
        assert_eq!(vm.injected(), injected, "{reason} {event:#x}");
        assert_eq!(vm.v02.read(f::GUEST_RIP), RIP);
        if injected.is_some() {
            assert_eq!(vm.v02.read(f::ENTRY_ERROR_CODE), 0);
        }
    }
    let mut vm = Vm::in_real_mode();
    vm.gprs.0[RCX] = 0x10;
    vm.exit_to_host(31, 0);
    vm.inject(gp);
    vm.enter().unwrap();
    assert_eq!(vm.injected(), Some(0x30d));
}

/// What the VM sees of CPUID if its host answers this.
fn cpuid(leaf: u64, subleaf: u64, host: [u64; 4]) -> [u64; 4] {
    let mut vm = busy();
    (vm.gprs.0[RAX], vm.gprs.0[RCX]) = (leaf, subleaf);
    vm.exit_to_host(10, 0);
    [vm.gprs.0[RAX], vm.gprs.0[RBX], vm.gprs.0[RCX], vm.gprs.0[RDX]] = host;
    vm.complete().unwrap();
    [RAX, RBX, RCX, RDX].map(|number| vm.gprs.0[number])
}

#[test]
fn cpuid_hides_what_would_open_the_vm() {
    const ONES: [u64; 4] = [u64::MAX; 4];
    let all = 0xffff_ffff;
    for (leaf, subleaf, expected) in [
        (0, 0, [all; 4]),
        // The id of the first processor; VMX, SMX, debug store, OSXSAVE as CR4 has it.
        (
            1,
            0,
            [all, all >> 8, all & !(1 << 2 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 27), all & !(1 << 21)],
        ),
        (
            7,
            0,
            [
                all,
                all & !(1 << 2 | 1 << 25),
                all & !(1 << 2 | 1 << 4 | 1 << 5 | 1 << 7 | 1 << 23),
                { all & !(1 << 5 | 7 << 18 & !(1 << 19) | 1 << 19 | 1 << 22 | 1 << 24 | 1 << 25) },
            ],
        ),
        (7, 1, [all & !(1 << 17 | 1 << 8 | 1 << 21), all, all & !(1 << 5), all]),
        (0x4000_0000, 0, [0; 4]),
        (0x8000_0008, 0, [all; 4]),
    ] {
        assert_eq!(cpuid(leaf, subleaf, ONES), expected, "{leaf:#x}.{subleaf}");
    }
    let kvm = [0x4000_0010, 0x4b4d_564b, 0x564b_4d56, 0x4d];
    assert_eq!(cpuid(0x4000_0000, 0, kvm), [0x4000_0001, 0x4b4d_564b, 0x564b_4d56, 0x4d]);
    assert_eq!(
        kvm[1..]
            .iter()
            .flat_map(|word| u32::try_from(*word).unwrap().to_le_bytes())
            .collect::<Vec<u8>>(),
        b"KVMKVMKVM\0\0\0"
    );
}

#[test]
fn features_that_cr4_switches_are_as_the_vm_has_them() {
    let mut vm = busy();
    assert_eq!(control(&mut vm, 4, 0x44_06a0), Ok(None));
    for (leaf, register, bit) in [(1, RCX, 1 << 27), (7, RCX, 1 << 4)] {
        (vm.gprs.0[RAX], vm.gprs.0[RCX]) = (leaf, 0);
        vm.exit_to_host(10, 0);
        vm.gprs = Gprs([0; 16]);
        vm.complete().unwrap();
        assert_eq!(vm.gprs.0[register], bit);
    }
}

#[test]
fn a_feature_of_cr4_that_the_processor_lacks_is_not_there() {
    const UMIP: u64 = 1 << 11;
    let mut vm = busy();
    // The host emulates it.
    (vm.gprs.0[RAX], vm.gprs.0[RCX]) = (7, 0);
    vm.exit_to_host(10, 0);
    vm.gprs = Gprs([0xffff_ffff; 16]);
    vm.complete().unwrap();
    assert_eq!(vm.gprs.0[RCX] & 1 << 2, 0);
    assert_eq!(control(&mut vm, 4, 0x6a0 | UMIP), Ok(Some(GP)));
    assert_eq!(control(&mut vm, 4, 0x6a0), Ok(None));
}

#[test]
fn the_extended_state_has_no_tiles_and_nothing_supervisor() {
    let vm = busy();
    let ones = Answer { eax: u32::MAX, ebx: u32::MAX, ecx: u32::MAX, edx: u32::MAX };
    let nothing = Answer { eax: 0, ebx: 0, ecx: 0, edx: 0 };
    let see = |subleaf| vm.guarded.extended_state(subleaf, ones);
    assert_eq!(see(0), Answer { eax: !(3 << 17), ..ones });
    // The host has given its VM XSAVES.
    assert_eq!(see(1), Answer { eax: !(1 << 4), ecx: 0, edx: 0, ..ones });
    assert_eq!((see(2), see(17), see(18)), (ones, nothing, nothing));
    let mut vm = busy();
    vm.exit_to_host(1, 0);
    vm.shown.write(f::SECONDARY_CONTROLS.encoding(), 2);
    vm.enter().unwrap();
    // It cannot take that back.
    assert_eq!(vm.guarded.extended_state(1, ones).eax, !(1 << 4));
}

#[test]
fn exits_that_the_visor_answers_change_nothing_for_the_next() {
    let mut vm = busy();
    assert_eq!(vm.exit(13, 0), Verdict::Step);
    vm.v02.write(f::GUEST_RIP, 0x7777);
    vm.exit_to_host(12, 0);
    vm.complete().unwrap();
    assert_eq!(vm.v02.read(f::GUEST_RIP), 0x7779);
}
