//! How much memory the visor needs, and where it takes it from.

use crate::addr::{HUGE, LARGE, PAGE, Span};
use crate::ept01;
use crate::frames::FrameTable;

/// What the size depends on.
#[derive(Clone, Copy, Debug)]
pub struct Need<'r> {
    /// Bytes of the image in memory, its zeroed part included.
    pub image: u64,
    /// Number of processors.
    pub processors: u32,
    /// Bytes for each processor: stacks, VMCS, state.
    pub per_processor: u64,
    /// All RAM, as whole pages.
    pub ram: &'r [Span],
    /// Number of physical-address bits.
    pub width: u8,
}

/// Bytes per purpose; whole pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// The image.
    pub image: u64,
    /// Stacks, VMCS and state of all processors.
    pub processors: u64,
    /// The frame table's storage.
    pub frame_table: u64,
    /// EPT01.
    pub ept: u64,
    /// The visor's own page tables.
    pub paging: u64,
    /// Protected VMs: their tables, and what is known of each of their pages.
    pub protected: u64,
    /// Bitmaps and other single pages.
    pub spare: u64,
}

/// For bitmaps, low pages saved while processors start, and the like.
const SPARE: u64 = 64 * PAGE;

/// Bytes of RAM for each that protected VMs have. So up to half of all RAM can be private memory, each
/// page with an entry of 8 bytes in a table and a record of 32. The frame table and EPT01 take
/// 1/256 of RAM, and the whole reservation has to stay below 1% and 16 MiB.
const PER_PROTECTED: u64 = 192;

impl Size {
    /// The whole reservation: the sum, in whole 2 MiB.
    #[must_use]
    pub const fn total(&self) -> u64 {
        let host = self.frame_table + self.ept + self.paging;
        let sum = self.image + self.processors + host + self.protected + self.spare;
        sum.next_multiple_of(LARGE)
    }
}

/// What a visor with this `need` takes; the same computation for every machine.
#[must_use]
pub fn size(need: &Need<'_>) -> Size {
    let pages = |bytes: u64| bytes.next_multiple_of(PAGE);
    Size {
        image: pages(need.image),
        processors: u64::from(need.processors) * pages(need.per_processor),
        frame_table: pages(FrameTable::entries(need.ram) * 8),
        ept: ept01::tables_needed(ept01::end(need.width), need.ram) * PAGE,
        paging: own_tables(need) * PAGE,
        protected: pages(need.ram.iter().map(|ram| ram.len()).sum::<u64>() / PER_PROTECTED),
        spare: SPARE,
    }
}

/// Upper bound of the page tables for the image in 4 KiB pages, and for the first 4 GiB and all
/// RAM in 2 MiB pages.
fn own_tables(need: &Need<'_>) -> u64 {
    // Wherever it begins, a span reaches into at most one more table than its length fills.
    let tables = |bytes: u64, each: u64| bytes.div_ceil(each) + 1;
    let root = 1;
    let image = tables(need.image, LARGE) + 2 + 2;
    let low = 4 + 1;
    let ram = |span: &Span| tables(span.len(), HUGE) + tables(span.len(), 512 * HUGE);
    root + image + low + need.ram.iter().map(ram).sum::<u64>()
}

/// The highest place in `ram` for `total` bytes, aligned to 2 MiB and clear of every span in
/// `avoid`; `None` when there is none.
#[must_use]
pub fn place(total: u64, ram: &[Span], avoid: &[Span]) -> Option<Span> {
    ram.iter().filter_map(|span| place_in(total, *span, avoid)).max_by_key(|span| span.start())
}

fn place_in(total: u64, ram: Span, avoid: &[Span]) -> Option<Span> {
    let mut end = ram.end();
    loop {
        let start = end.checked_sub(total)?;
        let start = start - start % LARGE;
        let candidate = Span::sized(start, total).filter(|span| ram.covers(*span))?;
        let Some(obstacle) = avoid.iter().find(|span| span.overlaps(candidate)) else {
            return Some(candidate);
        };
        end = obstacle.start();
    }
}
