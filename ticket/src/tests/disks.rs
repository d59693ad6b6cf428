//! Sealed disks in tickets.

use std::vec::Vec;

use proptest::prelude::*;

use super::{EMPTY, changed_in, read};
use crate::build::{Ticket, measurement};
use crate::error::Error;
use crate::{Class, DISK_BYTES, Disk, HEADER_BYTES, PAGE, RANGE_BYTES, Secret};

fn disk(transport: u32) -> Disk {
    let key = Secret::new([0x55; 32]);
    Disk { transport, blocks: 0x0102_0304, total: 0x0202_0304, id: [0x44; 16], key, moment: 9 }
}

/// A VM with so many virtio devices.
fn with_devices(count: u64) -> Ticket {
    let add = |ticket: Ticket, at| ticket.range((at + 1) << 20, 66 * PAGE, Class::Shared);
    let shared = (0..count).fold(EMPTY.range(0, PAGE, Class::Private), add);
    shared.range(32 << 20, PAGE, Class::Virtio)
}

/// The second and the third of its three devices are sealed disks.
fn small() -> Ticket {
    Ticket { disks: Vec::from([disk(1), disk(2)]), ..with_devices(3) }
}

const FIRST: usize = HEADER_BYTES + 5 * RANGE_BYTES;
const SECOND: usize = FIRST + DISK_BYTES;

/// The small ticket with `new` at `offset` and the right checksum.
fn changed(offset: usize, new: &[u8]) -> Result<Ticket, Error> {
    changed_in(&small(), offset, new)
}

proptest! {
    #[test]
    fn tickets_with_disks_read_back(
        devices in 1..=8_u64, which: u8, id: [u8; 16], key: [u8; 32], blocks in 1..=1_u64 << 32,
        more in 1..=1_u64 << 32, moment: u64, pages in 0..2_u64,
    ) {
        let mut ticket = with_devices(devices);
        let chosen = (0..8).filter(|at| u64::from(*at) < devices && which & 1 << at != 0);
        ticket.disks.extend(chosen.map(|transport| {
            Disk { transport, blocks, total: blocks + more, id, key: Secret::new(key), moment }
        }));
        for _ in 0..pages {
            ticket.image(0, &[1]).unwrap();
        }
        let bytes = ticket.bytes().unwrap();
        prop_assert_eq!(read(&bytes).unwrap(), ticket);
        for cut in [bytes.len() - 4, bytes.len() - 36] {
            prop_assert!(read(&bytes[..cut]).is_err());
        }
    }
}

#[test]
fn the_layout_is_as_documented() {
    let bytes = small().bytes().unwrap();
    assert_eq!(bytes[120..128], [2, 0, 0, 0, 0, 0, 0, 0]);
    let parts: [&[u8]; 7] = [
        &[1, 0, 0, 0, 0, 0, 0, 0],
        &[4, 3, 2, 1, 0, 0, 0, 0],
        &[0x44; 16],
        &[0x55; 32],
        &[9, 0, 0, 0, 0, 0, 0, 0],
        &[4, 3, 2, 2, 0, 0, 0, 0],
        &[0; 16],
    ];
    assert_eq!(bytes[FIRST..SECOND], parts.concat());
}

#[test]
fn every_fault_of_a_disk_has_its_error() {
    let cases: &[(usize, &[u8], Error)] = &[
        (120, &[1], Error::Counts),
        (FIRST, &[2], Error::DiskTransport),
        (SECOND, &[1], Error::DiskTransport),
        (SECOND, &[0], Error::DiskTransport),
        (SECOND, &[3], Error::DiskTransport),
        (SECOND, &[0xff; 4], Error::DiskTransport),
        (FIRST + 4, &[1], Error::Flags),
        (FIRST + 7, &[1], Error::Flags),
        (FIRST + 8, &[0; 8], Error::DiskSize),
        (FIRST + 8, &[1, 0, 0, 0, 1], Error::DiskSize),
        (FIRST + 8, &[4, 3, 2, 2], Error::DiskSize),
        (FIRST + 72, &[4, 3, 2, 1], Error::DiskSize),
        (FIRST + 72, &[1, 0, 0, 0, 2], Error::DiskSize),
        (FIRST + 79, &[0x40], Error::DiskSize),
        (FIRST + 80, &[1], Error::Reserved),
        (FIRST + 95, &[1], Error::Reserved),
    ];
    for (offset, new, error) in cases {
        assert_eq!(changed(*offset, new), Err(*error), "{offset}: {new:x?}");
    }
    let mut most = small();
    most.disks.iter_mut().for_each(|disk| (disk.blocks, disk.total) = (1 << 32, (1 << 32) + 1));
    assert!(most.bytes().is_ok(), "16 TiB");
}

#[test]
fn a_vm_without_devices_has_no_disks() {
    let ticket = EMPTY.range(0, PAGE, Class::Private).range(1 << 20, 66 * PAGE, Class::Shared);
    let ticket = Ticket { disks: Vec::from([disk(0)]), ..ticket };
    assert_eq!(ticket.bytes(), Err(Error::DiskTransport));
}

#[test]
fn the_key_is_not_measured_but_all_else_of_a_disk_is() {
    let measured = |change: fn(&mut Disk)| {
        let mut ticket = small();
        ticket.disks.iter_mut().for_each(change);
        measurement(&ticket.bytes().unwrap()).unwrap()
    };
    let before = measured(|_| {});
    assert_eq!(measured(|disk| disk.key = Secret::new([0x66; 32])), before);
    let others: [fn(&mut Disk); 4] = [
        |disk| disk.blocks += 1,
        |disk| disk.total += 1,
        |disk| disk.id[0] ^= 1,
        |disk| disk.moment += 1,
    ];
    for other in others {
        assert_ne!(measured(other), before);
    }
}
