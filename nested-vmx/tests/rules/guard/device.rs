//! Device memory and string I/O.

use ept::shadow::Access;
use nested_vmx::control::Secondary;
use nested_vmx::exit::Event;
use nested_vmx::field::{self as f, Segment, Vmcs};
use nested_vmx::guard::{Cause, DECOY_RIP, Entered, Verdict, window};

use super::world::{
    ALIAS, ALL, AT, CODE, Code, INTERRUPT, MOVS, NMI, RAM, RDI, RSI, TABLES, WINDOW, World,
    assert_done, loaded,
};
use super::{Gprs, IF, RAX, RBX, RCX, RDX, VALID};

const LOW: u32 = 0x2_0000;
const OLD: u64 = 0x1122_3344_5566_7788;
const TRAP: u64 = 1 << 8;

/// Prefixes of an instruction with an operand of so many bytes at [RDX], if there is one.
fn prefixes(kind: Code, bytes: u64) -> Option<Vec<u8>> {
    let real = kind == Code::Real16;
    let size: &[u8] = match bytes {
        1 => &[],
        2 if real => &[],
        2 => &[0x66],
        4 if real => &[0x66],
        4 => &[],
        _ if matches!(kind, Code::Long | Code::Long5) => &[0x48],
        _ => return None,
    };
    let address: &[u8] = if real { &[0x67] } else { &[] };
    Some([address, size].concat())
}

#[test]
fn every_access_has_an_instruction_in_every_mode() {
    let sizes = ALL.into_iter().flat_map(|kind| [1, 2, 4, 8].map(|bytes| (kind, bytes)));
    for (kind, bytes) in sizes {
        let Some(prefixes) = prefixes(kind, bytes) else {
            continue;
        };
        let (mask, at) = (u64::MAX >> (64 - 8 * bytes), AT + 0x678);
        let byte = u8::from(bytes == 1);
        let keep = if bytes == 4 { 0 } else { !mask };
        // mov [rdx], ecx; mov ecx, [rdx]
        for (opcode, stored, after) in [
            (0x89 - byte, Some(OLD & mask), OLD),
            (0x8b - byte, None, OLD & keep | loaded(at, bytes)),
        ] {
            let code = [&prefixes[..], &[opcode, 0x0a]].concat();
            let mut world = World::new(kind, &code).with(&[(RCX, OLD), (RDX, at)]);
            world.run();
            assert_eq!(world.log, [(at, bytes, stored)], "{kind:?}");
            assert_done(&world, u64::try_from(code.len()).unwrap());
            let mut gprs = Gprs([0; 16]);
            (gprs.0[RCX], gprs.0[RDX], gprs.0[4]) = (after, at, world.vm.gprs.0[4]);
            assert_eq!(world.vm.gprs, gprs, "{kind:?} {bytes}");
            assert_eq!(world.vm.v02.read(f::GUEST_RFLAGS), 0x202);
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
    assert_eq!(world.vm.gprs.0[RBX], 0x2004);
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
    (gprs.0[RAX], gprs.0[RBX]) = (0x5a, 0x1005);
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
    // From a code segment that can be read, and one that cannot.
    for (rights, expected) in [(0xc09b, Verdict::Host), (0xc099, gp)] {
        let mut world = World::new(Code::Flat32, &[0x2e, 0xa5]).with(&[(RSI, RAM), (RDI, AT)]);
        world.vm.v02.write(Segment::Cs.fields().rights, rights);
        assert_eq!(world.touch(AT, 0x182), expected);
    }
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
fn addresses_of_32_bit_code_have_32_bits() {
    // In compatibility mode: code where base and RIP add up to more.
    let mut world = World::new(Code::Long, &[0x8b, 0x0b]).with(&[(RBX, 2)]);
    for (segment, base, rights) in
        [(Segment::Cs, 0xffff_f000, 0xc09b), (Segment::Ds, AT - 2, 0xc093)]
    {
        world.vm.v02.write(segment.fields().base, base);
        world.vm.v02.write(segment.fields().rights, rights);
    }
    world.vm.v02.write(f::GUEST_RIP, CODE + 0x1000);
    world.run();
    assert_eq!(world.log, [(AT, 4, None)]);
    assert_done(&world, 0x1002);
}

#[test]
fn outside_of_ia_32e_mode_no_code_is_64_bit_code() {
    // mov cx, [edx], with CS.L
    let mut world = World::new(Code::Real16, &[0x67, 0x8b, 0x0a]).with(&[(RDX, AT)]);
    world.vm.v02.write(Segment::Cs.fields().rights, 0x209b);
    world.run();
    assert_eq!(world.log, [(AT, 2, None)]);
}

#[test]
fn addresses_of_64_bit_code_have_64_bits() {
    let mut world = World::new(Code::Long, &[0x8b, 0x0b]).with(&[(RBX, ALIAS + AT)]);
    world.ram.set_word(TABLES[0], 0);
    world.vm.v02.write(Segment::Cs.fields().base, 0x1000);
    world.vm.v02.write(f::GUEST_RIP, ALIAS + CODE);
    world.run();
    assert_eq!(world.log, [(AT, 4, None)]);
    assert_eq!(world.vm.v02.read(f::GUEST_RIP), ALIAS + CODE + 2);
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
    let new = |code: &[u8]| {
        World::new(Code::Long, code).with(&[(RSI, RAM), (RDI, RAM), (RCX, 1), (RDX, AT)])
    };
    // mov ecx, [rsi], which is no device; insd
    for code in [&[0x8b, 0x0e][..], &[0x6d]] {
        let mut world = new(code);
        assert_eq!(world.touch(AT, 0x181), Verdict::Stay);
        assert_eq!((world.vm.gprs.0[RSI], world.vm.gprs.0[RDX]), (RAM, AT));
    }
    // It was INS of 4 bytes: mov ecx, [rdx]; insw; insb; outsd
    for code in [&[0x8b, 0x0a][..], &[0x66, 0x6d], &[0x6c], &[0x6f]] {
        assert_eq!(new(code).port(0x0070_001b), Verdict::Stay, "{code:x?}");
    }
    assert_eq!(new(&[0x6d]).port(0x0070_001b), Verdict::Host);
    assert_eq!(new(&[0x6d]).port(0x0070_0013), Verdict::Stay);
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
fn ins_and_outs_without_a_turn_left_are_over() {
    let registers = [(RCX, 0), (RDX, 0x1f0), (RDI, RAM), (RSI, RAM)];
    for (code, qualification) in [(0x6c, 0x01f0_0038), (0x6e, 0x01f0_0030)] {
        let mut world = World::new(Code::Long, &[0xf3, code]).with(&registers);
        assert_eq!(world.port(qualification), Verdict::Step);
    }
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
