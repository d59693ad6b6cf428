//! Where a memory operand lies (SDM vol. 1, 3.7).

use crate::context::Access;
use crate::decode::Mode;
use crate::store::{Registers, Size};

/// A segment register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    /// ES
    Es,
    /// CS
    Cs,
    /// SS
    Ss,
    /// DS
    Ds,
    /// FS
    Fs,
    /// GS
    Gs,
}

/// The segments that operands lie in.
pub trait Segments {
    /// Base address of the segment. In 64-bit mode only FS and GS are asked for.
    fn base(&self, segment: Base) -> u64;

    /// Whether its type and limit permit an access to so many bytes at `offset`. Not asked in 64-bit
    /// mode.
    fn permits(&self, segment: Base, offset: u64, bytes: u64, access: Access) -> bool;
}

/// A memory operand as the instruction names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) segment: Base,
    /// Numbers of general registers.
    pub(crate) base: Option<u8>,
    pub(crate) index: Option<u8>,
    /// The index counts times 2 to the power of this.
    pub(crate) scale: u8,
    /// With the address of the next instruction, if it is relative to that.
    pub(crate) displacement: u64,
    /// Size of addresses.
    pub(crate) width: Size,
    pub(crate) mode: Mode,
}

impl Place {
    /// Linear address of so many bytes; `None` if the segment does not permit the access.
    pub(crate) fn linear(
        &self,
        (bytes, access): (u64, Access),
        registers: &impl Registers,
        segments: &impl Segments,
    ) -> Option<u64> {
        let part = |number: Option<u8>| number.map_or(0, |number| registers.general(number));
        let sum = part(self.base).wrapping_add(part(self.index) << self.scale);
        let offset = sum.wrapping_add(self.displacement) & self.width.mask();
        let (segment, wide) = (self.segment, self.mode == Mode::Bits64);
        if wide && !matches!(segment, Base::Fs | Base::Gs) {
            return Some(offset);
        }
        let linear = segments.base(segment).wrapping_add(offset);
        if wide {
            return Some(linear);
        }
        segments.permits(segment, offset, bytes, access).then_some(linear & 0xffff_ffff)
    }
}
