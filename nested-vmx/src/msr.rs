//! Model-specific registers of the host: which accesses exit, and the rule for each.
//!
//! Everything not listed here goes to the processor without an exit. MSRs outside the two ranges
//! of the bitmap always exit and have no rule: #GP, as on a processor that lacks them.

use ept::mtrr;

/// Bytes of the MSR bitmaps: read low, read high, write low, write high, 1 KiB each (SDM vol. 3,
/// 26.6.9).
pub const BITMAP_BYTES: usize = 4096;

/// IA32_APIC_BASE.
pub const APIC_BASE: u32 = 0x1b;
/// IA32_FEATURE_CONTROL.
pub const FEATURE_CONTROL: u32 = 0x3a;
const MICROCODE_UPDATE: u32 = 0x79;
const MISC_ENABLE: u32 = 0x1a0;
/// Limits CPUID to leaf 3; switches no-execute pages off.
const MISC_KEPT_OFF: u64 = 1 << 22 | 1 << 34;

/// The rule for one register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    /// Neither read nor written: #GP, as if it did not exist.
    Absent,
    /// Read freely; a write raises #GP.
    ReadOnly,
    /// Written without effect: the host goes on as if the write had been accepted.
    Ignored,
    /// Read freely; writes may not move the local APIC.
    ApicBase,
    /// Reads show VMX locked on and SMX off; writes raise #GP as on a locked register.
    FeatureControl,
    /// Answered from what is advertised; writes raise #GP.
    VmxCapability,
    /// Read freely; writes may not take away what the visor needs.
    MiscEnable,
    /// Answered from the host's own copy: the processor keeps what firmware set up, and EPT01 says
    /// what the host wants.
    Mtrr,
}

/// First and last index, and the rule. The reason stands beside each.
const RULES: &[(u32, u32, Rule)] = &[
    // Over the visor's memory the APIC page would swallow the visor's own accesses.
    (APIC_BASE, APIC_BASE, Rule::ApicBase),
    (FEATURE_CONTROL, FEATURE_CONTROL, Rule::FeatureControl),
    // The update's address is the host's linear address; and it changes the processor itself.
    (MICROCODE_UPDATE, MICROCODE_UPDATE, Rule::Ignored),
    // IA32_TSX_CTRL, IA32_MCU_OPT_CTRL: they open leaks again that microcode has closed (TAA, GDS).
    (0x122, 0x123, Rule::Ignored),
    // IA32_SMM_MONITOR_CTL: exists only with VMX.
    (0x9b, 0x9b, Rule::Absent),
    // Overclocking mailbox: voltage faults break any computation (Plundervolt).
    (0x150, 0x150, Rule::Absent),
    // IA32_PEBS_ENABLE, MSR_PEBS_DATA_CFG, IA32_DS_AREA: the debug store writes through linear addresses.
    (0x3f1, 0x3f2, Rule::ReadOnly),
    (0x3f4, 0x3f5, Rule::Absent),
    (0x600, 0x600, Rule::ReadOnly),
    // VMX capabilities: those that exist depend on what is advertised.
    (0x480, 0x493, Rule::VmxCapability),
    // Processor Trace writes its output to physical addresses.
    (0x560, 0x561, Rule::Absent),
    (0x570, 0x572, Rule::Absent),
    (0x580, 0x58f, Rule::Absent),
    // IA32_TME_*: memory-encryption keys by physical address.
    (0x981, 0x984, Rule::ReadOnly),
    (0x9ff, 0x9ff, Rule::ReadOnly),
    // IA32_HW_FEEDBACK_*, IA32_THREAD_FEEDBACK_*: the package writes a table to a physical address.
    (0x17d0, 0x17d4, Rule::Absent),
    // IA32_LBR_CTL, IA32_LBR_DEPTH: they would record the visor's branches.
    (0x14ce, 0x14cf, Rule::Absent),
    // IA32_DEBUG_INTERFACE: silicon debugging.
    (0xc80, 0xc80, Rule::ReadOnly),
    // No-execute pages and the full range of CPUID leaves, on which the visor depends.
    (MISC_ENABLE, MISC_ENABLE, Rule::MiscEnable),
    // IA32_COPY_LOCAL_TO_PLATFORM and back: Key Locker.
    (0xd91, 0xd92, Rule::Absent),
];

fn rule(index: u32) -> Option<Rule> {
    RULES
        .iter()
        .find(|(first, last, _)| (*first..=*last).contains(&index))
        .map(|(_, _, rule)| *rule)
        .or_else(|| mtrr::is_mtrr(index).then_some(Rule::Mtrr))
}

/// Fills the MSR bitmaps so that exactly the accesses with a rule exit.
pub fn fill_bitmap(bitmap: &mut [u8; BITMAP_BYTES]) {
    bitmap.fill(0);
    for (base, read_at, write_at) in [(0_u32, 0_usize, 2048_usize), (0xc000_0000, 1024, 3072)] {
        for low in 0..0x2000_u32 {
            let (reads, writes) = match rule(base + low) {
                None => (false, false),
                Some(Rule::Absent | Rule::FeatureControl | Rule::VmxCapability | Rule::Mtrr) => {
                    (true, true)
                }
                Some(Rule::ReadOnly | Rule::Ignored | Rule::ApicBase | Rule::MiscEnable) => {
                    (false, true)
                }
            };
            let byte = usize::try_from(low / 8).unwrap_or(usize::MAX);
            let bit = 1_u8 << (low % 8);
            for (exits, at) in [(reads, read_at), (writes, write_at)] {
                if let Some(cell) = bitmap.get_mut(at + byte).filter(|_| exits) {
                    *cell |= bit;
                }
            }
        }
    }
}

/// Registers that VMX switches: in VMX root mode they are the visor's own. IA32_SYSENTER_CS, _ESP,
/// _EIP, IA32_DEBUGCTL, IA32_PAT, IA32_EFER, IA32_FS_BASE, IA32_GS_BASE.
const SWITCHED: [u32; 8] =
    [0x174, 0x175, 0x176, 0x1d9, 0x277, 0xc000_0080, 0xc000_0100, 0xc000_0101];

/// Whether `index` has no rule, so that the host reaches it without an exit, and the register in VMX
/// root mode is the host's as well: what the host may do the visor may then do in its stead.
#[must_use]
pub fn is_shared(index: u32) -> bool {
    matches!(index, 0..0x2000 | 0xc000_0000..0xc000_2000)
        && rule(index).is_none()
        && !SWITCHED.contains(&index)
}

/// What to do about an intercepted RDMSR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// Show the processor's value with these bits cleared, then these set.
    Masked {
        /// Bits cleared.
        clear: u64,
        /// Bits set.
        set: u64,
    },
    /// Show the host's own MTRR.
    Mtrr,
    /// Show what is advertised of VMX ([`crate::advertise::Advertised::msr`]).
    VmxCapability,
    /// Raise #GP(0).
    Fault,
}

/// What to do about an intercepted WRMSR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// Write the value to the processor.
    Perform,
    /// Write the host's own MTRR, if its value is valid, and let EPT01 follow.
    Mtrr,
    /// Do nothing.
    Ignore,
    /// Raise #GP(0).
    Fault,
}

/// Lock bit of IA32_FEATURE_CONTROL.
const LOCKED: u64 = 1;
/// VMX outside SMX operation may be used.
const OUTSIDE_SMX: u64 = 1 << 2;
/// The enables of VMX inside SMX operation and of SENTER.
const SMX_AND_SENTER: u64 = 1 << 1 | 0xff << 8;

/// The answer to an intercepted read of `index`.
#[must_use]
pub fn read(index: u32) -> Read {
    match rule(index) {
        Some(Rule::FeatureControl) => {
            Read::Masked { clear: SMX_AND_SENTER, set: LOCKED | OUTSIDE_SMX }
        }
        Some(Rule::VmxCapability) => Read::VmxCapability,
        Some(Rule::Absent) | None => Read::Fault,
        Some(Rule::Mtrr) => Read::Mtrr,
        Some(Rule::ReadOnly | Rule::Ignored | Rule::ApicBase | Rule::MiscEnable) => {
            Read::Masked { clear: 0, set: 0 }
        }
    }
}

/// Bits 51:12 of IA32_APIC_BASE: the address.
const APIC_ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// The answer to an intercepted write of `value` to `index`, which holds `current`. Whether the
/// register takes a value that may be performed is for the processor to say.
#[must_use]
pub fn write(index: u32, value: u64, current: u64) -> Write {
    match rule(index) {
        Some(Rule::ApicBase) if (value ^ current) & APIC_ADDRESS == 0 => Write::Perform,
        Some(Rule::MiscEnable) if value & MISC_KEPT_OFF == 0 => Write::Perform,
        Some(Rule::Mtrr) => Write::Mtrr,
        Some(Rule::Ignored) => Write::Ignore,
        Some(
            Rule::ApicBase
            | Rule::MiscEnable
            | Rule::Absent
            | Rule::ReadOnly
            | Rule::FeatureControl
            | Rule::VmxCapability,
        )
        | None => Write::Fault,
    }
}

/// What IA32_FEATURE_CONTROL says about VMX (SDM vol. 3, 25.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permission {
    /// VMX may be used.
    Granted,
    /// Firmware left the question open: this value, written, grants it for good.
    Open(u64),
    /// Firmware has locked VMX off.
    LockedOff,
}

/// Reads the permission from the register's value.
#[must_use]
pub const fn vmx_permission(value: u64) -> Permission {
    if value & LOCKED == 0 {
        Permission::Open(value | LOCKED | OUTSIDE_SMX)
    } else if value & OUTSIDE_SMX == 0 {
        Permission::LockedOff
    } else {
        Permission::Granted
    }
}
