//! The VMX that the host sees: the processor's, less what the visor cannot make safe.
//!
//! Everything is decided by masks of what is supported, so that a feature of a later processor stays
//! hidden until somebody has thought about it. `docs/nested-vmx.md` says why each one is hidden.

use crate::capability::RawCapabilities;
use crate::control::{EntryControls, ExitControls, Pin, Primary, Secondary};
use crate::cr::{CR4_OWNED, CR4_VMXE};
use crate::vmcs12::REVISION;

/// First VMX capability MSR: IA32_VMX_BASIC.
pub const FIRST_MSR: u32 = 0x480;
/// The last that the host can read: IA32_VMX_TRUE_ENTRY_CTLS.
pub const LAST_MSR: u32 = 0x490;

const PIN: Pin = Pin::INTERRUPT_EXITING
    .union(Pin::NMI_EXITING)
    .union(Pin::VIRTUAL_NMIS)
    .union(Pin::PREEMPTION_TIMER);

const PRIMARY: Primary = Primary::INTERRUPT_WINDOW
    .union(Primary::TSC_OFFSETTING)
    .union(Primary::HLT)
    .union(Primary::INVLPG)
    .union(Primary::MWAIT)
    .union(Primary::RDPMC)
    .union(Primary::RDTSC)
    .union(Primary::CR3_LOAD)
    .union(Primary::CR3_STORE)
    .union(Primary::CR8_LOAD)
    .union(Primary::CR8_STORE)
    .union(Primary::TPR_SHADOW)
    .union(Primary::NMI_WINDOW)
    .union(Primary::MOV_DR)
    .union(Primary::UNCONDITIONAL_IO)
    .union(Primary::IO_BITMAPS)
    .union(Primary::MONITOR_TRAP)
    .union(Primary::MSR_BITMAPS)
    .union(Primary::MONITOR)
    .union(Primary::PAUSE)
    .union(Primary::SECONDARY);

const SECONDARY: Secondary = Secondary::EPT
    .union(Secondary::DESCRIPTOR_TABLES)
    .union(Secondary::RDTSCP)
    .union(Secondary::VPID)
    .union(Secondary::WBINVD)
    .union(Secondary::UNRESTRICTED_GUEST)
    .union(Secondary::PAUSE_LOOP)
    .union(Secondary::RDRAND)
    .union(Secondary::INVPCID)
    .union(Secondary::RDSEED)
    .union(Secondary::XSAVES)
    .union(Secondary::TSC_SCALING)
    .union(Secondary::USER_WAIT);

const EXIT: ExitControls = ExitControls::SAVE_DEBUG
    .union(ExitControls::HOST_64_BIT)
    .union(ExitControls::LOAD_PERF_GLOBAL)
    .union(ExitControls::ACKNOWLEDGE_INTERRUPT)
    .union(ExitControls::SAVE_PAT)
    .union(ExitControls::LOAD_PAT)
    .union(ExitControls::SAVE_EFER)
    .union(ExitControls::LOAD_EFER)
    .union(ExitControls::SAVE_PREEMPTION_TIMER);

const ENTRY: EntryControls = EntryControls::LOAD_DEBUG
    .union(EntryControls::IA32E_GUEST)
    .union(EntryControls::LOAD_PERF_GLOBAL)
    .union(EntryControls::LOAD_PAT)
    .union(EntryControls::LOAD_EFER);

/// Bits that are 1 unless a processor says otherwise in the TRUE capability MSRs (SDM vol. 3D,
/// A.2 to A.5): pin-based, primary, exit, entry.
const DEFAULT_1: [u32; 4] = [0x0000_0016, 0x0401_e172, 0x0003_6dff, 0x0000_11ff];

/// IA32_VMX_BASIC: size of a region, INS and OUTS described, TRUE MSRs, events with any error code.
const BASIC_KEPT: u64 = 1 << 54 | 1 << 55 | 1 << 56;
const REGION_BYTES: u64 = 4096;
const WRITE_BACK: u64 = 6;
/// IA32_VMX_MISC: rate of the timer, EFER.LMA stored, HLT and shutdown, CR3 targets, injection of
/// events without instruction length. Not "wait for SIPI": there a processor cannot be called to
/// flush its translations.
const MISC_KEPT: u64 = 0x3f | 0b11 << 6 | 0x1ff << 16 | 1 << 30;
/// CR3 targets that the fields have room for.
const CR3_TARGETS: u64 = 4;
/// IA32_VMX_EPT_VPID_CAP: execute-only, 4 levels, uncacheable and write-back tables, 2 MiB and 1 GiB
/// pages, INVEPT, accessed and dirty flags, INVVPID of all four types.
const EPT_VPID_KEPT: u64 = 1
    | 1 << 6
    | 1 << 8
    | 1 << 14
    | 0b11 << 16
    | 1 << 20
    | 1 << 21
    | 0b11 << 25
    | 1 << 32
    | 0b1111 << 40;
/// EPT accessed and dirty flags are supported.
const EPT_ACCESSED_DIRTY: u64 = 1 << 21;
const EPT_UNCACHEABLE: u64 = 1 << 8;

/// What the host may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Advertised {
    caps: RawCapabilities,
}

/// Low half: bits that must be 1; high half: bits that may be (SDM vol. 3D, A.2.1). A bit that is 1
/// by default and that nobody has thought about stays 1.
const fn restrict(capability: u64, supported: u32, default_1: u32) -> u64 {
    let allowed = capability >> 32;
    let must = capability & 0xffff_ffff | allowed & widen(default_1 & !supported);
    let may = allowed & (widen(supported) | must);
    may << 32 | must
}

impl Advertised {
    /// What of the processor's capabilities the host sees.
    #[must_use]
    pub fn of(raw: &RawCapabilities) -> Self {
        let targets = (raw.misc >> 16 & 0x1ff).min(CR3_TARGETS);
        let misc = raw.misc & MISC_KEPT & !(0x1ff << 16) | targets << 16;
        let [pin, primary, exit, entry] = DEFAULT_1;
        let (cr4_must, cr4_may) = raw.cr4_fixed;
        let caps = RawCapabilities {
            basic: u64::from(REVISION)
                | REGION_BYTES << 32
                | WRITE_BACK << 50
                | raw.basic & BASIC_KEPT,
            pin: restrict(raw.pin, PIN.bits(), pin),
            primary: restrict(raw.primary, PRIMARY.bits(), primary),
            secondary: restrict(raw.secondary, SECONDARY.bits(), 0),
            exit: restrict(raw.exit, EXIT.bits(), exit),
            entry: restrict(raw.entry, ENTRY.bits(), entry),
            misc,
            ept_vpid: raw.ept_vpid & EPT_VPID_KEPT,
            cr0_fixed: raw.cr0_fixed,
            cr4_fixed: (cr4_must, cr4_may & !(CR4_OWNED & !CR4_VMXE)),
        };
        Self { caps }
    }

    /// The same as the processor's capabilities are given.
    #[must_use]
    pub const fn capabilities(&self) -> &RawCapabilities {
        &self.caps
    }

    /// What the host reads of MSR `index`; `None` if it does not exist.
    #[must_use]
    pub fn msr(&self, index: u32) -> Option<u64> {
        let caps = &self.caps;
        let true_controls = caps.basic & 1 << 55 != 0;
        let [pin, primary, exit, entry] = DEFAULT_1;
        match index {
            0x480 => Some(caps.basic),
            0x481 => Some(caps.pin | u64::from(pin)),
            0x482 => Some(caps.primary | u64::from(primary)),
            0x483 => Some(caps.exit | u64::from(exit)),
            0x484 => Some(caps.entry | u64::from(entry)),
            0x485 => Some(caps.misc),
            0x486 => Some(caps.cr0_fixed.0),
            0x487 => Some(caps.cr0_fixed.1),
            0x488 => Some(caps.cr4_fixed.0),
            0x489 => Some(caps.cr4_fixed.1),
            0x48a => Some(self.highest_index() << 1),
            0x48b => Some(caps.secondary),
            0x48c => Some(caps.ept_vpid),
            0x48d if true_controls => Some(caps.pin),
            0x48e if true_controls => Some(caps.primary),
            0x48f if true_controls => Some(caps.exit),
            0x490 if true_controls => Some(caps.entry),
            _ => None,
        }
    }

    /// Whether the host may set `control`.
    #[must_use]
    pub const fn has(&self, control: Secondary) -> bool {
        self.caps.secondary >> 32 & widen(control.bits()) != 0
    }

    const fn has_timer(&self) -> bool {
        self.caps.pin >> 32 & widen(Pin::PREEMPTION_TIMER.bits()) != 0
    }

    const fn has_perf_global(&self) -> bool {
        self.caps.exit >> 32 & widen(ExitControls::LOAD_PERF_GLOBAL.bits()) != 0
    }

    /// The exit control that saves the VMX-preemption timer, if there is one.
    #[must_use]
    pub const fn may_save_timer(&self) -> ExitControls {
        let supported = self.caps.exit >> 32 & widen(ExitControls::SAVE_PREEMPTION_TIMER.bits());
        if supported != 0 { ExitControls::SAVE_PREEMPTION_TIMER } else { ExitControls::empty() }
    }

    /// Whether accessed and dirty flags may be switched on in an EPT pointer.
    #[must_use]
    pub const fn has_accessed_dirty(&self) -> bool {
        self.caps.ept_vpid & EPT_ACCESSED_DIRTY != 0
    }

    /// Whether EPT tables may be walked through uncacheable memory.
    #[must_use]
    pub const fn has_uncacheable_ept(&self) -> bool {
        self.caps.ept_vpid & EPT_UNCACHEABLE != 0
    }

    /// Whether the field with this encoding exists on a processor with these capabilities.
    #[must_use]
    pub const fn has_field(&self, encoding: u32) -> bool {
        match encoding & !1 {
            0x0000 => self.has(Secondary::VPID),
            0x202c => self.has(Secondary::XSAVES),
            0x2032 => self.has(Secondary::TSC_SCALING),
            0x2808 | 0x2c04 => self.has_perf_global(),
            0x4020 | 0x4022 => self.has(Secondary::PAUSE_LOOP),
            0x482e => self.has_timer(),
            _ => true,
        }
    }

    /// The highest index of a field (IA32_VMX_VMCS_ENUM, A.9).
    fn highest_index(&self) -> u64 {
        use crate::vmcs12::Class;
        const ALL: &[Class] = &[
            Class::Control,
            Class::HotControl,
            Class::Host,
            Class::Guest,
            Class::HotGuest,
            Class::Information,
        ];
        let index = |encoding: u32| u64::from(encoding >> 1 & 0x1ff);
        let fields = crate::vmcs12::encodings(ALL);
        fields.filter(|e| self.has_field(*e)).map(index).max().unwrap_or(0)
    }
}

#[expect(clippy::as_conversions, reason = "from a smaller type, in a constant function")]
const fn widen(bits: u32) -> u64 {
    bits as u64
}
