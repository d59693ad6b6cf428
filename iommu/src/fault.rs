//! What units refused: fault records (VT-d 4.1, 11.4.9 and chapter 7).

use core::fmt;

use crate::registers::{self as at, Registers};

/// A device, as PCI names it in a request: bus, device, function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Source(pub u16);

impl Source {
    /// The device at these numbers; of `device` 5 bits count, of `function` 3.
    #[must_use]
    pub fn new(bus: u8, device: u8, function: u8) -> Self {
        Self(u16::from(bus) << 8 | u16::from(device & 0x1f) << 3 | u16::from(function & 7))
    }

    /// Its bus.
    #[must_use]
    pub const fn bus(self) -> u8 {
        self.0.to_be_bytes()[0]
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [bus, rest] = self.0.to_be_bytes();
        write!(f, "{bus:02x}:{:02x}.{}", rest >> 3, rest & 7)
    }
}

/// What a device tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// To read the page at this address.
    Read(u64),
    /// To write the page at this address.
    Write(u64),
    /// Something of ATS or page requests, at this address.
    Other(u64),
    /// To raise the interrupt of this index; for one in compatibility format the index says nothing.
    Interrupt(u16),
}

/// Why it was refused, from the fault reason of the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The device has no domain.
    NoDomain,
    /// The address is beyond what is translated.
    Beyond,
    /// No right to write, or nothing there.
    Write,
    /// No right to read, or nothing there.
    Read,
    /// A translated or a translation request, which all are refused.
    Ats,
    /// The interrupt table has no such entry.
    NoInterrupt,
    /// The interrupt is another device's.
    Forged,
    /// The interrupt is in compatibility format.
    Compatibility,
    /// A table is not as the unit would have it: this is an error of the visor's or of the unit's.
    Table(u8),
    /// The specification has no such reason.
    Unknown(u8),
}

impl Reason {
    /// Its number in the audit log, and the code of a reason that has one.
    const fn number(self) -> (u8, u8) {
        match self {
            Self::NoDomain => (1, 0),
            Self::Beyond => (2, 0),
            Self::Write => (3, 0),
            Self::Read => (4, 0),
            Self::Ats => (5, 0),
            Self::NoInterrupt => (6, 0),
            Self::Forged => (7, 0),
            Self::Compatibility => (8, 0),
            Self::Table(code) => (9, code),
            Self::Unknown(code) => (10, code),
        }
    }

    /// The meaning of a fault reason (VT-d 4.1, 7.1.3, tables 26 to 28).
    const fn of(code: u8) -> Self {
        match code {
            0x1 | 0x2 => Self::NoDomain,
            0x4 => Self::Beyond,
            0x5 => Self::Write,
            0x6 => Self::Read,
            0xd => Self::Ats,
            0x20..=0x22 => Self::NoInterrupt,
            0x25 => Self::Compatibility,
            0x26 => Self::Forged,
            0x3 | 0x7..=0xc | 0xe..=0x10 | 0x23 | 0x24 | 0x27..=0x94 => Self::Table(code),
            0 | 0x11..=0x1f | 0x95.. => Self::Unknown(code),
        }
    }
}

/// One refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Who.
    pub source: Source,
    /// What.
    pub access: Access,
    /// Why not.
    pub reason: Reason,
}

impl Fault {
    /// What a record says; `None` if it is not in use.
    #[must_use]
    pub fn decode(low: u64, high: u64) -> Option<Self> {
        const USED: u64 = 1 << 63;
        const READ: u64 = 1 << 62;
        const OTHER: u64 = 1 << 28;
        if high & USED == 0 {
            return None;
        }
        let [a, b, _, _, code, ..] = high.to_le_bytes();
        let [.., c, d] = low.to_le_bytes();
        let address = low & !0xfff;
        let access = match (code, high & READ != 0, high & OTHER != 0) {
            (0x20..=0x2f, _, _) => Access::Interrupt(u16::from_le_bytes([c, d])),
            (_, _, true) => Access::Other(address),
            (_, true, false) => Access::Read(address),
            (_, false, false) => Access::Write(address),
        };
        let source = Source(u16::from_le_bytes([a, b]));
        Some(Self { source, access, reason: Reason::of(code) })
    }
}

impl Fault {
    /// The two words of it in the audit log: the device in bits 15:0, the [`Reason`]'s number in bits
    /// 23:16, its code in bits 39:32; and the address, or the interrupt's index.
    #[must_use]
    pub fn words(self) -> [u64; 2] {
        let (number, code) = self.reason.number();
        let what = match self.access {
            Access::Read(address) | Access::Write(address) | Access::Other(address) => address,
            Access::Interrupt(index) => u64::from(index),
        };
        let device = u64::from(self.source.0);
        [device | u64::from(number) << 16 | u64::from(code) << 32, what]
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "device {}: ", self.source)?;
        match self.access {
            Access::Read(address) => write!(f, "read of {address:#x}"),
            Access::Write(address) => write!(f, "write of {address:#x}"),
            Access::Other(address) => write!(f, "ATS request for {address:#x}"),
            Access::Interrupt(index) => write!(f, "interrupt {index}"),
        }?;
        match self.reason {
            Reason::NoDomain => f.write_str(" refused: no domain"),
            Reason::Beyond => f.write_str(" refused: beyond all memory"),
            Reason::Write | Reason::Read => f.write_str(" refused: not its memory"),
            Reason::Ats => f.write_str(" refused: ATS is off"),
            Reason::NoInterrupt => f.write_str(" refused: no such interrupt"),
            Reason::Forged => f.write_str(" refused: another device's"),
            Reason::Compatibility => f.write_str(" refused: in compatibility format"),
            Reason::Table(code) => write!(f, " failed: broken table, reason {code:#x}"),
            Reason::Unknown(code) => write!(f, " failed: unknown reason {code:#x}"),
        }
    }
}

/// What one look at the records gave.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Records that were read.
    pub records: u32,
    /// Whether there were more faults than records.
    pub lost: bool,
}

/// When units are to be asked for what they have refused.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Looks {
    last: u64,
    skipped: u32,
}

impl Looks {
    /// Whether they are to be asked `now`, by a clock that others may set to anything: when a millisecond or so
    /// has passed, and at the latest the [`MOST`](Self::MOST)th time that somebody wants to know. A clock that
    /// was set back delays nothing.
    pub(crate) const fn are_due(&mut self, now: u64) -> bool {
        const PERIOD: u64 = 1 << 21;
        self.skipped += 1;
        let due = now.wrapping_sub(self.last) >= PERIOD || self.skipped >= Self::MOST;
        if due {
            *self = Self { last: now, skipped: 0 };
        }
        due
    }

    pub(crate) const MOST: u32 = 64;
}

/// Reads and frees the records of a unit, each once, whatever devices do meanwhile.
pub(crate) fn poll(
    registers: &mut impl Registers,
    (first, count): (u64, u64),
    mut each: impl FnMut(Fault),
) -> Faults {
    let mut faults = Faults::default();
    let status = registers.read32(at::FAULT_STATUS);
    if status & at::PENDING != 0 {
        let [_, start, ..] = status.to_le_bytes();
        for number in 0..count {
            let record = first + (u64::from(start) + number) % count * 16;
            let (low, high) = (registers.read64(record), registers.read64(record + 8));
            let Some(fault) = Fault::decode(low, high) else {
                break;
            };
            registers.write32(record + 12, 1 << 31);
            faults.records += 1;
            each(fault);
        }
    }
    if status & at::OVERFLOW != 0 {
        registers.write32(at::FAULT_STATUS, at::OVERFLOW);
        faults.lost = true;
    }
    faults
}
