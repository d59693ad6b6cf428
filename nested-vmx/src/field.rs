//! Names of VMCS fields (SDM vol. 3D, appendix B, rev. 085).
//!
//! A field carries its width in its type, and the width is checked against bits 14:13 of the
//! encoding at compile time, so that a 32-bit field can never be written with a 64-bit value.

use core::marker::PhantomData;

/// A VMCS field of width `T`: `u16`, `u32`, `u64`, or [`Natural`].
#[derive(Debug)]
pub struct Field<T> {
    encoding: u32,
    width: PhantomData<T>,
}

impl<T> Clone for Field<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Field<T> {}

/// Marks a field of natural width: 64 bits on every processor that the visor runs on.
#[derive(Clone, Copy, Debug)]
pub enum Natural {}

/// The value that a field of some width holds.
pub trait Width {
    /// Integer type of the value.
    type Value: Into<u64> + Copy;
    /// Bits 14:13 of the encodings of this width (SDM vol. 3, table 26-21).
    const CODE: u32;
    /// Keeps the low bits that the field has.
    fn truncate(raw: u64) -> Self::Value;
}

impl Width for u16 {
    type Value = Self;
    const CODE: u32 = 0;
    fn truncate(raw: u64) -> Self {
        let [a, b, ..] = raw.to_le_bytes();
        Self::from_le_bytes([a, b])
    }
}
impl Width for u64 {
    type Value = Self;
    const CODE: u32 = 1;
    fn truncate(raw: u64) -> Self {
        raw
    }
}
impl Width for u32 {
    type Value = Self;
    const CODE: u32 = 2;
    fn truncate(raw: u64) -> Self {
        let [a, b, c, d, ..] = raw.to_le_bytes();
        Self::from_le_bytes([a, b, c, d])
    }
}
impl Width for Natural {
    type Value = u64;
    const CODE: u32 = 3;
    fn truncate(raw: u64) -> u64 {
        raw
    }
}

impl<T: Width> Field<T> {
    /// Names the field with this `encoding`.
    ///
    /// # Panics
    /// When the encoding is of another width: at compile time, as every field is a constant.
    #[must_use]
    pub const fn new(encoding: u32) -> Self {
        assert!((encoding >> 13) & 3 == T::CODE, "encoding of another width");
        Self { encoding, width: PhantomData }
    }

    /// What VMREAD and VMWRITE take.
    #[must_use]
    pub const fn encoding(self) -> u32 {
        self.encoding
    }
}

/// The VMCS that is current on this processor: the hardware's, or a table in tests.
pub trait Vmcs {
    /// Reads the field with this encoding.
    fn read_raw(&self, encoding: u32) -> u64;
    /// Writes the field with this encoding.
    fn write_raw(&mut self, encoding: u32, value: u64);

    /// Reads `field`.
    fn read<T: Width>(&self, field: Field<T>) -> T::Value {
        T::truncate(self.read_raw(field.encoding))
    }
    /// Writes `field`.
    fn write<T: Width>(&mut self, field: Field<T>, value: T::Value) {
        self.write_raw(field.encoding, value.into());
    }
}

macro_rules! fields {
    ($($(#[$doc:meta])* $name:ident: $width:ty = $encoding:literal;)*) => {
        $($(#[$doc])* pub const $name: Field<$width> = Field::new($encoding);)*
    };
}

fields! {
    /// Tag of this guest's translations.
    VPID: u16 = 0x0000;
    /// Host ES selector.
    HOST_ES_SELECTOR: u16 = 0x0c00;
    /// Host CS selector.
    HOST_CS_SELECTOR: u16 = 0x0c02;
    /// Host SS selector.
    HOST_SS_SELECTOR: u16 = 0x0c04;
    /// Host DS selector.
    HOST_DS_SELECTOR: u16 = 0x0c06;
    /// Host FS selector.
    HOST_FS_SELECTOR: u16 = 0x0c08;
    /// Host GS selector.
    HOST_GS_SELECTOR: u16 = 0x0c0a;
    /// Host TR selector.
    HOST_TR_SELECTOR: u16 = 0x0c0c;

    /// Physical address of I/O bitmap A: ports 0 to 0x7fff.
    IO_BITMAP_A: u64 = 0x2000;
    /// Physical address of I/O bitmap B: ports 0x8000 to 0xffff.
    IO_BITMAP_B: u64 = 0x2002;
    /// Physical address of the MSR bitmaps.
    MSR_BITMAP: u64 = 0x2004;
    /// Physical address of the list of MSRs stored on exit.
    EXIT_MSR_STORE: u64 = 0x2006;
    /// Physical address of the list of MSRs loaded on exit.
    EXIT_MSR_LOAD: u64 = 0x2008;
    /// Physical address of the list of MSRs loaded on entry.
    ENTRY_MSR_LOAD: u64 = 0x200a;
    /// What the guest reads of the time-stamp counter, less what the processor has.
    TSC_OFFSET: u64 = 0x2010;
    /// Physical address of the virtual-APIC page.
    VIRTUAL_APIC: u64 = 0x2012;
    /// Extended-page-table pointer.
    EPT_POINTER: u64 = 0x201a;
    /// Physical address of the VMREAD bitmap.
    VMREAD_BITMAP: u64 = 0x2026;
    /// Physical address of the VMWRITE bitmap.
    VMWRITE_BITMAP: u64 = 0x2028;
    /// Which XSAVES components cause an exit.
    XSS_EXITING_BITMAP: u64 = 0x202c;
    /// Factor of the time-stamp counter.
    TSC_MULTIPLIER: u64 = 0x2032;
    /// Guest-physical address that caused an EPT exit.
    GUEST_PHYSICAL_ADDRESS: u64 = 0x2400;
    /// Physical address of the shadow VMCS, or all ones.
    VMCS_LINK_POINTER: u64 = 0x2800;
    /// Guest IA32_DEBUGCTL.
    GUEST_DEBUGCTL: u64 = 0x2802;
    /// Guest IA32_PAT.
    GUEST_PAT: u64 = 0x2804;
    /// Guest IA32_EFER.
    GUEST_EFER: u64 = 0x2806;
    /// Guest IA32_PERF_GLOBAL_CTRL.
    GUEST_PERF_GLOBAL: u64 = 0x2808;
    /// First of the four page-directory-pointer-table entries under PAE paging.
    GUEST_PDPTE0: u64 = 0x280a;
    /// Second of the four.
    GUEST_PDPTE1: u64 = 0x280c;
    /// Third of the four.
    GUEST_PDPTE2: u64 = 0x280e;
    /// Fourth of the four.
    GUEST_PDPTE3: u64 = 0x2810;
    /// Host IA32_PAT.
    HOST_PAT: u64 = 0x2c00;
    /// Host IA32_EFER.
    HOST_EFER: u64 = 0x2c02;

    /// Host IA32_PERF_GLOBAL_CTRL.
    HOST_PERF_GLOBAL: u64 = 0x2c04;
    /// Pin-based controls.
    PIN_CONTROLS: u32 = 0x4000;
    /// Primary processor-based controls.
    PRIMARY_CONTROLS: u32 = 0x4002;
    /// Which exceptions cause an exit.
    EXCEPTION_BITMAP: u32 = 0x4004;
    /// Number of CR3 targets.
    CR3_TARGET_COUNT: u32 = 0x400a;
    /// VM-exit controls.
    EXIT_CONTROLS: u32 = 0x400c;
    /// MSRs stored on exit.
    EXIT_MSR_STORE_COUNT: u32 = 0x400e;
    /// MSRs loaded on exit.
    EXIT_MSR_LOAD_COUNT: u32 = 0x4010;
    /// VM-entry controls.
    ENTRY_CONTROLS: u32 = 0x4012;
    /// MSRs loaded on entry.
    ENTRY_MSR_LOAD_COUNT: u32 = 0x4014;
    /// Event to inject at entry.
    ENTRY_INTERRUPTION: u32 = 0x4016;
    /// Its error code.
    ENTRY_ERROR_CODE: u32 = 0x4018;
    /// Length of the instruction whose software event is injected.
    ENTRY_INSTRUCTION_LENGTH: u32 = 0x401a;
    /// Task priority below which the guest exits.
    TPR_THRESHOLD: u32 = 0x401c;
    /// With the next, which page faults the exception bitmap is about.
    PAGE_FAULT_MASK: u32 = 0x4006;
    /// See above.
    PAGE_FAULT_MATCH: u32 = 0x4008;
    /// Secondary processor-based controls.
    SECONDARY_CONTROLS: u32 = 0x401e;
    /// Longest time between two PAUSEs of one loop.
    PAUSE_GAP: u32 = 0x4020;
    /// How long a loop of PAUSEs may last.
    PAUSE_WINDOW: u32 = 0x4022;
    /// Why the last VMX instruction failed.
    INSTRUCTION_ERROR: u32 = 0x4400;
    /// Why the exit happened.
    EXIT_REASON: u32 = 0x4402;
    /// The event that caused the exit.
    EXIT_INTERRUPTION: u32 = 0x4404;
    /// Error code of the event that caused the exit.
    EXIT_ERROR_CODE: u32 = 0x4406;
    /// The event that was being delivered when the exit happened.
    IDT_VECTORING: u32 = 0x4408;
    /// Its error code.
    IDT_VECTORING_CODE: u32 = 0x440a;
    /// Length in bytes of the instruction that caused the exit.
    EXIT_INSTRUCTION_LENGTH: u32 = 0x440c;
    /// More about the instruction that caused the exit.
    EXIT_INSTRUCTION_INFORMATION: u32 = 0x440e;
    /// Guest interruptibility state.
    GUEST_INTERRUPTIBILITY: u32 = 0x4824;
    /// Guest activity state.
    GUEST_ACTIVITY: u32 = 0x4826;
    /// Guest SMBASE.
    GUEST_SMBASE: u32 = 0x4828;
    /// VMX-preemption timer.
    PREEMPTION_TIMER: u32 = 0x482e;
    /// Guest IA32_SYSENTER_CS.
    GUEST_SYSENTER_CS: u32 = 0x482a;
    /// Host IA32_SYSENTER_CS.
    HOST_SYSENTER_CS: u32 = 0x4c00;

    /// CR0 bits that the visor owns.
    CR0_MASK: Natural = 0x6000;
    /// CR4 bits that the visor owns.
    CR4_MASK: Natural = 0x6002;
    /// What the guest reads of the CR0 bits that the visor owns.
    CR0_SHADOW: Natural = 0x6004;
    /// What the guest reads of the CR4 bits that the visor owns.
    CR4_SHADOW: Natural = 0x6006;
    /// More about the exit.
    EXIT_QUALIFICATION: Natural = 0x6400;
    /// Guest-linear address.
    GUEST_LINEAR_ADDRESS: Natural = 0x640a;
    /// Guest CR0.
    GUEST_CR0: Natural = 0x6800;
    /// Guest CR3.
    GUEST_CR3: Natural = 0x6802;
    /// Guest CR4.
    GUEST_CR4: Natural = 0x6804;
    /// Guest GDTR base.
    GUEST_GDTR_BASE: Natural = 0x6816;
    /// Guest IDTR base.
    GUEST_IDTR_BASE: Natural = 0x6818;
    /// Guest DR7.
    GUEST_DR7: Natural = 0x681a;
    /// Guest RSP.
    GUEST_RSP: Natural = 0x681c;
    /// Guest RIP.
    GUEST_RIP: Natural = 0x681e;
    /// Guest RFLAGS.
    GUEST_RFLAGS: Natural = 0x6820;
    /// Guest pending debug exceptions.
    GUEST_PENDING_DEBUG: Natural = 0x6822;
    /// Guest IA32_SYSENTER_ESP.
    GUEST_SYSENTER_ESP: Natural = 0x6824;
    /// Guest IA32_SYSENTER_EIP.
    GUEST_SYSENTER_EIP: Natural = 0x6826;
    /// Host CR0.
    HOST_CR0: Natural = 0x6c00;
    /// Host CR3.
    HOST_CR3: Natural = 0x6c02;
    /// Host CR4.
    HOST_CR4: Natural = 0x6c04;
    /// Host FS base.
    HOST_FS_BASE: Natural = 0x6c06;
    /// Host GS base.
    HOST_GS_BASE: Natural = 0x6c08;
    /// Host TR base.
    HOST_TR_BASE: Natural = 0x6c0a;
    /// Host GDTR base.
    HOST_GDTR_BASE: Natural = 0x6c0c;
    /// Host IDTR base.
    HOST_IDTR_BASE: Natural = 0x6c0e;
    /// Host IA32_SYSENTER_ESP.
    HOST_SYSENTER_ESP: Natural = 0x6c10;
    /// Host IA32_SYSENTER_EIP.
    HOST_SYSENTER_EIP: Natural = 0x6c12;
    /// Host RSP.
    HOST_RSP: Natural = 0x6c14;
    /// Host RIP.
    HOST_RIP: Natural = 0x6c16;
    /// Guest GDTR limit.
    GUEST_GDTR_LIMIT: u32 = 0x4810;
    /// Guest IDTR limit.
    GUEST_IDTR_LIMIT: u32 = 0x4812;
}

/// The four fields of one guest segment register.
#[derive(Clone, Copy, Debug)]
pub struct SegmentFields {
    /// Selector.
    pub selector: Field<u16>,
    /// Limit in bytes.
    pub limit: Field<u32>,
    /// Access rights (SDM vol. 3, table 26-2).
    pub rights: Field<u32>,
    /// Base linear address.
    pub base: Field<Natural>,
}

/// Guest segment registers in the order of the manual: ES, CS, SS, DS, FS, GS, LDTR, TR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segment {
    /// Extra.
    Es,
    /// Code.
    Cs,
    /// Stack.
    Ss,
    /// Data.
    Ds,
    /// F.
    Fs,
    /// G.
    Gs,
    /// Local descriptor table.
    Ldtr,
    /// Task.
    Tr,
}

impl Segment {
    /// All eight, in the order of their encodings.
    pub const ALL: [Self; 8] =
        [Self::Es, Self::Cs, Self::Ss, Self::Ds, Self::Fs, Self::Gs, Self::Ldtr, Self::Tr];

    /// The register's four fields.
    #[must_use]
    pub const fn fields(self) -> SegmentFields {
        let n = match self {
            Self::Es => 0,
            Self::Cs => 2,
            Self::Ss => 4,
            Self::Ds => 6,
            Self::Fs => 8,
            Self::Gs => 10,
            Self::Ldtr => 12,
            Self::Tr => 14,
        };
        SegmentFields {
            selector: Field::new(0x0800 + n),
            limit: Field::new(0x4800 + n),
            rights: Field::new(0x4814 + n),
            base: Field::new(0x6806 + n),
        }
    }
}
