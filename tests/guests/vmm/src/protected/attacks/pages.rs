//! Attacks on the integrity of memory: by stores, and by pages that are not where, or what, they were.

use super::Attack;
use crate::code;
use crate::memory::PAGE;
use crate::mode::Mode;
use crate::protected::guest::{
    self, Command, FIRST, GADGET_AT, IDT, POKED, SECOND, SECRET, SIZE, SPARE, UNTOUCHED, VERSIONED,
};
use crate::protected::launch::Visor;
use crate::protected::look;
use crate::protected::victim::{
    SLOT_FIRST, SLOT_SECOND, SLOT_UNTOUCHED, SLOT_VERSIONED, Trouble, VECTOR, Victim,
};
use crate::tests::{Machine, alarm_in};
use crate::vm::{Exit, READ_ONLY};
use std::os::unix::fs::FileExt;
use std::time::Duration;

pub(super) const ATTACKS: &[Attack] = &[
    ("write-code", |victim| {
        victim.memory.write(guest::after_wait()?, guest::gadget());
        Ok(false)
    }),
    ("write-data", |victim| {
        victim.memory.set_word(FIRST + 0x100, 1);
        Ok(false)
    }),
    ("write-secret", |victim| {
        victim.memory.write(SECRET, &[0; 32]);
        Ok(false)
    }),
    ("write-gate", |victim| {
        let at = IDT as usize + 16 * VECTOR as usize;
        victim.memory.set_word(at, guest::gate(GADGET_AT));
        victim.command(Command::Halt).map(|_| false)
    }),
    ("write-by-proc-mem", by_proc_mem),
    ("write-by-devmem", |victim| {
        let at = look::frame(&victim.memory, FIRST)?.ok_or_else(|| "no frame".to_owned())?;
        let written = look::devmem()?.write_all_at(&[1], at + 0x200);
        written.map(|()| false).map_err(|why| format!("/dev/mem: {why}").into())
    }),
    ("write-by-second-vm", by_second_vm),
    ("swap-pages", |victim| {
        victim.remap(&SLOT_FIRST, SECOND)?;
        victim.remap(&SLOT_SECOND, FIRST)?;
        Ok(false)
    }),
    ("other-page", |victim| {
        victim.remap(&SLOT_FIRST, SPARE)?;
        Ok(false)
    }),
    ("replay-page", |victim| {
        let old = victim.memory.read(VERSIONED, PAGE);
        let changed = victim.command(Command::Bump)?;
        victim.memory.write(VERSIONED, &old);
        Ok(victim.command(Command::Bump)? == changed)
    }),
    ("replay-page-elsewhere", |victim| {
        victim.memory.write(SPARE, &victim.memory.read(VERSIONED, PAGE));
        let changed = victim.command(Command::Bump)?;
        victim.remap(&SLOT_VERSIONED, SPARE)?;
        Ok(victim.command(Command::Bump)? == changed)
    }),
    ("replay-all-memory", |victim| {
        let old = victim.memory.read(0, SIZE);
        let changed = victim.command(Command::Bump)?;
        victim.memory.write(0, &old);
        Ok(victim.command(Command::Bump)? == changed)
    }),
    ("move-page", |victim| {
        let wanted = victim.command_at(Command::Peek, FIRST)?;
        victim.remap(&SLOT_UNTOUCHED, FIRST)?;
        Ok(victim.command_at(Command::Peek, UNTOUCHED)? == wanted)
    }),
    ("alias-page", |victim| {
        victim.remap(&SLOT_UNTOUCHED, VERSIONED)?;
        let _ = victim.command_at(Command::Poke, UNTOUCHED)?;
        Ok(victim.command_at(Command::Peek, VERSIONED)? == POKED)
    }),
    ("drop-page", |victim| {
        victim.memory.advise(FIRST..FIRST + PAGE, libc::MADV_DONTNEED)?;
        Ok(false)
    }),
    ("fresh-page", |victim| {
        victim.memory.renew(SECOND..SECOND + PAGE)?;
        Ok(false)
    }),
    ("lose-writes", lose_writes),
];

fn by_proc_mem(victim: &mut Victim) -> Result<bool, Trouble> {
    let file = std::fs::OpenOptions::new().write(true).open("/proc/self/mem");
    let at = victim.memory.part(FIRST..FIRST + 8).host;
    let written = file.and_then(|file| file.write_all_at(&[0; 8], at));
    written.map_err(|why| format!("/proc/self/mem: {why}"))?;
    Ok(false)
}

/// Another VM, without a ticket, has the page too.
fn by_second_vm(victim: &mut Victim) -> Result<bool, Trouble> {
    const AT: u64 = 16 << 20;
    let mut machine = Machine::new(2, Mode::Long, code::fill_pages())?;
    machine.vm.slot(1, 0, AT, victim.memory.part(FIRST..FIRST + PAGE))?;
    match machine.result(code::fill_pages(), [1, 7, AT]) {
        Err(why) if !victim.is_ticketed() => Err(why.into()),
        _ => Ok(false),
    }
}

/// The visor tells of the page that the VM waits for.
fn is_said_to_wait(victim: &Victim) -> Result<(), String> {
    let (page, times) = Visor::find()?.asked(victim.id)?;
    if page as usize * PAGE == VERSIONED && times > 64 {
        return Ok(());
    }
    Err(format!("asked for page {page:#x} {times} times"))
}

/// The guest's stores to a page go to this program, which forgets them.
fn lose_writes(victim: &mut Victim) -> Result<bool, Trouble> {
    let before = victim.command(Command::Bump)?;
    let (number, at, range) = SLOT_VERSIONED;
    victim.vm.remove_slot(number)?;
    victim.vm.slot(number, READ_ONLY, at, victim.memory.part(range))?;
    victim.order(Command::Bump);
    let mut stores = 0;
    alarm_in(Duration::from_millis(500))?;
    let result = loop {
        match victim.vcpu.run()? {
            Exit::Store(..) => stores += 1,
            Exit::Out(_, bytes) => break Some(bytes),
            Exit::Shutdown => return Err(Trouble::Shutdown),
            // Nobody lets the guest go on: that is the host's right.
            _ => break None,
        }
    };
    alarm_in(Duration::ZERO)?;
    if result == Some(before.to_le_bytes().to_vec()) && stores > 0 {
        return Ok(true);
    }
    if victim.is_ticketed() {
        is_said_to_wait(victim)?;
    }
    victim.remap(&SLOT_VERSIONED, VERSIONED)?;
    let _ = victim.finish()?;
    let after = victim.command(Command::Bump)?;
    Ok(after <= before + 1)
}
