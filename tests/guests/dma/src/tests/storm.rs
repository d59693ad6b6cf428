//! More transfers are stopped than the IOMMU can tell of.

use super::{ARENA, Machine, carry};
use crate::devices::Ended;
use crate::guard::{Owner, Stopped};
use crate::memory::{self, PAGE};
use bare::report::{Checks, Outcome, fail};

const PAGES: u64 = 64;
const START: u64 = ARENA + 0x60_0000;
const END: u64 = START + PAGES * PAGE;
const ROUNDS: u64 = 2000;

/// Thousands of stores to a VM's pages while nobody asks; then one that is told of, and devices work.
pub(super) fn run(machine: &mut Machine) -> Outcome {
    let Machine { card: Some(card), nvme: Some(nvme), .. } = machine else {
        fail!("there is no NVMe drive or no network card");
    };
    let mut checks = Checks::new();
    machine.guard.give(START, END, Owner::Vm);
    memory::fill(START, END - START, 1);
    for round in 0..ROUNDS {
        let _ = card.transfer(START + round % PAGES * PAGE, START + (round + 1) % PAGES * PAGE);
        let _ = card.transfer(ARENA, START + round % PAGES * PAGE);
        // Only faults of another device than the one on record count as too many.
        if round % 16 == 0 {
            let _ = nvme.identify(START);
        }
    }
    checks.that(memory::holds(START, END - START, 1), format_args!("a VM's page changed"));
    let first = machine.guard.stopped();
    checks.that(first.is_some(), format_args!("nothing was told of"));
    machine.guard.forget();
    let _ = card.transfer(ARENA, START);
    let source = crate::devices::Device::source(card);
    let expected = Stopped { source, page: START, is_write: true };
    let told = machine.guard.stopped();
    checks.that(told == Some(expected), format_args!("{told:x?}, not {expected:x?}"));
    machine.guard.forget();
    machine.guard.give(START, END, Owner::Host);
    let (_, devices) = machine.parts();
    for device in devices {
        let (ended, words) = carry(device, [START, START + PAGE], 2);
        let holds = ended == [Ended::Done; 2] && words == device.bytes() / 8;
        checks.that(holds, format_args!("{}: {ended:?}, {words} words", device.name()));
    }
    checks.finish()
}
