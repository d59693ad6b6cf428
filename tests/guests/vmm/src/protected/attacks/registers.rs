//! Attacks on what a guest computes: its registers, its instructions one by one, its interrupts.

use super::Attack;
use crate::kvm::{Blob, GuestDebug, Regs, Sregs, gives};
use crate::protected::guest::{
    CODE, COMMAND_PORT, Command, GADGET_AT, GDT, IDT, RESULT_PORT, SPARE, STUBS, TABLES,
};
use crate::protected::victim::{Trouble, VECTOR, Victim, odd};
use crate::vm::Exit;
use std::collections::BTreeSet;

/// Where the copies of tables are that the guest is to use instead of its own.
const LIE: u64 = SPARE as u64;

pub(super) const ATTACKS: &[Attack] = &[
    ("set-rip", |victim| set_regs(victim, |regs| regs.rip = GADGET_AT)),
    ("set-rip-at-hlt", |victim| {
        victim.until_halt()?;
        let _ = set_regs(victim, |regs| regs.rip = GADGET_AT)?;
        victim.vcpu.interrupt(VECTOR)?;
        victim.finish().map(|_| false)
    }),
    ("set-rsp", |victim| set_regs(victim, |regs| regs.rsp = regs.rsp.wrapping_sub(0x100))),
    ("set-rax", |victim| set_regs(victim, |regs| regs.rax ^= 0x100)),
    ("set-rbx", |victim| set_regs(victim, |regs| regs.rbx ^= 1)),
    ("set-r15", |victim| set_regs(victim, |regs| regs.r8_to_r15[7] ^= 1)),
    ("set-trap-flag", |victim| set_regs(victim, |regs| regs.rflags |= 0x100)),
    ("set-cr0", |victim| set_sregs(victim, |sregs| sregs.cr0 |= 1 << 16)),
    ("set-cr2", |victim| set_sregs(victim, |sregs| sregs.cr2 ^= 1)),
    ("set-cr3", |victim| {
        victim.memory.write(SPARE, &victim.memory.read(TABLES as usize, 0x1000));
        set_sregs(victim, |sregs| sregs.cr3 = LIE)
    }),
    ("set-cr4", |victim| set_sregs(victim, |sregs| sregs.cr4 |= 4)),
    ("set-gdt", |victim| {
        victim.memory.write(SPARE, &victim.memory.read(GDT as usize, 0x1000));
        set_sregs(victim, |sregs| sregs.gdt.base = LIE)
    }),
    ("set-idt", |victim| {
        victim.memory.write(SPARE, &victim.memory.read(IDT as usize, 0x1000));
        set_sregs(victim, |sregs| sregs.idt.base = LIE)
    }),
    ("set-fs-base", |victim| set_sregs(victim, |sregs| sregs.fs.base = 0x1000)),
    ("set-efer", |victim| set_msr(victim, 0xc000_0080, 0x500)),
    ("set-lstar", |victim| set_msr(victim, 0xc000_0082, GADGET_AT)),
    ("set-kernel-gs-base", |victim| set_msr(victim, 0xc000_0102, GADGET_AT)),
    ("set-fpu", |victim| {
        let mut fpu: Blob<416> = victim.vcpu.handle.blob(0x8c)?;
        fpu[152 + 5 * 16] ^= 1;
        refusable(victim, victim.vcpu.handle.give(gives::<Blob<416>>(0x8d), &fpu))
    }),
    ("set-xsave", |victim| {
        let mut xsave: Blob<4096> = victim.vcpu.handle.blob(0xa4)?;
        xsave[160 + 9 * 16] ^= 1;
        xsave[512] |= 0b10;
        refusable(victim, victim.vcpu.handle.give(gives::<Blob<4096>>(0xa5), &xsave))
    }),
    ("set-debugregs", |victim| {
        let mut debug: Blob<128> = victim.vcpu.handle.blob(0xa1)?;
        debug[0] ^= 1;
        refusable(victim, victim.vcpu.handle.give(gives::<Blob<128>>(0xa2), &debug))
    }),
    ("single-step", single_step),
    ("breakpoint", breakpoint),
    ("inject-divide-error", |victim| inject(victim, 0, 0)),
    ("inject-debug", |victim| inject(victim, 1, 0)),
    ("inject-undefined", |victim| inject(victim, 6, 0)),
    ("inject-protection", |victim| inject(victim, 13, 1)),
    ("inject-page-fault", |victim| inject(victim, 14, 1)),
    ("interrupt-by-vector-3", |victim| interrupt(victim, 3)),
    ("interrupt-by-vector-13", |victim| interrupt(victim, 13)),
    ("interrupt-by-vector-14", |victim| interrupt(victim, 14)),
    ("interrupt-by-vector-128", |victim| interrupt(victim, 0x80)),
    ("offer-paravirtual-features", |victim| Ok(victim.command(Command::Paravirtual)? != 0)),
];

/// What KVM may refuse to do to a VM whose state it does not know.
fn refusable(victim: &Victim, done: Result<(), String>) -> Result<bool, Trouble> {
    match done {
        Err(why) if !victim.is_ticketed() => Err(why.into()),
        _ => Ok(false),
    }
}

pub(super) fn set_regs(victim: &mut Victim, change: fn(&mut Regs)) -> Result<bool, Trouble> {
    let mut regs = victim.vcpu.regs()?;
    change(&mut regs);
    refusable(victim, victim.vcpu.set_regs(&regs))
}

fn set_sregs(victim: &mut Victim, change: fn(&mut Sregs)) -> Result<bool, Trouble> {
    let mut sregs = victim.vcpu.sregs()?;
    change(&mut sregs);
    refusable(victim, victim.vcpu.set_sregs(&sregs))
}

fn set_msr(victim: &mut Victim, index: u32, value: u64) -> Result<bool, Trouble> {
    refusable(victim, victim.vcpu.set_msr(index, value))
}

/// Exceptions at once, as KVM would carry them over from another machine.
pub(super) fn inject(victim: &mut Victim, vector: u8, has_code: u8) -> Result<bool, Trouble> {
    let mut events: Blob<64> = victim.vcpu.handle.blob(0x9f)?;
    events[..3].copy_from_slice(&[1, vector, has_code]);
    refusable(victim, victim.vcpu.handle.give(gives::<Blob<64>>(0xa0), &events))
}

/// An external interrupt with a vector that is no interrupt's.
fn interrupt(victim: &mut Victim, vector: u32) -> Result<bool, Trouble> {
    victim.until_halt()?;
    victim.vcpu.interrupt(vector)?;
    victim.finish().map(|_| false)
}

/// Sees the guest's instructions one by one; three are enough.
fn single_step(victim: &mut Victim) -> Result<bool, Trouble> {
    victim.vcpu.single_step()?;
    victim.order(Command::Nothing);
    let (mut seen, mut turns) = (BTreeSet::new(), 0);
    while turns < 10 {
        match victim.next()? {
            Exit::Debug => {
                let rip = victim.vcpu.regs()?.rip;
                if (CODE..STUBS).contains(&rip) && seen.insert(rip) && seen.len() == 3 {
                    return Ok(true);
                }
            }
            Exit::Out(RESULT_PORT, _) => turns += 1,
            Exit::In(COMMAND_PORT, 1) => victim.order(Command::Nothing),
            other => return Err(odd(&other)),
        }
    }
    debug(victim, 0)?;
    victim.finish().map(|_| false)
}

/// Stops at an instruction of the guest's choice of the host.
fn breakpoint(victim: &mut Victim) -> Result<bool, Trouble> {
    victim.until_halt()?;
    let (enable, hardware) = (1, 1 << 17);
    debug(victim, enable | hardware)?;
    victim.vcpu.interrupt(VECTOR)?;
    let exit = victim.next()?;
    if exit == Exit::Debug {
        return Ok(victim.vcpu.regs()?.rip == BREAKPOINT);
    }
    debug(victim, 0)?;
    victim.finish().map(|_| false)
}

/// The entry for interrupts of this program.
const BREAKPOINT: u64 = STUBS + 8 * VECTOR as u64;

fn debug(victim: &Victim, control: u32) -> Result<(), String> {
    let mut debug = GuestDebug { control, ..GuestDebug::default() };
    (debug.registers[0], debug.registers[7]) = (BREAKPOINT, 0x401);
    victim.vcpu.handle.give(gives::<GuestDebug>(0x9b), &debug)
}
