//! Direct mode: what hosts do, and what a hostile one tries.

use ept::addr::{Frame, GuestFrame};
use ept::direct::{Generation, Refused};
use ept::entry::Level;
use ept::frames::{Event, FrameTable, Guard, Refusal, State, Vm};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::board::{Board, Part, TABLES, VISOR, ram};
use crate::hostile::{World, play};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// A root, and one table of each level below.
pub(crate) const TREE: [u64; 4] = [ROOT, PDPT, PD, PT];
pub(crate) const ROOT: u64 = TABLES[0][0];
pub(crate) const PDPT: u64 = TABLES[1][1];
pub(crate) const PD: u64 = TABLES[2][2];
pub(crate) const PT: u64 = TABLES[3][2];
/// A page of data.
pub(crate) const PAGE: u64 = 4 * MIB + 0x8000;

/// Lets `test` use a world without races.
pub(crate) fn with_world(test: impl FnOnce(&mut World<'_>)) {
    let ram = ram();
    let mut storage = vec![0; usize::try_from(FrameTable::entries(&ram)).unwrap()];
    let frames = FrameTable::new(&ram, &mut storage).unwrap();
    let generation = Generation::new();
    let mut world = World::new(frames, Board::new(&generation, 0));
    test(&mut world);
    world.finish();
}

/// The same with the tables of [`TREE`], of which the last maps [`PAGE`], loaded.
pub(crate) fn with_tree(test: impl FnOnce(&mut World<'_>)) {
    with_world(|world| {
        build(world);
        let _ = world.load(ROOT).unwrap();
        test(world);
    });
}

impl World<'_> {
    pub(crate) fn load(&mut self, root: u64) -> Result<u64, Refused> {
        self.load_for(root, Guard::Counted)
    }
}

pub(crate) fn build(world: &mut World<'_>) {
    for pair in TREE.windows(2) {
        world.board.store((pair[0], 0), pair[1] | 7);
    }
    world.board.store((PT, 0), PAGE | 0x37);
}

pub(crate) fn maps(world: &World<'_>, page: u64) -> Option<u64> {
    match world.state(page)? {
        State::Plain { maps } => Some(maps),
        State::Visor
        | State::Fresh { .. }
        | State::Table { .. }
        | State::Leaving { .. }
        | State::Private { .. } => None,
    }
}

fn is_table(world: &World<'_>, page: u64, level: Level, links: u16) -> bool {
    world.state(page) == Some(State::Table { level, guard: Guard::Counted, links })
}

pub(crate) fn set(world: &mut World<'_>, at: (u64, usize), value: u64) -> Result<(), Refused> {
    let index = u64::try_from(at.1).unwrap();
    let _ = world.write(at.0 + 8 * index, 8, |_| value)?;
    assert_eq!(world.board.cell(at), value);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn whatever_a_host_stores_nothing_leads_where_it_must_not_and_nothing_is_lost(
        luck in any::<u64>(),
        steps in vec(any::<u64>(), 1..300),
    ) {
        play(luck, steps);
    }
}

#[test]
fn a_loaded_tree_is_counted_and_read_only_until_it_is_released() {
    with_tree(|world| {
        let levels = [Level::Pml4, Level::Pdpt, Level::Pd, Level::Pt];
        for (table, level) in TREE.into_iter().zip(levels) {
            assert!(is_table(world, table, level, 1), "{:?}", world.state(table));
            assert!(!world.board.may_write_now(table));
        }
        assert_eq!(maps(world, PAGE), Some(1));
        assert_eq!(world.board.flushes, 4);
        let again = world.load(ROOT);
        assert!(again.is_ok() && world.board.flushes == 4);
        world.release(ROOT);
        assert_eq!(world.board.flushes, 5);
        assert!(TREE.iter().all(|table| world.board.may_write_now(*table)));
        assert_eq!(maps(world, PAGE), Some(0));
    });
}

#[test]
fn a_table_that_says_something_else_than_the_frame_table_is_found() {
    with_tree(|world| {
        assert_eq!(world.disagreement(), None);
        let [_, pdpt, pd, pt] = TREE;
        // The visor's memory; what is no table; a table of another level.
        for (at, entry) in [(pt, VISOR.0 | 7), (pd, (GIB + 2 * MIB) | 7), (pdpt, pt | 7)] {
            let _ = world.board.cells.insert((at, 5), entry);
            assert_eq!(world.disagreement(), Some(at), "{entry:#x}");
            let _ = world.board.cells.remove(&(at, 5));
        }
        assert_eq!(world.disagreement(), None);
        // EPT01 has not followed.
        let page = Frame::containing(GIB + 2 * MIB);
        let take = Event::Take(Vm::new(0).unwrap(), GuestFrame::containing(0));
        let _ = world.frames.change(page, take).unwrap();
        assert_eq!(world.disagreement(), Some(page.base()));
        let _ = world.frames.change(page, Event::Release).unwrap();
    });
}

#[test]
fn releasing_ends_the_generation_and_loading_does_not() {
    with_world(|world| {
        build(world);
        let first = world.load(ROOT).unwrap();
        assert_eq!(world.load(TABLES[0][1]), Ok(first));
        world.release(TABLES[0][1]);
        assert_ne!(world.load(ROOT), Ok(first));
    });
}

#[test]
fn leaves_come_and_go_without_a_flush_and_without_ept01() {
    with_tree(|world| {
        let before = (world.board.flushes, world.board.tables.stores);
        let other = PAGE + 0x1000;
        set(world, (PT, 1), PAGE | 0x31).unwrap();
        assert_eq!(maps(world, PAGE), Some(2));
        // Other rights, other flags, ignored bits: the same frame.
        set(world, (PT, 1), PAGE | 0xfff0_0000_0000_0737).unwrap();
        assert_eq!(maps(world, PAGE), Some(2));
        set(world, (PT, 1), other | 0x37).unwrap();
        assert_eq!((maps(world, PAGE), maps(world, other)), (Some(1), Some(1)));
        // What KVM marks device memory with, and what it writes meanwhile.
        for nothing in [0, 0x5a0, 0xfff8_0000_fee0_0006] {
            set(world, (PT, 1), other | 0x37).unwrap();
            set(world, (PT, 1), nothing).unwrap();
            assert_eq!(maps(world, other), Some(0), "{nothing:#x}");
        }
        assert_eq!((world.board.flushes, world.board.tables.stores), before);
    });
}

#[test]
fn a_large_page_keeps_tables_out_of_it_and_tables_keep_it_out() {
    with_tree(|world| {
        let block = GIB + 2 * MIB;
        set(world, (PD, 1), block | 0xb7).unwrap();
        let inside = Refused::Frame(Refusal::Mapped(Frame::containing(block)));
        assert_eq!(set(world, (PD, 2), block | 7), Err(inside));
        // Half of the block is RAM, the visor's tables lie elsewhere; the other half is a hole.
        set(world, (PD, 1), 0xb0).unwrap();
        set(world, (PD, 2), block | 7).unwrap();
        let Err(Refused::Frame(Refusal::Closed(_))) = set(world, (PD, 1), block | 0xb7) else {
            panic!("a table is in it");
        };
        set(world, (PD, 2), 0).unwrap();
        set(world, (PD, 1), block | 0xb7).unwrap();
    });
}

#[test]
fn a_huge_page_covers_holes_but_neither_tables_nor_the_visor() {
    with_tree(|world| {
        set(world, (PDPT, 1), GIB | 0x87).unwrap();
        let table = Frame::containing(GIB);
        let mapped = Refused::Frame(Refusal::Mapped(table));
        assert_eq!(world.load(GIB), Err(mapped));
        set(world, (PDPT, 1), (2 * GIB) | 0x87).unwrap();
        assert!(world.load(GIB).is_ok());
        assert!(matches!(set(world, (PDPT, 1), GIB | 0x87), Err(Refused::Frame(_))));
        assert!(matches!(set(world, (PDPT, 2), 0x87), Err(Refused::Frame(_))));
        assert!(matches!(set(world, (PDPT, 2), (3 * GIB) | 0x87), Err(Refused::Denied(_))));
    });
}

#[test]
fn a_large_page_is_split_into_a_table_and_back() {
    with_tree(|world| {
        let block = GIB + 2 * MIB;
        let table = TABLES[3][1];
        set(world, (PD, 1), block | 0xb7).unwrap();
        for (index, page) in [0, 0x1000, 0x2000].into_iter().enumerate() {
            world.board.store((table, index), (block + page) | 0x37);
        }
        set(world, (PD, 1), table | 7).unwrap();
        assert!(is_table(world, table, Level::Pt, 1));
        assert_eq!(maps(world, block + 0x1000), Some(1));
        set(world, (PD, 1), block | 0xb7).unwrap();
        assert!(world.board.may_write_now(table));
        assert_eq!(maps(world, block + 0x1000), Some(0));
    });
}

#[test]
fn a_subtree_is_given_back_with_one_flush_and_not_before() {
    with_tree(|world| {
        let before = world.board.flushes;
        set(world, (ROOT, 0), 0).unwrap();
        assert_eq!(world.board.flushes, before + 1);
        assert!([PDPT, PD, PT].iter().all(|table| world.board.may_write_now(*table)));
        assert!(!world.board.may_write_now(ROOT));
        assert_eq!(maps(world, PAGE), Some(0));
    });
}

#[test]
fn a_table_with_two_links_stays_one_until_both_are_gone() {
    with_tree(|world| {
        set(world, (PDPT, 1), PD | 7).unwrap();
        assert!(is_table(world, PD, Level::Pd, 2));
        set(world, (PDPT, 0), 0).unwrap();
        assert!(is_table(world, PD, Level::Pd, 1));
        assert_eq!(maps(world, PAGE), Some(1));
        set(world, (PDPT, 1), 0).unwrap();
        assert_eq!(maps(world, PD), Some(0));
        assert_eq!(maps(world, PAGE), Some(0));
    });
}

#[test]
fn what_leads_where_it_must_not_is_refused_and_changes_nothing() {
    with_tree(|world| {
        let table = |frame: u64| {
            Refused::Frame(Refusal::State(Frame::containing(frame), world.state(frame).unwrap()))
        };
        let visor = table(VISOR.0);
        let (root, leaf) = (table(ROOT), table(PT));
        let hole = 2 * MIB + 0x8_0000;
        for (at, value, refused) in [
            ((PT, 1), VISOR.0 | 0x31, visor),
            ((PT, 1), VISOR.0 | 0x34, visor),
            ((PT, 1), PT | 0x37, leaf),
            ((PD, 1), VISOR.0 | 7, visor),
            // A table of two levels, one that is its own, and the root.
            ((PDPT, 1), PT | 7, leaf),
            ((PDPT, 1), ROOT | 7, root),
            ((ROOT, 1), ROOT | 0x87, root),
        ] {
            assert_eq!(set(world, at, value), Err(refused), "{value:#x}");
            assert_eq!(world.board.cell(at), 0);
        }
        assert!(matches!(set(world, (PD, 1), hole | 7), Err(Refused::Frame(Refusal::NotRam(_)))));
        assert!(matches!(set(world, (PT, 1), (32 * GIB) | 7), Err(Refused::Denied(_))));
        assert_eq!(maps(world, PAGE), Some(1));
    });
}

#[test]
fn a_bad_entry_deep_in_a_tree_undoes_the_whole_link() {
    with_tree(|world| {
        let [pd, pt] = [TABLES[2][0], TABLES[3][0]];
        world.board.store((pd, 0), PT | 7);
        world.board.store((pd, 1), pt | 7);
        world.board.store((pt, 0), PAGE | 7);
        world.board.store((pt, 511), VISOR.0 | 7);
        assert!(set(world, (PDPT, 1), pd | 7).is_err());
        assert!(world.board.may_write_now(pd) && world.board.may_write_now(pt));
        assert!(is_table(world, PT, Level::Pt, 1));
        assert_eq!(maps(world, PAGE), Some(1));
        world.board.store((pt, 511), 0);
        set(world, (PDPT, 1), pd | 7).unwrap();
        assert!(is_table(world, PT, Level::Pt, 2));
        assert_eq!(maps(world, PAGE), Some(2));
    });
}

#[test]
fn demoting_releases_the_roots_that_lead_to_the_table_and_no_others() {
    with_tree(|world| {
        let [other, third] = [TABLES[0][1], TABLES[0][2]];
        world.board.store((other, 511), PDPT | 7);
        world.board.store((third, 0), TABLES[1][0] | 7);
        let _ = world.load(other).unwrap();
        let _ = world.load(third).unwrap();
        let flushes = world.board.flushes;
        world.demote(PT);
        assert_eq!(world.loaded(), [third]);
        assert_eq!(world.board.flushes, flushes + 1);
        assert!(world.board.may_write_now(PT));
        world.demote(PT);
        assert_eq!(world.board.flushes, flushes + 1);
    });
}

#[test]
fn a_search_without_end_releases_rather_more() {
    with_world(|world| {
        // Every entry of a table leads to the same next one: 2^27 ways down.
        for pair in [ROOT, PDPT, PD, PT].windows(2) {
            for index in 0..512 {
                world.board.store((pair[0], index), pair[1] | 7);
            }
        }
        let _ = world.load(ROOT).unwrap();
        let other = TABLES[0][1];
        world.board.store((other, 0), TABLES[1][0] | 7);
        world.board.store((TABLES[1][0], 0), TABLES[2][0] | 7);
        world.board.store((TABLES[2][0], 0), TABLES[3][0] | 7);
        let _ = world.load(other).unwrap();
        world.demote(TABLES[3][0]);
        assert!(world.loaded().is_empty());
    });
}

#[test]
fn a_root_that_is_not_in_use_makes_room_and_one_that_is_does_not() {
    with_world(|world| {
        let [a, b, c, d] = TABLES[0];
        for root in [a, b, c] {
            let _ = world.load(root).unwrap();
        }
        assert_eq!(world.load(d), Err(Refused::Full));
        world.board.stop(b);
        assert!(world.load(d).is_ok());
        let mut expected = vec![a, c, d];
        expected.sort_unstable();
        let mut loaded = world.loaded();
        loaded.sort_unstable();
        assert_eq!(loaded, expected);
    });
}

#[test]
fn a_root_that_the_host_has_emptied_is_given_back() {
    with_tree(|world| {
        set(world, (ROOT, 1), PDPT | 7).unwrap();
        for index in 0..2 {
            world.release_empty(ROOT + 8 * index);
            assert_eq!(world.loaded(), [ROOT]);
            world.release_empty(PD);
            set(world, (ROOT, usize::try_from(index).unwrap()), 0x5a0).unwrap();
        }
        world.release_empty(ROOT + 8);
        assert!(world.loaded().is_empty() && world.board.may_write_now(ROOT));
    });
}

#[test]
fn parts_of_entries_are_stored_as_the_whole_that_they_make() {
    with_tree(|world| {
        let low = world.write(PT + 8, 4, |old| old | PAGE | 7).unwrap();
        assert_eq!((low.old, low.new), (0, PAGE | 7));
        assert_eq!(maps(world, PAGE), Some(2));
        let borrow = world.write(PT + 16, 4, |old| old.wrapping_sub(1)).unwrap();
        assert_eq!((borrow.old, borrow.new), (0, 0xffff_ffff));
        assert_eq!(world.board.cell((PT, 2)), 0xffff_ffff);
        let _ = world.write(PT + 16, 8, |_| 0).unwrap();
        let high = world.write(PT + 12, 4, |old| old + 0xfff0_0000).unwrap();
        assert_eq!((high.old, high.new), (0, 0xfff0_0000));
        assert_eq!(world.board.cell((PT, 1)), 0xfff0_0000_0000_0000 | PAGE | 7);
        // The high half makes it an address that no processor has.
        let _ = world.write(PT + 12, 1, |_| 0x80).unwrap();
        let _ = world.write(PT + 13, 1, |_| 0x80).unwrap();
        assert_eq!(maps(world, PAGE), Some(1));
        for (address, bytes) in [(PT + 12, 8), (PT + 7, 2), (PT + 1, 0), (PT, 3), (PT, 16)] {
            let refused = world.write(address, bytes, |old| old);
            assert_eq!(refused, Err(Refused::Operand(address)), "{address:#x} {bytes}");
        }
        world.board.keep(&[(PT, 1), (PT, 2)]);
    });
}

#[test]
fn a_store_to_what_is_no_table_is_refused() {
    with_tree(|world| {
        let refused = Refused::NoTable(Frame::containing(PAGE));
        assert_eq!(world.write(PAGE, 8, |old| old), Err(refused));
        let hole = 2 * MIB + 0x8_0000;
        assert!(matches!(world.write(hole, 8, |old| old), Err(Refused::NoTable(_))));
    });
}

#[test]
fn flags_that_the_processor_sets_meanwhile_are_kept() {
    with_tree(|world| {
        world.board.flag_next = 0x300;
        let written = world.write(PT, 8, |old| old & !2).unwrap();
        assert_eq!((written.old, written.new), (PAGE | 0x337, PAGE | 0x335));
        assert_eq!(world.board.cell((PT, 0)), PAGE | 0x335);
        // A link that turned into another one while it was checked is checked again.
        world.board.flag_next = 0x100;
        let written = world.write(PT, 8, |old| if old & 0x100 == 0 { VISOR.0 } else { 0 });
        assert_eq!(written.map(|written| written.new), Ok(0));
        assert_eq!(world.board.cell((PT, 0)), 0);
        assert_eq!(maps(world, PAGE), Some(0));
        world.board.keep(&[(PT, 0)]);
    });
}

#[test]
fn a_link_that_loses_the_race_against_flags_is_undone() {
    with_tree(|world| {
        let (one, other) = (TABLES[3][0], TABLES[3][1]);
        set(world, (PD, 1), PT | 7).unwrap();
        world.board.flag_next = 0x100;
        let link = |old| if old & 0x100 == 0 { one | 7 } else { other | 7 };
        let written = world.write(PD + 8, 8, link).unwrap();
        assert_eq!(written.new, other | 7);
        assert_eq!(world.board.cell((PD, 1)), other | 7);
        assert!(world.board.may_write_now(one));
        assert!(is_table(world, other, Level::Pt, 1));
        world.board.keep(&[(PD, 1)]);
    });
}

#[test]
fn the_host_gets_what_it_wants_by_demotion() {
    with_tree(|world| {
        world.host_store((PT, 1), Part::WHOLE, |_| VISOR.0 | 7);
        assert!(world.loaded().is_empty());
        assert_eq!(world.board.cell((PT, 1)), VISOR.0 | 7);
        assert!(world.load(ROOT).is_err());
    });
}

#[test]
fn a_refusal_is_one_line_that_names_its_cause() {
    with_tree(|world| {
        let refused = set(world, (PT, 1), VISOR.0 | 7).unwrap_err();
        assert_eq!(refused.to_string(), "EPT12: frame table: 0x600000 is the visor's");
        let refused = set(world, (PDPT, 1), PT | 7).unwrap_err();
        assert_eq!(refused.to_string(), "EPT12: frame table: 0x403000 is a table of level Pt");
        assert_eq!(Refused::Full.to_string(), "EPT12: too many roots in use");
        let visor = world.frames.change(Frame::containing(VISOR.0), Event::Claim).unwrap_err();
        assert_eq!(visor.to_string(), "frame table: 0x600000 is the visor's");
    });
}
