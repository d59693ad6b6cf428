//! Large pages, and what takes several steps.

use ept::addr::PAGE;
use ept::shadow::Access;
use membrane::Progress;
use membrane::vm::Filled;

use crate::board::secret;
use crate::world::{LARGE, MIB, World, frame, tables};

#[test]
fn a_large_leaf_lends_all_its_frames_and_they_come_back_in_pieces() {
    let mut world = World::large();
    let t = tables(0);
    let _ = world.store(t.pd, 1, (2 * MIB) | 0xb7);
    for number in LARGE.0..LARGE.1 {
        let there = world.reach(0, number, Access::WRITE).unwrap();
        assert_eq!(there, [number * PAGE]);
        world.board.set_page(number * PAGE, &secret(number));
    }
    let number = world.guests[0].as_ref().unwrap().number;
    assert_eq!(world.vms.vm(number).unwrap().resident(), 512);
    world.check();
    // Two pieces of 256, and the store with the second.
    assert_eq!(world.store(t.pd, 1, 0), 2);
    let vm = world.vms.vm(number).unwrap();
    assert_eq!((vm.resident(), vm.sealed()), (0, 512));
    world.check();
    world.honest = false;
    assert_eq!(world.store(t.pd, 1, (2 * MIB) | 0xb7), 1);
    for number in LARGE.0..LARGE.0 + 300 {
        assert!(world.reach(0, number, Access::READ).is_ok());
    }
    let vm = world.vms.vm(number).unwrap();
    assert_eq!((vm.resident(), vm.sealed()), (300, 212));
    assert_eq!(world.destroy(0), 2);
    for base in (2 * MIB..2 * MIB + 300 * PAGE).step_by(4096) {
        assert_eq!(world.board.page(base), [0; 4096]);
    }
    world.finish();
}

#[test]
fn a_page_that_a_vm_touches_between_the_pieces_leaves_too() {
    let mut world = World::large();
    let t = tables(0);
    let _ = world.store(t.pd, 1, (2 * MIB) | 0xb7);
    for number in LARGE.0..LARGE.1 {
        let _ = world.reach(0, number, Access::WRITE).unwrap();
    }
    let mut pieces = 0;
    let mut step = |world: &mut World| {
        let (mut machine, vms) = world.parts();
        pieces += 1;
        vms.release_before(&mut machine, frame(t.pd), 1, 0)
    };
    assert_eq!(step(&mut world), Progress::Again);
    let _ = world.reach(0, LARGE.0, Access::READ).unwrap();
    while step(&mut world) == Progress::Again {}
    let vm = world.vms.vm(world.guests[0].as_ref().unwrap().number).unwrap();
    assert_eq!((vm.resident(), vm.sealed(), pieces), (0, 512, 3));
    world.finish();
}

/// A VM that has stored 512 pages, each with an entry of its own in `spare`.
fn small() -> World {
    let mut world = World::large();
    let t = tables(0);
    for number in 0..512 {
        let _ = world.store(t.spare, number, (2 * MIB + number * PAGE) | 0xb7);
    }
    let _ = world.store(t.pd, 1, t.spare | 7);
    for number in LARGE.0..LARGE.1 {
        world.guest_write(0, number).unwrap();
    }
    world
}

fn resident(world: &World) -> u64 {
    world.vms.vm(world.guests[0].as_ref().unwrap().number).unwrap().resident()
}

#[test]
fn a_host_that_unmaps_page_after_page_has_processors_called_for_ever_more_of_them() {
    let mut world = small();
    let t = tables(0);
    let mut left = Vec::new();
    for number in 0..512 {
        let (before, flushes) = (resident(&world), world.board.flushes);
        let _ = world.store(t.spare, number, 0);
        let pages = before - resident(&world);
        // With its last entry the table goes, too.
        let calls = usize::from(pages != 0) + usize::from(number == 511);
        assert_eq!(world.board.flushes - flushes, calls, "{number}");
        left.extend((pages != 0).then_some(pages));
    }
    assert_eq!(left, [1, 2, 4, 8, 16, 32, 64, 64, 64, 64, 64, 64, 64, 1]);
    world.check();
    world.finish();
}

#[test]
fn a_page_that_leaves_with_those_before_it_comes_back_as_it_was() {
    let mut world = small();
    let t = tables(0);
    for number in 0..4 {
        let _ = world.store(t.spare, number, 0);
    }
    assert_eq!(resident(&world), 512 - 7);
    for number in LARGE.0 + 4..LARGE.0 + 8 {
        world.guest_read(0, number).unwrap();
    }
    assert_eq!(resident(&world), 512 - 4);
    // It leaves again with its own entry.
    let _ = world.store(t.spare, 4, 0);
    assert!(matches!(world.guest_read(0, LARGE.0 + 4), Err(Filled::Absent(_))));
    world.check();
    world.finish();
}

#[test]
fn unmapping_elsewhere_takes_one_page_again() {
    let mut world = small();
    let t = tables(0);
    for number in [0, 1, 2, 3, 100, 90, 91] {
        let _ = world.store(t.spare, number, 0);
    }
    assert_eq!(resident(&world), 512 - 7 - 1 - 1 - 2);
    world.check();
    world.finish();
}

#[test]
fn a_page_that_the_vm_does_not_have_is_no_end_of_a_run() {
    let mut world = small();
    let t = tables(0);
    // From 8 on eight are done. 64 is too far behind the end of the sixteen from 16 on.
    for (number, left) in
        [(7, 1), (0, 2), (1, 4), (3, 8), (8, 16), (16, 32), (64, 33), (48, 34), (100, 35)]
    {
        let _ = world.store(t.spare, number, 0);
        assert_eq!(512 - resident(&world), left, "{number}");
    }
    world.check();
    world.finish();
}

#[test]
fn rights_that_are_taken_page_after_page_go_with_few_calls_and_none_is_left() {
    let mut world = small();
    let t = tables(0);
    let before = world.board.flushes;
    for number in 0..512 {
        let entry = world.entry(t.spare, number);
        if number == 5 {
            // The VM has it again, for now.
            world.guest_write(0, LARGE.0 + 5).unwrap();
        }
        let _ = world.store(t.spare, number, entry & !2);
        let denied = world.guest_write(0, LARGE.0 + number);
        assert!(matches!(denied, Err(Filled::Denied { .. })), "{number}: {denied:?}");
    }
    let calls = world.board.flushes - before;
    assert!(calls < 20, "{calls}");
    assert_eq!(resident(&world), 512);
    world.check();
    world.finish();
}
