//! QEMU's teaching device (`docs/specs/edu`): a page of memory and a DMA engine, and an interrupt on
//! demand. It takes 0.1 s for a transfer, then does it at once.

use super::{Device, Ended, wait};
use crate::memory::{read, write};
use crate::pci::{self, Function};

const RAISE: u64 = 0x60;
const ACKNOWLEDGE: u64 = 0x64;
const SOURCE: u64 = 0x80;
const TARGET: u64 = 0x88;
const COUNT: u64 = 0x90;
const COMMAND: u64 = 0x98;
const RUN: u64 = 1;
const TO_MEMORY: u64 = 1 << 1;
/// Where its own memory is for [`SOURCE`] and [`TARGET`]; transfers must end below its last byte.
const OWN: u64 = 0x4_0000;
const BYTES: u64 = 2048;

pub(crate) struct Edu {
    function: Function,
    at: u64,
}

impl Edu {
    /// Each one there is.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        pci::by_id(0x1234, 0x11e8).map(|function| {
            function.start();
            Self { function, at: function.bar(0) }
        })
    }

    fn transfer(&mut self, [from, to, count, command]: [u64; 4]) -> Ended {
        write(self.at + SOURCE, from);
        write(self.at + TARGET, to);
        write(self.at + COUNT, count);
        write(self.at + COMMAND, RUN | command);
        wait(|| read::<u64>(self.at + COMMAND) & RUN == 0)
    }

    /// Stores the first `count` bytes of what it took at `to`.
    pub(crate) fn store_some(&mut self, to: u64, count: u64) -> Ended {
        self.transfer([OWN, to, count, TO_MEMORY])
    }

    /// Has it raise its interrupt once.
    pub(crate) fn interrupt(&mut self) {
        write(self.at + RAISE, 1_u32);
        write(self.at + ACKNOWLEDGE, 1_u32);
    }
}

impl Device for Edu {
    fn name(&self) -> &'static str {
        "edu"
    }

    fn function(&self) -> Function {
        self.function
    }

    /// Not on the first bus it is behind a bridge to conventional PCI, which speaks for all of its
    /// bus as device 0 (PCI Express to PCI/PCI-X Bridge 1.0, 2.3).
    fn source(&self) -> u16 {
        if self.function.0 < 0x100 { self.function.0 } else { self.function.0 & 0xff00 }
    }

    fn bytes(&self) -> u64 {
        BYTES
    }

    fn take(&mut self, from: u64) -> Ended {
        self.transfer([from, OWN, BYTES, 0])
    }

    fn store(&mut self, to: u64) -> Ended {
        self.store_some(to, BYTES)
    }
}
