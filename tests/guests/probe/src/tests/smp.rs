//! `smp [N] [busy] [x2apic]`: starts processors 1 to N-1 as Linux does, sends each of them NMIs, and
//! stops and starts them again; with `busy` in the middle of exits. Bochs 2.7 forgets an INIT that
//! arrives in VMX root mode, where a processor would hold it back: there, no `busy` under a visor.

use super::stats::Direct;
use super::{Arguments, Machine, load};
use crate::fault::{GP, NMI, arrived_at, catch};
use crate::report::{Checks, Outcome};
use crate::{apic, console, paging, smp, time};
use control::Status;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

const RESTARTS: u32 = 3;
const NMIS: u64 = 10;
const PE_AND_PG: u32 = 1 << 31 | 1;
const ET: u32 = 1 << 4;

pub(super) fn run(_: &Machine, arguments: &Arguments) -> Outcome {
    let cpus = arguments.number(2).clamp(2, smp::MAX_CPUS as u64) as usize;
    let mut checks = Checks::new();
    if arguments.has("x2apic") {
        apic::enable_x2();
    }
    for cpu in 1..cpus {
        bring_up(&mut checks, cpu);
        ignores_start_up(&mut checks, cpu);
        is_kept_out(&mut checks, cpu);
    }
    nmis_to_all(&mut checks, cpus);
    let work = if arguments.has("busy") { exit_until_stopped } else { spin_until_stopped };
    for cpu in 1..cpus {
        restarts(&mut checks, cpu, work);
        waits_after_init(&mut checks, cpu);
    }
    checks.finish()
}

fn bring_up(checks: &mut Checks, cpu: usize) {
    let before = smp::starts(cpu);
    let Some(found) = smp::start(cpu) else {
        return checks.that(false, format_args!("processor {cpu} starts"));
    };
    console::line(format_args!(
        "cpu {cpu} started, cr0 {:#x} cr4 {:#x} efer {:#x}",
        found.cr0, found.cr4, found.efer
    ));
    // SDM vol. 3, table 10-1; CD and NW are what they were before INIT.
    let reset = found.cr0 & (PE_AND_PG | ET) == ET && (found.cr4, found.efer) == (0, 0);
    checks.that(reset, format_args!("cpu {cpu} starts in its reset state"));
    let starts = smp::starts(cpu) - before;
    checks.that(
        starts == 1,
        format_args!("cpu {cpu} starts once by two start-up interrupts, {starts} times"),
    );
    checks.that(answers(cpu), format_args!("cpu {cpu} has the APIC id {cpu}"));
}

static ANSWER: AtomicU32 = AtomicU32::new(0);

fn say_id() {
    ANSWER.store(apic::id(), Ordering::SeqCst);
}

/// Whether `cpu` runs a task and knows its own id.
fn answers(cpu: usize) -> bool {
    ANSWER.store(u32::MAX, Ordering::SeqCst);
    smp::run(cpu, say_id);
    smp::wait_idle(cpu) && ANSWER.load(Ordering::SeqCst) == cpu as u32
}

static STOP: AtomicBool = AtomicBool::new(false);

fn exit_until_stopped() {
    load::forever(|| STOP.load(Ordering::SeqCst));
}

fn spin_until_stopped() {
    while !STOP.load(Ordering::SeqCst) {
        core::hint::spin_loop();
    }
}

/// INIT reaches a processor that runs, and it starts afresh.
fn restarts(checks: &mut Checks, cpu: usize, work: fn()) {
    for _ in 0..RESTARTS {
        STOP.store(false, Ordering::SeqCst);
        smp::run(cpu, work);
        time::delay_us(50);
        let before = smp::starts(cpu);
        let arrives = smp::start(cpu).is_some();
        checks.that(
            arrives && smp::starts(cpu) == before + 1 && answers(cpu),
            format_args!("cpu {cpu} starts again after INIT while it was busy"),
        );
    }
}

/// A start-up interrupt without INIT has no effect (SDM vol. 3, 9.4.4.1).
fn ignores_start_up(checks: &mut Checks, cpu: usize) {
    let before = smp::starts(cpu);
    smp::start_up(cpu);
    time::delay_us(200);
    checks.that(
        smp::starts(cpu) == before && answers(cpu),
        format_args!("cpu {cpu} ignores a start-up interrupt while it runs"),
    );
}

/// INIT alone stops a processor.
fn waits_after_init(checks: &mut Checks, cpu: usize) {
    let before = smp::starts(cpu);
    smp::stop(cpu);
    time::delay_us(200);
    let quiet = smp::starts(cpu) == before;
    let again = smp::start(cpu).is_some();
    checks.that(quiet && again, format_args!("cpu {cpu} waits after INIT until it is started"));
}

static TARGET: AtomicU64 = AtomicU64::new(0);
static VECTOR: AtomicU32 = AtomicU32::new(0);

fn read_target() {
    let address = TARGET.load(Ordering::SeqCst);
    let result = catch(|| {
        // SAFETY: one load; a fault is caught.
        unsafe { (address as *const u64).read_volatile() }
    });
    let vector = result.err().map_or(u32::MAX, |fault| fault.vector.into());
    VECTOR.store(vector, Ordering::SeqCst);
}

/// Where there is a visor, this processor cannot read its memory either.
fn is_kept_out(checks: &mut Checks, cpu: usize) {
    let Ok(mut visor) = Status::find(Direct) else {
        return;
    };
    let (base, length) = visor.reservation();
    for physical in [base, base + length - paging::PAGE] {
        TARGET.store(paging::page(cpu, physical), Ordering::SeqCst);
        smp::run(cpu, read_target);
        let idle = smp::wait_idle(cpu);
        let vector = VECTOR.load(Ordering::SeqCst);
        checks.that(
            idle && vector == GP.into(),
            format_args!("cpu {cpu} gets #GP from the reservation, vector {vector}"),
        );
    }
}

fn nmis_to_all(checks: &mut Checks, cpus: usize) {
    STOP.store(false, Ordering::SeqCst);
    for cpu in 1..cpus {
        smp::run(cpu, exit_until_stopped);
    }
    let mut wrong = 0;
    for _ in 0..NMIS {
        for cpu in 1..cpus {
            let before = arrived_at(cpu, NMI);
            apic::send(cpu as u32, apic::NMI);
            let came = time::wait_us(100_000, || arrived_at(cpu, NMI) != before);
            time::delay_us(50);
            wrong += u32::from(!came || arrived_at(cpu, NMI) != before + 1);
        }
    }
    STOP.store(true, Ordering::SeqCst);
    let idle = (1..cpus).all(smp::wait_idle);
    checks
        .that(wrong == 0 && idle, format_args!("NMIs reach every processor once, {wrong} did not"));
}
