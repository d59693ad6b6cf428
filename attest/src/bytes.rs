//! Bytes out of which messages are made, and into which they are taken apart.

use ept::list::{Full, List};

/// Appends `bytes` to `list`, or as many as there is room for.
pub(crate) fn put<const N: usize>(list: &mut List<u8, N>, bytes: &[u8]) -> Result<(), Full> {
    bytes.iter().try_for_each(|byte| list.push(*byte))
}

/// What is left to be read of a message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    /// The next `len` bytes; `None` if there are fewer.
    pub(crate) fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.first_chunk().copied()
    }

    /// The next byte.
    pub(crate) fn byte(&mut self) -> Option<u8> {
        self.array().map(u8::from_be_bytes)
    }

    /// The next 16 bits, the highest first.
    pub(crate) fn half(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    /// The next 32 bits, the highest first.
    pub(crate) fn word(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }
}
