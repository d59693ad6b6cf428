//! The visor's view of physical memory: everything it may touch appears at `DIRECT + address`.
#![expect(unsafe_code, reason = "physical memory has no owner that the compiler knows")]

use core::ptr::{NonNull, with_exposed_provenance, with_exposed_provenance_mut};
use core::sync::atomic::{AtomicU64, Ordering};

use ept::addr::{Frame, PAGE, Span};
use spin::Mutex;

use crate::cpu::size;

/// Linear address of physical address 0.
pub(crate) const DIRECT: u64 = 0xffff_8000_0000_0000;
/// What the boot-time tables map from the start, in bytes: everything that boot loaders and firmware
/// leave for the visor to read.
const BOOT_MAPPED: u64 = 4 << 30;

/// Where physical `address` appears.
pub(crate) const fn linear(address: u64) -> u64 {
    DIRECT + address
}

/// Memory as the boot loader and the firmware left it. Only lives until the host starts: later
/// reads go through `crate::tables`.
#[derive(Debug)]
pub(crate) struct BootMemory;

impl boot::memory::Memory for BootMemory {
    fn bytes(&self, span: Span) -> Option<&[u8]> {
        if span.is_empty() {
            return Some(&[]);
        }
        if span.end() > BOOT_MAPPED {
            return None;
        }
        let start = with_exposed_provenance::<u8>(size(linear(span.start())));
        // SAFETY:
        // 1. The boot tables map the first 4 GiB; reading memory or device space that a table of
        //    firmware or boot loader names has no effect on the visor.
        // 2. No processor but this one runs, and while such a slice lives the visor writes nothing but its
        //    own memory and the loader's area. Where it writes a table of firmware's (`iommu`), it has
        //    given up all slices of such.
        Some(unsafe { core::slice::from_raw_parts(start, size(span.len())) })
    }
}

/// Mutable bytes of `span`.
///
/// # Safety
/// `span` is mapped, belongs to the visor or to nobody, and no other reference to it lives.
pub(crate) unsafe fn bytes_mut(span: Span) -> &'static mut [u8] {
    let start = with_exposed_provenance_mut::<u8>(size(linear(span.start())));
    // SAFETY: the caller vouches for mapping and uniqueness.
    unsafe { core::slice::from_raw_parts_mut(start, size(span.len())) }
}

/// A pointer to what lies in the visor's own `frame` and those that follow it.
pub(crate) fn pointer<T>(frame: Frame) -> Option<NonNull<T>> {
    NonNull::new(with_exposed_provenance_mut(size(linear(frame.base()))))
}

/// Reads the aligned 8 bytes at `address`: the caller has checked that they are RAM.
pub(crate) fn read_u64(address: u64) -> u64 {
    read(address)
}

/// Reads word `index` of the page that appears at `linear`.
pub(crate) fn read_word(linear: u64, index: usize) -> u64 {
    let page = with_exposed_provenance::<u64>(size(linear));
    // SAFETY: an index below 512 stays within the page.
    let cell = unsafe { page.add(index & 511) };
    // SAFETY: callers pass pages of the host's RAM or of the visor's; others may write at the same
    // time, hence volatile: one access, one value.
    unsafe { cell.read_volatile() }
}

/// Writes word `index` of the page that appears at `linear`.
pub(crate) fn write_word(linear: u64, index: usize, value: u64) {
    let page = with_exposed_provenance_mut::<u64>(size(linear));
    // SAFETY: an index below 512 stays within the page.
    let cell = unsafe { page.add(index & 511) };
    // SAFETY: callers pass pages of the host's RAM or of the visor's that no reference names;
    // processors that walk tables there at the same time see the old or the new value.
    unsafe { cell.write_volatile(value) }
}

/// Writes entry `index` of the page table in the visor's `frame`.
pub(crate) fn write_entry(frame: Frame, index: usize, value: u64) {
    write_word(linear(frame.base()), index, value);
}

/// Reads the byte at `address`: the caller has checked that it is the host's RAM.
pub(crate) fn read_u8(address: u64) -> u8 {
    read(address)
}

/// How many bytes an access at `address` has, as a power of two: as many as are aligned, and within the `left`
/// that follow.
fn width(address: u64, left: usize) -> u32 {
    address.trailing_zeros().min(left.checked_ilog2().unwrap_or(0)).min(3)
}

/// Reads what is at `address`: the caller has checked that it is RAM, or the visor's register, and aligned.
pub(crate) fn read<T>(address: u64) -> T {
    let cell = with_exposed_provenance::<T>(size(linear(address)));
    // SAFETY: all RAM and what is below 4 GiB is mapped, the address is aligned for an integer; other
    // processors may write at the same time, hence volatile: one access, one value.
    unsafe { cell.read_volatile() }
}

/// Writes `value` to `address`: the caller has checked that it is RAM, not the visor's, or the visor's
/// register, and aligned.
pub(crate) fn write<T>(address: u64, value: T) {
    let cell = with_exposed_provenance_mut::<T>(size(linear(address)));
    // SAFETY: as above.
    unsafe { cell.write_volatile(value) }
}

/// Reads what lies from `address` on: the caller has checked that it is all RAM, or below 4 GiB.
pub(crate) fn read_bytes(mut address: u64, mut into: &mut [u8]) {
    while !into.is_empty() {
        let width = width(address, into.len());
        let value = match width {
            0 => read::<u8>(address).into(),
            1 => read::<u16>(address).into(),
            2 => read::<u32>(address).into(),
            _ => read::<u64>(address),
        };
        let (piece, rest) = into.split_at_mut(1 << width);
        piece.iter_mut().zip(value.to_le_bytes()).for_each(|(to, byte)| *to = byte);
        (address, into) = (address + (1 << width), rest);
    }
}

/// Writes what lies from `address` on: the caller has checked that it is all RAM, and nobody else's.
pub(crate) fn write_bytes(mut address: u64, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let width = width(address, bytes.len());
        let (piece, rest) = bytes.split_at(1 << width);
        let value = piece.iter().rev().fold(0_u64, |value, byte| value << 8 | u64::from(*byte));
        let [a, b, c, d, ..] = value.to_le_bytes();
        match width {
            0 => write(address, a),
            1 => write(address, u16::from_le_bytes([a, b])),
            2 => write(address, u32::from_le_bytes([a, b, c, d])),
            _ => write(address, value),
        }
        (address, bytes) = (address + (1 << width), rest);
    }
}

/// Puts `new` in the place of `old` at the aligned `address`, which the caller has checked to be the
/// host's RAM, in one locked operation; returns what was there.
pub(crate) fn compare_exchange(address: u64, old: u64, new: u64) -> u64 {
    let cell = with_exposed_provenance_mut::<u64>(size(linear(address)));
    // SAFETY: all RAM is mapped and the address is aligned; the host and its processors access the
    // same memory, atomically or not, and the visor relies on no value there.
    let cell = unsafe { AtomicU64::from_ptr(cell) };
    match cell.compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire) {
        Ok(found) | Err(found) => found,
    }
}

/// Entry `index` of the table in the visor's `frame`.
pub(crate) fn read_entry(frame: Frame, index: usize) -> u64 {
    read_word(linear(frame.base()), index)
}

/// The bytes of the visor's `frame`, which nothing writes any more.
pub(crate) fn page_bytes(frame: Frame) -> &'static [u8; 4096] {
    let start = with_exposed_provenance::<[u8; 4096]>(size(linear(frame.base())));
    // SAFETY: the frame is the visor's and filled; shared references to it are all there are.
    unsafe { &*start }
}

/// The bytes of `frame`.
///
/// # Safety
/// The frame is RAM that nobody but the visor reaches, and no other reference to it lives.
pub(crate) unsafe fn page_mut<'a>(frame: Frame) -> &'a mut [u8; 4096] {
    let start = with_exposed_provenance_mut::<[u8; 4096]>(size(linear(frame.base())));
    // SAFETY: all RAM is mapped; the caller vouches for the rest.
    unsafe { &mut *start }
}

/// Tables in frames that their owner was given before.
#[derive(Debug)]
pub(crate) struct Tables;

impl ept::ept01::TableMem for Tables {
    fn allocate(&mut self) -> Option<Frame> {
        None
    }
    fn free(&mut self, _: Frame) {}
    fn read(&self, table: Frame, index: usize) -> u64 {
        read_entry(table, index)
    }
    fn write(&mut self, table: Frame, index: usize, raw: u64) {
        write_entry(table, index, raw);
    }
}

/// Frames of the reservation that nobody has.
#[derive(Debug)]
pub(crate) struct Pool {
    rest: Span,
    /// The first of those that were given and came back; each begins with the address of the next.
    free: Option<Frame>,
    /// Bytes of those.
    given_back: u64,
    /// Bytes that protected VMs must leave: EPT01 may need them.
    kept: u64,
}

/// Ends the list of frames that came back: no frame begins here.
const LAST: u64 = u64::MAX;

/// The pool of the running visor.
pub(crate) static POOL: Mutex<Pool> = Mutex::new(Pool::empty());

impl Pool {
    const fn empty() -> Self {
        Self::of(Span::EMPTY)
    }

    /// A pool of all of `span`.
    pub(crate) const fn of(span: Span) -> Self {
        Self { rest: span, free: None, given_back: 0, kept: 0 }
    }

    /// What was not given yet.
    pub(crate) const fn rest(&self) -> Span {
        self.rest
    }

    /// Bytes that nobody has.
    pub(crate) const fn left(&self) -> u64 {
        self.rest.len() + self.given_back
    }

    /// Has protected VMs leave so many bytes.
    pub(crate) const fn keep(&mut self, bytes: u64) {
        self.kept = bytes;
    }

    /// Whether protected VMs may have more.
    pub(crate) const fn may_spend(&self) -> bool {
        self.left() > self.kept
    }

    /// Takes `bytes`, rounded up to whole frames, zeroed.
    pub(crate) fn take(&mut self, bytes: u64) -> Option<Span> {
        let len = bytes.checked_next_multiple_of(PAGE)?;
        let piece = Span::sized(self.rest.start(), len).filter(|p| self.rest.covers(*p))?;
        self.rest = Span::new(piece.end(), self.rest.end())?;
        // SAFETY: the piece is the visor's, was never given before and is not given again.
        unsafe { bytes_mut(piece) }.fill(0);
        Some(piece)
    }

    /// Takes one zeroed frame.
    pub(crate) fn frame(&mut self) -> Option<Frame> {
        let Some(frame) = self.free else {
            return Frame::at(self.take(PAGE)?.start());
        };
        self.free = Frame::at(read_u64(frame.base()));
        self.given_back -= PAGE;
        for index in 0..512 {
            write_entry(frame, index, 0);
        }
        Some(frame)
    }
}

impl ept::ept01::TableMem for Pool {
    fn allocate(&mut self) -> Option<Frame> {
        self.frame()
    }
    fn free(&mut self, frame: Frame) {
        write_entry(frame, 0, self.free.map_or(LAST, Frame::base));
        self.free = Some(frame);
        self.given_back += PAGE;
    }
    fn read(&self, table: Frame, index: usize) -> u64 {
        read_entry(table, index)
    }
    fn write(&mut self, table: Frame, index: usize, raw: u64) {
        write_entry(table, index, raw);
    }
}
