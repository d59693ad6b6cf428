//! What the processor says that its VMX can do (SDM vol. 3, appendix A).

use crate::field::{self, Field};
use bare::cpu;

pub(crate) const FEATURE_CONTROL: u32 = 0x3a;
pub(crate) const BASIC: u32 = 0x480;
pub(crate) const MISC: u32 = 0x485;
pub(crate) const EPT_VPID: u32 = 0x48c;

/// A set of controls: one 32-bit field of the VMCS.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Set {
    Pin,
    Primary,
    Secondary,
    Exit,
    Entry,
}

impl Set {
    pub(crate) const ALL: [Self; 5] =
        [Self::Pin, Self::Primary, Self::Secondary, Self::Exit, Self::Entry];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Pin => "pin",
            Self::Primary => "primary",
            Self::Secondary => "secondary",
            Self::Exit => "exit",
            Self::Entry => "entry",
        }
    }

    pub(crate) const fn field(self) -> Field {
        match self {
            Self::Pin => field::PIN_CONTROLS,
            Self::Primary => field::PRIMARY_CONTROLS,
            Self::Secondary => field::SECONDARY_CONTROLS,
            Self::Exit => field::EXIT_CONTROLS,
            Self::Entry => field::ENTRY_CONTROLS,
        }
    }

    /// The original capability MSR, and the one that also tells which default1 bits may be 0.
    pub(crate) const fn msrs(self) -> [u32; 2] {
        match self {
            Self::Pin => [0x481, 0x48d],
            Self::Primary => [0x482, 0x48e],
            Self::Secondary => [0x48b, 0x48b],
            Self::Exit => [0x483, 0x48f],
            Self::Entry => [0x484, 0x490],
        }
    }

    fn capability(self) -> u64 {
        let true_controls = cpu::rdmsr(BASIC) >> 55 & 1;
        cpu::rdmsr(self.msrs()[true_controls as usize])
    }

    /// Bits that must be 1.
    pub(crate) fn must(self) -> u64 {
        self.capability() & 0xffff_ffff
    }

    /// Bits that may be 1.
    pub(crate) fn may(self) -> u64 {
        self.capability() >> 32
    }
}

/// One control.
#[derive(Clone, Copy)]
pub(crate) struct Control {
    pub(crate) set: Set,
    pub(crate) bit: u32,
}

impl Control {
    const fn new(set: Set, bit: u32) -> Self {
        Self { set, bit }
    }

    pub(crate) fn exists(self) -> bool {
        self.set.may() >> self.bit & 1 != 0
    }
}

macro_rules! controls {
    ($($set:ident: $($name:ident $bit:literal)*;)*) => {
        $($(pub(crate) const $name: Control = Control::new(Set::$set, $bit);)*)*
    };
}
controls! {
    Pin: EXTERNAL_EXITING 0 NMI_EXITING 3 VIRTUAL_NMIS 5 PREEMPTION 6 POSTED_INTERRUPTS 7;
    Primary: INTERRUPT_WINDOW 2 TSC_OFFSETTING 3 HLT_EXITING 7 INVLPG_EXITING 9 MWAIT_EXITING 10
        RDPMC_EXITING 11 RDTSC_EXITING 12 CR3_LOAD_EXITING 15 CR3_STORE_EXITING 16
        CR8_LOAD_EXITING 19 CR8_STORE_EXITING 20 TPR_SHADOW 21 NMI_WINDOW 22 DR_EXITING 23
        IO_EXITING 24 IO_BITMAPS 25 TRAP_FLAG 27 MSR_BITMAPS 28 MONITOR_EXITING 29
        PAUSE_EXITING 30 SECONDARY 31;
    Secondary: APIC_ACCESSES 0 EPT 1 DESCRIPTOR_EXITING 2 RDTSCP 3 X2APIC 4 VPIDS 5
        WBINVD_EXITING 6 UNRESTRICTED 7 APIC_REGISTERS 8 VIRTUAL_INTERRUPTS 9 PAUSE_LOOP 10
        RDRAND_EXITING 11 INVPCID 12 VMFUNC 13 SHADOWING 14 RDSEED_EXITING 16 PML 17
        EPT_VE 18 XSAVES 20 TSC_SCALING 25;
    Exit: SAVE_DEBUG 2 HOST_64 9 ACKNOWLEDGE 15 SAVE_PAT 18 EXIT_LOAD_PAT 19
        SAVE_EFER 20 EXIT_LOAD_EFER 21 SAVE_PREEMPTION 22;
    Entry: LOAD_DEBUG 2 GUEST_64 9
        ENTRY_LOAD_PAT 14 ENTRY_LOAD_EFER 15;
}

/// Whether bit `bit` of IA32_VMX_EPT_VPID_CAP is set.
pub(crate) fn ept_vpid(bit: u32) -> bool {
    cpu::rdmsr(EPT_VPID) >> bit & 1 != 0
}

/// The revision that begins every VMXON region and VMCS.
pub(crate) fn revision() -> u32 {
    cpu::rdmsr(BASIC) as u32 & 0x7fff_ffff
}
