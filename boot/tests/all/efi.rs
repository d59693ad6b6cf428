use boot::efi::EfiMap;
use boot::memmap::{MapError, MemoryMap};
use ept::addr::PAGE;
use proptest::prelude::*;

use crate::fake::{descriptors, quads, span};

const WB: u64 = 8;

fn loaded(entries: &[(u32, u64, u64, u64)]) -> Vec<(u64, u64, u32)> {
    let bytes = descriptors(entries);
    let mut map = MemoryMap::EMPTY;
    EfiMap::parse(&bytes, 48).expect("a good map").load(&mut map).expect("room");
    let region = |r: boot::memmap::Region| (r.span.start(), r.span.len() / PAGE, r.kind.number());
    map.regions().map(region).collect()
}

fn carved(bytes: &[u8], hole: ept::addr::Span) -> Vec<u8> {
    let mut out = Vec::new();
    let map = EfiMap::parse(bytes, 48).expect("a good map");
    let result: Result<(), ()> = map.carve(&[hole], &mut |piece| {
        out.extend(piece);
        Ok(())
    });
    result.expect("a sink that takes all");
    out
}

#[test]
fn types_become_the_kinds_that_linux_gives_them() {
    let kinds = [2, 1, 1, 1, 1, 2, 2, 1, 5, 3, 4, 2, 2, 2, 7];
    for (kind, expected) in (0..).zip(kinds) {
        assert_eq!(loaded(&[(kind, 0x1000, 1, WB)]), [(0x1000, 1, expected)], "type {kind}");
    }
    assert_eq!(loaded(&[(0x8000_0001, 0x1000, 1, WB)]), [(0x1000, 1, 2)]);
}

#[test]
fn memory_that_cannot_be_cached_or_has_a_purpose_is_no_ram() {
    assert_eq!(loaded(&[(7, 0, 1, 1)]), [(0, 1, 2)]);
    assert_eq!(loaded(&[(7, 0, 1, WB | 1 << 18)]), [(0, 1, 2)]);
}

#[test]
fn unaccepted_memory_is_refused() {
    let bytes = descriptors(&[(7, 0, 1, WB), (15, 0x10_0000, 1, WB)]);
    assert_eq!(EfiMap::parse(&bytes, 48).err(), Some(MapError::Unaccepted(0x10_0000)));
}

#[test]
fn a_descriptor_that_names_no_memory_is_refused() {
    for (base, pages) in [(0x800, 1), (0, u64::MAX), (1 << 52, 1), (0, (1 << 40) + 1)] {
        let bytes = descriptors(&[(7, base, pages, WB)]);
        assert_eq!(EfiMap::parse(&bytes, 48).err(), Some(MapError::BadEntry(base)));
    }
}

#[test]
fn descriptors_have_a_size_that_divides_the_map() {
    let bytes = [0; 96];
    for size in [0, 8, 32, 39, 44, 56] {
        assert_eq!(EfiMap::parse(&bytes, size).err(), Some(MapError::BadEntrySize(size)));
    }
    assert!(EfiMap::parse(&bytes, 48).is_ok());
    assert_eq!(EfiMap::parse(&bytes[..40], 40).expect("a good map").descriptor_size(), 40);
}

#[test]
fn the_size_of_a_descriptor_is_a_multiple_of_eight() {
    assert_eq!(EfiMap::parse(&[0; 88], 44).err(), Some(MapError::BadEntrySize(44)));
}

#[test]
fn what_firmware_did_not_map_stays_unmapped_when_it_is_split() {
    let expected = descriptors(&[(7, 0, 1, WB), (0, 0x1000, 1, WB), (7, 0x2000, 2, WB)]);
    let bytes = descriptors(&[(7, 0, 4, WB)]);
    assert_eq!(carved(&bytes, span(0x1000, 0x2000)), expected);
}

#[test]
fn boot_services_memory_is_told_apart() {
    let bytes = descriptors(&[(3, 0, 1, WB), (7, 0x1000, 1, WB), (4, 0x2000, 2, WB)]);
    let map = EfiMap::parse(&bytes, 48).expect("a good map");
    let theirs: Vec<_> = map.boot_services().collect();
    assert_eq!(theirs, [span(0, 0x1000), span(0x2000, 0x4000)]);
}

#[test]
fn carving_splits_a_descriptor_in_three() {
    let bytes = quads(&[5, 0x10000, 0xf000_0000, 16, WB | 1 << 63, 0x5555]);
    let expected = quads(&[
        5,
        0x10000,
        0xf000_0000,
        4,
        WB | 1 << 63,
        0x5555, //
        0,
        0x14000,
        0xf000_4000,
        2,
        WB,
        0x5555, //
        5,
        0x16000,
        0xf000_6000,
        10,
        WB | 1 << 63,
        0x5555,
    ]);
    assert_eq!(carved(&bytes, span(0x14000, 0x16000)), expected);
}

#[test]
fn a_map_that_does_not_list_the_span_stays_as_it_is() {
    let bytes = descriptors(&[(7, 0, 4, WB), (1, 0x8000, 4, WB)]);
    assert_eq!(carved(&bytes, span(0x4000, 0x8000)), bytes);
}

proptest! {
    #[test]
    fn carving_reserves_the_span_and_changes_no_other_page(
        lengths in prop::collection::vec((0u32..15, 1u64..9, any::<bool>()), 1..12),
        hole in (0u64..60, 0u64..20),
    ) {
        let mut entries = Vec::new();
        let mut at = 0;
        for (kind, pages, gap) in lengths {
            at += if gap { PAGE } else { 0 };
            entries.push((kind, at, pages, WB));
            at += pages * PAGE;
        }
        let hole = span(hole.0 * PAGE, (hole.0 + hole.1) * PAGE);
        let bytes = descriptors(&entries);
        let pages = |bytes: &[u8]| -> Vec<(u64, u64)> {
            bytes.chunks(48).flat_map(|entry| {
                let field = |at: usize| u64::from_le_bytes(entry[at..at + 8].try_into().expect("8"));
                let (kind, base, pages) = (field(0), field(8), field(24));
                (0..pages).map(move |page| (base + page * PAGE, kind))
            }).collect()
        };
        let after = carved(&bytes, hole);
        prop_assert!(EfiMap::parse(&after, 48).is_ok());
        let expected: Vec<_> = pages(&bytes).into_iter()
            .map(|(page, kind)| (page, if hole.contains(page) { 0 } else { kind }))
            .collect();
        prop_assert_eq!(pages(&after), expected);
    }
}

#[test]
fn two_holes_in_one_descriptor_are_both_reserved() {
    let bytes = descriptors(&[(7, 0x1000, 8, WB)]);
    let mut out: Vec<u8> = Vec::new();
    let map = EfiMap::parse(&bytes, 48).expect("a good map");
    let holes = [span(0x2000, 0x3000), span(0x5000, 0x7000)];
    let result: Result<(), ()> = map.carve(&holes, &mut |piece| {
        out.extend(piece);
        Ok(())
    });
    result.expect("a sink that takes all");
    let pieces = [(7, 0x1000, 1), (0, 0x2000, 1), (7, 0x3000, 2), (0, 0x5000, 2), (7, 0x7000, 2)];
    let expected = pieces.map(|(kind, start, pages)| (kind, start, pages, WB));
    assert_eq!(out, descriptors(&expected));
}
