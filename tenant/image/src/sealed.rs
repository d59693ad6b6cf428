//! A sealed disk, as something that blocks are read from and written to.

use std::fs::File;
use std::ops::Range;
use std::path::Path;

use disk::create::Seeds;
use disk::geometry::Geometry;
use disk::header::{Header, Refusal};
use disk::storage::Storage;
use disk::volume::{
    LEVELS, LONGEST, Memory, Pending, RANGES, Range as Forgotten, Slot, Step as Node, Volume,
};

use crate::error::Error;
use crate::manage::{Broken, Found};
use crate::plain::{Source, Target};
use crate::progress::{Phase, Progress, Step};
use crate::random;
use crate::storage::{Access, Blocks};
use crate::{BLOCK, Block, WrappingKey};

/// How many blocks make a run at most.
const RUN: u64 = 256;

/// The longest log of a new disk, in blocks: 1/512 of what the VM sees is enough for smaller ones.
const LOG: u64 = 32_768;

/// Of how many blocks the log of a new disk speaks at most: a visor has no memory for more.
const ENTRIES: u64 = 4_096;

/// How many nodes of the tree are kept in memory.
const NODES: usize = 512;

/// An open disk.
pub(crate) struct Sealed<'m> {
    blocks: Blocks,
    volume: Volume<'m>,
    id: [u8; 16],
    geometry: Geometry,
}

impl<'m> Sealed<'m> {
    /// Opens the disk in a file, which nobody else uses meanwhile.
    ///
    /// # Errors
    /// [`Error`].
    pub(crate) fn open(
        path: &Path,
        key: &WrappingKey,
        access: Access,
        room: &'m mut Room,
    ) -> Result<Self, Error> {
        Self::with(Blocks::open(path, access)?, key, room)
    }

    /// Opens the disk in a file that is open, and that nobody else uses.
    ///
    /// # Errors
    /// [`Error`].
    pub(crate) fn over(
        path: &Path,
        file: File,
        key: &WrappingKey,
        access: Access,
        room: &'m mut Room,
    ) -> Result<Self, Error> {
        Self::with(Blocks::over(path, file, access), key, room)
    }

    fn with(mut blocks: Blocks, key: &WrappingKey, room: &'m mut Room) -> Result<Self, Error> {
        let header = header(&blocks, key)?;
        let memory = room.memory(header.geometry);
        let volume = Volume::new(&header, memory, random::array()?);
        let mut volume = volume.map_err(|why| blocks.wrong(why))?;
        volume.open(&mut blocks).map_err(|why| blocks.wrong(why))?;
        Ok(Self { blocks, volume, id: header.id, geometry: header.geometry })
    }

    /// What is known of it without reading its data.
    pub(crate) fn found(&self) -> Found {
        let (moment, tag) = self.volume.moment();
        Found {
            id: self.id,
            capacity: self.geometry.capacity(),
            total: self.geometry.total(),
            moment,
            tag,
            written: None,
            broken: None,
        }
    }

    /// Puts all into its place, so that the log is empty.
    ///
    /// # Errors
    /// [`Error`].
    pub(crate) fn close(mut self) -> Result<(), Error> {
        self.volume.checkpoint(&mut self.blocks).map_err(|why| self.blocks.wrong(why))
    }

    /// Reads all: how many blocks were written, and what is not what was written.
    ///
    /// # Errors
    /// [`Error`], but not [`Error::Forged`].
    pub(crate) fn check(
        &mut self,
        progress: &mut dyn Progress,
    ) -> Result<(u64, Vec<Broken>), Error> {
        let capacity = self.geometry.capacity();
        let (mut written, mut broken, mut at) = (0, Vec::new(), 0);
        let mut block = [[0; 4096]];
        loop {
            let looked = match self.next(at) {
                Ok(None) => return Ok((written, broken)),
                Ok(Some(index)) => {
                    written += 1;
                    at = index;
                    self.read(index, &mut block)
                }
                Err(why) => Err(why),
            };
            match looked {
                Ok(()) => at += 1,
                Err(Error::Forged(_, index, level)) => {
                    broken.push(Broken { level, index });
                    // A node that is broken hides all that is below it.
                    at = ((index + 1) << (7 * u32::from(level))).min(capacity);
                }
                Err(why) => return Err(why),
            }
            if at.is_multiple_of(RUN) || at == capacity {
                let (done, total) = (at * BLOCK, capacity * BLOCK);
                progress.step(Step { phase: Phase::Verify, done, total });
            }
        }
    }

    /// The next block from `from` on that was written.
    fn next(&mut self, from: u64) -> Result<Option<u64>, Error> {
        let next = self.volume.next_written(&mut self.blocks, from);
        next.map_err(|why| self.blocks.wrong(why))
    }
}

impl Source for Sealed<'_> {
    fn blocks(&self) -> u64 {
        self.geometry.capacity()
    }

    fn written(&mut self, from: u64) -> Result<Option<Range<u64>>, Error> {
        let Some(start) = self.next(from)? else { return Ok(None) };
        let mut end = start + 1;
        while end - start < RUN && self.next(end)? == Some(end) {
            end += 1;
        }
        Ok(Some(start..end))
    }

    fn read(&mut self, at: u64, blocks: &mut [Block]) -> Result<(), Error> {
        let read = self.volume.read(&mut self.blocks, at, blocks);
        read.map_err(|why| self.blocks.wrong(why))
    }
}

impl Target for Sealed<'_> {
    fn write(&mut self, at: u64, block: &Block) -> Result<(), Error> {
        let written = self.volume.write(&mut self.blocks, at, &[*block]);
        written.map_err(|why| self.blocks.wrong(why))
    }

    fn flush(&mut self) -> Result<(), Error> {
        self.volume.flush(&mut self.blocks).map_err(|why| self.blocks.wrong(why))
    }
}

/// What an open disk works with.
pub(crate) struct Room {
    entries: Vec<Pending>,
    ranges: Box<[Forgotten; RANGES]>,
    nodes: Vec<Slot>,
    path: Box<[Node; LEVELS]>,
    frames: Box<[Block; LONGEST]>,
    run: Box<[Block; LONGEST]>,
    notes: Box<[Pending; LONGEST]>,
}

impl Room {
    pub(crate) fn new() -> Self {
        Self {
            entries: Vec::new(),
            ranges: Box::new([Forgotten::EMPTY; RANGES]),
            nodes: (0..NODES).map(|_| Slot::EMPTY).collect(),
            path: Box::new([Node::EMPTY; LEVELS]),
            frames: Box::new([[0; 4096]; LONGEST]),
            run: Box::new([[0; 4096]; LONGEST]),
            notes: Box::new([Pending::EMPTY; LONGEST]),
        }
    }

    /// As much as a disk of these sizes needs.
    fn memory(&mut self, geometry: Geometry) -> Memory<'_> {
        let entries = usize::try_from(geometry.entries()).unwrap_or(usize::MAX);
        self.entries.resize(entries, Pending::EMPTY);
        Memory {
            entries: &mut self.entries,
            ranges: &mut self.ranges,
            nodes: &mut self.nodes,
            path: &mut self.path,
            frames: &mut self.frames,
            run: &mut self.run,
            notes: &mut self.notes,
        }
    }
}

/// Makes an empty disk of so many blocks in a file.
///
/// # Errors
/// [`Error`].
pub(crate) fn create(
    path: &Path,
    file: File,
    key: &WrappingKey,
    capacity: u64,
) -> Result<(), Error> {
    let log = (capacity / 512).clamp(64, LOG);
    let geometry =
        Geometry::new(capacity, log, log.min(ENTRIES)).ok_or(Error::Size("4K to 16T"))?;
    let header = Header { id: random::array()?, volume: random::array()?, geometry, sequence: 1 };
    let seeds = Seeds { salts: [random::array()?, random::array()?], opening: random::array()? };
    let mut blocks = Blocks::over(path, file, Access::Write);
    // What an interrupted creation left goes.
    blocks.set_count(0)?;
    blocks.set_count(geometry.total())?;
    let created = disk::create::create(&mut blocks, &header, key, &seeds, &mut [0; 4096]);
    created.map_err(|why| blocks.wrong(why))
}

/// Puts the disk in `path` under the second key. If it is already, as far as a power cut has left headers, both
/// are made anew.
///
/// # Errors
/// [`Error`].
pub(crate) fn rekey(path: &Path, [old, new]: [&WrappingKey; 2]) -> Result<(), Error> {
    let mut blocks = Blocks::open(path, Access::Write)?;
    match header(&blocks, old) {
        Err(Error::Header(..)) if header(&blocks, new).is_ok() => {
            replace_headers(&mut blocks, [new; 2])
        }
        Err(why) => Err(why),
        Ok(_) => replace_headers(&mut blocks, [old, new]),
    }
}

/// Replaces both headers by newer ones under the second key. The one that counts is the last to be replaced: at
/// any time one of the two is right.
fn replace_headers(blocks: &mut Blocks, [old, new]: [&WrappingKey; 2]) -> Result<(), Error> {
    let total = blocks.count()?;
    let mut header = header(blocks, old)?;
    let [in_first, _] = sequences(blocks, old)?;
    let places = if in_first == Ok(header.sequence) { [1, 0] } else { [0, 1] };
    for place in places {
        header.sequence += 1;
        let mut block = [0; 4096];
        header.seal(new, &random::array()?, &mut block);
        let done = blocks.write(total - 2 + place, &[block]).and_then(|()| blocks.flush());
        done.map_err(|why| blocks.wrong(why.into()))?;
    }
    Ok(())
}

/// The header that counts.
fn header(blocks: &Blocks, key: &WrappingKey) -> Result<Header, Error> {
    let mut both = blocks.headers()?;
    let header = Header::newest(&mut both, key, blocks.count()?);
    header.map_err(|why| Error::Header(blocks.path().into(), why))
}

/// The sequences in the two headers, or what is wrong with each.
fn sequences(blocks: &Blocks, key: &WrappingKey) -> Result<[Result<u64, Refusal>; 2], Error> {
    let total = blocks.count()?;
    let opened = |mut block| Header::open(&mut block, key, total).map(|header| header.sequence);
    Ok(blocks.headers()?.map(opened))
}

/// Whether the file has a disk that [`create`] made, to go on with. A power cut may have left the first header
/// without the second, which is written when the first is durable, and before all data: the second is mended then.
///
/// # Errors
/// [`Error`].
pub(crate) fn is_begun(path: &Path, file: File, key: &WrappingKey) -> Result<bool, Error> {
    let mut blocks = Blocks::over(path, file, Access::Write);
    // Its length is durable before anything else is.
    if !blocks.is_disk()? {
        return Ok(false);
    }
    match sequences(&blocks, key)? {
        [Err(_), Err(Refusal::Absent)] => return Ok(false),
        [Ok(_), Err(_)] => replace_headers(&mut blocks, [key; 2])?,
        [_, Ok(_)] | [Err(_), Err(_)] => {}
    }
    Ok(true)
}
