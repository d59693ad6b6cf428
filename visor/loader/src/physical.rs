//! The one door to physical memory outside the loader itself.

use core::slice;

use ept::addr::Span;
use host_loader::area::{HANDOFF, HANDOFF_MAX, SCRATCH, SCRATCH_LEN};
use host_loader::{Area, Memory};

use crate::start::WINDOW;

/// One past what the window shows.
const END: u64 = 1 << 32;

/// Physical memory below 4 GiB, without the loader area.
pub(crate) struct Physical(Area);

/// The parts of the loader area that are not the loader.
pub(crate) struct Tables {
    pub(crate) handoff: &'static [u8],
    pub(crate) scratch: &'static mut [u8],
}

impl Physical {
    /// All physical memory, but that of `area` split into what it is for.
    ///
    /// # Safety
    /// Called once, with the low 4 GiB mapped at [`WINDOW`] and the loader running in `area`.
    pub(crate) unsafe fn take(area: Area) -> (Self, Tables) {
        let base = area.span().start();
        // SAFETY:
        // 1. The caller mapped it; the loader ends before it (`loader.ld` asserts that).
        // 2. Nobody writes to it: `admit` refuses the area.
        let handoff = unsafe { slice::from_raw_parts(window(base + HANDOFF), index(HANDOFF_MAX)) };
        let scratch = window(base + SCRATCH);
        // SAFETY:
        // 1. The caller mapped it; it shares nothing with the loader and the handoff.
        // 2. This is the only reference to it: the caller calls once, `admit` refuses the area.
        let scratch = unsafe { slice::from_raw_parts_mut(scratch, index(SCRATCH_LEN)) };
        (Self(area), Tables { handoff, scratch })
    }

    /// The bytes of `span`.
    pub(crate) fn bytes(&self, span: Span) -> &[u8] {
        let start = self.admit(span.start(), span.len());
        // SAFETY:
        // 1. `admit`: all of it is mapped and none of it is memory of this program's.
        // 2. It changes only by `Memory`'s methods, which borrow `self` mutably.
        unsafe { slice::from_raw_parts(start, index(span.len())) }
    }

    /// Where the `len` bytes at `at` are seen; stops the loader at what it must not touch.
    fn admit(&self, at: u64, len: u64) -> *mut u8 {
        let area = self.0.span();
        let allowed = |span: Span| span.end() <= END && !span.overlaps(area);
        let admitted = Span::sized(at, len).is_some_and(allowed);
        assert!(admitted, "memory at {at:#x} is out of bounds");
        window(at)
    }
}

impl Memory for Physical {
    fn copy(&mut self, from: Span, to: u64) {
        let target = self.admit(to, from.len());
        let scratch = Span::sized(self.0.scratch(), SCRATCH_LEN).unwrap_or_default();
        let source = if scratch.covers(from) {
            window(from.start())
        } else {
            self.admit(from.start(), from.len())
        };
        // SAFETY:
        // 1. `admit`: both are mapped and neither is memory of this program's; or the source is the
        //    scratch, which nobody writes while a plan is executed.
        // 2. No slice of it is borrowed while `self` is borrowed mutably.
        // 3. `copy` allows the two to overlap.
        unsafe { core::ptr::copy(source, target, index(from.len())) }
    }

    fn zero(&mut self, span: Span) {
        let start = self.admit(span.start(), span.len());
        // SAFETY:
        // 1. `admit`: it is mapped and not memory of this program's.
        // 2. No slice of it is borrowed while `self` is borrowed mutably.
        unsafe { core::ptr::write_bytes(start, 0, index(span.len())) }
    }
}

/// Where physical address `at` is seen.
fn window(at: u64) -> *mut u8 {
    core::ptr::with_exposed_provenance_mut(index(WINDOW + at))
}

/// A length or address below 4 GiB as the machine's word.
fn index(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}
