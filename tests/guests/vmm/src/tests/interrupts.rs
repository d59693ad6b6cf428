//! Interrupts of every source, and signals that stop a guest.

use super::{Machine, same, until};
use crate::code;
use crate::memory::{Backing, Memory};
use crate::mode::{self, HANDLER, Mode, SHARED};
use crate::vm::{Exit, Vm};
use std::time::Duration;

const TURN: fn() -> Exit = || Exit::Out(0x10, vec![0]);

/// A VM with interrupt controllers in the kernel, in front of `code`, and a handler for `vectors`.
pub(crate) fn with_irqchip(code: &[u8], vectors: &[usize]) -> Result<Machine, String> {
    let memory = Memory::new(8 << 20, Backing::Small)?;
    let vm = Vm::with(&memory)?;
    vm.with_irqchip()?;
    let vcpu = vm.vcpu(0)?;
    mode::enter(&vcpu, &memory, Mode::Long, code)?;
    let machine = Machine { vcpu, vm, memory };
    machine.handle(vectors);
    Ok(machine)
}

impl Machine {
    /// Makes [`code::handler`] take `vectors`.
    pub(super) fn handle(&self, vectors: &[usize]) {
        self.memory.write(HANDLER, code::handler());
        for vector in vectors {
            mode::gate(&self.memory, *vector, 0);
        }
    }

    /// How many interrupts the guest has counted.
    fn counted(&self) -> u64 {
        self.memory.word(SHARED)
    }
}

/// This program injects interrupts when the guest opens a window for them, and NMIs.
pub(super) fn windows() -> Result<(), String> {
    let mut machine = Machine::new(4, Mode::Long, code::windows())?;
    machine.handle(&[2, 0x41]);
    for round in 0..20 {
        machine.until(&TURN())?;
        machine.vcpu.want_window(1);
        // The rest of the turn comes first, with interrupts closed.
        machine.until(&Exit::Window)?;
        machine.vcpu.interrupt(0x41)?;
        machine.vcpu.want_window(0);
        // The handler's own OUT to the PIC, which nobody emulates here.
        machine.until(&Exit::Out(0x20, vec![0x20]))?;
        same("interrupts", machine.counted(), 2 * round + 1)?;
        machine.until(&TURN())?;
        machine.vcpu.nmi()?;
        machine.until(&Exit::Out(0x20, vec![0x20]))?;
        same("with NMIs", machine.counted(), 2 * round + 2)?;
    }
    Ok(())
}

/// Lines of the interrupt controllers in the kernel wake the guest.
pub(super) fn lines() -> Result<(), String> {
    let mut machine = with_irqchip(code::sleeps(), &[0x25])?;
    for round in 0..50 {
        machine.until(&TURN())?;
        same("interrupts", machine.counted(), round)?;
        machine.vm.line(5, 1)?;
        machine.vm.line(5, 0)?;
    }
    machine.until(&TURN())
}

/// The timer in the kernel wakes the guest.
pub(super) fn timer() -> Result<(), String> {
    let mut machine = with_irqchip(code::ticks(), &[0x20])?;
    machine.call(code::ticks(), [10, 0, 0])?;
    machine.until(&TURN())?;
    // One sleep may end in two interrupts, if the host is slow.
    if machine.counted() >= 10 { Ok(()) } else { Err(format!("{} ticks", machine.counted())) }
}

/// The local APIC delivers what the processor sends to itself.
pub(super) fn ipis() -> Result<(), String> {
    let mut machine = with_irqchip(code::ipis(), &[0x30])?;
    machine.call(code::ipis(), [100, 0, 0])?;
    until(&mut machine.vcpu, &Exit::Out(0x10, vec![0x30]))?;
    same("interrupts", machine.counted(), 100)
}

/// A signal ends KVM_RUN, and the guest goes on where it was.
pub(super) fn signals() -> Result<(), String> {
    let mut machine = Machine::new(4, Mode::Long, code::count())?;
    let mut before = 0;
    for _ in 0..5 {
        alarm_in(Duration::from_millis(50))?;
        machine.until(&Exit::Interrupted)?;
        let now = machine.counted();
        if now <= before {
            return Err(format!("the guest stands at {now}"));
        }
        before = now;
    }
    machine.vcpu.at_once(1);
    machine.until(&Exit::Interrupted)?;
    same("a count without entry", machine.counted(), before)?;
    machine.vcpu.at_once(0);
    alarm_in(Duration::from_millis(50))?;
    machine.until(&Exit::Interrupted)
}

/// SIGALRM goes to a handler that does nothing; without SA_RESTART, system calls end.
pub(super) fn catch_alarms() -> Result<(), String> {
    extern "C" fn nothing(_: libc::c_int) {}
    let handler = nothing as extern "C" fn(libc::c_int) as libc::sighandler_t;
    // SAFETY: the handler touches nothing.
    let result = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler;
        libc::sigaction(libc::SIGALRM, &raw const action, std::ptr::null_mut())
    };
    crate::kvm::checked(result).map(drop)
}

/// Makes SIGALRM come once; after no time at all, not any more.
pub(crate) fn alarm_in(delay: Duration) -> Result<(), String> {
    catch_alarms()?;
    let tv_sec = i64::try_from(delay.as_secs()).map_err(|why| why.to_string())?;
    let zero = libc::timeval { tv_sec: 0, tv_usec: 0 };
    let timer = libc::itimerval {
        it_interval: zero,
        it_value: libc::timeval { tv_sec, tv_usec: delay.subsec_micros().into() },
    };
    // SAFETY: a structure that outlives the call.
    let result =
        unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const timer, std::ptr::null_mut()) };
    crate::kvm::checked(result).map(drop)
}
