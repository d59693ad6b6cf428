//! An Intel 82574 network card in loopback (82574 data sheet, 10.2): what it sends, it receives.

use super::{Device, Ended, wait};
use crate::memory::{change, frames, read, write};
use crate::pci::{self, Function};

const CONTROL: u64 = 0x0000;
const RECEIVE_CONTROL: u64 = 0x0100;
const SEND_CONTROL: u64 = 0x0400;
/// Rings: base, base high, length, head, tail.
const RECEIVE_RING: u64 = 0x2800;
const SEND_RING: u64 = 0x3800;
const HEAD: u64 = 0x10;
const TAIL: u64 = 0x18;

const LINK_UP: u32 = 1 << 6;
const RESET: u32 = 1 << 26;
/// Enabled, every address, loopback, broadcast, no checksum of the frame.
const RECEIVES: u32 = 1 << 1 | 1 << 3 | 1 << 4 | 1 << 6 | 1 << 15 | 1 << 26;
const SENDS: u32 = 1 << 1 | 1 << 3;

/// End of packet, checksum of the frame, report status.
const SEND: u64 = (1 | 1 << 1 | 1 << 3) << 24;
const DONE: u64 = 1 << 32;
const ENTRIES: u32 = 8;
const BYTES: u64 = 1024;

pub(crate) struct E1000e {
    function: Function,
    base: u64,
    receive: u64,
    send: u64,
    next: u32,
    kept: u64,
}

impl E1000e {
    pub(crate) fn find() -> Option<Self> {
        let function = pci::by_id(0x8086, 0x10d3).next()?;
        function.start();
        let receive = frames(3);
        let card = Self {
            function,
            base: function.bar(0),
            receive,
            send: receive + 4096,
            next: 0,
            kept: receive + 2 * 4096,
        };
        card.set_up();
        Some(card)
    }

    fn set_up(&self) {
        let base = self.base;
        change(base + CONTROL, 0, RESET);
        let _ = wait(|| read::<u32>(base + CONTROL) & RESET == 0);
        change(base + CONTROL, 0, LINK_UP);
        for (ring, memory) in [(RECEIVE_RING, self.receive), (SEND_RING, self.send)] {
            write(base + ring, memory as u32);
            write(base + ring + 4, 0_u32);
            write(base + ring + 8, 16 * ENTRIES);
            write(base + ring + HEAD, 0_u32);
            write(base + ring + TAIL, 0_u32);
        }
        write(base + RECEIVE_CONTROL, RECEIVES);
        write(base + SEND_CONTROL, SENDS);
    }

    /// Sends the frame at `from`, to be received at `to`.
    pub(crate) fn transfer(&mut self, from: u64, to: u64) -> Ended {
        let entry = 16 * u64::from(self.next);
        self.next = (self.next + 1) % ENTRIES;
        write(self.receive + entry, [to, 0]);
        write(self.send + entry, [from, SEND | BYTES]);
        write(self.base + RECEIVE_RING + TAIL, self.next);
        write(self.base + SEND_RING + TAIL, self.next);
        let is_done = |ring: u64| read::<u64>(ring + entry + 8) & DONE != 0;
        let ended = wait(|| is_done(self.send));
        if ended == Ended::Hangs || !is_done(self.receive) {
            // A frame that could not be fetched is not received: its place is used again.
            self.restart();
            return Ended::Failed;
        }
        Ended::Done
    }

    /// Empties the rings.
    fn restart(&mut self) {
        self.next = 0;
        self.set_up();
    }
}

impl Device for E1000e {
    fn name(&self) -> &'static str {
        "e1000e"
    }

    fn function(&self) -> Function {
        self.function
    }

    fn bytes(&self) -> u64 {
        BYTES
    }

    fn take(&mut self, from: u64) -> Ended {
        self.transfer(from, self.kept)
    }

    fn store(&mut self, to: u64) -> Ended {
        self.transfer(self.kept, to)
    }
}
