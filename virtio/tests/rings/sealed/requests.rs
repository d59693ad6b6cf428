//! Requests, one by one.

use virtio::layout::Layout;
use virtio::memory::Failure;

use super::{BLOCK, DISK, FLUSH, Image, Machine, SECTOR, forget, said, wanted};
use crate::driver::{Driver, pattern};

/// No part of `plain` of some length is anywhere in the image.
fn assert_sealed(image: &Image, plain: &[u8]) {
    let bytes = image.blocks.as_flattened();
    for part in plain.chunks_exact(32) {
        assert!(!bytes.windows(32).any(|window| window == part), "the host has what the VM wrote");
    }
}

#[test]
fn what_is_written_is_read_back_and_the_host_has_none_of_it() {
    for layout in [Layout::Mmio, Layout::Pci] {
        let mut machine = Machine::with(layout, wanted(1), Image::new());
        let plain = pattern(3, 2 * BLOCK);
        assert_eq!(machine.write(80, &plain), 0);
        assert_eq!(machine.flush(), 0);
        assert_eq!(machine.read(80, 2 * BLOCK), Ok(plain.clone()));
        assert_sealed(&machine.image, &plain);
        // Another opening, after a power cut.
        let image = Image { blocks: machine.image.durable.clone(), ..machine.image };
        let mut machine = Machine::with(layout, wanted(2), image);
        assert_eq!(machine.read(80, 2 * BLOCK), Ok(plain));
    }
}

#[test]
fn what_was_never_written_is_zeros_and_the_vm_is_told_by_an_interrupt_all_the_same() {
    let mut machine = Machine::new();
    assert_eq!(machine.read(0, BLOCK), Ok(vec![0; BLOCK]));
    // All that is needed is known by now.
    for sector in [8, 16, 24] {
        assert_eq!(machine.read(sector, BLOCK), Ok(vec![0; BLOCK]));
    }
}

#[test]
fn sectors_can_begin_and_end_within_blocks() {
    for (sector, sectors) in [(0, 1), (7, 1), (7, 2), (3, 20), (8, 3), (1, 7), (5, 300)] {
        let mut machine = Machine::new();
        let before = pattern(9, 320 * SECTOR);
        let (head, tail) = before.split_at(128 * SECTOR);
        assert_eq!((machine.write(0, head), machine.write(128, &tail[..128 * SECTOR])), (0, 0));
        assert_eq!(machine.write(256, &tail[128 * SECTOR..]), 0);
        let mut expected = before;
        let plain = pattern(101, 200.min(sectors) * SECTOR);
        assert_eq!(machine.write(sector, &plain), 0);
        let at = usize::try_from(sector).unwrap() * SECTOR;
        expected[at..at + plain.len()].copy_from_slice(&plain);
        for at in [0, 100, 200] {
            let there = machine.read(u64::try_from(at).unwrap(), 110 * SECTOR).unwrap();
            assert_eq!(there, expected[at * SECTOR..][..110 * SECTOR]);
        }
    }
}

#[test]
fn what_is_forgotten_is_zeros_to_the_sector() {
    for kind in [11, 13] {
        let mut machine = Machine::new();
        assert_eq!(machine.write(0, &pattern(1, 40 * SECTOR)), 0);
        assert_eq!(machine.ask(&forget(kind, 3, 30, 0), 0).0, 0);
        let mut expected = pattern(1, 40 * SECTOR);
        expected[3 * SECTOR..33 * SECTOR].fill(0);
        assert_eq!(machine.read(0, 40 * SECTOR), Ok(expected));
    }
}

#[test]
fn the_vm_sees_the_tenants_disk_whatever_the_hosts_is() {
    for layout in [Layout::Mmio, Layout::Pci] {
        let mut machine = Machine::bare(layout, wanted(1), Image::new());
        let sectors = wanted(1).blocks * 8;
        let base = if layout == Layout::Mmio { 0x100 } else { 0x2000 };
        let load = |machine: &mut Machine, at: u64, bytes| {
            machine.run.device.loaded(base + at, bytes, 0xbad)
        };
        assert_eq!(load(&mut machine, 0, 8), sectors);
        assert_eq!(load(&mut machine, 0, 4) | load(&mut machine, 4, 4) << 32, sectors);
        for (at, bytes, value) in [
            (8, 4, 0),
            (12, 4, 62),
            (20, 4, 512),
            (24, 1, 3),
            (25, 1, 0),
            (26, 2, 8),
            (28, 4, 0),
            (36, 4, 1 << 22),
            (40, 4, 1),
            (44, 4, 8),
            (48, 4, 1 << 22),
            (52, 4, 1),
            (56, 1, 0),
            (200, 4, 0),
        ] {
            assert_eq!(load(&mut machine, at, bytes), value, "at {at}");
        }
    }
}

#[test]
fn the_vm_is_offered_what_the_visor_can_and_the_host_what_it_has_of_flush() {
    for (host, told) in [(u64::MAX, FLUSH), (!FLUSH, 0)] {
        let mut machine = Machine::bare(Layout::Pci, wanted(1), Image::new());
        let device = &mut machine.run.device;
        let mut offered = [0, 0];
        for half in [0, 1] {
            let _ = device.store(0x00, 4, half, &machine.run.world);
            offered[usize::try_from(half).unwrap()] = device.loaded(0x04, 4, host);
            let _ = device.store(0x08, 4, half, &machine.run.world);
            let shown = device.store(0x0c, 4, u64::MAX, &machine.run.world);
            assert_eq!(shown, Ok([told, 1][usize::try_from(half).unwrap()]));
        }
        assert_eq!(offered, [1 << 2 | 1 << 6 | 1 << 9 | 1 << 10 | 1 << 13 | 1 << 14, 1]);
    }
}

#[test]
fn what_is_no_disk_is_no_device() {
    let mut machine = Machine::bare(Layout::Mmio, wanted(1), Image::new());
    assert_eq!(machine.run.load(0x04), 2);
    assert_eq!(machine.run.load(0x08), DISK);
    machine.run.kind = 1;
    assert_eq!(machine.run.load(0x08), 0);
}

#[test]
fn it_has_one_queue() {
    let mut machine = Machine::new();
    machine.run.store(0x30, 1);
    machine.run.store(0x38, 8);
    for register in [0x80, 0x84, 0x90, 0x94, 0xa0, 0xa4] {
        machine.run.store(register, 0);
    }
    machine.run.store(0x44, 1);
    assert_eq!(machine.run.fail(), Some(Failure::Setup));
}

#[test]
fn a_vm_that_does_not_know_of_flush_has_durable_what_is_done() {
    for knows in [false, true] {
        let mut machine = Machine::bare(Layout::Mmio, wanted(1), Image::new());
        machine.run.set_up(&[]);
        if !knows {
            machine.run.store(0x24, 0);
            machine.run.store(0x20, 0);
        }
        let mut driver = Driver::new(&machine.run.world, 0, 64);
        driver.looks_at_all = true;
        let rings = driver.rings;
        machine.run.drivers.push(driver);
        machine.run.make_ready(0, 64, rings);
        let plain = pattern(8, BLOCK);
        assert_eq!(machine.write(0, &plain), 0);
        let image = Image { blocks: machine.image.durable.clone(), ..machine.image };
        let mut machine = Machine::with(Layout::Mmio, wanted(2), image);
        let expected = if knows { vec![0; BLOCK] } else { plain };
        assert_eq!(machine.read(0, BLOCK), Ok(expected), "{knows}");
    }
}

#[test]
fn requests_that_make_no_sense_are_refused() {
    let end = wanted(1).blocks * 8;
    for (request, room, status) in [
        (said(0, end, &[]), SECTOR, 1),
        (said(0, end - 1, &[]), 2 * SECTOR, 1),
        (said(0, u64::MAX, &[]), SECTOR, 1),
        (said(0, 0, &[]), SECTOR + 1, 1),
        (said(1, end, &[1; SECTOR]), 0, 1),
        (said(1, 0, &[1; 100]), 0, 1),
        (said(2, 0, &[]), 0, 2),
        (said(0x1000_0000, 0, &[]), 0, 2),
        (forget(11, end - 1, 2, 0), 0, 1),
        (forget(13, u64::MAX, 1, 0), 0, 1),
        (forget(11, 0, u32::MAX, 0), 0, 1),
        (forget(11, 0, 1, 1), 0, 2),
        (forget(13, 0, 1, 2), 0, 2),
        ([forget(13, 0, 1, 0), vec![0; 16]].concat(), 0, 2),
        (said(11, 0, &[]), 0, 2),
        // The last sector, nothing, and permission to unmap.
        (said(0, end - 1, &[]), SECTOR, 0),
        (said(0, end, &[]), 0, 0),
        (forget(13, end - 1, 1, 1), 0, 0),
    ] {
        let mut machine = Machine::new();
        let (answer, bytes) = machine.ask(&request, room);
        assert_eq!(answer, status, "{:x?}", &request[..16]);
        assert_eq!(bytes, vec![if status == 0 { 0 } else { 0xee }; room]);
    }
}

#[test]
fn a_request_without_header_or_status_breaks_the_device() {
    for (said, places) in [(vec![0; 15], vec![1]), (vec![0; 16], vec![])] {
        let mut machine = Machine::new();
        assert!(machine.run.drivers[0].offer(&machine.run.world, &[said], &places));
        machine.run.store(0x50, 0);
        for _ in 0..10 {
            let _ = machine.host();
            let _ = machine.enter();
        }
        assert!(matches!(machine.run.fail(), Some(Failure::Chain(_))));
    }
}

#[test]
fn the_disk_has_no_name_of_the_hosts() {
    assert_eq!(Machine::new().ask(&said(8, 0, &[]), 20), (0, vec![0; 20]));
    assert_eq!(Machine::new().ask(&said(8, 0, &[]), 21).0, 1);
}
