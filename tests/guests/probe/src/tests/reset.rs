//! `triple-fault`, `reset-kbd`, `reset-cf9`, `reset-92`: each must reboot the machine. A byte of
//! CMOS memory tells the second boot from the first.

use super::{Arguments, Machine};
use crate::report::{Outcome, fail};
use crate::{console, cpu, time};

const CMOS_INDEX: u16 = 0x70;
const CMOS_DATA: u16 = 0x71;
/// A byte that the firmware does not use.
const MARK_INDEX: u8 = 0x60;

pub(super) fn triple_fault(_: &Machine, _: &Arguments) -> Outcome {
    once(0xb1, || {
        let empty = cpu::Pseudo { limit: 0, base: 0 };
        cpu::lidt(&empty);
        cpu::undefined();
    })
}

pub(super) fn keyboard(_: &Machine, _: &Arguments) -> Outcome {
    once(0xb2, || {
        let _ = time::wait_us(10_000, || cpu::in8(0x64) & 2 == 0);
        cpu::out8(0x64, 0xfe);
    })
}

pub(super) fn chipset(_: &Machine, _: &Arguments) -> Outcome {
    once(0xb3, || {
        cpu::out8(0xcf9, 2);
        cpu::out8(0xcf9, 6);
    })
}

pub(super) fn fast(_: &Machine, _: &Arguments) -> Outcome {
    once(0xb4, || {
        let now = cpu::in8(0x92) & !1;
        cpu::out8(0x92, now);
        cpu::out8(0x92, now | 1);
    })
}

/// On the first boot resets and does not return; on the second passes.
fn once(mark: u8, reset: fn()) -> Outcome {
    if cmos() == mark {
        set_cmos(0);
        return Ok(());
    }
    set_cmos(mark);
    console::line(format_args!("resetting"));
    console::drain();
    reset();
    time::delay_us(100_000);
    set_cmos(0);
    fail!("the machine goes on");
}

fn cmos() -> u8 {
    cpu::out8(CMOS_INDEX, MARK_INDEX);
    cpu::in8(CMOS_DATA)
}

fn set_cmos(value: u8) {
    cpu::out8(CMOS_INDEX, MARK_INDEX);
    cpu::out8(CMOS_DATA, value);
}
