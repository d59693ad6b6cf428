//! Device scopes (VT-d 4.1, 8.3.1): devices named by a start bus and a path of bridges.

use super::Segment;
use crate::fault::Source;

/// Which buses are behind bridges, from their configuration space.
pub trait Buses {
    /// The secondary and the last subordinate bus of the bridge `source`; `None` if it is none.
    fn behind(&self, segment: Segment, source: Source) -> Option<(u8, u8)>;
}

/// What a scope names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A device.
    Endpoint,
    /// A bridge, and all devices behind it.
    Hierarchy,
    /// An I/O APIC, with the source of its interrupts.
    IoApic,
    /// A timer block, with the source of its interrupts.
    Hpet,
    /// A device of ACPI's that is not on PCI, with the source of its requests.
    Acpi,
    /// What the specification had not when this was written.
    Other(u8),
}

/// The way to a device: device and function numbers, one pair a bridge, at last the device's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path<'t> {
    /// Where it begins.
    pub bus: u8,
    steps: &'t [[u8; 2]],
}

impl Path<'_> {
    /// The device that it leads to; `None` if a bridge on the way is none.
    #[must_use]
    pub fn end(self, segment: Segment, buses: &impl Buses) -> Option<Source> {
        let (last, bridges) = self.steps.split_last()?;
        let bus = bridges.iter().try_fold(self.bus, |bus, [device, function]| {
            Some(buses.behind(segment, Source::new(bus, *device, *function))?.0)
        });
        Some(Source::new(bus?, last[0], last[1]))
    }
}

/// A device scope.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scope<'t> {
    /// What it names.
    pub kind: Kind,
    /// Number of the I/O APIC, the timer block or ACPI's device.
    pub number: u8,
    /// Where it is.
    pub path: Path<'t>,
}

impl Scope<'_> {
    /// Whether it names the device `source` of `segment`.
    #[must_use]
    pub fn names(&self, segment: Segment, source: Source, buses: &impl Buses) -> bool {
        let Some(end) = self.path.end(segment, buses) else {
            return false;
        };
        let behind = || buses.behind(segment, end);
        end == source
            || self.kind == Kind::Hierarchy
                && behind().is_some_and(|(first, last)| (first..=last).contains(&source.bus()))
    }
}

/// Device scopes, all of which make sense.
#[derive(Clone, Copy, Debug)]
pub struct Scopes<'t> {
    bytes: &'t [u8],
}

impl<'t> Scopes<'t> {
    /// The scopes in `bytes`; `None` if one of them is cut short.
    pub(super) fn read(bytes: &'t [u8]) -> Option<Self> {
        let mut scopes = Self { bytes };
        while !scopes.bytes.is_empty() {
            let _ = scopes.next()?;
        }
        Some(Self { bytes })
    }
}

impl<'t> Iterator for Scopes<'t> {
    type Item = Scope<'t>;

    fn next(&mut self) -> Option<Scope<'t>> {
        let [kind, length] = *self.bytes.first_chunk()?;
        let (scope, rest) = self.bytes.split_at_checked(length.into())?;
        let [_, _, _, _, number, bus] = *scope.first_chunk()?;
        let (steps, []) = scope.get(6..)?.as_chunks() else {
            return None;
        };
        if steps.is_empty() {
            return None;
        }
        self.bytes = rest;
        let kind = match kind {
            1 => Kind::Endpoint,
            2 => Kind::Hierarchy,
            3 => Kind::IoApic,
            4 => Kind::Hpet,
            5 => Kind::Acpi,
            other => Kind::Other(other),
        };
        Some(Scope { kind, number, path: Path { bus, steps } })
    }
}
