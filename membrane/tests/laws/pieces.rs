//! Large pages, and what takes several steps.

use ept::addr::PAGE;
use ept::shadow::Access;
use membrane::Progress;

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
