//! Ends of a run: power-off on every emulator, and the ways to reset the machine.

use crate::{console, cpu};
use core::fmt;

/// What all tests of a run came to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// No test ran.
    Nothing,
    /// Every test passed.
    Passed,
    /// One test failed at least.
    Failed,
}

impl Verdict {
    pub fn and(self, next: Self) -> Self {
        match (self, next) {
            (Self::Failed, _) | (_, Self::Failed) => Self::Failed,
            (_, next) => next,
        }
    }
}

/// Prints the failure of a test that cannot go on, and powers off.
pub fn fail(test: &str, why: fmt::Arguments) -> ! {
    console::line(format_args!("FAIL {test}: {why}"));
    off(Verdict::Failed)
}

/// Powers off: Bochs by the word on port 0x8900, QEMU by `isa-debug-exit` (status 33 when all
/// tests passed, 35 otherwise) or else by the PIIX4 sleep register.
pub fn off(verdict: Verdict) -> ! {
    console::drain();
    for byte in *b"Shutdown" {
        cpu::out8(0x8900, byte);
    }
    let code = match verdict {
        Verdict::Passed => 0x10,
        Verdict::Nothing | Verdict::Failed => 0x11,
    };
    cpu::out8(0xf4, code);
    cpu::out16(0x604, 0x2000);
    halt()
}

/// Stops this processor.
pub fn halt() -> ! {
    loop {
        cpu::cli();
        cpu::halt();
    }
}
