//! A disk that is opened.

use core::fmt;

use crate::bytes::{count, fit};
pub use crate::cache::Slot;
pub use crate::checkpoint::Step;
pub use crate::frame::LONGEST;
use crate::geometry::Geometry;
pub use crate::geometry::LEVELS;
use crate::header::Header;
use crate::key::Keys;
use crate::log::{Log, Mark};
use crate::reader::Reader;
use crate::record::Record;
use crate::run::Run;
use crate::storage::{Block, Error, Storage};
use crate::table::Table;
pub use crate::table::{Pending, RANGES, Range};
use crate::tree::{Disk, Tree};

/// What a volume needs to work. The content is of no importance.
#[derive(Debug)]
pub struct Memory<'m> {
    /// At least [`Geometry::entries`] of them.
    pub entries: &'m mut [Pending],
    /// What is forgotten.
    pub ranges: &'m mut [Range; RANGES],
    /// Nodes of the tree, at least one: the more, the fewer are read again.
    pub nodes: &'m mut [Slot],
    /// Nodes that a checkpoint changes.
    pub path: &'m mut [Step; LEVELS],
    /// The end of the log.
    pub frames: &'m mut [Block; LONGEST],
    /// Blocks that are written together, and what is noted of them.
    pub run: &'m mut [Block; LONGEST],
    /// See `run`.
    pub notes: &'m mut [Pending; LONGEST],
}

/// What is done before the next operation. Each step does at most one request more than once, and none
/// that matters.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Stage {
    /// Opening: the anchors, the log's heads, the log again with all that it speaks of, a flush.
    Anchors,
    Scan,
    Replay,
    Opened,
    /// Opening where a power cut has interrupted a checkpoint: a flush.
    Recovered,
    /// Nothing.
    Idle,
    /// A checkpoint: the tree from this block on.
    Tree(u64),
    /// New nodes become durable, then the frame that says so.
    Nodes,
    Marked,
    /// What the log carries comes to its places, and becomes durable there.
    Copy,
    Copied,
    /// The new anchor becomes durable.
    Anchored,
}

/// What was asked for: by this, an operation that is called again is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Op {
    Open,
    Read(u64, usize),
    Write(u64, usize),
    Forget(u64, u64),
    Flush,
    Checkpoint,
    Seek(u64),
}

/// A disk that is opened. Operations that are answered [`Error::Wait`] are called again, with the same
/// arguments and buffers: until then those of a read may hold anything, and what is written is not touched; or it is
/// given up by [`Self::abandon`].
pub struct Volume<'m> {
    pub(crate) disk: Disk,
    pub(crate) tree: Tree<'m>,
    pub(crate) table: Table<'m>,
    pub(crate) log: Log<'m>,
    pub(crate) run: Run<'m>,
    pub(crate) path: &'m mut [Step; LEVELS],
    pub(crate) stage: Stage,
    /// Reads the log, in the stages that do.
    pub(crate) reader: Reader,
    /// The root that a checkpoint makes.
    pub(crate) next_root: Record,
    op: Option<Op>,
    /// Blocks that `op` is done with.
    pub(crate) done: usize,
    broken: bool,
}

impl<'m> Volume<'m> {
    /// Opens the disk with this header, by the first operation. `opening` is 10 random bytes, new ones each
    /// time, even if nothing will be written.
    ///
    /// # Errors
    /// [`Error::Memory`].
    pub fn new(header: &Header, memory: Memory<'m>, opening: [u8; 10]) -> Result<Self, Error> {
        let sizes = header.geometry;
        let Memory { entries, ranges, nodes, path, frames, run, notes } = memory;
        let limit = fit(sizes.entries().into());
        path.iter_mut().for_each(Step::clear);
        let log = Log::new(frames);
        Ok(Self {
            disk: Disk { sizes, keys: Keys::new(&header.id, &header.volume, opening) },
            tree: Tree::new(nodes).ok_or(Error::Memory)?,
            table: Table::new(entries, ranges, limit).ok_or(Error::Memory)?,
            reader: Reader::new(Mark { at: 0, chain: log.chain() }),
            log,
            run: Run { blocks: run, at: 0, len: 0, notes },
            path,
            stage: Stage::Anchors,
            next_root: Record::NONE,
            op: None,
            done: 0,
            broken: false,
        })
    }

    /// Gives back what was lent. What was written since the last flush may be lost.
    #[must_use]
    pub fn into_memory(self) -> Memory<'m> {
        Memory {
            entries: self.table.entries,
            ranges: self.table.ranges,
            nodes: self.tree.cache.slots,
            path: self.path,
            frames: self.log.blocks,
            run: self.run.blocks,
            notes: self.run.notes,
        }
    }

    /// Gives up the operation that was to be called again. It may have been done in part.
    pub const fn abandon(&mut self) {
        self.op = None;
    }

    /// The sizes.
    #[must_use]
    pub const fn geometry(&self) -> Geometry {
        self.disk.sizes
    }

    /// What names the state of the disk that was made durable last, after a flush: a number that only grows,
    /// and the tag of what has it.
    #[must_use]
    pub const fn moment(&self) -> (u64, [u8; 16]) {
        (self.log.chain().moment, self.log.chain().tag)
    }

    /// Does what opening takes, as every other operation does.
    ///
    /// # Errors
    /// [`Error`]: [`Error::Wait`], or why the disk cannot be opened.
    pub fn open<S: Storage>(&mut self, storage: &mut S) -> Result<(), Error> {
        let result = self.begin(storage, Op::Open);
        self.end(result)
    }

    /// Reads blocks from number `first` on.
    ///
    /// # Errors
    /// [`Error`]. Blocks that came back changed are zeroed, and those after them have no meaning.
    pub fn read<S: Storage>(
        &mut self,
        storage: &mut S,
        first: u64,
        into: &mut [Block],
    ) -> Result<(), Error> {
        let op = Op::Read(first, into.len());
        let result = self.begin(storage, op).and_then(|()| self.read_all(storage, first, into));
        self.end(result)
    }

    /// Writes blocks from number `first` on. They are durable after the next [`Self::flush`].
    ///
    /// # Errors
    /// [`Error`]. A part of the blocks may have been written.
    pub fn write<S: Storage>(
        &mut self,
        storage: &mut S,
        first: u64,
        from: &[Block],
    ) -> Result<(), Error> {
        let op = Op::Write(first, from.len());
        let result = self.begin(storage, op).and_then(|()| self.write_all(storage, first, from));
        self.end(result)
    }

    /// From now on `count` blocks from number `first` on read as zeros: discard, and write zeroes.
    ///
    /// # Errors
    /// [`Error`].
    pub fn forget<S: Storage>(
        &mut self,
        storage: &mut S,
        first: u64,
        count: u64,
    ) -> Result<(), Error> {
        let op = Op::Forget(first, count);
        let result = self.begin(storage, op).and_then(|()| self.forget_all(storage, first, count));
        self.end(result)
    }

    /// Makes durable all that was written before.
    ///
    /// # Errors
    /// [`Error`].
    pub fn flush<S: Storage>(&mut self, storage: &mut S) -> Result<(), Error> {
        let result = self.begin(storage, Op::Flush).and_then(|()| self.flush_all(storage));
        self.end(result)
    }

    /// Flushes, and empties the log: the next opening is quick. To be done before a volume is dropped.
    ///
    /// # Errors
    /// [`Error`].
    pub fn checkpoint<S: Storage>(&mut self, storage: &mut S) -> Result<(), Error> {
        let result = self.begin(storage, Op::Checkpoint).and_then(|()| {
            if self.table.is_empty() {
                return self.flush_all(storage);
            }
            self.stage = Stage::Tree(0);
            self.settle(storage)
        });
        self.end(result)
    }

    /// The first block from number `from` on that was written and not forgotten. What was never written
    /// is skipped at once, however much it is.
    ///
    /// # Errors
    /// [`Error`].
    pub fn next_written<S: Storage>(
        &mut self,
        storage: &mut S,
        from: u64,
    ) -> Result<Option<u64>, Error> {
        let end = self.disk.sizes.capacity();
        let result =
            self.begin(storage, Op::Seek(from)).and_then(|()| self.seek(storage, from, end));
        self.end(result)
    }

    /// Begins an operation, or goes on with it.
    fn begin<S: Storage>(&mut self, storage: &mut S, op: Op) -> Result<(), Error> {
        if self.op != Some(op) {
            (self.op, self.done) = (Some(op), 0);
            if matches!(self.stage, Stage::Idle) {
                self.run.len = 0;
            }
        }
        let (first, len) = match op {
            Op::Read(first, len) | Op::Write(first, len) => (first, count(len)),
            Op::Forget(first, len) => (first, len),
            Op::Seek(first) => (first, 0),
            Op::Open | Op::Flush | Op::Checkpoint => (0, 0),
        };
        if first.checked_add(len).is_none_or(|end| end > self.disk.sizes.capacity()) {
            return Err(Error::Range);
        }
        match (self.broken, self.stage) {
            (false, _) => self.settle(storage),
            // What is read was not touched yet.
            (true, Stage::Idle | Stage::Tree(_)) if self.reads() => Ok(()),
            (true, _) => Err(Error::Broken),
        }
    }

    const fn reads(&self) -> bool {
        matches!(self.op, Some(Op::Read(..) | Op::Seek(_)))
    }

    /// Ends an operation, unless it goes on.
    fn end<T>(&mut self, result: Result<T, Error>) -> Result<T, Error> {
        self.broken |= match result {
            Ok(_)
            | Err(Error::Wait | Error::Range | Error::Broken | Error::Forged { level: 0, .. }) => {
                false
            }
            Err(Error::Failed) => !self.reads() || !matches!(self.stage, Stage::Idle),
            Err(_) => true,
        };
        if !matches!(result, Err(Error::Wait)) {
            self.op = None;
        }
        result
    }
}

impl fmt::Debug for Volume<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Volume");
        let _ = shown.field("geometry", &self.disk.sizes).field("stage", &self.stage);
        shown.field("moment", &self.moment().0).finish_non_exhaustive()
    }
}
