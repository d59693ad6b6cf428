//! Model-specific registers of a protected VM.
//!
//! Three kinds: its own, which the processor holds while it runs and the host never sees or sets;
//! those that hosts emulate, about which the host is asked; a few with a fixed answer. All others do
//! not exist.

use ept::mtrr;

/// Bytes of the MSR bitmaps (SDM vol. 3, 26.6.9).
pub const BITMAP_BYTES: usize = 4096;

pub(super) const EFER: u32 = 0xc000_0080;
/// Interrupt command register of the local APIC in x2APIC mode.
pub(super) const X2APIC_ICR: u32 = 0x830;
/// Id of the local APIC, likewise.
pub(super) const X2APIC_ID: u32 = 0x802;

/// First and last of those that are the VM's own: IA32_SYSENTER_CS, _ESP, _EIP; IA32_PAT; STAR, LSTAR,
/// CSTAR, FMASK; FS and GS base, KERNEL_GS_BASE, TSC_AUX. Accesses do not exit.
pub const OWN: [(u32, u32); 4] =
    [(0x174, 0x176), (0x277, 0x277), (0xc000_0081, 0xc000_0084), (0xc000_0100, 0xc000_0103)];

/// First and last of those that hosts emulate.
const EMULATED: &[(u32, u32)] = &[
    // time-stamp counter; platform ID, APIC base
    (0x10, 0x10),
    (0x17, 0x17),
    (0x1b, 0x1b),
    // power-on configuration, SMI count, feature control, TSC adjustment
    (0x2a, 0x2a),
    (0x34, 0x34),
    (0x3a, 0x3b),
    // speculation control; microcode revision
    (0x48, 0x49),
    (0x8b, 0x8b),
    // platform information, bus frequency
    (0xcd, 0xce),
    // architectural capabilities, cache flush; cache control; TSX; miscellaneous features
    (0x10a, 0x10b),
    (0x11e, 0x11e),
    (0x122, 0x122),
    (0x140, 0x140),
    // machine checks
    (0x179, 0x17b),
    (0x400, 0x47f),
    // performance state; miscellaneous enables; energy preference; performance capabilities
    (0x198, 0x199),
    (0x1a0, 0x1a0),
    (0x1b0, 0x1b0),
    (0x345, 0x345),
    // timer deadline, x2APIC
    (0x6e0, 0x6e0),
    (0x800, 0x8ff),
];

const DEBUGCTL: u32 = 0x1d9;
/// Last branch records and branch stepping: systems set them without asking for a feature.
const DEBUGCTL_IGNORED: u64 = 0b11;
const XSS: u32 = 0xda0;

/// The rule for one register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// The host answers.
    Emulated,
    /// IA32_EFER: the VM's own; the host is told of writes.
    Efer,
    /// Reads 0. Writes may set these bits, to no effect.
    Zero(u64),
    /// #GP(0).
    Absent,
}

/// The rule for an access to `index` that exits; those to [`OWN`] do not.
#[must_use]
pub fn rule(index: u32) -> Rule {
    let emulated = || EMULATED.iter().any(|(first, last)| (*first..=*last).contains(&index));
    match index {
        EFER => Rule::Efer,
        DEBUGCTL => Rule::Zero(DEBUGCTL_IGNORED),
        XSS => Rule::Zero(0),
        _ if emulated() || mtrr::is_mtrr(index) => Rule::Emulated,
        _ => Rule::Absent,
    }
}

/// Fills the MSR bitmaps: everything exits but accesses to the VM's own.
pub fn fill_bitmap(bitmap: &mut [u8; BITMAP_BYTES]) {
    bitmap.fill(0xff);
    for index in OWN.into_iter().flat_map(|(first, last)| first..=last) {
        let [low, high, _, top] = index.to_le_bytes();
        let bit = usize::from(u16::from_le_bytes([low, high]));
        let reads = if top & 0xc0 == 0 { 0 } else { 1024 };
        for at in [reads, reads + 2048] {
            if let Some(byte) = bitmap.get_mut(at + bit / 8) {
                *byte &= !(1 << (bit % 8));
            }
        }
    }
}

/// The command to a local APIC, if it is an INIT or start-up IPI (SDM vol. 3, 12.6.1).
pub(super) const fn start(command: u64) -> Option<u64> {
    if matches!(command >> 8 & 7, 5 | 6) { Some(command) } else { None }
}
