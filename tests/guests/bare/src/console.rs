//! Lines on COM1, polled.

use crate::cpu;
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, Ordering};

const COM1: u16 = 0x3f8;
const LINE_STATUS: u16 = COM1 + 5;
const HOLDING_EMPTY: u8 = 1 << 5;
const ALL_EMPTY: u8 = 1 << 6;
/// A UART that never gets ready (there is none) must not hang the program.
const PATIENCE: u32 = 1_000_000;

static LOCK: AtomicBool = AtomicBool::new(false);

/// 115200 baud, 8n1, FIFO on, no interrupts.
pub fn init() {
    for (offset, value) in [(1, 0), (3, 0x80), (0, 1), (1, 0), (3, 3), (2, 7), (4, 3)] {
        cpu::out8(COM1 + offset, value);
    }
}

/// Prints the program's name and the text as one line; lines of several processors do not mix.
pub fn line(text: fmt::Arguments) {
    while LOCK.swap(true, Ordering::Acquire) {
        cpu::pause();
    }
    // Writing to the port cannot fail, so neither can this.
    let _ = writeln!(Port, "{}: {text}", crate::name());
    LOCK.store(false, Ordering::Release);
}

/// Makes [`line`] usable for a processor that failed while it was printing.
pub fn break_lock() {
    LOCK.store(false, Ordering::Release);
}

/// Waits until the last byte is on the wire.
pub fn drain() {
    wait(ALL_EMPTY);
}

fn wait(bits: u8) {
    for _ in 0..PATIENCE {
        if cpu::in8(LINE_STATUS) & bits != 0 {
            return;
        }
    }
}

struct Port;

impl Write for Port {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            wait(HOLDING_EMPTY);
            cpu::out8(COM1, byte);
        }
        Ok(())
    }
}
