//! Whatever is asked in whatever order, and whatever is missing meanwhile: the VM has the disk that it would have
//! without the visor.

use proptest::collection::vec;
use proptest::prelude::*;
use virtio::layout::Layout;

use super::{Image, Machine, SECTOR, forget, said, wanted};
use crate::driver::pattern;

/// Something that happens.
#[derive(Clone, Debug)]
enum Step {
    Read(u64, usize),
    Write(u64, usize),
    Forget(u64, u32),
    Flush,
    Notify,
    Host,
    Enter,
    /// After so many accesses a page is missing.
    Miss(u32),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let sectors = || prop_oneof![0..64_u64, 900..1100_u64, 3000..3100_u64];
    let count = || prop_oneof![Just(1_usize), Just(8), 1..40_usize, Just(256)];
    let step = prop_oneof![
        4 => (sectors(), count()).prop_map(|(at, count)| Step::Read(at, count)),
        5 => (sectors(), count()).prop_map(|(at, count)| Step::Write(at, count)),
        1 => (sectors(), 1..400_u32).prop_map(|(at, count)| Step::Forget(at, count)),
        1 => Just(Step::Flush),
        5 => Just(Step::Notify),
        20 => Just(Step::Host),
        20 => Just(Step::Enter),
        3 => (0..80_u32).prop_map(Step::Miss),
    ];
    vec(step, 1..300)
}

/// The machine, and the disk that the VM believes to have.
struct World {
    machine: Machine,
    plain: Vec<u8>,
    serial: u8,
    /// What requests at the device have to give: one begins by this.
    due: Vec<Due>,
}

enum Due {
    Read(u64, usize),
    Write(u64, Vec<u8>),
    Flush,
}

impl World {
    fn offer(&mut self, said: &[u8], room: usize, due: Due) {
        if self.machine.offer(said, room) {
            self.due.push(due);
        }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Read(at, count) => {
                self.offer(&said(0, at, &[]), count * SECTOR, Due::Read(at, count * SECTOR));
            }
            Step::Write(at, count) => {
                self.serial = self.serial.wrapping_add(1);
                let data = pattern(self.serial, count * SECTOR);
                self.offer(&said(1, at, &data), 0, Due::Write(at, data));
            }
            Step::Forget(at, count) => {
                let zeros = vec![0; usize::try_from(count).unwrap() * SECTOR];
                self.offer(&forget(13, at, count, 0), 0, Due::Write(at, zeros));
            }
            Step::Flush => self.offer(&said(4, 0, &[]), 0, Due::Flush),
            Step::Notify => self.machine.run.store(0x50, 0),
            Step::Host => drop(self.machine.host()),
            Step::Enter => self.enter(),
            Step::Miss(after) => self.machine.run.world.fuse.set(after),
        }
    }

    /// Requests come back in their order, each with what it is due.
    fn enter(&mut self) {
        for (_, bytes) in self.machine.enter() {
            let place = |at: u64| usize::try_from(at).unwrap() * SECTOR;
            match self.due.remove(0) {
                Due::Read(at, count) => {
                    assert_eq!(bytes.split_last(), Some((&0, &self.plain[place(at)..][..count])));
                }
                Due::Write(at, data) => {
                    assert_eq!(bytes, [0]);
                    self.plain[place(at)..][..data.len()].copy_from_slice(&data);
                }
                Due::Flush => assert_eq!(bytes, [0]),
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_sealed_disk_is_a_disk(
        layout in prop_oneof![Just(Layout::Mmio), Just(Layout::Pci)], steps in steps(),
    ) {
        let machine = Machine::with(layout, wanted(1), Image::new());
        let plain = vec![0; usize::try_from(wanted(1).blocks).unwrap() * 4096];
        let mut world = World { machine, plain, serial: 0, due: Vec::new() };
        for step in &steps {
            world.step(step);
        }
        world.machine.run.world.fuse.set(u32::MAX);
        world.step(&Step::Notify);
        for _ in 0..100_000 {
            if world.due.is_empty() {
                break;
            }
            world.step(&Step::Host);
            world.step(&Step::Enter);
        }
        prop_assert!(world.due.is_empty(), "a request is never answered");
        prop_assert_eq!(world.machine.run.fail(), None);
        prop_assert_eq!(world.machine.fault(), None);
        prop_assert_eq!(world.machine.flush(), 0);
        // After a power cut.
        let image = Image { blocks: world.machine.image.durable.clone(), ..world.machine.image };
        let mut machine = Machine::with(layout, wanted(2), image);
        for at in [0, 900, 3000] {
            let there = machine.read(at, 300 * SECTOR).unwrap();
            prop_assert!(there == world.plain[usize::try_from(at).unwrap() * SECTOR..][..300 * SECTOR]);
        }
    }
}
