//! Pages that VMs have given up.

use ept::addr::PAGE;
use ept::frames::State;
use membrane::vm::{Cause, Filled, Life};

use crate::board::Page;
use crate::refusals::{F, G, map, page, stopped};
use crate::world::{
    DATA, KNOWN, LARGE, LEAF, PLENTY, PRIVATE, SHARED, World, frame, image, tables,
};

const P: u64 = PRIVATE[2];
const ZERO: Page = [0; 4096];

/// A VM that has stored page `P` in frame `F`.
fn written() -> World {
    let mut world = World::running();
    map(&mut world, 0, P, F | LEAF);
    world.guest_write(0, P).unwrap();
    world
}

fn is_host(world: &World, base: u64) -> bool {
    world.table.state(frame(base)) == Some(State::Plain { maps: 0 })
}

/// Resident and sealed pages of the first VM.
fn counts(world: &World) -> (u64, u64) {
    let vm = world.vms.vm(world.guests[0].as_ref().unwrap().number).unwrap();
    (vm.resident(), vm.sealed())
}

#[test]
fn a_page_that_the_vm_gives_up_is_the_hosts_and_zeroed_before_the_host_does_anything() {
    let mut world = written();
    let flushes = world.board.flushes;
    world.guest_forget(0, &[P]);
    assert_eq!((world.board.flushes, counts(&world)), (flushes + 1, (0, 0)));
    assert!(is_host(&world, F));
    assert!(world.host_read(F) == ZERO);
    world.check();
    world.finish();
}

#[test]
fn a_page_that_was_given_up_begins_with_zeros_whatever_the_host_has_there() {
    for away in [false, true] {
        let mut world = written();
        let seen = world.host_read(F);
        if away {
            map(&mut world, 0, P, 0);
            assert_eq!(counts(&world), (0, 1));
        }
        world.guest_forget(0, &[P]);
        assert_eq!(counts(&world), (0, 0));
        // As it was before, as another one, or nothing.
        for content in [seen, [7; 4096], ZERO] {
            world.host_write(G, &content);
            map(&mut world, 0, P, G | LEAF);
            world.guest_read(0, P).unwrap();
            world.guest_write(0, P).unwrap();
            world.check();
            world.guest_forget(0, &[P]);
            assert!(is_host(&world, G));
        }
        world.check();
        world.finish();
    }
}

#[test]
fn a_page_that_the_vm_uses_again_is_kept_as_every_other() {
    let mut world = written();
    world.guest_forget(0, &[P]);
    map(&mut world, 0, P, F | LEAF);
    world.guest_read(0, P).unwrap();
    world.guest_write(0, P).unwrap();
    map(&mut world, 0, P, 0);
    let sealed = world.host_read(F);
    assert!(sealed != ZERO, "it is sealed");
    world.host_write(G, &sealed);
    map(&mut world, 0, P, G | LEAF);
    world.guest_read(0, P).unwrap();
    world.check();
    world.finish();
}

#[test]
fn the_host_cannot_have_a_page_given_up_that_the_vm_uses() {
    // It drops the page, as it would one that was given up: never, before, and since then.
    for step in 0..3 {
        let mut world = written();
        if step == 1 {
            world.guest_forget(0, &[P + 1]);
        } else if step == 2 {
            world.guest_forget(0, &[P]);
            world.guest_write(0, P).unwrap();
        }
        world.honest = false;
        map(&mut world, 0, P, 0);
        world.host_write(G, &ZERO);
        map(&mut world, 0, P, G | LEAF);
        let cause = Cause::Forged(page(P));
        assert_eq!(world.guest_read(0, P), Err(Filled::Stopped(cause)));
        stopped(&world, cause);
        world.check();
        world.finish();
    }
}

#[test]
fn a_page_of_the_manifest_that_was_given_up_begins_with_zeros_and_anew_as_in_the_manifest() {
    for restarts in [0, 1] {
        let known = KNOWN[0];
        let mut world = World::with_restarts(restarts);
        world.host_write(F, &image(known));
        map(&mut world, 0, known, F | LEAF);
        world.guest_read(0, known).unwrap();
        world.guest_forget(0, &[known]);
        world.host_write(F, &[9; 4096]);
        world.guest_read(0, known).unwrap();
        world.guest_write(0, known).unwrap();
        map(&mut world, 0, known, 0);
        map(&mut world, 0, known, F | LEAF);
        world.guest_read(0, known).unwrap();
        world.check();
        if restarts != 0 {
            let _ = world.restart(0).unwrap();
            world.host_write(F, &image(known));
            world.guest_read(0, known).unwrap();
            world.check();
        }
        world.finish();
    }
}

#[test]
fn only_private_pages_of_this_launch_are_given_up() {
    let mut world = written();
    map(&mut world, 1, P, G | LEAF);
    world.guest_write(1, P).unwrap();
    let base = DATA.0 * PAGE;
    map(&mut world, 0, SHARED[0], base | LEAF);
    world.guest_write(0, SHARED[0]).unwrap();
    world.guest_forget(0, &[SHARED[0], 0x1000_0000, u64::MAX / PAGE]);
    assert_eq!(world.table.state(frame(base)), Some(State::Plain { maps: 1 }));
    assert!(!is_host(&world, F) && !is_host(&world, G));
    let number = world.guests[0].as_ref().unwrap().number;
    let launch = world.vms.vm(number).unwrap().launch();
    let (mut machine, vms) = world.parts();
    let other = vms.forget(&mut machine, (number, launch + 1), [page(P)].into_iter());
    assert_eq!(other, Ok(()));
    world.guest_read(0, P).unwrap();
    world.guest_read(1, P).unwrap();
    world.check();
    world.finish();
}

#[test]
fn very_many_pages_may_be_given_up_at_once_and_some_twice() {
    let mut world = World::large();
    let t = tables(0);
    // 2 MiB of the host's memory, above what it has for single pages.
    let base = 2 * crate::world::MIB;
    let _ = world.store(t.pd, LARGE.0 / 512, base | 0xb7);
    let pages: Vec<u64> = (LARGE.0..LARGE.1).collect();
    for page in &pages {
        world.guest_read(0, *page).unwrap();
    }
    assert_eq!(counts(&world), (512, 0));
    let flushes = world.board.flushes;
    world.guest_forget(0, &[LARGE.0, LARGE.0]);
    assert_eq!((world.board.flushes, counts(&world)), (flushes + 1, (511, 0)));
    world.guest_forget(0, &pages);
    // The last one is for EPT01, which has a large leaf there again.
    assert_eq!(world.board.flushes, flushes + 4, "256 at once");
    assert_eq!(counts(&world), (0, 0));
    assert!((0..512).all(|number| is_host(&world, base + number * PAGE)));
    world.check();
    world.finish();
}

#[test]
fn without_memory_to_remember_that_a_page_was_given_up_the_vm_is_stopped() {
    let known = KNOWN[0];
    let mut world = World::with_restarts(1);
    world.host_write(F, &image(known));
    map(&mut world, 0, known, F | LEAF);
    world.guest_read(0, known).unwrap();
    world.starve(0);
    world.honest = false;
    world.guest_forget(0, &[P]);
    assert_eq!(world.cause(0), None, "of others there is nothing to remember");
    world.guest_forget(0, &[known]);
    let number = world.guests[0].as_ref().unwrap().number;
    assert_eq!(world.vms.vm(number).unwrap().life(), Life::Stopped(Cause::Memory));
    world.starve(PLENTY);
    world.check();
    world.finish();
}
