//! A request that a VM makes of a disk (virtio 1.2, 5.2.6).

use core::ops::Range;

use crate::chain::{Chain, Error};
use crate::memory::{Failure, Memory};

/// Bytes of a sector, in which requests count.
const SECTOR: u64 = 512;
/// Sectors of a block, and its bytes.
pub(crate) const SECTORS: u64 = 8;
pub(crate) const BLOCK: u64 = 4096;
/// What precedes the data of a request, and what a request to forget has of each piece.
pub(crate) const HEADER: u64 = 16;
const SEGMENT: u64 = 16;
/// Bytes of a name, which this has none of.
const NAME: u64 = 20;
/// Most sectors to forget in a request.
pub(crate) const FORGOTTEN: u32 = 1 << 22;

/// How a request ends (virtio 1.2, 5.2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    Ok,
    Failed,
    Unsupported,
}

impl Status {
    pub(crate) const fn number(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::Failed => 1,
            Self::Unsupported => 2,
        }
    }
}

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Read,
    Write,
    Flush,
    /// The name of the disk.
    Name,
    /// What is there is zeros from now on.
    Forget,
}

impl Kind {
    pub(crate) const fn has_data(self) -> bool {
        matches!(self, Self::Read | Self::Write | Self::Forget)
    }

    /// Whether the disk is another one afterwards, or durable.
    pub(crate) const fn writes(self) -> bool {
        matches!(self, Self::Write | Self::Forget | Self::Flush)
    }
}

/// A request of the VM's that the visor is at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Front {
    pub(crate) head: u16,
    pub(crate) kind: Kind,
    pub(crate) sector: u64,
    /// Bytes of data, and how many of them are done.
    pub(crate) bytes: u64,
    pub(crate) done: u64,
    /// Of the piece that comes next, the buffer has the blocks as they were, and so many pages of bytes came from the VM
    /// or went to it.
    pub(crate) is_loaded: bool,
    pub(crate) moved: usize,
    /// How it ends, once that is known.
    pub(crate) status: Option<Status>,
}

impl Front {
    /// Reads what the chain that begins at `head` asks for, of a disk of so many blocks.
    pub(crate) fn read(
        chain: &Chain,
        memory: &impl Memory,
        (head, blocks): (u16, u64),
    ) -> Result<Self, Error> {
        let data = chain.readable.checked_sub(HEADER).zip(chain.writable.checked_sub(1));
        let (out, back) = data.ok_or(Error::Failed(Failure::Chain(head)))?;
        let mut raw = [0; 16];
        chain.fetch(memory, 0, &mut raw)?;
        let raw = u128::from_le_bytes(raw);
        let field = |raw: u128, shift: u32| u64::try_from(raw >> shift & u128::from(u64::MAX));
        let (number, sector) = (raw & 0xffff_ffff, field(raw, 64).unwrap_or(u64::MAX));
        let mut front = Self {
            head,
            kind: Kind::Flush,
            sector,
            bytes: 0,
            done: 0,
            is_loaded: false,
            moved: 0,
            status: None,
        };
        match number {
            0 => (front.kind, front.bytes) = (Kind::Read, back),
            1 => (front.kind, front.bytes) = (Kind::Write, out),
            4 => front.sector = 0,
            8 => {
                (front.kind, front.sector) = (Kind::Name, 0);
                front.status = (back > NAME).then_some(Status::Failed);
            }
            11 | 13 if out == SEGMENT => {
                let mut raw = [0; 16];
                chain.fetch(memory, HEADER, &mut raw)?;
                let raw = u128::from_le_bytes(raw);
                let (sectors, flags) = (raw >> 64 & 0xffff_ffff, raw >> 96);
                front.kind = Kind::Forget;
                front.sector = field(raw, 0).unwrap_or(u64::MAX);
                front.bytes = u64::try_from(sectors).unwrap_or(u64::MAX) * SECTOR;
                // The device may unmap what is to be zeros, but must not have to.
                if flags > 1 || number == 11 && flags != 0 {
                    front.status = Some(Status::Unsupported);
                } else if sectors > FORGOTTEN.into() {
                    front.status = Some(Status::Failed);
                }
            }
            _ => front.status = Some(Status::Unsupported),
        }
        let end = front.sector.checked_add(front.bytes / SECTOR);
        let is_within = end.is_some_and(|end| end <= blocks * SECTORS);
        if !is_within || !front.bytes.is_multiple_of(SECTOR) {
            front.status = front.status.or(Some(Status::Failed));
        }
        Ok(front)
    }
}

/// What of a request is done at once: whole blocks, or a part of one; of a read, also parts at both ends.
pub(crate) struct Piece {
    pub(crate) block: u64,
    /// Where in the first block it begins.
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
    pub(crate) is_whole: bool,
}

impl Piece {
    /// The next one.
    pub(crate) fn of(front: &Front) -> Self {
        const MOST: u64 = 32 * BLOCK;
        let at = front.sector * SECTOR + front.done;
        let (block, offset, left) = (at / BLOCK, at % BLOCK, front.bytes - front.done);
        let is_whole = offset == 0 && left >= BLOCK;
        let bytes = match front.kind {
            Kind::Read => left.min(MOST - offset),
            Kind::Write if is_whole => left.min(MOST) / BLOCK * BLOCK,
            Kind::Forget if is_whole => left / BLOCK * BLOCK,
            Kind::Write | Kind::Forget | Kind::Flush | Kind::Name => left.min(BLOCK - offset),
        };
        Self { block, offset, bytes, is_whole }
    }

    /// How many blocks it has, or parts of them.
    pub(crate) fn blocks(&self) -> usize {
        usize::try_from((self.offset + self.bytes).div_ceil(BLOCK)).unwrap_or(0)
    }

    /// Which of their bytes it has.
    pub(crate) fn range(&self) -> Range<usize> {
        let at = |at: u64| usize::try_from(at).unwrap_or(0);
        at(self.offset)..at(self.offset + self.bytes)
    }
}
