//! Hosts that split a large leaf: in place, where it is all a VM's, no page leaves.

use ept::addr::PAGE;
use membrane::vm::Filled;

use crate::huge::{BLOCK, is_large, resident, whole};
use crate::world::{LARGE, LEAF, MIB, SHARED, World, tables};

/// The host fills a table with what its large leaf at `block` has, each entry with these low bits.
fn fill(world: &mut World, block: u64, low: u64) {
    for number in 0..512 {
        let _ = world.store(tables(0).spare, number, (block + number * PAGE) | low);
    }
}

/// The host splits its entry, each of the small ones with these low bits.
fn split(world: &mut World, low: u64) {
    fill(world, 2 * MIB, low);
    let _ = world.store(tables(0).pd, 1, tables(0).spare | 7);
}

#[test]
fn a_host_that_splits_its_entry_in_place_disturbs_no_vm() {
    // With all flags: nothing is taken back.
    let mut world = whole();
    let flushes = world.board.flushes;
    split(&mut world, 0x337);
    // Of the table.
    assert_eq!((resident(&world), world.board.flushes), (512, flushes + 1));
    world.guest_write(0, LARGE.0 + 9).unwrap();
    assert!(is_large(&world));
    world.check();
    world.finish();
    // Without the right to write: all of them have to ask.
    let mut world = whole();
    split(&mut world, 0x335);
    assert_eq!(resident(&world), 512);
    for number in [LARGE.0, LARGE.1 - 1] {
        assert!(matches!(world.guest_write(0, number), Err(Filled::Denied { .. })));
        world.guest_read(0, number).unwrap();
    }
    world.check();
    // What it gives back to one page it gives to no other.
    let _ = world.store(tables(0).spare, 0, (2 * MIB) | 0x337);
    world.guest_write(0, LARGE.0).unwrap();
    assert!(matches!(world.guest_write(0, LARGE.0 + 1), Err(Filled::Denied { .. })));
    world.check();
    world.finish();
}

#[test]
fn a_split_whose_entry_permits_less_than_the_leaf_did_has_all_pages_ask() {
    let mut world = whole();
    fill(&mut world, 2 * MIB, 0x337);
    let _ = world.store(tables(0).pd, 1, tables(0).spare | 5);
    assert_eq!(resident(&world), 512);
    for number in [LARGE.0, LARGE.1 - 1] {
        assert!(matches!(world.guest_write(0, number), Err(Filled::Denied { .. })));
    }
    world.check();
    world.finish();
}

#[test]
fn half_of_a_block_leaves_and_the_other_half_stays() {
    let mut world = whole();
    let t = tables(0);
    split(&mut world, LEAF);
    for number in 0..256 {
        let _ = world.store(t.spare, number, 0);
        assert!(matches!(world.guest_read(0, LARGE.0 + number), Err(Filled::Absent(_))));
    }
    world.check();
    for number in LARGE.0 + 256..LARGE.1 {
        world.guest_read(0, number).unwrap();
    }
    assert_eq!(resident(&world), 256);
    world.finish();
}

#[test]
fn a_split_that_moves_a_page_or_is_in_memory_of_the_vms_takes_the_block_away() {
    let at = 2 * MIB + 5 * PAGE;
    for moved in [true, false] {
        let mut world = whole();
        let t = tables(0);
        if moved {
            fill(&mut world, 2 * MIB, LEAF);
            let _ = world.store(t.spare, 5, (4 * MIB) | LEAF);
            let _ = world.store(t.pd, 1, t.spare | 7);
        } else {
            let mut table = [0; 4096];
            for (word, number) in table.chunks_exact_mut(8).zip(0..) {
                word.copy_from_slice(&((2 * MIB + number * PAGE) | LEAF).to_le_bytes());
            }
            // As if the VM knew how.
            world.board.set_page(at, &table);
            let _ = world.guests[0].as_mut().unwrap().expected.insert(LARGE.0 + 5, table);
            let _ = world.store(t.pd, 1, at | 7);
        }
        assert_eq!(resident(&world), 0, "{moved}");
        world.check();
        world.finish();
    }
}

#[test]
fn a_split_of_a_block_with_pages_that_are_not_the_vms_alone_takes_them_away() {
    let block = 4 * MIB;
    let mut world = World::large();
    let t = tables(0);
    let _ = world.store(t.pd, 0, block | BLOCK);
    // All that the ticket has there: private pages, some of which are frames of the VM's now, and shared ones.
    world.guest_write(0, 0x13).unwrap();
    for number in SHARED {
        world.guest_write(0, number).unwrap();
    }
    fill(&mut world, block, LEAF);
    let eptp = world.guests[0].as_ref().unwrap().eptp;
    let may = |world: &World, number: u64| !world.board.guest_may(eptp, number * PAGE).is_empty();
    for number in SHARED {
        assert!(may(&world, number), "{number:#x}");
    }
    // The host could have another frame in the table before that is watched.
    let _ = world.store(t.pd, 0, t.spare | 7);
    for number in SHARED.into_iter().chain([0x13]) {
        assert!(!may(&world, number), "{number:#x}");
    }
    assert_eq!(resident(&world), 0);
    let _ = world.store(t.spare, SHARED[0], (2 * MIB) | LEAF);
    world.guest_write(0, SHARED[0]).unwrap();
    assert_eq!(world.host_read(2 * MIB), [0x77; 4096]);
    world.check();
    world.finish();
}
