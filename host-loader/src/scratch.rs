//! The part of the loader area that the host's kernel finds its boot tables in.

use crate::LoadError;
use crate::bytes::index;

/// Zero-filled pieces, handed out from the bottom up and never taken back.
#[derive(Debug)]
pub struct Scratch<'s> {
    bytes: &'s mut [u8],
    base: u32,
    used: usize,
}

/// One piece: its physical address and its bytes.
#[derive(Debug)]
pub(crate) struct Piece<'s> {
    pub(crate) at: u32,
    pub(crate) bytes: &'s mut [u8],
}

impl<'s> Scratch<'s> {
    /// All of `bytes`, which the kernel will find at physical address `base` (page aligned).
    #[must_use]
    pub const fn new(bytes: &'s mut [u8], base: u32) -> Self {
        Self { bytes, base, used: 0 }
    }

    /// A zeroed piece of `len` bytes at a multiple of `align`.
    pub(crate) fn piece(&mut self, len: usize, align: usize) -> Result<Piece<'_>, LoadError> {
        let start = self.used.next_multiple_of(align);
        let end = start.checked_add(len).ok_or(LoadError::ScratchFull)?;
        let bytes = self.bytes.get_mut(start..end).ok_or(LoadError::ScratchFull)?;
        bytes.fill(0);
        self.used = end;
        let at = u32::try_from(start).ok().and_then(|offset| self.base.checked_add(offset));
        Ok(Piece { at: at.ok_or(LoadError::ScratchFull)?, bytes })
    }

    /// A copy of `bytes`, 8-byte aligned and with a zero after it; its physical address.
    pub(crate) fn string(&mut self, bytes: &[u8]) -> Result<u32, LoadError> {
        let piece = self.piece(bytes.len().saturating_add(1), 8)?;
        crate::bytes::put(piece.bytes, 0, bytes);
        Ok(piece.at)
    }

    /// The bytes from physical address `at` on, for a reader that plays the kernel.
    #[must_use]
    pub fn from(&self, at: u32) -> Option<&[u8]> {
        self.bytes.get(index(u64::from(at.checked_sub(self.base)?))..)
    }
}
