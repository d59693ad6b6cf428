//! Execution controls (SDM vol. 3, 26.6 to 26.8) that the visor uses or lets its host use, by name.

use bitflags::bitflags;

bitflags! {
    /// Pin-based controls (table 26-5).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Pin: u32 {
        /// External interrupts exit.
        const INTERRUPT_EXITING = 1;
        /// NMIs exit.
        const NMI_EXITING = 1 << 3;
        /// NMI blocking is the guest's own.
        const VIRTUAL_NMIS = 1 << 5;
        /// Exit when the VMX-preemption timer has counted down.
        const PREEMPTION_TIMER = 1 << 6;
    }
}

bitflags! {
    /// Primary processor-based controls (table 26-6).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Primary: u32 {
        /// Exit as soon as the guest can take an interrupt.
        const INTERRUPT_WINDOW = 1 << 2;
        /// The time-stamp counter has an offset.
        const TSC_OFFSETTING = 1 << 3;
        /// HLT exits.
        const HLT = 1 << 7;
        /// INVLPG exits.
        const INVLPG = 1 << 9;
        /// MWAIT exits.
        const MWAIT = 1 << 10;
        /// RDPMC exits.
        const RDPMC = 1 << 11;
        /// RDTSC and RDTSCP exit.
        const RDTSC = 1 << 12;
        /// MOV to CR8 exits.
        const CR8_LOAD = 1 << 19;
        /// MOV from CR8 exits.
        const CR8_STORE = 1 << 20;
        /// CR8 is the task priority in the virtual-APIC page.
        const TPR_SHADOW = 1 << 21;
        /// MOV to or from debug registers exits.
        const MOV_DR = 1 << 23;
        /// All ports exit.
        const UNCONDITIONAL_IO = 1 << 24;
        /// Exit after each instruction.
        const MONITOR_TRAP = 1 << 27;
        /// MONITOR exits.
        const MONITOR = 1 << 29;
        /// PAUSE exits.
        const PAUSE = 1 << 30;
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
        /// Accesses to descriptor-table registers exit.
        const DESCRIPTOR_TABLES = 1 << 2;
        /// RDTSCP and RDPID work.
        const RDTSCP = 1 << 3;
        /// Translations are tagged.
        const VPID = 1 << 5;
        /// WBINVD exits.
        const WBINVD = 1 << 6;
        /// Real mode and unpaged protected mode work.
        const UNRESTRICTED_GUEST = 1 << 7;
        /// PAUSE in a loop exits.
        const PAUSE_LOOP = 1 << 10;
        /// RDRAND exits.
        const RDRAND = 1 << 11;
        /// INVPCID works.
        const INVPCID = 1 << 12;
        /// VMREAD and VMWRITE of a guest reach a shadow VMCS.
        const VMCS_SHADOWING = 1 << 14;
        /// RDSEED exits.
        const RDSEED = 1 << 16;
        /// Processor Trace does not show VMX transitions.
        const CONCEAL_VMX_FROM_PT = 1 << 19;
        /// XSAVES and XRSTORS work.
        const XSAVES = 1 << 20;
        /// The time-stamp counter is scaled.
        const TSC_SCALING = 1 << 25;
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
        /// IA32_PERF_GLOBAL_CTRL is loaded.
        const LOAD_PERF_GLOBAL = 1 << 12;
        /// The vector of an interrupt that exits is taken from the interrupt controller.
        const ACKNOWLEDGE_INTERRUPT = 1 << 15;
        /// IA32_PAT is saved.
        const SAVE_PAT = 1 << 18;
        /// IA32_PAT is loaded.
        const LOAD_PAT = 1 << 19;
        /// IA32_EFER is saved.
        const SAVE_EFER = 1 << 20;
        /// IA32_EFER is loaded.
        const LOAD_EFER = 1 << 21;
        /// What is left on the VMX-preemption timer is saved.
        const SAVE_PREEMPTION_TIMER = 1 << 22;
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
        /// IA32_PERF_GLOBAL_CTRL is loaded.
        const LOAD_PERF_GLOBAL = 1 << 13;
        /// IA32_PAT is loaded.
        const LOAD_PAT = 1 << 14;
        /// IA32_EFER is loaded.
        const LOAD_EFER = 1 << 15;
    }
}
