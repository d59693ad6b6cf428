//! Pages that change hands while devices write them as fast as another processor can have them do it.

use super::{ARENA, Machine};
use crate::devices::{E1000e, Ended, Nvme};
use crate::guard::{Guard, Owner};
use crate::memory::{self, PAGE};
use bare::fault::Local;
use bare::report::{Checks, Outcome, fail};
use bare::{cpu, smp, time};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

const PAGES: u64 = 8;
const TARGET: u64 = ARENA + 0x40_0000;
const SOURCE: u64 = ARENA + 0x50_0000;
const ROUNDS: u64 = 100;
/// Stores that must be tried while a page is a VM's.
const TRIES: u64 = 2 * PAGES;

/// What the other processor has.
struct Load {
    nvme: Nvme,
    card: E1000e,
}

static LOAD: Local<Option<Load>> = Local::new(None);
static STOP: AtomicBool = AtomicBool::new(false);
static TRIED: AtomicU64 = AtomicU64::new(0);
static DONE: AtomicU64 = AtomicU64::new(0);

/// The other processor's part: each page in turn, by both devices.
fn keep_busy() {
    // SAFETY: `run` filled it before it started this, and takes it back after this has ended.
    let Some(load) = (unsafe { &mut *LOAD.get() }) else { return };
    while !STOP.load(Ordering::SeqCst) {
        let page = TARGET + TRIED.load(Ordering::SeqCst) % PAGES * PAGE;
        let ended = [load.nvme.identify(page), load.card.transfer(SOURCE, page)];
        let _ = DONE.fetch_add(u64::from(ended == [Ended::Done; 2]), Ordering::SeqCst);
        let _ = TRIED.fetch_add(1, Ordering::SeqCst);
    }
}

/// Pages become a VM's and the host's again, [`ROUNDS`] times; meanwhile no store arrives in a VM's.
pub(super) fn run(machine: &mut Machine) -> Outcome {
    let (Some(nvme), Some(card)) = (machine.nvme.take(), machine.card.take()) else {
        fail!("there is no NVMe drive or no network card");
    };
    memory::fill(SOURCE, PAGE, 1);
    // SAFETY: the other processor does not run yet.
    unsafe { *LOAD.get() = Some(Load { nvme, card }) };
    let mut checks = Checks::new();
    checks.that(smp::start(1).is_some(), format_args!("processor 1 does not start"));
    STOP.store(false, Ordering::SeqCst);
    smp::run(1, keep_busy);
    let mut reached = 0;
    for round in 0..ROUNDS {
        reached += change_hands(&mut machine.guard, round, &mut checks);
    }
    STOP.store(true, Ordering::SeqCst);
    checks.that(smp::wait_idle(1), format_args!("processor 1 does not end"));
    // SAFETY: the other processor is idle.
    if let Some(load) = unsafe { (*LOAD.get()).take() } {
        (machine.nvme, machine.card) = (Some(load.nvme), Some(load.card));
    }
    let (tried, done) = (TRIED.load(Ordering::SeqCst), DONE.load(Ordering::SeqCst));
    bare::console::line(format_args!("{tried} stores by each, {done} of them without an error"));
    checks.that(done > tried / 2, format_args!("{done} of {tried} stores went well"));
    checks.that(reached > ROUNDS / 2, format_args!("{reached} pages were stored to afterwards"));
    checks.finish()
}

/// One page there and back; 1 if a device stored to it when it was the host's again.
fn change_hands(guard: &mut Guard, round: u64, checks: &mut Checks) -> u64 {
    let page = TARGET + round % PAGES * PAGE;
    guard.give(page, page + PAGE, Owner::Vm);
    memory::fill(page, PAGE, round);
    wait_for(TRIES);
    let lost = PAGE / 8 - memory::matching(page, PAGE, round);
    checks.that(lost == 0, format_args!("round {round}: {lost} words of a VM's page changed"));
    while let Some(stopped) = guard.stopped() {
        let is_ours = stopped.is_write && stopped.page == page;
        checks.that(is_ours, format_args!("round {round}: {stopped:x?}"));
    }
    guard.give(page, page + PAGE, Owner::Host);
    // What was stopped until just now.
    guard.forget();
    wait_for(TRIES);
    u64::from(!memory::holds(page, PAGE, round))
}

/// Waits until the devices have tried this many times more. Without PAUSE, at which QEMU stops devices too.
fn wait_for(tries: u64) {
    let (before, start) = (TRIED.load(Ordering::SeqCst), cpu::rdtsc());
    while TRIED.load(Ordering::SeqCst) < before + tries
        && cpu::rdtsc() - start < time::ticks(1_000_000)
    {}
}
