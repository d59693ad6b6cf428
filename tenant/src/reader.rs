//! Numbers and bytes from the front of a text.

/// What is left of a text. Each method is `None` where the text ends too early, and takes nothing then.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(head)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*head)
    }

    pub(crate) fn byte(&mut self) -> Option<u8> {
        self.array().map(u8::from_be_bytes)
    }

    /// As a TPM writes numbers.
    pub(crate) fn be16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub(crate) fn be32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub(crate) fn be64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    /// As event logs have numbers.
    pub(crate) fn le16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn le32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    /// A TPM2B: a length of 16 bits and so many bytes.
    pub(crate) fn sized(&mut self) -> Option<&'a [u8]> {
        let length = self.be16()?;
        self.take(usize::from(length))
    }

    /// Bytes whose number precedes them, as event logs have them.
    pub(crate) fn long(&mut self) -> Option<&'a [u8]> {
        let length = self.le32()?;
        self.take(usize::try_from(length).ok()?)
    }

    /// Whether nothing is left.
    pub(crate) const fn is_done(&self) -> bool {
        self.0.is_empty()
    }
}
