//! Memory for requests past the kernel's cache.

use crate::SECTOR;

/// Bytes that begin at a multiple of 512, as such requests want it, but not of 4 KiB.
pub(crate) struct Buffer {
    memory: Vec<u8>,
    begin: usize,
}

impl Buffer {
    const PAGE: usize = 4096;

    /// For requests of up to `most` bytes, `sectors` behind the beginning of a page.
    pub(crate) fn new(most: usize, sectors: usize) -> Self {
        let shift = sectors % (Self::PAGE / SECTOR) * SECTOR;
        let memory = vec![0; most + 2 * Self::PAGE];
        let begin = memory.as_ptr().align_offset(Self::PAGE) + shift;
        Self { memory, begin }
    }

    /// The first `bytes` of it.
    pub(crate) fn bytes(&mut self, bytes: usize) -> &mut [u8] {
        &mut self.memory[self.begin..][..bytes]
    }
}
