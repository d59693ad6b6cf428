//! Work that exits to a visor all the time, for events to arrive in.

use crate::{cpu, time};

const FEATURE_CONTROL: u32 = 0x3a;
const UNUSED_PORT: u16 = 0x80;

/// A few exits of different lengths; `round` varies which one is under way when.
pub(super) fn exits(round: u64) {
    match round % 4 {
        0 => {
            let _ = cpu::cpuid(0, 0);
        }
        1 => {
            let _ = cpu::in32(control::PORT);
        }
        2 => {
            let _ = cpu::rdmsr(FEATURE_CONTROL);
        }
        _ => cpu::out8(UNUSED_PORT, 0),
    }
    let _ = cpu::cpuid(1, 0);
}

/// Exits until `done`, at most a second: longer than an emulator's thread ever waits for its turn.
/// Whether it was done in time.
pub(super) fn until(mut done: impl FnMut() -> bool) -> bool {
    let mut round = 0;
    time::wait_us(1_000_000, || {
        round += 1;
        exits(round);
        done()
    })
}

/// Exits until `stop`.
pub(super) fn forever(stop: impl Fn() -> bool) {
    let mut round = 0;
    while !stop() {
        round += 1;
        exits(round);
    }
}
