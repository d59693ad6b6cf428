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

/// Prints ticks, and queued entries, of `changes` to `owner`, made one after the other.
fn measure(guard: &mut Guard, what: &str, owner: Owner, changes: impl Iterator<Item = [u64; 2]>) {
    let ([_, asked], start) = (guard.counts(), cpu::rdtsc());
    changes.for_each(|[start, end]| guard.give(start, end, owner));
    let ticks = cpu::rdtsc() - start;
    let ([_, all], to) = (guard.counts(), if owner == Owner::Vm { "vm" } else { "host" });
    console::line(format_args!("ticks {what} to_{to} {ticks}"));
    console::line(format_args!("entries {what} to_{to} {}", all - asked));
}

/// Every page of `start..end`, one in `step`.
fn pages(start: u64, end: u64, step: u64) -> impl Iterator<Item = [u64; 2]> {
    (start..end).step_by((step * PAGE) as usize).map(|page| [page, page + PAGE])
}

/// A page by itself in a GiB of the host's, the one next to it, 512 by themselves and at once, and every
/// other page of 128 MiB.
pub(super) fn run(machine: &mut Machine) -> Outcome {
    let guard = &mut machine.guard;
    let [tables, _] = guard.counts();
    console::line(format_args!("tables all_hosts {tables}"));
    for owner in [Owner::Vm, Owner::Host] {
        measure(guard, "first", owner, pages(PLACE, PLACE + PAGE, 1));
    }
    guard.give(PLACE, PLACE + PAGE, Owner::Vm);
    for owner in [Owner::Vm, Owner::Host] {
        measure(guard, "next", owner, pages(PLACE + PAGE, PLACE + 2 * PAGE, 1));
    }
    guard.give(PLACE, PLACE + PAGE, Owner::Host);
    for owner in [Owner::Vm, Owner::Host] {
        measure(guard, "512_single", owner, pages(PLACE, PLACE + LARGE, 1));
    }
    for owner in [Owner::Vm, Owner::Host] {
        measure(guard, "512_batch", owner, core::iter::once([PLACE, PLACE + LARGE]));
    }
    for owner in [Owner::Vm, Owner::Host] {
        measure(guard, "scattered", owner, pages(PLACE, PLACE + 64 * LARGE, 2));
        let [used, _] = guard.counts();
        console::line(format_args!("tables added {}", used - tables));
    }
    Ok(())
}
