//! Accesses to what the ticket has no memory for, and the page in which the host is shown them.

use ept::addr::PAGE;
use ept::direct::HostMemory;
use ept::shadow::Access;
use membrane::vm::{Cause, Fault, Filled};

use crate::board::window_word;
use crate::refusals::{map, page, stopped};
use crate::world::{EPTP, LEAF, PRIVATE, SHARED, World, frame, tables};

const WINDOW: u64 = 0x30;
const DEVICE: u64 = 0x31;
const F: u64 = 40 * PAGE;
const G: u64 = 41 * PAGE;

fn access(world: &mut World, at: u64) -> Filled {
    access_by(world, 3, at)
}

fn access_by(world: &mut World, word: u8, at: u64) -> Filled {
    let number = world.guests[0].as_ref().unwrap().number;
    let (mut machine, vms) = world.parts();
    let fault = Fault { at, access: Access::READ, word };
    vms.fill(&mut machine, number, tables(0).roots[0] | EPTP, fault)
}

fn shown(at: u64) -> Filled {
    Filled::Device { at, window: page(WINDOW) }
}

fn words(world: &World, base: u64) -> Vec<u64> {
    (0..512).map(|index| world.board.entry(frame(base), index)).collect()
}

/// Where the words of processors lead to the pages of these devices.
fn wanted(by: &[(usize, u64)]) -> Vec<u64> {
    let mut words: Vec<u64> = (0..512).map(|index| window_word(index, WINDOW * PAGE)).collect();
    by.iter().for_each(|(word, at)| words[*word] = window_word(0, at & !0xfff));
    words
}

#[test]
fn what_is_outside_of_the_map_is_a_devices_and_the_window_page_is_made_for_it() {
    let mut world = World::running();
    map(&mut world, 0, WINDOW, F | LEAF);
    for at in [0, 0x1f8, DEVICE * PAGE, 0x40_0000, (1 << 48) - 1] {
        assert_eq!(access(&mut world, at), shown(at));
        assert_eq!(words(&world, F), wanted(&[(3, at)]));
    }
    world.check();
    world.finish();
}

#[test]
fn a_host_without_a_window_page_is_told_that_it_is_absent() {
    let mut world = World::running();
    let at = DEVICE * PAGE;
    for entry in [0, F | 6, F | 4] {
        map(&mut world, 0, WINDOW, entry);
        assert_eq!(access(&mut world, at), Filled::Absent(page(WINDOW)), "{entry:#x}");
    }
    // Read-only does if the words are there, and asks for more if they are not.
    map(&mut world, 0, WINDOW, F | 0x35);
    let rights = Access::READ.or(Access::FETCH);
    assert_eq!(access(&mut world, at), Filled::Denied { at: page(WINDOW), rights });
    assert_eq!(words(&world, F), vec![0; 512]);
    map(&mut world, 0, WINDOW, F | LEAF);
    assert_eq!(access(&mut world, at), shown(at));
    map(&mut world, 0, WINDOW, F | 0x35);
    assert_eq!(access(&mut world, at + 4), shown(at + 4));
    // Another device, another processor.
    for (word, at) in [(3, at + PAGE), (4, at)] {
        let denied = Filled::Denied { at: page(WINDOW), rights };
        assert_eq!(access_by(&mut world, word, at), denied);
    }
    assert_eq!(words(&world, F), wanted(&[(3, at)]));
    world.finish();
}

#[test]
fn the_window_page_may_move_and_is_made_again() {
    let mut world = World::running();
    for base in [F, G, F] {
        world.host_write(base, &[0; 4096]);
        map(&mut world, 0, WINDOW, base | LEAF);
        assert_eq!(access(&mut world, 8), shown(8));
        assert_eq!(words(&world, base), wanted(&[(3, 0)]));
    }
    world.finish();
}

#[test]
fn each_processor_has_a_word_that_leads_to_the_page_of_its_device() {
    let mut world = World::running();
    map(&mut world, 0, WINDOW, F | LEAF);
    let [a, b] = [DEVICE, DEVICE + 1].map(|page| page * PAGE);
    for (word, at, by) in [
        (1, a + 0xffc, &[(1, a)][..]),
        (255, b, &[(1, a), (255, b)]),
        (1, b + 8, &[(1, b), (255, b)]),
        (255, a, &[(1, b), (255, a)]),
    ] {
        assert_eq!(access_by(&mut world, word, at), shown(at));
        assert_eq!(words(&world, F), wanted(by));
    }
    // What the host has made of it is put right.
    let mut changed = world.board.page(F);
    changed[8..16].fill(0);
    world.host_write(F, &changed);
    assert_eq!(access_by(&mut world, 1, b), shown(b));
    assert_eq!(words(&world, F), wanted(&[(1, b), (255, a)]));
    world.finish();
}

#[test]
fn nothing_but_ordinary_memory_of_the_hosts_is_made_the_window_page() {
    let mut world = World::running();
    map(&mut world, 0, PRIVATE[2], G | LEAF);
    world.guest_write(0, PRIVATE[2]).unwrap();
    let secret = world.board.page(G);
    let table = tables(0).pt;
    let before = words(&world, table);
    // A private page, a table of this VM's, no RAM at all.
    for base in [G, table, 0xff_f000] {
        let mut world = World::running();
        map(&mut world, 0, PRIVATE[2], G | LEAF);
        world.guest_write(0, PRIVATE[2]).unwrap();
        world.honest = false;
        map(&mut world, 0, WINDOW, base | LEAF);
        let cause = Cause::Frame(page(WINDOW));
        assert_eq!(access(&mut world, 8), Filled::Stopped(cause), "{base:#x}");
        assert!(words(&world, base).iter().all(|word| *word != window_word(9, WINDOW * PAGE)));
        stopped(&world, cause);
    }
    assert_eq!((world.board.page(G), words(&world, table)), (secret, before));
}

#[test]
fn a_device_of_which_the_host_has_memory_stops_the_vm() {
    let mut world = World::running();
    world.honest = false;
    map(&mut world, 0, WINDOW, F | LEAF);
    map(&mut world, 0, DEVICE, G | LEAF);
    let at = DEVICE * PAGE + 4;
    assert_eq!(access(&mut world, at), Filled::Stopped(Cause::Device(at)));
    stopped(&world, Cause::Device(at));
}

#[test]
fn beyond_what_tables_translate_there_is_not_even_a_device() {
    for at in [1 << 48, (1 << 48) + PRIVATE[0] * PAGE, u64::MAX] {
        let mut world = World::running();
        world.honest = false;
        map(&mut world, 0, WINDOW, F | LEAF);
        assert_eq!(access(&mut world, at), Filled::Stopped(Cause::Device(at)));
    }
}

#[test]
fn what_the_visor_does_for_a_vm_reaches_as_far_as_the_vm_does() {
    let mut world = World::running();
    map(&mut world, 0, PRIVATE[2], F | LEAF);
    map(&mut world, 0, SHARED[0], G | 0x35);
    world.guest_write(0, PRIVATE[2]).unwrap();
    let _ = world.reach(0, SHARED[0], Access::READ).unwrap();
    let number = world.guests[0].as_ref().unwrap().number;
    let launch = world.vms.vm(number).unwrap().launch();
    let reach = |world: &World, at, access| {
        world.vms.running(number, launch)?.reach(&world.board, at, access)
    };
    assert_eq!(reach(&world, PRIVATE[2] * PAGE + 24, Access::WRITE), Some(F + 24));
    assert_eq!(reach(&world, SHARED[0] * PAGE, Access::READ), Some(G));
    assert_eq!(reach(&world, SHARED[0] * PAGE, Access::WRITE), None);
    assert_eq!(reach(&world, PRIVATE[3] * PAGE, Access::READ), None);
    assert_eq!(reach(&world, (1 << 48) + PRIVATE[2] * PAGE, Access::READ), None);
    assert!(world.vms.running(number, launch + 1).is_none());
    let vm = world.vms.vm(number).unwrap();
    let devices = [PRIVATE[2], SHARED[0], WINDOW, DEVICE].map(|page| vm.is_device(page * PAGE + 5));
    assert_eq!(devices, [false, false, false, true]);
    // Once the page has left, the visor cannot reach it either.
    map(&mut world, 0, PRIVATE[2], 0);
    assert_eq!(reach(&world, PRIVATE[2] * PAGE, Access::READ), None);
    world.finish();
}
