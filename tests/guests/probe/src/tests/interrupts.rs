//! `interrupts [count]`: maskable interrupts that arrive while the processor exits all the time are
//! neither lost nor doubled, and come exactly when RFLAGS.IF, the shadows of STI and MOV SS, and
//! the task priority let them.

use super::{Arguments, Machine, load};
use crate::fault::{arrived, last_rip};
use crate::report::{Checks, Outcome};
use crate::{apic, console, cpu};
use core::arch::asm;

const TIMER: u8 = 0x40;
const SELF: u8 = 0x41;
const PIT: u8 = apic::PIC_FIRST;

/// Each interrupt that is lost costs a second, so a test that failed does not try for long.
const ENOUGH: u64 = 3;

pub(super) fn run(_: &Machine, arguments: &Arguments) -> Outcome {
    let count = arguments.number(1000);
    let mut checks = Checks::new();
    apic::pic(0);
    one_at_a_time(&mut checks, "LAPIC timer", count, TIMER, |round| {
        apic::timer_once(TIMER, 200 + (round * 13 % 4001) as u32);
    });
    apic::timer_off();
    apic::pic(1);
    one_at_a_time(&mut checks, "PIT and 8259", count, PIT, |round| {
        apic::pit(0, 20 + (round * 7 % 97) as u16);
    });
    apic::pic(0);
    masked(&mut checks);
    by_priority(&mut checks);
    shadows(&mut checks);
    halts(&mut checks);
    checks.finish()
}

/// Each interrupt must come once before the next is asked for.
fn one_at_a_time(checks: &mut Checks, source: &str, count: u64, vector: u8, start: fn(u64)) {
    let (mut lost, mut doubled) = (0, 0);
    cpu::sti();
    for round in 0..count {
        if lost >= ENOUGH {
            break;
        }
        let before = arrived(vector);
        start(round);
        if !load::until(|| arrived(vector) != before) {
            lost += 1;
            continue;
        }
        load::exits(round);
        load::exits(round + 1);
        doubled += arrived(vector) - before - 1;
    }
    cpu::cli();
    console::line(format_args!(
        "interrupts by {source}: {count} sent, {lost} lost, {doubled} doubled"
    ));
    checks.that(
        (lost, doubled) == (0, 0),
        format_args!("each of {count} by {source} comes once, {lost} lost, {doubled} doubled"),
    );
}

fn send_self() {
    apic::send(apic::id(), apic::FIXED | u32::from(SELF));
}

/// Exits long enough for an interrupt to come if it may.
fn linger() {
    for round in 0..16 {
        load::exits(round);
    }
}

fn masked(checks: &mut Checks) {
    let (mut early, mut wrong) = (0, 0);
    for _ in 0..100 {
        let before = arrived(SELF);
        send_self();
        linger();
        early += arrived(SELF) - before;
        cpu::sti();
        linger();
        cpu::cli();
        wrong += u64::from(arrived(SELF) != before + 1);
    }
    checks.that(
        early == 0 && wrong == 0,
        format_args!("RFLAGS.IF holds interrupts back, {early} early, {wrong} not once"),
    );
}

fn by_priority(checks: &mut Checks) {
    let before = arrived(SELF);
    cpu::set_cr8(u64::from(SELF >> 4));
    send_self();
    cpu::sti();
    linger();
    let early = arrived(SELF) - before;
    let shown = cpu::cr8();
    cpu::set_cr8(0);
    linger();
    cpu::cli();
    let all = arrived(SELF) - before;
    checks.that(
        (early, all, shown) == (0, 1, u64::from(SELF >> 4)),
        format_args!("CR8 holds an interrupt back, {early} early, {all} in all, CR8 {shown}"),
    );
}

/// An interrupt that is pending at STI comes after the *next* instruction, which here exits: the
/// visor must neither prolong nor cut short the shadow. Of STI and MOV SS in a row only the first
/// need have one (SDM vol. 3, 7.8.3).
fn shadows(checks: &mut Checks) {
    let before = arrived(SELF);
    send_self();
    let after: u64;
    // SAFETY: the interrupt's handler returns here; CPUID's registers are declared.
    unsafe {
        asm!("push rbx", "lea r8, [rip + 2f]", "xor eax, eax", "sti", "cpuid", "2:", "cli", "pop rbx",
             out("r8") after, out("rax") _, out("rcx") _, out("rdx") _);
    }
    note(checks, "STI and an exit", before, [after, after]);
    let before = arrived(SELF);
    send_self();
    let (first, second): (u64, u64);
    // SAFETY: as above; SS is loaded with what it holds.
    unsafe {
        asm!("push rbx", "lea r8, [rip + 2f]", "lea r9, [rip + 3f]", "xor eax, eax", "mov ecx, ss",
             "sti", "mov ss, ecx", "2:", "cpuid", "3:", "cli", "pop rbx",
             out("r8") first, out("r9") second, out("rax") _, out("rcx") _, out("rdx") _);
    }
    note(checks, "STI, MOV SS and an exit", before, [first, second]);
}

fn note(checks: &mut Checks, how: &str, before: u64, after: [u64; 2]) {
    let (came, at) = (arrived(SELF) - before, last_rip());
    checks.that(
        came == 1 && after.contains(&at),
        format_args!("{how}: one interrupt right after, {came} at {at:#x}, not {after:x?}"),
    );
    linger();
}

fn halts(checks: &mut Checks) {
    let before = arrived(TIMER);
    for round in 0..50 {
        apic::timer_once(TIMER, 20_000 + round * 101);
        cpu::halt_until_interrupt();
        cpu::cli();
    }
    apic::timer_off();
    let woken = arrived(TIMER) - before;
    checks.that(woken == 50, format_args!("the timer ends HLT, {woken} of 50 times"));
}
