//! What this processor's VMX can do, and whether that is enough.

use core::fmt;

use crate::control::{EntryControls, ExitControls, Pin, Primary, Secondary};

/// Raw capability MSRs, read once (SDM vol. 3D, appendix A).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawCapabilities {
    /// IA32_VMX_BASIC.
    pub basic: u64,
    /// The TRUE variant of IA32_VMX_PINBASED_CTLS where VMX_BASIC says that it exists.
    pub pin: u64,
    /// Likewise IA32_VMX_PROCBASED_CTLS.
    pub primary: u64,
    /// IA32_VMX_PROCBASED_CTLS2; 0 when the primary controls do not allow secondary ones.
    pub secondary: u64,
    /// IA32_VMX_EXIT_CTLS or its TRUE variant.
    pub exit: u64,
    /// IA32_VMX_ENTRY_CTLS or its TRUE variant.
    pub entry: u64,
    /// IA32_VMX_MISC.
    pub misc: u64,
    /// IA32_VMX_EPT_VPID_CAP; 0 when there is neither.
    pub ept_vpid: u64,
    /// IA32_VMX_CR0_FIXED0 and IA32_VMX_CR0_FIXED1.
    pub cr0_fixed: (u64, u64),
    /// IA32_VMX_CR4_FIXED0 and IA32_VMX_CR4_FIXED1.
    pub cr4_fixed: (u64, u64),
}

/// A feature that the visor cannot do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// No EPT.
    Ept,
    /// EPT lacks 4-level walks, write-back tables, or 2 MiB and 1 GiB leaves.
    EptPages,
    /// No INVEPT of all contexts.
    Invept,
    /// No unrestricted guest.
    UnrestrictedGuest,
    /// No NMI exiting with virtual NMIs.
    VirtualNmis,
    /// No MSR or I/O bitmaps.
    Bitmaps,
    /// PAT or EFER are not switched by the processor.
    PatEferSwitch,
    /// No wait-for-SIPI activity state.
    WaitForSipi,
    /// VMCS memory is not write-back.
    VmcsMemoryType,
    /// The processor forces an exit on CR3 accesses.
    Cr3Free,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ept => "the processor has no extended page tables (EPT)",
            Self::EptPages => {
                "EPT lacks 4-level walks with 2 MiB and 1 GiB pages in write-back memory"
            }
            Self::Invept => "EPT lacks INVEPT of all contexts",
            Self::UnrestrictedGuest => "the processor has no unrestricted guest mode",
            Self::VirtualNmis => "the processor has no virtual NMIs",
            Self::Bitmaps => "the processor has no MSR and I/O bitmaps",
            Self::PatEferSwitch => "the processor does not switch PAT and EFER on VM exits",
            Self::WaitForSipi => "the processor has no wait-for-SIPI activity state",
            Self::VmcsMemoryType => "the processor wants VMCSs in memory that is not write-back",
            Self::Cr3Free => "the processor exits on every CR3 access",
        })
    }
}

/// The values of the five control fields for the host's VMCS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Controls {
    /// Pin-based.
    pub pin: u32,
    /// Primary processor-based.
    pub primary: u32,
    /// Secondary processor-based.
    pub secondary: u32,
    /// VM-exit.
    pub exit: u32,
    /// VM-entry.
    pub entry: u32,
    /// Whether translations are tagged, so that exits flush nothing.
    pub vpid: bool,
}

const EPT_WALK_4: u64 = 1 << 6;
const EPT_WRITE_BACK: u64 = 1 << 14;
const EPT_2M: u64 = 1 << 16;
const EPT_1G: u64 = 1 << 17;
const EPT_NEEDED: u64 = EPT_WALK_4 | EPT_WRITE_BACK | EPT_2M | EPT_1G;
const INVEPT: u64 = 1 << 20 | 1 << 26;
const INVVPID_ALL: u64 = 1 << 32 | 1 << 42;
const MISC_WAIT_FOR_SIPI: u64 = 1 << 8;
/// VMWRITE may write read-only fields (A.6).
const MISC_WRITE_ANY_FIELD: u64 = 1 << 29;

/// The field value with `wanted` set, `MUST` bits as the processor demands; `None` if it refuses
/// a wanted bit. Low half: bits that must be 1; high half: bits that may be 1 (appendix A.3).
fn field(capability: u64, wanted: u32) -> Option<u32> {
    let [a, b, c, d, e, f, g, h] = capability.to_le_bytes();
    let must = u32::from_le_bytes([a, b, c, d]);
    let may = u32::from_le_bytes([e, f, g, h]);
    (wanted & !may == 0).then_some(wanted | must)
}

fn optional(capability: u64, wanted: u32) -> u32 {
    let [_, _, _, _, e, f, g, h] = capability.to_le_bytes();
    u32::from_le_bytes([e, f, g, h]) & wanted
}

impl RawCapabilities {
    /// Identifier that every VMCS and VMXON region begins with.
    #[must_use]
    pub const fn revision(&self) -> u32 {
        let [a, b, c, d, ..] = self.basic.to_le_bytes();
        u32::from_le_bytes([a, b, c, d]) & 0x7fff_ffff
    }

    /// Whether VMREAD and VMWRITE of the host can reach a shadow VMCS, in which the visor can write what
    /// the host only reads, and which has all fields that the host may write there.
    #[must_use]
    pub fn has_vmcs_shadowing(&self) -> bool {
        optional(self.secondary, Secondary::VMCS_SHADOWING.bits()) != 0
            && optional(self.primary, Primary::TPR_SHADOW.bits()) != 0
            && optional(self.pin, Pin::PREEMPTION_TIMER.bits()) != 0
            && self.misc & MISC_WRITE_ANY_FIELD != 0
    }

    /// The controls with which the host runs.
    ///
    /// # Errors
    /// The first feature that is [`Missing`].
    pub fn host_controls(&self) -> Result<Controls, Missing> {
        self.check()?;
        let pin = field(self.pin, (Pin::NMI_EXITING | Pin::VIRTUAL_NMIS).bits())
            .ok_or(Missing::VirtualNmis)?;
        let primary = field(
            self.primary,
            (Primary::IO_BITMAPS | Primary::MSR_BITMAPS | Primary::SECONDARY).bits(),
        )
        .ok_or(Missing::Bitmaps)?;
        if primary & (Primary::CR3_LOAD | Primary::CR3_STORE).bits() != 0 {
            return Err(Missing::Cr3Free);
        }
        let _ = field(self.primary, Primary::NMI_WINDOW.bits()).ok_or(Missing::VirtualNmis)?;
        let transparent = Secondary::RDTSCP
            | Secondary::INVPCID
            | Secondary::XSAVES
            | Secondary::USER_WAIT
            | Secondary::CONCEAL_VMX_FROM_PT;
        let vpid = self.ept_vpid & INVVPID_ALL == INVVPID_ALL
            && optional(self.secondary, Secondary::VPID.bits()) != 0;
        let wanted = (Secondary::EPT | Secondary::UNRESTRICTED_GUEST).bits()
            | optional(self.secondary, transparent.bits())
            | if vpid { Secondary::VPID.bits() } else { 0 };
        Ok(Controls {
            pin,
            primary,
            secondary: field(self.secondary, wanted).ok_or(Missing::UnrestrictedGuest)?,
            exit: field(
                self.exit,
                (ExitControls::HOST_64_BIT
                    | ExitControls::SAVE_DEBUG
                    | ExitControls::SAVE_PAT
                    | ExitControls::LOAD_PAT
                    | ExitControls::SAVE_EFER
                    | ExitControls::LOAD_EFER)
                    .bits(),
            )
            .ok_or(Missing::PatEferSwitch)?,
            entry: field(
                self.entry,
                (EntryControls::LOAD_DEBUG | EntryControls::LOAD_PAT | EntryControls::LOAD_EFER)
                    .bits(),
            )
            .ok_or(Missing::PatEferSwitch)?,
            vpid,
        })
    }

    fn check(&self) -> Result<(), Missing> {
        if optional(self.primary, Primary::SECONDARY.bits()) == 0
            || optional(self.secondary, Secondary::EPT.bits()) == 0
        {
            return Err(Missing::Ept);
        }
        if optional(self.secondary, Secondary::UNRESTRICTED_GUEST.bits()) == 0 {
            return Err(Missing::UnrestrictedGuest);
        }
        if self.ept_vpid & EPT_NEEDED != EPT_NEEDED {
            return Err(Missing::EptPages);
        }
        if self.ept_vpid & INVEPT != INVEPT {
            return Err(Missing::Invept);
        }
        if self.misc & MISC_WAIT_FOR_SIPI == 0 {
            return Err(Missing::WaitForSipi);
        }
        if (self.basic >> 50) & 15 != 6 {
            return Err(Missing::VmcsMemoryType);
        }
        Ok(())
    }
}
