//! What a change of owner costs. Where the emulator counts instructions as time, ticks are instructions.

use super::Machine;
use crate::guard::{Guard, Owner};
use crate::memory::PAGE;
use bare::report::Outcome;
use bare::{console, cpu};

const LARGE: u64 = 2 << 20;
const HUGE: u64 = 1 << 30;
/// Amid a GiB of the host's.
const PLACE: u64 = HUGE + HUGE / 2;

/// Prints ticks and queued entries of `changes` to `owner`, made one after the other.
fn measure(guard: &mut Guard, what: &str, owner: Owner, changes: impl Iterator<Item = [u64; 2]>) {
    let ([_, asked], start) = (guard.counts(), cpu::rdtsc());
    changes.for_each(|[start, end]| guard.give(start, end, owner));
    let ticks = cpu::rdtsc() - start;
    let [_, all] = guard.counts();
    console::line(format_args!(
        "figure {what} to {owner:?}: {ticks} ticks {} entries",
        all - asked
    ));
}

/// Every page of `start..end`, one in `step`.
fn pages(start: u64, end: u64, step: u64) -> impl Iterator<Item = [u64; 2]> {
    (start..end).step_by((step * PAGE) as usize).map(|page| [page, page + PAGE])
}

/// A page by itself, 512 by themselves and at once, and every other page of a GiB.
pub(super) fn run(machine: &mut Machine) -> Outcome {
    let guard = &mut machine.guard;
    let [tables, _] = guard.counts();
    for owner in [Owner::Vm, Owner::Host] {
        measure(guard, "first-page", owner, pages(PLACE, PLACE + PAGE, 1));
    }
    // The neighbours of a page that stays a VM's.
    guard.give(PLACE, PLACE + PAGE, Owner::Vm);
    for owner in [Owner::Vm, Owner::Host] {
        measure(guard, "next-page", owner, pages(PLACE + PAGE, PLACE + 2 * PAGE, 1));
    }
    guard.give(PLACE, PLACE + PAGE, Owner::Host);
    let (start, end) = (PLACE, PLACE + LARGE);
    for owner in [Owner::Vm, Owner::Host] {
        measure(guard, "512-single", owner, pages(start, end, 1));
    }
    for owner in [Owner::Vm, Owner::Host] {
        measure(guard, "512-batch", owner, core::iter::once([start, end]));
    }
    for owner in [Owner::Vm, Owner::Host] {
        measure(guard, "every-other-of-64-mib", owner, pages(PLACE, PLACE + 32 * LARGE, 2));
        let [used, _] = guard.counts();
        console::line(format_args!("figure tables for 64 MiB: {}", used - tables));
    }
    Ok(())
}
