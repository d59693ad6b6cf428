//! Control registers of the host.
//!
//! VMX wants CR0.NE = 1 and CR4.VMXE = 1; the host must not notice. CR0.NE is owned by the visor
//! and shadowed, so that only a change of NE exits. The CR4 bits of features that CPUID hides are
//! owned and read 0: setting one raises #GP, as on a processor that lacks the feature.

use crate::control::EntryControls;
use crate::field::{
    CR0_SHADOW, ENTRY_CONTROLS, GUEST_CR0, GUEST_CR3, GUEST_CR4, GUEST_EFER, GUEST_PDPTE0,
    GUEST_PDPTE1, GUEST_PDPTE2, GUEST_PDPTE3, Segment, Vmcs,
};

/// CR0.PE.
pub const CR0_PE: u64 = 1;
/// CR0.NE.
pub const CR0_NE: u64 = 1 << 5;
/// CR0.NW.
pub const CR0_NW: u64 = 1 << 29;
/// CR0.CD.
pub const CR0_CD: u64 = 1 << 30;
/// CR0.PG.
pub const CR0_PG: u64 = 1 << 31;
/// CR0 bits that software can change; the others keep their value (SDM vol. 3, 2.5).
const CR0_DEFINED: u64 = 0xe005_003f;
const CR0_ET: u64 = 1 << 4;

const CR4_PAE: u64 = 1 << 5;
/// CR4.VMXE.
pub const CR4_VMXE: u64 = 1 << 13;
const CR4_SMXE: u64 = 1 << 14;
const CR4_PCIDE: u64 = 1 << 17;
const CR4_KEY_LOCKER: u64 = 1 << 19;
const CR4_CET: u64 = 1 << 23;
const CR4_FRED: u64 = 1 << 32;
/// CR4 bits that the visor owns; the host reads 0 and cannot set them.
pub const CR4_OWNED: u64 = CR4_VMXE | CR4_SMXE | CR4_KEY_LOCKER | CR4_CET | CR4_FRED;

const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// Bit 13 of a segment's access rights: 64-bit code.
const RIGHTS_LONG: u32 = 1 << 13;
const RIGHTS_TYPE: u32 = 15;
const BUSY_TSS_16: u32 = 3;

/// The instruction that caused a control-register exit (SDM vol. 3, table 29-3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// MOV to CR0 from the general-purpose register of this number.
    WriteCr0(u8),
    /// MOV to CR4 from the general-purpose register of this number.
    WriteCr4(u8),
    /// CLTS, LMSW or any other: never exits under the visor's masks.
    Unexpected,
}

impl Access {
    /// Decodes the exit qualification.
    #[must_use]
    pub const fn decode(qualification: u64) -> Self {
        let [low, second, ..] = qualification.to_le_bytes();
        match (low & 15, low >> 4 & 3) {
            (0, 0) => Self::WriteCr0(second & 15),
            (4, 0) => Self::WriteCr4(second & 15),
            _ => Self::Unexpected,
        }
    }
}

/// #GP(0) for the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault;

/// Reads the host's memory for the processor: 8 bytes at an aligned physical address that the
/// host owns, or `None`.
pub trait HostMemory {
    /// The little-endian value at `address`.
    fn read_u64(&self, address: u64) -> Option<u64>;

    /// Number of physical-address bits: those above are reserved in page-table entries.
    fn width(&self) -> u8;
}

/// CR0 bits that no VM entry or exit changes (SDM vol. 3, 28.3.2.1): the visor sets them in its own
/// CR0, for the host to have them.
pub const CR0_CACHE: u64 = CR0_CD | CR0_NW;

/// Does what MOV to CR0 of `value` does (SDM vol. 2, MOV control registers; vol. 3, 5.4.1 and
/// 10.8.5), but for [`CR0_CACHE`], whose new value it returns. Outside 64-bit mode the upper half of
/// `value` does not take part.
///
/// # Errors
/// [`Fault`] for every combination that raises #GP(0) on the processor.
pub fn write_cr0(vmcs: &mut impl Vmcs, memory: &impl HostMemory, value: u64) -> Result<u64, Fault> {
    let old = vmcs.read(GUEST_CR0);
    let new = value & CR0_DEFINED | CR0_ET;
    let cr4 = vmcs.read(GUEST_CR4);
    let mut efer = vmcs.read(GUEST_EFER);
    let long_code = vmcs.read(Segment::Cs.fields().rights) & RIGHTS_LONG != 0;
    let in_64_bit_mode = long_code && efer & EFER_LMA != 0;
    if (in_64_bit_mode && value >> 32 != 0)
        || (new & CR0_PG != 0 && new & CR0_PE == 0)
        || (new & CR0_NW != 0 && new & CR0_CD == 0)
    {
        return Err(Fault);
    }
    let mut entry = vmcs.read(ENTRY_CONTROLS);
    if old & CR0_PG == 0 && new & CR0_PG != 0 {
        if efer & EFER_LME != 0 {
            let task = vmcs.read(Segment::Tr.fields().rights) & RIGHTS_TYPE;
            if cr4 & CR4_PAE == 0 || long_code || task == BUSY_TSS_16 {
                return Err(Fault);
            }
            efer |= EFER_LMA;
            entry |= EntryControls::IA32E_GUEST.bits();
        }
    } else if old & CR0_PG != 0 && new & CR0_PG == 0 {
        if in_64_bit_mode || cr4 & CR4_PCIDE != 0 {
            return Err(Fault);
        }
        efer &= !EFER_LMA;
        entry &= !EntryControls::IA32E_GUEST.bits();
    }
    let reload = (old ^ new) & (CR0_PG | CR0_CACHE) != 0;
    if reload && new & CR0_PG != 0 && cr4 & CR4_PAE != 0 && efer & EFER_LMA == 0 {
        load_pdptes(vmcs, memory)?;
    }
    vmcs.write(GUEST_EFER, efer);
    vmcs.write(ENTRY_CONTROLS, entry);
    vmcs.write(CR0_SHADOW, new);
    vmcs.write(GUEST_CR0, new | CR0_NE);
    Ok(new & CR0_CACHE)
}

/// Bits of a present PAE page-directory-pointer-table entry that must be 0: 2:1, 8:5 and 63:52
/// (SDM vol. 3, table 5-8), besides those above the physical-address width.
const PDPTE_RESERVED: u64 = 0xfff0_0000_0000_01e6;

/// Loads the page-directory-pointer-table entries at CR3 (SDM vol. 3, 5.4.1).
pub fn load_pdptes(vmcs: &mut impl Vmcs, memory: &impl HostMemory) -> Result<(), Fault> {
    let table = vmcs.read(GUEST_CR3) & 0xffff_ffe0;
    let mut entries = [0; 4];
    for (entry, address) in entries.iter_mut().zip((table..).step_by(8)) {
        *entry = memory.read_u64(address).ok_or(Fault)?;
        let beyond = entry.checked_shr(memory.width().into()).unwrap_or(0);
        if *entry & 1 != 0 && (*entry & PDPTE_RESERVED != 0 || beyond != 0) {
            return Err(Fault);
        }
    }
    let fields = [GUEST_PDPTE0, GUEST_PDPTE1, GUEST_PDPTE2, GUEST_PDPTE3];
    for (field, entry) in fields.into_iter().zip(entries) {
        vmcs.write(field, entry);
    }
    Ok(())
}

/// Whether XSETBV of `value` to XCR `index` is architecturally valid, `supported` being
/// CPUID.0xD.0 EDX:EAX (SDM vol. 2, XSETBV; vol. 1, 13.3).
#[must_use]
pub const fn xsetbv_is_valid(index: u32, value: u64, supported: u64) -> bool {
    const X87: u64 = 1;
    const SSE: u64 = 1 << 1;
    const AVX: u64 = 1 << 2;
    const MPX: u64 = 3 << 3;
    const AVX512: u64 = 7 << 5;
    const TILE: u64 = 3 << 17;
    const fn all_or_none(value: u64, group: u64) -> bool {
        value & group == 0 || value & group == group
    }
    index == 0
        && value & !supported == 0
        && value & X87 != 0
        && (value & AVX == 0 || value & SSE != 0)
        && all_or_none(value, MPX)
        && all_or_none(value, AVX512)
        && (value & AVX512 == 0 || value & AVX != 0)
        && all_or_none(value, TILE)
}
