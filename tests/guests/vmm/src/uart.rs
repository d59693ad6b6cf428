//! A serial port of the 16450 kind that only sends (National Semiconductor, PC16450C data sheet).

use std::io::Write;

/// Its first port, and its line of the interrupt controllers.
pub(crate) const FIRST: u16 = 0x3f8;
pub(crate) const LAST: u16 = FIRST + 7;
pub(crate) const IRQ: u32 = 4;

const DIVISOR_LATCH: u8 = 0x80;
const SENT_INTERRUPT: u8 = 2;
const LOOP: u8 = 0x10;

/// The port. Lines that it sends are printed with `guest: ` before them.
#[derive(Debug, Default)]
pub(crate) struct Uart {
    divisor: [u8; 2],
    interrupts: u8,
    line_control: u8,
    modem_control: u8,
    scratch: u8,
    sent: bool,
    text: Vec<u8>,
}

impl Uart {
    /// The guest writes; the line that this completes, if it does.
    pub(crate) fn write(&mut self, port: u16, value: u8) -> Option<String> {
        let latch = self.line_control & DIVISOR_LATCH != 0;
        match (port - FIRST, latch) {
            (index @ (0 | 1), true) => self.divisor[usize::from(index)] = value,
            (0, false) => {
                self.sent = true;
                return self.send(value);
            }
            (1, false) => {
                self.sent |= value & !self.interrupts & SENT_INTERRUPT != 0;
                self.interrupts = value & 0xf;
            }
            (3, _) => self.line_control = value,
            (4, _) => self.modem_control = value & 0x1f,
            (7, _) => self.scratch = value,
            _ => {}
        }
        None
    }

    /// The guest reads.
    pub(crate) fn read(&mut self, port: u16) -> u8 {
        let latch = self.line_control & DIVISOR_LATCH != 0;
        match (port - FIRST, latch) {
            (index @ (0 | 1), true) => self.divisor[usize::from(index)],
            (1, false) => self.interrupts,
            (2, _) if self.interrupting() => {
                self.sent = false;
                0x02
            }
            (2, _) => 0x01,
            (3, _) => self.line_control,
            (4, _) => self.modem_control,
            // Everything was sent.
            (5, _) => 0x60,
            (6, _) => self.modem_status(),
            (7, _) => self.scratch,
            _ => 0,
        }
    }

    /// Whether its interrupt line is raised.
    pub(crate) const fn interrupting(&self) -> bool {
        self.sent && self.interrupts & SENT_INTERRUPT != 0
    }

    /// In loop-back, outputs come back as inputs: RTS, DTR, OUT1 and OUT2 as CTS, DSR, RI and DCD.
    const fn modem_status(&self) -> u8 {
        if self.modem_control & LOOP == 0 {
            return 0xb0;
        }
        let control = self.modem_control;
        control << 4 & 0xc0 | control << 3 & 0x10 | control << 5 & 0x20
    }

    fn send(&mut self, byte: u8) -> Option<String> {
        match byte {
            b'\r' => None,
            b'\n' => {
                let line = String::from_utf8_lossy(&self.text).into_owned();
                self.text.clear();
                println!("guest: {line}");
                let _ = std::io::stdout().flush();
                Some(line)
            }
            other => {
                self.text.push(other);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{FIRST, Uart};

    #[test]
    fn linux_recognises_it_by_its_loop_back() {
        let mut uart = Uart::default();
        assert_eq!(uart.write(FIRST + 4, 0x1a), None);
        assert_eq!(uart.read(FIRST + 6) & 0xf0, 0x90);
    }

    #[test]
    fn each_byte_interrupts_once_where_that_is_asked_for() {
        let mut uart = Uart::default();
        assert_eq!(uart.write(FIRST, b'a'), None);
        assert!(!uart.interrupting());
        assert_eq!(uart.write(FIRST + 1, 2), None);
        assert!(uart.interrupting());
        assert_eq!((uart.read(FIRST + 2), uart.interrupting()), (2, false));
        assert_eq!(uart.read(FIRST + 2), 1);
        assert_eq!(uart.write(FIRST, b'\n'), Some("a".to_owned()));
        assert!(uart.interrupting());
    }

    #[test]
    fn the_divisor_hides_data_and_interrupts() {
        let mut uart = Uart::default();
        for (port, value) in [(3, 0x80), (0, 1), (1, 2), (3, 3)] {
            assert_eq!(uart.write(FIRST + port, value), None);
        }
        assert_eq!((uart.read(FIRST + 1), uart.read(FIRST + 3)), (0, 3));
        assert_eq!(uart.write(FIRST + 3, 0x83), None);
        assert_eq!((uart.read(FIRST), uart.read(FIRST + 1)), (1, 2));
    }
}
