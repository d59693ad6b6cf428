use std::fs;
use std::path::Path;
use std::string::ToString;
use std::vec::Vec;

use proptest::prelude::*;

use super::*;

mod dumps;

/// A structure of `kind` with what follows its header.
fn structure(kind: u16, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(body.len() + 4).unwrap();
    [&kind.to_le_bytes(), &length.to_le_bytes(), body].concat()
}

fn scope(kind: u8, number: u8, bus: u8, path: &[[u8; 2]]) -> Vec<u8> {
    let length = u8::try_from(6 + 2 * path.len()).unwrap();
    [&[kind, length, 0, 0, number, bus], path.as_flattened()].concat()
}

fn unit(flags: u8, segment: u16, base: u64, scopes: &[Vec<u8>]) -> Vec<u8> {
    let head = [&[flags, 0][..], &segment.to_le_bytes(), &base.to_le_bytes()].concat();
    structure(0, &[head, scopes.concat()].concat())
}

fn reserved(base: u64, last: u64, scopes: &[Vec<u8>]) -> Vec<u8> {
    let head = [&[0; 4][..], &base.to_le_bytes(), &last.to_le_bytes()].concat();
    structure(1, &[head, scopes.concat()].concat())
}

fn table(width: u8, flags: u8, structures: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = Vec::from(*b"DMAR");
    bytes.resize(HEAD, 0);
    (bytes[36], bytes[37]) = (width - 1, flags);
    bytes.extend(structures.concat());
    bytes
}

/// A laptop's: graphics has a unit of its own, the other has the rest, and two reserved regions.
fn laptop() -> Vec<u8> {
    table(
        39,
        0b101,
        &[
            unit(0, 0, 0xfed9_0000, &[scope(1, 0, 0, &[[2, 0]])]),
            unit(
                1,
                0,
                0xfed9_1000,
                &[scope(3, 2, 0xf0, &[[0x1f, 0]]), scope(4, 0, 0, &[[0x1f, 0]])],
            ),
            reserved(0x9b80_0000, 0x9fff_ffff, &[scope(1, 0, 0, &[[2, 0]])]),
            reserved(0x9a2e_6000, 0x9a30_5fff, &[scope(1, 0, 0, &[[0x14, 0]])]),
            structure(4, &[&[0, 0, 0, 1], &b"\\_SB.PCI0.I2C0\0"[..]].concat()),
        ],
    )
}

/// A server's with two sockets: units for root ports and what is behind them, ATS, NUMA nodes.
fn server() -> Vec<u8> {
    let node = |base: u64, node: u32| {
        structure(3, &[&[0; 4][..], &base.to_le_bytes(), &node.to_le_bytes()].concat())
    };
    table(
        46,
        0b011,
        &[
            unit(0, 0, 0xd37f_c000, &[scope(2, 0, 0x3a, &[[0, 0]]), scope(2, 0, 0x3a, &[[2, 0]])]),
            unit(0, 0, 0xe0ff_c000, &[scope(2, 0, 0x5d, &[[0, 0]])]),
            unit(0, 0, 0xfbff_c000, &[scope(1, 0, 0x80, &[[4, 0], [0, 1]])]),
            unit(1, 0, 0xc5ff_c000, &[scope(3, 8, 0, &[[5, 4]])]),
            unit(1, 1, 0xc6ff_c000, &[scope(1, 0, 0, &[[3, 0]])]),
            structure(2, &[&[1, 0, 0, 0][..], &scope(2, 0, 0x3a, &[[0, 0]])].concat()),
            node(0xd37f_c000, 0),
            node(0xfbff_c000, 1),
            structure(5, &[&[1, 0, 0, 0][..], &scope(1, 0, 0xe8, &[[1, 0]])].concat()),
            structure(9, &[1, 2, 3, 4]),
        ],
    )
}

/// Bridges: their device, and the first and last bus behind.
struct Bridges(&'static [(u8, u8, u8, u8, u8)]);

impl Buses for Bridges {
    fn behind(&self, segment: Segment, source: Source) -> Option<(u8, u8)> {
        let mut bridges = self.0.iter().filter(|_| segment == Segment(0));
        let found = bridges
            .find(|(bus, device, function, ..)| Source::new(*bus, *device, *function) == source);
        found.map(|(.., first, last)| (*first, *last))
    }
}

const BRIDGES: Bridges = Bridges(&[
    (0x3a, 0, 0, 0x3b, 0x40),
    (0x3a, 2, 0, 0x41, 0x41),
    (0x5d, 0, 0, 0x5e, 0x6f),
    (0x80, 4, 0, 0x81, 0x82),
]);

fn owner(bytes: &[u8], segment: u16, (bus, device, function): (u8, u8, u8)) -> Option<usize> {
    let source = Source::new(bus, device, function);
    Dmar::parse(bytes).unwrap().unit_of(Segment(segment), source, &BRIDGES)
}

#[test]
fn a_laptops_table_reads_as_it_was_written() {
    let bytes = laptop();
    let dmar = Dmar::parse(&bytes).unwrap();
    assert_eq!(
        (dmar.width(), dmar.remaps_interrupts(), dmar.opts_out_of_x2apic()),
        (39, true, false)
    );
    let bases: Vec<_> = dmar.units().map(|unit| (unit.registers.start(), unit.rest)).collect();
    assert_eq!(bases, [(0xfed9_0000, false), (0xfed9_1000, true)]);
    let scopes: Vec<_> = dmar.units().nth(1).unwrap().scopes.collect();
    assert_eq!((scopes[0].kind, scopes[0].number, scopes[0].path.bus), (Kind::IoApic, 2, 0xf0));
    assert_eq!(scopes[1].kind, Kind::Hpet);
    let memory: Vec<_> = dmar.reserved().map(|reserved| reserved.memory).collect();
    assert_eq!(memory[0], Span::new(0x9b80_0000, 0xa000_0000).unwrap());
    assert_eq!(memory[1], Span::new(0x9a2e_6000, 0x9a30_6000).unwrap());
    let last = dmar.structures().last().unwrap();
    assert!(matches!(last, Structure::Name(1, b"\\_SB.PCI0.I2C0")));
    assert_eq!(owner(&bytes, 0, (0, 2, 0)), Some(0));
    assert_eq!(owner(&bytes, 0, (0, 0x14, 0)), Some(1));
}

#[test]
fn a_servers_table_reads_as_it_was_written() {
    let bytes = server();
    let dmar = Dmar::parse(&bytes).unwrap();
    assert_eq!((dmar.width(), dmar.opts_out_of_x2apic()), (46, true));
    let kinds: Vec<_> = dmar.structures().collect();
    assert!(matches!(kinds[5], Structure::Ports(Ats { flag: true, segment: Segment(0), .. })));
    assert!(matches!(kinds[7], Structure::Node(0xfbff_c000, 1)));
    assert!(matches!(kinds[8], Structure::Integrated(Ats { flag: true, .. })));
    assert!(matches!(kinds[9], Structure::Other(9)));
}

#[test]
fn a_unit_for_a_hierarchy_works_for_its_port_and_all_behind() {
    let bytes = server();
    assert_eq!(owner(&bytes, 0, (0x3a, 0, 0)), Some(0));
    assert_eq!(owner(&bytes, 0, (0x3b, 0x1f, 7)), Some(0));
    assert_eq!(owner(&bytes, 0, (0x40, 0, 0)), Some(0));
    assert_eq!(owner(&bytes, 0, (0x41, 0, 0)), Some(0));
    assert_eq!(owner(&bytes, 0, (0x42, 0, 0)), Some(3));
    assert_eq!(owner(&bytes, 0, (0x3a, 1, 0)), Some(3));
    assert_eq!(owner(&bytes, 0, (0x5e, 0, 0)), Some(1));
}

#[test]
fn a_device_behind_a_bridge_is_found_by_its_path() {
    let bytes = server();
    assert_eq!(owner(&bytes, 0, (0x81, 0, 1)), Some(2));
    assert_eq!(owner(&bytes, 0, (0x81, 0, 0)), Some(3));
    assert_eq!(owner(&bytes, 0, (0x80, 0, 1)), Some(3));
}

#[test]
fn segments_are_kept_apart() {
    let bytes = server();
    assert_eq!(owner(&bytes, 1, (0, 3, 0)), Some(4));
    assert_eq!(owner(&bytes, 0, (0, 3, 0)), Some(3));
    assert_eq!(owner(&bytes, 1, (0, 4, 0)), Some(4));
    // There is no such segment.
    assert_eq!(owner(&bytes, 2, (0, 3, 0)), None);
}

/// Functions that are there: header type, and buses behind.
#[derive(Clone)]
struct Machine(Vec<(Source, u8, [u8; 2])>);

impl Config for Machine {
    fn read(&self, source: Source, register: u8) -> u32 {
        let Self(functions) = self;
        let found = functions.iter().find(|(there, ..)| *there == source);
        match (found, register) {
            (None, _) => u32::MAX,
            (Some(_), 0) => 0x1234_8086,
            (Some((_, kind, _)), 0x0c) => u32::from(*kind) << 16,
            (Some((.., [first, last])), 0x18) => u32::from_le_bytes([0, *first, *last, 0]),
            (Some(_), _) => panic!("register {register:#x}"),
        }
    }
}

/// A machine's: the host's bridge, a chip of two functions of which the first is hidden, a bridge with a
/// device behind it, and another host's bridge.
fn machine() -> Machine {
    Machine(
        [
            ((0, 0, 0), 0, [0; 2]),
            ((0, 0x1f, 3), 0, [0; 2]),
            ((0, 0x1c, 0), 0x81, [1, 2]),
            ((0, 0x1c, 1), 0, [0; 2]),
            ((2, 5, 0), 0, [0; 2]),
            ((0x80, 0, 0), 0x81, [0x81, 0x81]),
            ((0x81, 0, 0), 0, [0; 2]),
        ]
        .map(|((bus, device, function), kind, behind)| {
            (Source::new(bus, device, function), kind, behind)
        })
        .to_vec(),
    )
}

/// What the table of these structures has no unit for on `machine`.
fn uncovered(structures: &[Vec<u8>], machine: &Machine) -> Option<Uncovered> {
    let bytes = table(39, 0, structures);
    Dmar::parse(&bytes).unwrap().uncovered([].into_iter(), machine)
}

#[test]
fn each_device_that_is_there_needs_a_unit() {
    let scopes = [
        scope(1, 0, 0, &[[0, 0]]),
        scope(1, 0, 0, &[[0x1f, 3]]),
        scope(2, 0, 0, &[[0x1c, 0]]),
        scope(1, 0, 0, &[[0x1c, 1]]),
        scope(2, 0, 0x80, &[[0, 0]]),
    ];
    let all = [unit(0, 0, 0xfed9_0000, &scopes[..2]), unit(0, 0, 0xfed9_1000, &scopes[2..])];
    assert_eq!(uncovered(&all, &machine()), None);
    let first = [(0, 0, 0), (0, 0x1f, 3), (0, 0x1c, 0), (0, 0x1c, 1), (0x80, 0, 0)];
    for (number, (bus, device, function)) in first.into_iter().enumerate() {
        let mut less = scopes.to_vec();
        let _ = less.remove(number);
        let source = Source::new(bus, device, function);
        let found = uncovered(&[unit(0, 0, 0xfed9_0000, &less)], &machine());
        assert_eq!(found, Some(Uncovered::Device(source)));
    }
}

#[test]
fn a_device_behind_a_bridge_is_not_covered_by_the_bridges_own_scope() {
    let mut scopes =
        [[0, 0], [0x1f, 3], [0x1c, 0], [0x1c, 1]].map(|step| scope(1, 0, 0, &[step])).to_vec();
    scopes.push(scope(2, 0, 0x80, &[[0, 0]]));
    let found = uncovered(&[unit(0, 0, 0xfed9_0000, &scopes)], &machine());
    assert_eq!(found, Some(Uncovered::Device(Source::new(2, 5, 0))));
}

#[test]
fn a_unit_for_the_rest_of_a_segment_covers_what_no_scope_names() {
    let rest = |segment, at: u64| unit(1, segment, 0xfed9_0000 + (at << 12), &[]);
    assert_eq!(uncovered(&[rest(0, 0)], &machine()), None);
    assert_eq!(uncovered(&[rest(3, 0)], &machine()), Some(Uncovered::Device(Source::new(0, 0, 0))));
    assert_eq!(uncovered(&[rest(3, 0), rest(0, 1)], &machine()), None);
}

#[test]
fn a_device_of_one_function_may_answer_to_all_eight_numbers() {
    let aliased = |kind| {
        Machine((0..8).map(|function| (Source::new(0, 9, function), kind, [0; 2])).collect())
    };
    let only = [unit(0, 0, 0xfed9_0000, &[scope(1, 0, 0, &[[9, 0]])])];
    assert_eq!(uncovered(&only, &aliased(0)), None);
    let second = Source::new(0, 9, 1);
    assert_eq!(uncovered(&only, &aliased(0x80)), Some(Uncovered::Device(second)));
}

#[test]
fn a_segment_that_cannot_be_looked_at_needs_a_unit_for_the_rest() {
    let named = [scope(1, 0, 0, &[[2, 0]])];
    let rest = unit(1, 0, 0xfed9_1000, &[]);
    let open = |number| Some(Uncovered::Segment(Segment(number)));
    let other = unit(0, 3, 0xfed9_0000, &named);
    let machine = machine();
    assert_eq!(uncovered(&[other.clone(), rest.clone()], &machine), open(3));
    assert_eq!(uncovered(&[other, rest.clone(), unit(1, 3, 0xfed9_2000, &[])], &machine), None);
    let mut memory = reserved(0x9b80_0000, 0x9fff_ffff, &named);
    memory[6] = 2;
    assert_eq!(uncovered(&[rest.clone(), memory], &machine), open(2));
    for kind in [2, 5] {
        let ats = structure(kind, &[&[1, 0, 4, 0][..], &named[0]].concat());
        assert_eq!(uncovered(&[rest.clone(), ats], &machine), open(4));
    }
    // Configuration space knows of segments that the table does not name.
    let bytes = table(39, 0, std::slice::from_ref(&rest));
    let dmar = Dmar::parse(&bytes).unwrap();
    let segments = |numbers: &'static [u16]| numbers.iter().copied().map(Segment);
    assert_eq!(dmar.uncovered(segments(&[0]), &machine), None);
    assert_eq!(dmar.uncovered(segments(&[0, 5]), &machine), open(5));
    // Where no function answers, nobody knows which there are.
    let nothing = Machine(Vec::new());
    assert_eq!(uncovered(&[unit(0, 0, 0xfed9_0000, &named)], &nothing), open(0));
    assert_eq!(uncovered(&[rest], &nothing), None);
}

#[test]
fn a_unit_may_have_many_pages_of_registers_but_none_of_anothers() {
    let mut first = unit(0, 0, 0xfed9_0000, &[]);
    first[5] = 4;
    let second = |base| unit(1, 0, base, &[]);
    let bytes = table(39, 0, &[first.clone(), second(0xfeda_0000)]);
    let dmar = Dmar::parse(&bytes).unwrap();
    assert_eq!(dmar.units().next().unwrap().registers.len(), 0x1_0000);
    let bytes = table(39, 0, &[first, second(0xfed9_f000)]);
    assert_eq!(Dmar::parse(&bytes).unwrap_err(), DmarError::Shared(HEAD + 16));
}

/// Why a table with a good unit and these structures is refused.
fn refused(structures: &[Vec<u8>]) -> DmarError {
    let good = unit(1, 0, 0xfed9_0000, &[]);
    Dmar::parse(&table(39, 0, &[&[good], structures].concat())).unwrap_err()
}

/// Where the structures after the good unit begin.
const AFTER: usize = HEAD + 16;

#[test]
fn a_table_without_a_unit_is_refused() {
    let none = |structures: &[Vec<u8>]| Dmar::parse(&table(39, 0, structures)).unwrap_err();
    assert_eq!(Dmar::parse(&[0; HEAD - 1]).unwrap_err(), DmarError::Short);
    assert_eq!(none(&[]), DmarError::NoUnit);
    assert_eq!(none(&[reserved(0, 0xfff, &[])]), DmarError::NoUnit);
}

#[test]
fn what_can_be_nowhere_is_refused_with_its_place() {
    for place in [0, 0x1_0800, 1 << 52, u64::MAX - 0xfff] {
        assert_eq!(refused(&[unit(0, 0, place, &[])]), DmarError::Place(AFTER));
    }
    for (first, last) in [(0x2000, 0xfff), (0, u64::MAX), (0x2000, 0x1fff)] {
        assert_eq!(refused(&[reserved(first, last, &[])]), DmarError::Place(AFTER));
    }
}

#[test]
fn what_is_cut_short_is_refused_with_its_place() {
    for kind in 0..=5 {
        assert_eq!(refused(&[structure(kind, &[0, 0])]), DmarError::Structure(AFTER));
    }
    // Lengths that lead nowhere: to the same place, into the header, past the end.
    for length in [0, 3, 5] {
        assert_eq!(refused(&[[9, 0, length, 0].to_vec()]), DmarError::Structure(AFTER));
    }
    // A name that does not end.
    assert_eq!(refused(&[structure(4, &[0, 0, 0, 1, b'A'])]), DmarError::Structure(AFTER));
}

#[test]
fn a_broken_scope_is_refused_with_the_place_of_its_structure() {
    let no_path = scope(1, 0, 0, &[]);
    let half_a_step = [scope(1, 0, 0, &[]), [0].to_vec()].concat();
    let mut odd = scope(1, 0, 0, &[[0, 0]]);
    odd[1] = 7;
    for bad in [no_path, half_a_step, odd, [1].to_vec(), [1, 0, 0, 0, 0, 0, 0, 0].to_vec()] {
        assert_eq!(refused(&[unit(0, 0, 0xfeda_0000, &[bad])]), DmarError::Scope(AFTER));
    }
}

#[test]
fn more_units_than_there_is_room_for_are_refused() {
    let units = |count: u64| (1..=count).map(|n| unit(1, 0, n << 12, &[])).collect::<Vec<_>>();
    let bytes = table(39, 0, &units(64));
    assert_eq!(Dmar::parse(&bytes).unwrap().units().count(), UNITS);
    assert_eq!(Dmar::parse(&table(39, 0, &units(65))).unwrap_err(), DmarError::TooMany);
}

#[test]
fn each_refusal_is_one_line_that_names_its_place() {
    assert_eq!(
        DmarError::Scope(0x40).to_string(),
        "DMAR: the structure at 0x40 has a broken device scope"
    );
}

/// The seeds of the fuzz target `dmar`. To write them anew after a change here, run the tests with
/// `BLESS=1`.
#[test]
fn the_corpus_holds_these_tables() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/corpus/dmar");
    let own = [("laptop", laptop()), ("server", server())];
    for (name, table) in own.into_iter().chain(dumps::all()) {
        let bytes = [&[0x20, 1][..], &table].concat();
        let path = corpus.join(name);
        if std::env::var_os("BLESS").is_some() {
            fs::create_dir_all(&corpus).unwrap();
            fs::write(&path, &bytes).unwrap();
        }
        assert_eq!(fs::read(&path).ok(), Some(bytes), "{name}");
    }
}

proptest! {
    #[test]
    fn whatever_is_in_a_table_its_spans_are_in_memory(
        server_not_laptop in any::<bool>(),
        changes in proptest::collection::vec((0_usize..400, any::<u8>()), 0..8),
        end in 0_usize..400,
    ) {
        let mut bytes = if server_not_laptop { server() } else { laptop() };
        for (at, byte) in changes {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        bytes.truncate(end.max(bytes.len().min(100)));
        match Dmar::parse(&bytes) {
            Ok(dmar) => {
                let units: Vec<_> = dmar.units().map(|unit| unit.registers).collect();
                prop_assert!((1..=UNITS).contains(&units.len()));
                for (at, registers) in units.iter().enumerate() {
                    prop_assert!(registers.start() % PAGE == 0 && registers.start() != 0);
                    prop_assert!(units[..at].iter().all(|other| !other.overlaps(*registers)));
                }
                for bus in 0..=255 {
                    let _ = dmar.unit_of(Segment(0), Source::new(bus, 0, 0), &BRIDGES);
                }
            }
            Err(error) => prop_assert!(error.to_string().starts_with("DMAR: ")),
        }
    }
}
