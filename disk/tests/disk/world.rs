//! A disk, its host and its owner.

use disk::create::{self, Seeds};
use disk::geometry::Geometry;
use disk::header::Header;
use disk::storage::{Block, Error};
use disk::volume::{LEVELS, LONGEST, Memory, Pending, RANGES, Range, Slot, Step, Volume};

use crate::host::Host;

/// The owner's key.
pub(crate) const WRAPPING: [u8; 32] = [0x77; 32];

/// The header of a disk with these sizes.
pub(crate) fn header(capacity: u64, log: u64, entries: u64) -> Header {
    let geometry = Geometry::new(capacity, log, entries).unwrap();
    Header { id: *b"a disk for tests", volume: [0x44; 32], geometry, sequence: 1 }
}

/// An empty disk.
pub(crate) fn new_disk(header: &Header) -> Host {
    let mut host = Host::default();
    let seeds = Seeds { salts: [[1; 32], [2; 32]], opening: [0; 10] };
    create::create(&mut host, header, &WRAPPING, &seeds, &mut [0; 4096]).unwrap();
    host
}

/// Memory for a volume.
pub(crate) struct Room {
    entries: Vec<Pending>,
    ranges: Box<[Range; RANGES]>,
    nodes: Vec<Slot>,
    path: Box<[Step; LEVELS]>,
    blocks: Vec<Block>,
    notes: Box<[Pending; LONGEST]>,
}

impl Room {
    /// As much as the disk needs, and `nodes` nodes.
    pub(crate) fn new(header: &Header, nodes: usize) -> Self {
        let entries = usize::try_from(header.geometry.entries()).unwrap();
        Self {
            entries: vec![Pending::EMPTY; entries],
            ranges: Box::new([Range::EMPTY; RANGES]),
            nodes: (0..nodes).map(|_| Slot::EMPTY).collect(),
            path: Box::new([const { Step::EMPTY }; LEVELS]),
            blocks: vec![[0; 4096]; 2 * LONGEST],
            notes: Box::new([Pending::EMPTY; LONGEST]),
        }
    }

    pub(crate) fn memory(&mut self) -> Memory<'_> {
        let (frames, run) = self.blocks.split_at_mut(LONGEST);
        Memory {
            entries: &mut self.entries,
            ranges: &mut self.ranges,
            nodes: &mut self.nodes,
            path: &mut self.path,
            frames: frames.try_into().unwrap(),
            run: run.try_into().unwrap(),
            notes: &mut self.notes,
        }
    }
}

/// Random bytes for an opening: others each time.
pub(crate) fn opening(number: u64) -> [u8; 10] {
    let mut bytes = [9; 10];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    bytes
}

/// Asks until the storage does not say any more that it is at work.
pub(crate) fn done<T>(mut ask: impl FnMut() -> Result<T, Error>) -> Result<T, Error> {
    loop {
        match ask() {
            Err(Error::Wait) => {}
            other => return other,
        }
    }
}

/// A block that is all of one number.
pub(crate) fn filled(number: u64) -> Block {
    let mut block = [0; 4096];
    block.chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&number.to_le_bytes()));
    block
}

/// All that is on the disk, as numbers. Of a large disk only what was ever written is read.
pub(crate) fn content(volume: &mut Volume, host: &mut Host) -> Result<Vec<u64>, Error> {
    let capacity = usize::try_from(volume.geometry().capacity()).unwrap();
    if capacity < 1_000 {
        let mut blocks = vec![[1; 4096]; capacity];
        done(|| volume.read(host, 0, &mut blocks))?;
        return Ok(blocks.iter().map(number).collect());
    }
    let mut numbers = vec![0; capacity];
    let mut block = [[1; 4096]];
    let mut next = 0;
    while let Some(at) = done(|| volume.next_written(host, next))? {
        done(|| volume.read(host, at, &mut block))?;
        numbers[usize::try_from(at).unwrap()] = number(&block[0]);
        next = at + 1;
        if next == volume.geometry().capacity() {
            break;
        }
    }
    Ok(numbers)
}

/// The number that a block is filled with.
pub(crate) fn number(block: &Block) -> u64 {
    let number = u64::from_le_bytes(block[..8].try_into().unwrap());
    assert!(*block == filled(number), "neither old nor new");
    number
}
