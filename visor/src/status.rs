//! The control port: what the host may know of the visor. The host writes an index and reads a
//! value; an unprivileged process has no access to ports. Nothing here is secret.

use core::sync::atomic::Ordering;

use ept::addr::{LARGE, PAGE};
use nested_vmx::exit::COUNTED_REASONS;

use crate::cpu::{high, low, size};
use crate::events;
use crate::machine::Machine;
use crate::memory::POOL;
use crate::percpu::PerCpu;
use crate::shootdown;
use crate::submit;

const MAGIC: u32 = u32::from_le_bytes(*b"VISR");
/// Major and minor version of this interface.
const VERSION: u32 = ticket::port::VERSION;
const UNKNOWN: u32 = u32::MAX;
const COUNTERS: u32 = 0x100;
const COUNTERS_END: u32 = 0x200;
const MIB: u64 = LARGE / 2;

/// The value that `cpu` selected.
pub(crate) fn answer(cpu: &PerCpu) -> u32 {
    let Some(machine) = Machine::get() else {
        return UNKNOWN;
    };
    let wide = |value: u64| {
        cpu.latched.set(high(value));
        low(value)
    };
    match cpu.control.get() {
        0 => MAGIC,
        1 => VERSION,
        2 => low(machine.reservation.start() / MIB),
        3 => low(machine.reservation.len() / MIB),
        4 => machine.processors,
        5 => u32::try_from(COUNTED_REASONS).unwrap_or(UNKNOWN),
        6 => events::violations(),
        7 => machine.tables.count_tables(),
        8 => low(shootdown::lock(&POOL).left() / PAGE),
        0x80 => wide(
            machine.each().fold(0, |sum, cpu| sum.wrapping_add(cpu.ticks.load(Ordering::Relaxed))),
        ),
        0x81 => cpu.latched.get(),
        index if (COUNTERS..COUNTERS_END).contains(&index) => {
            let (reason, is_high) = ((index - COUNTERS) / 2, index & 1 != 0);
            let reason = size(reason.into());
            if reason >= COUNTED_REASONS {
                UNKNOWN
            } else if is_high {
                cpu.latched.get()
            } else {
                let of = |cpu: &PerCpu| {
                    cpu.exits.get(reason).map_or(0, |count| count.load(Ordering::Relaxed))
                };
                wide(machine.each().map(of).sum())
            }
        }
        index => submit::read(machine, index).unwrap_or(UNKNOWN),
    }
}
