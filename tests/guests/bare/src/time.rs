//! Time by the TSC, measured against the PIT.

use crate::cpu;
use core::sync::atomic::{AtomicU64, Ordering};

const PIT_HZ: u64 = 1_193_182;
const PIT_CHANNEL_2: u16 = 0x42;
const PIT_COMMAND: u16 = 0x43;
const SYSTEM_CONTROL: u16 = 0x61;
/// A machine whose PIT does not run is taken to be this fast.
const FALLBACK: u64 = 1000;

static TICKS_PER_US: AtomicU64 = AtomicU64::new(FALLBACK);

/// Measures the TSC over 5 ms of PIT channel 2, which raises no interrupt.
pub fn init() {
    let count = (PIT_HZ / 200) as u16;
    let [low, high] = count.to_le_bytes();
    let speaker = cpu::in8(SYSTEM_CONTROL) & !3;
    cpu::out8(SYSTEM_CONTROL, speaker);
    cpu::out8(PIT_COMMAND, 0b1011_0000);
    cpu::out8(PIT_CHANNEL_2, low);
    cpu::out8(PIT_CHANNEL_2, high);
    cpu::out8(SYSTEM_CONTROL, speaker | 1);
    let start = cpu::rdtsc();
    for _ in 0..10_000_000 {
        if cpu::in8(SYSTEM_CONTROL) & 1 << 5 != 0 {
            let ticks = (cpu::rdtsc() - start) / 5000;
            TICKS_PER_US.store(ticks.max(1), Ordering::Relaxed);
            break;
        }
    }
    cpu::out8(SYSTEM_CONTROL, speaker);
}

/// TSC ticks of `us` microseconds.
pub fn ticks(us: u64) -> u64 {
    us * TICKS_PER_US.load(Ordering::Relaxed)
}

/// Spins.
pub fn delay_us(us: u64) {
    let start = cpu::rdtsc();
    while cpu::rdtsc() - start < ticks(us) {
        cpu::pause();
    }
}

/// Waits until `ready`, at most `us` microseconds; whether it came.
pub fn wait_us(us: u64, mut ready: impl FnMut() -> bool) -> bool {
    let start = cpu::rdtsc();
    loop {
        if ready() {
            return true;
        }
        if cpu::rdtsc() - start > ticks(us) {
            return false;
        }
        cpu::pause();
    }
}
