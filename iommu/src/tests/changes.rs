//! Frames change owner while devices use them.

use std::vec::Vec;

use ept::addr::{HUGE, LARGE, PAGE, Span};
use ept::entry::Level;
use ept::frames::{Event, Guard};
use proptest::prelude::*;

use super::world::{DENIED, DEVICE, PLACE, VISOR, World, page, take, view};
use crate::fake::{CAP, ECAP, Flaw, Sight, Try};
use crate::queue::Request;
use crate::{Capabilities, Cause, Domain, Format, Step};

/// Caching mode, and no blocks: only whole domains.
const CACHING: u64 = (CAP | 1 << 7) & !(1 << 39);
/// Three levels only, no leaves of 1 GiB.
const SMALL: u64 = CAP & !(1 << 10 | 1 << 35);
/// Leaves of 4 KiB only.
const TINY: u64 = SMALL & !(1 << 34);
/// A write buffer.
const BUFFERED: u64 = CAP | 1 << 4;

const PLACES: [u64; 9] = [
    0,
    0x9_f000,
    0xa_0000,
    PLACE,
    4 * HUGE,
    VISOR.start() - PAGE,
    VISOR.start(),
    VISOR.end(),
    DENIED.start(),
];

#[test]
fn devices_reach_all_that_is_the_hosts_and_nothing_of_the_visors() {
    for (sight, cap, ecap) in [
        (Sight::Coherent, CAP, ECAP),
        (Sight::WrittenBack, CAP, ECAP & !1),
        (Sight::Buffered, BUFFERED, ECAP),
        (Sight::Coherent, CACHING, ECAP),
        (Sight::WrittenBack, SMALL, ECAP & !1),
    ] {
        let world = World::started(sight, &[(cap, ecap)]);
        for place in PLACES.into_iter().chain([0xfee0_0000, 0xfee0_f000, 0xfef0_0000]) {
            world.check(place);
        }
        for address in [VISOR.start(), VISOR.start() + LARGE / 2, VISOR.end() - PAGE] {
            assert_eq!(world.fakes[0].dma(DEVICE, address, Try::Read), Err(6));
            assert_eq!(world.fakes[0].dma(DEVICE, address, Try::Write), Err(5));
        }
        assert_eq!(
            world.fakes[0].dma(DEVICE, 1 << 39, Try::Read),
            Err(if cap == SMALL { 4 } else { 6 })
        );
    }
}

#[test]
fn leaves_are_as_large_as_owner_and_unit_permit() {
    let level = |world: &World, address| world.domain.walk(&world.mem, address).unwrap().1;
    let mut world = World::started(Sight::Coherent, &[(CAP, ECAP)]);
    assert_eq!(level(&world, 6 * HUGE), Level::Pdpt);
    assert_eq!(level(&world, 4 * HUGE), Level::Pd);
    world.hand(PLACE, take(0));
    assert_eq!(level(&world, PLACE + PAGE), Level::Pt);
    assert_eq!(level(&world, PLACE + LARGE), Level::Pd);
    let world = World::started(Sight::Coherent, &[(CAP, ECAP), (SMALL, ECAP)]);
    assert_eq!(level(&world, 6 * HUGE), Level::Pd);
    PLACES.iter().for_each(|place| world.check(*place));
    let (mut mem, tiny) = (world.mem.clone(), Format::new(30).and(Capabilities::new(TINY, ECAP)));
    let domain = Domain::build(&mut mem, &world.policy(), tiny).unwrap();
    let (target, level) = domain.walk(&mem, HUGE - PAGE).unwrap();
    assert_eq!((target.frame.base(), level), (HUGE - PAGE, Level::Pt));
    assert_eq!(domain.walk(&mem, HUGE), None);
}

#[test]
fn a_page_is_out_of_reach_before_its_new_owner_has_it_and_all_others_stay_within() {
    for sight in [(Sight::Coherent, CAP, ECAP), (Sight::WrittenBack, CAP, ECAP & !1)] {
        let mut world = World::started(sight.0, &[(sight.1, sight.2)]);
        let near = [PLACE - PAGE, PLACE, PLACE + PAGE, PLACE + LARGE, 4 * HUGE];
        near.iter().for_each(|address| world.check(*address));
        for event in [take(0), Event::Release] {
            let old = world.snapshot();
            world.hand(PLACE, event);
            world.check_history(old, &near);
            near.iter().for_each(|address| world.check(*address));
        }
    }
}

#[test]
fn what_is_taken_stays_within_reach_only_until_the_flush() {
    let mut world = World::started(Sight::Coherent, &[(CAP, ECAP), (CACHING, ECAP)]);
    world.check(PLACE);
    world.change(PLACE, take(0));
    let stale = world.revise(page(PLACE));
    assert!(world.fakes[0].dma(DEVICE, PLACE, Try::Write).is_ok(), "the unit remembers");
    let _flushed = world.flush(stale);
    for fake in &world.fakes {
        assert_eq!(fake.dma(DEVICE, PLACE, Try::Write), Err(5));
    }
}

#[test]
fn a_unit_that_forgets_no_translations_lets_devices_reach_what_was_taken() {
    let mut world = World::started(Sight::Coherent, &[(CAP, ECAP)]);
    world.check(PLACE);
    world.fakes[0].0.borrow_mut().caches.flaw = Some(Flaw::Translations);
    world.hand(PLACE, take(0));
    assert!(world.fakes[0].dma(DEVICE, PLACE, Try::Read).is_ok());
}

#[test]
fn a_unit_that_forgets_no_structures_walks_tables_that_are_none() {
    let mut world = World::started(Sight::Coherent, &[(CAP, ECAP)]);
    world.hand(PLACE, take(0));
    world.check(PLACE + PAGE);
    world.fakes[0].0.borrow_mut().caches.flaw = Some(Flaw::Structures);
    // The table is merged away, and free to become anything.
    world.hand(PLACE, Event::Release);
    let fake = world.fakes[0].clone();
    let walk = std::panic::AssertUnwindSafe(|| fake.dma(DEVICE, PLACE, Try::Read));
    assert!(std::panic::catch_unwind(walk).is_err());
}

#[test]
fn a_view_takes_the_place_of_a_page_without_a_gap() {
    let mut world = World::started(Sight::Coherent, &[(CAP, ECAP)]);
    world.check(PLACE);
    let old = world.snapshot();
    world.change(PLACE, take(0));
    world.change(PLACE, view(3));
    world.follow(page(PLACE)).unwrap();
    world.check_history(old, &[PLACE]);
    let there = VISOR.start() + 3 * PAGE;
    assert_eq!(world.fakes[0].dma(DEVICE, PLACE, Try::Write), Ok(there));
    // It was never absent: there was a store that led from the one to the other.
    world.change(PLACE, Event::View(None));
    world.change(PLACE, Event::Release);
    let stale = world.revise(page(PLACE));
    let _flushed = world.flush(stale);
    assert_eq!(world.fakes[0].dma(DEVICE, PLACE, Try::Write), Ok(PLACE));
}

#[test]
fn a_table_of_the_hosts_is_read_only_until_it_is_none() {
    let mut world = World::started(Sight::Coherent, &[(CAP, ECAP)]);
    world.hand(PLACE, Event::Link(Level::Pt, Guard::Counted, None));
    assert_eq!(world.fakes[0].dma(DEVICE, PLACE, Try::Read), Ok(PLACE));
    assert_eq!(world.fakes[0].dma(DEVICE, PLACE, Try::Write), Err(5));
    world.hand(PLACE, Event::Unlink(None));
    world.check(PLACE);
    // Rights wait for the flush, too.
    world.hand(PLACE, Event::Forget);
    world.hand(PLACE, Event::Link(Level::Pt, Guard::Counted, None));
    world.change(PLACE, Event::Unlink(None));
    let stale = world.revise(page(PLACE));
    assert!(stale.is_empty());
    assert_eq!(world.fakes[0].dma(DEVICE, PLACE, Try::Write), Err(5));
}

#[test]
fn what_a_unit_remembers_to_be_less_than_it_is_by_now_is_forgotten() {
    let table = Event::Link(Level::Pt, Guard::Counted, None);
    let changes = [table, Event::Unlink(None), Event::Forget, take(PAGE), Event::Release];
    for (sight, cap, ecap) in [
        (Sight::Coherent, CAP, ECAP),
        (Sight::Coherent, CACHING, ECAP),
        (Sight::WrittenBack, CAP, ECAP & !1),
    ] {
        let mut world = World::started(sight, &[(cap, ecap)]);
        // So that nothing is merged, which is flushed in any case.
        world.hand(PLACE + PAGE, take(0));
        for event in changes {
            world.hand(PLACE, event);
            world.check(PLACE);
        }
    }
}

#[test]
fn what_is_given_waits_for_the_flush_of_what_is_taken() {
    let mut world = World::started(Sight::Coherent, &[(CAP, ECAP)]);
    world.hand(PLACE, take(0));
    world.change(PLACE, Event::Release);
    let stale = world.revise(page(PLACE));
    assert_eq!(world.domain.walk(&world.mem, PLACE), None);
    let flushed = world.flush(stale);
    assert!(!flushed.is_complete());
}

#[test]
fn tables_are_merged_and_freed_however_many() {
    let mut world = World::started(Sight::Coherent, &[(CAP, ECAP)]);
    let live = world.ram.borrow().live.len();
    let all = Span::new(4 * HUGE, 5 * HUGE).unwrap();
    let places: Vec<_> = (0..40).map(|n| 4 * HUGE + n * LARGE).collect();
    for place in &places {
        world.change(*place, take(*place));
    }
    world.follow(all).unwrap();
    assert_eq!(world.ram.borrow().live.len(), live + 40);
    places.iter().for_each(|place| world.check(*place));
    for place in &places {
        world.change(*place, Event::Release);
    }
    world.follow(all).unwrap();
    assert_eq!(world.ram.borrow().live.len(), live);
    places.iter().for_each(|place| world.check(*place));
}

#[test]
fn without_memory_for_a_table_nothing_is_within_reach_that_should_not_be() {
    let mut world = World::started(Sight::Coherent, &[(CAP, ECAP)]);
    world.check(PLACE);
    world.ram.borrow_mut().left = 0;
    world.change(PLACE, take(0));
    let error = world.follow(page(PLACE)).unwrap_err();
    assert_eq!(error.cause, Cause::Exhausted);
    assert_eq!(world.fakes[0].dma(DEVICE, PLACE, Try::Read), Err(6));
    assert_eq!(world.fakes[0].dma(DEVICE, PLACE + PAGE, Try::Read), Err(6));
    world.ram.borrow_mut().left = 1;
    world.follow(page(PLACE)).unwrap();
    world.check(PLACE + PAGE);
}

#[test]
fn a_unit_that_does_not_answer_lets_nobody_have_the_page() {
    let mut world = World::started(Sight::Coherent, &[(CAP, ECAP), (CAP, ECAP)]);
    world.fakes[1].0.borrow_mut().stuck = true;
    world.change(PLACE, take(0));
    let error = world.follow(page(PLACE)).unwrap_err();
    assert_eq!((error.unit, error.cause), (2 << 12, Cause::Timeout(Step::Invalidation)));
}

#[test]
fn a_unit_whose_queue_fails_is_an_error() {
    // It says that it forgets blocks, and does not.
    let mut world = World::started(Sight::Coherent, &[(CAP, ECAP)]);
    world.fakes[0].0.borrow_mut().cap &= !(1 << 39);
    world.change(PLACE, take(0));
    let error = world.follow(page(PLACE)).unwrap_err();
    assert_eq!(error.cause, Cause::Queue(1 << 4));
}

#[test]
fn a_slow_unit_is_waited_for_and_the_queue_goes_round() {
    for lag in [0, 3] {
        let mut world = World::started(Sight::Coherent, &[(CAP, ECAP)]);
        world.fakes[0].0.borrow_mut().lag = lag;
        for _ in 0..300 {
            world.check(PLACE);
            world.hand(PLACE, take(0));
            world.check(PLACE);
            world.hand(PLACE, Event::Release);
        }
    }
}

#[test]
fn many_changes_at_once_are_flushed_as_one() {
    let mut world = World::started(Sight::Coherent, &[(CAP, ECAP)]);
    let span = Span::sized(4 * HUGE, LARGE).unwrap();
    for number in 0..512 {
        world.change(span.start() + number * PAGE, take(number * PAGE));
    }
    world.fakes[0].0.borrow_mut().heard.clear();
    world.follow(span).unwrap();
    // One block of 512 pages, and the wait for it.
    let heard = world.fakes[0].0.borrow().heard.clone();
    assert_eq!(heard.len(), 2);
    assert_eq!(heard[0][1], span.start() | 9);
    // Far apart: the whole domain.
    for number in 0..10 {
        world.change(4 * HUGE + number * 2 * LARGE + LARGE, take(number << 30));
    }
    world.fakes[0].0.borrow_mut().heard.clear();
    world.follow(Span::new(4 * HUGE, 5 * HUGE).unwrap()).unwrap();
    let heard = world.fakes[0].0.borrow().heard.clone();
    assert_eq!((heard.len(), heard[0][0] >> 4 & 3), (2, 2));
}

#[test]
fn nothing_is_asked_for_where_nothing_has_changed() {
    let mut world = World::started(Sight::Coherent, &[(CAP, ECAP)]);
    world.fakes[0].0.borrow_mut().heard.clear();
    let nothing = world.revise(page(PLACE));
    let flushed = world.flush(nothing);
    assert!(!flushed.is_complete());
    assert!(world.fakes[0].0.borrow().heard.is_empty());
}

/// Something that happens.
#[derive(Clone, Debug)]
enum Act {
    Change(u64, Vec<Event>),
    Use(u64),
}

fn act() -> impl Strategy<Value = Act> {
    let place = (0_u64..3, 0_u64..6).prop_map(|(block, number)| {
        4 * HUGE + block * LARGE + [0, 1, 2, 255, 510, 511][usize::try_from(number).unwrap()] * PAGE
    });
    let table = Event::Link(Level::Pt, Guard::Counted, None);
    let events = prop_oneof![
        place.clone().prop_map(|at| std::vec![take(at)]),
        (place.clone(), 0_u8..8).prop_map(|(at, number)| std::vec![take(at), view(number)]),
        (0_u8..8).prop_map(|number| std::vec![view(number)]),
        Just(std::vec![Event::View(None)]),
        Just(std::vec![Event::Release]),
        Just(std::vec![Event::Release]),
        Just(std::vec![table]),
        Just(std::vec![Event::Unlink(None)]),
        Just(std::vec![Event::Forget]),
    ];
    prop_oneof![
        (place.clone(), events).prop_map(|(at, events)| Act::Change(at, events)),
        place.prop_map(Act::Use),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn units_follow_whatever_happens_to_frames(
        acts in proptest::collection::vec(act(), 1..40),
        kind in 0_usize..4,
        together in 1_usize..4,
    ) {
        let (sight, units) = match kind {
            0 => (Sight::Coherent, [(CAP, ECAP), (CACHING, ECAP)]),
            1 => (Sight::WrittenBack, [(CAP, ECAP & !1), (SMALL, ECAP)]),
            2 => (Sight::Buffered, [(BUFFERED, ECAP), (CACHING | BUFFERED, ECAP)]),
            _ => (Sight::Coherent, [(CAP, ECAP), (CAP & !(1 << 35), ECAP)]),
        };
        let mut world = World::started(sight, &units);
        let mut used = Vec::from([4 * HUGE + 3 * LARGE]);
        for some in acts.chunks(together) {
            let old = world.snapshot();
            let mut span = Span::EMPTY;
            for act in some {
                match act {
                    Act::Use(at) => {
                        used.push(*at);
                        if span.is_empty() {
                            world.check(*at);
                        }
                    }
                    Act::Change(at, events) => {
                        let frame = ept::addr::Frame::containing(*at);
                        let mut changed = false;
                        for event in events {
                            changed |= world.frames.change(frame, *event).is_ok();
                        }
                        if changed {
                            used.push(*at);
                            let start = if span.is_empty() { *at } else { span.start().min(*at) };
                            span = Span::new(start, span.end().max(at + PAGE)).unwrap();
                        }
                    }
                }
            }
            world.follow(span).unwrap();
            used.sort_unstable();
            used.dedup();
            world.check_history(old, &used);
            used.iter().for_each(|address| world.check(*address));
        }
    }

    #[test]
    fn the_block_around_a_span_is_the_smallest_that_has_it(
        first in 0_u64..1 << 27, pages in 1_u64..1 << 20, largest in 0_u64..40,
    ) {
        let span = Span::sized(first * PAGE, pages * PAGE).unwrap();
        let unit = Capabilities::new(1 << 39 | largest << 48, 0);
        let fits = |order: u32| {
            let bytes = PAGE << order;
            (span.end() <= span.start() / bytes * bytes + bytes).then_some(span.start() / bytes * bytes)
        };
        match Request::around(span, unit) {
            Request::Block(address, order) => {
                prop_assert!(u64::from(order) <= largest);
                prop_assert_eq!(fits(order), Some(address));
                prop_assert!(order == 0 || fits(order - 1).is_none());
            }
            Request::Domain => prop_assert_eq!(fits(u32::try_from(largest).unwrap()), None),
            Request::Contexts
            | Request::Pasids
            | Request::Everything
            | Request::Interrupts
            | Request::Interrupt(_) => prop_assert!(false),
        }
        let no_blocks = Capabilities::new(largest << 48, 0);
        prop_assert_eq!(Request::around(span, no_blocks), Request::Domain);
    }
}
