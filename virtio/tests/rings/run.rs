//! A VM, a device, and the visor in between.

use virtio::device::Device;
use virtio::layout::Layout;
use virtio::memory::{Failure, Missing};

use crate::driver::{BUFFER, Driver, answers, pattern};
use crate::host::Host;
use crate::world::{PART, PART_BYTES, World};

/// Something that happens.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// The driver offers a request on a queue, if it can: lengths of what it says and of what may be
    /// answered.
    Offer(usize, Vec<u32>, Vec<u32>),
    /// It notifies the device.
    Notify(usize),
    /// The device answers one that it has.
    Answer(usize, usize, u64),
    /// The VM is entered.
    Enter,
    /// After so many accesses a page is missing.
    Miss(u32),
}

pub(crate) struct Run {
    layout: Layout,
    /// The id of the device.
    pub(crate) kind: u64,
    pub(crate) world: World,
    pub(crate) device: Box<Device>,
    pub(crate) host: Host,
    pub(crate) drivers: Vec<Driver>,
    /// What came back: what was said, and what was answered.
    pub(crate) answers: Vec<(Vec<u8>, Vec<u8>)>,
    /// A different byte for each request.
    serial: u8,
}

pub(crate) const NETWORK: u64 = 1;
pub(crate) const BALLOON: u64 = 5;

/// Where a queue's number tells that it was notified.
const QUEUE_NOTIFY: u64 = 0x50;

/// Registers by their offsets with virtio-mmio (virtio 1.2, 4.2.2), and their offsets and bytes on PCI (4.1.4.3).
const ON_PCI: [(u64, u64, u8); 16] = [
    (0x10, 0x04, 4),
    (0x14, 0x00, 4),
    (0x20, 0x0c, 4),
    (0x24, 0x08, 4),
    (0x30, 0x16, 2),
    (0x38, 0x18, 2),
    (0x34, 0x18, 2),
    (0x44, 0x1c, 2),
    (0x60, 0x1000, 1),
    (0x70, 0x14, 1),
    (0x80, 0x20, 4),
    (0x84, 0x24, 4),
    (0x90, 0x28, 4),
    (0x94, 0x2c, 4),
    (0xa0, 0x30, 4),
    (0xa4, 0x34, 4),
];

impl Run {
    /// A transport that the VM has not used, with its part of the shared range.
    pub(crate) fn bare(layout: Layout) -> Self {
        let mut device = Box::new(Device::NONE);
        device.assign(PART, PART_BYTES, layout).unwrap();
        let (world, host) = (World::new(), Host::default());
        let (drivers, answers) = (Vec::new(), Vec::new());
        Self { layout, kind: NETWORK, world, device, host, drivers, answers, serial: 0 }
    }

    /// A network device with queues of these sizes, set up as virtio 1.2, 3.1.1 and 4.2.3.2 or 4.1.5.1 say.
    pub(crate) fn on(layout: Layout, sizes: &[u16]) -> Self {
        let mut run = Self::bare(layout);
        run.set_up(sizes);
        run
    }

    pub(crate) fn set_up(&mut self, sizes: &[u16]) {
        if self.layout == Layout::Mmio {
            assert_eq!(self.load(0x04), 2);
            assert_eq!(self.load(0x08), self.kind);
        }
        self.store(0x70, 0);
        self.store(0x70, 3);
        for half in [0, 1] {
            self.store(0x14, half);
            let features = self.load(0x10);
            self.store(0x24, half);
            self.store(0x20, features);
        }
        self.store(0x70, 11);
        self.drivers.clear();
        for (number, size) in (0..).zip(sizes) {
            let driver = Driver::new(&self.world, number, *size);
            let rings = driver.rings;
            self.drivers.push(driver);
            self.make_ready(number, u64::from(*size), rings);
        }
        self.store(0x70, 15);
    }

    pub(crate) fn make_ready(&mut self, number: u64, size: u64, rings: [u64; 3]) {
        self.store(0x30, number);
        assert_eq!(self.load(0x44), 0);
        assert_eq!(self.load(0x34), 64);
        self.store(0x38, size);
        for (ring, register) in rings.into_iter().zip([0x80, 0x90, 0xa0]) {
            self.store(register, ring & 0xffff_ffff);
            self.store(register + 4, ring >> 32);
        }
        self.store(0x44, 1);
    }

    /// Where a register of virtio-mmio is, and its bytes. There is one to notify each queue on PCI.
    pub(crate) fn place(&self, register: u64, value: u64) -> (u64, u8) {
        match self.layout {
            Layout::Mmio => (register, 4),
            Layout::Pci if register == QUEUE_NOTIFY => (0x3000 + 4 * value, 2),
            Layout::Pci => {
                let found = ON_PCI.iter().find(|(mmio, ..)| *mmio == register);
                found.map(|(_, offset, bytes)| (*offset, *bytes)).unwrap()
            }
        }
    }

    /// The register of virtio-mmio that the host takes a store for.
    fn register(&self, offset: u64, bytes: u8) -> Option<u64> {
        match self.layout {
            Layout::Mmio => (bytes == 4 && offset.is_multiple_of(4)).then_some(offset),
            Layout::Pci if bytes == 2 && offset >= 0x3000 => Some(QUEUE_NOTIFY),
            Layout::Pci => {
                let found = ON_PCI.iter().find(|(_, at, of)| (*at, *of) == (offset, bytes));
                found.map(|(mmio, ..)| *mmio)
            }
        }
    }

    /// The VM stores to a register of virtio-mmio, or to what that is on PCI.
    pub(crate) fn store(&mut self, register: u64, value: u64) {
        let (offset, bytes) = self.place(register, value);
        self.store_any(offset, bytes, value);
    }

    /// The VM loads such a register.
    pub(crate) fn load(&mut self, register: u64) -> u64 {
        let (offset, bytes) = self.place(register, 0);
        let value = self.device.loaded(offset, bytes, self.host.load(register, self.kind));
        self.pay();
        value
    }

    /// The host is told what it is owed.
    pub(crate) fn pay(&mut self) {
        while let Some((offset, queue)) = self.device.kick() {
            assert_eq!(offset, self.place(QUEUE_NOTIFY, queue).0);
            self.host.store(QUEUE_NOTIFY, queue);
        }
    }

    /// A store of any kind.
    pub(crate) fn store_any(&mut self, offset: u64, bytes: u8, value: u64) {
        let register = self.register(offset, bytes);
        let Self { world, device, host, .. } = self;
        let shown = again(|| device.store(offset, bytes, value, world));
        if let Some(register) = register {
            host.store(register, shown);
        }
        self.pay();
    }

    /// What is done before the VM is entered.
    pub(crate) fn complete(&mut self) {
        let Self { world, device, .. } = self;
        if device.is_waiting() {
            again(|| device.complete(world));
        }
    }

    /// The VM is entered, and handles what came back.
    pub(crate) fn enter(&mut self) {
        self.complete();
        for driver in &mut self.drivers {
            self.answers.extend(driver.collect(&self.world));
        }
        // The handler of the interrupt.
        let _ = self.load(0x60);
    }

    pub(crate) fn fail(&mut self) -> Option<Failure> {
        self.device.failure()
    }

    fn said(&mut self, lengths: &[u32]) -> Vec<Vec<u8>> {
        self.serial = self.serial.wrapping_add(1);
        let piece = |(at, length): (usize, &u32)| {
            let first = self.serial.wrapping_add(u8::try_from(at).unwrap().wrapping_mul(77));
            pattern(first, usize::try_from(*length).unwrap())
        };
        lengths.iter().enumerate().map(piece).collect()
    }

    pub(crate) fn step(&mut self, step: &Step) {
        match step {
            Step::Offer(queue, said, places) => {
                let said = self.said(said);
                let _ = self.drivers[*queue].offer(&self.world, &said, places);
            }
            Step::Notify(queue) => self.store(QUEUE_NOTIFY, u64::try_from(*queue).unwrap()),
            Step::Answer(queue, pick, share) => {
                self.host.queues[*queue].answer(&self.world, (*pick, *share));
            }
            Step::Enter => self.enter(),
            Step::Miss(after) => self.world.fuse.set(*after),
        }
    }

    /// Lets everything come to its end. Panics if it does not.
    pub(crate) fn finish(&mut self) {
        self.world.fuse.set(u32::MAX);
        for queue in 0..self.drivers.len() {
            self.step(&Step::Notify(queue));
        }
        for _ in 0..1000 {
            if self.drivers.iter().all(|driver| driver.pending.is_empty()) {
                return;
            }
            let told = std::mem::take(&mut self.host.told);
            for queue in told {
                for _ in 0..64 {
                    self.step(&Step::Answer(usize::try_from(queue).unwrap(), 0, 255));
                }
            }
            self.enter();
        }
        panic!("requests are never answered");
    }

    /// What must hold once everything came to its end.
    pub(crate) fn check(&mut self) {
        assert_eq!(self.fail(), None);
        assert!(!self.device.is_waiting());
        for (driver, queue) in self.drivers.iter().zip(&self.host.queues) {
            assert_eq!(driver.offered, queue.seen, "each request is seen once, in order");
        }
        let offered: usize = self.drivers.iter().map(|driver| driver.offered.len()).sum();
        assert_eq!(self.answers.len(), offered, "each request is answered once");
        for (said, bytes) in &self.answers {
            assert!(*bytes == answers(said, bytes.len()), "each gets its own answer");
        }
    }
}

/// Repeats what a page is missing for.
pub(crate) fn again<T>(mut call: impl FnMut() -> Result<T, Missing>) -> T {
    for _ in 0..3 {
        if let Ok(value) = call() {
            return value;
        }
    }
    panic!("one page was missing, and brought in");
}

/// Lengths that fit into the driver's buffers.
pub(crate) const LONGEST: u32 = BUFFER - 0x123;
