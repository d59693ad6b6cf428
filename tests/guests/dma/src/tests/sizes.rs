//! Memory of one owner is reached by the largest leaves, which are split where another owns a page, and
//! joined again.

use super::{Machine, carry};
use crate::devices::{Device, Ended, Nvme};
use crate::guard::{Guard, Owner};
use crate::memory::{self, PAGE};
use bare::report::{Checks, Outcome, fail};

const LARGE: u64 = 2 << 20;
const HUGE: u64 = 1 << 30;
/// Amid a GiB of the host's.
const PLACE: u64 = HUGE + HUGE / 2;

/// A page, a block of 2 MiB, and all but a page of it are a VM's in turn.
pub(super) fn run(machine: &mut Machine) -> Outcome {
    let Machine { guard, nvme: Some(nvme), .. } = machine else {
        fail!("there is no NVMe drive");
    };
    let mut checks = Checks::new();
    let [before, _] = guard.counts();
    for (start, end, [next, far]) in [
        (PLACE, PLACE + PAGE, [PAGE, LARGE]),
        (PLACE, PLACE + LARGE, [LARGE, LARGE]),
        (PLACE + PAGE, PLACE + 2 * LARGE, [PAGE, LARGE]),
    ] {
        is_reached(guard, nvme, [start, HUGE], &mut checks);
        guard.give(start, end, Owner::Vm);
        for page in [start, end - PAGE] {
            is_closed(guard, nvme, page, &mut checks);
        }
        let outside = if start == PLACE { end } else { PLACE };
        is_reached(guard, nvme, [outside, next], &mut checks);
        is_reached(guard, nvme, [PLACE + 8 * LARGE, far], &mut checks);
        guard.forget();
        guard.give(start, end, Owner::Host);
    }
    one_by_one(guard, nvme, &mut checks);
    is_reached(guard, nvme, [PLACE, HUGE], &mut checks);
    let [after, _] = guard.counts();
    checks.that(after == before, format_args!("{before} tables before, {after} after"));
    checks.finish()
}

/// Pages that the unit knows one by one are forgotten by themselves and at once.
fn one_by_one(guard: &mut Guard, nvme: &mut Nvme, checks: &mut Checks) {
    let end = PLACE + 5 * PAGE;
    guard.give(PLACE, PLACE + PAGE, Owner::Vm);
    for page in (PLACE + PAGE..end).step_by(PAGE as usize) {
        is_reached(guard, nvme, [page, PAGE], checks);
    }
    for (start, end) in [(end - PAGE, end), (PLACE + PAGE, end - PAGE)] {
        guard.give(start, end, Owner::Vm);
        for page in (start..end).step_by(PAGE as usize) {
            is_closed(guard, nvme, page, checks);
        }
    }
    guard.forget();
    guard.give(PLACE, end, Owner::Host);
}

/// The drive stores to `page`, by a leaf of so many bytes.
fn is_reached(guard: &Guard, nvme: &mut Nvme, [page, leaf]: [u64; 2], checks: &mut Checks) {
    let (ended, words) = carry(nvme, [super::ARENA, page], page);
    checks.that(ended == [Ended::Done; 2], format_args!("{page:#x}: {ended:?}"));
    checks.that(words == PAGE / 8, format_args!("{page:#x}: {words} words"));
    let found = guard.leaf(page);
    checks
        .that(found == leaf, format_args!("{page:#x}: a leaf of {found:#x} bytes, not {leaf:#x}"));
}

/// The drive does not store to `page`.
fn is_closed(guard: &Guard, nvme: &mut Nvme, page: u64, checks: &mut Checks) {
    memory::fill(page, PAGE, 1);
    let _ = nvme.store(page);
    checks.that(memory::holds(page, PAGE, 1), format_args!("{page:#x} of a VM's changed"));
    checks.that(guard.leaf(page) == 0, format_args!("{page:#x} is mapped"));
}
