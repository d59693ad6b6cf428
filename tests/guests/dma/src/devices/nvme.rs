//! The first namespace of an NVMe controller (NVMe 1.4), by one queue pair.

use super::{Device, Ended, wait};
use crate::memory::{frames, read, write};
use crate::pci::{self, Function};

const NVME: u32 = 0x01_0802;
const CONFIGURATION: u64 = 0x14;
const STATUS: u64 = 0x1c;
const ADMIN_SIZES: u64 = 0x24;
const ADMIN_SUBMISSIONS: u64 = 0x28;
const ADMIN_COMPLETIONS: u64 = 0x30;
const DOORBELLS: u64 = 0x1000;

/// Enabled; entries of 64 and 16 bytes.
const ENABLE: u32 = 1 | 6 << 16 | 4 << 20;
const READY: u32 = 1;
const ENTRIES: u32 = 16;

const CREATE_SUBMISSIONS: u32 = 1;
const CREATE_COMPLETIONS: u32 = 5;
const IDENTIFY: u32 = 6;
const WRITE: u32 = 1;
const READ: u32 = 2;
const CONTROLLER: u32 = 1;
const SECTORS: u32 = 8;
const BYTES: u64 = 4096;

/// A submission queue and its completion queue.
struct Queue {
    number: u64,
    submissions: u64,
    completions: u64,
    next: u32,
    /// The phase of entries that are new.
    phase: bool,
}

/// Command words 10 to 12 and the rest that matters.
struct Command {
    code: u32,
    namespace: u32,
    address: u64,
    words: [u32; 3],
}

impl Queue {
    fn new(number: u64) -> Self {
        let submissions = frames(2);
        Self { number, submissions, completions: submissions + 4096, next: 0, phase: true }
    }

    /// Has the controller at `base` do one command.
    fn run(&mut self, base: u64, command: &Command) -> Ended {
        let entry = self.submissions + 64 * u64::from(self.next);
        write(entry, [command.code | self.next << 16, command.namespace, 0, 0, 0, 0]);
        write(entry + 24, [command.address, 0]);
        write(entry + 40, command.words);
        write(entry + 52, [0_u32; 3]);
        let completion = self.completions + 16 * u64::from(self.next) + 12;
        self.next = (self.next + 1) % ENTRIES;
        write(base + DOORBELLS + 8 * self.number, self.next);
        let phase = self.phase;
        if wait(|| (read::<u32>(completion) >> 16 & 1 == 1) == phase) == Ended::Hangs {
            return Ended::Hangs;
        }
        self.phase ^= self.next == 0;
        write(base + DOORBELLS + 8 * self.number + 4, self.next);
        if read::<u32>(completion) >> 17 == 0 { Ended::Done } else { Ended::Failed }
    }
}

pub(crate) struct Nvme {
    function: Function,
    base: u64,
    admin: Queue,
    blocks: Queue,
}

impl Nvme {
    pub(crate) fn find() -> Option<Self> {
        let function = pci::by_class(NVME).next()?;
        function.start();
        let (admin, blocks) = (Queue::new(0), Queue::new(1));
        let mut drive = Self { function, base: function.bar(0), admin, blocks };
        (drive.set_up() == Ended::Done).then_some(drive)
    }

    fn set_up(&mut self) -> Ended {
        let base = self.base;
        write(base + CONFIGURATION, 0_u32);
        let _ = wait(|| read::<u32>(base + STATUS) & READY == 0);
        write(base + ADMIN_SIZES, (ENTRIES - 1) << 16 | (ENTRIES - 1));
        for (register, address) in [
            (ADMIN_SUBMISSIONS, self.admin.submissions),
            (ADMIN_COMPLETIONS, self.admin.completions),
        ] {
            write(base + register, address as u32);
            write(base + register + 4, 0_u32);
        }
        write(base + CONFIGURATION, ENABLE);
        let _ = wait(|| read::<u32>(base + STATUS) & READY != 0);
        let size = (ENTRIES - 1) << 16 | 1;
        let completions = (CREATE_COMPLETIONS, self.blocks.completions, [size, 1, 0]);
        let submissions = (CREATE_SUBMISSIONS, self.blocks.submissions, [size, 1 | 1 << 16, 0]);
        for (code, address, words) in [completions, submissions] {
            let ended = self.admin.run(base, &Command { code, namespace: 0, address, words });
            if ended != Ended::Done {
                return ended;
            }
        }
        Ended::Done
    }

    /// Has it describe itself in the page at `to`: a store that it does in one piece, when it does it.
    pub(crate) fn identify(&mut self, to: u64) -> Ended {
        let words = [CONTROLLER, 0, 0];
        self.admin.run(self.base, &Command { code: IDENTIFY, namespace: 0, address: to, words })
    }

    fn transfer(&mut self, code: u32, address: u64) -> Ended {
        let words = [0, 0, SECTORS - 1];
        self.blocks.run(self.base, &Command { code, namespace: 1, address, words })
    }
}

impl Device for Nvme {
    fn name(&self) -> &'static str {
        "nvme"
    }

    fn function(&self) -> Function {
        self.function
    }

    fn bytes(&self) -> u64 {
        BYTES
    }

    fn take(&mut self, from: u64) -> Ended {
        self.transfer(WRITE, from)
    }

    fn store(&mut self, to: u64) -> Ended {
        self.transfer(READ, to)
    }
}
