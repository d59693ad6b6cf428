//! Execution controls (SDM vol. 3, 26.6 to 26.8) that the visor uses, by name.

use bitflags::bitflags;

bitflags! {
    /// Pin-based controls (table 26-5).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Pin: u32 {
        /// NMIs exit.
        const NMI_EXITING = 1 << 3;
        /// NMI blocking is the guest's own.
        const VIRTUAL_NMIS = 1 << 5;
    }
}

bitflags! {
    /// Primary processor-based controls (table 26-6).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Primary: u32 {
        /// Exit as soon as the guest can take an NMI.
        const NMI_WINDOW = 1 << 22;
        /// Ports exit by bitmap.
        const IO_BITMAPS = 1 << 25;
        /// MSR accesses exit by bitmap.
        const MSR_BITMAPS = 1 << 28;
        /// The secondary controls count.
        const SECONDARY = 1 << 31;
        /// MOV to CR3 exits: on by default, must be switched off by name.
        const CR3_LOAD = 1 << 15;
        /// MOV from CR3 exits: likewise.
        const CR3_STORE = 1 << 16;
    }
}

bitflags! {
    /// Secondary processor-based controls (table 26-7).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Secondary: u32 {
        /// Guest-physical addresses are translated.
        const EPT = 1 << 1;
        /// RDTSCP and RDPID work.
        const RDTSCP = 1 << 3;
        /// Translations are tagged.
        const VPID = 1 << 5;
        /// Real mode and unpaged protected mode work.
        const UNRESTRICTED_GUEST = 1 << 7;
        /// INVPCID works.
        const INVPCID = 1 << 12;
        /// Processor Trace does not show VMX transitions.
        const CONCEAL_VMX_FROM_PT = 1 << 19;
        /// XSAVES and XRSTORS work.
        const XSAVES = 1 << 20;
        /// TPAUSE, UMONITOR and UMWAIT work.
        const USER_WAIT = 1 << 26;
    }
}

bitflags! {
    /// VM-exit controls (table 26-13).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct ExitControls: u32 {
        /// DR7 and IA32_DEBUGCTL are saved.
        const SAVE_DEBUG = 1 << 2;
        /// The visor runs in 64-bit mode.
        const HOST_64_BIT = 1 << 9;
        /// IA32_PAT is saved.
        const SAVE_PAT = 1 << 18;
        /// IA32_PAT is loaded.
        const LOAD_PAT = 1 << 19;
        /// IA32_EFER is saved.
        const SAVE_EFER = 1 << 20;
        /// IA32_EFER is loaded.
        const LOAD_EFER = 1 << 21;
    }
}

bitflags! {
    /// VM-entry controls (table 26-16).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct EntryControls: u32 {
        /// DR7 and IA32_DEBUGCTL are loaded.
        const LOAD_DEBUG = 1 << 2;
        /// The guest is in IA-32e mode.
        const IA32E_GUEST = 1 << 9;
        /// IA32_PAT is loaded.
        const LOAD_PAT = 1 << 14;
        /// IA32_EFER is loaded.
        const LOAD_EFER = 1 << 15;
    }
}
