//! Memory by linear address, of any length and alignment.

use core::ops::Range;

use crate::context::Access;
use crate::walk::{ATTEMPTS, AddressSpace, Error, Memory};

const PAGE: u64 = 4096;
/// Bytes in the longest instruction.
pub const LONGEST: usize = 15;

impl<M: Memory> AddressSpace<'_, M> {
    /// Reads what lies at `linear`. An aligned unit of 8 bytes, or a part of one, is read at once.
    ///
    /// # Errors
    /// Those of [`AddressSpace::translate`], for the first page that cannot be read.
    pub fn read(&self, linear: u64, bytes: &mut [u8], access: Access) -> Result<(), Error> {
        for (linear, part) in parts(linear, bytes.len(), PAGE) {
            let physical = self.translate(linear, access)?;
            let page = bytes.get_mut(part).unwrap_or_default();
            load(self.memory, physical, page)?;
        }
        Ok(())
    }

    /// Reads the instruction at `linear`: fewer bytes than [`LONGEST`] if the next page cannot be
    /// fetched from.
    ///
    /// # Errors
    /// Those of [`AddressSpace::translate`], for the page of the first byte.
    pub fn fetch<'b>(&self, linear: u64, bytes: &'b mut [u8; LONGEST]) -> Result<&'b [u8], Error> {
        let mut len = 0;
        for (linear, part) in parts(linear, LONGEST, PAGE) {
            let end = part.end;
            match self.read(linear, bytes.get_mut(part).unwrap_or_default(), Access::Fetch) {
                Err(error) if len == 0 => return Err(error),
                Err(_) => break,
                Ok(()) => len = end,
            }
        }
        Ok(bytes.get(..len).unwrap_or_default())
    }

    /// Writes to `linear`. An aligned unit of 8 bytes, or a part of one, is written at once.
    ///
    /// # Errors
    /// Those of [`AddressSpace::translate`], for the first page that cannot be written. Nothing was
    /// written then, unless other processors interfered: by [`Error::Contended`], or because they
    /// changed the tables meanwhile.
    pub fn write(&self, linear: u64, bytes: &[u8]) -> Result<(), Error> {
        for (linear, _) in parts(linear, bytes.len(), PAGE) {
            ask(self.memory, self.translate(linear, Access::Write)?)?;
        }
        for (linear, part) in parts(linear, bytes.len(), PAGE) {
            let physical = self.translate(linear, Access::Write)?;
            let page = bytes.get(part).unwrap_or_default();
            store(self.memory, physical, page)?;
        }
        Ok(())
    }
}

/// Whether the page of `physical` may be written. Changes nothing.
pub(crate) fn ask(memory: &impl Memory, physical: u64) -> Result<(), Error> {
    let (address, _) = word(physical);
    let asked = memory.compare_exchange(address, 0, 0);
    asked.map(|_| ()).ok_or(Error::Unreachable(address))
}

/// Reads what lies at `physical`, in one page.
pub(crate) fn load(memory: &impl Memory, physical: u64, bytes: &mut [u8]) -> Result<(), Error> {
    for (at, part) in parts(physical, bytes.len(), 8) {
        let (address, skip) = word(at);
        let word = memory.read(address).ok_or(Error::Unreachable(address))?;
        let to = bytes.get_mut(part).unwrap_or_default().iter_mut();
        to.zip(word.to_le_bytes().into_iter().skip(skip)).for_each(|(to, from)| *to = from);
    }
    Ok(())
}

/// Writes to `physical`, in one page.
pub(crate) fn store(memory: &impl Memory, physical: u64, bytes: &[u8]) -> Result<(), Error> {
    for (at, part) in parts(physical, bytes.len(), 8) {
        store_unit(memory, at, bytes.get(part).unwrap_or_default())?;
    }
    Ok(())
}

/// Stores `bytes`, which lie in one aligned unit of 8 bytes.
fn store_unit(memory: &impl Memory, at: u64, bytes: &[u8]) -> Result<(), Error> {
    let (address, skip) = word(at);
    for _ in 0..ATTEMPTS {
        let old = memory.read(address).ok_or(Error::Unreachable(address))?;
        let mut new = old.to_le_bytes();
        new.iter_mut().skip(skip).zip(bytes).for_each(|(to, from)| *to = *from);
        let stored = memory.compare_exchange(address, old, u64::from_le_bytes(new));
        if stored.ok_or(Error::Unreachable(address))? {
            return Ok(());
        }
    }
    Err(Error::Contended(address))
}

/// The aligned unit of 8 bytes that holds `address`, and how many bytes of it lie before.
fn word(address: u64) -> (u64, usize) {
    (address & !7, usize::try_from(address & 7).unwrap_or_default())
}

/// Cuts `len` bytes from `start` at multiples of `granule`: where each part lies, and which of the
/// bytes it has.
fn parts(start: u64, len: usize, granule: u64) -> impl Iterator<Item = (u64, Range<usize>)> {
    let mut done = 0;
    core::iter::from_fn(move || {
        let at = start.wrapping_add(u64::try_from(done).ok()?);
        let room = usize::try_from(granule - at % granule).ok()?;
        let part = done..done + room.min(len - done);
        done = part.end;
        (!part.is_empty()).then_some((at, part))
    })
}
