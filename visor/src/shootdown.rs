//! Makes every processor forget what it remembers of any EPT, and leave its VM.
//!
//! A processor is called by an NMI, which makes it exit wherever it is, and answers on its way back:
//! in the exit handler, or while it waits for a lock that the caller may hold. Processors that wait
//! for SIPI cannot be called; they forget everything when they start.
//!
//! The call looks like an NMI of the host's, so it is counted. Should one of the host's arrive
//! together with a call, the processor takes both for one, and the host's is lost.

use core::sync::atomic::{AtomicU64, Ordering};

use spin::{Mutex, MutexGuard};

use crate::apic::{self, Delivery, Destination};
use crate::cpu::vmx;
use crate::machine::Machine;
use crate::percpu::PerCpu;
use crate::stop;

/// How often processors were called.
static CALLS: AtomicU64 = AtomicU64::new(0);

/// How often processors were called. As long as that does not change, what a processor has found out
/// about a frame of the host holds until the end of its exit.
pub(crate) fn calls() -> u64 {
    CALLS.load(Ordering::SeqCst)
}

/// Only one processor at a time may call: the lock of the tables sees to that.
///
/// Returns when every processor has forgotten everything and is outside its VM, or will look again
/// before it enters one.
pub(crate) fn everywhere() {
    let (cpu, machine) = (PerCpu::current(), Machine::running());
    let _ = CALLS.fetch_add(1, Ordering::SeqCst);
    let others = || machine.each().filter(|other| other.index.get() != cpu.index.get());
    for other in others() {
        other.call.due.store(true, Ordering::SeqCst);
        // One that is still on its way does for this call, too: never are there two.
        let sent = other.call.sent.load(Ordering::SeqCst);
        let under_way = other.call.taken.load(Ordering::SeqCst) != sent;
        if !under_way && !other.call.asleep.load(Ordering::SeqCst) {
            other.call.sent.store(sent.wrapping_add(1), Ordering::SeqCst);
            apic::send(Delivery::Nmi, Destination::One(other.apic_id.get()));
        }
    }
    forget(cpu);
    for other in others() {
        while other.call.due.load(Ordering::SeqCst) && !other.call.asleep.load(Ordering::SeqCst) {
            serve(cpu);
            stop::check();
            core::hint::spin_loop();
        }
    }
}

/// Answers a call, if there is one.
pub(crate) fn serve(cpu: &PerCpu) {
    if cpu.call.due.load(Ordering::SeqCst) {
        forget(cpu);
        cpu.call.due.store(false, Ordering::SeqCst);
    }
}

/// What this processor remembers goes, its EPT02 before it enters a VM again.
fn forget(cpu: &PerCpu) {
    cpu.shadow_is_stale.set(true);
    vmx::invept_all();
}

/// Whether an NMI that has arrived was a call; to be asked before the call is answered.
pub(crate) fn took_nmi(cpu: &PerCpu) -> bool {
    let sent = cpu.call.sent.load(Ordering::SeqCst);
    cpu.call.taken.swap(sent, Ordering::SeqCst) != sent
}

/// From now on this processor cannot be called.
pub(crate) fn fall_asleep(cpu: &PerCpu) {
    cpu.call.asleep.store(true, Ordering::SeqCst);
}

/// It can again, and remembers nothing.
pub(crate) fn wake_up(cpu: &PerCpu) {
    // An NMI that was sent to a processor that then waited for SIPI is gone.
    cpu.call.taken.store(cpu.call.sent.load(Ordering::SeqCst), Ordering::SeqCst);
    cpu.call.asleep.store(false, Ordering::SeqCst);
    forget(cpu);
    cpu.call.due.store(false, Ordering::SeqCst);
}

/// Locks `mutex`, whose holder may be waiting for this processor's answer.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    loop {
        if let Some(guard) = mutex.try_lock() {
            return guard;
        }
        if Machine::get().is_some() {
            serve(PerCpu::current());
            stop::check();
        }
        core::hint::spin_loop();
    }
}
