//! The visor's own address space, built once: the image at its linked address with exact rights,
//! and physical memory at `DIRECT`, never executable.
#![expect(unsafe_code, reason = "page tables and the linker's symbols")]

use ept::addr::{Frame, HUGE, LARGE, Span};
use ept::list::List;
use x86_64::registers::control::Cr3;
use x86_64::structures::paging::{
    FrameAllocator, Mapper, OffsetPageTable, Page, PageSize, PageTable, PageTableFlags, PhysFrame,
    Size1GiB, Size2MiB, Size4KiB,
};
use x86_64::{PhysAddr, VirtAddr};

use crate::cpu::cpuid;
use crate::memory::{self, DIRECT, Pool};

unsafe extern "C" {
    static image_start: u8;
    static text_end: u8;
    static rodata_end: u8;
    static image_end: u8;
    static boot_end_high: u8;
    fn move_image(to: u64, from: u64, len: u64, tables: u64);
}

/// Linear addresses at which the image and its parts begin and end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Image {
    start: u64,
    text_end: u64,
    rodata_end: u64,
    end: u64,
}

impl Image {
    /// This image.
    pub(crate) fn this() -> Self {
        let address = |symbol: *const u8| u64::try_from(symbol.addr()).unwrap_or(0);
        Self {
            start: address(&raw const image_start),
            text_end: address(&raw const text_end),
            rodata_end: address(&raw const rodata_end),
            end: address(&raw const image_end),
        }
    }

    /// Bytes from start to end.
    pub(crate) const fn len(&self) -> u64 {
        self.end - self.start
    }

    /// Where its variables begin and end.
    pub(crate) const fn variables(&self) -> (u64, u64) {
        (self.rodata_end, self.end)
    }

    fn rights(&self, address: u64) -> PageTableFlags {
        let present = PageTableFlags::PRESENT | PageTableFlags::GLOBAL;
        if address < self.text_end {
            present
        } else if address < self.rodata_end {
            present | PageTableFlags::NO_EXECUTE
        } else {
            present | PageTableFlags::NO_EXECUTE | PageTableFlags::WRITABLE
        }
    }
}

struct Frames<'p>(&'p mut Pool);

// SAFETY: the pool gives each frame once.
unsafe impl FrameAllocator<Size4KiB> for Frames<'_> {
    fn allocate_frame(&mut self) -> Option<PhysFrame> {
        let frame = self.0.frame()?;
        Some(PhysFrame::containing_address(PhysAddr::new(frame.base())))
    }
}

/// Builds the tables in frames of `pool`: the image at `home`, all of `ram` and the first 4 GiB at
/// `DIRECT`. `None` when the pool is empty.
pub(crate) fn build(pool: &mut Pool, image: Image, home: u64, ram: &[Span]) -> Option<Frame> {
    let root = pool.frame()?;
    let mut table = memory::pointer::<PageTable>(root)?;
    // SAFETY: the frame is zeroed, mapped, and this function's alone until it is loaded.
    let table = unsafe { table.as_mut() };
    // SAFETY: `DIRECT` maps the pool's frames, from which all tables come.
    let mut mapper = unsafe { OffsetPageTable::new(table, VirtAddr::new(DIRECT)) };
    let mut frames = Frames(pool);
    for offset in (0..image.len()).step_by(4096) {
        let address = image.start + offset;
        map::<Size4KiB>(&mut mapper, &mut frames, address, home + offset, image.rights(address))?;
    }
    let data = PageTableFlags::PRESENT
        | PageTableFlags::WRITABLE
        | PageTableFlags::NO_EXECUTE
        | PageTableFlags::GLOBAL;
    let low = 4 * HUGE;
    for address in (0..low).step_by(Size2MiB::SIZE.try_into().ok()?) {
        map::<Size2MiB>(&mut mapper, &mut frames, DIRECT + address, address, data)?;
    }
    let mut done = low;
    for span in ram {
        let span = span.grow_to(HUGE);
        let mut address = span.start().max(done);
        while address < span.end() {
            map::<Size1GiB>(&mut mapper, &mut frames, DIRECT + address, address, data)?;
            address += HUGE;
        }
        done = done.max(address);
    }
    Some(root)
}

fn map<S: PageSize>(
    mapper: &mut OffsetPageTable<'_>,
    frames: &mut Frames<'_>,
    linear: u64,
    physical: u64,
    rights: PageTableFlags,
) -> Option<()>
where
    for<'t> OffsetPageTable<'t>: Mapper<S>,
{
    let page = Page::<S>::containing_address(VirtAddr::new(linear));
    let frame = PhysFrame::<S>::containing_address(PhysAddr::new(physical));
    // SAFETY: the tables are not in use yet; they give the visor its image and physical memory,
    // each address once.
    let flush = unsafe { mapper.map_to(page, frame, rights, frames) }.ok()?;
    flush.ignore();
    Some(())
}

/// Extends the boot-time tables from 4 to 512 GiB, so that the reservation can be anywhere in them;
/// `false` if the processor has no 1 GiB pages.
pub(crate) fn map_more() -> bool {
    const HUGE_PAGES: u32 = 1 << 26;
    const HUGE_LEAF: u64 = 0x83;
    if cpuid(0x8000_0001, 0).edx & HUGE_PAGES == 0 {
        return false;
    }
    let root = Cr3::read().0.start_address().as_u64();
    let entry = memory::read_u64(root + 256 * 8);
    let table = Frame::containing(entry);
    for (index, address) in (0..512).zip((0..).step_by(1 << 30)).skip(4) {
        memory::write_entry(table, index, address | HUGE_LEAF);
    }
    true
}

/// The pieces of `ram` that those tables reach, in the order given.
pub(crate) fn reachable<const N: usize>(ram: &List<Span, N>) -> List<Span, N> {
    let all = Span::sized(0, 512 << 30).unwrap_or_default();
    let mut pieces = *ram;
    for span in pieces.iter_mut() {
        *span = span.intersect(all);
    }
    pieces
}

/// Copies the running image to physical `home` and goes on there, under the tables at `root`.
///
/// # Safety
/// `root` was built by [`build`] for this image and `home`, and `home` has room for it.
pub(crate) unsafe fn relocate(image: Image, home: u64, root: Frame) {
    // SAFETY: the copy is the same at every address of the image, the stack included, so going on
    // in it is going on as if nothing had happened; `DIRECT` is mapped in both.
    unsafe { move_image(memory::linear(home), image.start, image.len(), root.base()) }
}

/// Where a boot loader put the image, its boot-time tables included.
pub(crate) fn load_span() -> Span {
    /// Linked and load address of the first byte (`visor.ld`).
    const LOAD: u64 = LARGE;
    const HIGH: u64 = 0xffff_ffff_8000_0000;
    let end = u64::try_from((&raw const boot_end_high).addr()).unwrap_or(0);
    Span::new(LOAD, end.wrapping_sub(HIGH)).unwrap_or_default()
}
