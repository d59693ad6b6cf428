//! A virtio disk on PCI (virtio 1.2, 4.1 and 5.2) that uses the addresses of the platform.

use super::{Device, Ended, wait};
use crate::memory::{frames, read, write};
use crate::pci::{self, Function};

const VENDOR_CAPABILITY: u8 = 0x09;
const COMMON: u32 = 1;
const NOTIFY: u32 = 2;

/// Registers of the common configuration.
const FEATURE_SELECT: u64 = 0x08;
const FEATURE: u64 = 0x0c;
const STATUS: u64 = 0x14;
const QUEUE_SELECT: u64 = 0x16;
const QUEUE_SIZE: u64 = 0x18;
const QUEUE_ENABLE: u64 = 0x1c;
const QUEUE_NOTIFY_OFFSET: u64 = 0x1e;
const QUEUE_PARTS: u64 = 0x20;

/// Version 1 and the platform's addresses: features 32 and 33.
const FEATURES: u32 = 0b11;
const DRIVER: u8 = 1 | 2;
const FEATURES_OK: u8 = 8;
const DRIVER_OK: u8 = 4;

const ENTRIES: u16 = 16;
const NEXT: u16 = 1;
const WRITABLE: u16 = 2;
const READ: u32 = 0;
const WRITE: u32 = 1;
const BYTES: u32 = 4096;

pub(crate) struct Virtio {
    function: Function,
    doorbell: u64,
    /// Descriptors, and the two rings, a page each; then a page for headers.
    queue: u64,
    used: u16,
}

impl Virtio {
    pub(crate) fn find() -> Option<Self> {
        let function = pci::by_id(0x1af4, 0x1042).next()?;
        function.start();
        let place = |kind| {
            let mut found = function.capabilities(VENDOR_CAPABILITY);
            let at = found.find(|at| function.read(*at) >> 24 == kind)?;
            let bar = function.bar((function.read(at + 4) & 7) as u8);
            Some((at, bar + u64::from(function.read(at + 8))))
        };
        let (_, common) = place(COMMON)?;
        let (capability, notify) = place(NOTIFY)?;
        let queue = frames(4);
        set_up(common, queue)?;
        let offset = u64::from(read::<u16>(common + QUEUE_NOTIFY_OFFSET));
        let doorbell = notify + offset * u64::from(function.read(capability + 16));
        Some(Self { function, doorbell, queue, used: 0 })
    }

    /// One request of three parts: header, data, status.
    fn transfer(&mut self, kind: u32, address: u64) -> Ended {
        let header = self.queue + 3 * 4096;
        write(header, [kind, 0, 0, 0]);
        write(header + 16, 0xff_u8);
        let data = if kind == READ { NEXT | WRITABLE } else { NEXT };
        let parts = [(header, 16, NEXT), (address, BYTES, data), (header + 16, 1, WRITABLE)];
        for (index, (at, length, flags)) in (0_u16..).zip(parts) {
            let entry = self.queue + 16 * u64::from(index);
            write(entry, at);
            write(entry + 8, length);
            write(entry + 12, [flags, index + 1]);
        }
        let (available, used) = (self.queue + 4096, self.queue + 2 * 4096);
        write(available + 4 + 2 * u64::from(self.used % ENTRIES), 0_u16);
        self.used = self.used.wrapping_add(1);
        write(available + 2, self.used);
        write(self.doorbell, 0_u16);
        match wait(|| read::<u16>(used + 2) == self.used) {
            Ended::Done if read::<u8>(header + 16) != 0 => Ended::Failed,
            ended => ended,
        }
    }
}

/// Has the device take its features and its queue; `None` if it takes less.
fn set_up(common: u64, queue: u64) -> Option<()> {
    write(common + STATUS, 0_u8);
    write(common + STATUS, DRIVER);
    for (half, features) in [(0_u32, 0_u32), (1, FEATURES)] {
        write(common + FEATURE_SELECT, half);
        write(common + FEATURE, features);
    }
    write(common + STATUS, DRIVER | FEATURES_OK);
    if read::<u8>(common + STATUS) & FEATURES_OK == 0 {
        return None;
    }
    write(common + QUEUE_SELECT, 0_u16);
    write(common + QUEUE_SIZE, ENTRIES);
    for (index, at) in (0..6).zip([0, 1, 2].into_iter().flat_map(|part| [queue + 4096 * part, 0])) {
        write(common + QUEUE_PARTS + 4 * index, at as u32);
    }
    write(common + QUEUE_ENABLE, 1_u16);
    write(common + STATUS, DRIVER | FEATURES_OK | DRIVER_OK);
    Some(())
}

impl Device for Virtio {
    fn name(&self) -> &'static str {
        "virtio"
    }

    fn function(&self) -> Function {
        self.function
    }

    fn bytes(&self) -> u64 {
        u64::from(BYTES)
    }

    fn take(&mut self, from: u64) -> Ended {
        self.transfer(WRITE, from)
    }

    fn store(&mut self, to: u64) -> Ended {
        self.transfer(READ, to)
    }
}
