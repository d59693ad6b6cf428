//! A guest's state, read and written from outside, and a whole VM carried over into another.

use super::interrupts::with_irqchip;
use super::{Machine, same};
use crate::code;
use crate::kvm::{Blob, Handle, Regs, Sregs, gets, gives, trades};
use crate::memory::{Backing, Memory};
use crate::mode::{Mode, SHARED};
use crate::vm::{Exit, Vm};

/// Offsets in an XSAVE area and in `struct kvm_debugregs`.
const XMM: [usize; 2] = [160, 160 + 15 * 16];
const XSTATE_BV: usize = 512;

/// What is put into registers from outside arrives in the guest, and the other way round.
pub(super) fn registers() -> Result<(), String> {
    let machine = &mut Machine::new(4, Mode::Long, code::registers())?;
    let regs = Regs {
        rax: 0x8000_0000_0000_0001,
        rbx: 2,
        rcx: 3,
        rdx: 4,
        rsi: 5,
        rdi: 6,
        rbp: 7,
        r8_to_r15: [8, 9, 10, 11, 12, 13, 14, 0xffff_ffff_ffff_fff0],
        ..machine.vcpu.regs()?
    };
    machine.vcpu.set_regs(&regs)?;
    same_regs(&machine.vcpu.regs()?, &regs)?;
    let handle = &machine.vcpu.handle;
    let mut xsave: Blob<4096> = handle.blob(0xa4)?;
    for (at, byte) in XMM.iter().zip([0x11, 0x22]) {
        xsave[*at..at + 16].fill(byte);
    }
    xsave[XSTATE_BV] |= 0b10;
    handle.give(gives::<Blob<4096>>(0xa5), &xsave)?;
    let mut debug: [u64; 16] = [0; 16];
    let _ = handle.fill(gets::<[u64; 16]>(0xa1), &mut debug)?;
    debug[0] = 0x1234_5678;
    handle.give(gives::<[u64; 16]>(0xa2), &debug)?;
    machine.vcpu.set_msr(0x176, 0x4321)?;
    let sregs = Sregs { cr2: 0xabcd_ef00_0000, ..machine.vcpu.sregs()? };
    machine.vcpu.set_sregs(&sregs)?;
    machine.until(&Exit::Halt)?;
    let seen = |offset: usize| machine.memory.word(SHARED + 0x100 + offset);
    let mut wanted = vec![regs.rax, 2, 3, 4, 5, 6, 7];
    wanted.extend(regs.r8_to_r15);
    for (index, wanted) in wanted.into_iter().enumerate() {
        same("a general register", seen(index * 8), wanted)?;
    }
    same("XMM0", seen(0x80), 0x1111_1111_1111_1111)?;
    same("XMM15", seen(0x98), 0x2222_2222_2222_2222)?;
    same("DR0", seen(0xa0), 0x1234_5678)?;
    same("MSR 0x176", seen(0xa8) & 0xffff_ffff, 0x4321)?;
    same("CR2", seen(0xb0), 0xabcd_ef00_0000)?;
    same("MSR 0x176 from outside", machine.vcpu.msr(0x176)?.unwrap_or(0), 0x4321)
}

fn same_regs(found: &Regs, wanted: &Regs) -> Result<(), String> {
    if found == wanted { Ok(()) } else { Err(format!("{found:x?}, not {wanted:x?}")) }
}

/// A VM that is stopped in the middle, carried over and gone on with comes to the same result.
pub(super) fn suspend() -> Result<(), String> {
    let rounds = 60;
    let mut machine = with_irqchip(code::computation(), &[])?;
    machine.call(code::computation(), [rounds, 0, 0])?;
    let undisturbed = finish(&mut machine)?;
    machine.call(code::computation(), [rounds, 0, 0])?;
    for _ in 0..3 {
        for _ in 0..10 {
            let ended = step(&mut machine)?;
            same("an early end", ended.unwrap_or(0), 0)?;
        }
        let saved = Saved::of(&machine)?;
        drop(machine);
        machine = saved.resumed()?;
    }
    same("the result", finish(&mut machine)?, undisturbed)
}

/// Two VMs that take turns in one thread do not see each other's registers.
pub(super) fn interleaved() -> Result<(), String> {
    let new = || with_irqchip(code::computation(), &[]);
    let (mut machines, mut wanted) = ([new()?, new()?], [0; 2]);
    for ((machine, wanted), rounds) in machines.iter_mut().zip(&mut wanted).zip([40, 55]) {
        machine.call(code::computation(), [rounds, 0, 0])?;
        *wanted = finish(machine)?;
        machine.call(code::computation(), [rounds, 0, 0])?;
    }
    let mut results = [None; 2];
    while results.contains(&None) {
        for (machine, result) in machines.iter_mut().zip(&mut results) {
            if result.is_none() {
                *result = step(machine)?;
            }
        }
    }
    for (result, wanted) in results.into_iter().flatten().zip(wanted) {
        same("the result", result, wanted)?;
    }
    Ok(())
}

/// One round of the computation; its result after the last.
fn step(machine: &mut Machine) -> Result<Option<u64>, String> {
    match machine.vcpu.run()? {
        Exit::Out(0x10, _) => Ok(None),
        Exit::Out(0x11, _) => Ok(Some(machine.vcpu.regs()?.rax)),
        other => Err(format!("exit {other:x?}")),
    }
}

/// To the end of the computation.
fn finish(machine: &mut Machine) -> Result<u64, String> {
    loop {
        if let Some(result) = step(machine)? {
            return Ok(result);
        }
    }
}

/// MSRs that a guest in 64-bit mode may have changed.
const MSRS: [u32; 14] = [
    0x10,
    0x174,
    0x175,
    0x176,
    0x277,
    0x2ff,
    0x1a0,
    0xc000_0080,
    0xc000_0081,
    0xc000_0082,
    0xc000_0083,
    0xc000_0084,
    0xc000_0102,
    0xc000_0103,
];

/// All of a VM with one processor.
struct Saved {
    memory: Vec<u8>,
    chips: [Blob<520>; 3],
    timer: Blob<112>,
    clock: Blob<48>,
    regs: Regs,
    sregs: Sregs,
    msrs: Vec<(u32, u64)>,
    xsave: Blob<4096>,
    xcrs: Blob<392>,
    lapic: Blob<1024>,
    events: Blob<64>,
    debug: Blob<128>,
    state: Blob<4>,
}

impl Saved {
    fn of(machine: &Machine) -> Result<Self, String> {
        let (vm, vcpu) = (&machine.vm.handle, &machine.vcpu.handle);
        let msrs = MSRS.iter().map(|index| Ok((*index, machine.vcpu.msr(*index)?)));
        let msrs: Vec<(u32, Option<u64>)> = msrs.collect::<Result<_, String>>()?;
        Ok(Self {
            memory: machine.memory.read(0, machine.memory.size()),
            chips: [chip(vm, 0)?, chip(vm, 1)?, chip(vm, 2)?],
            timer: vm.blob(0x9f)?,
            clock: vm.blob(0x7c)?,
            regs: machine.vcpu.regs()?,
            sregs: machine.vcpu.sregs()?,
            msrs: msrs.into_iter().filter_map(|(index, value)| Some((index, value?))).collect(),
            xsave: vcpu.blob(0xa4)?,
            xcrs: vcpu.blob(0xa6)?,
            lapic: vcpu.blob(0x8e)?,
            events: vcpu.blob(0x9f)?,
            debug: vcpu.blob(0xa1)?,
            state: vcpu.blob(0x98)?,
        })
    }

    fn resumed(&self) -> Result<Machine, String> {
        let memory = Memory::new(self.memory.len(), Backing::Small)?;
        memory.write(0, &self.memory);
        let vm = Vm::with(&memory)?;
        vm.with_irqchip()?;
        for chip in &self.chips {
            vm.handle.give(gets::<Blob<520>>(0x63), chip)?;
        }
        vm.handle.give(gives::<Blob<112>>(0xa0), &self.timer)?;
        // The flags say what the kernel knew, not what it is told.
        let mut clock = self.clock;
        clock[8..].fill(0);
        vm.handle.give(gives::<Blob<48>>(0x7b), &clock)?;
        let vcpu = vm.vcpu(0)?;
        vcpu.handle.give(gives::<Blob<4>>(0x99), &self.state)?;
        vcpu.set_regs(&self.regs)?;
        vcpu.set_sregs(&self.sregs)?;
        vcpu.handle.give(gives::<Blob<392>>(0xa7), &self.xcrs)?;
        vcpu.handle.give(gives::<Blob<4096>>(0xa5), &self.xsave)?;
        for (index, value) in &self.msrs {
            vcpu.set_msr(*index, *value)?;
        }
        vcpu.handle.give(gives::<Blob<1024>>(0x8f), &self.lapic)?;
        vcpu.handle.give(gives::<Blob<64>>(0xa0), &self.events)?;
        vcpu.handle.give(gives::<Blob<128>>(0xa2), &self.debug)?;
        Ok(Machine { vcpu, vm, memory })
    }
}

/// The state of an interrupt controller; its number comes first.
fn chip(vm: &Handle, number: u8) -> Result<Blob<520>, String> {
    let mut blob = [0; 520];
    blob[0] = number;
    let _ = vm.fill(trades::<Blob<520>>(0x62), &mut blob)?;
    Ok(blob)
}
