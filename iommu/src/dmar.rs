//! The ACPI table of remapping units (VT-d 4.1, chapter 8): which there are, and for which devices.
//!
//! Its bytes are firmware's, and anything about them may be wrong: a table is taken as a whole, once all
//! of it makes sense, or not at all. Structures of kinds that the specification may yet add are skipped,
//! as it asks for (8.2).

mod coverage;
mod scopes;
#[cfg(test)]
mod tests;

use core::fmt;

use ept::addr::{PAGE, Span};

use crate::fault::Source;

pub use coverage::{Config, Uncovered};
pub use scopes::{Buses, Kind, Path, Scope, Scopes};

/// Most units of a machine that are taken.
pub const UNITS: usize = 64;

/// Bytes before the first structure: ACPI's header, address width, flags, reserved bytes.
const HEAD: usize = 48;

/// A group of buses that has its own numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Segment(pub u16);

/// A remapping unit (DRHD).
#[derive(Clone, Copy, Debug)]
pub struct Drhd<'t> {
    /// Its registers: a power of two of pages.
    pub registers: Span,
    /// The segment that it works for.
    pub segment: Segment,
    /// Whether it works for all devices of the segment that no other unit names.
    pub rest: bool,
    /// The devices that it works for.
    pub scopes: Scopes<'t>,
}

/// Memory that firmware has devices use behind the host's back (RMRR).
#[derive(Clone, Copy, Debug)]
pub struct Rmrr<'t> {
    /// The memory.
    pub memory: Span,
    /// The segment of the devices.
    pub segment: Segment,
    /// The devices.
    pub scopes: Scopes<'t>,
}

/// Ports (ATSR) or devices (SATC) that could use ATS. The visor lets none.
#[derive(Clone, Copy, Debug)]
pub struct Ats<'t> {
    /// ATSR: all root ports of the segment. SATC: the devices must have it.
    pub flag: bool,
    /// Their segment.
    pub segment: Segment,
    /// The ports or devices.
    pub scopes: Scopes<'t>,
}

/// A structure of the table.
#[derive(Clone, Copy, Debug)]
pub enum Structure<'t> {
    /// DRHD.
    Unit(Drhd<'t>),
    /// RMRR.
    Reserved(Rmrr<'t>),
    /// ATSR.
    Ports(Ats<'t>),
    /// RHSA: physical address of a unit's registers, and the NUMA node that it is near.
    Node(u64, u32),
    /// ANDD: number and name in ACPI of a device that is not on PCI.
    Name(u8, &'t [u8]),
    /// SATC.
    Integrated(Ats<'t>),
    /// What the specification had not when this was written.
    Other(u16),
}

/// The table, all of which makes sense.
#[derive(Clone, Copy, Debug)]
pub struct Dmar<'t> {
    bytes: &'t [u8],
}

/// What is wrong with a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DmarError {
    /// It ends before its first structure.
    Short,
    /// The structure at this offset is cut short, or too short for its kind.
    Structure(usize),
    /// A device scope of the structure at this offset is.
    Scope(usize),
    /// The structure at this offset says where registers or memory are, and nothing can be there.
    Place(usize),
    /// The unit at this offset has registers that another has, too.
    Shared(usize),
    /// There is no unit.
    NoUnit,
    /// There are more than [`UNITS`].
    TooMany,
}

impl fmt::Display for DmarError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DMAR: ")?;
        match self {
            Self::Short => f.write_str("the table is cut short"),
            Self::Structure(at) => write!(f, "the structure at {at:#x} is cut short"),
            Self::Scope(at) => write!(f, "the structure at {at:#x} has a broken device scope"),
            Self::Place(at) => write!(f, "the structure at {at:#x} names an impossible address"),
            Self::Shared(at) => write!(f, "the unit at {at:#x} has the registers of another"),
            Self::NoUnit => f.write_str("it lists no unit"),
            Self::TooMany => write!(f, "it lists more than {UNITS} units"),
        }
    }
}

impl<'t> Dmar<'t> {
    /// Takes the table with these bytes, whose length and checksum are right.
    ///
    /// # Errors
    /// [`DmarError`] for the first thing that makes no sense.
    pub fn parse(bytes: &'t [u8]) -> Result<Self, DmarError> {
        let dmar = Self { bytes };
        if bytes.len() < HEAD {
            return Err(DmarError::Short);
        }
        let mut count = 0;
        for (number, found) in dmar.walk().enumerate() {
            let (at, structure) = found?;
            if let Structure::Unit(unit) = structure {
                count += 1;
                if count > UNITS {
                    return Err(DmarError::TooMany);
                }
                let mut before = dmar.walk().take(number).filter_map(Result::ok);
                let shared = |other: &Drhd<'_>| other.registers.overlaps(unit.registers);
                if before.any(|(_, other)| other.unit().as_ref().is_some_and(shared)) {
                    return Err(DmarError::Shared(at));
                }
            }
        }
        if count == 0 { Err(DmarError::NoUnit) } else { Ok(dmar) }
    }

    /// Bits of the addresses that devices can use: 1 to 256, as firmware says.
    #[must_use]
    pub fn width(&self) -> u16 {
        self.bytes.get(36).map_or(0, |bits| u16::from(*bits)) + 1
    }

    /// Whether the platform remaps interrupts at all.
    #[must_use]
    pub fn remaps_interrupts(&self) -> bool {
        self.bytes.get(37).is_some_and(|flags| flags & 1 != 0)
    }

    /// Whether firmware asks that interrupt destinations of 32 bits are not used.
    #[must_use]
    pub fn opts_out_of_x2apic(&self) -> bool {
        self.bytes.get(37).is_some_and(|flags| flags & 0b11 == 0b11)
    }

    /// The structures in order.
    pub fn structures(&self) -> impl Iterator<Item = Structure<'t>> + use<'t> {
        self.walk().filter_map(Result::ok).map(|(_, structure)| structure)
    }

    /// The units in order.
    pub fn units(&self) -> impl Iterator<Item = Drhd<'t>> + use<'t> {
        self.structures().filter_map(|structure| structure.unit())
    }

    /// The memory that firmware reserves for devices, in order.
    pub fn reserved(&self) -> impl Iterator<Item = Rmrr<'t>> + use<'t> {
        self.structures().filter_map(|structure| match structure {
            Structure::Reserved(reserved) => Some(reserved),
            Structure::Unit(_)
            | Structure::Ports(_)
            | Structure::Node(..)
            | Structure::Name(..)
            | Structure::Integrated(_)
            | Structure::Other(_) => None,
        })
    }

    /// The number, in the order of [`Dmar::units`], of the unit that works for the device `source` of
    /// `segment`, given the buses behind bridges; `None` if none does.
    #[must_use]
    pub fn unit_of(&self, segment: Segment, source: Source, buses: &impl Buses) -> Option<usize> {
        let of_segment = |unit: &Drhd<'_>| unit.segment == segment;
        let names = |unit: &Drhd<'_>| {
            let mut scopes = unit.scopes;
            scopes.any(|scope| scope.names(segment, source, buses))
        };
        let named = self.units().position(|unit| of_segment(&unit) && names(&unit));
        named.or_else(|| self.units().position(|unit| of_segment(&unit) && unit.rest))
    }

    /// The structures with their offsets; after a broken one, nothing.
    fn walk(&self) -> impl Iterator<Item = Result<(usize, Structure<'t>), DmarError>> + use<'t> {
        let (bytes, mut at) = (self.bytes, HEAD);
        core::iter::from_fn(move || {
            let rest = bytes.get(at..).filter(|rest| !rest.is_empty())?;
            let here = at;
            let length = array(rest, 2).map_or(0, u16::from_le_bytes);
            let Some(body) = rest.get(..length.into()).filter(|body| body.len() >= 4) else {
                at = bytes.len();
                return Some(Err(DmarError::Structure(here)));
            };
            at += body.len();
            let read = Structure::read(body, here);
            if read.is_err() {
                at = bytes.len();
            }
            Some(read.map(|structure| (here, structure)))
        })
    }
}

impl<'t> Structure<'t> {
    /// The structure `body`, which lies at offset `at`.
    fn read(body: &'t [u8], at: usize) -> Result<Self, DmarError> {
        let kind = u16::from_le_bytes(array(body, 0).ok_or(DmarError::Structure(at))?);
        let read = match kind {
            0 => Self::unit_at(body, at)?.map(Self::Unit),
            1 => Self::reserved_at(body, at)?.map(Self::Reserved),
            2 => Ats::read(body, at)?.map(Self::Ports),
            3 => quad(body, 8)
                .zip(array(body, 16))
                .map(|(registers, node)| Self::Node(registers, u32::from_le_bytes(node))),
            4 => body.get(7).zip(body.get(8..)).and_then(|(number, name)| {
                let end = name.iter().position(|byte| *byte == 0)?;
                Some(Self::Name(*number, name.get(..end)?))
            }),
            5 => Ats::read(body, at)?.map(Self::Integrated),
            other => Some(Self::Other(other)),
        };
        read.ok_or(DmarError::Structure(at))
    }

    fn unit_at(body: &'t [u8], at: usize) -> Result<Option<Drhd<'t>>, DmarError> {
        let (Some([flags, size]), Some(segment)) = (array(body, 4), array(body, 6)) else {
            return Ok(None);
        };
        let (Some(base), Some(scopes)) = (quad(body, 8), body.get(16..)) else {
            return Ok(None);
        };
        let registers = Span::sized(base, PAGE << (size & 0xf));
        let aligned = registers.filter(|_| base != 0 && base.is_multiple_of(PAGE));
        Ok(Some(Drhd {
            registers: aligned.ok_or(DmarError::Place(at))?,
            segment: Segment(u16::from_le_bytes(segment)),
            rest: flags & 1 != 0,
            scopes: Scopes::read(scopes).ok_or(DmarError::Scope(at))?,
        }))
    }

    fn reserved_at(body: &'t [u8], at: usize) -> Result<Option<Rmrr<'t>>, DmarError> {
        let (Some(segment), Some(scopes)) = (array(body, 6), body.get(24..)) else {
            return Ok(None);
        };
        let (Some(base), Some(last)) = (quad(body, 8), quad(body, 16)) else {
            return Ok(None);
        };
        let memory = last.checked_add(1).and_then(|end| Span::new(base, end));
        Ok(Some(Rmrr {
            memory: memory.filter(|memory| !memory.is_empty()).ok_or(DmarError::Place(at))?,
            segment: Segment(u16::from_le_bytes(segment)),
            scopes: Scopes::read(scopes).ok_or(DmarError::Scope(at))?,
        }))
    }

    /// Whose devices it is about.
    const fn segment(self) -> Option<Segment> {
        match self {
            Self::Unit(Drhd { segment, .. })
            | Self::Reserved(Rmrr { segment, .. })
            | Self::Ports(Ats { segment, .. })
            | Self::Integrated(Ats { segment, .. }) => Some(segment),
            Self::Node(..) | Self::Name(..) | Self::Other(_) => None,
        }
    }

    const fn unit(self) -> Option<Drhd<'t>> {
        if let Self::Unit(unit) = self { Some(unit) } else { None }
    }
}

impl<'t> Ats<'t> {
    fn read(body: &'t [u8], at: usize) -> Result<Option<Self>, DmarError> {
        let (Some(segment), Some(scopes)) = (array(body, 6), body.get(8..)) else {
            return Ok(None);
        };
        Ok(Some(Self {
            flag: body.get(4).is_some_and(|flags| flags & 1 != 0),
            segment: Segment(u16::from_le_bytes(segment)),
            scopes: Scopes::read(scopes).ok_or(DmarError::Scope(at))?,
        }))
    }
}

/// The `N` bytes at offset `at`.
fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

fn quad(bytes: &[u8], at: usize) -> Option<u64> {
    array(bytes, at).map(u64::from_le_bytes)
}
