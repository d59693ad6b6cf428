//! Physical memory as the visor sees it at boot.

use ept::addr::{PAGE, Span};

/// Longest string that is looked for in memory, in bytes: twice what Linux takes as its command
/// line on x86.
const STRING_LIMIT: u64 = 4096;

/// Read access to physical memory. The visor implements it over its boot-time identity mapping.
pub trait Memory {
    /// The bytes of `span`, or `None` if any of them cannot be read. An empty span always can be.
    fn bytes(&self, span: Span) -> Option<&[u8]>;
}

/// The `len` bytes at `at`.
pub(crate) fn bytes(memory: &dyn Memory, at: u64, len: u64) -> Option<&[u8]> {
    memory.bytes(Span::sized(at, len)?)
}

/// Bytes in the string at `at`, without the NUL that ends it.
///
/// Asks for one page at a time, since the string may be the last thing before memory that cannot
/// be read.
pub(crate) fn string_length(memory: &dyn Memory, at: u64) -> Option<u64> {
    let limit = at.checked_add(STRING_LIMIT)?;
    let mut from = at;
    while from < limit {
        let to = (from + 1).next_multiple_of(PAGE);
        let page = memory.bytes(Span::new(from, to)?)?;
        if let Some(end) = page.iter().position(|&byte| byte == 0) {
            return Some(from - at + u64::try_from(end).ok()?);
        }
        from = to;
    }
    None
}
