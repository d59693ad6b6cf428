//! What works when nobody is hostile, and what it costs.

use disk::create;
use disk::geometry::Geometry;
use disk::storage::{Error, Storage};
use disk::volume::Volume;

use crate::host::{Dice, Event, Host};
use crate::world::{Room, content, done, filled, header, new_disk, opening};

#[test]
fn a_new_disk_is_zeros_and_keeps_what_is_written() {
    let header = header(300, 64, 64);
    let mut host = new_disk(&header);
    let mut room = Room::new(&header, 8);
    let mut volume = Volume::new(&header, room.memory(), opening(1)).unwrap();
    assert_eq!(content(&mut volume, &mut host), Ok(vec![0; 300]));
    volume.write(&mut host, 100, &[filled(1), filled(2), filled(3)]).unwrap();
    volume.write(&mut host, 101, &[filled(4)]).unwrap();
    let mut expected = vec![0; 300];
    expected[100..103].copy_from_slice(&[1, 4, 3]);
    assert_eq!(content(&mut volume, &mut host), Ok(expected.clone()));
    volume.checkpoint(&mut host).unwrap();
    assert_eq!(content(&mut volume, &mut host), Ok(expected.clone()));
    volume.forget(&mut host, 102, 1).unwrap();
    volume.flush(&mut host).unwrap();
    expected[102] = 0;
    let moment = volume.moment();
    let mut room = Room::new(&header, 1);
    let mut volume = Volume::new(&header, room.memory(), opening(2)).unwrap();
    assert_eq!(content(&mut volume, &mut host), Ok(expected));
    assert_eq!(volume.moment(), moment);
}

#[test]
fn tools_make_disks_of_every_size() {
    assert_eq!(create::sizes(69), None);
    for total in (70..9_000).chain([1 << 18, (1 << 18) + 1, 1 << 28, 4_328_554_564 + 32_768]) {
        let sizes = create::sizes(total).unwrap();
        assert_eq!(sizes.total(), total);
        let log = u64::from(sizes.log());
        let least = (total / 512).clamp(64, 32_768);
        assert!((least..least + 5).contains(&log), "{total}: {log}");
        if total > 1 << 20 {
            let overhead = total - sizes.capacity();
            assert!(overhead * 100 <= total, "{total}: {overhead} blocks of overhead");
        }
    }
}

#[test]
fn what_cannot_be_is_an_error_and_does_no_harm() {
    let header = header(300, 64, 64);
    let mut host = new_disk(&header);
    let mut room = Room::new(&header, 8);
    let mut less = room.memory();
    less.nodes = &mut [];
    assert_eq!(Volume::new(&header, less, opening(1)).err(), Some(Error::Memory));
    let mut less = room.memory();
    less.entries = &mut less.entries[1..];
    assert_eq!(Volume::new(&header, less, opening(1)).err(), Some(Error::Memory));
    let mut volume = Volume::new(&header, room.memory(), opening(1)).unwrap();
    let mut blocks = [filled(1), filled(2)];
    for first in [299, 300, u64::MAX] {
        assert_eq!(volume.write(&mut host, first, &blocks), Err(Error::Range));
        assert_eq!(volume.read(&mut host, first, &mut blocks), Err(Error::Range));
        assert_eq!(volume.forget(&mut host, first, 2), Err(Error::Range));
    }
    volume.write(&mut host, 298, &blocks).unwrap();
    volume.read(&mut host, 298, &mut blocks).unwrap();
    assert!(blocks == [filled(1), filled(2)]);
}

/// Storage that fails, if told so.
struct Failing(Host, bool);

impl Storage for Failing {
    fn read(
        &mut self,
        at: u64,
        into: &mut [disk::storage::Block],
    ) -> Result<(), disk::storage::Stop> {
        self.0.read(at, into)
    }
    fn write(&mut self, at: u64, from: &[disk::storage::Block]) -> Result<(), disk::storage::Stop> {
        if self.1 { Err(disk::storage::Stop::Failed) } else { self.0.write(at, from) }
    }
    fn flush(&mut self) -> Result<(), disk::storage::Stop> {
        if self.1 { Err(disk::storage::Stop::Failed) } else { self.0.flush() }
    }
}

#[test]
fn after_a_failed_write_or_flush_nothing_is_written() {
    let header = header(300, 64, 64);
    for fails_to_flush in [false, true] {
        let mut host = Failing(new_disk(&header), false);
        let mut room = Room::new(&header, 8);
        let mut volume = Volume::new(&header, room.memory(), opening(1)).unwrap();
        volume.write(&mut host, 7, &[filled(1)]).unwrap();
        host.1 = true;
        let failed = if fails_to_flush {
            volume.flush(&mut host)
        } else {
            volume.write(&mut host, 8, &[filled(2)])
        };
        assert_eq!(failed, Err(Error::Failed));
        host.1 = false;
        assert_eq!(volume.write(&mut host, 9, &[filled(3)]), Err(Error::Broken));
        assert_eq!(volume.flush(&mut host), Err(Error::Broken));
        let mut block = [[1; 4096]];
        volume.read(&mut host, 7, &mut block).unwrap();
        assert!(block[0] == filled(1));
    }
}

/// Requests for data and for all else, flushes too.
fn requests(host: &Host, sizes: Geometry) -> (usize, usize) {
    let is_data = |event: &&Event| matches!(event, Event::Read(at, _) | Event::Write(at, _) if *at < sizes.capacity());
    let data = host.events.iter().filter(is_data).count();
    (data, host.events.len() - data)
}

#[test]
fn metadata_costs_few_requests() {
    let mut header = header(1, 64, 1);
    header.geometry = create::sizes(1 << 18).unwrap();
    let sizes = header.geometry;
    let mut host = new_disk(&header);
    let mut room = Room::new(&header, 256);
    let mut volume = Volume::new(&header, room.memory(), opening(1)).unwrap();
    volume.open(&mut host).unwrap();
    host.events.clear();
    let blocks = vec![filled(1); 32];
    for request in 0..1024 {
        volume.write(&mut host, 32 * request, &blocks).unwrap();
    }
    volume.checkpoint(&mut host).unwrap();
    let (data, rest) = requests(&host, sizes);
    assert_eq!(data, 1024);
    assert!(10 * rest <= data, "sequential writes: {rest} for {data}");

    // One leaf is read for each 512 KiB.
    let mut room = Room::new(&header, 256);
    let mut volume = Volume::new(&header, room.memory(), opening(2)).unwrap();
    volume.open(&mut host).unwrap();
    host.events.clear();
    let mut into = vec![[0; 4096]; 32];
    for request in 0..1024 {
        volume.read(&mut host, 32 * request, &mut into).unwrap();
    }
    let (data, rest) = requests(&host, sizes);
    assert_eq!(data, 1024);
    assert!(100 * rest <= 26 * data, "sequential reads: {rest} for {data}");

    // Far more leaves than there is room for.
    for leaf in 256..2000 {
        volume.write(&mut host, 128 * leaf, &blocks[..1]).unwrap();
    }
    volume.checkpoint(&mut host).unwrap();
    host.events.clear();
    let mut dice = Dice(3);
    for _ in 0..1000 {
        volume.read(&mut host, 128 * dice.below(2000), &mut into[..1]).unwrap();
    }
    let (data, rest) = requests(&host, sizes);
    assert_eq!(data, 1000);
    assert!(5 * rest <= 6 * data, "random reads: {rest} for {data}");
}

#[test]
fn an_operation_that_was_given_up_is_not_taken_for_the_next() {
    let header = header(300, 64, 64);
    let mut abandoned = 0;
    for seed in 0..20 {
        let mut host = new_disk(&header);
        let mut room = Room::new(&header, 8);
        let mut volume = Volume::new(&header, room.memory(), opening(1)).unwrap();
        volume.write(&mut host, 8, &[filled(1), filled(2)]).unwrap();
        host.slow = Some(Dice(seed));
        for number in 3..30 {
            if volume.write(&mut host, 7, &[filled(100), filled(101)]) == Err(Error::Wait) {
                volume.abandon();
                host.pending = None;
                abandoned += 1;
            }
            let blocks = [filled(number), filled(number + 1)];
            done(|| volume.write(&mut host, 7, &blocks)).unwrap();
            let mut into = [[0; 4096]; 2];
            done(|| volume.read(&mut host, 7, &mut into)).unwrap();
            assert!(into == blocks);
        }
        let memory = volume.into_memory();
        let mut volume = Volume::new(&header, memory, opening(2)).unwrap();
        assert!(content(&mut volume, &mut host).unwrap()[10..] == [0; 290]);
    }
    assert!(abandoned > 20, "only {abandoned} were given up");
}

#[test]
fn what_was_replaced_in_the_log_is_not_copied() {
    let header = header(300, 64, 64);
    let mut host = new_disk(&header);
    let mut room = Room::new(&header, 8);
    let mut volume = Volume::new(&header, room.memory(), opening(1)).unwrap();
    volume.write(&mut host, 7, &[filled(1)]).unwrap();
    volume.checkpoint(&mut host).unwrap();
    host.events.clear();
    for number in 2..12 {
        volume.write(&mut host, 7, &[filled(number)]).unwrap();
    }
    volume.checkpoint(&mut host).unwrap();
    let to_place = host.events.iter().filter(|event| matches!(event, Event::Write(7, _)));
    assert_eq!(to_place.count(), 1);
}
