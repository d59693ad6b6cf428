//! `nmi [count] [cpus=N]`: NMIs that arrive while the processor exits all the time are neither lost
//! nor doubled.
//!
//! NMIs coalesce by architecture, so the next is sent only after the one before was seen. They come
//! from this processor's own interrupt command, at unforeseeable moments from the PIT through the
//! I/O APIC, and with `cpus=` from and to other processors.

use super::{Arguments, Machine, load};
use crate::fault::{self, NMI, arrived, arrived_at, catch};
use crate::report::{Checks, Outcome, fail};
use crate::{apic, console, cpu, smp};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

pub(super) fn run(_: &Machine, arguments: &Arguments) -> Outcome {
    let count = arguments.number(1000);
    let mut checks = Checks::new();
    by_self(&mut checks, count);
    by_pit(&mut checks, count);
    in_last_exit(&mut checks, count);
    wakes_halt(&mut checks);
    while_blocked(&mut checks);
    after_inner_return(&mut checks);
    if let Some(cpus) = arguments.value("cpus") {
        for other in 1..(cpus as usize).min(smp::MAX_CPUS) {
            if smp::start(other).is_none() {
                fail!("processor {other} did not start");
            }
            to_other(&mut checks, other, count);
            from_other(&mut checks, other, count);
        }
    }
    checks.finish()
}

/// Each NMI that is lost costs a second, so a test that failed does not try for long.
const ENOUGH: u64 = 3;

/// What became of NMIs that were sent one at a time.
#[derive(Default)]
struct Tally {
    lost: u64,
    doubled: u64,
}

impl Tally {
    /// Sends one and watches for it, and for another.
    fn one(&mut self, send: impl FnOnce(), count: impl Fn() -> u64) {
        if self.lost >= ENOUGH {
            return;
        }
        let before = count();
        send();
        if !load::until(|| count() != before) {
            self.lost += 1;
            return;
        }
        for round in 0..4 {
            load::exits(round);
        }
        self.doubled += count() - before - 1;
    }

    fn judge(&self, checks: &mut Checks, how: &str, sent: u64) {
        let Self { lost, doubled } = self;
        console::line(format_args!("nmi {how}: {sent} sent, {lost} lost, {doubled} doubled"));
        checks.that(
            (*lost, *doubled) == (0, 0),
            format_args!("each of {sent} NMIs {how} arrives once, {lost} lost, {doubled} doubled"),
        );
    }
}

fn by_self(checks: &mut Checks, count: u64) {
    let own = apic::id();
    let mut tally = Tally::default();
    for _ in 0..count {
        tally.one(|| apic::send(own, apic::NMI), || arrived(NMI));
    }
    tally.judge(checks, "by self", count);
}

fn by_pit(checks: &mut Checks, count: u64) {
    apic::pic(0);
    apic::route_pit(apic::id(), Some(apic::NMI));
    let mut tally = Tally::default();
    for round in 0..count {
        // Phases that a loop of exits does not share: 20 to 116 ticks of 838 ns.
        let ticks = 20 + (round * 7 % 97) as u16;
        tally.one(|| apic::pit(0, ticks), || arrived(NMI));
    }
    apic::route_pit(0, None);
    tally.judge(checks, "by PIT", count);
}

/// One CPUID about when an NMI from the PIT comes, and no exit after it: an NMI that arrives while that
/// exit is handled, up to its last instruction, must not wait for another exit. The CPUID comes
/// earlier and later by steps, so that the NMI meets every part of it.
fn in_last_exit(checks: &mut Checks, count: u64) {
    const TICKS: u16 = 100;
    const SWEEP: u64 = 900;
    let comes_within = |from: u64, limit: u64, before: u64| {
        while arrived(NMI) == before && cpu::rdtsc() - from < limit {
            core::hint::spin_loop();
        }
        arrived(NMI) != before
    };
    apic::pic(0);
    apic::route_pit(apic::id(), Some(apic::NMI));
    let (mut usual, mut late) = (0, 0);
    for round in 0..count + 16 {
        let before = arrived(NMI);
        let start = cpu::rdtsc();
        apic::pit(0, TICKS);
        if round < 16 {
            // How long it takes without any exit.
            let _ = comes_within(start, u64::MAX, before);
            usual = cpu::rdtsc() - start;
            continue;
        }
        // The NMI's own exit and handler are part of the usual time.
        let moment = (usual + round * 7 % SWEEP).saturating_sub(SWEEP);
        while cpu::rdtsc() - start < moment {
            core::hint::spin_loop();
        }
        let _ = cpu::cpuid(0, 0);
        late += u64::from(!comes_within(start, 4 * usual, before));
        let _ = load::until(|| arrived(NMI) != before);
        if late >= ENOUGH {
            break;
        }
    }
    apic::route_pit(0, None);
    console::line(format_args!("nmi in the last exit: {count} sent, {late} late"));
    checks.that(late == 0, format_args!("no NMI waits for a later exit, {late} did"));
}

fn wakes_halt(checks: &mut Checks) {
    apic::route_pit(apic::id(), Some(apic::NMI));
    let before = arrived(NMI);
    for _ in 0..10 {
        apic::pit(0, 2000);
        cpu::halt();
    }
    apic::route_pit(0, None);
    let woken = arrived(NMI) - before;
    checks.that(woken == 10, format_args!("an NMI ends HLT, {woken} of 10 times"));
}

static SEEN_INSIDE: AtomicU64 = AtomicU64::new(0);
static NESTED: AtomicBool = AtomicBool::new(false);

/// In the handler: sends another, exits, and notes how many came.
fn send_inside() {
    if NESTED.swap(true, Ordering::SeqCst) {
        return;
    }
    let before = arrived(NMI);
    apic::send(apic::id(), apic::NMI);
    for round in 0..16 {
        load::exits(round);
    }
    SEEN_INSIDE.store(arrived(NMI) - before, Ordering::SeqCst);
}

fn while_blocked(checks: &mut Checks) {
    let (mut early, mut wrong) = (0, 0);
    for _ in 0..100 {
        let before = arrived(NMI);
        NESTED.store(false, Ordering::SeqCst);
        fault::set_nmi_hook(Some(send_inside));
        apic::send(apic::id(), apic::NMI);
        let _ = load::until(|| arrived(NMI) >= before + 2);
        load::exits(0);
        fault::set_nmi_hook(None);
        early += SEEN_INSIDE.load(Ordering::SeqCst);
        wrong += u64::from(arrived(NMI) != before + 2);
    }
    checks.that(
        early == 0,
        format_args!("an NMI waits until the handler of another returns, {early} came early"),
    );
    checks.that(wrong == 0, format_args!("an NMI that waited comes once, {wrong} of 100 did not"));
}

/// In the handler: as [`send_inside`], then an exception whose IRET ends the blocking early
/// (SDM vol. 3, 7.7.1). The NMI that then arrives gets another stack.
fn return_inside() {
    if NESTED.load(Ordering::SeqCst) {
        return;
    }
    let usual = fault::interrupt_stack(2);
    fault::set_interrupt_stack(2, fault::spare_stack());
    send_inside();
    let before = arrived(NMI);
    let _ = catch(cpu::undefined);
    load::exits(0);
    SEEN_INSIDE.store(arrived(NMI) - before, Ordering::SeqCst);
    fault::set_interrupt_stack(2, usual);
}

fn after_inner_return(checks: &mut Checks) {
    let before = arrived(NMI);
    NESTED.store(false, Ordering::SeqCst);
    fault::set_nmi_hook(Some(return_inside));
    apic::send(apic::id(), apic::NMI);
    let _ = load::until(|| arrived(NMI) >= before + 2);
    fault::set_nmi_hook(None);
    let (inside, all) = (SEEN_INSIDE.load(Ordering::SeqCst), arrived(NMI) - before);
    checks.that(
        (inside, all) == (1, 2),
        format_args!("IRET of an exception lets the next NMI in, {inside} inside, {all} in all"),
    );
}

static STOP: AtomicBool = AtomicBool::new(false);

/// The other processor's part of [`to_other`].
fn exit_until_stopped() {
    load::forever(|| STOP.load(Ordering::SeqCst));
}

fn to_other(checks: &mut Checks, other: usize, count: u64) {
    STOP.store(false, Ordering::SeqCst);
    smp::run(other, exit_until_stopped);
    let mut tally = Tally::default();
    for _ in 0..count {
        tally.one(|| apic::send(other as u32, apic::NMI), || arrived_at(other, NMI));
    }
    STOP.store(true, Ordering::SeqCst);
    checks.that(smp::wait_idle(other), format_args!("cpu {other} goes on"));
    tally.judge(checks, "to another processor", count);
}

/// How many NMIs the other processor is to have sent.
static WANTED: AtomicU64 = AtomicU64::new(0);

/// The other processor's part of [`from_other`].
fn send_as_wanted() {
    let mut sent = 0;
    while !STOP.load(Ordering::SeqCst) {
        if sent < WANTED.load(Ordering::SeqCst) {
            sent += 1;
            apic::send(0, apic::NMI);
        }
        cpu::pause();
    }
}

fn from_other(checks: &mut Checks, other: usize, count: u64) {
    STOP.store(false, Ordering::SeqCst);
    WANTED.store(0, Ordering::SeqCst);
    smp::run(other, send_as_wanted);
    let mut tally = Tally::default();
    for wanted in 1..=count {
        tally.one(|| WANTED.store(wanted, Ordering::SeqCst), || arrived(NMI));
    }
    STOP.store(true, Ordering::SeqCst);
    checks.that(smp::wait_idle(other), format_args!("cpu {other} goes on"));
    tally.judge(checks, "from another processor", count);
}
