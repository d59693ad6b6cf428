//! The local APIC, as far as the visor needs it: starting processors at boot, and stopping them
//! when the visor cannot go on. In between it is the host's.
#![expect(unsafe_code, reason = "memory-mapped registers")]

use core::ptr::with_exposed_provenance_mut;

use nested_vmx::msr::APIC_BASE;

use crate::cpu::{self, read_msr, size, write_msr};
use crate::memory::linear;

/// Bit 10 of IA32_APIC_BASE: x2APIC mode.
const X2APIC: u64 = 1 << 10;
/// Interrupt command register in x2APIC mode.
const X2APIC_ICR: u32 = 0x830;
/// Its offset in xAPIC mode.
const XAPIC_ICR: u64 = 0x300;
/// Its upper half, with the destination.
const XAPIC_ICR_HIGH: u64 = 0x310;
const PENDING: u32 = 1 << 12;
const ALL_BUT_SELF: u32 = 3 << 18;
const ASSERT: u32 = 1 << 14;

/// What an interrupt command delivers (SDM vol. 3, 12.6.1).
#[derive(Clone, Copy, Debug)]
pub(crate) enum Delivery {
    /// A non-maskable interrupt.
    Nmi,
    /// INIT.
    Init,
    /// A start-up IPI for this page.
    StartUp(u8),
}

/// Whom it goes to.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Destination {
    /// Every processor but this one.
    Others,
    /// The processor with this APIC id.
    One(u32),
}

/// Sends `delivery` and waits until it has left.
pub(crate) fn send(delivery: Delivery, to: Destination) {
    let (shorthand, id) = match to {
        Destination::Others => (ALL_BUT_SELF, 0),
        Destination::One(id) => (0, id),
    };
    let command = shorthand
        | ASSERT
        | match delivery {
            Delivery::Nmi => 4 << 8,
            Delivery::Init => 5 << 8,
            Delivery::StartUp(page) => 6 << 8 | u32::from(page),
        };
    let base = read_msr(APIC_BASE);
    if base & X2APIC != 0 {
        // SAFETY: the register exists in x2APIC mode; the command changes no state of this
        // processor.
        unsafe { write_msr(X2APIC_ICR, u64::from(id) << 32 | u64::from(command)) };
        return;
    }
    let page = base & 0x000f_ffff_ffff_f000;
    // The host may be between the two halves of a command of its own.
    let kept = register_read(page + XAPIC_ICR_HIGH);
    register_write(page + XAPIC_ICR_HIGH, id << 24);
    register_write(page + XAPIC_ICR, command);
    for _ in 0..100_000 {
        if register_read(page + XAPIC_ICR) & PENDING == 0 {
            break;
        }
    }
    register_write(page + XAPIC_ICR_HIGH, kept);
}

fn register_read(address: u64) -> u32 {
    let register = with_exposed_provenance_mut::<u32>(size(linear(address)));
    // SAFETY: the APIC's page is mapped by the visor's tables (below 4 GiB) and uncached by its
    // MTRR; reading these registers has no effect.
    unsafe { register.read_volatile() }
}

fn register_write(address: u64, value: u32) {
    let register = with_exposed_provenance_mut::<u32>(size(linear(address)));
    // SAFETY: as for reading; an interrupt command changes no state of this processor.
    unsafe { register.write_volatile(value) }
}

/// Makes every other processor look whether the machine is being stopped.
pub(crate) fn stop_others() {
    send(Delivery::Nmi, Destination::Others);
}

/// Waits for about `microseconds`: a read of port 0x80 takes about one.
pub(crate) fn wait(microseconds: u32) {
    for _ in 0..microseconds {
        let _ = cpu::port_in(0x80, nested_vmx::io::Size::Byte);
    }
}
