//! Interrupts of devices: each by its own entry of the table, and no other.

use super::{ARENA, Machine};
use crate::devices::{Device, Edu};
use crate::guard::Message;
use crate::memory;
use bare::report::{Checks, Outcome, fail};
use bare::{cpu, fault, smp, time};
use core::sync::atomic::{AtomicBool, Ordering};

const VECTORS: core::ops::Range<u8> = 0x50..0x60;

/// Ends the other processor's part.
static STOP: AtomicBool = AtomicBool::new(false);

/// The other processor's part.
fn take_interrupts() {
    cpu::sti();
    while !STOP.load(Ordering::SeqCst) {
        cpu::pause();
    }
    cpu::cli();
}

/// How many interrupts came here and at the other processor, the latter in tens, while `act` was done and
/// within 10 ms after the `wanted` ones, or the first that is not.
fn count(wanted: u64, act: impl FnOnce()) -> u64 {
    let at = |processor| VECTORS.map(|vector| fault::arrived_at(processor, vector)).sum::<u64>();
    let arrived = || at(0) + 10 * at(1);
    let before = arrived();
    cpu::sti();
    act();
    // The emulator's threads may stand still for a while.
    let patience = if wanted == 0 { 300_000 } else { 2_000_000 };
    let _ = time::wait_us(patience, || arrived() - before >= wanted.max(1));
    time::delay_us(10_000);
    cpu::cli();
    arrived() - before
}

/// Has `device` signal its interrupt by `message`.
fn signal(device: &mut Edu, message: Message, wanted: u64) -> u64 {
    count(wanted, || {
        assert!(device.function().signal(message.address, message.data), "no MSI");
        device.interrupt();
    })
}

/// Has `device` write `message` as if it were data.
fn write(device: &mut Edu, message: Message, wanted: u64) -> u64 {
    count(wanted, || {
        memory::write(ARENA, u32::from(message.data));
        let _ = device.take(ARENA);
        let _ = device.store_some(u64::from(message.address), 4);
    })
}

/// A message of its own arrives; one of an entry that does not exist, or no longer, does not, whether it is
/// signalled or written, nor does one that another device signals, in whichever way it names the entry. Not tried, as QEMU (until 11.1 at least) lets them
/// pass: another device's written as data, since its DMA carries no requester id there, and messages in
/// compatibility format.
pub(super) fn run(machine: &mut Machine) -> Outcome {
    let [Some(one), Some(other)] = &mut machine.edus else {
        fail!("there are no two devices that signal");
    };
    let mut checks = Checks::new();
    let guard = &mut machine.guard;
    checks.that(smp::start(1).is_some(), format_args!("processor 1 does not start"));
    STOP.store(false, Ordering::SeqCst);
    smp::run(1, take_interrupts);
    let own = guard.message(one.source(), VECTORS.start, 0);
    let others = guard.message(other.source(), VECTORS.start + 1, 1);
    let withdrawn = guard.message(one.source(), VECTORS.start + 3, 0);
    let missing = guard.missing(VECTORS.start + 2);
    let beyond = guard.beyond(VECTORS.start + 4);
    let forged = guard.by_subhandle(own, others);
    let before = signal(one, withdrawn, 1);
    checks.that(before == 1, format_args!("edu signals what is its own yet: {before} interrupts"));
    guard.withdraw(withdrawn);
    for (what, wanted, came) in [
        ("signals its own", 1, signal(one, own, 1)),
        ("writes its own", 1, write(one, own, 1)),
        ("behind the bridge signals its own", 10, signal(other, others, 10)),
        ("signals the other's", 0, signal(one, others, 0)),
        ("behind the bridge signals the other's", 0, signal(other, own, 0)),
        ("signals by no entry", 0, signal(one, missing, 0)),
        ("writes by no entry", 0, write(one, missing, 0)),
        ("signals the other's by a subhandle", 0, signal(one, forged, 0)),
        ("signals past the table", 0, signal(one, beyond, 0)),
        ("writes past the table", 0, write(one, beyond, 0)),
        ("signals what was withdrawn", 0, signal(one, withdrawn, 0)),
        ("signals its own again", 1, signal(one, own, 1)),
    ] {
        checks.that(came == wanted, format_args!("edu {what}: {came} interrupts"));
    }
    STOP.store(true, Ordering::SeqCst);
    checks.that(smp::wait_idle(1), format_args!("processor 1 does not end"));
    checks.finish()
}
