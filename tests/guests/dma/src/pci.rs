//! PCI functions as the firmware has set them up: found, their registers, DMA switched on.

use bare::cpu;
use iommu::Source;
use iommu::dmar::{Buses, Segment};

const ADDRESS: u16 = 0xcf8;
const DATA: u16 = 0xcfc;

/// Registers of configuration space (PCI 3.0, 6.1).
const COMMAND: u8 = 0x04;
const CLASS: u8 = 0x08;
const HEADER_TYPE: u8 = 0x0c;
const BAR_0: u8 = 0x10;
const CAPABILITIES: u8 = 0x34;

/// Memory space and bus mastering, no interrupt pin.
const RUNS: u32 = 1 << 1 | 1 << 2 | 1 << 10;
/// Bus numbers of a bridge (PCI-to-PCI Bridge 1.2, 3.2.5).
const BUSES: u8 = 0x18;

/// The kind of header, and that of a bridge.
const TYPE: u32 = 0x7f << 16;
const BRIDGE: u32 = 1 << 16;
const IS_MULTIPLE: u32 = 1 << 23;
const IS_64_BIT: u32 = 0b100;
/// A message-signalled interrupt (PCI 3.0, 6.8.1).
const MSI: u8 = 0x05;

/// A function by its requester id: bus, device, function.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Function(pub(crate) u16);

impl Function {
    fn select(self, register: u8) {
        cpu::out32(ADDRESS, 1 << 31 | u32::from(self.0) << 8 | u32::from(register & 0xfc));
    }

    pub(crate) fn read(self, register: u8) -> u32 {
        self.select(register);
        cpu::in32(DATA)
    }

    pub(crate) fn write(self, register: u8, value: u32) {
        self.select(register);
        cpu::out32(DATA, value);
    }

    fn exists(self) -> bool {
        self.read(0) != u32::MAX
    }

    /// Where base address register `index` puts its memory.
    pub(crate) fn bar(self, index: u8) -> u64 {
        let register = BAR_0 + 4 * index;
        let low = self.read(register);
        let high = if low & 0b110 == IS_64_BIT { self.read(register + 4) } else { 0 };
        u64::from(high) << 32 | u64::from(low & !0xf)
    }

    /// Lets it be reached and do DMA.
    pub(crate) fn start(self) {
        self.write(COMMAND, self.read(COMMAND) & 0xffff | RUNS);
    }

    /// The capabilities with this number, by their offsets.
    pub(crate) fn capabilities(self, number: u8) -> impl Iterator<Item = u8> {
        let first = (self.read(CAPABILITIES) & 0xfc) as u8;
        // A list that does not end is cut.
        core::iter::successors(Some(first), move |at| Some((self.read(*at) >> 8 & 0xfc) as u8))
            .take(48)
            .take_while(|at| *at != 0)
            .filter(move |at| self.read(*at) as u8 == number)
    }

    /// Has it signal interrupts by writing `data` to `address`; whether it can.
    pub(crate) fn signal(self, address: u32, data: u16) -> bool {
        let Some(at) = self.capabilities(MSI).next() else {
            return false;
        };
        let control = self.read(at);
        let is_wide = control & 1 << 23 != 0;
        self.write(at + 4, address);
        if is_wide {
            self.write(at + 8, 0);
        }
        self.write(at + if is_wide { 12 } else { 8 }, u32::from(data));
        self.write(at, control & !(0b111 << 20) | 1 << 16);
        true
    }
}

/// The bridges of the machine.
pub(crate) struct Bridges;

impl Buses for Bridges {
    fn behind(&self, _: Segment, source: Source) -> Option<(u8, u8)> {
        let bridge = Function(source.0);
        let is_bridge = bridge.exists() && bridge.read(HEADER_TYPE) & TYPE == BRIDGE;
        let [_, secondary, subordinate, _] = bridge.read(BUSES).to_le_bytes();
        is_bridge.then_some((secondary, subordinate))
    }
}

/// Every function, on every bus.
pub(crate) fn all() -> impl Iterator<Item = Function> {
    let slots = (0..=u16::MAX).step_by(8).map(Function).filter(|first| first.exists());
    slots.flat_map(|first| {
        let count = if first.read(HEADER_TYPE) & IS_MULTIPLE != 0 { 8 } else { 1 };
        (first.0..=first.0 + (count - 1)).map(Function).filter(|function| function.exists())
    })
}

/// The functions with this vendor and device id.
pub(crate) fn by_id(vendor: u16, device: u16) -> impl Iterator<Item = Function> {
    let id = u32::from(device) << 16 | u32::from(vendor);
    all().filter(move |function| function.read(0) == id)
}

/// The functions of this class, subclass and interface.
pub(crate) fn by_class(class: u32) -> impl Iterator<Item = Function> {
    all().filter(move |function| function.read(CLASS) >> 8 == class)
}
