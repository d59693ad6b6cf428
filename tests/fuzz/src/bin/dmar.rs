//! The table of remapping units: two bytes that make up the buses behind bridges, then the table.
#![no_main]

use ept::addr::{PAGE, PHYSICAL_END, Span};
use iommu::Source;
use iommu::dmar::{Buses, Config, Dmar, Segment, Structure, UNITS, Uncovered};

/// Every device whose number has these bits is a bridge to the buses from its own number on.
struct Bridges(u8, u8);

impl Buses for Bridges {
    fn behind(&self, _: Segment, source: Source) -> Option<(u8, u8)> {
        let [bus, device] = source.0.to_be_bytes();
        let first = bus.wrapping_add(self.1);
        (device & self.0 == self.0).then(|| (first, first.saturating_add(self.1)))
    }
}

/// The same, as configuration space: one device of eight is there, on the first buses.
impl Config for Bridges {
    fn read(&self, source: Source, register: u8) -> u32 {
        let [first, last] = self.behind(Segment(0), source).map_or([0; 2], |(a, b)| [a, b]);
        match register {
            _ if source.0 & 0b11_1000 != 0 || source.bus() > 3 => u32::MAX,
            0x0c => u32::from(first != 0) << 16 | u32::from(self.0 & 0x80) << 16,
            _ => u32::from_le_bytes([0, first, last, 0]),
        }
    }
}

impl Bridges {
    /// Whether there is such a function, and not the first one under another number.
    fn has(&self, source: Source) -> bool {
        let first = Source(source.0 & !7);
        let is_alone = self.read(first, 0x0c) & 0x80_0000 == 0;
        self.read(source, 0) != u32::MAX && (source == first || !is_alone)
    }
}

/// Bridges as that configuration space has them.
struct Read<'b>(&'b Bridges);

impl Buses for Read<'_> {
    fn behind(&self, _: Segment, source: Source) -> Option<(u8, u8)> {
        let [_, first, last, _] = self.0.read(source, 0x18).to_le_bytes();
        (self.0.read(source, 0x0c) >> 16 & 0x7f == 1).then_some((first, last))
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
    let machine = Bridges(*bits, *step);
    let works_for = |source| dmar.unit_of(Segment(0), source, &Read(&machine)).is_some();
    match dmar.uncovered([].into_iter(), &machine) {
        Some(Uncovered::Device(source)) => assert!(!works_for(source)),
        Some(Uncovered::Segment(_)) => {}
        None => assert!((0..4 << 8).map(Source).filter(|one| machine.has(*one)).all(works_for)),
    }
});
