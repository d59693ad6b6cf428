//! How much, and where.

use std::collections::BTreeSet;

use ept::addr::{LARGE, PAGE, Span};
use ept::ept01::tables_needed;
use ept::frames::FrameTable;
use ept::reserve::{Need, place, size};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::machine::{GIB, MIB};

fn span(start: u64, end: u64) -> Span {
    Span::new(start, end).unwrap()
}

fn need<'r>(ram: &'r [Span], processors: u32, width: u8) -> Need<'r> {
    Need { image: 2 * MIB, processors, per_processor: 64 << 10, ram, width }
}

/// RAM of `gib` GiB with the usual hole below 4 GiB.
fn ram(gib: u64) -> [Span; 3] {
    let low = (gib * GIB).min(3 * GIB);
    [span(0, 640 << 10), span(MIB, low), span(4 * GIB, 4 * GIB + gib * GIB - low)]
}

#[test]
fn the_visor_takes_at_most_one_percent_and_16_mib() {
    for (gib, processors, width) in
        [(1, 4, 39), (1, 2, 52), (16, 16, 46), (512, 512, 46), (512, 256, 52)]
    {
        let ram = ram(gib);
        let size = size(&need(&ram, processors, width));
        let limit = gib * GIB / 100 + 16 * MIB;
        assert!(size.total() <= limit, "{gib} GiB: {size:?} is {} bytes", size.total());
    }
}

#[test]
fn every_purpose_has_its_share_and_the_total_is_whole_large_pages() {
    let ram = ram(16);
    let size = size(&Need { image: 5, per_processor: 5, ..need(&ram, 3, 40) });
    assert_eq!(size.image, PAGE);
    assert_eq!(size.processors, 3 * PAGE);
    assert_eq!(size.frame_table, (FrameTable::entries(&ram) * 8).next_multiple_of(PAGE));
    // A page table for each 2 MiB of RAM, should there be something to withhold in all of them.
    assert_eq!(size.ept, tables_needed(1 << 40, &ram) * PAGE);
    assert!(size.ept > 8192 * PAGE);
    // Page directories of 16 GiB and the first 4, at least.
    assert!(size.paging >= 20 * PAGE);
    // An entry and a record for every second page.
    let private = ram.iter().map(|ram| ram.len() / PAGE).sum::<u64>() / 2;
    assert!(size.protected >= private * 40 && size.protected.is_multiple_of(PAGE));
    let host = size.frame_table + size.ept + size.paging;
    let sum = size.image + size.processors + host + size.protected + size.spare;
    assert!(
        size.total() >= sum && size.total() - sum < LARGE && size.total().is_multiple_of(LARGE)
    );
}

proptest! {
    #[test]
    fn the_place_is_the_highest_that_fits(
        ram in vec((0..40_u64, 1..60_u64), 1..5),
        avoid in vec((0..200_u64, 0..20_u64), 0..6),
        large in 1..10_u64,
    ) {
        // In units of 512 KiB, so that spans begin and end within large pages.
        let unit = LARGE / 4;
        let mut end = 0;
        let ram: Vec<_> = ram.into_iter().map(|(gap, len)| {
            let piece = span(end + gap * unit, end + (gap + len) * unit);
            end = piece.end();
            piece
        }).collect();
        let avoid: Vec<_> =
            avoid.into_iter().map(|(at, len)| span(at * unit, (at + len) * unit)).collect();
        let total = large * LARGE;
        let highest = (0..=end / LARGE).rev().map(|at| span(at * LARGE, at * LARGE + total)).find(
            |spot| ram.iter().any(|r| r.covers(*spot)) && !avoid.iter().any(|a| a.overlaps(*spot)),
        );
        prop_assert_eq!(place(total, &ram, &avoid), highest);
    }
}

proptest! {
    #[test]
    fn the_visors_own_tables_suffice_wherever_ram_lies(
        pieces in vec((0..2048_u64, 1..2048_u64), 1..20), image in 1..32 * MIB,
    ) {
        let mut end = 0;
        let ram: Vec<_> = pieces.into_iter().map(|(gap, len)| {
            let piece = span(end + gap * GIB / 3 / PAGE * PAGE, end + (gap + len) * GIB / 3 / PAGE * PAGE);
            end = piece.end();
            piece
        }).collect();
        let low = span(0, 4 * GIB);
        let blocks = |each: u64| {
            let all = ram.iter().chain([&low]);
            let set: BTreeSet<_> = all.flat_map(|s| s.start() / each..s.end().div_ceil(each)).collect();
            u64::try_from(set.len()).unwrap()
        };
        // The image may begin at the end of a page table's part.
        let image_tables = (image + LARGE - PAGE).div_ceil(LARGE) + 2;
        let tables = 1 + blocks(512 * GIB) + blocks(GIB) + image_tables;
        let size = size(&Need { image, ..need(&ram, 1, 46) });
        prop_assert!(size.paging >= tables * PAGE, "{} of {tables}", size.paging / PAGE);
    }
}

#[test]
fn there_is_no_place_in_too_little_memory() {
    assert_eq!(place(4 * LARGE, &[span(MIB, MIB + 4 * LARGE)], &[]), None);
    assert_eq!(place(4 * LARGE, &[], &[]), None);
    assert_eq!(place(u64::MAX, &[span(0, GIB)], &[]), None);
}
