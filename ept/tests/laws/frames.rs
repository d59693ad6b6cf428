//! The frame table against a set of pages.

use std::collections::BTreeSet;

use ept::addr::{Frame, GuestFrame, PAGE, Span};
use ept::entry::Level;
use ept::frames::{Event, FrameTable, Guard, Owner, Refusal, State, TableError, Vm};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::machine::{GIB, MIB, part, ram};

fn storage(ram: &[Span]) -> Vec<u64> {
    vec![0; usize::try_from(FrameTable::entries(ram)).unwrap()]
}

fn span(start: u64, end: u64) -> Span {
    Span::new(start, end).unwrap()
}

/// Whether `owner` has the pages of `span`: the first, the last, and some hundred between.
fn has(table: &FrameTable<'_>, owner: Owner, span: Span) -> bool {
    let step = 1 + usize::try_from(span.len() / PAGE / 128).unwrap();
    let mut some = pages(span).step_by(step).chain([span.end() - PAGE]);
    some.all(|page| table.owner(Frame::at(page).unwrap()) == Some(owner))
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
    }

    #[test]
    fn a_claim_changes_its_frames_and_their_neighbours_not(
        ram in ram(), place in any::<u64>(), len in any::<u64>(),
    ) {
        let mut storage = storage(&ram);
        let mut table = FrameTable::new(&ram, &mut storage).unwrap();
        if let Some(claim) = part(&ram, place, len) {
            prop_assert_eq!(table.apply(claim, Event::Claim), Ok(()));
            prop_assert!(has(&table, Owner::Visor, claim));
            let rest: u64 = ram.iter().map(|piece| {
                let before = span(piece.start(), claim.start().clamp(piece.start(), piece.end()));
                let after = span(claim.end().clamp(piece.start(), piece.end()), piece.end());
                for side in [before, after].into_iter().filter(|side| !side.is_empty()) {
                    assert!(has(&table, Owner::Host, side));
                }
                before.len() + after.len()
            }).sum();
            let all: u64 = ram.iter().map(|piece| piece.len()).sum();
            prop_assert_eq!(rest + claim.len(), all);
        }
    }
}

/// What happens to a page or to the block of a level around it.
#[derive(Clone, Copy, Debug)]
enum Step {
    Claim,
    Map(Level),
    Unmap(Level),
    Link,
    Unlink,
    Take,
    Release,
}

fn step() -> impl Strategy<Value = Step> {
    let level = proptest::sample::select(vec![Level::Pt, Level::Pd, Level::Pdpt]);
    prop_oneof![
        1 => Just(Step::Claim),
        5 => level.clone().prop_map(Step::Map),
        5 => level.prop_map(Step::Unmap),
        5 => Just(Step::Link),
        5 => Just(Step::Unlink),
        5 => Just(Step::Take),
        5 => Just(Step::Release),
    ]
}

/// Pages around the edges of RAM: inside, outside, and in blocks that have parts of both.
const PLACES: [u64; 8] = [0, 2 * MIB - PAGE, 2 * MIB, 3 * MIB, 4 * MIB, 5 * MIB, GIB - PAGE, GIB];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn no_frame_is_mapped_by_leaves_of_any_size_and_a_table_private_or_claimed(
        steps in vec((step(), proptest::sample::select(PLACES.to_vec())), 1..80),
    ) {
        // Two pieces share a block of 2 MiB, and all but one a block of 1 GiB.
        let ram = [span(0, 3 * MIB), span(3 * MIB + PAGE, 4 * MIB + PAGE),
            span(5 * MIB, 5 * MIB + PAGE), span(GIB, GIB + PAGE)];
        let in_ram = |page: u64| ram.iter().any(|ram| ram.contains(page));
        let mut storage = storage(&ram);
        let mut table = FrameTable::new(&ram, &mut storage).unwrap();
        let (mut leaves, mut tables, mut visor) = (Vec::new(), Vec::new(), BTreeSet::new());
        let mut private = BTreeSet::new();
        let vm = Vm::new(5).unwrap();
        for (step, page) in steps {
            let frame = Frame::at(page).unwrap();
            let block = |level: Level| Span::sized(page - page % level.bytes(), level.bytes()).unwrap();
            let mapped = |leaves: &[Span]| leaves.iter().any(|leaf| leaf.contains(page));
            match step {
                Step::Claim => {
                    let free = in_ram(page) && !mapped(&leaves) && !tables.contains(&page)
                        && !visor.contains(&page) && !private.contains(&page);
                    prop_assert_eq!(table.change(frame, Event::Claim).is_ok(), free);
                    if free {
                        let _ = visor.insert(page);
                    }
                }
                Step::Link => {
                    let free = in_ram(page) && !mapped(&leaves) && !visor.contains(&page)
                        && !private.contains(&page);
                    let event = Event::Link(Level::Pt, Guard::Counted, None);
                    prop_assert_eq!(table.change(frame, event).is_ok(), free);
                    if free {
                        tables.push(page);
                    }
                }
                Step::Unlink => {
                    let at = tables.iter().position(|table| *table == page);
                    let result = table.change(frame, Event::Unlink(None));
                    prop_assert_eq!(result.is_ok(), at.is_some());
                    if let Ok(State::Leaving { .. }) = result {
                        let _ = table.change(frame, Event::Forget).unwrap();
                    }
                    let _ = at.map(|at| tables.remove(at));
                }
                Step::Take => {
                    let free = in_ram(page) && !mapped(&leaves) && !tables.contains(&page)
                        && !visor.contains(&page) && !private.contains(&page);
                    let event = Event::Take(vm, GuestFrame::containing(page));
                    prop_assert_eq!(table.change(frame, event).is_ok(), free);
                    if free {
                        let _ = private.insert(page);
                    }
                }
                Step::Release => {
                    let released = table.change(frame, Event::Release).is_ok();
                    prop_assert_eq!(released, private.remove(&page));
                }
                Step::Map(level) => {
                    let block = block(level);
                    let free = !tables.iter().chain(&visor).chain(&private).any(|page| block.contains(*page));
                    prop_assert_eq!(table.map(block, level).is_ok(), free, "{} {:?}", block, level);
                    if free {
                        leaves.push(block);
                    }
                }
                Step::Unmap(level) => {
                    let at = leaves.iter().position(|leaf| *leaf == block(level));
                    // What is not RAM has no counts.
                    if let Some(at) = at {
                        table.unmap(leaves.remove(at), level).unwrap();
                    } else if in_ram(page) {
                        prop_assert!(table.unmap(block(level), level).is_err());
                    }
                }
            }
            for level in [Level::Pt, Level::Pd, Level::Pdpt] {
                let block = block(level);
                let open = !tables.iter().chain(&visor).chain(&private).any(|page| block.contains(*page));
                prop_assert_eq!(table.open(block, level), open);
            }
            let owner = if private.contains(&page) { Some(Owner::Vm(vm)) } else { None };
            prop_assert!(owner.is_none() || table.owner(frame) == owner);
        }
    }
}

#[test]
fn a_refused_claim_changes_nothing() {
    let ram = [span(0, MIB)];
    let mut storage = storage(&ram);
    let mut table = FrameTable::new(&ram, &mut storage).unwrap();
    let last = span(MIB - PAGE, MIB);
    table.apply(last, Event::Claim).unwrap();
    let beyond = span(MIB, MIB + PAGE);
    let refusal = Refusal::State(Frame::containing(last.start()), State::Visor);
    assert_eq!(table.apply(ram[0], Event::Claim), Err(refusal));
    let mut other = self::storage(&ram);
    let mut whole = FrameTable::new(&ram, &mut other).unwrap();
    assert_eq!(whole.apply(span(0, MIB + PAGE), Event::Claim), Err(Refusal::NotRam(beyond)));
    assert!(has(&whole, Owner::Host, ram[0]));
    let half = span(0, PAGE / 2);
    assert_eq!(table.apply(half, Event::Claim), Err(Refusal::NotRam(half)));
    let rest = span(0, MIB - PAGE);
    assert!(has(&table, Owner::Host, rest));
    assert_eq!(refusal.to_string(), "frame table: 0xff000 is the visor's");
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
fn storage_must_have_the_size_that_the_ram_asks_for() {
    let ram = [span(0, MIB)];
    // Where the piece begins, its frames, its part of a block of 2 MiB and of one of 1 GiB.
    assert_eq!(FrameTable::entries(&ram), 1 + 256 + 1 + 1);
    for entries in [0, 256, 258, 260] {
        let mut storage = vec![0; entries];
        let error = FrameTable::new(&ram, &mut storage).map(|_| ()).unwrap_err();
        assert_eq!(error, TableError::Storage);
    }
}
