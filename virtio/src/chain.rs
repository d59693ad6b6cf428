//! A request of the VM's: a chain of descriptors (virtio 1.2, 2.7.5).

use core::ops::Range;

use ept::list::List;

use crate::memory::{Failure, Memory, Missing, Unreached};
use crate::queue::LONGEST;

/// Why something was not finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Error {
    /// It can be, once the host has brought in a page.
    Missing(Missing),
    /// It never will.
    Failed(Failure),
}

impl From<Unreached> for Error {
    fn from(unreached: Unreached) -> Self {
        match unreached {
            Unreached::Missing(missing) => Self::Missing(missing),
            Unreached::Nowhere(address) => Self::Failed(Failure::Nowhere(address)),
        }
    }
}

/// `offset` bytes behind `address`.
pub(crate) fn place(address: u64, offset: u64) -> Result<u64, Error> {
    address.checked_add(offset).ok_or(Error::Failed(Failure::Nowhere(address)))
}

/// How far the copy of a request has come. A page may be missing for each that it touches, and what was
/// copied for the others is not copied again.
#[derive(Clone, Copy)]
struct Progress {
    /// Whose request it is, and where its data is in the shared range.
    of: (u64, u64),
    bytes: u64,
}

impl Progress {
    const NONE: Self = Self { of: (0, 0), bytes: 0 };

    /// Copies `bytes` bytes, the first of which is number `first` of the request, from one guest-physical
    /// address to another.
    fn copy(
        &mut self,
        memory: &impl Memory,
        (from, to): (u64, u64),
        first: u64,
        bytes: u64,
    ) -> Result<(), Error> {
        let mut piece = [0; 512];
        while self.bytes < first + bytes {
            let (done, left) = (self.bytes - first, first + bytes - self.bytes);
            let count = usize::try_from(left).unwrap_or(piece.len()).min(piece.len());
            let piece = piece.get_mut(..count).unwrap_or_default();
            memory.read(place(from, done)?, piece)?;
            memory.write(place(to, done)?, piece)?;
            self.bytes += u64::try_from(count).unwrap_or(left);
        }
        Ok(())
    }
}

/// Memory of the VM's that a descriptor names.
#[derive(Clone, Copy)]
struct Buffer {
    address: u64,
    bytes: u64,
}

/// Where bytes `first` to `first + count` of these buffers together are: addresses, and which of the bytes are there.
fn parts<'b>(
    buffers: impl Iterator<Item = &'b Buffer>,
    first: u64,
    count: usize,
) -> impl Iterator<Item = (u64, Range<usize>)> {
    let end = first.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
    let index = move |at: u64| usize::try_from(at - first).unwrap_or(count);
    let mut next = 0;
    buffers.filter_map(move |buffer| {
        let begin = next;
        next += buffer.bytes;
        let (from, to) = (first.max(begin), end.min(next));
        (from < to).then(|| (buffer.address.saturating_add(from - begin), index(from)..index(to)))
    })
}

/// A chain as it was when it was read: the VM may write to its descriptors meanwhile.
pub(crate) struct Chain {
    head: u16,
    /// What the device reads, then what it writes.
    buffers: List<Buffer, LONGEST>,
    /// How many of them it reads.
    split: usize,
    /// What the device reads, in bytes.
    pub(crate) readable: u64,
    /// What the device may write, in bytes.
    pub(crate) writable: u64,
    /// The descriptor of the first buffer that it may write.
    pub(crate) second: u16,
    progress: Progress,
}

/// Most bytes of numbers of pages in a request: Linux has 256 of them.
const PAGES: usize = 1024;

/// Bits of a descriptor's flags.
pub(crate) const NEXT: u16 = 1 << 0;
pub(crate) const WRITE: u16 = 1 << 1;

impl Chain {
    /// None.
    pub(crate) const NONE: Self = Self {
        head: 0,
        buffers: List::new(Buffer { address: 0, bytes: 0 }),
        split: 0,
        readable: 0,
        writable: 0,
        second: 0,
        progress: Progress::NONE,
    };

    /// Becomes the chain that begins at `head`, below `size`, in the VM's table at `table`. In place: it
    /// is long.
    ///
    /// # Errors
    /// [`Failure::Chain`] where it does not end, goes out of the table, has something to be read
    /// behind something to be written, or flags that were not negotiated.
    pub(crate) fn read(
        &mut self,
        memory: &impl Memory,
        (table, size): (u64, u16),
        head: u16,
    ) -> Result<(), Error> {
        let malformed = Error::Failed(Failure::Chain(head));
        self.buffers.clear();
        (self.split, self.readable, self.writable) = (0, 0, 0);
        (self.head, self.second) = (head, head);
        let mut at = head;
        loop {
            let mut raw = [0; 16];
            memory.read(place(table, u64::from(at) * 16)?, &mut raw)?;
            let raw = u128::from_le_bytes(raw);
            let field =
                |shift: u32, mask: u64| u64::try_from(raw >> shift & u128::from(mask)).unwrap_or(0);
            let half = |shift| u16::try_from(field(shift, 0xffff)).unwrap_or(0);
            let buffer = Buffer { address: field(0, u64::MAX), bytes: field(64, 0xffff_ffff) };
            self.push(buffer, at, half(96)).ok_or(malformed)?;
            if half(96) & NEXT == 0 {
                return Ok(());
            }
            at = Some(half(112)).filter(|next| *next < size).ok_or(malformed)?;
        }
    }

    /// Appends what descriptor `at` says; `None` if it may not be there.
    fn push(&mut self, buffer: Buffer, at: u16, flags: u16) -> Option<()> {
        let is_reading = self.split == self.buffers.len();
        self.buffers.push(buffer).ok()?;
        match flags & !NEXT {
            0 if is_reading => {
                self.split += 1;
                self.readable += buffer.bytes;
            }
            WRITE => {
                if is_reading {
                    self.second = at;
                }
                self.writable += buffer.bytes;
            }
            _ => return None,
        }
        Some(())
    }

    /// Nothing has been copied for the request `of`, unless it was the last one.
    fn resume(&mut self, of: (u64, u64)) {
        if self.progress.of != of {
            self.progress = Progress { of, bytes: 0 };
        }
    }

    /// Forgets how far a copy has come.
    pub(crate) const fn settle(&mut self) {
        self.progress = Progress::NONE;
    }

    /// Copies what the device reads to `to`, for the request `key`.
    pub(crate) fn gather(&mut self, memory: &impl Memory, key: u64, to: u64) -> Result<(), Error> {
        self.resume((key, to));
        let mut first = 0;
        for buffer in self.buffers.iter().take(self.split) {
            self.progress.copy(memory, (buffer.address, to + first), first, buffer.bytes)?;
            first += buffer.bytes;
        }
        Ok(())
    }

    /// Fills `into` with what the device reads, from byte `first` on, as far as there is something.
    pub(crate) fn fetch(
        &self,
        memory: &impl Memory,
        first: u64,
        into: &mut [u8],
    ) -> Result<(), Error> {
        let readable = self.buffers.iter().take(self.split);
        for (address, range) in parts(readable, first, into.len()) {
            memory.read(address, into.get_mut(range).unwrap_or_default())?;
        }
        Ok(())
    }

    /// Has the device write `bytes`, from the byte `first` of what it may write on, as far as it may.
    pub(crate) fn store(
        &self,
        memory: &impl Memory,
        first: u64,
        bytes: &[u8],
    ) -> Result<(), Error> {
        let writable = self.buffers.iter().skip(self.split);
        for (address, range) in parts(writable, first, bytes.len()) {
            memory.write(address, bytes.get(range).unwrap_or_default())?;
        }
        Ok(())
    }

    /// Has the VM forget the pages whose numbers the device is to read, as the VM has them there: not
    /// as the host does.
    pub(crate) fn forget(&self, memory: &impl Memory) -> Result<(), Error> {
        let mut numbers = [0; PAGES];
        // That bounds what is done at once.
        if usize::try_from(self.readable).is_ok_and(|bytes| bytes > PAGES) {
            return Err(Error::Failed(Failure::TooLong(self.readable)));
        }
        for buffer in self.buffers.iter().take(self.split) {
            let numbers = usize::try_from(buffer.bytes).ok().and_then(|bytes| {
                let numbers = numbers.get_mut(..bytes)?;
                bytes.is_multiple_of(4).then_some(numbers)
            });
            let numbers = numbers.ok_or(Error::Failed(Failure::Chain(self.head)))?;
            memory.read(buffer.address, numbers)?;
            memory.forget(numbers.as_chunks().0);
        }
        Ok(())
    }

    /// Copies the `bytes` that the device has written from `from`, if there is room for them, for the
    /// request `key`.
    pub(crate) fn scatter(
        &mut self,
        memory: &impl Memory,
        key: u64,
        (from, bytes): (u64, u64),
    ) -> Result<(), Error> {
        self.resume((key, from));
        let mut first = 0;
        for buffer in self.buffers.iter().skip(self.split) {
            let count = buffer.bytes.min(bytes - first);
            self.progress.copy(memory, (from + first, buffer.address), first, count)?;
            first += count;
        }
        // The VM may have cut the chain since.
        if first == bytes { Ok(()) } else { Err(Error::Failed(Failure::Chain(self.head))) }
    }
}
