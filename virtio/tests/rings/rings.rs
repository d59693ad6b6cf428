//! The rings, case by case.

use virtio::layout::Layout;
use virtio::memory::Failure;

use crate::hostile::{Trick, host};
use crate::run::{LONGEST, Run, Step};
use crate::world::{Done, PART, PART_BYTES};

/// Where the shadow of queue 0 has its rings.
const AVAILABLE: u64 = PART + 0x400;
const USED: u64 = PART + 0x500;

impl Run {
    /// A network device on virtio-mmio with queues of these sizes, set up.
    pub(crate) fn new(sizes: &[u16]) -> Self {
        Self::on(Layout::Mmio, sizes)
    }
}

/// A run with one request at the host, which it has not answered.
fn asked(said: &[u32], room: &[u32]) -> Run {
    let mut run = Run::new(&[8]);
    run.step(&Step::Offer(0, said.to_vec(), room.to_vec()));
    run.step(&Step::Notify(0));
    assert_eq!(run.fail(), None);
    run
}

fn writes(run: &Run) -> Vec<Done> {
    run.world.log.borrow().iter().copied().filter(|done| done.is_write).collect()
}

#[test]
fn a_chain_has_one_descriptor_for_each_direction_in_the_shadow() {
    let run = asked(&[16, 700, 600], &[1000, 1]);
    let head = u64::from(run.world.peek16(AVAILABLE + 4));
    let first = PART + 16 * head;
    assert_eq!(run.world.peek32(first + 8), 1316);
    assert_eq!(run.world.peek16(first + 12), 1);
    let second = PART + 16 * u64::from(run.world.peek16(first + 14));
    assert_eq!(run.world.peek32(second + 8), 1001);
    assert_eq!(run.world.peek16(second + 12), 2);
    assert_eq!(run.world.peek64(second), run.world.peek64(first) + 1536);
}

#[test]
fn the_host_sees_a_request_only_when_all_of_it_is_there() {
    let run = asked(&[16], &[512]);
    let last = *writes(&run).last().unwrap();
    assert_eq!((last.address, last.bytes), (AVAILABLE, 4));
}

#[test]
fn the_vm_sees_an_answer_only_when_all_of_it_is_there() {
    let mut run = asked(&[16], &[512]);
    run.step(&Step::Answer(0, 0, 255));
    run.world.log.borrow_mut().clear();
    run.complete();
    let last = *writes(&run).last().unwrap();
    assert_eq!((last.address, last.bytes), (run.drivers[0].rings[2], 4));
}

#[test]
fn a_page_that_is_missing_at_any_access_makes_no_difference() {
    for at in 0..40 {
        let mut run = Run::new(&[8]);
        run.step(&Step::Offer(0, vec![16, 1000], vec![600, 1]));
        run.step(&Step::Offer(0, vec![], vec![600]));
        run.step(&Step::Miss(at));
        run.step(&Step::Notify(0));
        run.step(&Step::Answer(0, 1, 255));
        run.step(&Step::Answer(0, 0, 255));
        run.step(&Step::Miss(at));
        run.complete();
        run.enter();
        assert_eq!(run.answers.len(), 2);
        run.check();
    }
}

#[test]
fn what_was_copied_before_a_page_was_missing_is_not_copied_again() {
    let copies = |misses: &[u32]| {
        let mut run = Run::new(&[64]);
        run.step(&Step::Offer(0, vec![LONGEST; 8], vec![LONGEST; 8]));
        run.world.log.borrow_mut().clear();
        for miss in misses {
            run.step(&Step::Miss(*miss));
            assert!(run.device.store(0x50, 4, 0, &run.world).is_err());
        }
        run.step(&Step::Notify(0));
        run.step(&Step::Answer(0, 0, 255));
        for miss in misses {
            run.step(&Step::Miss(*miss));
            assert!(run.device.complete(&run.world).is_err());
        }
        run.enter();
        run.check();
        let log = run.world.log.borrow();
        log.iter().filter(|done| done.is_write && done.bytes > 16).count()
    };
    // Descriptors are read anew each time, and come before the data.
    assert_eq!(copies(&[]), copies(&[30, 50, 31, 60]));
}

#[test]
fn a_reset_forgets_how_far_a_copy_has_come() {
    let mut run = Run::new(&[8]);
    run.step(&Step::Offer(0, vec![LONGEST], vec![600]));
    run.step(&Step::Miss(8));
    assert!(run.device.store(0x50, 4, 0, &run.world).is_err());
    run.set_up(&[8]);
    run.step(&Step::Offer(0, vec![LONGEST], vec![600]));
    run.finish();
    run.check();
}

#[test]
fn how_far_a_copy_has_come_counts_for_that_request_only() {
    // Another queue's request takes the same place.
    let mut run = Run::new(&[8, 8]);
    run.step(&Step::Offer(0, vec![LONGEST], vec![600]));
    run.step(&Step::Miss(8));
    assert!(run.device.store(0x50, 4, 0, &run.world).is_err());
    run.step(&Step::Offer(1, vec![LONGEST], vec![600]));
    run.step(&Step::Notify(1));
    run.finish();
    run.check();
    // The next one with this head has its data where the last one's answer was.
    let mut run = asked(&[512], &[512]);
    run.step(&Step::Answer(0, 0, 255));
    run.enter();
    run.step(&Step::Offer(0, vec![], vec![1]));
    run.step(&Step::Offer(0, vec![300], vec![]));
    run.finish();
    run.check();
}

#[test]
fn a_request_without_room_waits_for_others_and_the_host_is_told_of_it_then() {
    let mut run = Run::new(&[64, 64]);
    for queue in [1, 0] {
        for _ in 0..20 {
            run.step(&Step::Offer(queue, vec![LONGEST], vec![LONGEST]));
        }
        run.step(&Step::Notify(queue));
    }
    let published = run.world.peek16(AVAILABLE + 2);
    assert!((8..16).contains(&published), "{published}");
    run.enter();
    assert_eq!(run.host.told, [1, 0]);
    run.step(&Step::Answer(0, 0, 255));
    run.enter();
    assert_eq!(run.world.peek16(AVAILABLE + 2), published + 1);
    assert_eq!(run.host.told, [1, 0, 0]);
    run.finish();
    run.check();
}

#[test]
fn what_waits_is_not_forgotten_when_a_page_is_missing() {
    for at in 0..200 {
        let mut run = Run::new(&[64, 64]);
        // Nearly all of the room, so that the second does not fit beside it.
        run.step(&Step::Offer(0, vec![LONGEST; 30], vec![LONGEST; 30]));
        run.step(&Step::Offer(1, vec![], vec![LONGEST; 20]));
        run.step(&Step::Offer(1, vec![], vec![1]));
        run.step(&Step::Notify(0));
        run.step(&Step::Notify(1));
        run.step(&Step::Answer(0, 0, 1));
        run.step(&Step::Miss(at));
        // The host lets the VM wait where the page is missing.
        let _ = run.device.complete(&run.world);
        assert!(run.device.is_waiting());
        run.world.fuse.set(u32::MAX);
        run.enter();
        run.finish();
        run.check();
    }
}

#[test]
fn a_request_longer_than_the_room_breaks_the_device() {
    const ROOM: u32 = 512 * 512;
    for (bytes, failure) in [
        (ROOM - 1, None),
        (ROOM, Some(Failure::TooLong(u64::from(ROOM)))),
        (u32::MAX, Some(Failure::TooLong(u64::from(u32::MAX)))),
    ] {
        let mut run = Run::new(&[8]);
        run.step(&Step::Offer(0, vec![], vec![1]));
        run.world.poke(run.drivers[0].rings[0] + 8, &bytes.to_le_bytes());
        run.step(&Step::Notify(0));
        assert_eq!(run.fail(), failure);
        assert_eq!(run.world.peek16(AVAILABLE + 2), u16::from(failure.is_none()));
    }
}

/// What breaks when a VM has written `bytes` at `offset` from a ring of its (0 to 2) before it notifies.
fn wild(ring: usize, offset: u64, bytes: &[u8]) -> Option<Failure> {
    let mut run = Run::new(&[8]);
    run.step(&Step::Offer(0, vec![16], vec![512]));
    run.world.poke(run.drivers[0].rings[ring] + offset, bytes);
    run.step(&Step::Notify(0));
    assert_eq!(run.world.peek16(AVAILABLE + 2), 0, "the host gets nothing");
    assert!(!run.device.is_waiting());
    run.fail()
}

#[test]
fn malformed_requests_of_the_vm_break_the_device() {
    assert_eq!(wild(1, 2, &9_u16.to_le_bytes()), Some(Failure::AvailableIndex(9)));
    assert_eq!(wild(1, 2, &0xffff_u16.to_le_bytes()), Some(Failure::AvailableIndex(0xffff)));
    assert_eq!(wild(1, 4, &8_u16.to_le_bytes()), Some(Failure::AvailableHead(8)));
    assert_eq!(wild(1, 4, &64_u16.to_le_bytes()), Some(Failure::AvailableHead(64)));
    // Head 0, and 1 behind it. Indirect; a loop; out of the table; to be read behind what is written.
    assert_eq!(wild(0, 12, &[5]), Some(Failure::Chain(0)));
    assert_eq!(wild(0, 12, &[0, 1]), Some(Failure::Chain(0)));
    assert_eq!(wild(0, 16 + 12, &[3, 0, 1, 0]), Some(Failure::Chain(0)));
    assert_eq!(wild(0, 14, &[8, 0]), Some(Failure::Chain(0)));
    assert_eq!(
        wild(0, 12, &[[3, 0, 1, 0], [0; 4], [0; 4], [0; 4], [0; 4]].concat()),
        Some(Failure::Chain(0))
    );
}

#[test]
fn an_available_index_does_not_go_back() {
    let mut run = asked(&[16], &[512]);
    run.world.poke(run.drivers[0].rings[1] + 2, &[0, 0]);
    run.step(&Step::Notify(0));
    assert_eq!(run.fail(), Some(Failure::AvailableIndex(0)));
}

#[test]
fn a_chain_is_offered_once() {
    let mut run = asked(&[16], &[512]);
    let ring = run.drivers[0].rings[1];
    let head = run.world.peek16(ring + 4);
    run.world.poke(ring + 6, &head.to_le_bytes());
    run.world.poke(ring + 2, &[2, 0]);
    run.step(&Step::Notify(0));
    assert_eq!(run.fail(), Some(Failure::AvailableHead(head)));
}

#[test]
fn buffers_where_the_vm_has_no_memory_break_the_device() {
    for address in [0, 0x7000_0000, u64::MAX] {
        let mut run = Run::new(&[8]);
        run.step(&Step::Offer(0, vec![16], vec![512]));
        run.world.poke(run.drivers[0].rings[0], &address.to_le_bytes());
        run.step(&Step::Notify(0));
        assert_eq!(run.fail(), Some(Failure::Nowhere(address)));
    }
}

/// What breaks when the host returns this, so far ahead.
fn lie(ahead: u16, id: u32, length: u32) -> Option<Failure> {
    let mut run = asked(&[16], &[512]);
    host(&mut run, &Trick::Forge(0, ahead, id, length));
    run.world.log.borrow_mut().clear();
    run.complete();
    let failure = run.fail();
    if failure.is_some() {
        assert!(writes(&run).is_empty(), "nothing reaches the VM");
        assert_eq!(run.load(0x70), 15 | 0x40);
    }
    failure
}

#[test]
fn a_host_that_returns_what_it_does_not_have_breaks_the_device() {
    assert_eq!(lie(1, 0, 512), None);
    assert_eq!(lie(1, 0, 513), Some(Failure::UsedLength(513)));
    assert_eq!(lie(1, 0, u32::MAX), Some(Failure::UsedLength(u32::MAX)));
    assert_eq!(lie(1, 1, 0), Some(Failure::UsedHead(1)));
    assert_eq!(lie(1, 64, 0), Some(Failure::UsedHead(64)));
    assert_eq!(lie(1, 0x1_0000, 0), Some(Failure::UsedHead(0x1_0000)));
    assert_eq!(lie(2, 0, 0), Some(Failure::UsedIndex(2)));
    assert_eq!(lie(0xffff, 0, 0), Some(Failure::UsedIndex(0xffff)));
}

#[test]
fn a_chain_that_the_vm_cut_meanwhile_breaks_the_device() {
    let mut run = asked(&[16], &[512]);
    run.step(&Step::Answer(0, 0, 255));
    run.world.poke(run.drivers[0].rings[0] + 16 + 8, &[0; 4]);
    run.complete();
    assert_eq!(run.fail(), Some(Failure::Chain(0)));
}

#[test]
fn what_the_host_does_to_the_shadow_later_is_not_believed() {
    let mut run = asked(&[16], &[512]);
    run.step(&Step::Answer(0, 0, 255));
    let bounce = run.world.peek(PART, usize::try_from(USED - PART).unwrap());
    // All descriptors and the available ring.
    run.world.poke(PART, &vec![0xff; bounce.len()]);
    run.enter();
    run.check();
    assert_eq!(run.answers.len(), 1);
}

#[test]
fn a_notification_of_no_queue_is_nothing() {
    let mut run = Run::new(&[8]);
    run.world.log.borrow_mut().clear();
    for value in [1, 3, 4, 0x1_0000, 0xffff_ffff] {
        run.store(0x50, value);
    }
    assert!(run.world.log.borrow().is_empty());
    assert_eq!(run.fail(), None);
}

#[test]
fn a_reset_frees_all_room() {
    let mut run = Run::new(&[64]);
    for _ in 0..3 {
        run.step(&Step::Offer(0, vec![LONGEST; 20], vec![LONGEST; 20]));
        run.step(&Step::Notify(0));
        assert_eq!(run.fail(), None);
        assert_eq!(run.world.peek16(AVAILABLE + 2), 1);
        assert!(run.device.is_waiting());
        run.set_up(&[64]);
        assert!(!run.device.is_waiting());
        assert_eq!(run.world.peek16(AVAILABLE + 2), 0);
    }
}

#[test]
fn what_the_host_answers_too_late_for_a_reset_goes_nowhere() {
    for sets_up in [false, true] {
        let mut run = asked(&[512], &[512]);
        run.step(&Step::Answer(0, 0, 255));
        let used = run.world.peek16(USED + 2);
        assert_eq!(used, 1, "the VM has not run since");
        if sets_up {
            run.set_up(&[8]);
            run.step(&Step::Offer(0, vec![300], vec![300]));
        } else {
            run.store(0x70, 0);
        }
        // It insists.
        run.world.poke(USED + 2, &used.to_le_bytes());
        run.world.log.borrow_mut().clear();
        let _ = run.device.complete(&run.world);
        let log = run.world.log.borrow();
        let written = |done: &&crate::world::Done| done.is_write && done.address < 0x4000_0000;
        assert_eq!(log.iter().filter(written).count(), 0, "to the VM's memory");
    }
}

#[test]
fn nothing_behind_the_devices_part_is_touched() {
    let run = asked(&[LONGEST; 4], &[LONGEST; 4]);
    let log = run.world.log.borrow();
    let shared = log.iter().filter(|done| done.address >= 0x4000_0000);
    assert!(shared.clone().count() > 8);
    assert!(shared.clone().all(|done| done.is_within(PART, PART_BYTES)));
}
