//! Attacks by way of devices: on what the guest is told, on what runs for it meanwhile, and on the page by
//! which the visor tells of it.

use super::read::{until_load, until_store};
use super::registers::{inject, set_regs};
use super::{Attack, started};
use crate::memory::PAGE;
use crate::protected::guest::{
    self, Command, DEVICE, FIRST, GADGET_AT, POKED, SPARE, VERSIONED, WINDOW,
};
use crate::protected::victim::{SAYS, SLOT_VERSIONED, SLOT_WINDOW, Trouble, Victim};
use crate::tests::alarm_in;
use crate::vm::Exit;
use std::time::Duration;

pub(super) const ATTACKS: &[Attack] = &[
    ("set-rip-at-store", |victim| {
        until_store(victim)?;
        let _ = set_regs(victim, |regs| regs.rip = GADGET_AT)?;
        victim.finish().map(|_| false)
    }),
    ("set-rbx-at-store", |victim| {
        until_store(victim)?;
        let _ = set_regs(victim, |regs| regs.rbx ^= 1)?;
        victim.finish().map(|_| false)
    }),
    ("set-rcx-at-load", |victim| {
        until_load(victim)?;
        victim.vcpu.answer(&[SAYS; 4]);
        let _ = set_regs(victim, |regs| regs.rcx ^= 1)?;
        victim.finish().map(|_| false)
    }),
    ("set-rsp-at-load", |victim| {
        until_load(victim)?;
        victim.vcpu.answer(&[SAYS; 4]);
        let _ = set_regs(victim, |regs| regs.rsp = regs.rsp.wrapping_sub(0x100))?;
        victim.finish().map(|_| false)
    }),
    ("inject-undefined-at-store", |victim| inject_at_store(victim, 6, 0)),
    ("inject-protection-at-store", |victim| inject_at_store(victim, 13, 1)),
    ("inject-page-fault-at-store", |victim| inject_at_store(victim, 14, 1)),
    ("memory-at-device", memory_at_device),
    ("see-store", see_store),
    ("window-on-private-page", |victim| {
        victim.remap(&SLOT_WINDOW, FIRST)?;
        victim.memory.set_word(FIRST + 0x100, 1);
        let _ = victim.command(Command::Load)?;
        Ok(false)
    }),
    ("window-on-other-vm", on_other_vm),
    ("window-with-other-code", |victim| {
        until_load(victim)?;
        // What the host executes in the VM's place is the guest's own code without a ticket.
        if !victim.is_ticketed() {
            victim.memory.write(guest::after_wait()?, guest::gadget());
        }
        for at in (WINDOW..WINDOW + PAGE).step_by(8) {
            victim.memory.set_word(at, 0x1313_1313_1313_1313);
        }
        victim.vcpu.answer(&[SAYS; 4]);
        let _ = victim.finish()?;
        Ok(victim.command(Command::Load)? != u32::from_le_bytes([SAYS; 4]))
    }),
];

fn inject_at_store(victim: &mut Victim, vector: u8, has_code: u8) -> Result<bool, Trouble> {
    until_store(victim)?;
    let _ = inject(victim, vector, has_code)?;
    victim.finish().map(|_| false)
}

/// The guest has memory of the host's where it believes to have a device.
fn memory_at_device(victim: &mut Victim) -> Result<bool, Trouble> {
    const PLANT: u32 = 0x0e71_100d;
    let (page, offset) = (DEVICE & !0xfff, (DEVICE & 0xfff) as usize);
    victim.memory.write(SPARE + offset, &PLANT.to_le_bytes());
    victim.vm.slot(10, 0, page, victim.memory.part(SPARE..SPARE + PAGE))?;
    Ok(victim.command(Command::Load)? == PLANT)
}

/// The guest stores to memory that the host has taken away, and the host is told where or what.
fn see_store(victim: &mut Victim) -> Result<bool, Trouble> {
    let (at, offset) = (VERSIONED + 0x348, VERSIONED + 0x348 - FIRST);
    victim.vm.remove_slot(SLOT_VERSIONED.0)?;
    victim.argument = u32::try_from(offset).unwrap_or(0);
    victim.order(Command::Poke);
    alarm_in(Duration::from_millis(500))?;
    let seen = loop {
        match victim.vcpu.run()? {
            Exit::In(guest::ARGUMENT_PORT, _) => {
                let argument = victim.argument;
                victim.vcpu.answer(&argument.to_le_bytes());
            }
            Exit::Store(seen, bytes) => {
                break seen == at as u64 || bytes == POKED.to_le_bytes();
            }
            Exit::Shutdown => return Err(Trouble::Shutdown),
            // Nobody lets the guest go on: that is the host's right.
            _ => break false,
        }
    };
    alarm_in(Duration::ZERO)?;
    if seen {
        return Ok(true);
    }
    victim.map(&SLOT_VERSIONED, VERSIONED)?;
    victim.finish().map(|_| false)
}

/// The window is memory of another VM of the same kind.
fn on_other_vm(victim: &mut Victim) -> Result<bool, Trouble> {
    let mut other = started(victim.kind)?;
    let (number, at, _) = SLOT_WINDOW;
    victim.vm.remove_slot(number)?;
    victim.vm.slot(number, 0, at, other.memory.part(FIRST..FIRST + PAGE))?;
    other.memory.set_word(FIRST + 0x100, 1);
    let loaded = victim.command(Command::Load);
    let is_changed = other.command(Command::Verify)? != 0;
    other.end()?;
    if is_changed { Ok(true) } else { loaded.map(|_| false) }
}
