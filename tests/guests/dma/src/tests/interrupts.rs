//! Interrupts of devices: each by its own entry of the table, and no other.

use super::{ARENA, Machine};
use crate::devices::{Device, Edu};
use crate::guard::Message;
use crate::memory;
use bare::report::{Checks, Outcome, fail};
use bare::{cpu, fault, time};

const VECTORS: core::ops::Range<u8> = 0x50..0x60;

/// How many interrupts came while `act` was done and a millisecond later.
fn count(act: impl FnOnce()) -> u64 {
    let arrived = || VECTORS.map(fault::arrived).sum::<u64>();
    let before = arrived();
    cpu::sti();
    act();
    time::delay_us(1000);
    cpu::cli();
    arrived() - before
}

/// Has `device` signal its interrupt by `message`.
fn signal(device: &mut Edu, message: Message) -> u64 {
    count(|| {
        assert!(device.function().signal(message.address, message.data), "no MSI");
        device.interrupt();
    })
}

/// Has `device` write `message` as if it were data.
fn write(device: &mut Edu, message: Message) -> u64 {
    count(|| {
        memory::write(ARENA, u32::from(message.data));
        let _ = device.take(ARENA);
        let _ = device.store_some(u64::from(message.address), 4);
    })
}

/// A message of its own arrives; one of an entry that does not exist does not, whether it is signalled or
/// written, nor does one that another device signals. Not tried, as QEMU (until 11.1 at least) lets them
/// pass: another device's written as data, since its DMA carries no requester id there, and messages in
/// compatibility format.
pub(super) fn run(machine: &mut Machine) -> Outcome {
    let [Some(one), Some(other)] = &mut machine.edus else {
        fail!("there are no two devices that signal");
    };
    let mut checks = Checks::new();
    let guard = &mut machine.guard;
    let own = guard.message(one.source(), VECTORS.start);
    let others = guard.message(other.source(), VECTORS.start + 1);
    let missing = guard.missing(VECTORS.start + 2);
    for (what, wanted, came) in [
        ("signals its own", 1, signal(one, own)),
        ("writes its own", 1, write(one, own)),
        ("behind the bridge signals its own", 1, signal(other, others)),
        ("signals the other's", 0, signal(one, others)),
        ("behind the bridge signals the other's", 0, signal(other, own)),
        ("signals by no entry", 0, signal(one, missing)),
        ("writes by no entry", 0, write(one, missing)),
        ("signals its own again", 1, signal(one, own)),
    ] {
        checks.that(came == wanted, format_args!("edu {what}: {came} interrupts"));
    }
    checks.finish()
}
