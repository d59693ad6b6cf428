//! What the host sees of a page that stays with its VM.

use ept::addr::PAGE;
use ept::frames::{State, View};
use ept::shadow::Access;
use membrane::vm::{Cause, Filled};
use proptest::collection::vec;
use proptest::prelude::*;
use ticket::audit::Kind;

use crate::board::{Page, VIEWS};
use crate::refusals::{events, page};
use crate::world::{DATA, LEAF, PRIVATE, World, frame, tables};

const P: u64 = PRIVATE[2];
const F: u64 = 40 * PAGE;
const G: u64 = 41 * PAGE;
const JUNK: Page = [0x3c; 4096];

fn map(world: &mut World, number: u64, entry: u64) {
    let _ = world.store(tables(0).pt, number, entry);
}

/// A VM that has stored page `P` in frame `F`.
fn written() -> World {
    let mut world = World::running();
    map(&mut world, P, F | LEAF);
    world.guest_write(0, P).unwrap();
    world
}

/// What the host sees at `base` instead.
fn view_of(world: &World, base: u64) -> Option<View> {
    match world.table.state(frame(base)) {
        Some(State::Private { view, .. }) => view,
        other => panic!("{base:#x} is {other:?}"),
    }
}

fn is_private(world: &World, base: u64) -> bool {
    matches!(world.table.state(frame(base)), Some(State::Private { .. }))
}

fn is_forged(world: &mut World, content: &Page) {
    world.honest = false;
    world.host_write(G, content);
    map(world, P, G | LEAF);
    let cause = Cause::Forged(page(P));
    assert_eq!(world.guest_read(0, P), Err(Filled::Stopped(cause)));
    world.check();
}

#[test]
fn what_the_host_writes_to_a_private_page_is_lost_and_no_vm_notices() {
    let mut world = written();
    world.host_write(F, &JUNK);
    assert!(world.host_read(F) == JUNK, "it is memory of a kind");
    world.check();
    let flushes = world.board.flushes;
    world.guest_read(0, P).unwrap();
    assert!(world.reach(0, P, Access::FETCH).is_ok());
    assert_eq!(world.board.flushes, flushes, "the VM reads on");
    world.guest_write(0, P).unwrap();
    world.check();
    assert_eq!(view_of(&world, F), None);
    assert!(world.host_read(F) != JUNK, "the page has changed");
    world.host_write(F, &JUNK);
    map(&mut world, P, 0);
    assert!(world.host_read(F) != JUNK, "the page has left");
    map(&mut world, P, F | LEAF);
    world.guest_read(0, P).unwrap();
    world.check();
    world.finish();
}

#[test]
fn what_the_host_reads_is_what_leaves_and_may_come_back() {
    for before in [false, true] {
        let mut world = written();
        if before {
            // The page was outside before, and is as it was then.
            map(&mut world, P, 0);
            let outside = world.host_read(F);
            map(&mut world, P, F | LEAF);
            world.guest_read(0, P).unwrap();
            assert!(world.host_read(F) == outside);
        }
        let seen = world.host_read(F);
        map(&mut world, P, 0);
        assert!(world.host_read(F) == seen);
        world.host_write(F, &JUNK);
        world.host_write(G, &seen);
        map(&mut world, P, G | LEAF);
        world.guest_read(0, P).unwrap();
        world.check();
        world.finish();
    }
}

#[test]
fn the_host_always_sees_the_page_of_now_and_an_older_one_is_refused() {
    let mut world = written();
    let old = world.host_read(F);
    assert!(world.host_read(F) == old);
    world.guest_write(0, P).unwrap();
    assert_eq!(view_of(&world, F), None, "taken back before the VM can write");
    let new = world.host_read(F);
    assert!(new != old);
    map(&mut world, P, 0);
    assert!(world.host_read(F) == new);
    is_forged(&mut world, &old);
    world.finish();
}

#[test]
fn a_page_that_the_vm_may_not_even_read_keeps_its_view_until_it_is_mapped_again() {
    let mut world = written();
    let seen = world.host_read(F);
    // The host clears the accessed flag.
    map(&mut world, P, F | 0x37);
    assert!(world.host_read(F) == seen);
    world.check();
    world.guest_read(0, P).unwrap();
    assert!(world.host_read(F) == seen);
    world.check();
    world.finish();
}

#[test]
fn when_all_views_are_in_use_the_one_given_out_longest_ago_is_taken_back() {
    let mut world = World::running();
    let bases: Vec<u64> = (0..5).map(|number| (DATA.0 + number) * PAGE).collect();
    let pages = &PRIVATE[1..];
    for (number, base) in pages.iter().zip(&bases).skip(1) {
        map(&mut world, *number, base | LEAF);
        world.guest_write(0, *number).unwrap();
    }
    assert_eq!(VIEWS.1 - VIEWS.0, 3 * PAGE);
    for round in 0..9_u8 {
        let base = bases[1 + usize::from(round % 4)];
        assert_eq!(view_of(&world, base), None);
        world.host_write(base, &JUNK);
        assert_eq!(view_of(&world, base), Some(View(round % 3)));
        world.check();
    }
    for number in &pages[1..] {
        world.guest_read(0, *number).unwrap();
    }
    world.finish();
}

#[test]
fn a_page_keeps_its_view_when_one_that_it_had_before_is_given_out_again() {
    let mut world = written();
    let _ = world.host_read(F);
    world.guest_write(0, P).unwrap();
    let _ = world.host_read(F);
    assert_eq!(view_of(&world, F), Some(View(1)));
    let others = [(PRIVATE[3], 42 * PAGE), (PRIVATE[4], 43 * PAGE)];
    for (view, (number, base)) in [2, 0].into_iter().zip(others) {
        map(&mut world, number, base | LEAF);
        world.guest_write(0, number).unwrap();
        let flushes = world.board.flushes;
        let _ = world.host_read(base);
        assert_eq!((view_of(&world, base), world.board.flushes), (Some(View(view)), flushes + 1));
        assert_eq!(view_of(&world, F), Some(View(1)));
        world.check();
    }
    world.finish();
}

#[test]
fn two_processors_of_the_host_that_touch_a_page_at_once_get_one_view() {
    let mut world = written();
    let flushes = world.board.flushes;
    for _ in 0..2 {
        let (mut machine, vms) = world.parts();
        assert!(vms.touched(&mut machine, frame(F)));
        assert_eq!(view_of(&world, F), Some(View(0)));
        assert_eq!(world.board.flushes, flushes + 1, "the second finds it there");
    }
    let touched = (Kind::Touched.number(), P * PAGE, 0);
    assert_eq!(events(&world).iter().filter(|event| **event == touched).count(), 1);
    world.check();
    world.finish();
}

#[test]
fn another_vm_gets_the_frame_itself_and_what_it_stores_there_comes_back() {
    let mut world = written();
    for shown in [false, true] {
        if shown {
            let _ = world.host_read(F);
        }
        let seen = world.other_vm_gets(F);
        assert_eq!(world.table.state(frame(F)), Some(State::Plain { maps: 0 }));
        assert!(world.host_read(F) == seen);
        world.check();
        world.guest_read(0, P).unwrap();
    }
    world.honest = false;
    let _ = world.other_vm_gets(F);
    world.host_write(F, &JUNK);
    assert_eq!(world.guest_read(0, P), Err(Filled::Stopped(Cause::Forged(page(P)))));
    let (mut machine, vms) = world.parts();
    assert!(!vms.give_up(&mut machine, frame(G)), "that is the host's own");
    world.finish();
}

#[test]
fn without_views_the_host_gets_the_frame_itself() {
    let mut world = written();
    world.table.set_views(ept::addr::Span::EMPTY);
    let seen = world.host_read(F);
    assert_eq!(world.table.state(frame(F)), Some(State::Plain { maps: 0 }));
    world.guest_read(0, P).unwrap();
    map(&mut world, P, 0);
    assert!(world.host_read(F) == seen);
    world.finish();
}

#[test]
fn without_memory_to_remember_a_view_the_page_only_gets_a_new_version() {
    for left in 0..6 {
        let mut world = written();
        world.starve(left);
        let seen = world.host_read(F);
        world.starve(crate::world::PLENTY);
        map(&mut world, P, 0);
        assert_eq!(world.host_read(F) == seen, left >= 5);
        map(&mut world, P, F | LEAF);
        world.guest_read(0, P).unwrap();
        world.check();
        world.finish();
    }
}

#[test]
fn a_host_that_only_reads_takes_no_memory_that_is_needed_elsewhere() {
    for scarce in [false, true] {
        let mut world = written();
        world.board.scarce = scarce;
        let used = world.board.used();
        let seen = world.host_read(F);
        assert_eq!(world.board.used() > used, !scarce);
        map(&mut world, P, 0);
        assert_eq!(world.host_read(F) == seen, !scarce, "else it is a new version");
        map(&mut world, P, F | LEAF);
        world.guest_read(0, P).unwrap();
        world.check();
        world.finish();
    }
}

#[test]
fn of_a_stopped_vm_the_host_sees_zeros_or_what_it_saw_before() {
    let mut world = written();
    world.honest = false;
    map(&mut world, PRIVATE[3], G | LEAF);
    world.guest_write(0, PRIVATE[3]).unwrap();
    let seen = world.host_read(G);
    let number = world.guests[0].as_ref().unwrap().number;
    world.vms.stop(number, Cause::Processor(5), 0);
    assert!(world.host_read(F) == [0; 4096]);
    assert!(world.host_read(G) == seen);
    world.check();
    let _ = world.destroy(0);
    assert!(world.host_read(G) == [0; 4096]);
    world.finish();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// More pages than views.
    #[test]
    fn whatever_a_host_reads_and_writes_where_pages_are_their_vm_finds_what_it_stored(
        steps in vec((0..4_usize, 0..6_u8), 1..60),
    ) {
        let mut world = World::running();
        let base = |at: usize| (DATA.0 + u64::try_from(at).unwrap()) * PAGE;
        let mut seen: [Option<Page>; 4] = [None; 4];
        for (at, step) in steps {
            let number = PRIVATE[2 + at];
            let away = world.entry(tables(0).pt, number) == 0;
            match step {
                0 | 1 if away => map(&mut world, number, base(at) | LEAF),
                0 => world.guest_read(0, number).unwrap(),
                1 => {
                    world.guest_write(0, number).unwrap();
                    seen[at] = None;
                }
                2 | 3 if is_private(&world, base(at)) => {
                    let page = world.host_read(base(at));
                    // What it wrote itself it has until the view goes.
                    if page != JUNK {
                        prop_assert!(seen[at].is_none_or(|before| before == page));
                        seen[at] = Some(page);
                    }
                }
                4 if is_private(&world, base(at)) => world.host_write(base(at), &JUNK),
                5 if !away => {
                    map(&mut world, number, 0);
                    let left = world.host_read(base(at));
                    prop_assert!(seen[at].is_none_or(|before| before == left));
                }
                _ => {}
            }
            world.check();
        }
        world.finish();
    }
}
