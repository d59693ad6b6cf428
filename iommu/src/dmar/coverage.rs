//! Whether units work for every device that is there.

use super::{Buses, Dmar, Segment, Structure};
use crate::fault::Source;

/// PCI configuration space of segment 0.
pub trait Config {
    /// The 32 bits at offset `register`, aligned and below 256; all ones where there is no function.
    fn read(&self, source: Source, register: u8) -> u32;
}

/// What no unit works for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Uncovered {
    /// A device of segment 0.
    Device(Source),
    /// Devices of a segment that no scope names, and nobody knows which there are.
    Segment(Segment),
}

/// Bridges as their configuration space describes them.
struct Bridges<'c, C>(&'c C);

/// The register of the header's type (PCI 3.0, 6.1), and the third of its bytes.
const HEADER: u8 = 0x0c;

fn kind(config: &impl Config, source: Source) -> u8 {
    config.read(source, HEADER).to_le_bytes()[2]
}

impl<C: Config> Buses for Bridges<'_, C> {
    fn behind(&self, segment: Segment, source: Source) -> Option<(u8, u8)> {
        /// Primary, secondary and subordinate bus (PCI-to-PCI Bridge 1.2, 3.2.5).
        const BUSES: u8 = 0x18;
        let is_bridge = segment == Segment(0) && kind(self.0, source) & 0x7f == 1;
        let [_, first, last, _] = self.0.read(source, BUSES).to_le_bytes();
        is_bridge.then_some((first, last))
    }
}

/// Every function that answers, on every bus.
fn functions(config: &impl Config) -> impl Iterator<Item = Source> {
    const MULTIPLE: u8 = 1 << 7;
    let exists = |source: &Source| config.read(*source, 0) != u32::MAX;
    (0..=u16::MAX).step_by(8).flat_map(move |slot| {
        let first = Source(slot);
        // Some devices of one function answer to all eight numbers. Where none is, all bits are ones.
        let is_single = kind(config, first) & MULTIPLE == 0;
        let last = slot | if is_single { 0 } else { 7 };
        (slot..=last).map(Source).filter(exists)
    })
}

impl Dmar<'_> {
    /// What no unit works for, of what there is in segment 0 and may be in others: those that the table names,
    /// and `more`.
    #[must_use]
    pub fn uncovered(
        &self,
        more: impl Iterator<Item = Segment>,
        config: &impl Config,
    ) -> Option<Uncovered> {
        const FIRST: Segment = Segment(0);
        let is_open =
            |segment: &Segment| !self.units().any(|unit| unit.rest && unit.segment == *segment);
        let named = self.structures().filter_map(Structure::segment).chain(more);
        if let Some(segment) = named.filter(|segment| *segment != FIRST).find(is_open) {
            return Some(Uncovered::Segment(segment));
        }
        if !is_open(&FIRST) {
            return None;
        }
        let mut all = functions(config).peekable();
        if all.peek().is_none() {
            return Some(Uncovered::Segment(FIRST));
        }
        let is_alone = |source: &Source| self.unit_of(FIRST, *source, &Bridges(config)).is_none();
        all.find(is_alone).map(Uncovered::Device)
    }
}
