//! The control port: what the host may know of the visor. The host writes an index and reads a
//! value; an unprivileged process has no access to ports. Nothing here is secret.

use core::sync::atomic::Ordering;

use ept::addr::{LARGE, PAGE};
use nested_vmx::exit::COUNTED_REASONS;
use nested_vmx::io::{CONTROL_PORT, DATA_PORT};
use ticket::port;

use crate::cpu::{high, low, size};
use crate::events;
use crate::machine::Machine;
use crate::memory::POOL;
use crate::percpu::PerCpu;
use crate::shootdown;
use crate::submit;

const UNKNOWN: u32 = port::ABSENT;
const COUNTERS: u32 = port::INDEX_COUNTER;
const COUNTERS_END: u32 = 0x200;
/// The high half of [`port::INDEX_TICKS`].
const TICKS_HIGH: u32 = port::INDEX_TICKS + 1;
const _: () = assert!(CONTROL_PORT == port::SELECT && DATA_PORT == port::DATA, "one interface");
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
        port::INDEX_MAGIC => port::MAGIC,
        port::INDEX_VERSION => port::VERSION,
        port::INDEX_BASE => low(machine.reservation.start() / MIB),
        port::INDEX_LENGTH => low(machine.reservation.len() / MIB),
        port::INDEX_PROCESSORS => machine.processors,
        port::INDEX_COUNTERS => u32::try_from(COUNTED_REASONS).unwrap_or(UNKNOWN),
        port::INDEX_EVENTS => events::violations(),
        port::INDEX_TABLES => machine.tables.count_tables(),
        port::INDEX_FREE => low(shootdown::lock(&POOL).left() / PAGE),
        port::INDEX_TICKS => wide(
            machine.each().fold(0, |sum, cpu| sum.wrapping_add(cpu.ticks.load(Ordering::Relaxed))),
        ),
        TICKS_HIGH => cpu.latched.get(),
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
