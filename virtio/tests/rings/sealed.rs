//! Sealed disks: a VM, a host with an image, and the visor in between.

mod faults;
mod laws;
mod requests;

use disk::create::{Seeds, create, sizes};
use disk::header::Header;
use disk::storage::{Block, Stop, Storage};
use disk::volume::{LEVELS, LONGEST, Memory, Pending, RANGES, Range, Slot, Step};
use virtio::device::Device;
use virtio::layout::Layout;
use virtio::sealed::{Room, Sealed, Wanted};

use crate::run::Run;
use crate::world::{PART, PART_BYTES};

pub(crate) const KEY: [u8; 32] = [0x5a; 32];
pub(crate) const ID: [u8; 16] = [0xd1; 16];
const TOTAL: u64 = 600;
const SECTOR: usize = 512;
const BLOCK: usize = 4096;

/// What the host stores: as it reads it, and what is left of that after a power cut.
#[derive(Clone)]
pub(crate) struct Image {
    pub(crate) blocks: Vec<Block>,
    pub(crate) durable: Vec<Block>,
    /// Requests of the visor's.
    pub(crate) asked: u32,
}

impl Storage for Image {
    fn read(&mut self, at: u64, into: &mut [Block]) -> Result<(), Stop> {
        let at = usize::try_from(at).unwrap();
        into.copy_from_slice(&self.blocks[at..at + into.len()]);
        Ok(())
    }

    fn write(&mut self, at: u64, from: &[Block]) -> Result<(), Stop> {
        let at = usize::try_from(at).unwrap();
        self.blocks[at..at + from.len()].copy_from_slice(from);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Stop> {
        self.durable.clone_from(&self.blocks);
        Ok(())
    }
}

impl Image {
    /// An empty disk.
    pub(crate) fn new() -> Self {
        let blocks = vec![[0xee; BLOCK]; usize::try_from(TOTAL).unwrap()];
        let mut image = Self { durable: blocks.clone(), blocks, asked: 0 };
        let geometry = sizes(TOTAL).unwrap();
        let header = Header { id: ID, volume: [7; 32], geometry, sequence: 1 };
        let seeds = Seeds { salts: [[1; 32], [2; 32]], opening: [0; 10] };
        create(&mut image, &header, &KEY, &seeds, &mut [0; BLOCK]).unwrap();
        image
    }

    /// Answers a request (virtio 1.2, 5.2.6).
    pub(crate) fn answer(&mut self, said: &[u8], room: usize) -> Vec<u8> {
        self.asked += 1;
        let (header, data) = said.split_at(16);
        let word = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().unwrap());
        let sector = usize::try_from(word(8)).unwrap();
        assert!(sector.is_multiple_of(8) && data.len().is_multiple_of(BLOCK));
        let at = sector / 8;
        match word(0) {
            0 => {
                let blocks = (room - 1) / BLOCK;
                [self.blocks[at..at + blocks].as_flattened(), &[0]].concat()
            }
            1 => {
                let blocks = data.as_chunks().0;
                self.blocks[at..at + blocks.len()].copy_from_slice(blocks);
                vec![0]
            }
            4 => {
                self.durable.clone_from(&self.blocks);
                vec![0]
            }
            other => panic!("a request of type {other}"),
        }
    }
}

fn leak<T>(count: usize, mut empty: impl FnMut() -> T) -> &'static mut [T] {
    (0..count).map(|_| empty()).collect::<Vec<_>>().leak()
}

fn room() -> Room {
    let blocks = || leak(LONGEST, || [0xcc; BLOCK]).try_into().unwrap();
    let volume = Memory {
        entries: leak(4096, || Pending::EMPTY),
        ranges: leak(RANGES, || Range::EMPTY).try_into().unwrap(),
        nodes: leak(8, || Slot::EMPTY),
        path: leak(LEVELS, || Step::EMPTY).try_into().unwrap(),
        frames: blocks(),
        run: blocks(),
        notes: leak(LONGEST, || Pending::EMPTY).try_into().unwrap(),
    };
    Room { volume, buffer: leak(32, || [0xcc; BLOCK]).try_into().unwrap() }
}

/// What the tenant says of the disk of [`Image::new`].
pub(crate) fn wanted(opening: u8) -> Wanted {
    let blocks = sizes(TOTAL).unwrap().capacity();
    let opening = Some([opening; 10]);
    Wanted { id: ID, key: KEY, blocks, total: TOTAL, moment: 0, opening }
}

/// A VM with a sealed disk, whose host has an image.
pub(crate) struct Machine {
    pub(crate) run: Run,
    pub(crate) image: Image,
    /// Interrupts of the host's that the VM has not handled.
    interrupts: u32,
}

const DISK: u64 = 2;
/// FLUSH, in the first half of the features.
const FLUSH: u64 = 1 << 9;

impl Machine {
    /// The VM has not used the device.
    pub(crate) fn bare(layout: Layout, wanted: Wanted, image: Image) -> Self {
        let mut run = Run::bare(layout);
        run.kind = DISK;
        run.device = Box::new(Device::NONE);
        let disk = Box::leak(Box::new(Sealed::new(wanted, room())));
        assert!(run.device.seal(Some(disk)).is_none());
        run.device.assign(PART, PART_BYTES, layout).unwrap();
        Self { run, image, interrupts: 0 }
    }

    /// The driver has set it up.
    pub(crate) fn with(layout: Layout, wanted: Wanted, image: Image) -> Self {
        let mut machine = Self::bare(layout, wanted, image);
        machine.run.set_up(&[64]);
        machine.run.drivers[0].looks_at_all = true;
        machine
    }

    pub(crate) fn new() -> Self {
        Self::with(Layout::Mmio, wanted(1), Image::new())
    }

    /// The host answers a request, if it was told of one.
    pub(crate) fn host(&mut self) -> bool {
        let Self { run, image, .. } = self;
        if run.host.told.is_empty() {
            return false;
        }
        let queue = &mut run.host.queues[0];
        if queue.is_ready {
            queue.take(&run.world);
        }
        if !queue.is_ready || queue.taken.is_empty() {
            run.host.told.clear();
            return false;
        }
        let taken = queue.taken.remove(0);
        let bytes = image.answer(&taken.said, usize::try_from(taken.room()).unwrap());
        queue.put(&run.world, &taken, &bytes, taken.room());
        self.interrupts += 1;
        true
    }

    /// The VM is entered, and handles the interrupt if there is one. Returns what came back.
    pub(crate) fn enter(&mut self) -> Vec<(Vec<u8>, Vec<u8>)> {
        self.run.complete();
        self.run.pay();
        self.collect()
    }

    /// The VM handles the interrupt if there is one.
    pub(crate) fn collect(&mut self) -> Vec<(Vec<u8>, Vec<u8>)> {
        let before = self.run.answers.len();
        if std::mem::take(&mut self.interrupts) > 0 {
            let Run { drivers, world, answers, .. } = &mut self.run;
            answers.extend(drivers[0].collect(world));
        }
        self.run.answers.split_off(before)
    }

    /// The VM offers a request: what it says, and room for so many bytes beside the status. Returns whether it could.
    pub(crate) fn offer(&mut self, said: &[u8], room: usize) -> bool {
        let pieces = |bytes: usize| (0..bytes).step_by(BLOCK).map(move |at| BLOCK.min(bytes - at));
        let said: Vec<Vec<u8>> = said.chunks(BLOCK).map(<[u8]>::to_vec).collect();
        let mut places: Vec<u32> =
            pieces(room).map(|bytes| u32::try_from(bytes).unwrap()).collect();
        places.push(1);
        self.run.drivers[0].offer(&self.run.world, &said, &places)
    }

    /// Puts the headers of all requests in place again: large buffers lie over others.
    pub(crate) fn say_again(&mut self) {
        let Run { drivers, world, .. } = &self.run;
        for request in drivers[0].pending.values() {
            world.poke(request.sources[0].0, &request.said[..16]);
        }
    }

    /// Does one request to its end: its status, and what came back.
    pub(crate) fn ask(&mut self, said: &[u8], room: usize) -> (u8, Vec<u8>) {
        assert!(self.offer(said, room));
        self.run.store(0x50, 0);
        self.rest()
    }

    /// What the request at the host comes to.
    pub(crate) fn rest(&mut self) -> (u8, Vec<u8>) {
        for _ in 0..10_000 {
            let _ = self.host();
            if let Some((_, mut bytes)) = self.enter().pop() {
                assert_eq!(self.run.fail(), None);
                return (bytes.pop().unwrap(), bytes);
            }
        }
        panic!("the request is never answered");
    }

    pub(crate) fn fault(&mut self) -> Option<virtio::sealed::Fault> {
        self.run.device.sealed().unwrap().fault()
    }

    pub(crate) fn read(&mut self, sector: u64, bytes: usize) -> Result<Vec<u8>, u8> {
        let (status, bytes) = self.ask(&said(0, sector, &[]), bytes);
        if status == 0 { Ok(bytes) } else { Err(status) }
    }

    pub(crate) fn write(&mut self, sector: u64, bytes: &[u8]) -> u8 {
        self.ask(&said(1, sector, bytes), 0).0
    }

    pub(crate) fn flush(&mut self) -> u8 {
        self.ask(&said(4, 0, &[]), 0).0
    }
}

/// A request as a driver says it.
pub(crate) fn said(kind: u32, sector: u64, data: &[u8]) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes(), data].concat()
}

/// One to forget.
pub(crate) fn forget(kind: u32, sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    let data = [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat();
    said(kind, 0, &data)
}
