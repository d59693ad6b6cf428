//! A host that sees nothing of two VMs that differ in nothing that it may see, and that writes
//! whatever it likes.

use ept::shadow::Access;
use nested_vmx::field::{self as f, Segment, Vmcs};
use nested_vmx::guard::{DECOY_RIP, Entered, Registers, Verdict};
use nested_vmx::vmcs12::{Class, encodings};
use proptest::prelude::*;

use super::world::{AT, Code, RAM, RDI, RSI, World};
use super::{Gprs, IF, Vm};
use crate::model::{ALL, plain};

/// Bits of RAX that take part in a port access.
fn size(qualification: u64) -> u64 {
    match qualification & 7 {
        0 => 0xff,
        1 => 0xffff,
        _ => 0xffff_ffff,
    }
}

/// Which bits of the VM's registers an exit for this reason discloses, by the architecture: what the
/// instruction itself names.
fn disclosed(reason: u32, qualification: u64) -> [u64; 16] {
    const HALF: u64 = 0xffff_ffff;
    let mut bits = [0; 16];
    match reason {
        10 => (bits[0], bits[1]) = (HALF, HALF),
        31 => bits[1] = HALF,
        32 | 55 => (bits[0], bits[1], bits[2]) = (HALF, HALF, HALF),
        28 if qualification >> 4 & 3 == 0 => {
            let four = qualification & 15 == 8;
            let operand = usize::try_from(qualification >> 8 & 15).unwrap();
            bits[operand] = if four { 15 } else { u64::MAX };
        }
        30 if qualification & 8 == 0 => {
            bits[0] = size(qualification);
        }
        _ => {}
    }
    bits
}

/// Bits of the state that hosts rely on.
fn truthful(encoding: u32) -> u64 {
    let (code, stack) = (Segment::Cs.fields().rights, Segment::Ss.fields().rights);
    match encoding {
        0x6800 | 0x6804 | 0x4824 | 0x4826 => u64::MAX,
        0x6820 => IF,
        _ if encoding == code.encoding() => 3 << 13,
        // Decides whether an instruction exits at all.
        _ if encoding == stack.encoding() => 3 << 5,
        _ => 0,
    }
}

fn mix(seed: u64, number: u32) -> u64 {
    let mut word =
        (seed ^ u64::from(number) << 32 | u64::from(number)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    word ^= word >> 29;
    word.wrapping_mul(0xbf58_476d_1ce4_e5b9) ^ word >> 31
}

/// An exit, and what is known of it.
#[derive(Clone, Copy, Debug)]
struct Exit {
    reason: u32,
    qualification: u64,
    interruption: u32,
    vectoring: u32,
    /// Of what both VMs have.
    common: u64,
}

/// A VM that has run with secrets made of `seed`, and exits.
fn exits(exit: Exit, seed: u64) -> (Vm, Verdict) {
    let mut vm = Vm::running();
    for encoding in plain() {
        let keep = truthful(encoding);
        let value = mix(exit.common, encoding) & keep | mix(seed, encoding) & !keep;
        let value = match encoding {
            0x4824 => value & 0xb,
            0x4826 => value & 1,
            0x6804 => value & 0x77_16a0 | 0x2040,
            _ => value,
        };
        vm.v02.write_raw(encoding, value);
    }
    let bits = disclosed(exit.reason, exit.qualification);
    for number in 0..16_u8 {
        let keep = bits[usize::from(number)];
        let at = 0x1_0000 + u32::from(number);
        let value = mix(exit.common, at) & keep | mix(seed, at) & !keep;
        match number {
            4 => vm.v02.write(f::GUEST_RSP, value),
            // An MSR that hosts emulate, or not.
            1 if exit.reason == 31 || exit.reason == 32 => {
                let index = [0x10, 0x1b, 0x830, 0xc000_0080, 0x1d9, 0x4b56_4d00];
                let chosen = index[usize::try_from(exit.common % 6).unwrap()];
                vm.gprs.set(1, value & !0xffff_ffff | chosen);
            }
            _ => vm.gprs.set(number, value),
        }
    }
    vm.v02.write(f::EXIT_INTERRUPTION, exit.interruption);
    vm.v02.write(f::IDT_VECTORING, exit.vectoring);
    for encoding in [0x2400, 0x4406, 0x440a, 0x440e, 0x640a] {
        vm.v02.write_raw(encoding, mix(seed, encoding));
    }
    let mut verdict = vm.exit(exit.reason, exit.qualification);
    if let Verdict::Fault { .. } = verdict {
        let Vm { guarded, shown, gprs, v02 } = &mut vm;
        verdict = guarded.tell_page(shown, gprs, v02, (exit.common, Access::NONE));
    }
    (vm, verdict)
}

/// Whether the host gets the exit.
fn is_told(verdict: Verdict) -> bool {
    matches!(verdict, Verdict::Host | Verdict::Signal(_))
}

/// All that the host can read.
fn view(vm: &Vm) -> (Vec<u64>, Gprs) {
    let mut words = Vec::new();
    vm.shown.fields().store(|_, word| words.push(word));
    (
        words,
        Gprs({
            let mut all = vm.gprs.0;
            all[4] = 0;
            all
        }),
    )
}

fn exit() -> impl Strategy<Value = Exit> {
    let interruption = prop_oneof![
        Just(0x8000_0202),
        Just(0x8000_0312),
        Just(0x8000_0031),
        Just(0x8000_1b11),
        any::<u32>(),
    ];
    let vectoring = prop_oneof![
        4 => Just(0),
        1 => Just(0x8000_0b0e),
        1 => Just(0x8000_0480),
        1 => Just(0x8000_0031),
        1 => any::<u32>(),
    ];
    let qualification = prop_oneof![
        Just(0),
        0..0x1000_u64,
        any::<u64>(),
        (0..16_u64, 0..16_u64, 0..4_u64).prop_map(|(gpr, what, how)| gpr << 8 | how << 4 | what),
    ];
    (0..70_u32, qualification, interruption, vectoring, any::<u64>()).prop_map(
        |(reason, qualification, interruption, vectoring, common)| Exit {
            reason,
            qualification,
            interruption,
            vectoring,
            common,
        },
    )
}

/// Writes garbage to all of the shown VMCS12.
fn scribble(vm: &mut Vm, seed: u64) {
    for encoding in encodings(ALL) {
        vm.shown.write(encoding, mix(seed, encoding));
    }
}

/// Fields that an answer or event of the host is read from.
fn answer(vm: &mut Vm, exit: Exit, seed: u64) {
    let completes = seed & 1 == 0;
    let rip = if completes { DECOY_RIP + 2 } else { mix(seed, 0x681e) };
    vm.shown.write(f::GUEST_RIP.encoding(), rip);
    vm.shown.write(f::ENTRY_INTERRUPTION.encoding(), mix(seed, 0x4016) & 0x8000_0fff);
    vm.shown.write(f::GUEST_ACTIVITY.encoding(), seed >> 1 & 1);
    const HALF: u64 = 0xffff_ffff;
    let mut bits = [0; 16];
    match exit.reason {
        10 => bits[..4].copy_from_slice(&[HALF; 4]),
        31 => (bits[0], bits[2]) = (HALF, HALF),
        28 if exit.qualification & 0x3f == 0x18 => bits[0] = 15,
        30 if exit.qualification & 8 != 0 => {
            bits[0] = size(exit.qualification);
        }
        _ => {}
    }
    for number in (0..16_u8).filter(|number| *number != 4) {
        let keep = bits[usize::from(number)];
        let at = 0x2_0000 + u32::from(number);
        vm.gprs.set(number, mix(seed, at) & keep | vm.gprs.get(number) & !keep);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn the_host_sees_no_difference_that_it_may_not_see(
        exit in exit(), first: u64, second: u64,
    ) {
        let (one, verdict) = exits(exit, first);
        let (other, same) = exits(exit, second);
        if let (Verdict::Stop(a), Verdict::Stop(b)) = (verdict, same) {
            prop_assert_eq!(a, b);
        } else if is_told(verdict) {
            prop_assert_eq!(verdict, same);
            prop_assert_eq!(view(&one), view(&other));
        }
    }

    #[test]
    fn whatever_the_host_writes_it_changes_only_what_it_may(
        exit in exit(), secret: u64, seed: u64, garbage: u64,
    ) {
        let (mut polite, verdict) = exits(exit, secret);
        let (mut rude, _) = exits(exit, secret);
        if !is_told(verdict) {
            return Ok(());
        }
        answer(&mut polite, exit, seed);
        scribble(&mut rude, garbage);
        rude.gprs = Gprs(core::array::from_fn(|n| mix(garbage, u32::try_from(n).unwrap())));
        // What the polite host has answered, this one answers too.
        answer(&mut rude, exit, seed);
        let results = (polite.enter(), rude.enter());
        prop_assert_eq!(results.0, results.1);
        if results.0.is_err() {
            return Ok(());
        }
        let guest = encodings(&[Class::Guest, Class::HotGuest]);
        for encoding in guest {
            prop_assert_eq!(
                polite.v02.read_raw(encoding), rude.v02.read_raw(encoding), "{:#x}", encoding
            );
        }
        for encoding in [0x4016, 0x4018, 0x401a, 0x4004, 0x4010, 0x2004] {
            prop_assert_eq!(
                polite.v02.read_raw(encoding), rude.v02.read_raw(encoding), "{:#x}", encoding
            );
        }
        for number in (0..16_u8).filter(|number| *number != 4) {
            prop_assert_eq!(polite.gprs.get(number), rude.gprs.get(number), "register {}", number);
        }
        prop_assert_eq!(polite.guarded.xcr0(), rude.guarded.xcr0());
    }
}

/// Code that loads from the device at [RBX] or [RSI], stores to it, or both; from and to memory.
const ACCESSES: [&[u8]; 9] = [
    &[0x8a, 0x2b],             // mov ch, [rbx]
    &[0x48, 0x8b, 0x4b, 0xfd], // mov rcx, [rbx - 3]
    &[0x66, 0x89, 0x0b],       // mov [rbx], cx
    &[0x48, 0x63, 0x0b],       // movsxd rcx, [rbx]
    &[0x01, 0x0b],             // add [rbx], ecx
    &[0x87, 0x4b, 0xfe],       // xchg [rbx - 2], ecx
    &[0xf3, 0xa5],             // rep movsd
    &[0x80, 0x3b, 0x7f],       // cmp byte [rbx], 127
    &[0x48, 0x0f, 0xb1, 0x0b], // cmpxchg [rbx], rcx
];

/// A VM with `secret` in all registers that exits by one of these.
fn touches(code: &[u8], secret: u64) -> World {
    let mut world = World::new(Code::Long, code);
    world.vm.gprs = Gprs(core::array::from_fn(|n| mix(secret, u32::try_from(n).unwrap())));
    let mut world = world.with(&[(3, AT), (RSI, AT), (RDI, RAM)]);
    world.vm.v02.write(f::GUEST_RSP, mix(secret, 0x681c));
    world.vm.v02.write(f::GUEST_RFLAGS, mix(secret, 0x6820) & 0x8d5 | 0x202);
    assert_eq!(world.touch(AT, 0x181), Verdict::Host);
    world
}

/// Runs it until its instruction is done, by a host that writes garbage wherever it may not.
fn scribbled(world: &mut World, garbage: u64) {
    loop {
        world.answer();
        let (_, bytes, _) = *world.log.last().unwrap();
        let mask = u64::MAX >> (64 - 8 * bytes);
        let (rax, rip) = (world.vm.gprs.0[0], world.vm.reads(f::GUEST_RIP.encoding()));
        scribble(&mut world.vm, garbage);
        world.vm.gprs = Gprs(core::array::from_fn(|n| mix(garbage, u32::try_from(n).unwrap())));
        world.vm.gprs.0[0] = world.vm.gprs.0[0] & !mask | rax & mask;
        world.vm.shown.write(f::GUEST_RIP.encoding(), rip);
        world.vm.inject(0);
        if world.enter().unwrap() == Entered::Run {
            return;
        }
    }
}

proptest! {
    #[test]
    fn whatever_the_host_writes_a_device_answers_no_more_than_its_size(
        code in proptest::sample::select(&ACCESSES[..]), secret: u64, garbage: u64,
    ) {
        let (mut polite, mut rude) = (touches(code, secret), touches(code, secret));
        polite.serve();
        scribbled(&mut rude, garbage);
        prop_assert_eq!(&polite.log, &rude.log);
        prop_assert_eq!(polite.ram.word(RAM), rude.ram.word(RAM));
        for encoding in encodings(&[Class::Guest, Class::HotGuest]) {
            let [one, other] = [&polite, &rude].map(|world| world.vm.v02.read_raw(encoding));
            prop_assert_eq!(one, other, "{:#x}", encoding);
        }
        for number in (0..16_u8).filter(|number| *number != 4) {
            let [one, other] = [&polite, &rude].map(|world| world.vm.gprs.get(number));
            prop_assert_eq!(one, other, "register {}", number);
        }
    }

    #[test]
    fn of_a_load_the_host_sees_nothing_of_the_vm(
        code in proptest::sample::select(&ACCESSES[..]), first: u64, second: u64,
    ) {
        let worlds = [first, second].map(|secret| touches(code, secret));
        let [one, other] = worlds.each_ref().map(|world| view(&world.vm));
        // All but one begin with a load.
        prop_assert!(code[..2] == [0x66, 0x89] || one == other);
    }
}

#[test]
fn every_basic_exit_reason_has_a_rule_or_stops_the_vm() {
    let shown = [0, 1, 3, 4, 7, 8, 10, 12, 28, 30, 31, 32, 36, 39, 40, 43, 48, 49, 52, 54, 55];
    let alone = [11, 13, 15, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 50, 53, 59];
    for reason in 0..70 {
        let mut vm = Vm::running();
        vm.gprs.0[1] = 0x10;
        vm.v02.write(f::EXIT_INTERRUPTION, 0x8000_0202);
        let verdict = vm.exit(reason, 0);
        let as_expected = match verdict {
            Verdict::Host | Verdict::Fault { .. } => shown.contains(&reason),
            Verdict::Step | Verdict::Raise(_) => alone.contains(&reason),
            Verdict::Stop(_) => !shown.contains(&reason) && !alone.contains(&reason),
            Verdict::Stay
            | Verdict::Debug(_)
            | Verdict::ExtendedState
            | Verdict::StringPort
            | Verdict::Signal(_)
            | Verdict::PageFault { .. } => false,
        };
        assert!(as_expected, "{reason}: {verdict:?}");
    }
}
