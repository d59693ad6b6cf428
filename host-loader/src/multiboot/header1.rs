//! The multiboot1 header (Multiboot Specification 0.6.96, section 3.1).

use super::{PAGES, Request};
use crate::LoadError;
use crate::bytes::u32_at;
use crate::image::Flat;
use crate::plan::Protocol;

const MAGIC: u32 = 0x1bad_b002;
const WITHIN: usize = 8192;
const ALIGN_MODULES: u32 = 1;
const MEMORY_INFO: u32 = 1 << 1;
const ADDRESSES: u32 = 1 << 16;
/// Of the lower half, which a loader must not ignore, what this one provides.
const PROVIDED: u32 = ALIGN_MODULES | MEMORY_INFO;
const REQUIRED: u32 = 0xffff;

/// The header of `file`, if it has one.
pub(super) fn find(file: &[u8]) -> Option<Result<Request, LoadError>> {
    let last = file.len().min(WITHIN).saturating_sub(11);
    let at = (0..last).step_by(4).find(|&at| is_header(file, at))?;
    Some(read(file, at))
}

fn is_header(file: &[u8], at: usize) -> bool {
    let word = |offset| u32_at(file, at + offset).unwrap_or(0);
    word(0) == MAGIC && word(0).wrapping_add(word(4)).wrapping_add(word(8)) == 0
}

fn read(file: &[u8], at: usize) -> Result<Request, LoadError> {
    let word = |offset| u32_at(file, at + offset).ok_or(LoadError::Truncated);
    let flags = word(4)?;
    if flags & REQUIRED & !PROVIDED != 0 {
        return Err(LoadError::HeaderFlags(flags));
    }
    let mut request = Request::plain(Protocol::Multiboot1);
    if flags & ALIGN_MODULES != 0 {
        request.align = PAGES;
    }
    if flags & ADDRESSES != 0 {
        let addresses = [word(12)?, word(16)?, word(20)?, word(24)?];
        request.flat = Some(flat(at, addresses)?);
        request.entry = Some(word(28)?);
    }
    Ok(request)
}

/// From the header's file offset and its `header_addr`, `load_addr`, `load_end_addr` and
/// `bss_end_addr`; multiboot2's address tag means the same.
pub(super) fn flat(at: usize, addresses: [u32; 4]) -> Result<Flat, LoadError> {
    let [header, load, load_end, bss_end] = addresses;
    let before = header.checked_sub(load).ok_or(LoadError::Truncated)?;
    let at = u32::try_from(at).map_err(|_| LoadError::Truncated)?;
    let offset = at.checked_sub(before).ok_or(LoadError::Truncated)?;
    Ok(Flat { offset: offset.into(), load, load_end, bss_end })
}
