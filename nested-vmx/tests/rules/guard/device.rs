//! Device memory and string I/O.

use ept::shadow::Access;
use nested_vmx::control::Secondary;
use nested_vmx::exit::Event;
use nested_vmx::field::{self as f, Segment, Vmcs};
use nested_vmx::guard::{Cause, DECOY_RIP, Entered, Verdict, window};

use super::world::{ALIAS, ALL, CODE, Code, DEVICE, TABLES, WINDOW, World, loaded};
use super::{Gprs, IF, RAX, RBX, RCX, RDX, VALID};

const RSI: usize = 6;
const RDI: usize = 7;
const AT: u64 = DEVICE.start;
const RAM: u64 = 0x2_0000;
const LOW: u32 = 0x2_0000;
const OLD: u64 = 0x1122_3344_5566_7788;
const TRAP: u64 = 1 << 8;
const INTERRUPT: u32 = VALID | 0x31;
const NMI: u32 = VALID | 0x202;
const ADD: &[u8] = &[0x01, 0x03];
/// movsd
const MOVS: &[u8] = &[0xa5];

/// The VM has done the instruction of so many bytes.
fn assert_done(world: &World, length: u64) {
    assert_eq!(world.vm.v02.read(f::GUEST_RIP), CODE + length);
    assert_eq!(world.vm.injected(), None);
    assert_eq!(world.vm.reads(f::GUEST_LINEAR_ADDRESS.encoding()), 0);
}

#[test]
fn every_access_has_an_instruction_in_every_mode() {
    for kind in ALL {
        let long = matches!(kind, Code::Long | Code::Long5);
        let small: &[u8] = if kind == Code::Real16 { &[] } else { &[0x66] };
        let four: &[u8] = if kind == Code::Real16 { &[0x66] } else { &[] };
        let address: &[u8] = if kind == Code::Real16 { &[0x67] } else { &[] };
        for (bytes, prefix, byte) in [(1, &[][..], 1), (2, small, 0), (4, four, 0), (8, &[0x48], 0)]
        {
            if bytes == 8 && !long {
                continue;
            }
            let mask = u64::MAX >> (64 - 8 * bytes);
            let at = AT + 0x678;
            // mov [rdx], ecx; mov ecx, [rdx]
            for (opcode, stored) in [(0x89 - byte, Some(OLD & mask)), (0x8b - byte, None)] {
                let code = [address, prefix, &[opcode, 0x0a]].concat();
                let mut world = World::new(kind, &code).with(&[(RCX, OLD), (RDX, at)]);
                world.run();
                assert_eq!(world.log, [(at, bytes, stored)], "{kind:?}");
                assert_done(&world, u64::try_from(code.len()).unwrap());
                let keep = if bytes == 4 { 0 } else { !mask };
                let after = stored.map_or(OLD & keep | loaded(at, bytes), |_| OLD);
                assert_eq!(world.vm.gprs.0[RCX], after, "{kind:?} {bytes}");
                assert_eq!(world.vm.gprs.0[RDX], at);
                assert_eq!(world.vm.gprs.0[RAX], 0);
                assert_eq!(world.vm.v02.read(f::GUEST_RFLAGS), 0x202);
            }
        }
    }
}

#[test]
fn the_window_page_holds_its_own_entry_and_20_instructions() {
    let words: Vec<u64> = (0..window::WORDS).map(|n| window::word(n, WINDOW)).collect();
    assert_eq!(words[0], WINDOW | 0x63);
    let code = &words[256..256 + 48];
    assert!(words[1..256].iter().chain(&words[256 + 48..]).all(|word| *word == 0));
    assert_eq!(code.iter().filter(|word| **word != 0).count(), 20);
    assert!(code.iter().skip(1).step_by(2).all(|word| *word == 0));
    assert_eq!(window::word(usize::MAX / 8, WINDOW), 0);
}

#[test]
fn a_host_without_paging_is_shown_physical_addresses() {
    let mut world = World::new(Code::Flat32, &[0x8b, 0x0a]).with(&[(RDX, AT + 0x1004)]);
    world.exit();
    assert_eq!(world.vm.reads(f::GUEST_RIP.encoding()) & !0xfff, WINDOW);
    assert_eq!(world.vm.gprs.0[RBX], AT + 0x1004);
    let mut world = World::new(Code::Paged32, &[0x8b, 0x0a]).with(&[(RDX, AT + 0x1004)]);
    world.exit();
    assert_eq!(world.vm.reads(f::GUEST_RIP.encoding()) & !0xfff, 0);
    assert_eq!(world.vm.gprs.0[RBX], 4);
    assert_eq!(world.vm.reads(f::GUEST_PHYSICAL_ADDRESS.encoding()), AT + 0x1004);
}

#[test]
fn only_the_access_is_shown() {
    // The same store, by other registers, of another part of a register, from elsewhere.
    let secret = OLD & !0xff | 0x5a;
    let one = World::new(Code::Long, &[0x88, 0x0a]).with(&[(RCX, secret), (RDX, AT + 5)]);
    let code = &[0x64, 0x41, 0x88, 0x64, 0x72, 0x10];
    // mov fs:[r10 + 2 * rsi + 16], ah has no encoding with REX; so dh by [rdx + 2 * rsi + 16]
    let code = &[code[0], 0x88, 0x74, 0x72, 0x10];
    let mut other = World::new(Code::Long, code).with(&[(RDX, 0x5a00), (RSI, 0x1234), (9, 9)]);
    let base = (ALIAS + AT + 5).wrapping_sub(0x5a00 + 2 * 0x1234 + 0x10);
    other.vm.v02.write(Segment::Fs.fields().base, base);
    other.vm.v02.write(f::GUEST_RSP, 0x7777);
    other.vm.v02.write(f::GUEST_RFLAGS, 0x202 | 0x8d5);
    other.vm.v02.write(Segment::Ss.fields().rights, 0xc0f3);
    other.vm.v02.write(f::GUEST_LINEAR_ADDRESS, ALIAS + AT + 5);
    other.vm.v02.write(f::EXIT_INSTRUCTION_LENGTH, 5);
    let views = [one, other].map(|mut world| {
        assert_eq!(world.touch(AT + 5, 0x182), Verdict::Host);
        let mut words = Vec::new();
        world.vm.shown.fields().store(|_, word| words.push(word));
        world.vm.gprs.0[4] = 0;
        (words, world.vm.gprs)
    });
    assert!(views[0] == views[1]);
    let mut gprs = Gprs([0; 16]);
    (gprs.0[RAX], gprs.0[RBX]) = (0x5a, 5);
    assert_eq!(views[0].1, gprs);
}

#[test]
fn what_a_host_has_written_does_not_keep_it_from_the_instruction() {
    let mut world = World::new(Code::Long, &[0x8b, 0x0a]).with(&[(RDX, AT)]);
    for segment in Segment::ALL {
        let fields = segment.fields();
        world.vm.shown.write(fields.base.encoding(), 0x9999);
        world.vm.shown.write(fields.limit.encoding(), 0);
        world.vm.shown.write(fields.rights.encoding(), 0x1_0000);
    }
    for encoding in [f::GUEST_EFER.encoding(), 0x6800, 0x6802, 0x6804, 0x6820] {
        world.vm.shown.write(encoding, 0xffff_ffff);
    }
    world.run();
    assert_done(&world, 2);
    assert_eq!(world.vm.gprs.0[RCX], loaded(AT, 4));
}

#[test]
fn only_the_size_of_an_answer_counts() {
    // movzx ecx, word [rdx]; movsx rcx, byte [rdx]; mov ch, [rdx]
    for (code, bytes, expected) in [
        (&[0x0f, 0xb7, 0x0a][..], 2, loaded(AT, 2)),
        (&[0x48, 0x0f, 0xbe, 0x0a], 1, loaded(AT, 1)),
        (&[0x8a, 0x2a], 1, OLD & !0xff00 | loaded(AT, 1) << 8),
    ] {
        let mut world = World::new(Code::Long, code).with(&[(RCX, OLD), (RDX, AT)]);
        world.run();
        assert_eq!(world.log, [(AT, bytes, None)]);
        let sign = if code[0] == 0x48 && expected & 0x80 != 0 { !0xff } else { 0 };
        assert_eq!(world.vm.gprs.0[RCX], expected | sign);
        assert!(world.vm.gprs.0.iter().enumerate().all(|(n, value)| match n {
            RCX => true,
            RDX => *value == AT,
            4 => true,
            _ => *value == 0,
        }));
    }
}

#[test]
fn an_access_is_answered_at_the_next_instruction_only() {
    let mut world = World::new(Code::Long, &[0x8b, 0x0a]).with(&[(RCX, OLD), (RDX, AT)]);
    world.exit();
    let rip = world.vm.reads(f::GUEST_RIP.encoding());
    let wrong = [rip, rip + 1, rip - 1, rip + 3, rip + 4, DECOY_RIP + 2, CODE + 2, 2, 0];
    for (rip, event) in wrong.into_iter().zip([0, INTERRUPT, VALID | 0xb0e].into_iter().cycle()) {
        world.vm.gprs = Gprs([0x9999; 16]);
        world.vm.shown.write(f::GUEST_RIP.encoding(), rip);
        world.vm.inject(event);
        assert_eq!(world.enter(), Ok(Entered::Run));
        assert_eq!((world.vm.gprs.0[RCX], world.vm.gprs.0[RDX]), (OLD, AT));
        assert_eq!(world.vm.v02.read(f::GUEST_RIP), CODE);
        let interrupt = (event == INTERRUPT).then_some(0x31);
        assert_eq!(world.vm.injected(), interrupt);
        world.exit();
    }
    world.serve();
    assert_done(&world, 2);
    assert_eq!(world.vm.gprs.0[RCX], loaded(AT, 4));
}

#[test]
fn an_event_comes_after_the_instruction_that_was_answered() {
    for (event, expected) in [(INTERRUPT, Some(0x31)), (NMI, Some(0x202)), (VALID | 0x3, None)] {
        let mut world = World::new(Code::Long, &[0x8b, 0x0a]).with(&[(RDX, AT)]);
        // Blocking by MOV SS ends with the instruction.
        world.vm.v02.write(f::GUEST_INTERRUPTIBILITY, 2);
        world.exit();
        assert_eq!(world.vm.reads(f::GUEST_RFLAGS.encoding()), IF | 2);
        world.answer();
        world.vm.inject(event);
        assert_eq!(world.enter(), Ok(Entered::Run));
        assert_eq!(world.vm.injected(), expected);
        assert_eq!(world.vm.v02.read(f::GUEST_RIP), CODE + 2);
        assert_eq!(world.vm.v02.read(f::GUEST_INTERRUPTIBILITY), 0);
    }
}

#[test]
fn a_debugger_in_the_vm_steps_over_the_instruction() {
    for trap in [TRAP, 0] {
        let mut world = World::new(Code::Long, &[0x8b, 0x0a]).with(&[(RDX, AT)]);
        world.vm.v02.write(f::GUEST_RFLAGS, 0x202 | trap | 1 << 16);
        world.vm.v02.write(f::GUEST_PENDING_DEBUG, 0);
        world.run();
        assert_eq!(world.vm.v02.read(f::GUEST_RFLAGS), 0x202 | trap);
        assert_eq!(world.vm.v02.read(f::GUEST_PENDING_DEBUG), if trap == 0 { 0 } else { 1 << 14 });
    }
}

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

#[test]
fn a_page_that_is_taken_away_does_not_have_the_device_read_twice() {
    let mut world = World::new(Code::Long, MOVS).with(&[(RSI, AT), (RDI, RAM)]);
    world.exit();
    world.answer();
    world.vm.inject(INTERRUPT);
    let _ = world.ram.absent.insert(RAM);
    let needs = Entered::Page { address: RAM, access: Access::WRITE };
    assert_eq!(world.enter(), Ok(needs));
    assert_eq!(world.resume(), Ok(needs));
    // The host has to bring it back, and its interrupt is cut short.
    let super::Vm { guarded, shown, gprs, .. } = &mut world.vm;
    guarded.show_page(shown, gprs, (RAM + 4, Access::NONE));
    let read = |world: &World, encoding| world.vm.reads(encoding);
    assert_eq!(read(&world, f::EXIT_REASON.encoding()), 48);
    assert_eq!(read(&world, f::EXIT_QUALIFICATION.encoding()), 0x182);
    assert_eq!(read(&world, f::GUEST_PHYSICAL_ADDRESS.encoding()), RAM);
    assert_eq!(read(&world, f::IDT_VECTORING.encoding()), u64::from(INTERRUPT));
    assert_eq!(read(&world, f::ENTRY_INTERRUPTION.encoding()) & u64::from(VALID), 0);
    assert_eq!(read(&world, f::GUEST_RIP.encoding()), DECOY_RIP);
    assert_eq!(world.vm.gprs.0[..4], [0; 4]);
    // It does not at once. Whatever it answers is no answer.
    world.vm.shown.write(f::GUEST_RIP.encoding(), DECOY_RIP + 2);
    assert_eq!(world.enter(), Ok(needs));
    let super::Vm { guarded, shown, gprs, .. } = &mut world.vm;
    guarded.show_page(shown, gprs, (RAM, Access::READ));
    assert_eq!(read(&world, f::EXIT_QUALIFICATION.encoding()), 0x18a);
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
        let super::Vm { guarded, shown, gprs, .. } = &mut world.vm;
        guarded.show_page(shown, gprs, (RAM, Access::NONE));
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
fn segments_of_other_operands_are_checked() {
    let (ss, data) = (Segment::Ss.fields(), Segment::Es.fields());
    let fault = |event| Verdict::Raise(event);
    let gp = fault(Event::GeneralProtection(0));
    // ss movsd in 32-bit code: source in SS, destination in ES.
    for (limit, rights, expected) in [
        (u32::MAX, 0xc093, Verdict::Host),
        (LOW + 3, 0xc093, Verdict::Host),
        (LOW + 2, 0xc093, gp),
        (u32::MAX, 0xc091, gp),
        (u32::MAX, 0xc09b, gp),
        (u32::MAX, 0x1_c093, gp),
        // Expanding downwards.
        (LOW - 1, 0xc097, Verdict::Host),
        (LOW, 0xc097, gp),
        (LOW - 1, 0x8097, gp),
    ] {
        let mut world = World::new(Code::Flat32, MOVS).with(&[(RSI, AT), (RDI, RAM)]);
        world.vm.v02.write(data.limit, limit);
        world.vm.v02.write(data.rights, rights);
        assert_eq!(world.touch(AT, 0x181), expected, "{limit:#x} {rights:#x}");
    }
    let mut world = World::new(Code::Flat32, &[0x36, 0xa5]).with(&[(RSI, RAM), (RDI, AT)]);
    world.vm.v02.write(ss.limit, 0xfff);
    assert_eq!(world.touch(AT, 0x182), fault(Event::StackFault));
    // Real mode has no types, but limits.
    for (limit, expected) in [(0xf_ffff, Verdict::Host), (0xffff, gp)] {
        let mut world = World::new(Code::Real16, &[0x67, 0xa5]).with(&[(RSI, AT), (RDI, RAM)]);
        world.vm.v02.write(data.rights, 0x9b);
        world.vm.v02.write(data.limit, limit);
        assert_eq!(world.touch(AT, 0x181), expected);
    }
}

#[test]
fn bases_of_segments_count() {
    let mut world = World::new(Code::Real16, &[0x8b, 0x07]).with(&[(RBX, 0x678)]);
    for (segment, base) in [(Segment::Ds, AT), (Segment::Cs, 0x10_0000)] {
        world.vm.v02.write(segment.fields().base, base);
    }
    world.ram.store(CODE + 0x10_0000, &[0x8b, 0x07]);
    world.ram.store(CODE, &[0; 2]);
    world.run();
    assert_eq!(world.log, [(AT + 0x678, 2, None)]);
    assert_done(&world, 2);
}

#[test]
fn the_stack_pointer_is_a_register_too() {
    // mov rsp, [rdx]; mov [rdx], rsp
    let mut world = World::new(Code::Long, &[0x48, 0x8b, 0x22]).with(&[(RDX, AT)]);
    world.run();
    assert_eq!(world.vm.v02.read(f::GUEST_RSP), loaded(AT, 8));
    let mut world = World::new(Code::Long, &[0x48, 0x89, 0x22]).with(&[(RDX, AT)]);
    world.vm.v02.write(f::GUEST_RSP, OLD);
    world.run();
    assert_eq!(world.log, [(AT, 8, Some(OLD))]);
}

#[test]
fn what_cannot_be_done_for_the_vm_stops_it() {
    let device = Verdict::Stop(Cause::Device(AT));
    let unknown = Verdict::Stop(Cause::Instruction);
    let new = |code: &[u8]| World::new(Code::Long, code).with(&[(RDX, AT)]);
    let load = [0x8b, 0x0a];
    // A fetch; a walk; no linear address.
    for qualification in [0x184, 0x81, 0x1, 0x101] {
        assert_eq!(new(&load).touch(AT, qualification), device, "{qualification:#x}");
    }
    // In the delivery of an event: a stack in a device.
    let mut world = new(&load);
    world.vm.v02.write(f::IDT_VECTORING, VALID | 0x31);
    assert_eq!(world.touch(AT, 0x182), device);
    // Tables in a device.
    let mut world = new(&load);
    world.ram.set_word(TABLES[0], AT | 7);
    assert_eq!(world.touch(AT, 0x181), device);
    // A host that runs real mode in another way.
    let mut world = new(&load);
    let secondary = world.vm.shown.fields().read(f::SECONDARY_CONTROLS);
    let without = secondary & !Secondary::UNRESTRICTED_GUEST.bits();
    world.vm.shown.write(f::SECONDARY_CONTROLS.encoding(), without.into());
    assert_eq!(world.touch(AT, 0x181), device);
    // push [rdx]; movups xmm0, [rdx]; call [rdx]; hlt
    for code in [&[0xff, 0x32][..], &[0x0f, 0x10, 0x02], &[0xff, 0x12], &[0xf4]] {
        assert_eq!(new(code).touch(AT, 0x181), unknown, "{code:x?}");
    }
    // insd to a device
    let mut world = World::new(Code::Long, &[0x6d]).with(&[(RDX, 0x70), (RDI, AT)]);
    assert_eq!(world.port(0x0070_001b), unknown);
}

#[test]
fn code_that_has_changed_meanwhile_is_executed_again() {
    // mov ecx, [rsi]: memory; insd; the device is not the one that was touched.
    for code in [&[0x8b, 0x0e][..], &[0x6d]] {
        let mut world = World::new(Code::Long, code).with(&[(RSI, RAM), (RDI, RAM), (RDX, AT)]);
        assert_eq!(world.touch(AT, 0x181), Verdict::Stay);
        assert_eq!((world.vm.gprs.0[RSI], world.vm.gprs.0[RDX]), (RAM, AT));
    }
    let mut world = World::new(Code::Long, &[0x8b, 0x0a]).with(&[(RDX, AT)]);
    assert_eq!(world.port(0x0070_001b), Verdict::Stay);
}

#[test]
fn an_instruction_may_cross_into_a_page_that_is_absent() {
    let mut world = World::new(Code::Long, &[]).with(&[(RDX, AT)]);
    // mov ecx, [rdx + 0x1234_5678] at the end of a page
    world.ram.store(CODE + 0xffd, &[0x8b, 0x8a, 4, 0, 0, 0]);
    world.vm.v02.write(f::GUEST_RIP, CODE + 0xffd);
    let _ = world.ram.absent.insert(CODE + 0x1000);
    let fault = Verdict::Fault { address: CODE + 0x1000, access: Access::READ };
    assert_eq!(world.touch(AT, 0x181), fault);
    world.ram.absent.clear();
    world.run();
    assert_eq!(world.log, [(AT + 4, 4, None)]);
}

#[test]
fn elements_of_ins_and_outs_are_shown_as_in_and_out() {
    let port = |world: &mut World, qualification: u64, value: u64| {
        assert_eq!(world.port(qualification), Verdict::Host);
        let read = |encoding| world.vm.reads(encoding);
        assert_eq!(read(f::EXIT_REASON.encoding()), 30);
        assert_eq!(read(f::EXIT_QUALIFICATION.encoding()), qualification & 0xffff_000f);
        assert_eq!(read(f::EXIT_INSTRUCTION_LENGTH.encoding()), 2);
        assert_eq!(read(f::GUEST_RIP.encoding()), DECOY_RIP);
        assert_eq!(read(f::GUEST_RFLAGS.encoding()), IF | 2);
        let mut gprs = Gprs([0; 16]);
        gprs.0[RAX] = value;
        gprs.0[4] = world.vm.gprs.0[4];
        assert_eq!(world.vm.gprs, gprs);
        world.vm.gprs = Gprs([0x9999_9999_1234_5678; 16]);
        world.vm.shown.write(f::GUEST_RIP.encoding(), DECOY_RIP + 2);
    };
    // rep insw
    let registers = [(RAX, OLD), (RCX, 2), (RDX, 0x1f0), (RDI, ALIAS + RAM + 0xfff)];
    let mut world = World::new(Code::Long, &[0xf3, 0x66, 0x6d]).with(&registers);
    for left in [1, 0] {
        port(&mut world, 0x01f0_0039, 0);
        assert_eq!(world.enter(), Ok(Entered::Run));
        assert_eq!((world.vm.gprs.0[RCX], world.vm.gprs.0[RAX]), (left, OLD));
    }
    assert_eq!(world.vm.gprs.0[RDI], ALIAS + RAM + 0x1003);
    let found: Vec<u8> = (0..5).map(|n| world.ram.byte(RAM + 0xfff + n)).collect();
    assert_eq!(found, [0x78, 0x56, 0x78, 0x56, 0]);
    assert_eq!(world.vm.v02.read(f::GUEST_RIP), CODE + 3);
    // rep outsb, downwards, from FS
    let registers = [(RAX, OLD), (RCX, 2), (RDX, 0x3f8), (RSI, RAM + 1)];
    let mut world = World::new(Code::Long, &[0xf3, 0x64, 0x6e]).with(&registers);
    world.vm.v02.write(Segment::Fs.fields().base, ALIAS);
    world.vm.v02.write(f::GUEST_RFLAGS, 0x602);
    world.ram.store(RAM, &[0xaa, 0xbb, 0xcc]);
    for value in [0xbb, 0xaa] {
        port(&mut world, 0x03f8_0030, value);
        assert_eq!(world.enter(), Ok(Entered::Run));
    }
    assert_eq!((world.vm.gprs.0[RSI], world.vm.gprs.0[RCX]), (RAM - 1, 0));
    assert_eq!(world.vm.v02.read(f::GUEST_RIP), CODE + 3);
}

#[test]
fn the_memory_of_ins_is_there_before_the_port_is_read() {
    let registers = [(RCX, 2), (RDX, 0x1f0), (RDI, RAM)];
    let mut world = World::new(Code::Long, &[0xf3, 0x6c]).with(&registers);
    let _ = world.ram.absent.insert(RAM);
    let fault = Verdict::Fault { address: RAM, access: Access::READ };
    assert_eq!(world.port(0x01f0_0038), fault);
    assert_eq!(world.vm.gprs.0[RDI], RAM);
    world.ram.absent.clear();
    assert_eq!(world.port(0x01f0_0038), Verdict::Host);
    // Not answered: the VM is at it again.
    assert_eq!(world.enter(), Ok(Entered::Run));
    assert_eq!((world.vm.gprs.0[RDI], world.vm.gprs.0[RCX]), (RAM, 2));
    assert_eq!(world.vm.v02.read(f::GUEST_RIP), CODE);
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

#[test]
fn an_answer_without_a_question_is_none() {
    let mut world = World::new(Code::Long, ADD).with(&[(RAX, 1), (RBX, AT)]);
    assert_eq!(world.resume(), Err(Cause::Instruction));
}
