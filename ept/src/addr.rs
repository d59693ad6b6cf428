//! Host-physical addresses, frames and ranges, and the frames of a VM.
//!
//! Every number that names physical memory is one of these types, so that a guest's number can
//! never be used as the machine's by accident.

use core::fmt;

/// Bytes in a page frame.
pub const PAGE: u64 = 4096;
/// Bytes in a large (2 MiB) page.
pub const LARGE: u64 = 512 * PAGE;
/// Bytes in a huge (1 GiB) page.
pub const HUGE: u64 = 512 * LARGE;
/// One past the highest physical address any x86-64 processor can name (SDM vol. 1, 3.3.1: 52 bits).
pub const PHYSICAL_END: u64 = 1 << 52;

/// A page frame of the machine: 4 KiB of host-physical memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Frame(u64);

impl Frame {
    /// The frame that begins at byte address `base`, if that is aligned and within 52 bits.
    #[must_use]
    pub const fn at(base: u64) -> Option<Self> {
        if base.is_multiple_of(PAGE) && base < PHYSICAL_END { Some(Self(base)) } else { None }
    }

    /// The frame that holds byte address `address`; bits above 51 are dropped.
    #[must_use]
    pub const fn containing(address: u64) -> Self {
        Self(address & (PHYSICAL_END - 1) & !(PAGE - 1))
    }

    /// Byte address of the first byte.
    #[must_use]
    pub const fn base(self) -> u64 {
        self.0
    }
}

/// One past the highest guest-physical address that four levels of tables translate.
pub const GUEST_END: u64 = 1 << 48;

/// A page frame of a VM: 4 KiB of guest-physical memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct GuestFrame(u64);

impl GuestFrame {
    /// The frame that begins at guest-physical byte address `base`, if that is aligned and below
    /// [`GUEST_END`].
    #[must_use]
    pub const fn at(base: u64) -> Option<Self> {
        if base.is_multiple_of(PAGE) && base < GUEST_END { Some(Self(base)) } else { None }
    }

    /// The frame that holds guest-physical byte address `address`; bits above 47 are dropped.
    #[must_use]
    pub const fn containing(address: u64) -> Self {
        Self(address & (GUEST_END - 1) & !(PAGE - 1))
    }

    /// Guest-physical byte address of the first byte.
    #[must_use]
    pub const fn base(self) -> u64 {
        self.0
    }

    /// How many frames come before it: below 2^36.
    #[must_use]
    pub const fn number(self) -> u64 {
        self.0 / PAGE
    }
}

/// A half-open range of host-physical byte addresses: `start..end`, never inverted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Span {
    start: u64,
    end: u64,
}

impl Span {
    /// The span of no bytes, at address 0.
    pub const EMPTY: Self = Self { start: 0, end: 0 };

    /// The span `start..end`, if it is not inverted and ends within 52 bits.
    #[must_use]
    pub const fn new(start: u64, end: u64) -> Option<Self> {
        if start <= end && end <= PHYSICAL_END { Some(Self { start, end }) } else { None }
    }

    /// The span of `len` bytes from `start`, if it ends within 52 bits.
    #[must_use]
    pub const fn sized(start: u64, len: u64) -> Option<Self> {
        match start.checked_add(len) {
            Some(end) => Self::new(start, end),
            None => None,
        }
    }

    /// First byte address.
    #[must_use]
    pub const fn start(self) -> u64 {
        self.start
    }

    /// One past the last byte address.
    #[must_use]
    pub const fn end(self) -> u64 {
        self.end
    }

    /// Length in bytes.
    #[must_use]
    pub const fn len(self) -> u64 {
        self.end - self.start
    }

    /// Whether it holds no byte.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.start == self.end
    }

    /// Whether `address` lies within.
    #[must_use]
    pub const fn contains(self, address: u64) -> bool {
        self.start <= address && address < self.end
    }

    /// Whether all of `other` lies within.
    #[must_use]
    pub const fn covers(self, other: Self) -> bool {
        self.start <= other.start && other.end <= self.end
    }

    /// Whether the two share a byte.
    #[must_use]
    pub const fn overlaps(self, other: Self) -> bool {
        self.start < other.end && other.start < self.end && !self.is_empty() && !other.is_empty()
    }

    /// What the two share; empty when they share nothing.
    #[must_use]
    pub fn intersect(self, other: Self) -> Self {
        let start = self.start.max(other.start);
        let end = self.end.min(other.end);
        if start < end { Self { start, end } } else { Self::default() }
    }

    /// The largest span of whole `granule`s within; `granule` is a power of two.
    #[must_use]
    pub fn shrink_to(self, granule: u64) -> Self {
        let start = self.start.next_multiple_of(granule);
        let end = self.end - self.end % granule;
        if start < end { Self { start, end } } else { Self::default() }
    }

    /// The smallest span of whole `granule`s around; `granule` is a power of two of at most 1 GiB.
    #[must_use]
    pub fn grow_to(self, granule: u64) -> Self {
        Self { start: self.start - self.start % granule, end: self.end.next_multiple_of(granule) }
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..{:#x}", self.start, self.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn span() -> impl Strategy<Value = Span> {
        let place = prop_oneof![0..8 * PAGE, 0..=PHYSICAL_END];
        (place.clone(), place).prop_map(|(a, b)| Span::new(a.min(b), a.max(b)).unwrap())
    }

    proptest! {
        #[test]
        fn spans_share_exactly_the_bytes_that_lie_in_both(
            a in span(), b in span(), near in 0..8 * PAGE, far in any::<u64>(),
        ) {
            let both = a.intersect(b);
            for byte in [near, far, a.start(), b.start()] {
                prop_assert_eq!(both.contains(byte), a.contains(byte) && b.contains(byte));
            }
            prop_assert_eq!(a.overlaps(b), !both.is_empty());
            if !b.is_empty() {
                prop_assert_eq!(a.covers(b), both == b);
            }
        }

        #[test]
        fn rounding_moves_each_end_by_less_than_a_granule(a in span(), bits in 12..=30_u32) {
            let granule = 1 << bits;
            let grown = a.grow_to(granule);
            prop_assert!(grown.covers(a));
            prop_assert!(a.start() - grown.start() < granule);
            prop_assert!(grown.end() - a.end() < granule);
            let shrunk = a.shrink_to(granule);
            prop_assert!(shrunk.is_empty() || a.covers(shrunk));
            prop_assert!(!shrunk.is_empty() || a.len() < 2 * granule);
            for end in [grown.start(), grown.end(), shrunk.start(), shrunk.end()] {
                prop_assert_eq!(end % granule, 0);
            }
        }

        #[test]
        fn a_span_is_made_only_in_order_and_within_52_bits(start in any::<u64>(), end in any::<u64>()) {
            let (start, end) = (start >> 11, end >> 11);
            prop_assert_eq!(Span::new(start, end).is_some(), start <= end && end <= PHYSICAL_END);
        }
    }

    #[test]
    fn a_span_that_wraps_around_is_refused() {
        assert_eq!(Span::sized(u64::MAX, 2), None);
        assert_eq!(Span::sized(PHYSICAL_END, 1), None);
        assert_eq!(Span::sized(PAGE, PAGE), Span::new(PAGE, 2 * PAGE));
    }

    #[test]
    fn a_frame_is_aligned_and_within_52_bits() {
        assert_eq!(Frame::at(PAGE + 1), None);
        assert_eq!(Frame::at(PHYSICAL_END), None);
        let last = PHYSICAL_END - PAGE;
        assert_eq!(Frame::at(last).map(Frame::base), Some(last));
        assert_eq!(Frame::containing(u64::MAX).base(), last);
        assert_eq!(Frame::containing(PAGE + 5).base(), PAGE);
    }

    #[test]
    fn a_frame_of_a_vm_is_aligned_and_within_48_bits() {
        assert_eq!(GuestFrame::at(PAGE + 1), None);
        assert_eq!(GuestFrame::at(GUEST_END), None);
        let last = GUEST_END - PAGE;
        assert_eq!(GuestFrame::at(last).map(GuestFrame::base), Some(last));
        assert_eq!(GuestFrame::containing(u64::MAX).base(), last);
        assert_eq!(GuestFrame::containing(u64::MAX).number(), (1 << 36) - 1);
        assert_eq!(GuestFrame::containing(5 * PAGE + 5).number(), 5);
    }
}
