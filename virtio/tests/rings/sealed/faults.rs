//! Hosts that lie, and disks that are not what they should be.

use disk::geometry::Geometry;
use disk::header::{Header, Refusal};
use disk::storage::Error;
use virtio::layout::Layout;
use virtio::memory::Failure;
use virtio::sealed::{Fault, Wanted};

use super::{BLOCK, Image, Machine, said, wanted};
use crate::driver::pattern;
use crate::world::PART;

/// A machine with 16 blocks written, each of a pattern of its own, and nothing in the log.
fn filled() -> Machine {
    let mut machine = Machine::new();
    for block in 0..16_u8 {
        assert_eq!(machine.write(u64::from(block) * 8, &pattern(block, BLOCK)), 0);
    }
    assert_eq!(machine.flush(), 0);
    machine
}

#[test]
fn a_block_that_was_changed_fails_and_others_do_not() {
    let mut machine = filled();
    machine.image.blocks[3][77] ^= 1;
    assert_eq!(machine.read(3 * 8, BLOCK), Err(1));
    assert_eq!(machine.fault(), Some(Fault::Volume(Error::Forged { level: 0, index: 3 })));
    assert_eq!(machine.fault(), None);
    assert_eq!(machine.read(0, 16 * BLOCK), Err(1));
    assert_eq!(machine.read(2 * 8, BLOCK), Ok(pattern(2, BLOCK)));
    assert_eq!(machine.read(4 * 8, BLOCK), Ok(pattern(4, BLOCK)));
}

#[test]
fn blocks_that_are_exchanged_or_old_fail() {
    let mut machine = filled();
    machine.image.blocks.swap(5, 6);
    assert_eq!((machine.read(5 * 8, BLOCK), machine.read(6 * 8, BLOCK)), (Err(1), Err(1)));
    let mut machine = filled();
    let old = machine.image.blocks.clone();
    // In its place only after a checkpoint; so every block of the image is put back.
    assert_eq!(machine.write(7 * 8, &pattern(99, BLOCK)), 0);
    assert_eq!(machine.flush(), 0);
    assert_eq!(machine.read(7 * 8, BLOCK), Ok(pattern(99, BLOCK)));
    machine.image.blocks = old;
    assert_eq!(machine.read(7 * 8, BLOCK), Err(1));
}

#[test]
fn nothing_of_a_block_that_fails_reaches_the_vm() {
    let mut machine = filled();
    machine.image.blocks[3][4000] ^= 1;
    let (status, bytes) = machine.ask(&said(0, 16, &[]), 3 * BLOCK);
    assert_eq!(status, 1);
    assert_eq!(bytes, vec![0xee; 3 * BLOCK]);
}

/// What the requests of a VM get, and why.
fn refused(wanted: Wanted, image: Image) -> Option<Fault> {
    let mut machine = Machine::with(Layout::Mmio, wanted, image);
    assert_eq!(machine.read(0, BLOCK), Err(1));
    let fault = machine.fault();
    let asked = machine.image.asked;
    for _ in 0..2 {
        assert_eq!((machine.write(0, &[1; BLOCK]), machine.flush()), (1, 1));
        assert_eq!(machine.read(0, BLOCK), Err(1));
    }
    // It stays refused; what the host is still asked is to interrupt the VM.
    assert!(machine.image.asked <= asked + 6);
    // It is said once.
    assert_eq!(machine.fault(), None);
    fault
}

#[test]
fn another_disk_is_refused() {
    let image = || Image::new();
    let of_key = Wanted { key: [1; 32], ..wanted(1) };
    assert_eq!(refused(of_key, image()), Some(Fault::Header(Refusal::Forged)));
    let of_id = Wanted { id: [1; 16], ..wanted(1) };
    assert_eq!(refused(of_id, image()), Some(Fault::Other));
    let of_size = Wanted { blocks: wanted(1).blocks - 1, ..wanted(1) };
    assert_eq!(refused(of_size, image()), Some(Fault::Other));
    let shorter = Wanted { total: wanted(1).total - 2, ..wanted(1) };
    assert_eq!(refused(shorter, image()), Some(Fault::Header(Refusal::Absent)));
}

#[test]
fn one_of_a_moment_before_the_tenants_is_refused() {
    let mut machine = filled();
    let early = machine.image.clone();
    for turn in 0..3 {
        assert_eq!((machine.write(0, &[turn; BLOCK]), machine.flush()), (0, 0));
    }
    let late = machine.image;
    let moment = (0..)
        .find(|moment| {
            let known = Wanted { moment: *moment, ..wanted(3) };
            Machine::with(Layout::Mmio, known, late.clone()).read(0, BLOCK).is_err()
        })
        .unwrap();
    let known = || Wanted { moment: moment - 1, ..wanted(4) };
    assert!(Machine::with(Layout::Mmio, known(), late).read(0, BLOCK).is_ok());
    assert!(matches!(refused(known(), early), Some(Fault::Old(found)) if found < moment - 1));
}

#[test]
fn a_disk_is_opened_once_with_the_same_random_bytes() {
    // A second volume under them could seal two contents under one nonce.
    let never = Wanted { opening: None, ..wanted(1) };
    assert_eq!(refused(never, Image::new()), Some(Fault::Other));
}

/// Where the host has status and used ring.
const STATUS: u64 = PART + 0x2000 + 16;
const USED: u64 = PART + 0x500;

#[test]
fn a_host_whose_disk_fails_fails_the_request() {
    for status in [1, 2, 0xff] {
        let mut machine = filled();
        assert!(machine.offer(&said(0, 0, &[]), BLOCK));
        machine.run.store(0x50, 0);
        assert!(machine.host());
        machine.run.world.poke(STATUS, &[status]);
        assert_eq!(machine.rest().0, 1);
        assert_eq!(machine.fault(), Some(Fault::Volume(Error::Failed)));
        assert_eq!(machine.read(0, BLOCK), Ok(pattern(0, BLOCK)));
    }
}

#[test]
fn a_host_that_returns_what_it_has_not_breaks_the_device() {
    for ahead in [1, 2, 0x8000] {
        let mut machine = filled();
        assert!(machine.offer(&said(0, 0, &[]), BLOCK));
        machine.run.store(0x50, 0);
        let index = machine.run.world.peek16(USED + 2).wrapping_add(1).wrapping_add(ahead);
        machine.run.world.poke(USED + 2, &index.to_le_bytes());
        let _ = machine.enter();
        assert_eq!(machine.run.fail(), Some(Failure::UsedIndex(index)));
        assert_ne!(machine.run.load(0x70) & 1 << 6, 0);
    }
}

#[test]
fn after_a_reset_nothing_of_before_counts() {
    let mut machine = filled();
    // A request is at the host.
    assert!(machine.offer(&said(0, 0, &[]), BLOCK));
    machine.run.store(0x50, 0);
    assert!(machine.run.device.is_waiting());
    machine.run.store(0x70, 0);
    assert!(!machine.run.device.is_waiting());
    machine.run.set_up(&[64]);
    machine.run.drivers[0].looks_at_all = true;
    assert_eq!(machine.read(8, BLOCK), Ok(pattern(1, BLOCK)));
    assert_eq!(machine.write(0, &pattern(50, BLOCK)), 0);
    assert_eq!(machine.read(0, BLOCK), Ok(pattern(50, BLOCK)));
}

#[test]
fn a_write_that_a_reset_interrupts_is_not_taken_for_the_next_one() {
    let mut machine = filled();
    assert!(machine.offer(&said(1, 8 * 100, &pattern(70, BLOCK)), 0));
    machine.run.store(0x50, 0);
    let _ = machine.host();
    // Answered, and not looked at.
    machine.run.store(0x70, 0);
    machine.run.set_up(&[64]);
    machine.run.drivers[0].looks_at_all = true;
    assert_eq!(machine.write(8 * 100, &pattern(71, BLOCK)), 0);
    assert_eq!(machine.read(8 * 100, BLOCK), Ok(pattern(71, BLOCK)));
}

#[test]
fn what_the_host_changes_after_it_has_answered_is_not_seen() {
    // Each byte of the shared range is read once: what was checked is what the VM gets.
    let mut machine = filled();
    assert!(machine.offer(&said(0, 0, &[]), BLOCK));
    machine.run.store(0x50, 0);
    assert!(machine.host());
    machine.run.world.log.borrow_mut().clear();
    assert_eq!(machine.rest(), (0, pattern(0, BLOCK)));
    let data = PART + 0x3000;
    let reads = machine.run.world.log.borrow();
    let reads = reads.iter().filter(|done| !done.is_write && done.is_within(data, 1 << 20));
    assert_eq!(reads.count(), 1);
}

#[test]
fn a_host_that_lends_few_pages_at_a_time_does_not_keep_a_request_from_its_end() {
    for kind in [0, 1] {
        let mut machine = filled();
        // All descriptors are read at once.
        let half = vec![7; BLOCK];
        let mut data = vec![said(kind, 0, &[])];
        let (room, accesses) = if kind == 0 {
            (vec![16 * 4096, 16 * 4096, 1], 12)
        } else {
            data.extend(vec![half; 32]);
            (vec![1], 44)
        };
        assert!(machine.run.drivers[0].offer(&machine.run.world, &data, &room));
        machine.say_again();
        let end = (0..1000).find_map(|_| {
            let Machine { run, .. } = &mut machine;
            // After so many accesses all have to be brought in again.
            run.world.fuse.set(accesses);
            let entered = if run.device.is_waiting() {
                run.device.complete(&run.world)
            } else {
                run.device.store(0x50, 4, 0, &run.world).map(|told| run.host.store(0x50, told))
            };
            run.world.fuse.set(u32::MAX);
            run.pay();
            let end = entered.ok().and_then(|()| machine.collect().pop());
            let _ = machine.host();
            end
        });
        let (_, bytes) = end.expect("the request is never done");
        assert_eq!(bytes.last(), Some(&0));
    }
}

#[test]
fn a_queue_that_is_taken_away_takes_its_request_along() {
    let mut machine = filled();
    assert!(machine.offer(&said(0, 0, &[]), BLOCK));
    machine.run.store(0x50, 0);
    assert!(machine.host());
    machine.run.store(0x30, 0);
    machine.run.store(0x44, 0);
    machine.run.world.log.borrow_mut().clear();
    assert!(!machine.run.device.is_waiting());
    assert_eq!(machine.run.device.complete(&machine.run.world), Ok(()));
    assert!(machine.run.world.log.borrow().iter().all(|done| !done.is_write));
}

#[test]
fn a_queue_that_is_made_ready_twice_goes_on() {
    let mut machine = filled();
    assert!(machine.offer(&said(0, 0, &[]), BLOCK));
    machine.run.store(0x50, 0);
    machine.run.store(0x30, 0);
    machine.run.store(0x44, 1);
    assert_eq!(machine.rest(), (0, pattern(0, BLOCK)));
}

#[test]
fn only_the_queue_that_there_is_is_notified() {
    let mut machine = filled();
    assert!(machine.offer(&said(0, 0, &[]), BLOCK));
    machine.run.store(0x50, 0);
    assert!(machine.host());
    machine.run.store(0x50, 1);
    assert_eq!(machine.rest(), (0, pattern(0, BLOCK)));
}

#[test]
fn a_disk_that_needs_more_memory_leaves_it_to_the_next() {
    let mut large = Image::new();
    let geometry = Geometry::new(wanted(1).blocks, 64, 4097).unwrap();
    let header = Header { id: super::ID, volume: [7; 32], geometry, sequence: 2 };
    for (at, salt) in [(598, [3; 32]), (599, [4; 32])] {
        header.seal(&super::KEY, &salt, &mut large.blocks[at]);
    }
    let mut machine = Machine::with(Layout::Mmio, wanted(1), large);
    assert_eq!(machine.read(0, BLOCK), Err(1));
    assert_eq!(machine.fault(), Some(Fault::Volume(Error::Memory)));
    machine.image = Image::new();
    machine.run.device.sealed().unwrap().renew(wanted(2));
    assert_eq!(machine.read(0, BLOCK), Ok(vec![0; BLOCK]));
}

#[test]
fn a_vm_cannot_keep_the_visor_at_work() {
    let mut machine = Machine::new();
    assert_eq!(machine.read(0, BLOCK), Ok(vec![0; BLOCK]));
    // None takes an answer of the host's.
    for _ in 0..12 {
        let places = [16 * 4096, 16 * 4096, 16 * 4096, 1];
        let run = &mut machine.run;
        assert!(run.drivers[0].offer(&run.world, &[said(0, 0, &[])], &places));
    }
    machine.say_again();
    machine.run.store(0x50, 0);
    let done = machine.run.world.peek16(machine.run.drivers[0].rings[2] + 2);
    // One of them was done before.
    assert!((2..13).contains(&done), "{done} at once");
    assert!(machine.run.device.is_waiting());
    // The rest is done later: the host interrupts for that.
    let done: usize = (0..10)
        .map(|_| {
            let _ = machine.host();
            machine.enter().len()
        })
        .sum();
    assert_eq!(done, 12);
    assert!(!machine.run.device.is_waiting());
}
