//! Where a memory operand lies (SDM vol. 1, 3.7).

use crate::context::Access;
use crate::decode::{Decoder, Mode};
use crate::store::{Registers, Size};

const REX_X: u8 = 2;
const REX_B: u8 = 1;

// Numbers of registers.
const BX: u8 = 3;
const SP: u8 = 4;
const BP: u8 = 5;
const SI: u8 = 6;
pub(crate) const DI: u8 = 7;

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
    /// The memory operand of what was decoded; of a string instruction that which is read. `next` is
    /// the address of the next instruction.
    pub(crate) fn of(decoder: &Decoder<'_>, next: u64) -> Self {
        /// Base and index by ModRM.rm where addresses have 2 bytes. SP stands for no index.
        const SHORT: [(u8, u8); 8] =
            [(BX, SI), (BX, DI), (BP, SI), (BP, DI), (SI, SP), (DI, SP), (BP, SP), (BX, SP)];
        let &Decoder { mode, modrm, sib, mut displacement, .. } = decoder;
        let width = decoder.width();
        let (form, rm, short) = (modrm >> 6, modrm & 7, width == Size::TWO);
        let high = decoder.extension(REX_B);
        let (base, index, scale) = if decoder.is_string() {
            (SI, SP, 0)
        } else if decoder.is_offset() {
            (BP, SP, 0)
        } else if short {
            let (base, index) = SHORT.get(usize::from(rm)).copied().unwrap_or_default();
            (base, index, 0)
        } else if rm == SP {
            (sib & 7 | high, sib >> 3 & 7 | decoder.extension(REX_X), sib >> 6)
        } else {
            (rm | high, SP, 0)
        };
        // What would be plain [BP] has a displacement and no base.
        let no_base = form == 0 && base & 7 == BP && !(short && index != SP);
        if no_base && rm == BP && !short && mode == Mode::Bits64 {
            displacement = displacement.wrapping_add(next);
        }
        let base = (!no_base).then_some(base);
        let usual = if matches!(base, Some(SP | BP)) { Base::Ss } else { Base::Ds };
        let (segment, index) = (decoder.segment.unwrap_or(usual), (index != SP).then_some(index));
        Self { segment, base, index, scale, displacement, width, mode }
    }

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
