//! Physical memory as the visor sees it at boot.

use ept::addr::{PAGE, Span};

use crate::raw;

/// Longest string that is looked for in memory, in bytes: twice what Linux takes as its command
/// line on x86.
const STRING_LIMIT: u64 = 4096;

/// Read access to physical memory. The visor implements it over its boot-time identity mapping.
pub trait Memory {
    /// The bytes of `span`, or `None` if any of them cannot be read.
    fn bytes(&self, span: Span) -> Option<&[u8]>;
}

/// The `len` bytes at `at`.
pub(crate) fn bytes(memory: &dyn Memory, at: u64, len: u64) -> Option<&[u8]> {
    memory.bytes(Span::sized(at, len)?)
}

/// The string at `at`, without the NUL that ends it.
///
/// Asks for one page at a time, since the string may be the last thing before memory that cannot
/// be read.
pub(crate) fn string(memory: &dyn Memory, at: u64) -> Option<&[u8]> {
    let limit = Span::sized(at, STRING_LIMIT)?.end();
    let mut from = at;
    while from < limit {
        let to = (from + 1).next_multiple_of(PAGE);
        let piece = memory.bytes(Span::new(from, to)?)?;
        if let Some(found) = raw::until_nul(piece) {
            let len = (from - at).checked_add(u64::try_from(found.len()).ok()?)?;
            return bytes(memory, at, len);
        }
        from = to;
    }
    None
}
