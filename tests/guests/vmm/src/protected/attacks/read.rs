//! Attacks on secrecy.

use super::Attack;
use crate::code;
use crate::kvm::Blob;
use crate::memory::PAGE;
use crate::mode::Mode;
use crate::protected::guest::{
    CODE, Command, DEVICE, DEVICE_LINEAR, GDT, IDT, SECRET, STACK, STREAM_PORT, STUBS, TABLES,
    UNTOUCHED,
};
use crate::protected::look::{self, Secrets};
use crate::protected::victim::{SAYS, SLOT_UNTOUCHED, Trouble, Victim, odd};
use crate::tests::{Machine, alarm_in};
use crate::vm::Exit;
use std::time::Duration;

pub(super) const ATTACKS: &[Attack] = &[
    ("read-mapping", |victim| Ok(victim.secrets.begins(&victim.memory.read(SECRET, 16)))),
    ("scan-mapping", |victim| Ok(victim.secrets.is_in(&victim.memory))),
    ("scan-mapping-for-keys", |victim| Ok(look::has_key_schedule(&victim.memory))),
    ("read-proc-mem", |victim| {
        Ok(victim.secrets.begins(&look::by_proc_mem(&victim.memory, SECRET)?))
    }),
    ("write-to-pipe", |victim| Ok(victim.secrets.begins(&look::by_pipe(&victim.memory, SECRET)?))),
    ("read-in-child", by_child),
    ("read-by-second-vm", by_second_vm),
];

/// Last, because they take longest.
pub(super) const SEARCHES: &[Attack] = &[
    ("read-frames-by-devmem", |victim| Ok(look::is_in_frames(&victim.secrets, &victim.memory)?)),
    ("scan-all-memory-by-devmem", |victim| Ok(look::is_anywhere(&victim.secrets)?)),
];

/// A child process finds the secret in what it has of the parent's memory.
fn by_child(victim: &mut Victim) -> Result<bool, Trouble> {
    // SAFETY: this process has one thread, and the child leaves at once.
    let child = crate::kvm::checked(unsafe { libc::fork() })?;
    if child == 0 {
        let found = victim.secrets.begins(&victim.memory.read(SECRET, 16));
        // SAFETY: ends the child, without what is to be done at this process's end.
        unsafe { libc::_exit(i32::from(found)) };
    }
    let mut status = 0;
    // SAFETY: the child is this process's own and has not been waited for.
    let _ = crate::kvm::checked(unsafe { libc::waitpid(child, &raw mut status, 0) })?;
    Ok(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 1)
}

/// Another VM, without a ticket, has the page too.
fn by_second_vm(victim: &mut Victim) -> Result<bool, Trouble> {
    const AT: u64 = 16 << 20;
    let mut machine = Machine::new(2, Mode::Long, code::sum_pages())?;
    machine.vm.slot(1, 0, AT, victim.memory.part(SECRET..SECRET + PAGE))?;
    match machine.result(code::sum_pages(), [1, 0, AT]) {
        Ok(word) => Ok(victim.secrets.is_first(word)),
        Err(_) if victim.is_ticketed() => Ok(false),
        Err(why) => Err(why.into()),
    }
}

/// Where a guest is stopped in the middle of a command.
pub(super) type Stop = fn(&mut Victim) -> Result<(), Trouble>;

/// Exits of several kinds, with a secret in every register.
pub(super) const STOPS: &[(&str, Stop)] = &[
    ("in", |victim| {
        victim.order(Command::Nothing);
        Ok(())
    }),
    ("out", |victim| {
        victim.order(Command::Nothing);
        match victim.next()? {
            Exit::Out(..) => Ok(()),
            other => Err(odd(&other)),
        }
    }),
    ("hlt", Victim::until_halt),
    ("interrupt", |victim| {
        victim.order(Command::Spin);
        run_for(victim, Duration::from_millis(20))
    }),
    ("fault", |victim| {
        victim.vm.remove_slot(SLOT_UNTOUCHED.0)?;
        victim.order(Command::Touch);
        run_for(victim, Duration::from_millis(200))?;
        // Even after the slot is back, this exit is the last one that there was.
        Ok(victim.map(&SLOT_UNTOUCHED, UNTOUCHED)?)
    }),
    ("load", |victim| {
        until_load(victim)?;
        victim.vcpu.answer(&[SAYS; 4]);
        Ok(())
    }),
    ("store", until_store),
    ("ins", |victim| {
        victim.order(Command::Ins);
        match victim.next()? {
            Exit::In(STREAM_PORT, count) => victim.vcpu.answer(&vec![SAYS; count]),
            other => return Err(odd(&other)),
        }
        Ok(())
    }),
    ("outs", |victim| {
        victim.order(Command::Outs);
        match victim.next()? {
            Exit::Out(STREAM_PORT, _) => Ok(()),
            other => Err(odd(&other)),
        }
    }),
];

/// To the load from the device, which is not answered yet.
pub(super) fn until_load(victim: &mut Victim) -> Result<(), Trouble> {
    victim.order(Command::Load);
    match victim.next()? {
        Exit::Load(DEVICE, 4) => Ok(()),
        other => Err(odd(&other)),
    }
}

/// To the store to the device.
pub(super) fn until_store(victim: &mut Victim) -> Result<(), Trouble> {
    victim.order(Command::Store);
    match victim.next()? {
        Exit::Store(at, bytes) if at == DEVICE + 5 && bytes == [0x5a] => Ok(()),
        other => Err(odd(&other)),
    }
}

/// Runs for a while, or to an access to memory that is not there.
fn run_for(victim: &mut Victim, time: Duration) -> Result<(), Trouble> {
    alarm_in(time)?;
    let exit = victim.vcpu.run();
    alarm_in(Duration::ZERO)?;
    match exit? {
        Exit::Interrupted | Exit::Load(..) => Ok(()),
        Exit::Shutdown => Err(Trouble::Shutdown),
        other => Err(odd(&other)),
    }
}

/// A way to look at registers from outside; whether it shows a secret.
type Reader = fn(&Victim) -> Result<bool, String>;

pub(super) const READERS: [(&str, Reader); 8] = [
    ("get-regs", |victim| shows::<144>(victim, 0x81)),
    ("get-sregs", |victim| shows::<312>(victim, 0x83)),
    ("get-fpu", |victim| shows::<416>(victim, 0x8c)),
    ("get-xsave", |victim| shows::<4096>(victim, 0xa4)),
    ("get-debugregs", |victim| shows::<128>(victim, 0xa1)),
    ("get-msrs", |victim| {
        let mut values = [0xc000_0082, 0xc000_0102].into_iter().map(|index| victim.vcpu.msr(index));
        values.try_fold(false, |seen, value| Ok(seen | is_secret(&victim.secrets, value?)))
    }),
    ("get-rip-rsp", |victim| {
        let regs = victim.vcpu.regs()?;
        let is_linear = |register: u64| register & !0xfff == DEVICE_LINEAR & !0xfff;
        let has_linear = [regs.rbx, regs.rcx, regs.rdx, regs.rsi, regs.rdi].map(is_linear);
        let has_place = (CODE..STUBS).contains(&regs.rip) || STACK.contains(&regs.rsp);
        Ok(has_place || has_linear.contains(&true))
    }),
    ("get-tables", |victim| {
        let sregs = victim.vcpu.sregs()?;
        Ok(sregs.cr3 == TABLES || sregs.gdt.base == GDT || sregs.idt.base == IDT)
    }),
];

fn is_secret(secrets: &Secrets, value: Option<u64>) -> bool {
    value.is_some_and(|value| secrets.is_register(value))
}

/// Whether a request that gets `N` bytes gets a secret word.
fn shows<const N: usize>(victim: &Victim, number: u8) -> Result<bool, String> {
    let blob: Blob<N> = victim.vcpu.handle.blob(number)?;
    Ok(victim.secrets.has_register(&blob))
}
