//! Tables that machines have, written anew from what public dumps of them say.

use super::*;

/// A laptop of 2020 (Tiger Lake, XPS 13 9310; the dump is in `major/xps13-9310-dsdt`): graphics and each of two
/// Thunderbolt ports have units of their own.
fn tiger_lake() -> Vec<u8> {
    table(
        39,
        1,
        &[
            unit(0, 0, 0xfed9_0000, &[scope(1, 0, 0, &[[2, 0]])]),
            unit(0, 0, 0xfed8_4000, &[scope(2, 0, 0, &[[7, 0]])]),
            unit(0, 0, 0xfed8_6000, &[scope(2, 0, 0, &[[7, 2]])]),
            unit(1, 0, 0xfed9_1000, &[scope(3, 2, 0, &[[0x1e, 7]]), scope(4, 0, 0, &[[0x1e, 6]])]),
            reserved(0x6c00_0000, 0x707f_ffff, &[scope(1, 0, 0, &[[2, 0]])]),
        ],
    )
}

/// A laptop of 2024 (Lunar Lake): units of 16 pages, devices that need ATS (SATC), and the kind of structure that
/// tells their properties (SIDP), in which scopes have flags.
fn lunar_lake() -> Vec<u8> {
    let sized = |flags, base, scopes: &[Vec<u8>]| {
        let mut unit = unit(flags, 0, base, scopes);
        unit[5] = 4;
        unit
    };
    let endpoint = |device: u8| scope(1, 0, 0, &[[device, 0]]);
    let property = |device: u8, flags: u8| {
        let mut scope = endpoint(device);
        scope[2] = flags;
        scope
    };
    let properties = [property(2, 0x1f), property(5, 0x1f), property(0xb, 0x1c)].concat();
    let integrated = [endpoint(2), endpoint(5), endpoint(0xb)].concat();
    table(
        38,
        0b101,
        &[
            sized(0, 0xfc80_0000, &[endpoint(2)]),
            sized(0, 0xfc81_0000, &[endpoint(5), endpoint(0xa), endpoint(0xb)]),
            sized(1, 0xfc82_0000, &[scope(3, 2, 0, &[[0x1e, 7]]), scope(4, 0, 0, &[[0x1e, 6]])]),
            structure(5, &[&[1, 0, 0, 0][..], &integrated].concat()),
            structure(6, &[&[0; 4][..], &properties].concat()),
        ],
    )
}

/// A server with two sockets (Skylake-SP) whose firmware leaves out the first one's units: what is about that is in
/// ATSR and RHSA only.
fn half_a_server() -> Vec<u8> {
    let functions = (0..8).map(|function| scope(1, 0, 0x80, &[[4, function]]));
    let first: Vec<_> = [scope(3, 0xf, 0x80, &[[5, 4]])]
        .into_iter()
        .chain(functions)
        .chain([scope(2, 0, 0x80, &[[0, 0]])])
        .collect();
    let stack = |apic, bus| [scope(3, apic, bus, &[[5, 4]]), scope(2, 0, bus, &[[0, 0]])];
    let ports = |buses: &[u8]| {
        let scopes: Vec<_> = buses.iter().map(|bus| scope(2, 0, *bus, &[[0, 0]])).collect();
        structure(2, &[&[0; 4][..], &scopes.concat()].concat())
    };
    let node = |base: u64| structure(3, &[&[0; 4][..], &base.to_le_bytes(), &[0; 4]].concat());
    table(
        46,
        1,
        &[
            unit(0, 0, 0xd37f_c000, &first),
            unit(0, 0, 0xe0ff_c000, &stack(0x10, 0x85)),
            unit(0, 0, 0xee7f_c000, &stack(0x11, 0xae)),
            reserved(0x7546_0000, 0x7547_0fff, &[scope(1, 0, 0, &[[0x14, 0]])]),
            ports(&[0x17, 0x3a, 0x5d]),
            ports(&[0x80, 0x85, 0xae, 0xd7]),
            node(0x9d7f_c000),
            node(0xaaff_c000),
        ],
    )
}

/// All of them, by name.
pub(super) fn all() -> [(&'static str, Vec<u8>); 3] {
    [("tiger-lake", tiger_lake()), ("lunar-lake", lunar_lake()), ("half-a-server", half_a_server())]
}

/// A function, and if it is a bridge, the first and last bus behind.
type Function = ((u8, u8, u8), Option<[u8; 2]>);

fn functions(all: &[Function]) -> Machine {
    let function = |((bus, device, function), behind): &Function| {
        let kind = 0x80 | u8::from(behind.is_some());
        (Source::new(*bus, *device, *function), kind, behind.unwrap_or_default())
    };
    Machine(all.iter().map(function).collect())
}

#[test]
fn what_is_plugged_in_has_the_unit_of_its_port() {
    let bytes = tiger_lake();
    let dmar = Dmar::parse(&bytes).unwrap();
    let machine = functions(&[
        ((0, 0, 0), None),
        ((0, 2, 0), None),
        ((0, 7, 0), Some([0x01, 0x2b])),
        ((0, 7, 2), Some([0x2c, 0x56])),
        ((1, 0, 0), Some([2, 0x2b])),
        ((2, 0, 0), None),
    ]);
    assert_eq!(dmar.uncovered([Segment(0)].into_iter(), &machine), None);
    let bridges = Bridges(&[(0, 7, 0, 1, 0x2b), (0, 7, 2, 0x2c, 0x56), (1, 0, 0, 2, 0x2b)]);
    let of = |bus, device, function| {
        let source = Source::new(bus, device, function);
        dmar.unit_of(Segment(0), source, &bridges)
    };
    assert_eq!(
        [of(0, 2, 0), of(0, 7, 0), of(1, 0, 0), of(2, 0, 0), of(0x2b, 0x1f, 7)],
        [Some(0), Some(1), Some(1), Some(1), Some(1)]
    );
    assert_eq!([of(0, 7, 2), of(0x2c, 0, 0), of(0x56, 0, 0)], [Some(2); 3]);
    assert_eq!([of(0, 0, 0), of(0, 7, 1), of(0, 0x1f, 0), of(0x57, 0, 0)], [Some(3); 4]);
}

#[test]
fn devices_that_need_ats_are_known_and_structures_of_later_kinds_are_skipped() {
    let bytes = lunar_lake();
    let dmar = Dmar::parse(&bytes).unwrap();
    let registers: Vec<_> = dmar.units().map(|unit| unit.registers).collect();
    let pages = |base| Span::sized(base, 16 * PAGE).unwrap();
    assert_eq!(registers, [pages(0xfc80_0000), pages(0xfc81_0000), pages(0xfc82_0000)]);
    let kinds: Vec<_> = dmar.structures().skip(3).collect();
    let Structure::Integrated(Ats { flag: true, scopes, .. }) = kinds[0] else {
        panic!("{:?}", kinds[0]);
    };
    let steps: Vec<_> = scopes.map(|scope| scope.path.end(Segment(0), &BRIDGES)).collect();
    assert_eq!(steps, [2, 5, 0xb].map(|device| Some(Source::new(0, device, 0))));
    assert!(matches!(kinds[1], Structure::Other(6)));
    assert_eq!(owner(&bytes, 0, (0, 0xb, 0)), Some(1));
    assert_eq!(owner(&bytes, 0, (0, 0x14, 0)), Some(2));
    assert_eq!((dmar.width(), dmar.reserved().count()), (38, 0));
}

#[test]
fn a_server_whose_firmware_leaves_out_units_has_no_iommu() {
    let bytes = half_a_server();
    let dmar = Dmar::parse(&bytes).unwrap();
    assert_eq!(owner(&bytes, 0, (0x80, 4, 7)), Some(0));
    assert_eq!(owner(&bytes, 0, (0x85, 0, 0)), Some(1));
    let second = [
        ((0x80, 0, 0), Some([0x81, 0x84])),
        ((0x80, 4, 0), None),
        ((0x85, 0, 0), Some([0x86, 0xad])),
        ((0x86, 0, 0), None),
        ((0xae, 0, 0), Some([0xaf, 0xd6])),
    ];
    assert_eq!(dmar.uncovered([].into_iter(), &functions(&second)), None);
    // A port of the first socket, which ATSR names, and no unit.
    let all: Vec<_> = [((0x17, 0, 0), Some([0x18, 0x39]))].into_iter().chain(second).collect();
    let found = dmar.uncovered([].into_iter(), &functions(&all));
    assert_eq!(found, Some(Uncovered::Device(Source::new(0x17, 0, 0))));
}
