//! Processors that are not the first: how they begin, again too, and which one each is.

use core::cell::RefCell;

use emulate::walk::Memory;
use ept::shadow::Access;
use nested_vmx::control::ExitControls;
use nested_vmx::field::{self as f, Segment, Vmcs};
use nested_vmx::guard::start::{Start, kind};
use nested_vmx::guard::{DECOY_RIP, Entered, Space, Verdict};
use nested_vmx::merge::Environment;
use nested_vmx::state;

use super::start::reset;
use super::world::{APIC, AT, Code, MOVS, RDI, RSI, World, assert_done, loaded};
use super::{Gprs, HOST, IF, RAX, RBX, RCX, RDX, Vm};
use crate::good;

const ID: u32 = 5;
const VECTOR: u8 = 0x9a;

/// A VM that names processors 5 and has them begin anew if it was asked to.
struct Starts {
    restarts: bool,
    asked: RefCell<Vec<(u8, u32)>>,
}

impl Starts {
    /// It has none begin anew.
    const fn without_restarts() -> Self {
        Self { restarts: false, asked: RefCell::new(Vec::new()) }
    }

    const fn with_restarts() -> Self {
        Self { restarts: true, asked: RefCell::new(Vec::new()) }
    }
}

impl Memory for Starts {
    fn read(&self, _: u64) -> Option<u64> {
        None
    }

    fn compare_exchange(&self, _: u64, _: u64, _: u64) -> Option<bool> {
        None
    }
}

impl Space for Starts {
    fn is_device(&self, _: u64) -> bool {
        false
    }

    fn pkru(&self) -> u32 {
        0
    }

    fn physical_bits(&self) -> u32 {
        52
    }

    fn name(&self, vector: u8, told: u32) -> u8 {
        self.asked.borrow_mut().push((vector, told));
        u8::try_from(ID).unwrap()
    }

    fn restarts(&self, id: u8, vector: u8) -> bool {
        self.asked.borrow_mut().push((vector, id.into()));
        self.restarts
    }

    fn stored(&self, _: (u64, u8), value: u64) -> Result<u64, (u64, Access)> {
        Ok(value)
    }

    fn loaded(&self, _: (u64, u8), value: u64) -> u64 {
        value
    }

    fn kick(&self) -> Option<(u64, u64)> {
        None
    }

    fn open(&self, _: u64, _: u8) -> Result<u64, (u64, Access)> {
        panic!("no instruction accesses two pages")
    }

    fn deliver(&self) -> Result<(), (u64, Access)> {
        Ok(())
    }
}

fn enter(vm: &mut Vm, starts: &Starts) {
    assert_eq!(vm.guarded.enter(&mut vm.shown, &mut vm.gprs, starts), Ok(Entered::Run));
    let host = good::host_controls();
    let environment = Environment {
        host: &host,
        save_timer: ExitControls::SAVE_PREEMPTION_TIMER,
        msr_bitmap: 0x5000,
        io_bitmaps: (0x6000, 0x7000),
        virtual_apic: 0x8000,
    };
    vm.guarded.effective_mut().merge(&environment, &HOST, &mut vm.v02);
}

/// One that has begun with the vector.
fn begun(starts: &Starts) -> Vm {
    let mut vm = Vm::new(|page| {
        reset(page);
        state::start_up(page, VECTOR);
        page.write(f::CR0_SHADOW, 0x6000_0010);
        page.write(f::GUEST_CR0, 0x30);
        page.write(f::GUEST_CR4, 0x2000);
    });
    assert_eq!(kind(vm.shown.fields(), &vm.gprs), Start::StartUp(VECTOR));
    vm.guarded.begins_at(VECTOR);
    vm.guarded.first_entry(&mut vm.shown, &HOST, &vm.gprs).unwrap();
    enter(&mut vm, starts);
    vm
}

/// What the VM gets for an instruction with this RAX and RCX, when the host answers `told`.
fn asks(vm: &mut Vm, starts: &Starts, reason: u32, [rax, rcx]: [u64; 2], told: Gprs) -> Gprs {
    (vm.gprs.0[RAX], vm.gprs.0[RCX]) = (rax, rcx);
    vm.exit_to_host(reason, 0);
    vm.gprs = told;
    vm.shown.write(f::GUEST_RIP.encoding(), DECOY_RIP + 2);
    enter(vm, starts);
    vm.gprs
}

fn told(rax: u64, rbx: u64, rdx: u64) -> Gprs {
    let mut gprs = Gprs([0; 16]);
    (gprs.0[RAX], gprs.0[RBX], gprs.0[RDX]) = (rax, rbx, rdx);
    gprs
}

const CPUID: u32 = 10;
const RDMSR: u32 = 31;

#[test]
fn a_processor_has_one_id_wherever_it_asks_whatever_the_host_says() {
    let starts = Starts::without_restarts();
    let mut vm = begun(&starts);
    let other = asks(&mut vm, &starts, CPUID, [2, 0], told(1, 2, 3));
    assert_eq!((other.0[RBX], other.0[RDX]), (2, 3));
    assert!(starts.asked.borrow().is_empty(), "nothing was asked about ids yet");
    let first = asks(&mut vm, &starts, CPUID, [1, 0], told(0, 0x0304_0506, 0));
    assert_eq!(first.0[RBX], 0x0504_0506);
    for leaf in [0xb, 0x1f] {
        let topology = asks(&mut vm, &starts, CPUID, [leaf, 1], told(1, 2, 77));
        assert_eq!((topology.0[RBX], topology.0[RDX]), (2, ID.into()));
    }
    let register = asks(&mut vm, &starts, RDMSR, [0, 0x802], told(0, 0, 99));
    assert_eq!((register.0[RAX], register.0[RDX]), (ID.into(), 0));
    let version = asks(&mut vm, &starts, RDMSR, [0, 0x803], told(0x14, 0, 0));
    assert_eq!(version.0[RAX], 0x14);
    assert_eq!(*starts.asked.borrow(), [(VECTOR, 3)], "the name is asked for once");
}

#[test]
fn the_first_processor_is_0() {
    let starts = Starts::without_restarts();
    let mut vm = Vm::in_real_mode();
    let first = asks(&mut vm, &starts, CPUID, [1, 0], told(0, 0x0304_0506, 0));
    assert_eq!(first.0[RBX], 0x0004_0506);
    assert!(starts.asked.borrow().is_empty());
}

#[test]
fn a_command_that_starts_processors_is_told_to_the_visor() {
    let mut vm = Vm::running();
    for (index, value, signal) in [
        (0x830, 0x4031, false),
        (0x830, 5 << 32 | 0xc500, true),
        (0x830, 0x8500, true),
        (0x830, 5 << 32 | 0x69a, true),
        (0x830, 0xc_4400, false),
        (0x838, 0x4500, false),
    ] {
        (vm.gprs.0[RCX], vm.gprs.0[RAX], vm.gprs.0[RDX]) =
            (index, value & 0xffff_ffff, value >> 32);
        let verdict = if signal { Verdict::Signal(value) } else { Verdict::Host };
        assert_eq!(vm.exit(32, 0), verdict, "{index:#x} {value:#x}");
        assert_eq!((vm.gprs.0[RCX], vm.gprs.0[RAX]), (index, value & 0xffff_ffff));
        vm.complete().unwrap();
    }
}

#[test]
fn so_is_one_by_the_registers_in_memory() {
    let code = [0x89, 0x0a].repeat(7);
    let mut world = World::new(Code::Long, &[&code[..], &[0x66, 0x89, 0x0a]].concat());
    for (register, value, signal) in [
        (0x310, 5 << 24 | 7, None),
        (0x300, 0xc500, Some(5 << 32 | 0xc500)),
        (0x300, 0x8500, Some(5 << 32 | 0x8500)),
        (0x300, 0x69a, Some(5 << 32 | 0x69a)),
        (0x300, 0x4031, None),
        (0x310, 0, None),
        (0x300, 0xc_4500, Some(0xc_4500)),
        // A word is no command.
        (0x300, 0x500, None),
    ] {
        (world.vm.gprs.0[RCX], world.vm.gprs.0[RDX]) = (value, APIC + register);
        let verdict = signal.map_or(Verdict::Host, Verdict::Signal);
        assert_eq!(world.touch(APIC + register, 0x182), verdict, "{register:#x} {value:#x}");
        world.serve();
    }
    let stored = world.log.iter().filter(|(_, bytes, value)| *bytes == 4 && value.is_some());
    assert_eq!(stored.count(), 7, "the host is told of all as of others");
}

#[test]
fn so_is_one_that_is_the_second_access_of_an_instruction_and_only_once() {
    // xchg [rdx], ecx
    let mut world = World::new(Code::Long, &[0x87, 0x0a]);
    (world.vm.gprs.0[RCX], world.vm.gprs.0[RDX]) = (0xc_4500, APIC + 0x300);
    assert_eq!(world.touch(APIC + 0x300, 0x183), Verdict::Host);
    world.answer();
    assert_eq!(world.enter(), Ok(Entered::Signal(0xc_4500)));
    // The host enters without an answer.
    assert_eq!(world.enter(), Ok(Entered::Show));
    world.answer();
    assert_eq!(world.enter(), Ok(Entered::Run));
}

#[test]
fn the_id_register_in_memory_has_the_same_id() {
    // mov ecx, [rdx], for the first processor and for another.
    for (begins, id) in [(None, 0), (Some(VECTOR), 5)] {
        let mut world = World::new(Code::Long, &[0x8b, 0x0a, 0x8b, 0x0a]);
        if let Some(vector) = begins {
            world.vm.guarded.begins_at(vector);
        }
        for (register, expected) in
            [(0x20, loaded(APIC + 0x20, 4) & 0xff_ffff | id << 24), (0x30, loaded(APIC + 0x30, 4))]
        {
            world.vm.gprs.0[RDX] = APIC + register;
            assert_eq!(world.touch(APIC + register, 0x181), Verdict::Host);
            world.serve();
            assert_eq!(world.vm.gprs.0[RCX], expected);
        }
        assert_eq!(u64::from(world.vm.guarded.window_word()), 1 + id);
    }
}

#[test]
fn a_processor_that_learns_its_name_within_an_instruction_keeps_its_word_for_that() {
    // movsd from the id to another register, or another device
    for to in [APIC + 0x80, AT] {
        let mut world = World::new(Code::Long, MOVS).with(&[(RSI, APIC + 0x20), (RDI, to)]);
        world.vm.guarded.begins_at(VECTOR);
        assert_eq!(world.vm.guarded.window_word(), 255);
        assert_eq!(world.touch(APIC + 0x20, 0x181), Verdict::Host);
        world.serve();
        assert_eq!(world.log[1], (to, 4, Some(loaded(APIC + 0x20, 4) & 0xff_ffff | 5 << 24)));
        assert_done(&world, 1);
        assert_eq!(world.vm.guarded.window_word(), 6);
    }
}

/// The host resets the processor, as KVM does at INIT, and starts it up.
fn starts_up(vm: &mut Vm) {
    const PAT: u32 = f::GUEST_PAT.encoding();
    let mut page = good::vmcs12();
    reset(&mut page);
    state::start_up(&mut *page, VECTOR);
    for encoding in nested_vmx::vmcs12::encodings(&[
        nested_vmx::vmcs12::Class::Guest,
        nested_vmx::vmcs12::Class::HotGuest,
    ])
    .filter(|encoding| *encoding != PAT)
    {
        vm.shown.write(encoding, page.read_raw(encoding));
    }
    let entry = vm.shown.fields().read(f::ENTRY_CONTROLS) & !(1 << 9) | 0b111 << 13;
    for (encoding, value) in [
        (f::ENTRY_CONTROLS.encoding(), u64::from(entry)),
        (f::CR0_SHADOW.encoding(), 0x6000_0010),
        (f::CR4_SHADOW.encoding(), 0),
        (f::GUEST_CR0.encoding(), 0x30),
        (f::GUEST_CR4.encoding(), 0x2000),
    ] {
        vm.shown.write(encoding, value);
    }
    vm.gprs = told(0, 0, 0x806e9);
    assert_eq!(kind(vm.shown.fields(), &vm.gprs), Start::StartUp(VECTOR));
}

/// A 64-bit processor that has exited for this reason, with these flags.
fn waits(reason: u32, flags: u64) -> Vm {
    let mut vm = Vm::running();
    vm.v02.write(f::GUEST_RFLAGS, flags);
    vm.gprs.0[RBX] = 0x5ec2e7;
    vm.exit_to_host(reason, 0);
    vm
}

#[test]
fn a_processor_that_is_out_of_service_begins_anew_if_the_vm_has_it_so() {
    let starts = Starts::with_restarts();
    let mut vm = waits(12, 2);
    starts_up(&mut vm);
    enter(&mut vm, &starts);
    assert_eq!(*starts.asked.borrow(), [(VECTOR, 0)]);
    let code = Segment::Cs.fields();
    for (encoding, value) in [
        (f::GUEST_RIP.encoding(), 0),
        (code.selector.encoding(), u64::from(VECTOR) << 8),
        (code.base.encoding(), u64::from(VECTOR) << 12),
        (f::GUEST_EFER.encoding(), 0),
        (f::GUEST_CR3.encoding(), 0),
        (f::CR4_SHADOW.encoding(), 0),
        (f::CR0_SHADOW.encoding(), 0x6000_0010),
    ] {
        assert_eq!(vm.v02.read_raw(encoding), value, "{encoding:#x}");
    }
    assert_eq!((vm.v02.read(f::ENTRY_CONTROLS) & 1 << 9, vm.v02.read(f::GUEST_RFLAGS)), (0, 2));
    assert_eq!((vm.gprs.0[RBX], vm.gprs.0[RDX]), (0, 0x806e9));
    assert_eq!(vm.reads(f::GUEST_RIP.encoding()), DECOY_RIP, "decoys again");
}

#[test]
fn a_processor_that_works_or_was_not_restarted_by_the_vm_goes_on_where_it_was() {
    const HLT: u32 = 12;
    // With the trap flag all of the state is at hand.
    for (reason, flags, restarts) in
        [(HLT, 2, false), (HLT, 2 | IF, true), (HLT, 2 | IF | 1 << 8, true), (40, 2 | 1 << 8, true)]
    {
        let starts = Starts { restarts, ..Starts::without_restarts() };
        let mut vm = waits(reason, flags);
        starts_up(&mut vm);
        enter(&mut vm, &starts);
        assert_eq!(vm.v02.read(f::GUEST_RIP), 0xffff_ffff_8100_0000, "{reason} {flags:#x}");
        assert_eq!(vm.v02.read(f::GUEST_EFER), 0xd01);
        assert_eq!(vm.gprs.0[RBX], 0x5ec2e7);
        assert_eq!(starts.asked.borrow().len(), usize::from(!restarts), "{reason} {flags:#x}");
    }
}

#[test]
fn a_halt_is_completed_as_any_other_although_a_restart_would_be_due() {
    let starts = Starts::with_restarts();
    let mut vm = waits(12, 2);
    vm.shown.write(f::GUEST_RIP.encoding(), DECOY_RIP + 2);
    enter(&mut vm, &starts);
    assert_eq!(vm.v02.read(f::GUEST_RIP), 0xffff_ffff_8100_0002);
    assert!(starts.asked.borrow().is_empty());
}
