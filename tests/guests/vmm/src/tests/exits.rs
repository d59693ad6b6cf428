//! What makes a guest exit, in every mode.

use super::{Machine, same, until};
use crate::code;
use crate::mode::{DEVICE, Mode, SHARED};
use crate::vm::{Exit, Vcpu};

pub(super) fn real_mode() -> Result<(), String> {
    every_exit(Mode::Real, code::every_exit_16())
}

pub(super) fn protected_mode() -> Result<(), String> {
    every_exit(Mode::Protected, code::every_exit_32())
}

pub(super) fn long_mode() -> Result<(), String> {
    every_exit(Mode::Long, code::every_exit_64())
}

/// Memory without the hole in which the device of the guest lies.
fn machine(mode: Mode, code: &[u8]) -> Result<Machine, String> {
    let machine = Machine::new(4, mode, code)?;
    machine.vm.remove_slot(0)?;
    let top = machine.memory.size();
    machine.vm.slot(0, 0, 0, machine.memory.part(0..0xa_0000))?;
    machine.vm.slot(1, 0, 0x10_0000, machine.memory.part(0x10_0000..top))?;
    machine.vm.with_user_msrs()?;
    Ok(machine)
}

fn every_exit(mode: Mode, code: &[u8]) -> Result<(), String> {
    let mut machine = machine(mode, code)?;
    machine.memory.write(SHARED + 0x100, b"hello");
    ports(&mut machine.vcpu)?;
    device(&mut machine.vcpu)?;
    let vcpu = &mut machine.vcpu;
    until(vcpu, &Exit::ReadMsr(0x4d4d_0001))?;
    vcpu.answer(&0x1111_2222_3333_4444_u64.to_le_bytes());
    until(vcpu, &Exit::WriteMsr(0x4d4d_0001, 9 << 32 | 7))?;
    until(vcpu, &Exit::Halt)?;
    results(&machine)
}

fn ports(vcpu: &mut Vcpu) -> Result<(), String> {
    until(vcpu, &Exit::Out(0x10, vec![0x41]))?;
    until(vcpu, &Exit::Out(0x14, vec![0x78, 0x56, 0x34, 0x12]))?;
    until(vcpu, &Exit::In(0x11, 1))?;
    vcpu.answer(&[0xa5]);
    until(vcpu, &Exit::In(0x14, 2))?;
    vcpu.answer(&[0x21, 0x43]);
    until(vcpu, &Exit::In(0x14, 4))?;
    vcpu.answer(&[0x0d, 0x0c, 0x0b, 0x0a]);
    // KVM may hand a string over in one piece or in several.
    let mut text = Vec::new();
    while text.len() < 5 {
        match vcpu.run()? {
            Exit::Out(0x12, bytes) => text.extend(bytes),
            other => return Err(format!("exit {other:x?} in a string of OUTs")),
        }
    }
    if text != b"hello" {
        return Err(format!("OUTS gave {text:x?}"));
    }
    let mut words = [1_u8, 2, 3, 4, 5, 6].as_slice();
    while !words.is_empty() {
        match vcpu.run()? {
            Exit::In(0x12, count) if count <= words.len() => {
                let (now, later) = words.split_at(count);
                vcpu.answer(now);
                words = later;
            }
            other => return Err(format!("exit {other:x?} in a string of INs")),
        }
    }
    Ok(())
}

fn device(vcpu: &mut Vcpu) -> Result<(), String> {
    until(vcpu, &Exit::Store(DEVICE, vec![0xef, 0xcd, 0xab, 0x89]))?;
    until(vcpu, &Exit::Store(DEVICE + 5, vec![0xef]))?;
    until(vcpu, &Exit::Load(DEVICE + 8, 4))?;
    vcpu.answer(&[1, 2, 3, 4]);
    until(vcpu, &Exit::Load(DEVICE + 12, 2))?;
    vcpu.answer(&[5, 6]);
    until(vcpu, &Exit::Load(DEVICE + 16, 4))?;
    vcpu.answer(&[0xff, 0, 0, 0]);
    until(vcpu, &Exit::Store(DEVICE + 16, vec![0, 1, 0, 0]))
}

fn results(machine: &Machine) -> Result<(), String> {
    let cpuid = machine.vm.cpuid()?;
    let leaf = cpuid.entries.iter().find(|entry| entry.function == 0);
    let leaf = leaf.ok_or("KVM supports no CPUID leaf 0")?;
    let word = |offset: usize| machine.memory.word(SHARED + offset) as u32;
    for (what, found, wanted) in [
        ("IN of a byte", word(0) & 0xff, 0xa5),
        ("IN of two bytes", word(0) >> 16, 0x4321),
        ("IN of four bytes", word(4), 0x0a0b_0c0d),
        ("load of four bytes", word(8), 0x0403_0201),
        ("load of two bytes", word(12), 0x0605),
        ("CPUID, EAX", word(16), leaf.eax),
        ("CPUID, EBX", word(20), leaf.ebx),
        ("CPUID, ECX", word(24), leaf.ecx),
        ("CPUID, EDX", word(28), leaf.edx),
        ("MSR 0x175", word(32), 0x1234),
        ("MSR 0x2ff", word(36), 0xc06),
        ("MSR of user space, EAX", word(40), 0x3333_4444),
        ("MSR of user space, EDX", word(44), 0x1111_2222),
        ("INS", word(0x200), 0x0403_0201),
        ("INS, its end", word(0x204), 0x0605),
    ] {
        same(what, found, wanted)?;
    }
    Ok(())
}

/// A guest that climbs from real to long mode and down again by itself.
pub(super) fn mode_switches() -> Result<(), String> {
    let mut machine = machine(Mode::Real, code::climb())?;
    for round in 0..3 {
        machine.call(code::climb(), [0; 3])?;
        for step in 1..=5 {
            machine.until(&Exit::Out(0x10, vec![step]))?;
        }
        machine.until(&Exit::Halt)?;
        same("a 64-bit value", machine.memory.word(SHARED), 0x1234_5678_9abc_def0)?;
        same("CR0.PE", machine.vcpu.sregs()?.cr0 & 1, 0)?;
        machine.memory.set_word(SHARED, round);
    }
    Ok(())
}

/// Without a handler for anything, an exception is the end.
pub(super) fn triple_fault() -> Result<(), String> {
    let mut machine = machine(Mode::Long, code::undefined())?;
    machine.until(&Exit::Shutdown)
}

/// One trap for each instruction.
pub(super) fn single_step() -> Result<(), String> {
    let mut machine = machine(Mode::Long, code::fill_pages())?;
    // Bochs 2.7 traps once more at an EPT violation: nothing may be touched for the first time.
    let arguments = [2, 0, SHARED as u64];
    let _ = machine.result(code::fill_pages(), arguments)?;
    machine.call(code::fill_pages(), arguments)?;
    machine.vcpu.single_step()?;
    let mut places = Vec::new();
    for _ in 0..10 {
        machine.until(&Exit::Debug)?;
        places.push(machine.vcpu.regs()?.rip - crate::mode::CODE as u64);
    }
    // mov, add, inc, dec, jnz, twice.
    if places != [3, 10, 13, 16, 0, 3, 10, 13, 16, 18] {
        return Err(format!("traps at {places:?}"));
    }
    Ok(())
}
