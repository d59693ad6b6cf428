//! Attacks on the launch.

use super::Attack;
use crate::protected::guest::{self, CODE, Command, EARLY_GADGET, GADGET_AT, PLANTED, RESET};
use crate::protected::victim::{Trouble, Victim};
use crate::tests::alarm_in;
use crate::vm::Exit;
use std::time::Duration;

/// On VMs that have not run yet.
pub(super) const ATTACKS: &[Attack] = &[
    ("launch-elsewhere", |victim| {
        let mut regs = victim.vcpu.regs()?;
        regs.rip = EARLY_GADGET;
        victim.vcpu.set_regs(&regs)?;
        victim.start().map(|()| false)
    }),
    ("launch-other-code", |victim| {
        victim.memory.write(CODE as usize, guest::gadget());
        victim.start().map(|()| false)
    }),
    ("launch-other-reset-vector", |victim| {
        victim.memory.write(RESET + 0xff0, guest::gadget());
        victim.start().map(|()| false)
    }),
    ("plant-page", |victim| {
        const PLANT: u32 = 0x0e71_100d;
        victim.memory.write(PLANTED, &PLANT.to_le_bytes());
        victim.start()?;
        Ok(victim.command_at(Command::Peek, PLANTED)? == PLANT)
    }),
    ("add-processor", add_processor),
];

/// A second processor that begins where the host wants it to, in the mode of the first.
fn add_processor(victim: &mut Victim) -> Result<bool, Trouble> {
    victim.start()?;
    let second = (|| {
        let second = victim.vm.vcpu(1)?;
        second.set_sregs(&victim.vcpu.sregs()?)?;
        let runnable: [u8; 4] = [0; 4];
        second.handle.give(crate::kvm::gives::<[u8; 4]>(0x99), &runnable)?;
        let mut regs = second.regs()?;
        (regs.rip, regs.rsp) = (GADGET_AT, 0xd000);
        second.set_regs(&regs)?;
        Ok(second)
    })();
    let mut second = match second {
        Ok(second) => second,
        Err(_) if victim.is_ticketed() => return Ok(false),
        Err(why) => return Err(Trouble::Odd(why)),
    };
    // Whether it then ends or never gets anywhere is the same.
    alarm_in(Duration::from_millis(500))?;
    let exit = second.run();
    alarm_in(Duration::ZERO)?;
    match exit? {
        Exit::Out(guest::GADGET_PORT, _) => Err(Trouble::Taken),
        _ => Ok(false),
    }
}
