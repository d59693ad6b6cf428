//! A hostile host of nested VMX: a byte for the processor, then 12 bytes for each thing that the
//! host, its VM or the processor does. What must hold is in the tests of `nested-vmx`.
#![no_main]

#[path = "../../../../nested-vmx/tests/rules/entry_checks.rs"]
mod entry_checks;
#[path = "../../../../nested-vmx/tests/rules/fake.rs"]
mod fake;
#[expect(dead_code, reason = "the tests of `nested-vmx` use more of it")]
#[path = "../../../../nested-vmx/tests/rules/good.rs"]
mod good;
#[path = "../../../../nested-vmx/tests/rules/model.rs"]
mod model;
#[path = "../../../../nested-vmx/tests/rules/run.rs"]
mod run;
#[path = "../../../../nested-vmx/tests/rules/step.rs"]
mod step;

use fake::FakeVmcs;
use nested_vmx::check::Context;
use nested_vmx::field::{self as f, Segment};
use nested_vmx::operand::{Operands, Place, Use, permitted};
use nested_vmx::vmcs12::{Vmcs12, encodings};
use run::Run;
use step::{Ending, REGIONS, Shadowing, Step, VMXON};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let [processor, steps @ ..] = data else {
        return;
    };
    let shadowing = if processor & 1 == 0 { Shadowing::Absent } else { Shadowing::Present };
    let advertised = good::advertised();
    let (mut first, mut second) = (Box::new(Vmcs12::EMPTY), Box::new(Vmcs12::EMPTY));
    let context = Context { long_mode: processor & 2 == 0, ..good::context(&advertised) };
    let mut run = Run::new((context, shadowing), &mut first, &mut second);
    let [region, ..] = REGIONS;
    for step in [Step::Vmxon(VMXON), Step::Vmptrld(region), Step::Repair] {
        run.step(&step);
    }
    let (steps, _) = steps.as_chunks();
    for bytes in steps.iter().take(100) {
        play(&mut run, bytes);
    }
});

/// Where the host points: mostly to a region.
fn pointer(number: u8, value: u64) -> u64 {
    match number {
        0..200 => REGIONS[usize::from(number) % REGIONS.len()],
        200..230 => VMXON,
        _ => value,
    }
}

/// A field, by its number among those that there are.
fn field(number: u16) -> u32 {
    let fields: Vec<u32> = encodings(model::ALL).collect();
    fields[usize::from(number >> 1) % fields.len()] | u32::from(number & 1)
}

/// What happens: its kind, two numbers, a value.
fn play(run: &mut Run<'_>, bytes: &[u8; 12]) {
    let [kind, small, low, high, rest @ ..] = *bytes;
    let (number, value) = (u16::from_le_bytes([low, high]), u64::from_le_bytes(rest));
    let step = match kind % 16 {
        0..4 => entry(small, number, value),
        4 => Step::Write(field(number).into(), value),
        5 => Step::Write(u64::from(field(number)) | u64::from(small) << 60, value),
        6 => Step::Flip(
            [0x4000, 0x4002, 0x401e, 0x400c, 0x4012][usize::from(small % 5)],
            1 << (number % 32),
        ),
        7 => Step::Read(field(number).into()),
        8 => Step::Read(value),
        9 => Step::Repair,
        10 => Step::Vmptrld(pointer(small, value)),
        11 => Step::Vmclear(pointer(small, value)),
        12 => Step::Poke(pointer(small, value), number.into(), value),
        13 => return scramble(run, pointer(small, value), value),
        14 => return operand(u32::from(number) << 16 | u32::from(small) << 7, value),
        _ => match small {
            0..128 => Step::EnterWrongly,
            128..200 => Step::Vmxon(pointer(low, value)),
            _ => Step::Vmxoff,
        },
    };
    run.step(&step);
}

fn entry(small: u8, number: u16, value: u64) -> Step {
    let ending = match number % 8 {
        0 => Ending::Refused,
        1 => Ending::Failed,
        2 => Ending::ExitAfterEvents,
        _ => Ending::Exit,
    };
    let change = |turn: u8| (small.wrapping_add(turn), value.rotate_left(u32::from(turn) * 5));
    let registers = [value, !value, value << 7, value >> 7];
    let changes = (0..small % 32).map(change).collect();
    Step::Enter(registers, changes, ending)
}

/// A region full of chance, which may be loaded all the same.
fn scramble(run: &mut Run<'_>, region: u64, seed: u64) {
    let mut word = seed | 1;
    for place in 1..512 {
        word = word.wrapping_mul(0x5851_f42d_4c95_7f2d).rotate_left(29);
        run.step(&Step::Poke(region, place, word));
    }
}

/// An operand that no processor may report, of a host in whatever mode.
fn operand(information: u32, value: u64) {
    let mut vmcs = FakeVmcs::default()
        .with(f::GUEST_EFER, value & 0xd01)
        .with(f::GUEST_CR0, value >> 8)
        .with(f::GUEST_RFLAGS, value >> 16);
    let [low, .., high] = value.to_le_bytes().map(u32::from);
    for (segment, turn) in Segment::ALL.into_iter().zip(0..) {
        let fields = segment.fields();
        let (low, high) = (low.rotate_left(turn), high.rotate_right(turn));
        vmcs = vmcs
            .with(fields.base, value.rotate_left(turn))
            .with(fields.limit, low)
            .with(fields.rights, high | low << 12);
    }
    let _ = permitted(&vmcs);
    let Some(operands) = Operands::decode(information, value) else {
        return;
    };
    if let Place::Memory(address) = operands.place {
        for usage in [Use::Read, Use::Write] {
            let register = |number: u8| value.wrapping_mul(u64::from(number));
            let _ = address.linear(&vmcs, register, (16, usage), 47);
        }
    }
}
