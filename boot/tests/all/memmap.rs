use boot::memmap::{Kind, MapError, MemoryMap};
use ept::addr::{PAGE, PHYSICAL_END};
use proptest::prelude::*;

use crate::fake::span;

const END: u64 = 64;

fn painted(entries: &[(u64, u64, u32)]) -> MemoryMap {
    let mut map = MemoryMap::EMPTY;
    for &(start, end, kind) in entries {
        map.paint(span(start, end), Kind::e820(kind)).expect("room");
    }
    map
}

fn listed(map: &MemoryMap) -> Vec<(u64, u64, u32)> {
    let region = |r: boot::memmap::Region| (r.span.start(), r.span.end(), r.kind.number());
    map.regions().map(region).collect()
}

/// Kind of each of the first bytes.
fn bytes(map: &MemoryMap) -> Vec<u32> {
    let at = |at| map.regions().find(|region| region.span.contains(at));
    (0..END).map(|byte| at(byte).map_or(0, |region| region.kind.number())).collect()
}

/// What is the higher of two kinds: the order that the crate's documentation gives.
fn stronger(a: u32, b: u32) -> u32 {
    let order = [0, 1, 3, 4, 7, 12, 2, 5];
    let rank = |kind| order.iter().position(|&k| k == kind);
    if rank(a) < rank(b) { b } else { a }
}

fn entry() -> impl Strategy<Value = (u64, u64, u32)> {
    let kind = prop::sample::select(vec![1, 1, 1, 2, 3, 4, 5, 7, 12]);
    (0..END, 0..=END, kind).prop_map(|(a, b, kind)| (a.min(b), a.max(b), kind))
}

#[test]
fn where_entries_overlap_the_more_restrictive_kind_holds() {
    let map = painted(&[(0, 100, 2), (50, 150, 1), (120, 130, 3)]);
    assert_eq!(listed(&map), [(0, 100, 2), (100, 120, 1), (120, 130, 3), (130, 150, 1)]);
}

#[test]
fn entries_that_touch_become_one() {
    let map = painted(&[(10, 20, 1), (0, 10, 1), (30, 40, 1), (20, 30, 1), (50, 50, 2)]);
    assert_eq!(listed(&map), [(0, 40, 1)]);
}

#[test]
fn a_kind_without_a_name_keeps_its_number() {
    assert_eq!(listed(&painted(&[(0, 9, 12)])), [(0, 9, 12)]);
    assert_eq!(Kind::e820(0), Kind::RESERVED);
}

#[test]
fn the_map_reaches_to_the_last_physical_address() {
    let map = painted(&[(0, PHYSICAL_END, 1), (PHYSICAL_END - 1, PHYSICAL_END, 2)]);
    let last = PHYSICAL_END - 1;
    assert_eq!(listed(&map), [(0, last, 1), (last, PHYSICAL_END, 2)]);
}

#[test]
fn only_whole_pages_are_ram() {
    let map = painted(&[(1, 3 * PAGE, 1), (8 * PAGE + 1, 9 * PAGE, 1), (9 * PAGE, 10 * PAGE, 3)]);
    assert_eq!(map.ram().collect::<Vec<_>>(), [span(PAGE, 3 * PAGE)]);
    assert!(map.is_ram(span(1, 3 * PAGE)));
    assert!(!map.is_ram(span(0, PAGE)));
}

#[test]
fn two_hundred_and_fifty_six_regions_fit_and_no_more() {
    let mut map = MemoryMap::EMPTY;
    for number in 0..256 {
        let start = number * 10;
        map.paint(span(start, start + 5), Kind::RAM).expect("room");
    }
    let before = listed(&map);
    assert_eq!(before.len(), 256);
    assert_eq!(map.paint(span(3000, 3001), Kind::RAM), Err(MapError::Full));
    assert_eq!(map.paint(span(1, 2), Kind::RESERVED), Err(MapError::Full));
    assert_eq!(listed(&map), before);
    map.paint(span(0, 2555), Kind::UNUSABLE).expect("fewer regions");
    assert_eq!(listed(&map), [(0, 2555, 5)]);
}

proptest! {
    #[test]
    fn the_map_is_what_painting_each_byte_makes(entries in prop::collection::vec(entry(), 0..20)) {
        let mut model = vec![0; usize::try_from(END).expect("small")];
        for &(start, end, kind) in &entries {
            for byte in start..end {
                let byte = &mut model[usize::try_from(byte).expect("small")];
                *byte = stronger(*byte, kind);
            }
        }
        let map = painted(&entries);
        prop_assert_eq!(bytes(&map), model);
        for pair in listed(&map).windows(2) {
            let ((_, end, kind), (start, _, next)) = (pair[0], pair[1]);
            prop_assert!(end < start || (end == start && kind != next));
        }
    }

    #[test]
    fn the_order_of_entries_does_not_matter(entries in prop::collection::vec(entry(), 0..20)) {
        let mut backwards = entries.clone();
        backwards.reverse();
        prop_assert_eq!(listed(&painted(&entries)), listed(&painted(&backwards)));
    }

    #[test]
    fn carving_takes_the_span_and_touches_nothing_else(
        entries in prop::collection::vec(entry(), 0..20),
        hole in entry(),
    ) {
        let mut map = painted(&entries);
        let before = bytes(&map);
        let hole = span(hole.0, hole.1);
        map.carve(hole).expect("room");
        for (at, (before, after)) in (0..).zip(before.into_iter().zip(bytes(&map))) {
            if hole.contains(at) {
                prop_assert!(after == 2 || after == 5, "byte {} is {}", at, after);
            } else {
                prop_assert_eq!(before, after);
            }
        }
    }
}
