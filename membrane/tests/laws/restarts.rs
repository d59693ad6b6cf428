//! VMs that their hosts start anew.

use ept::shadow::Access;
use membrane::Progress;
use membrane::vm::{Cause, Filled, Life};
use membrane::vms::Restart;
use ticket::audit::Kind;
use ticket::error::Error;

use crate::refusals::{F, G, events, map, page};
use crate::world::{KNOWN, LARGE, LEAF, MIB, PRIVATE, World, frame, image, tables};

const P: u64 = PRIVATE[3];

/// VM 0 has stored a page in F, and may be started anew so often.
fn stored(restarts: u32) -> World {
    let mut world = World::with_restarts(restarts);
    map(&mut world, 0, P, F | LEAF);
    world.guest_write(0, P).unwrap();
    world
}

#[test]
fn a_vm_that_is_started_anew_finds_its_manifest_and_nothing_of_what_it_was() {
    let mut world = stored(2);
    let known = KNOWN[0];
    world.host_write(G, &image(known));
    map(&mut world, 0, known, G | LEAF);
    world.guest_write(0, known).unwrap();
    for _ in 0..2 {
        assert!(world.restart(0).is_some());
        world.check();
        for base in [F, G] {
            assert!(world.host_read(base) == [0; 4096], "the frame is the host's, and empty");
        }
        world.host_write(G, &image(known));
        // Both are as at the first launch; the first is zeroed, whatever is in it.
        world.host_write(F, &[7; 4096]);
        world.guest_read(0, known).unwrap();
        world.guest_read(0, P).unwrap();
        world.guest_write(0, P).unwrap();
        world.guest_write(0, known).unwrap();
    }
    world.finish();
}

#[test]
fn what_the_host_writes_once_a_vm_is_stopped_is_what_the_next_launch_finds() {
    for cause in [None, Some(Cause::SHUT_DOWN)] {
        let known = KNOWN[0];
        let mut world = World::with_restarts(1);
        world.host_write(G, &image(known));
        map(&mut world, 0, known, G | LEAF);
        world.guest_write(0, known).unwrap();
        // This is lost, in a view.
        world.host_write(G, &image(known));
        let number = world.guests[0].as_ref().unwrap().number;
        let launch = world.vms.vm(number).unwrap().launch();
        world.honest = false;
        let (mut machine, vms) = world.parts();
        match cause {
            Some(cause) => vms.close(&mut machine, number, cause),
            None => {
                let restart = vms.restart(&mut machine, (number, launch), &[1; 32]);
                assert_eq!(restart, Restart::Refused);
            }
        }
        world.check();
        world.host_write(G, &image(known));
        assert!(world.restart(0).is_some());
        world.guest_read(0, known).unwrap();
    }
}

#[test]
fn a_page_of_the_manifest_is_approved_anew_and_only_as_it_is_there() {
    let known = KNOWN[0];
    for good in [true, false] {
        let mut world = stored(1);
        world.host_write(G, &image(known));
        map(&mut world, 0, known, G | LEAF);
        world.guest_read(0, known).unwrap();
        world.honest = good;
        assert!(world.restart(0).is_some());
        world.host_write(G, &if good { image(known) } else { [1; 4096] });
        let stopped = Err(Filled::Stopped(Cause::Manifest(page(known))));
        assert_eq!(world.guest_read(0, known), if good { Ok(()) } else { stopped });
    }
}

#[test]
fn what_left_an_earlier_launch_does_not_come_back() {
    for known in [false, true] {
        let mut world = World::with_restarts(1);
        let at = if known { KNOWN[0] } else { P };
        world.host_write(F, &image(at));
        map(&mut world, 0, at, F | LEAF);
        world.guest_write(0, at).unwrap();
        map(&mut world, 0, at, 0);
        let sealed = world.host_read(F);
        assert!(world.restart(0).is_some());
        assert_eq!(world.vms.vm(world.guests[0].as_ref().unwrap().number).unwrap().sealed(), 0);
        world.host_write(F, &sealed);
        map(&mut world, 0, at, F | LEAF);
        world.honest = !known;
        let stopped = Err(Filled::Stopped(Cause::Manifest(page(at))));
        assert_eq!(world.guest_read(0, at), if known { stopped } else { Ok(()) });
        world.finish();
    }
}

#[test]
fn pages_of_two_launches_never_leave_as_the_same_bytes() {
    let mut world = World::with_restarts(1);
    let mut left = Vec::new();
    for _ in 0..2 {
        // A page of zeros, both times.
        map(&mut world, 0, P, F | LEAF);
        world.guest_read(0, P).unwrap();
        map(&mut world, 0, P, 0);
        left.push(world.host_read(F));
        let _ = world.restart(0);
        world.honest = false;
    }
    assert!(left[0] != left[1], "the key is another");
}

#[test]
fn a_ticket_permits_so_many_launches_and_one_more_stops_the_vm() {
    for restarts in 0..3 {
        let mut world = stored(restarts);
        for _ in 0..restarts {
            assert!(world.restart(0).is_some());
            assert_eq!(world.cause(0), None);
        }
        world.honest = false;
        assert_eq!(world.restart(0), None);
        assert_eq!(world.cause(0), Some(Cause::Restarted));
        assert_eq!(world.restart(0), None, "for ever");
        let stopped = (Kind::Stopped.number(), 10, 0);
        let launched = (Kind::Launched.number(), 0, 0);
        let events = events(&world);
        let count = |wanted| events.iter().filter(|event| **event == wanted).count();
        let times = usize::try_from(restarts).unwrap();
        assert_eq!((count(launched), count(stopped)), (2 + times, 1 + times));
        world.check();
    }
}

#[test]
fn a_vm_that_has_shut_down_may_be_started_anew_and_one_that_was_attacked_not() {
    for (cause, runs) in [
        (Cause::SHUT_DOWN, true),
        (Cause::Processor(1), false),
        (Cause::Forged(page(P)), false),
        (Cause::Memory, false),
        (Cause::Destroyed, false),
    ] {
        let mut world = stored(1);
        world.honest = false;
        let number = world.guests[0].as_ref().unwrap().number;
        world.vms.stop(number, cause, 0);
        assert_eq!(world.restart(0).is_some(), runs, "{cause}");
        assert_eq!(world.cause(0), (!runs).then_some(cause));
        world.check();
        world.finish();
    }
}

#[test]
fn many_pages_go_in_pieces_and_the_vm_runs_when_all_are_gone() {
    let mut world = World::large();
    world.restarts = 1;
    let _ = world.destroy(0);
    world.launch(0);
    let _ = world.store(tables(0).pd, 1, (2 * MIB) | 0xb7);
    for page in LARGE.0..LARGE.1 {
        world.guest_write(0, page).unwrap();
    }
    assert!(world.restart(0).unwrap() > 1);
    world.check();
    world.guest_read(0, LARGE.0).unwrap();
    world.finish();
}

#[test]
fn a_vm_that_is_being_destroyed_is_not_started_anew() {
    for cause in [Cause::SHUT_DOWN, Cause::Restarted, Cause::Memory] {
        let mut world = World::large();
        world.restarts = 3;
        let _ = world.destroy(0);
        world.launch(0);
        let _ = world.store(tables(0).pd, 1, (2 * MIB) | 0xb7);
        for page in LARGE.0..LARGE.1 {
            world.guest_write(0, page).unwrap();
        }
        let number = world.guests[0].as_ref().unwrap().number;
        world.vms.stop(number, cause, 0);
        let launch = world.vms.vm(number).unwrap().launch();
        assert_eq!(world.vms.is_over(number, launch), cause == Cause::Memory);
        let (mut machine, vms) = world.parts();
        assert_eq!(vms.destroy(&mut machine, number), Progress::Again);
        assert!(vms.is_over(number, launch));
        let again = vms.restart(&mut machine, (number, launch), &[1; 32]);
        assert_eq!(again, Restart::Refused, "{cause}");
        let _ = world.destroy(0);
        world.finish();
    }
}

#[test]
fn there_is_nothing_to_destroy_where_no_vm_is() {
    let mut world = stored(0);
    let number = world.guests[0].as_ref().unwrap().number;
    let _ = world.destroy(0);
    let before = (events(&world), world.board.flushes);
    let (mut machine, vms) = world.parts();
    assert_eq!(vms.destroy(&mut machine, number), Progress::Done);
    assert_eq!((events(&world), world.board.flushes), before);
    world.finish();
}

#[test]
fn the_launch_of_before_is_over_in_every_way() {
    let mut world = stored(2);
    let number = world.guests[0].as_ref().unwrap().number;
    let before = world.vms.vm(number).unwrap().launch();
    let processors = world.vms.processors(number, before).unwrap();
    processors.signal(1 << 32 | 0x4500);
    processors.signal(1 << 32 | 0x4609);
    world.vms.vcpu_added(number, 0);
    assert!(world.restart(0).is_some());
    let (mut machine, vms) = world.parts();
    assert_eq!(vms.restart(&mut machine, (number, before), &[9; 32]), Restart::Refused);
    assert!(vms.processors(number, before).is_none());
    let vm = vms.vm(number).unwrap();
    assert_eq!((vm.life(), vm.vcpus(), vm.resident()), (Life::Running, 0, 0));
    // The start of before is none of the VM that runs now, whose tables nobody has seen yet.
    let root = frame(tables(0).roots[0]);
    assert_eq!(world.vms.begin_processor(root, 9), None);
    let _ = world.reach(0, P, Access::READ).unwrap();
    assert_eq!(world.vms.begin_processor(root, 9), None);
    let now = world.vms.vm(number).unwrap().launch();
    let processors = world.vms.processors(number, now).unwrap();
    processors.signal(1 << 32 | 0x4500);
    processors.signal(1 << 32 | 0x4609);
    assert_eq!(world.vms.begin_processor(root, 9), Some((number, now)), "as many as before");
    world.vms.stop(number, Cause::SHUT_DOWN, 0);
    let (mut machine, vms) = world.parts();
    assert_eq!(vms.restart(&mut machine, (number, before), &[9; 32]), Restart::Refused);
    assert_eq!(vms.restart(&mut machine, (number, now), &[9; 32]), Restart::Launched(now + 1));
}

#[test]
fn a_vm_that_may_be_started_anew_keeps_its_name() {
    for (restarts, expected) in [(1, Err(Error::Duplicate)), (0, Ok(()))] {
        let mut world = stored(restarts);
        world.honest = false;
        world.vms.stop(world.guests[0].as_ref().unwrap().number, Cause::SHUT_DOWN, 0);
        assert_eq!(world.submit(0).map(drop), expected);
    }
}

#[test]
fn a_ticket_that_waits_for_its_vm_cannot_be_started_anew() {
    let mut world = World::new();
    world.restarts = 1;
    let number = world.submit(0).unwrap();
    let launch = world.vms.vm(number).unwrap().launch();
    let (mut machine, vms) = world.parts();
    assert_eq!(vms.restart(&mut machine, (number, launch), &[1; 32]), Restart::Refused);
    assert_eq!(vms.vm(number).unwrap().life(), Life::Waiting);
}

#[test]
fn memory_comes_back_however_often_a_vm_was_started_anew() {
    let mut world = stored(5);
    for _ in 0..5 {
        map(&mut world, 0, P, 0);
        let used = world.board.used();
        assert!(world.restart(0).is_some());
        assert!(world.board.used() <= used, "what was known of pages is forgotten");
        map(&mut world, 0, P, F | LEAF);
        world.guest_write(0, P).unwrap();
    }
    world.finish();
}
