//! Large leaves of the host's: what comes at the first touch, and hosts that look at pages of them and move them.

use ept::addr::{GuestFrame, PAGE, Span};
use ept::entry::Level;
use ept::frames::State;
use ept::shadow::Access;
use membrane::tables::Tables;
use membrane::vm::{Cause, Filled};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::world::{KNOWN, LARGE, LEAF, MIB, SHARED, World, frame, image, tables};

/// A large leaf that permits everything.
pub(crate) const BLOCK: u64 = 0xb7;
const JUNK: [u8; 4096] = [0x3c; 4096];

pub(crate) fn resident(world: &World) -> u64 {
    world.vms.vm(world.guests[0].as_ref().unwrap().number).unwrap().resident()
}

fn is_private(world: &World, base: u64) -> bool {
    matches!(world.table.state(frame(base)), Some(State::Private { .. }))
}

/// A VM whose pages from 2 MiB on the host lends a block for, full of what it likes.
fn lent() -> World {
    let mut world = World::large();
    for base in (2 * MIB..4 * MIB).step_by(4096) {
        world.host_write(base, &JUNK);
    }
    let _ = world.store(tables(0).pd, 1, (2 * MIB) | BLOCK);
    world
}

#[test]
fn the_first_touch_brings_all_fresh_pages_of_a_large_leaf_by_one_call_and_zeroed() {
    let mut world = lent();
    let before = (world.board.flushes, world.board.worked);
    world.guest_read(0, LARGE.0 + 5).unwrap();
    assert_eq!(resident(&world), 512);
    assert_eq!((world.board.flushes, world.board.worked), (before.0 + 1, before.1 + 512));
    for number in LARGE.0..LARGE.1 {
        assert!(is_private(&world, number * PAGE));
        world.guest_read(0, number).unwrap();
    }
    assert_eq!(world.board.flushes, before.0 + 1);
    world.check();
    world.finish();
}

#[test]
fn pages_of_the_manifest_and_of_other_classes_do_not_come_before_they_are_touched() {
    let mut world = World::large();
    let at = |number: u64| 4 * MIB + number * PAGE;
    for number in [0, 0x10, 0x11, 0x13, 0x1f, 0x20, 0x21, 0x30] {
        let content = if KNOWN.contains(&number) { image(number) } else { JUNK };
        world.host_write(at(number), &content);
    }
    let _ = world.store(tables(0).pd, 0, (4 * MIB) | BLOCK);
    world.guest_read(0, 0x13).unwrap();
    assert_eq!(resident(&world), 0x1f - 0x13);
    for number in [0, 0x10, 0x11, 0x1f, 0x20, 0x21, 0x30] {
        assert!(!is_private(&world, at(number)), "{number:#x}");
        let content = if KNOWN.contains(&number) { image(number) } else { JUNK };
        assert_eq!(world.host_read(at(number)), content, "{number:#x}");
    }
    for number in KNOWN.into_iter().chain(SHARED) {
        world.guest_read(0, number).unwrap();
        world.check();
    }
    assert_eq!(resident(&world), 0x20 - 0x10);
    world.finish();
}

#[test]
fn pages_of_the_manifest_come_with_the_first_of_them_if_they_are_as_in_the_ticket() {
    let at = |number: u64| 4 * MIB + number * PAGE;
    for content in [image(KNOWN[1]), JUNK] {
        let mut world = World::large();
        for (number, content) in [(KNOWN[0], image(KNOWN[0])), (KNOWN[1], content)] {
            world.host_write(at(number), &content);
        }
        let _ = world.store(tables(0).pd, 0, (4 * MIB) | BLOCK);
        let flushes = world.board.flushes;
        world.guest_read(0, KNOWN[0]).unwrap();
        assert_eq!(world.board.flushes, flushes + 1);
        let right = content != JUNK;
        assert_eq!(is_private(&world, at(KNOWN[1])), right);
        // And those after it, to the eighth.
        assert_eq!(resident(&world), 7 + u64::from(right));
        world.check();
        if !right {
            assert_eq!(world.host_read(at(KNOWN[1])), JUNK, "it is as the host left it");
            world.host_write(at(KNOWN[1]), &image(KNOWN[1]));
        }
        world.guest_read(0, KNOWN[1]).unwrap();
        assert_eq!(world.board.flushes, flushes + 1 + usize::from(!right));
        world.check();
        world.finish();
    }
}

#[test]
fn a_page_of_the_manifest_that_is_touched_and_wrong_stops_the_vm_and_shows_nothing() {
    let mut world = World::large();
    world.honest = false;
    let at = |number: u64| 4 * MIB + number * PAGE;
    world.host_write(at(KNOWN[0]), &JUNK);
    world.host_write(at(KNOWN[1]), &image(KNOWN[1]));
    let _ = world.store(tables(0).pd, 0, (4 * MIB) | BLOCK);
    let cause = Cause::Manifest(GuestFrame::at(KNOWN[0] * PAGE).unwrap());
    assert_eq!(world.guest_read(0, KNOWN[0]), Err(Filled::Stopped(cause)));
    assert_eq!(world.board.page(at(KNOWN[0])), [0; 4096]);
    world.check();
    world.finish();
}

#[test]
fn what_the_host_has_not_brought_back_yet_stops_no_vm_that_does_not_touch_it() {
    let mut world = lent();
    let t = tables(0);
    world.guest_write(0, LARGE.0 + 7).unwrap();
    let _ = world.store(t.pd, 1, 0);
    assert_eq!(resident(&world), 0);
    let sealed = world.host_read(2 * MIB + 7 * PAGE);
    world.host_write(2 * MIB + 6 * PAGE, &JUNK);
    let _ = world.store(t.pd, 1, (2 * MIB) | BLOCK);
    world.guest_read(0, LARGE.0 + 7).unwrap();
    assert_eq!(resident(&world), 1, "those that were outside come one by one");
    assert_ne!(world.board.page(2 * MIB + 7 * PAGE), sealed);
    world.check();
    world.honest = false;
    let cause = Cause::Forged(GuestFrame::at((LARGE.0 + 6) * PAGE).unwrap());
    assert_eq!(world.guest_read(0, LARGE.0 + 6), Err(Filled::Stopped(cause)));
    world.finish();
}

#[test]
fn a_block_of_which_a_frame_is_in_use_is_brought_page_by_page() {
    let mut world = World::large();
    world.launch(1);
    let (mine, other) = (tables(0), tables(1));
    let taken = 2 * MIB + 9 * PAGE;
    let _ = world.store(other.pt, 0x12, taken | LEAF);
    world.guest_write(1, 0x12).unwrap();
    let _ = world.store(mine.pd, 1, (2 * MIB) | BLOCK);
    world.guest_read(0, LARGE.0).unwrap();
    world.check();
    assert_eq!(resident(&world), 1);
    world.guest_read(1, 0x12).unwrap();
    world.honest = false;
    let cause = Cause::Frame(GuestFrame::at((LARGE.0 + 9) * PAGE).unwrap());
    assert_eq!(world.guest_read(0, LARGE.0 + 9), Err(Filled::Stopped(cause)));
    assert_eq!(world.cause(1), None);
    world.finish();
}

pub(crate) fn is_large(world: &World) -> bool {
    world.board.is_large(world.guests[0].as_ref().unwrap().eptp, LARGE.0 * PAGE)
}

/// The same VM, with all that the host has lent.
pub(crate) fn whole() -> World {
    let mut world = lent();
    world.guest_write(0, LARGE.0 + 5).unwrap();
    assert!(is_large(&world));
    world
}

#[test]
fn a_whole_block_is_one_leaf_of_the_vms_and_none_of_the_hosts() {
    let mut world = lent();
    let tables = |world: &World| {
        let eptp = world.guests[0].as_ref().unwrap().eptp;
        [world.board.host, eptp].map(|eptp| world.board.hanging(eptp))
    };
    let (used, [host, vm]) = (world.board.used(), tables(&world));
    world.guest_read(0, LARGE.0 + 5).unwrap();
    assert!(is_large(&world));
    // The levels above, and one that is spare.
    assert_eq!(tables(&world), [host, vm + 2]);
    assert_eq!(world.board.used(), used + 3);
    // A host that looks at a page has it split, in its tables and in the VM's.
    let _ = world.host_read(2 * MIB);
    assert!(!is_large(&world));
    assert_eq!(tables(&world), [host + 1, vm + 3]);
    world.check();
    world.finish();
}

#[test]
fn a_page_of_a_block_that_the_host_looks_at_costs_the_others_nothing() {
    let mut world = whole();
    let seen = world.host_read(2 * MIB + 5 * PAGE);
    let flushes = world.board.flushes;
    for number in (LARGE.0..LARGE.1).filter(|number| *number != LARGE.0 + 5) {
        world.guest_write(0, number).unwrap();
    }
    world.guest_read(0, LARGE.0 + 5).unwrap();
    assert_eq!(world.board.flushes, flushes);
    assert_eq!(world.host_read(2 * MIB + 5 * PAGE), seen);
    world.guest_write(0, LARGE.0 + 5).unwrap();
    assert_eq!(world.board.flushes, flushes + 1);
    world.check();
    world.finish();
}

#[test]
fn a_block_whose_leaf_loses_rights_stays_one_and_has_them_again_by_one_exit() {
    let mut world = whole();
    let entry = world.entry(tables(0).pd, 1);
    for (bit, denied) in [(0x100, false), (0x200, false), (2, true)] {
        let flushes = world.board.flushes;
        let _ = world.store(tables(0).pd, 1, entry & !bit);
        assert_eq!(world.board.flushes, flushes + 1);
        let access = world.guest_write(0, LARGE.0 + 9);
        assert_eq!(matches!(access, Err(Filled::Denied { .. })), denied, "{access:?}");
        world.check();
        let _ = world.store(tables(0).pd, 1, entry);
        world.guest_write(0, LARGE.1 - 1).unwrap();
        assert!(is_large(&world), "{bit:#x}");
        assert_eq!((resident(&world), world.board.flushes), (512, flushes + 1));
    }
    world.finish();
}

#[test]
fn a_vm_that_begins_anew_has_whole_blocks_again() {
    let mut world = World::new();
    world.restarts = 1;
    world.board.seen = 6 * MIB;
    world.launch(0);
    let t = tables(0);
    let _ = world.store(t.pd, 1, (2 * MIB) | BLOCK);
    world.guest_write(0, LARGE.0).unwrap();
    let _ = world.host_read(2 * MIB);
    assert!(!is_large(&world));
    let _ = world.restart(0).unwrap();
    let _ = world.store(t.pd, 1, (4 * MIB) | BLOCK);
    world.guest_read(0, LARGE.0).unwrap();
    assert!(is_large(&world));
    world.check();
    world.finish();
}

#[test]
fn without_memory_a_block_stays_the_hosts_and_the_vm_is_stopped() {
    for left in 0..3 {
        let mut world = lent();
        world.honest = false;
        world.starve(left);
        let stopped = world.guest_read(0, LARGE.0);
        assert_eq!(stopped, Err(Filled::Stopped(Cause::Memory)), "{left}");
        assert!(!is_private(&world, 2 * MIB));
        world.check();
        world.finish();
    }
}

#[test]
fn a_check_finds_a_page_that_a_vm_lacks_has_elsewhere_or_may_write_though_it_is_seen() {
    let mut world = whole();
    let eptp = world.guests[0].as_ref().unwrap().eptp;
    let all = Span::sized(0, 6 * MIB).unwrap();
    let mut damaged = |damage: fn(u64) -> u64| {
        let page = (LARGE.0 + 5) * PAGE;
        world.board.damage(eptp, page, damage);
        let (machine, vms) = world.parts();
        let found = vms.disagreement(&machine, all);
        world.board.damage(eptp, page, |_| (2 * MIB) | 0xf7);
        found
    };
    assert_eq!(damaged(|entry| entry), None);
    assert_eq!(damaged(|_| 0x80), Some(frame(2 * MIB)));
    assert_eq!(damaged(|entry| entry + 2 * MIB), Some(frame(2 * MIB)));
    let _ = world.host_read(2 * MIB + 5 * PAGE);
    let (machine, vms) = world.parts();
    assert_eq!(vms.disagreement(&machine, all), None);
    world.board.damage(eptp, (LARGE.0 + 5) * PAGE, |entry| entry | 2);
    let (machine, vms) = world.parts();
    assert_eq!(vms.disagreement(&machine, all), Some(frame(2 * MIB + 5 * PAGE)));
    world.board.damage(eptp, (LARGE.0 + 5) * PAGE, |entry| entry & !2);
    world.finish();
}

#[test]
fn a_page_that_was_given_up_does_not_come_back_with_others() {
    let mut world = whole();
    world.guest_forget(0, &[LARGE.0 + 5, LARGE.0 + 6]);
    // It is still lent: the host is about to drop it.
    world.guest_read(0, LARGE.0 + 5).unwrap();
    assert_eq!(resident(&world), 511);
    world.check();
    let _ = world.store(tables(0).pd, 1, 0);
    world.host_write(2 * MIB + 6 * PAGE, &JUNK);
    let _ = world.store(tables(0).pd, 1, (2 * MIB) | BLOCK);
    world.guest_read(0, LARGE.0 + 6).unwrap();
    world.check();
    world.finish();
}

#[test]
fn a_table_is_set_aside_when_all_have_forgotten_it() {
    let mut world = World::large();
    let mut vm = Tables::new(&mut world.board).unwrap();
    let page = GuestFrame::at(LARGE.0 * PAGE).unwrap();
    let forget = |world: &mut World| {
        let (machine, _) = world.parts();
        machine.ept.stale().flush(machine.hardware)
    };
    let place = vm.reserve(&mut world.board, page, Level::Pt).unwrap();
    vm.map(&mut world.board, place, frame(2 * MIB), Access::ALL);
    world.board.guests.push((vm.pointer(), vec![page.base()]));
    let _ = forget(&mut world);
    let walks = world.board.walks();
    vm.withdraw(&mut world.board, page, Access::ALL);
    let _ = forget(&mut world);
    vm.forget(&mut world.board, page);
    let gap = vm.clear(&mut world.board, page).unwrap();
    let flushed = forget(&mut world);
    assert_eq!(world.board.walks(), walks - 1);
    vm.fill(&mut world.board, gap, (frame(2 * MIB), Access::ALL), &flushed);
    world.board.remember();
    assert_eq!(world.board.walks(), walks - 1);
    assert!(world.board.is_large(vm.pointer(), page.base()));
}

/// Pages of both VMs with which a host plays, and their frames.
const PAGES: [u64; 6] = [LARGE.0, LARGE.0 + 1, 0x2ff, 0x300, 0x3fe, 0x3ff];

/// One thing that the host or a VM does.
fn step(world: &mut World, [what, which, where_to]: [u8; 3]) {
    let (vm, page) = (usize::from(which & 1), PAGES[usize::from(which >> 1) % PAGES.len()]);
    let block = [2 * MIB, 4 * MIB][usize::from(where_to & 1)];
    let base = block + (page - LARGE.0) * PAGE;
    let t = tables(vm);
    match what % 20 {
        0..=4 => drop(world.guest_write(vm, page)),
        5..=7 => drop(world.guest_read(vm, page)),
        8 | 9 => drop(world.store(t.pd, 1, block | BLOCK)),
        10 => drop(world.store(t.pd, 1, 0)),
        11 => {
            // It splits a block, or moves all of it, or half.
            let second = if where_to & 2 == 0 { block } else { 6 * MIB - block };
            for number in 0..512 {
                let block = if number < 256 { block } else { second };
                let _ = world.store(t.spare, number, (block + number * PAGE) | LEAF);
            }
            let _ = world.store(t.pd, 1, t.spare | 7);
        }
        12 => drop(world.store(t.spare, page, if where_to & 2 == 0 { 0 } else { base | LEAF })),
        13 => {
            let entry = world.entry(t.pd, 1);
            let bit = [2, 4, 0x100, 0x200][usize::from(where_to >> 1) % 4];
            let _ = world.store(t.pd, 1, entry ^ bit);
        }
        14 | 15 => drop(world.host_read(base)),
        16 => world.host_write(base, &JUNK),
        17 => drop(world.other_vm_gets(base)),
        18 => drop(world.restart(vm)),
        _ => {
            if world.cause(vm).is_some() {
                let _ = world.destroy(vm);
                world.launch(vm);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_host_that_plays_with_large_leaves_sees_no_secret_and_no_vm_finds_what_it_did_not_store(
        steps in vec(any::<[u8; 3]>(), 0..32),
    ) {
        let mut world = World::large();
        world.restarts = 2;
        world.launch(1);
        world.honest = false;
        for at in steps {
            step(&mut world, at);
            world.check();
        }
        world.finish();
    }
}
