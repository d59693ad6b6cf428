//! The local APIC in both modes, the I/O APIC's timer pin, and the 8259 pair.

use crate::cpu;
use core::sync::atomic::{AtomicBool, Ordering};

/// IA32_APIC_BASE and its bits (SDM vol. 3, 11.4.4).
pub const APIC_BASE: u32 = 0x1b;
pub const X2APIC: u64 = 1 << 10;
const ENABLED: u64 = 1 << 11;
const X2_FIRST_MSR: u32 = 0x800;

/// Register offsets of the xAPIC page.
const ID: u32 = 0x20;
const EOI: u32 = 0xb0;
const SPURIOUS: u32 = 0xf0;
const ICR_LOW: u32 = 0x300;
const ICR_HIGH: u32 = 0x310;
const TIMER: u32 = 0x320;
const LINT0: u32 = 0x350;
const INITIAL_COUNT: u32 = 0x380;
const DIVIDE: u32 = 0x3e0;
const MASKED: u32 = 1 << 16;
const DELIVERY_PENDING: u32 = 1 << 12;
const EXTERNAL: u32 = 0x700;

/// Interrupt commands: delivery mode, level and trigger of ICR bits 8 to 15.
pub const NMI: u32 = 0x4400;
pub const INIT: u32 = 0x4500;
pub const START_UP: u32 = 0x4600;
pub const FIXED: u32 = 0x4000;

const SPURIOUS_VECTOR: u32 = 0xff;
/// Vectors of the 8259 pair; the others are the local APIC's.
pub const PIC_FIRST: u8 = 0x20;
const PIC_LAST: u8 = 0x2f;

static IS_X2: AtomicBool = AtomicBool::new(false);

/// Enables the local APIC of this processor, with its timer off and the 8259 on LINT0.
pub fn init() {
    let base = cpu::rdmsr(APIC_BASE);
    IS_X2.store(base & X2APIC != 0, Ordering::Relaxed);
    cpu::wrmsr(APIC_BASE, base | ENABLED);
    write(SPURIOUS, 0x100 | SPURIOUS_VECTOR);
    write(TIMER, MASKED);
}

/// As [`init`], on a further processor: in the mode that the first one is in.
pub fn init_further() {
    let mode = if IS_X2.load(Ordering::Relaxed) { X2APIC } else { 0 };
    cpu::wrmsr(APIC_BASE, cpu::rdmsr(APIC_BASE) | ENABLED | mode);
    write(SPURIOUS, 0x100 | SPURIOUS_VECTOR);
    write(TIMER, MASKED);
}

/// Whether CPUID promises x2APIC mode.
pub fn has_x2() -> bool {
    cpu::cpuid(1, 0)[2] & 1 << 21 != 0
}

/// Switches this processor to x2APIC mode, for good.
pub fn enable_x2() {
    cpu::wrmsr(APIC_BASE, cpu::rdmsr(APIC_BASE) | X2APIC | ENABLED);
    IS_X2.store(true, Ordering::Relaxed);
}

fn page() -> u64 {
    cpu::rdmsr(APIC_BASE) & 0x000f_ffff_ffff_f000
}

pub fn read(register: u32) -> u32 {
    if IS_X2.load(Ordering::Relaxed) {
        return cpu::rdmsr(X2_FIRST_MSR + register / 16) as u32;
    }
    // SAFETY: the APIC's page, identity-mapped; volatile, as a device.
    unsafe { ((page() + u64::from(register)) as *const u32).read_volatile() }
}

pub fn write(register: u32, value: u32) {
    if IS_X2.load(Ordering::Relaxed) {
        return cpu::wrmsr(X2_FIRST_MSR + register / 16, u64::from(value));
    }
    // SAFETY: as for `read`.
    unsafe { ((page() + u64::from(register)) as *mut u32).write_volatile(value) };
}

/// This processor's APIC id.
pub fn id() -> u32 {
    match IS_X2.load(Ordering::Relaxed) {
        true => read(ID),
        false => read(ID) >> 24,
    }
}

/// Sends an interrupt command to one processor and waits until it has left.
pub fn send(target: u32, command: u32) {
    if IS_X2.load(Ordering::Relaxed) {
        let value = u64::from(target) << 32 | u64::from(command);
        return cpu::wrmsr(X2_FIRST_MSR + ICR_LOW / 16, value);
    }
    write(ICR_HIGH, target << 24);
    write(ICR_LOW, command);
    for _ in 0..100_000 {
        if read(ICR_LOW) & DELIVERY_PENDING == 0 {
            return;
        }
        cpu::pause();
    }
}

/// Starts the timer once: `vector` after `count` bus cycles.
pub fn timer_once(vector: u8, count: u32) {
    write(DIVIDE, 0b1011);
    write(TIMER, u32::from(vector));
    write(INITIAL_COUNT, count);
}

/// Stops the timer.
pub fn timer_off() {
    write(INITIAL_COUNT, 0);
    write(TIMER, MASKED);
}

/// Ends an interrupt at its controller.
pub fn acknowledge(vector: u8) {
    match vector {
        PIC_FIRST..=PIC_LAST => {
            if vector >= PIC_FIRST + 8 {
                cpu::out8(0xa0, 0x20);
            }
            cpu::out8(0x20, 0x20);
        }
        _ if u32::from(vector) == SPURIOUS_VECTOR => {}
        _ => write(EOI, 0),
    }
}

/// Sets the 8259 pair to vectors 0x20 to 0x2f with only `lines` unmasked, passed on by LINT0.
pub fn pic(lines: u16) {
    for (port, value) in [
        (0x20, 0x11),
        (0xa0, 0x11),
        (0x21, PIC_FIRST),
        (0xa1, PIC_FIRST + 8),
        (0x21, 4),
        (0xa1, 2),
        (0x21, 1),
        (0xa1, 1),
        (0x21, !lines as u8),
        (0xa1, (!lines >> 8) as u8),
    ] {
        cpu::out8(port, value);
    }
    write(LINT0, if lines == 0 { MASKED } else { EXTERNAL });
}

/// Sets the PIT's channel 0: `mode` 0 one interrupt after `count`, 2 one every `count`.
pub fn pit(mode: u8, count: u16) {
    let [low, high] = count.to_le_bytes();
    cpu::out8(0x43, 0x30 | mode << 1);
    cpu::out8(0x40, low);
    cpu::out8(0x40, high);
}

const IO_APIC: u64 = 0xfec0_0000;
/// Where IRQ 0 arrives on every machine with the usual MADT override.
const TIMER_PIN: u32 = 2;

/// Lets the PIT raise `command` (vector and delivery mode) at processor `target` through the I/O
/// APIC, or nothing.
pub fn route_pit(target: u32, command: Option<u32>) {
    let low = command.unwrap_or(MASKED) & !0x4000;
    for (register, value) in [(0x10 + 2 * TIMER_PIN + 1, target << 24), (0x10 + 2 * TIMER_PIN, low)]
    {
        // SAFETY: the I/O APIC's index and data registers, identity-mapped; volatile, as a device.
        unsafe {
            (IO_APIC as *mut u32).write_volatile(register);
            ((IO_APIC + 0x10) as *mut u32).write_volatile(value);
        }
    }
}
