//! Instructions with several accesses to devices, or with operands in memory besides.

use ept::shadow::Access;
use nested_vmx::field::{self as f, Segment, Vmcs};
use nested_vmx::guard::{DECOY_RIP, Entered, Verdict};

use super::world::{
    ALIAS, AT, CODE, Code, INTERRUPT, MOVS, NMI, RAM, RDI, RSI, TABLES, WINDOW, World, assert_done,
    loaded,
};
use super::{Gprs, IF, RAX, RBX, RCX, RDX, VALID};

const OLD: u64 = 0x1122_3344_5566_7788;
/// add [rbx], eax
const ADD: &[u8] = &[0x01, 0x03];

#[test]
fn a_change_of_the_device_is_a_load_and_a_store() {
    let mut world = World::new(Code::Long, ADD).with(&[(RAX, 0xffff_fff0), (RBX, AT)]);
    let sum = (loaded(AT, 4) + 0xffff_fff0) & 0xffff_ffff;
    world.exit();
    // The host could not deliver an interrupt in between.
    assert_eq!(world.vm.reads(f::GUEST_RFLAGS.encoding()), 2);
    world.answer();
    assert_eq!(world.enter(), Ok(Entered::Show));
    assert_eq!(world.vm.reads(f::GUEST_RFLAGS.encoding()), 2);
    world.serve();
    assert_eq!(world.log, [(AT, 4, None), (AT, 4, Some(sum))]);
    assert_done(&world, 2);
    assert_eq!(world.vm.gprs.0[RAX], 0xffff_fff0);
    assert_eq!(world.vm.v02.read(f::GUEST_RFLAGS) & 1, 1, "carry");
    world.vm.exit_to_host(1, 0);
    assert_eq!(world.vm.reads(f::GUEST_RFLAGS.encoding()), IF | 2);
    assert_eq!(world.vm.reads(f::GUEST_RIP.encoding()), DECOY_RIP);
}

#[test]
fn an_instruction_that_was_begun_is_finished_whatever_the_host_does() {
    let mut world = World::new(Code::Long, ADD).with(&[(RAX, 1), (RBX, AT)]);
    world.exit();
    world.answer();
    world.vm.inject(INTERRUPT);
    assert_eq!(world.enter(), Ok(Entered::Show));
    let shown = |world: &World| {
        let fields = [0x4402, 0x6400, 0x2400, 0x640a, 0x4408, 0x440c, 0x681e, 0x6802, 0x6820];
        (fields.map(|field| world.vm.reads(field)), world.vm.gprs)
    };
    let first = shown(&world);
    for event in [0, INTERRUPT, NMI, 0, NMI, VALID | 0xb0d] {
        world.vm.gprs = Gprs([0x9999; 16]);
        world.vm.gprs.0[4] = 0x5555_5555_5555_5555;
        world.vm.shown.write(f::GUEST_RFLAGS.encoding(), 0x202);
        world.vm.shown.write(f::GUEST_CR3.encoding(), 0x9999_9000);
        world.vm.inject(event);
        assert_eq!(world.enter(), Ok(Entered::Show));
        assert!(shown(&world) == first);
        assert_eq!(world.vm.reads(f::ENTRY_INTERRUPTION.encoding()) & u64::from(VALID), 0);
    }
    world.serve();
    assert_eq!(world.log, [(AT, 4, None), (AT, 4, Some(loaded(AT, 4) + 1))]);
    assert_eq!(world.vm.v02.read(f::GUEST_RIP), CODE + 2);
    // The NMIs are one. The interrupts had no right to come.
    assert_eq!(world.vm.injected(), Some(0x202));
    world.vm.exit_to_host(1, 0);
    assert_eq!(world.enter(), Ok(Entered::Run));
    assert_eq!(world.vm.injected(), None);
}

#[test]
fn an_nmi_is_not_kept_while_the_vm_blocks_nmis() {
    let mut world = World::new(Code::Long, ADD).with(&[(RAX, 1), (RBX, AT)]);
    world.vm.v02.write(f::GUEST_INTERRUPTIBILITY, 8);
    world.exit();
    world.answer();
    world.vm.inject(NMI);
    assert_eq!(world.enter(), Ok(Entered::Show));
    world.serve();
    assert_done(&world, 2);
}

#[test]
fn operands_in_memory_are_the_visors_business() {
    let values = [(RSI, RAM + 2), (RDI, AT + 8)];
    let mut world = World::new(Code::Long, MOVS).with(&values);
    world.ram.store(RAM, &OLD.to_le_bytes());
    world.run();
    assert_eq!(world.log, [(AT + 8, 4, Some(0x3344_5566))]);
    assert_eq!((world.vm.gprs.0[RSI], world.vm.gprs.0[RDI]), (RAM + 6, AT + 12));
    assert_done(&world, 1);

    let mut world = World::new(Code::Long, MOVS).with(&[(RSI, AT), (RDI, RAM + 0xffe)]);
    world.run();
    assert_eq!(world.log, [(AT, 4, None)]);
    let found: Vec<u8> = (0..4).map(|n| world.ram.byte(RAM + 0xffe + n)).collect();
    assert_eq!(found, loaded(AT, 4).to_le_bytes()[..4]);

    let mut world = World::new(Code::Long, MOVS).with(&[(RSI, AT), (RDI, AT + 0x100)]);
    world.run();
    assert_eq!(world.log, [(AT, 4, None), (AT + 0x100, 4, Some(loaded(AT, 4)))]);
}

#[test]
fn the_host_is_told_of_a_further_page_of_the_device_when_the_window_shows_it() {
    for kind in [Code::Long, Code::Paged32] {
        // movsd from one page to the other
        let mut world = World::new(kind, MOVS).with(&[(RSI, AT + 0xffc), (RDI, AT + 0x1000)]);
        world.exit();
        world.answer();
        world.ram.closed = true;
        for _ in 0..2 {
            let needed = Entered::Page { address: WINDOW, access: Access::WRITE };
            assert_eq!(world.enter(), Ok(needed));
            world.show_page(WINDOW, Access::NONE);
        }
        world.ram.closed = false;
        assert_eq!(world.enter(), Ok(Entered::Show));
        world.serve();
        let (from, to) = (AT + 0xffc, AT + 0x1000);
        assert_eq!(world.log, [(from, 4, None), (to, 4, Some(loaded(from, 4)))]);
        assert_done(&world, 1);
    }
    // The processor may name either page first.
    let mut world = World::new(Code::Long, MOVS).with(&[(RSI, AT + 0xffc), (RDI, AT + 0x1000)]);
    world.ram.closed = true;
    let missing = Verdict::Fault { address: WINDOW, access: Access::WRITE };
    assert_eq!(world.touch(AT + 0x1000, 0x182), missing);
    world.ram.closed = false;
    assert_eq!(world.touch(AT + 0x1000, 0x182), Verdict::Host);
    world.serve();
    assert_done(&world, 1);
}

#[test]
fn an_operand_is_cut_where_the_device_begins_and_where_a_page_ends() {
    // mov rcx, [rdx]; mov [rdx], rcx
    let mut world = World::new(Code::Long, &[0x48, 0x8b, 0x0a]).with(&[(RDX, AT - 3)]);
    world.ram.store(AT - 3, &[1, 2, 3]);
    world.run();
    assert_eq!(world.log, [(AT, 4, None), (AT + 4, 1, None)]);
    assert_eq!(world.vm.gprs.0[RCX], loaded(AT, 5) << 24 | 0x03_0201);
    let mut world =
        World::new(Code::Long, &[0x48, 0x89, 0x0a]).with(&[(RDX, AT + 0xffd), (RCX, OLD)]);
    world.run();
    let page = AT + 0x1000;
    let expected = [
        (page - 3, 2, Some(0x7788)),
        (page - 1, 1, Some(0x66)),
        (page, 4, Some(0x2233_4455)),
        (page + 4, 1, Some(0x11)),
    ];
    assert_eq!(world.log, expected);
}

#[test]
fn repeated_instructions_are_done_one_by_one() {
    // rep movsd, downwards
    let registers = [(RSI, AT + 8), (RDI, RAM + 8), (RCX, 3)];
    let mut world = World::new(Code::Long, &[0xf3, 0xa5]).with(&registers);
    world.vm.v02.write(f::GUEST_RFLAGS, 0x602);
    for left in [2, 1, 0] {
        world.exit();
        world.answer();
        world.vm.inject(INTERRUPT);
        assert_eq!(world.enter(), Ok(Entered::Run));
        // Interrupts come in between.
        assert_eq!(world.vm.injected(), Some(0x31));
        assert_eq!(world.vm.gprs.0[RCX], left);
        let rip = if left == 0 { CODE + 2 } else { CODE };
        assert_eq!(world.vm.v02.read(f::GUEST_RIP), rip);
    }
    assert_eq!(world.log, [(AT + 8, 4, None), (AT + 4, 4, None), (AT, 4, None)]);
    assert_eq!(world.vm.gprs.0[RDI], RAM.wrapping_sub(4));
}

/// What the host is told of a page: reason, qualification, address, the event that was cut short, the
/// event to inject, and RIP.
fn told_of_page(world: &World) -> [u64; 6] {
    let injects = world.vm.reads(f::ENTRY_INTERRUPTION.encoding()) & u64::from(VALID);
    let [reason, why, at, event, rip] =
        [0x4402, 0x6400, 0x2400, 0x4408, 0x681e].map(|encoding| world.vm.reads(encoding));
    [reason, why, at, event, injects, rip]
}

#[test]
fn a_page_that_is_taken_away_does_not_have_the_device_read_twice() {
    let mut world = World::new(Code::Long, MOVS).with(&[(RSI, AT), (RDI, RAM)]);
    world.exit();
    world.answer();
    world.vm.inject(INTERRUPT);
    let _ = world.ram.absent.insert(RAM);
    let needs = Entered::Page { address: RAM, access: Access::WRITE };
    assert_eq!((world.enter(), world.resume()), (Ok(needs), Ok(needs)));
    // The host has to bring it back, and its interrupt is cut short.
    world.show_page(RAM + 4, Access::NONE);
    assert_eq!(told_of_page(&world), [48, 0x182, RAM, INTERRUPT.into(), 0, DECOY_RIP]);
    assert_eq!(world.vm.gprs.0[..4], [0; 4]);
    // It does not at once. Whatever it answers is no answer.
    world.vm.shown.write(f::GUEST_RIP.encoding(), DECOY_RIP + 2);
    assert_eq!(world.enter(), Ok(needs));
    world.show_page(RAM, Access::READ);
    assert_eq!(told_of_page(&world), [48, 0x18a, RAM, 0, 0, DECOY_RIP]);
    world.ram.absent.clear();
    world.vm.inject(INTERRUPT);
    assert_eq!(world.enter(), Ok(Entered::Run));
    assert_eq!(world.log, [(AT, 4, None)]);
    assert_eq!(world.ram.word(RAM), loaded(AT, 4));
    assert_eq!(world.vm.injected(), Some(0x31));
    assert_eq!(world.vm.v02.read(f::GUEST_RIP), CODE + 1);
}

#[test]
fn a_page_that_the_visor_has_itself_the_host_does_not_hear_of() {
    let mut world = World::new(Code::Long, MOVS).with(&[(RSI, AT), (RDI, RAM)]);
    world.exit();
    world.answer();
    world.vm.inject(NMI);
    let _ = world.ram.absent.insert(RAM);
    assert!(matches!(world.enter(), Ok(Entered::Page { .. })));
    world.ram.absent.clear();
    assert_eq!(world.resume(), Ok(Entered::Run));
    assert_eq!(world.ram.word(RAM), loaded(AT, 4));
    assert_eq!(world.vm.injected(), Some(0x202));
}

#[test]
fn only_events_of_the_host_are_told_back() {
    for (event, told) in [(INTERRUPT, INTERRUPT), (NMI, NMI), (VALID | 0xb0e, 0), (0x31, 0)] {
        let mut world = World::new(Code::Long, MOVS).with(&[(RSI, AT), (RDI, RAM)]);
        world.exit();
        world.answer();
        world.vm.inject(event);
        let _ = world.ram.absent.insert(RAM);
        assert!(matches!(world.enter(), Ok(Entered::Page { .. })));
        world.show_page(RAM, Access::NONE);
        assert_eq!(world.vm.reads(f::IDT_VECTORING.encoding()), u64::from(told));
    }
}

#[test]
fn nothing_is_done_to_the_device_before_all_of_memory_is_there() {
    // movsd to a page that is absent, write-protected for the VM by its host, or by itself.
    let world = || World::new(Code::Long, MOVS).with(&[(RSI, AT), (RDI, RAM)]);
    let fault = |address, access| Verdict::Fault { address, access };
    let mut absent = world();
    let _ = absent.ram.absent.insert(RAM);
    assert_eq!(absent.touch(AT, 0x181), fault(RAM, Access::READ));
    let mut fixed = world();
    let _ = fixed.ram.fixed.insert(RAM);
    assert_eq!(fixed.touch(AT, 0x181), fault(RAM, Access::WRITE));
    // So the tables and the code may be.
    for page in [TABLES[0], TABLES[1], CODE] {
        let mut world = world();
        let _ = world.ram.absent.insert(page);
        assert_eq!(world.touch(AT, 0x181), fault(page, Access::READ));
        assert_eq!(world.vm.gprs.0[RSI], AT);
        world.ram.absent.clear();
        world.run();
        assert_done(&world, 1);
    }
    for (entry, code) in [(0x84, 0), (0x85, 3), (1 << 63 | 0x86, 0)] {
        let mut world = world().with(&[(RDI, 1 << 30)]);
        world.ram.set_word(TABLES[1] + 8, 1 << 30 | entry);
        world.vm.v02.write(f::GUEST_CR0, 0x8005_0033);
        let code = if code == 0 { 2 } else { code };
        assert_eq!(world.touch(AT, 0x181), Verdict::PageFault { linear: 1 << 30, code });
        assert_eq!(world.vm.gprs.0[RDI], 1 << 30);
    }
}

#[test]
fn rights_are_those_of_the_vm() {
    // movsd to a page of user programs, in ring 3 and 0, with SMAP and protection keys.
    const AC: u64 = 1 << 18;
    const SMAP: u64 = 1 << 21;
    const PKE: u64 = 1 << 22;
    let user = 0xc0f3;
    for (rights, leaf, cr4, flags, code) in [
        (0xc093, 0x83, 0, 0, None),
        (user, 0x83, 0, 0, Some(7)),
        (user, 0x87, 0, 0, None),
        (0xc093, 0x87, SMAP, 0, Some(3)),
        (0xc093, 0x87, SMAP, AC, None),
        (user, 0x87 | 3 << 59, PKE, 0, Some(0x27)),
        (user, 0x87 | 2 << 59, PKE, 0, None),
    ] {
        let mut world = World::new(Code::Long, MOVS).with(&[(RSI, ALIAS + AT), (RDI, 1 << 30)]);
        world.ram.pkru = 2 << 6;
        // The rest is under another entry, for the ring that it is.
        let level = if rights == user { 7 } else { 3 };
        world.ram.set_word(TABLES[0] + 8 * 256, 0x2_1000 | 7);
        (0..4).for_each(|n| world.ram.set_word(0x2_1000 + 8 * n, n << 30 | 0x80 | level));
        world.vm.v02.write(f::GUEST_RIP, ALIAS + CODE);
        world.ram.set_word(TABLES[1] + 8, 1 << 30 | leaf);
        world.vm.v02.write(f::GUEST_CR4, 0x26e0 | cr4);
        world.vm.v02.write(f::GUEST_RFLAGS, 0x202 | flags);
        world.vm.v02.write(Segment::Ss.fields().rights, rights);
        let expected =
            code.map_or(Verdict::Host, |code| Verdict::PageFault { linear: 1 << 30, code });
        assert_eq!(world.touch(AT, 0x181), expected, "{leaf:#x} {cr4:#x} {flags:#x}");
    }
}

#[test]
fn the_time_that_is_left_is_told_at_the_exit_and_not_again() {
    let mut world = World::new(Code::Long, ADD).with(&[(RAX, 1), (RBX, AT)]);
    world.vm.v02.write(f::PREEMPTION_TIMER, 0x77);
    world.exit();
    assert_eq!(world.vm.reads(f::PREEMPTION_TIMER.encoding()), 0x77);
    world.answer();
    world.vm.shown.write(f::PREEMPTION_TIMER.encoding(), 0x99);
    assert_eq!(world.enter(), Ok(Entered::Show));
    assert_eq!(world.vm.reads(f::PREEMPTION_TIMER.encoding()), 0x99);
    world.serve();
    assert_eq!(world.vm.v02.read(f::PREEMPTION_TIMER), 0x99);
}
