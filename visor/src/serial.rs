//! Log output on a 16550 UART, polled. The host owns the port too: lines may interleave.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicU16, Ordering};

use boot::cmdline::{LogLevel, Serial};
use log::{LevelFilter, Log, Metadata, Record};
use spin::Mutex;

use crate::cpu::Port;

/// First I/O port of the UART; 0 for none.
static PORT: AtomicU16 = AtomicU16::new(0);
/// One line at a time.
static LINE: Mutex<()> = Mutex::new(());
/// What UARTs are clocked with, divided by 16.
const FASTEST: u32 = 115_200;
/// Polls before a byte is given up: a UART that never empties must not stop the machine.
const PATIENCE: u32 = 1 << 20;

/// A UART with this first port.
pub(crate) struct Uart(pub(crate) u16);

impl Write for Uart {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if byte == b'\n' {
                self.send(b'\r');
            }
            self.send(byte);
        }
        Ok(())
    }
}

impl Uart {
    pub(crate) fn register(&self, offset: u16) -> Port<u8> {
        Port::new(self.0 + offset)
    }

    #[expect(unsafe_code, reason = "a UART's ports")]
    pub(crate) fn send(&self, byte: u8) {
        for _ in 0..PATIENCE {
            // SAFETY: reading the line status has no effect on memory.
            if unsafe { self.register(5).read() } & 0x20 != 0 {
                break;
            }
        }
        // SAFETY: the transmit register of a UART has no effect on memory.
        unsafe { self.register(0).write(byte) }
    }

    /// 8 data bits, no parity, one stop bit, no interrupts, FIFOs on.
    #[expect(unsafe_code, reason = "a UART's ports")]
    pub(crate) fn program(&self, baud: u32) {
        let [low, high, ..] = (FASTEST / baud.max(1)).to_le_bytes();
        for (offset, value) in [(1, 0), (3, 0x83), (0, low), (1, high), (3, 3), (2, 7), (4, 3)] {
            // SAFETY: the registers of a UART have no effect on memory.
            unsafe { self.register(offset).write(value) }
        }
    }
}

struct SerialLog;

impl Log for SerialLog {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        let level = match record.level() {
            log::Level::Error => "error",
            log::Level::Warn => "warn",
            log::Level::Info => "info",
            log::Level::Debug | log::Level::Trace => "debug",
        };
        let _line = LINE.lock();
        print(format_args!("visor: [{level}] {}\n", record.args()));
    }

    fn flush(&self) {}
}

fn print(text: fmt::Arguments<'_>) {
    let port = PORT.load(Ordering::Relaxed);
    if port != 0 {
        let _ = Uart(port).write_fmt(text);
    }
}

/// First port of the UART that is logged to; 0 for none.
pub(crate) fn port() -> u16 {
    PORT.load(Ordering::Relaxed)
}

/// Begins to log to `serial`, messages of `level` and above it.
pub(crate) fn start(serial: Serial, level: LogLevel) {
    static LOG: SerialLog = SerialLog;
    match serial {
        Serial::Off => PORT.store(0, Ordering::Relaxed),
        Serial::Port { port, baud } => {
            Uart(port).program(baud);
            PORT.store(port, Ordering::Relaxed);
        }
    }
    // It is the same logger each time: a second call is not an error.
    let _ = log::set_logger(&LOG);
    log::set_max_level(match level {
        LogLevel::Off => LevelFilter::Off,
        LogLevel::Error => LevelFilter::Error,
        LogLevel::Warn => LevelFilter::Warn,
        LogLevel::Info => LevelFilter::Info,
        LogLevel::Debug => LevelFilter::Debug,
    });
}

/// Prints a last message although another processor may hold the line.
pub(crate) fn print_regardless(text: fmt::Arguments<'_>) {
    print(text);
}
