//! The frame table against a set of pages.

use std::collections::BTreeSet;

use ept::addr::{Frame, PAGE, Span};
use ept::frames::{Event, FrameTable, Owner, Refusal, TableError};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::machine::{GIB, MIB, part, ram};

fn storage(ram: &[Span]) -> Vec<u64> {
    vec![0; usize::try_from(FrameTable::entries(ram)).unwrap()]
}

fn span(start: u64, end: u64) -> Span {
    Span::new(start, end).unwrap()
}

fn pages(span: Span) -> impl Iterator<Item = u64> {
    (span.start()..span.end()).step_by(4096)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn the_table_says_what_a_set_of_pages_says(
        pieces in vec((0..64_u64, 1..64_u64), 1..5),
        claims in vec((0..512_u64, 1..64_u64), 0..8),
        ask in (0..600_u64, 0..600_u64),
    ) {
        let mut ram = Vec::new();
        let mut end = 0;
        for (gap, len) in pieces {
            let piece = span(end + gap * PAGE, end + (gap + len) * PAGE);
            ram.push(piece);
            end = piece.end();
        }
        let in_ram: BTreeSet<u64> = ram.iter().copied().flat_map(pages).collect();
        let mut storage = storage(&ram);
        let mut table = FrameTable::new(&ram, &mut storage).unwrap();
        let mut visor = BTreeSet::new();
        for (first, len) in claims {
            let claim = span(first * PAGE, (first + len) * PAGE);
            let free = pages(claim).all(|page| in_ram.contains(&page) && !visor.contains(&page));
            prop_assert_eq!(table.apply(claim, Event::Claim).is_ok(), free);
            if free {
                visor.extend(pages(claim));
            }
        }
        let owner = |page: &u64| match (in_ram.contains(page), visor.contains(page)) {
            (_, true) => Some(Owner::Visor),
            (true, false) => Some(Owner::Host),
            (false, false) => None,
        };
        for page in (0..600).map(|page| page * PAGE) {
            prop_assert_eq!(table.owner(Frame::at(page).unwrap()), owner(&page));
        }
        let asked = span(ask.0.min(ask.1) * PAGE, ask.0.max(ask.1) * PAGE);
        let mut owners: Vec<_> = pages(asked).map(|page| owner(&page)).collect();
        owners.dedup();
        let expected = if let [one] = owners[..] { Some(one) } else { None };
        prop_assert_eq!(table.uniform(asked, |owner| owner), expected);
    }

    #[test]
    fn a_claim_changes_its_frames_and_their_neighbours_not(
        ram in ram(), place in any::<u64>(), len in any::<u64>(),
    ) {
        let mut storage = storage(&ram);
        let mut table = FrameTable::new(&ram, &mut storage).unwrap();
        if let Some(claim) = part(&ram, place, len) {
            prop_assert_eq!(table.apply(claim, Event::Claim), Ok(()));
            prop_assert_eq!(table.uniform(claim, |owner| owner), Some(Some(Owner::Visor)));
            let rest: u64 = ram.iter().map(|piece| {
                let before = span(piece.start(), claim.start().clamp(piece.start(), piece.end()));
                let after = span(claim.end().clamp(piece.start(), piece.end()), piece.end());
                for side in [before, after].into_iter().filter(|side| !side.is_empty()) {
                    assert_eq!(table.uniform(side, |owner| owner), Some(Some(Owner::Host)));
                }
                before.len() + after.len()
            }).sum();
            prop_assert_eq!(rest + claim.len(), FrameTable::entries(&ram) * PAGE);
        }
    }
}

#[test]
fn views_that_do_not_tell_owners_apart_find_mixed_spans_uniform() {
    let ram = [span(0, MIB), span(2 * MIB, 3 * MIB)];
    let mut storage = storage(&ram);
    let mut table = FrameTable::new(&ram, &mut storage).unwrap();
    table.apply(span(0, PAGE), Event::Claim).unwrap();
    let may_use = |owner| owner != Some(Owner::Visor);
    assert_eq!(table.uniform(span(PAGE, GIB), may_use), Some(true));
    assert_eq!(table.uniform(span(0, GIB), may_use), None);
    assert_eq!(table.uniform(span(0, 1), may_use), Some(false));
}

#[test]
fn a_refused_claim_changes_nothing() {
    let ram = [span(0, MIB)];
    let mut storage = storage(&ram);
    let mut table = FrameTable::new(&ram, &mut storage).unwrap();
    let last = span(MIB - PAGE, MIB);
    table.apply(last, Event::Claim).unwrap();
    let beyond = span(0, MIB + PAGE);
    assert_eq!(table.apply(beyond, Event::Claim), Err(Refusal::NotRam(beyond)));
    let taken = ram[0];
    let refusal = Refusal::Owned(taken, Owner::Visor);
    assert_eq!(table.apply(taken, Event::Claim), Err(refusal));
    let half = span(0, PAGE / 2);
    assert_eq!(table.apply(half, Event::Claim), Err(Refusal::NotRam(half)));
    let rest = span(0, MIB - PAGE);
    assert_eq!(table.uniform(rest, |owner| owner), Some(Some(Owner::Host)));
    assert_eq!(refusal.to_string(), "frame table: 0x0..0x100000 has a frame of the visor's");
}

#[test]
fn ram_out_of_order_or_in_parts_of_pages_is_refused() {
    for ram in [
        [span(MIB, 2 * MIB), span(0, MIB)],
        [span(0, MIB), span(MIB - PAGE, 2 * MIB)],
        [span(0, MIB), span(MIB, 2 * MIB - 1)],
    ] {
        let mut storage = storage(&ram);
        let error = FrameTable::new(&ram, &mut storage).map(|_| ()).unwrap_err();
        assert_eq!(error, TableError::Disorder(ram[1]));
    }
}

#[test]
fn storage_must_have_one_entry_per_frame() {
    let ram = [span(0, MIB)];
    for entries in [0, 255, 257] {
        let mut storage = vec![0; entries];
        let error = FrameTable::new(&ram, &mut storage).map(|_| ()).unwrap_err();
        assert_eq!(error, TableError::Storage);
    }
}
