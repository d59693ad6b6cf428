//! Devices of which the host sees other values than the VM, as of virtio devices.

use ept::shadow::Access;
use nested_vmx::field::{self as f, Vmcs};
use nested_vmx::guard::{Cause, Entered, Verdict};

use super::world::{
    ALL, ANSWER, AT, Access as Told, BUFFER, CARRIED, CODE, Code, INTERRUPT, NMI, RAM, RDI, RSI,
    WINDOW, World, assert_done, loaded,
};
use super::{IF, RCX, RDX, VALID};

/// mov [rdx], ecx; mov ecx, [rdx]; not dword [rdx]
const STORE: &[u8] = &[0x89, 0x0a];
const LOAD: &[u8] = &[0x8b, 0x0a];
const NOT: &[u8] = &[0xf7, 0x12];
const PLACE: u64 = CARRIED.start + 0x30;
const VALUE: u64 = 0x1234_5678;

fn world(code: &[u8]) -> World {
    World::new(Code::Long, code).with(&[(RCX, VALUE), (RDX, PLACE)])
}

#[test]
fn the_host_sees_what_is_stored_as_it_is_meant_to() {
    let mut world = world(STORE);
    world.run();
    assert_eq!(world.log, [(PLACE, 4, Some(!VALUE & 0xffff_ffff))]);
    assert_done(&world, 2);
}

#[test]
fn the_vm_gets_what_is_loaded_as_it_is_meant_to() {
    let mut world = world(LOAD);
    world.run();
    assert_eq!(world.vm.gprs.0[RCX], !loaded(PLACE, 4) & 0xffff_ffff);
}

#[test]
fn what_the_host_does_not_answer_it_sees_again_the_same() {
    let mut world = world(NOT);
    world.exit();
    world.answer();
    for _ in 0..2 {
        assert_eq!(world.enter(), Ok(Entered::Show));
    }
    world.serve();
    // The VM inverts what it gets, the host what it sees of both.
    let stored = !loaded(PLACE, 4) & 0xffff_ffff;
    assert_eq!(world.log, [(PLACE, 4, None), (PLACE, 4, Some(stored))]);
}

#[test]
fn a_store_that_takes_a_page_is_begun_anew_when_the_vm_has_it() {
    let mut world = world(STORE);
    let _ = world.ram.absent.insert(BUFFER);
    let fault = Verdict::Fault { address: BUFFER, access: Access::READ };
    assert_eq!(world.touch(AT, 0x182), fault);
    world.ram.absent.clear();
    world.run();
    assert_eq!(world.log.len(), 1);
}

#[test]
fn a_second_store_that_takes_a_page_waits_for_it() {
    let mut world = world(NOT);
    world.exit();
    world.answer();
    let _ = world.ram.absent.insert(BUFFER);
    let needs = Entered::Page { address: BUFFER, access: Access::READ };
    assert_eq!(world.enter(), Ok(needs));
    world.show_page(BUFFER, Access::NONE);
    assert_eq!(world.enter(), Ok(needs));
    world.ram.absent.clear();
    assert_eq!(world.resume(), Ok(Entered::Show));
    world.serve();
    assert_eq!(world.log.len(), 2);
    assert_done(&world, 2);
}

#[test]
fn the_vm_does_not_run_before_it_has_what_its_devices_bring() {
    for event in [INTERRUPT, NMI] {
        let mut world = world(LOAD);
        world.exit();
        world.answer();
        let _ = world.ram.absent.insert(ANSWER);
        let needs = Entered::Page { address: ANSWER, access: Access::WRITE };
        world.vm.inject(event);
        assert_eq!(world.enter(), Ok(needs));
        world.show_page(ANSWER, Access::NONE);
        // The host delivers its event again.
        assert_eq!(world.vm.reads(f::IDT_VECTORING.encoding()), u64::from(event));
        assert_eq!(world.vm.v02.read(f::GUEST_RIP), CODE);
        world.ram.absent.clear();
        world.vm.inject(event);
        assert_eq!(world.enter(), Ok(Entered::Run));
        assert_eq!(world.vm.injected(), Some(event & !VALID));
        assert_eq!(world.vm.v02.read(f::GUEST_RIP), CODE + 2);
    }
}

#[test]
fn that_holds_where_the_vm_has_asked_for_nothing() {
    // movsd
    let mut world = World::new(Code::Long, &[0xa5]).with(&[(RSI, RAM), (RDI, RAM)]);
    assert!(matches!(world.vm.exit(1, 0), Verdict::Host));
    let _ = world.ram.absent.insert(ANSWER);
    assert!(matches!(world.enter(), Ok(Entered::Page { .. })));
    world.ram.absent.clear();
    assert_eq!(world.resume(), Ok(Entered::Run));
}

#[test]
fn what_the_host_raises_comes_again_once_the_page_is_there() {
    const UNDEFINED: u32 = VALID | 0x306;
    // monitor
    let mut world = World::new(Code::Long, &[0x0f, 0x01, 0xc8]);
    assert_eq!(world.vm.exit(39, 0), Verdict::Host);
    let _ = world.ram.absent.insert(ANSWER);
    world.vm.inject(UNDEFINED);
    assert_eq!(world.enter(), Ok(Entered::Page { address: ANSWER, access: Access::WRITE }));
    world.ram.absent.clear();
    assert_eq!(world.resume(), Ok(Entered::Run));
    assert_eq!(world.vm.injected(), None);
    assert_eq!(world.vm.v02.read(f::GUEST_RIP), CODE);
    assert_eq!(world.vm.exit(39, 0), Verdict::Host);
    world.vm.inject(UNDEFINED);
    assert_eq!(world.enter(), Ok(Entered::Run));
    assert_eq!(world.vm.injected(), Some(UNDEFINED & !VALID));
}

#[test]
fn buffers_in_a_device_stop_the_vm() {
    let mut world = world(STORE);
    world.ram.elsewhere = true;
    assert_eq!(world.touch(AT, 0x182), Verdict::Stop(Cause::Device(AT)));
    let mut world = World::new(Code::Long, NOT).with(&[(RDX, PLACE)]);
    world.exit();
    world.answer();
    world.ram.elsewhere = true;
    assert_eq!(world.enter(), Err(Cause::Device(AT)));
}

/// What a device is to be told: as the host sees it.
const DUE: (u64, u64) = (CARRIED.start + 0x50, 3);
const TOLD: Told = (DUE.0, 4, Some(DUE.1));

/// Has the VM run until an exit that says nothing of a device.
fn exited(code: Code) -> World {
    // movsd
    let mut world = World::new(code, &[0xa5]).with(&[(RSI, RAM), (RDI, RAM)]);
    assert!(matches!(world.vm.exit(1, 0), Verdict::Host));
    world.ram.kick.set(Some(DUE));
    world
}

#[test]
fn what_a_device_is_to_be_told_it_is_told_before_the_vm_runs() {
    for code in ALL {
        let mut world = exited(code);
        assert_eq!(world.enter(), Ok(Entered::Show));
        // Until the host has answered that, it can inject nothing that would be lost.
        assert_eq!(world.vm.reads(f::GUEST_RFLAGS.encoding()) & IF, 0);
        // It comes again until then.
        assert_eq!(world.enter(), Ok(Entered::Show));
        world.answer();
        assert_eq!(world.log, [TOLD]);
        assert_eq!(world.enter(), Ok(Entered::Run));
        // The VM has not moved.
        assert_eq!(world.vm.v02.read(f::GUEST_RIP), CODE);
        assert_eq!(world.vm.gprs.0[RSI], RAM);
    }
}

#[test]
fn the_vm_gets_the_event_of_that_entry_afterwards() {
    for event in [INTERRUPT, NMI] {
        let mut world = exited(Code::Long);
        world.vm.inject(event);
        assert_eq!(world.enter(), Ok(Entered::Show));
        // For the host it is delivered.
        assert_eq!(world.vm.reads(f::IDT_VECTORING.encoding()), 0);
        assert_eq!(world.vm.injected(), None);
        world.answer();
        assert_eq!(world.enter(), Ok(Entered::Run));
        assert_eq!(world.vm.injected(), Some(event & !VALID));
    }
}

#[test]
fn one_that_it_cannot_take_is_lost() {
    let mut world = exited(Code::Long);
    world.vm.inject(VALID | 0x80);
    assert_eq!(world.enter(), Ok(Entered::Show));
    world.answer();
    assert_eq!(world.enter(), Ok(Entered::Run));
    assert_eq!(world.vm.injected(), None);
}

/// INT 0x40, the delivery of which an exit has cut short.
const SOFTWARE: u32 = VALID | 0x440;

#[test]
fn an_event_that_waits_already_and_the_hosts_go_first() {
    let mut world = exited(Code::Long);
    world.vm.v02.write(f::IDT_VECTORING, SOFTWARE);
    assert!(matches!(world.vm.exit(1, 0), Verdict::Host));
    world.vm.inject(INTERRUPT);
    assert_eq!(world.enter(), Ok(Entered::Run));
    assert_eq!(world.vm.injected(), Some(INTERRUPT & !VALID));
    assert!(world.ram.kick.get().is_some());
}

#[test]
fn an_event_that_waits_alone_waits_longer() {
    let mut world = exited(Code::Long);
    world.vm.v02.write(f::IDT_VECTORING, SOFTWARE);
    assert!(matches!(world.vm.exit(1, 0), Verdict::Host));
    assert_eq!(world.enter(), Ok(Entered::Show));
    world.answer();
    assert_eq!(world.enter(), Ok(Entered::Run));
    assert_eq!(world.vm.injected(), Some(SOFTWARE & !VALID));
}

#[test]
fn two_devices_are_told_and_the_event_of_the_entry_is_kept_meanwhile() {
    for event in [INTERRUPT, NMI] {
        let mut world = exited(Code::Long);
        world.vm.inject(event);
        assert_eq!(world.enter(), Ok(Entered::Show));
        world.answer();
        world.ram.kick.set(Some(DUE));
        assert_eq!(world.enter(), Ok(Entered::Show));
        // An NMI that comes when it is told once more does not take the interrupt's place.
        world.vm.inject(NMI);
        assert_eq!(world.enter(), Ok(Entered::Show));
        world.answer();
        assert_eq!(world.enter(), Ok(Entered::Run));
        assert_eq!(world.log, [TOLD, TOLD]);
        assert_eq!(world.vm.injected(), Some(event & !VALID));
    }
}

#[test]
fn what_the_host_raises_comes_again_after_it() {
    const UNDEFINED: u32 = VALID | 0x306;
    // monitor
    let mut world = World::new(Code::Long, &[0x0f, 0x01, 0xc8]);
    assert_eq!(world.vm.exit(39, 0), Verdict::Host);
    world.ram.kick.set(Some(DUE));
    world.vm.inject(UNDEFINED);
    assert_eq!(world.enter(), Ok(Entered::Show));
    world.answer();
    assert_eq!(world.enter(), Ok(Entered::Run));
    assert_eq!(world.vm.injected(), None);
    assert_eq!(world.vm.v02.read(f::GUEST_RIP), CODE);
}

#[test]
fn a_vm_that_waits_is_woken_all_the_same() {
    const HALTED: u32 = 1;
    let mut world = exited(Code::Long);
    world.ram.kick.set(None);
    assert_eq!(world.enter(), Ok(Entered::Run));
    world.vm.v02.write(f::GUEST_ACTIVITY, HALTED);
    assert!(matches!(world.vm.exit(1, 0), Verdict::Host));
    world.ram.kick.set(Some(DUE));
    world.vm.shown.write(f::GUEST_ACTIVITY.encoding(), 0);
    assert_eq!(world.enter(), Ok(Entered::Show));
    world.answer();
    assert_eq!(world.enter(), Ok(Entered::Run));
    assert_eq!(world.vm.v02.read(f::GUEST_ACTIVITY), 0);
}

#[test]
fn it_waits_for_the_page_of_the_window_that_leads_there() {
    let mut world = exited(Code::Long);
    world.ram.closed = true;
    let needs = Entered::Page { address: WINDOW, access: Access::WRITE };
    assert_eq!(world.enter(), Ok(needs));
    world.ram.closed = false;
    assert_eq!(world.resume(), Ok(Entered::Show));
    world.answer();
    assert_eq!(world.log, [TOLD]);
}

#[test]
fn it_is_told_after_an_access_that_it_became_due_by() {
    let mut world = world(LOAD);
    world.exit();
    world.ram.kick.set(Some(DUE));
    world.answer();
    // The instruction ends first.
    assert_eq!(world.enter(), Ok(Entered::Run));
    assert_eq!(world.vm.v02.read(f::GUEST_RIP), CODE + 2);
    assert!(matches!(world.vm.exit(1, 0), Verdict::Host));
    assert_eq!(world.enter(), Ok(Entered::Show));
    world.answer();
    assert_eq!(world.log, [(PLACE, 4, None), TOLD]);
}
