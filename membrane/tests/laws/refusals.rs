//! What a host is refused, and what it is told, one thing after the other.

use ept::addr::{GuestFrame, PAGE};
use ept::frames::State;
use ept::shadow::Access;
use membrane::vm::{Cause, Fault, Filled};
use ticket::audit::{Event, Kind};

use crate::board::Page;
use crate::world::{EPTP, KNOWN, LEAF, MIB, PRIVATE, SHARED, World, frame, image, tables};

const P: u64 = PRIVATE[2];
pub(crate) const F: u64 = 40 * PAGE;
pub(crate) const G: u64 = 41 * PAGE;
const ZERO: Page = [0; 4096];

pub(crate) fn page(number: u64) -> GuestFrame {
    GuestFrame::at(number * PAGE).unwrap()
}

pub(crate) fn map(world: &mut World, vm: usize, number: u64, entry: u64) {
    let _ = world.store(tables(vm).pt, number, entry);
}

/// A VM that has stored page `P` in frame `F`.
fn written() -> World {
    let mut world = World::running();
    map(&mut world, 0, P, F | LEAF);
    world.guest_write(0, P).unwrap();
    world.honest = false;
    world
}

pub(crate) fn stopped(world: &World, cause: Cause) {
    assert_eq!(world.cause(0), Some(cause));
    assert_eq!(world.cause(1), None, "the other VM has no part in it");
}

pub(crate) fn events(world: &World) -> Vec<(u16, u64, u64)> {
    let audit = &world.vms.audit;
    let events = (audit.oldest()..audit.count()).map(|number| audit.event(number).unwrap());
    events.map(|event| Event::of_bytes(event).unwrap()).map(|e| (e.kind, e.a, e.b)).collect()
}

#[test]
fn a_fresh_page_is_zeroed_whatever_the_host_has_there() {
    let mut world = World::running();
    world.host_write(F, &[7; 4096]);
    map(&mut world, 0, P, F | LEAF);
    world.guest_read(0, P).unwrap();
    assert_eq!(world.board.page(F), ZERO);
    world.check();
    world.finish();
}

#[test]
fn a_page_of_the_manifest_has_the_right_content_or_the_vm_is_stopped() {
    let known = PRIVATE[0];
    let mut world = World::running();
    world.host_write(F, &image(known));
    map(&mut world, 0, known, F | LEAF);
    world.guest_read(0, known).unwrap();
    world.honest = false;
    let mut wrong = image(PRIVATE[1]);
    wrong[4095] ^= 1;
    world.host_write(G, &wrong);
    map(&mut world, 0, PRIVATE[1], G | LEAF);
    let cause = Cause::Manifest(page(PRIVATE[1]));
    assert_eq!(world.guest_read(0, PRIVATE[1]), Err(Filled::Stopped(cause)));
    stopped(&world, cause);
    assert_eq!(world.host_read(G), ZERO);
    let tail = [(Kind::PageRefused.number(), PRIVATE[1] * PAGE, 2), (Kind::Stopped.number(), 2, 0)];
    assert!(events(&world).ends_with(&tail));
    // What it has is not sealed any more: nobody will ever need it.
    assert_eq!(world.host_read(F), ZERO);
    world.check();
    world.finish();
}

#[test]
fn the_manifest_takes_memory_only_until_it_is_used() {
    let mut world = World::new();
    world.launch(0);
    for (known, base) in KNOWN.into_iter().zip([F, G, G + PAGE]) {
        world.host_write(base, &image(known));
        map(&mut world, 0, known, base | LEAF);
        world.guest_read(0, known).unwrap();
    }
    let board = &world.board;
    let eptp = world.guests[0].as_ref().unwrap().eptp;
    assert_eq!(board.used(), board.hanging(board.host) + board.hanging(eptp));
}

#[test]
fn a_page_of_the_manifest_is_approved_once() {
    let known = PRIVATE[0];
    let mut world = World::running();
    world.host_write(F, &image(known));
    map(&mut world, 0, known, F | LEAF);
    world.guest_write(0, known).unwrap();
    map(&mut world, 0, known, 0);
    world.honest = false;
    world.host_write(F, &image(known));
    map(&mut world, 0, known, F | LEAF);
    let cause = Cause::Forged(page(known));
    assert_eq!(world.guest_read(0, known), Err(Filled::Stopped(cause)));
}

/// The host returns something else than what it got.
fn comes_back(content: impl FnOnce(&mut World, Page) -> Page) -> World {
    let mut world = written();
    map(&mut world, 0, P, 0);
    let sealed = world.host_read(F);
    assert!(sealed != ZERO);
    let other = content(&mut world, sealed);
    world.host_write(G, &other);
    map(&mut world, 0, P, G | LEAF);
    let cause = Cause::Forged(page(P));
    assert_eq!(world.guest_read(0, P), Err(Filled::Stopped(cause)));
    stopped(&world, cause);
    assert_eq!(world.host_read(G), ZERO);
    world.check();
    world
}

#[test]
fn a_sealed_page_that_was_changed_is_refused() {
    comes_back(|_, mut sealed| {
        sealed[100] ^= 1;
        sealed
    })
    .finish();
}

#[test]
fn an_older_version_of_a_page_is_refused() {
    comes_back(|world, old| {
        map(world, 0, P, F | LEAF);
        world.guest_write(0, P).unwrap();
        map(world, 0, P, 0);
        assert!(world.host_read(F) != old);
        old
    })
    .finish();
}

#[test]
fn a_page_of_another_place_or_vm_is_refused() {
    for vm in 0..2 {
        let other = PRIVATE[4];
        comes_back(|world, _| {
            map(world, vm, other, G | LEAF);
            world.guest_write(vm, other).unwrap();
            map(world, vm, other, 0);
            world.host_read(G)
        })
        .finish();
    }
}

#[test]
fn a_page_that_was_only_read_goes_back_to_the_same_bytes() {
    let mut world = written();
    world.honest = true;
    map(&mut world, 0, P, 0);
    let sealed = world.host_read(F);
    for place in [G, F, G] {
        world.host_write(place, &sealed);
        map(&mut world, 0, P, place | LEAF);
        world.guest_read(0, P).unwrap();
        assert!(world.board.page(place) != sealed);
        map(&mut world, 0, P, 0);
        assert_eq!(world.host_read(place), sealed);
    }
    world.check();
    world.finish();
}

/// How a frame comes to be in use, what the host does for that, and the frame.
type InUse = (&'static str, fn(&mut World), u64);

#[test]
fn a_frame_that_is_in_use_is_not_lent() {
    let t = tables(0);
    let in_use: [InUse; 7] = [
        ("a table", |_| {}, t.pt),
        ("a table of another VM", |_| {}, tables(1).pd),
        ("the same VM's", |_| {}, F),
        (
            "another VM's",
            |world| {
                map(world, 1, P, G | LEAF);
                world.guest_write(1, P).unwrap();
            },
            G,
        ),
        (
            "shared",
            |world| {
                map(world, 1, SHARED[0], G | LEAF);
                world.guest_write(1, SHARED[0]).unwrap();
            },
            G,
        ),
        (
            "of a VM that is not protected",
            |world| {
                let _ = world.store(tables(2).pt, 0, G | LEAF);
                world.load_unprotected();
            },
            G,
        ),
        ("no RAM", |_| {}, 3 * MIB / 2),
    ];
    for (what, prepare, base) in in_use {
        for number in [PRIVATE[3], SHARED[1]] {
            let shared = SHARED.contains(&number);
            // Two may share a frame, and a VM that is not protected may be the other.
            if shared && (what == "shared" || what.starts_with("of a VM")) {
                continue;
            }
            let mut world = written();
            prepare(&mut world);
            map(&mut world, 0, number, base | LEAF);
            let cause = Cause::Frame(page(number));
            let answer = world.reach(0, number, Access::READ);
            assert_eq!(answer, Err(Filled::Stopped(cause)), "{what}");
            stopped(&world, cause);
            world.check();
            world.finish();
        }
    }
}

/// Where the second root of [`with_second_root`] leads.
const SECOND: u64 = 55 * PAGE;

/// A VM whose second root leads to tables of its own, both in use.
fn with_second_root() -> World {
    let mut world = World::running();
    let t = tables(0);
    let (pdpt, pd) = (t.spare, t.spare + PAGE);
    for (table, below) in [(t.roots[1], pdpt), (pdpt, pd), (pd, SECOND)] {
        let _ = world.store(table, 0, below | 7);
    }
    world.load(0, 1);
    world
}

/// The VM reads a page by its second root.
fn read_by_the_second_root(world: &mut World, number: u64) -> Filled {
    let vm = world.guests[0].as_ref().unwrap().number;
    let (mut machine, vms) = world.parts();
    let fault = Fault { at: number * PAGE, access: Access::READ, word: 1 };
    let filled = vms.fill(&mut machine, vm, tables(0).roots[1] | EPTP, fault);
    world.board.remember();
    filled
}

#[test]
fn a_page_is_in_one_frame_only() {
    let mut world = with_second_root();
    map(&mut world, 0, SHARED[0], F | LEAF);
    assert_eq!(world.reach(0, SHARED[0], Access::READ), Ok(vec![F]));
    let _ = world.store(SECOND, SHARED[0], G | LEAF);
    assert_eq!(read_by_the_second_root(&mut world, SHARED[0]), Filled::Mapped);
    // The host may have two opinions of what it shares, but the VM sees one.
    world.check();
    assert_eq!(world.table.state(frame(F)), Some(State::Plain { maps: 0 }));
    assert_eq!(world.table.state(frame(G)), Some(State::Plain { maps: 1 }));
    map(&mut world, 0, P, F | LEAF);
    world.guest_write(0, P).unwrap();
    world.honest = false;
    let _ = world.store(SECOND, P, (54 * PAGE) | LEAF);
    let cause = Cause::Elsewhere(page(P));
    assert_eq!(read_by_the_second_root(&mut world, P), Filled::Stopped(cause));
    world.check();
    world.finish();
}

#[test]
fn a_frame_that_is_named_twice_leaves_once() {
    let mut world = written();
    map(&mut world, 0, PRIVATE[3], F | LEAF);
    let t = tables(0);
    let _ = world.store(t.pd, 0, 0);
    assert_eq!(world.cause(0), None);
    let vm = world.vms.vm(world.guests[0].as_ref().unwrap().number).unwrap();
    assert_eq!((vm.resident(), vm.sealed()), (0, 1));
    let _ = world.store(t.pd, 0, t.pt | 7);
    world.guest_read(0, P).unwrap();
    world.check();
    world.finish();
}

#[test]
fn the_host_is_told_of_what_its_tables_lack() {
    let mut world = written();
    let read = |world: &mut World, number| world.reach(0, number, Access::READ);
    let absent = Err(Filled::Absent(page(PRIVATE[3])));
    // Not there; misconfigured, as KVM marks devices; a fetch alone; read-only, perhaps not its own.
    for entry in [0, G | 6, G | 4, G | 0x35, G | 0x31] {
        map(&mut world, 0, PRIVATE[3], entry);
        assert_eq!(read(&mut world, PRIVATE[3]), absent, "{entry:#x}");
    }
    // Shared pages may be read-only, since the VM does not own them.
    map(&mut world, 0, SHARED[0], G | 0x35);
    assert!(read(&mut world, SHARED[0]).is_ok());
    for (number, base) in [(SHARED[0], G), (P, F)] {
        map(&mut world, 0, number, base | 0x35);
        assert!(read(&mut world, number).is_ok());
        let write = world.reach(0, number, Access::WRITE);
        let rights = Access::READ.or(Access::FETCH);
        assert_eq!(write, Err(Filled::Denied { at: page(number), rights }));
    }
    world.guest_read(0, P).unwrap();
    world.check();
    world.finish();
}

#[test]
fn a_root_that_is_not_watched_is_not_walked() {
    let mut world = written();
    let number = world.guests[0].as_ref().unwrap().number;
    world.load_unprotected();
    for root in [tables(0).roots[1], tables(2).roots[0], tables(0).pt, 3 * MIB / 2] {
        let (mut machine, vms) = world.parts();
        let fault = Fault { at: P * PAGE, access: Access::READ, word: 1 };
        assert_eq!(vms.fill(&mut machine, number, root | EPTP, fault), Filled::Unloaded);
    }
}

#[test]
fn flags_are_set_as_a_processor_would_if_they_are_in_use() {
    for (eptp, low, flags) in [(EPTP, LEAF, 0x300), (EPTP, 0x35, 0x100), (EPTP & !0x40, LEAF, 0)] {
        let mut world = World::running();
        map(&mut world, 0, SHARED[0], F | low);
        let number = world.guests[0].as_ref().unwrap().number;
        let (mut machine, vms) = world.parts();
        let fault = Fault { at: SHARED[0] * PAGE, access: Access::READ, word: 1 };
        let filled = vms.fill(&mut machine, number, tables(0).roots[0] | eptp, fault);
        assert_eq!(filled, Filled::Mapped);
        assert_eq!(world.entry(tables(0).pt, SHARED[0]), F | low | flags);
    }
}

#[test]
fn flags_and_rights_that_are_taken_back_are_missed_at_the_next_access() {
    let mut world = written();
    let worked = world.board.worked;
    for changed in [F | LEAF | 0x200, F | LEAF | 0x100, F | 0x335] {
        map(&mut world, 0, P, F | LEAF | 0x300);
        world.guest_read(0, P).unwrap();
        map(&mut world, 0, P, changed);
        let eptp = world.guests[0].as_ref().unwrap().eptp;
        assert_eq!(world.board.guest_may(eptp, P * PAGE), [], "{changed:#x}");
        world.check();
        world.guest_read(0, P).unwrap();
        let expected = if changed & 2 == 0 { 0x335 } else { LEAF | 0x300 };
        assert_eq!(world.entry(tables(0).pt, P), F | expected);
    }
    // More rights change nothing until they are used.
    let flushes = world.board.flushes;
    map(&mut world, 0, P, F | LEAF | 0x300);
    assert_eq!(world.board.flushes, flushes);
    assert_eq!(world.board.worked, worked, "nothing was sealed for that");
    world.finish();
}

#[test]
fn without_memory_the_vm_stops_and_nothing_is_lost() {
    for left in 0..8 {
        let mut world = written();
        world.starve(left);
        map(&mut world, 0, P, 0);
        let bytes = world.host_read(F);
        // Five frames are needed to remember the first page.
        assert_eq!(world.cause(0), (left < 5).then_some(Cause::Memory));
        assert_eq!(bytes == ZERO, left < 5);
        world.check();
        world.finish();
        // Tables for the first page, or a record of the first shared one.
        for number in [P, SHARED[0]] {
            let mut world = World::running();
            world.honest = false;
            map(&mut world, 0, number, F | LEAF);
            world.starve(left);
            let needed = if number == P { 3 } else { 8 };
            let answer = world.reach(0, number, Access::READ);
            let expected = Err(Filled::Stopped(Cause::Memory));
            assert_eq!(answer, if left < needed { expected } else { Ok(vec![F]) });
            world.check();
            world.finish();
        }
    }
}

#[test]
fn a_host_that_touches_a_page_sees_it_sealed_and_not_every_time_is_recorded() {
    let mut world = written();
    world.honest = true;
    for _ in 0..20 {
        let sealed = world.host_read(F);
        assert!(sealed != ZERO);
        world.check();
        world.guest_write(0, P).unwrap();
    }
    let touched = (Kind::Touched.number(), P * PAGE, 0);
    assert_eq!(events(&world).iter().filter(|event| **event == touched).count(), 16);
    let (mut machine, vms) = world.parts();
    assert!(!vms.touched(&mut machine, frame(G)), "that is the host's own");
    world.finish();
}

#[test]
fn a_vm_without_a_ticket_is_on_record() {
    let mut world = World::new();
    world.vms.saw_unprotected(3);
    assert_eq!(events(&world), [(Kind::Unprotected.number(), 0, 0)]);
}

#[test]
fn a_stopped_vm_stays_so_and_its_pages_are_zeroed() {
    let mut world = written();
    let number = world.guests[0].as_ref().unwrap().number;
    let launch = world.vms.vm(number).unwrap().launch();
    let pointer = world.vms.vm(number).unwrap().pointer();
    assert_eq!(world.vms.pointer_if_running(number, launch), Some(pointer));
    assert_eq!(world.vms.pointer_if_running(number, launch + 1), None);
    world.vms.stop(number, Cause::Processor(5), 0);
    world.vms.stop(number, Cause::Memory, 0);
    stopped(&world, Cause::Processor(5));
    assert_eq!(world.vms.pointer_if_running(number, launch), None);
    assert!(events(&world).ends_with(&[(Kind::Stopped.number(), 0x105, 0)]));
    let (mut machine, vms) = world.parts();
    let fault = Fault { at: P * PAGE, access: Access::READ, word: 1 };
    let filled = vms.fill(&mut machine, number, tables(0).roots[0] | EPTP, fault);
    assert_eq!(filled, Filled::Stopped(Cause::Processor(5)));
    assert_eq!(world.host_read(F), ZERO);
    world.check();
    world.finish();
}

#[test]
fn more_who_share_a_frame_than_are_remembered_only_have_to_ask_again() {
    let mut world = World::running();
    for round in 0..3 {
        for (vm, number) in (0..2).flat_map(|vm| SHARED.map(|number| (vm, number))) {
            if round == 0 {
                map(&mut world, vm, number, F | LEAF);
            }
            assert_eq!(world.reach(vm, number, Access::WRITE), Ok(vec![F]));
            world.check();
        }
    }
    let state = world.table.state(frame(F));
    assert_eq!(state, Some(State::Plain { maps: 2 }), "six, of whom four are forgotten at once");
    map(&mut world, 0, SHARED[0], 0);
    assert_eq!(world.table.state(frame(F)), Some(State::Plain { maps: 0 }));
    world.finish();
}

#[test]
fn shared_pages_are_forgotten_when_the_tables_were_not_watched() {
    let mut world = written();
    map(&mut world, 0, SHARED[0], G | LEAF);
    assert!(world.reach(0, SHARED[0], Access::WRITE).is_ok());
    world.forget_root(frame(tables(0).roots[0]));
    // Nobody sees this.
    assert_eq!(world.store(tables(0).pt, SHARED[0], 0), 0);
    world.load(0, 0);
    assert_eq!(world.table.state(frame(G)), Some(State::Plain { maps: 0 }));
    let answer = world.reach(0, SHARED[0], Access::READ);
    assert_eq!(answer, Err(Filled::Absent(page(SHARED[0]))));
    world.guest_read(0, P).unwrap();
    world.check();
    world.finish();
}

#[test]
fn it_is_counted_how_often_in_a_row_a_host_is_asked_for_a_page() {
    let mut world = World::running();
    let asked = |world: &World| {
        let (page, times) = world.vms.vm(world.guests[0].as_ref().unwrap().number).unwrap().asked();
        (page.number(), times)
    };
    for times in 1..100 {
        assert_eq!(world.guest_read(0, P), Err(Filled::Absent(page(P))));
        assert_eq!(asked(&world), (P, times));
    }
    map(&mut world, 0, P, F | 5);
    assert_eq!(world.guest_read(0, P), Err(Filled::Absent(page(P))), "it may only be read");
    assert_eq!(asked(&world), (P, 100));
    // Another page says nothing of this one.
    map(&mut world, 0, P + 1, G | LEAF);
    world.guest_write(0, P + 1).unwrap();
    assert_eq!(asked(&world), (P, 100));
    map(&mut world, 0, P, F | LEAF);
    world.guest_read(0, P).unwrap();
    assert_eq!(asked(&world), (P, 0));
    map(&mut world, 0, P + 1, G | 5);
    for times in 1..4 {
        let denied = world.guest_write(0, P + 1);
        assert!(matches!(denied, Err(Filled::Denied { .. })));
        assert_eq!(asked(&world), (P + 1, times));
    }
    assert_eq!(world.guest_read(0, P + 2), Err(Filled::Absent(page(P + 2))));
    assert_eq!(asked(&world), (P + 2, 1));
    world.check();
    world.finish();
}
