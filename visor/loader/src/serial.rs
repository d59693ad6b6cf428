//! Lines on the serial port that the visor logs to, and has set up.

use core::arch::asm;
use core::fmt::{self, Write};

unsafe extern "C" {
    /// First port of the UART, 0 for none: the last word of the blob's header, which the visor fills
    /// in before it enters the loader.
    static serial_port: u16;
}

fn port() -> u16 {
    // SAFETY: the word is aligned, and nothing writes it while the loader runs.
    unsafe { serial_port }
}

/// Offset of the line status register, and its bit "transmitter holding register empty".
const STATUS: u16 = 5;
const EMPTY: u8 = 1 << 5;
/// How often the status is read before a byte is written regardless: about 10 ms.
const PATIENCE: u32 = 10_000;

/// The port.
pub(crate) struct Serial;

/// Writes `text` as a line of the loader's.
pub(crate) fn line(text: fmt::Arguments<'_>) {
    // The port cannot fail, and there is no other place to report to.
    let _written = write!(Serial, "loader: {text}\r\n");
}

impl Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if port() == 0 {
            return Ok(());
        }
        for byte in text.bytes() {
            let _spins = (0..PATIENCE).take_while(|_| status() & EMPTY == 0).count();
            send(byte);
        }
        Ok(())
    }
}

fn status() -> u8 {
    let status: u8;
    // SAFETY: reading the line status has no effect on memory, and none that matters on the port.
    unsafe {
        asm!("in al, dx", out("al") status, in("dx") port() + STATUS,
            options(nomem, nostack, preserves_flags));
    }
    status
}

fn send(byte: u8) {
    // SAFETY: the port takes a byte; it has no access to memory.
    unsafe {
        asm!("out dx, al", in("al") byte, in("dx") port(),
            options(nomem, nostack, preserves_flags));
    }
}
