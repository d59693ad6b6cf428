//! The registers, one by one.

use virtio::device::{Device, SMALLEST};
use virtio::layout::Layout;
use virtio::memory::Failure;

use crate::driver::Driver;
use crate::run::{Run, Step};
use crate::world::PART;

#[test]
fn a_device_needs_its_part_of_the_shared_range() {
    let mut device = Box::new(Device::NONE);
    assert_eq!(device.assign(0, SMALLEST, Layout::Mmio), None);
    assert_eq!(device.assign(PART + 1, SMALLEST, Layout::Mmio), None);
    assert_eq!(device.assign(1 << 51, SMALLEST, Layout::Mmio), None);
    assert_eq!(device.assign(PART, SMALLEST - 1, Layout::Mmio), None);
    assert_eq!(device.assign(PART, (1 << 30) + 1, Layout::Mmio), None);
    assert_eq!(device.assign(PART, SMALLEST, Layout::Mmio), Some(()));
}

#[test]
fn a_queue_comes_up_with_rings_in_the_shared_range() {
    let mut run = Run::new(&[64, 8, 1]);
    assert_eq!(run.fail(), None);
    assert!(run.host.queues.iter().take(3).all(|queue| queue.is_ready));
    assert!(run.host.queues.iter().skip(3).all(|queue| !queue.is_ready));
}

/// The features that a VM is offered by a host that has all, of a device of this kind.
fn offered(version: u64, kind: u64) -> (u64, u64) {
    let mut run = Run::bare(Layout::Mmio);
    let _ = run.device.loaded(0x04, 4, version);
    let kind = run.device.loaded(0x08, 4, kind);
    let mut features = 0;
    for half in [2, 1, 0] {
        run.store(0x14, half);
        features = features << 32 | run.device.loaded(0x10, 4, 0xffff_ffff);
    }
    (kind, features)
}

#[test]
fn only_features_that_the_visor_knows_are_offered() {
    assert_eq!(offered(2, 1), (1, 0xeffc_0001_00bf_ffff));
    assert_eq!(offered(2, 2), (2, 0xfffc_0001_00ff_efff));
    assert_eq!(offered(2, 3), (3, 0xfffc_0001_00ff_fffd));
    for kind in [4, 8, 9, 18, 19, 26] {
        assert_eq!(offered(2, kind), (kind, 0xfffc_0001_00ff_ffff));
    }
}

#[test]
fn devices_that_reach_memory_in_other_ways_are_not_there() {
    for kind in [0, 16, 20, 22, 23, 24, 25, 27, 28, 34, 41, 1 << 31] {
        assert_eq!(offered(2, kind), (0, 0));
    }
}

#[test]
fn a_legacy_device_is_not_there() {
    for version in [0, 1, 3] {
        assert_eq!(offered(version, 1), (0, 0));
        assert_eq!(Run::bare(Layout::Mmio).device.loaded(0x04, 4, version), 0);
    }
}

#[test]
fn what_the_vm_accepts_was_offered() {
    let mut run = Run::new(&[]);
    assert_eq!(run.host.accepted, [0x00bf_ffff, 0xeffc_0001]);
    for half in [0, 1, 2] {
        run.store(0x24, half);
        run.store(0x20, 0xffff_ffff);
    }
    assert_eq!(run.host.accepted, [0x00bf_ffff, 0xeffc_0001]);
}

#[test]
fn a_queue_needs_version_1() {
    let mut run = Run::new(&[]);
    run.store(0x24, 1);
    run.store(0x20, 0);
    run.make_ready(0, 8, [0x10_0000; 3]);
    assert_eq!(run.fail(), Some(Failure::Setup));
    assert!(!run.host.queues[0].is_ready);
}

#[test]
fn a_queue_needs_a_size_that_is_a_power_of_two() {
    for size in [0, 3, 65, 128, 1 << 16, (1 << 16) + 1] {
        let mut run = Run::new(&[]);
        run.make_ready(0, size, [0x10_0000; 3]);
        assert_eq!(run.fail(), Some(Failure::Setup), "{size}");
        assert!(!run.host.queues[0].is_ready);
    }
}

#[test]
fn a_device_without_its_part_has_no_queue() {
    let mut run = Run::bare(Layout::Mmio);
    *run.device = Device::NONE;
    run.set_up(&[8]);
    assert_eq!(run.fail(), Some(Failure::Setup));
}

#[test]
fn there_are_no_queues_but_four() {
    let mut run = Run::new(&[]);
    for (queue, entries) in [(3, 64), (4, 0), (0xffff_ffff, 0)] {
        run.store(0x30, queue);
        assert_eq!(run.load(0x34), entries);
    }
    assert_eq!(run.device.loaded(0x34, 4, 16), 0);
    run.store(0x30, 0);
    assert_eq!(run.device.loaded(0x34, 4, 16), 16);
    assert_eq!(run.device.store(0x38, 4, 16, &run.world), Ok(16));
    run.store(0x30, 4);
    for offset in [0x38, 0x44, 0x80, 0x84, 0x90, 0x94, 0xa0, 0xa4] {
        assert_eq!(run.device.store(offset, 4, 16, &run.world), Ok(0));
    }
}

#[test]
fn registers_without_a_rule_are_0_for_both_sides() {
    let mut run = Run::new(&[8]);
    // Legacy: page size, alignment, page number. Then the rest.
    for offset in [0x28, 0x3c, 0x40, 0xac, 0xc0, 0x18, 0xf8] {
        assert_eq!(run.device.store(offset, 4, 0x1234, &run.world), Ok(0));
        assert_eq!(run.device.loaded(offset, 4, 0x1234), 0);
    }
    // No region of shared memory.
    for offset in [0xb0, 0xb4, 0xb8, 0xbc] {
        assert_eq!(run.device.loaded(offset, 4, 0), 0xffff_ffff);
    }
    // Other widths, and between registers.
    assert_eq!(run.device.store(0x70, 8, 15, &run.world), Ok(0));
    assert_eq!(run.device.store(0x71, 4, 15, &run.world), Ok(0));
    assert_eq!(run.device.loaded(0x70, 2, 15), 0);
}

#[test]
fn the_configuration_is_the_hosts() {
    let mut run = Run::new(&[]);
    for bytes in [1, 2, 4, 8] {
        assert_eq!(run.device.store(0x101, bytes, 0x12, &run.world), Ok(0x12));
        assert_eq!(run.device.loaded(0x1ff, bytes, 0x34), 0x34);
    }
    for offset in [0x00, 0x0c, 0x44, 0x60, 0x70, 0xfc] {
        assert_eq!(run.device.loaded(offset, 4, 0x5_0000_0001), 1);
    }
    assert_eq!(run.device.store(0x64, 4, 3, &run.world), Ok(3));
}

#[test]
fn a_device_that_broke_asks_for_a_reset_and_works_afterwards() {
    let mut run = Run::new(&[]);
    run.make_ready(0, 3, [0x10_0000; 3]);
    assert_eq!(run.load(0x70), 15 | 0x40);
    assert_eq!(run.fail(), Some(Failure::Setup));
    for size in [3, 8] {
        run.make_ready(1, size, [0x10_0000; 3]);
        assert!(!run.host.queues[1].is_ready);
        assert_eq!(run.fail(), None, "a failure is said once");
    }
    run.store(0x70, 0);
    assert_eq!(run.load(0x70), 0);
    run.set_up(&[8]);
    assert!(run.host.queues[0].is_ready);
}

#[test]
fn a_queue_that_is_ready_stays_as_it_is() {
    let mut run = Run::new(&[8]);
    run.store(0x30, 0);
    assert_eq!(run.device.store(0x38, 4, 64, &run.world), Ok(8));
    run.world.log.borrow_mut().clear();
    run.store(0x44, 1);
    assert!(run.world.log.borrow().is_empty());
}

/// Features that a device on PCI offers, all of which the VM accepts.
const ON_PCI: [u64; 2] = [0x00bf_effd, 0xeffc_0001];

#[test]
fn a_device_on_pci_has_the_same_registers_elsewhere() {
    let mut run = Run::on(Layout::Pci, &[64, 8, 1]);
    assert_eq!(run.fail(), None);
    assert!(run.host.queues.iter().take(3).all(|queue| queue.is_ready));
    assert_eq!(run.host.accepted, ON_PCI, "no kind of device gets what another must not have");
    for half in [0, 1, 2] {
        run.store(0x24, half);
        run.store(0x20, 0xffff_ffff);
    }
    assert_eq!(run.host.accepted, ON_PCI);
    // A host that has more queues.
    assert_eq!(run.device.loaded(0x12, 2, 3), 3);
    assert_eq!(run.device.loaded(0x12, 2, 1000), 4);
    for (queue, entries) in [(3, 64), (4, 0), (0xffff, 0)] {
        run.store(0x30, queue);
        assert_eq!(run.load(0x34), entries);
        let expected = if queue < 4 { queue } else { 0 };
        assert_eq!(run.device.loaded(0x1e, 2, 77), expected, "where it is notified");
    }
}

#[test]
fn what_a_device_on_pci_has_beside_rings_is_the_hosts() {
    let mut run = Run::on(Layout::Pci, &[]);
    let places = [(0x10, 2), (0x1a, 2), (0x2000, 1), (0x2001, 2), (0x2ffc, 4), (0x2000, 8)];
    for (offset, bytes) in places {
        assert_eq!(run.device.store(offset, bytes, 0x12, &run.world), Ok(0x12));
        assert_eq!(run.device.loaded(offset, bytes, 0x34), 0x34);
    }
    for (offset, bytes) in [(0x14, 1), (0x15, 1), (0x1c, 2), (0x1000, 1)] {
        assert_eq!(run.device.loaded(offset, bytes, 0x5_0000_0001), 1);
    }
    assert_eq!(run.device.loaded(0x14, 1, 0x1ff), 0xff, "no more than a byte comes");
}

#[test]
fn registers_on_pci_without_a_rule_are_0_for_both_sides() {
    let mut run = Run::on(Layout::Pci, &[8]);
    // Data for notifications, reset of a queue, beyond; ISR status but the first byte; reads to notify.
    let mut places: Vec<(u64, u8)> = [0x38, 0x3a, 0x3c, 0x44, 0x70, 0xfff, 0x1001, 0x1fff, 0x4000]
        .into_iter()
        .flat_map(|offset| [1, 2, 4, 8].map(|bytes| (offset, bytes)))
        .collect();
    // Other widths, and between registers.
    places.extend([(0x14, 2), (0x14, 4), (0x16, 1), (0x18, 4), (0x1c, 1), (0x1c, 4), (0x20, 8)]);
    places.extend([(0x15, 2), (0x1d, 2), (0x22, 4), (0x3000, 1), (0x3000, 4), (0x3000, 8)]);
    for (offset, bytes) in places {
        assert_eq!(run.device.store(offset, bytes, 1, &run.world), Ok(0), "{offset:#x} {bytes}");
        assert_eq!(run.device.loaded(offset, bytes, 1), 0, "{offset:#x} {bytes}");
    }
    assert!(run.host.queues[0].is_ready);
    // Read or written only.
    for (offset, bytes) in [(0x04, 4), (0x12, 2), (0x15, 1), (0x1e, 2), (0x1000, 1)] {
        assert_eq!(run.device.store(offset, bytes, 1, &run.world), Ok(0), "{offset:#x}");
    }
    for (offset, bytes) in [(0x00, 4), (0x08, 4), (0x0c, 4), (0x16, 2), (0x20, 4), (0x34, 4)] {
        assert_eq!(run.device.loaded(offset, bytes, 1), 0, "{offset:#x}");
    }
}

#[test]
fn addresses_of_rings_have_both_halves() {
    for layout in [Layout::Mmio, Layout::Pci] {
        for ring in 0..3 {
            let mut run = Run::on(layout, &[]);
            let driver = Driver::new(&run.world, 0, 8);
            let mut rings = driver.rings;
            run.drivers.push(driver);
            rings[ring] |= 1 << 32;
            run.make_ready(0, 8, rings);
            run.step(&Step::Offer(0, vec![16], vec![16]));
            run.step(&Step::Notify(0));
            run.step(&Step::Answer(0, 0, 255));
            run.complete();
            let failure = run.fail();
            let is_high = |address| address >= 1 << 32;
            assert!(matches!(failure, Some(Failure::Nowhere(at)) if is_high(at)), "{failure:?}");
        }
    }
}

#[test]
fn a_queue_needs_all_its_addresses_since_it_was_stopped() {
    const HALVES: [u64; 6] = [0x80, 0x84, 0x90, 0x94, 0xa0, 0xa4];
    for layout in [Layout::Mmio, Layout::Pci] {
        for left_out in HALVES {
            let mut run = Run::on(layout, &[8]);
            run.store(0x70, 0);
            run.set_up(&[]);
            run.store(0x30, 0);
            run.store(0x38, 8);
            let others = HALVES.into_iter().filter(|half| *half != left_out);
            others.for_each(|half| run.store(half, 0));
            run.store(0x44, 1);
            assert_eq!(run.fail(), Some(Failure::Setup), "{left_out:#x}");
            assert!(!run.host.queues[0].is_ready);
        }
    }
}

#[test]
fn a_device_on_pci_that_broke_asks_for_a_reset_and_works_afterwards() {
    let mut run = Run::on(Layout::Pci, &[]);
    run.make_ready(0, 3, [0x10_0000; 3]);
    assert_eq!(run.load(0x70), 15 | 0x40);
    assert_eq!(run.fail(), Some(Failure::Setup));
    run.store(0x70, 0);
    run.set_up(&[8]);
    assert!(run.host.queues[0].is_ready);
}

#[test]
fn every_failure_is_one_line() {
    let all = [
        Failure::Setup,
        Failure::AvailableIndex(1),
        Failure::AvailableHead(1),
        Failure::Chain(1),
        Failure::TooLong(1),
        Failure::Nowhere(1),
        Failure::UsedIndex(1),
        Failure::UsedHead(1),
        Failure::UsedLength(1),
    ];
    for failure in all {
        let line = failure.to_string();
        assert!(!line.contains('\n') && (10..80).contains(&line.len()), "{line}");
    }
}
