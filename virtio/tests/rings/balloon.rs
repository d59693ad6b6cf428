//! Memory balloons: what the VM gives up, and that nobody else does so for it.

use virtio::layout::Layout;
use virtio::memory::Failure;

use crate::hostile::numbers;
use crate::run::{BALLOON, NETWORK, Run, Step};
use crate::world::{PART, PART_BYTES};

const INFLATE: usize = 0;
const DEFLATE: usize = 1;

/// A device of this kind with two queues, set up.
fn device(kind: u64, layout: Layout) -> Run {
    let mut run = Run::bare(layout);
    run.kind = kind;
    run.set_up(&[8, 8]);
    run
}

/// Has the driver offer numbers of pages, so many bytes in each buffer.
fn offer(run: &mut Run, queue: usize, said: &[u32]) {
    run.step(&Step::Offer(queue, said.to_vec(), vec![]));
    run.step(&Step::Notify(queue));
}

/// All numbers that the driver has offered on a queue, in order.
fn offered(run: &Run, queue: usize) -> Vec<u32> {
    run.drivers[queue].offered.iter().flat_map(|said| numbers(said)).collect()
}

#[test]
fn a_vm_may_accept_what_says_nothing_of_its_memory_but_what_it_gives_up() {
    let run = device(BALLOON, Layout::Mmio);
    assert_eq!(run.host.accepted, [0b101, 1]);
}

#[test]
fn what_the_vm_gives_up_is_forgotten_before_the_host_sees_the_request() {
    let mut run = device(BALLOON, Layout::Mmio);
    offer(&mut run, INFLATE, &[400, 4, 512]);
    assert_eq!(run.world.forgotten.take().len(), 229);
    run.step(&Step::Offer(INFLATE, vec![1024], vec![]));
    // The last access is the host's index.
    run.world.log.borrow_mut().clear();
    run.step(&Step::Notify(INFLATE));
    let accesses = u32::try_from(run.world.log.borrow().len()).unwrap();
    run.step(&Step::Offer(INFLATE, vec![1024], vec![]));
    run.world.forgotten.borrow_mut().clear();
    run.step(&Step::Miss(accesses - 1));
    let (offset, bytes) = run.place(0x50, 0);
    assert!(run.device.store(offset, bytes, 0, &run.world).is_err(), "the index is not written");
    assert_eq!(run.world.forgotten.borrow().len(), 256);
}

#[test]
fn the_host_gets_the_same_numbers() {
    let mut run = device(BALLOON, Layout::Mmio);
    offer(&mut run, INFLATE, &[400, 4, 512]);
    offer(&mut run, INFLATE, &[1024]);
    assert_eq!(run.world.forgotten.take(), offered(&run, INFLATE));
    run.finish();
    run.check();
}

#[test]
fn what_the_vm_takes_back_is_not_forgotten() {
    let mut run = device(BALLOON, Layout::Mmio);
    offer(&mut run, DEFLATE, &[64]);
    assert_eq!(run.world.forgotten.take(), []);
    run.finish();
    run.check();
}

#[test]
fn requests_to_other_devices_give_nothing_up() {
    let kinds = [NETWORK, 2, 3, 4, 8, 9, 18, 19, 26].map(|kind| (kind, Layout::Mmio));
    for (kind, layout) in kinds.into_iter().chain([(BALLOON, Layout::Pci)]) {
        let mut run = device(kind, layout);
        offer(&mut run, INFLATE, &[64]);
        assert_eq!(run.world.forgotten.take(), [], "device {kind}");
    }
}

#[test]
fn what_the_vm_is_told_after_a_reset_does_not_make_another_device_of_it() {
    for (kind, then, pages) in [(NETWORK, BALLOON, 0), (BALLOON, NETWORK, 16)] {
        let mut run = device(kind, Layout::Mmio);
        assert_eq!(run.device.loaded(0x08, 4, then), then);
        offer(&mut run, INFLATE, &[64]);
        assert_eq!(run.world.forgotten.take().len(), pages);
        // Who resets it has been told.
        run.kind = then;
        run.set_up(&[8, 8]);
        offer(&mut run, INFLATE, &[64]);
        assert_eq!(run.world.forgotten.take().len(), 16 - pages);
    }
}

#[test]
fn a_legacy_balloon_is_none() {
    let mut run = Run::bare(Layout::Mmio);
    let _ = run.device.loaded(0x04, 4, 1);
    assert_eq!(run.device.loaded(0x08, 4, BALLOON), 0);
    run.store(0x70, 0);
    let _ = run.device.loaded(0x04, 4, 2);
    run.store(0x24, 1);
    run.store(0x14, 1);
    assert_eq!(run.load(0x10), 0, "nor has it features");
}

#[test]
fn what_the_host_makes_of_its_copy_gives_nothing_up() {
    let mut run = device(BALLOON, Layout::Mmio);
    offer(&mut run, INFLATE, &[64]);
    let wanted = offered(&run, INFLATE);
    let room = PART + 0x2000;
    run.world.poke(room, &vec![0x5a; usize::try_from(PART_BYTES - 0x2000).unwrap()]);
    run.step(&Step::Answer(INFLATE, 0, 0));
    run.enter();
    run.step(&Step::Notify(INFLATE));
    assert_eq!(run.world.forgotten.take(), wanted);
}

#[test]
fn a_page_that_is_missing_at_any_access_changes_nothing_of_what_is_given_up() {
    for at in 0..24 {
        let mut run = device(BALLOON, Layout::Mmio);
        run.step(&Step::Offer(INFLATE, vec![16, 1000], vec![]));
        run.step(&Step::Miss(at));
        run.step(&Step::Notify(INFLATE));
        let (mut forgotten, mut wanted) = (run.world.forgotten.take(), offered(&run, INFLATE));
        for pages in [&mut forgotten, &mut wanted] {
            pages.sort_unstable();
            pages.dedup();
        }
        assert_eq!(forgotten, wanted);
        run.finish();
        run.check();
    }
}

#[test]
fn numbers_that_are_cut_or_too_many_at_once_break_the_device() {
    for (said, failure) in [
        (vec![1022], Failure::Chain(0)),
        (vec![4, 3, 1], Failure::Chain(0)),
        (vec![1028], Failure::TooLong(1028)),
        (vec![1024, 4], Failure::TooLong(1028)),
    ] {
        let mut run = device(BALLOON, Layout::Mmio);
        offer(&mut run, INFLATE, &said);
        assert_eq!(run.fail(), Some(failure));
        assert!(run.world.forgotten.take().len() <= 1);
    }
}
