//! Memory that guests are given.

use std::ops::Range;
use std::os::fd::AsRawFd;

pub(crate) const PAGE: usize = 4096;
pub(crate) const LARGE: usize = 2 << 20;

/// How memory is obtained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backing {
    /// Pages of 4 KiB.
    Small,
    /// As [`Backing::Small`]; processes that fork from this one share them.
    Shared,
    /// Pages of 2 MiB from the kernel's pool, which is made as large as it must be.
    Large,
}

/// A part of a [`Memory`] by its address in this program, for KVM.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part {
    pub(crate) host: u64,
    pub(crate) size: u64,
}

/// Memory, anonymous or not, which guests and this program share.
#[derive(Debug)]
pub(crate) struct Memory {
    base: *mut u8,
    size: usize,
}

// SAFETY: an address range; whoever uses it from several threads does so by volatile accesses.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// `size` bytes of zeros.
    pub(crate) fn new(size: usize, backing: Backing) -> Result<Self, String> {
        let kind = match backing {
            Backing::Small => libc::MAP_PRIVATE,
            Backing::Shared => libc::MAP_SHARED,
            Backing::Large => {
                let pages = (size / LARGE).to_string();
                std::fs::write("/proc/sys/vm/nr_hugepages", pages).map_err(|e| e.to_string())?;
                libc::MAP_PRIVATE | libc::MAP_HUGETLB
            }
        };
        let flags = kind | libc::MAP_ANONYMOUS;
        let memory = Self { base: map(Place::anonymous(std::ptr::null_mut()), size, flags)?, size };
        if backing != Backing::Large {
            memory.advise(0..size, libc::MADV_NOHUGEPAGE)?;
        }
        Ok(memory)
    }

    /// `size` bytes of zeros in pages of 4 KiB, from an address on where a page of 2 MiB can begin.
    pub(crate) fn aligned(size: usize) -> Result<Self, String> {
        let mut memory = Self::new(size + LARGE, Backing::Small)?;
        let before = memory.base.align_offset(LARGE);
        let end = memory.place(before + size, LARGE - before);
        for (at, length) in [(memory.base, before), (end, LARGE - before)] {
            // SAFETY: the ends of this mapping, to which no reference exists.
            let _ = unsafe { libc::munmap(at.cast(), length) };
        }
        memory.base = memory.place(before, size);
        memory.size = size;
        Ok(memory)
    }

    /// `size` bytes of physical memory from `address` on, by `/dev/mem`.
    pub(crate) fn physical(address: u64, size: usize) -> Result<Self, String> {
        let file = std::fs::OpenOptions::new().read(true).write(true).open("/dev/mem");
        let file = file.map_err(|why| format!("/dev/mem: {why}"))?;
        let offset = i64::try_from(address).map_err(|why| why.to_string())?;
        let place = Place { at: std::ptr::null_mut(), file: file.as_raw_fd(), offset };
        Ok(Self { base: map(place, size, libc::MAP_SHARED)?, size })
    }

    /// All of it.
    pub(crate) fn all(&self) -> Part {
        self.part(0..self.size)
    }

    /// The bytes at these offsets.
    pub(crate) fn part(&self, range: Range<usize>) -> Part {
        Part { host: self.place(range.start, range.len()) as u64, size: range.len() as u64 }
    }

    /// Its size in bytes.
    pub(crate) const fn size(&self) -> usize {
        self.size
    }

    /// Replaces `range` by fresh zeros at the same place: what the guest has mapped there goes away.
    pub(crate) fn renew(&self, range: Range<usize>) -> Result<(), String> {
        let at = self.place(range.start, range.len());
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
        let again = map(Place::anonymous(at.cast()), range.len(), flags)?;
        debug_assert_eq!(again, at);
        Ok(())
    }

    /// `madvise` on `range`.
    pub(crate) fn advise(&self, range: Range<usize>, advice: i32) -> Result<(), String> {
        let at = self.place(range.start, range.len());
        // SAFETY: the range lies in this mapping, to which no reference exists.
        let result = unsafe { libc::madvise(at.cast(), range.len(), advice) };
        crate::kvm::checked(result).map(drop).map_err(|why| format!("madvise: {why}"))
    }

    /// Copies `bytes` to offset `at`.
    pub(crate) fn write(&self, at: usize, bytes: &[u8]) {
        let to = self.place(at, bytes.len());
        // SAFETY: `place` checked the range; `bytes` is this program's own and not in it.
        unsafe { to.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    }

    /// `length` bytes from offset `at`.
    pub(crate) fn read(&self, at: usize, length: usize) -> Vec<u8> {
        let from = self.place(at, length);
        let mut bytes = vec![0; length];
        // SAFETY: `place` checked the range, and the buffer is as long.
        unsafe { bytes.as_mut_ptr().copy_from_nonoverlapping(from, length) };
        bytes
    }

    /// The u64 at offset `at`, which guests may be writing.
    pub(crate) fn word(&self, at: usize) -> u64 {
        let from = self.place(at, 8).cast::<u64>();
        // SAFETY: inside, and aligned, as the callers' constants are.
        unsafe { from.read_volatile() }
    }

    /// Stores a u64 at offset `at`, which guests may be reading.
    pub(crate) fn set_word(&self, at: usize, value: u64) {
        let to = self.place(at, 8).cast::<u64>();
        // SAFETY: as for `word`.
        unsafe { to.write_volatile(value) };
    }

    fn place(&self, at: usize, length: usize) -> *mut u8 {
        assert!(at <= self.size && length <= self.size - at, "{at:#x} is outside of the memory");
        // SAFETY: inside the mapping, as just checked.
        unsafe { self.base.add(at) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: this value owned the mapping.
        let _ = unsafe { libc::munmap(self.base.cast(), self.size) };
    }
}

/// Where memory is mapped, and what.
struct Place {
    at: *mut libc::c_void,
    file: i32,
    offset: i64,
}

impl Place {
    const fn anonymous(at: *mut libc::c_void) -> Self {
        Self { at, file: -1, offset: 0 }
    }
}

fn map(place: Place, size: usize, flags: i32) -> Result<*mut u8, String> {
    let rights = libc::PROT_READ | libc::PROT_WRITE;
    let flags = flags | libc::MAP_NORESERVE;
    let Place { at, file, offset } = place;
    // SAFETY: a new mapping where the kernel likes, or over one that the caller owns.
    let base = unsafe { libc::mmap(at, size, rights, flags, file, offset) };
    if base == libc::MAP_FAILED {
        return Err(format!("mmap of {size:#x}: {}", std::io::Error::last_os_error()));
    }
    Ok(base.cast())
}
