//! The loader area: the 2 MiB of host RAM that the visor hands over together with the loader.

use ept::addr::{LARGE, Span};

/// Offset of the handoff structure in the area.
pub const HANDOFF: u64 = 0x10_0000;
/// Most bytes that the handoff structure may have.
pub const HANDOFF_MAX: u64 = 0x1_0000;
/// Offset of what is left behind for the host's kernel.
pub const SCRATCH: u64 = 0x12_0000;
/// Bytes for what is left behind for the host's kernel.
pub const SCRATCH_LEN: u64 = 0xd_0000;

/// One past the last byte that a 32-bit kernel entry can name.
pub(crate) const LOW_END: u64 = 1 << 32;

/// Where the loader area lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Area(Span);

impl Area {
    /// The area that begins at `base`, if that is 2 MiB aligned and the area ends below 4 GiB.
    #[must_use]
    pub fn at(base: u64) -> Option<Self> {
        let span = Span::sized(base, LARGE)?;
        (base.is_multiple_of(LARGE) && span.end() <= LOW_END).then_some(Self(span))
    }

    /// All of it.
    #[must_use]
    pub const fn span(self) -> Span {
        self.0
    }

    /// Physical address of the part that is left behind for the host's kernel.
    #[must_use]
    pub const fn scratch(self) -> u64 {
        self.0.start() + SCRATCH
    }
}
