//! The table of remapping units: two bytes that make up the buses behind bridges, then the table.
#![no_main]

use ept::addr::{PAGE, PHYSICAL_END, Span};
use iommu::Source;
use iommu::dmar::{Buses, Dmar, Segment, Structure, UNITS};

/// Every device whose number has these bits is a bridge to the buses from its own number on.
struct Bridges(u8, u8);

impl Buses for Bridges {
    fn behind(&self, _: Segment, source: Source) -> Option<(u8, u8)> {
        let [bus, device] = source.0.to_be_bytes();
        let first = bus.wrapping_add(self.1);
        (device & self.0 == self.0).then(|| (first, first.saturating_add(self.1)))
    }
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some(([bits, step], table)) = data.split_first_chunk() else {
        return;
    };
    let dmar = match Dmar::parse(table) {
        Ok(dmar) => dmar,
        Err(error) => return fuzz::one_line(&error.to_string()),
    };
    let memory = Span::new(0, PHYSICAL_END).expect("all there is");
    let units: Vec<_> = dmar.units().collect();
    assert!((1..=UNITS).contains(&units.len()));
    for (number, unit) in units.iter().enumerate() {
        assert!(unit.registers.len().is_power_of_two() && unit.registers.len() >= PAGE);
        assert!(memory.covers(unit.registers) && unit.registers.start() % PAGE == 0);
        assert!(units[..number].iter().all(|other| !other.registers.overlaps(unit.registers)));
        for scope in unit.scopes {
            let _end = scope.path.end(unit.segment, &Bridges(*bits, *step));
        }
    }
    assert!(dmar.reserved().all(|reserved| memory.covers(reserved.memory)));
    assert!(dmar.reserved().all(|reserved| !reserved.memory.is_empty()));
    let mut bytes = 48;
    for structure in dmar.structures() {
        bytes += 4;
        if let Structure::Name(_, name) = structure {
            assert!(!name.contains(&0));
        }
    }
    assert!(bytes <= table.len());
    for bus in 0..=255 {
        let source = Source::new(bus, *bits, *step);
        let segment = Segment(u16::from(*step & 1));
        if let Some(number) = dmar.unit_of(segment, source, &Bridges(*bits, *step)) {
            assert_eq!(units[number].segment, segment);
        }
    }
});
