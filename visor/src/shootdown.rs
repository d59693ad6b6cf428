//! Makes every processor forget what it remembers of any EPT, and leave its VM: the hardware for
//! `ept::shootdown`, which says how.
//!
//! A processor is called by an NMI, which makes it exit wherever it is, and answers on its way back:
//! in the exit handler, or while it waits for a lock that the caller may hold.
//!
//! The call looks like an NMI of the host's, so both are counted. Should one of the host's arrive
//! while the processor itself holds a call back, or the other way round, it takes both for one, and the
//! host's is lost.

use core::sync::atomic::Ordering;

use ept::shootdown::{Call, Generation, Processor};
use spin::{Mutex, MutexGuard};

pub(crate) use ept::shootdown::{fall_asleep, serve, took_nmi, wake_up};

use crate::apic::{self, Delivery, Destination};
use crate::machine::Machine;
use crate::percpu::PerCpu;
use crate::{processor, stop};

/// Ends with each call.
static CALLS: Generation = Generation::new();

impl Processor for PerCpu {
    fn call(&self) -> &Call {
        &self.call
    }

    fn send_nmi(&self) {
        apic::send(Delivery::Nmi, Destination::One(self.apic_id.get()));
    }

    fn take_nmi(&self) -> bool {
        let arrived = self.nmi_arrived.load(Ordering::Relaxed) != 0;
        if arrived {
            let _ = self.nmi_arrived.fetch_sub(1, Ordering::Relaxed);
        }
        arrived
    }

    /// What this processor remembers goes, its EPT02 before it enters a VM again.
    fn forget(&self) {
        self.shadow_is_stale.set(true);
        processor::forget();
    }

    fn pause(&self) {
        stop::check();
        core::hint::spin_loop();
    }
}

/// How often processors were called. As long as that does not change, what a processor has found out
/// about a frame of the host holds until the end of its exit.
pub(crate) fn calls() -> u64 {
    CALLS.current()
}

/// Only one processor at a time may call: the lock of the tables sees to that.
pub(crate) fn everywhere() {
    let (cpu, machine) = (PerCpu::current(), Machine::running());
    ept::shootdown::everywhere(&CALLS, cpu, || {
        machine.each().filter(|other| other.index.get() != cpu.index.get())
    });
}

/// Locks `mutex`, whose holder may be waiting for this processor's answer.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Whoever finds it taken has a block: only then do several processors run.
    let attempt = || mutex.try_lock();
    attempt().unwrap_or_else(|| ept::shootdown::lock(PerCpu::current(), attempt))
}
