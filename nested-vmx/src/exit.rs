//! Why the processor left the host (SDM vol. 3D, appendix C), and with which event in hand.

/// Basic exit reasons that the visor knows; all others have no rule and stop the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Exception or NMI.
    ExceptionOrNmi,
    /// The host triple-faulted.
    TripleFault,
    /// An INIT signal arrived.
    Init,
    /// A start-up IPI arrived.
    Sipi,
    /// The host can take an NMI now.
    NmiWindow,
    /// CPUID.
    Cpuid,
    /// GETSEC.
    Getsec,
    /// INVD.
    Invd,
    /// An instruction that only exists with VMX on.
    VmxInstruction,
    /// Access to a control register.
    ControlRegister,
    /// IN, OUT, INS, OUTS.
    Io,
    /// RDMSR.
    ReadMsr,
    /// WRMSR.
    WriteMsr,
    /// EPT violation.
    EptViolation,
    /// XSETBV.
    Xsetbv,
    /// The VM entry failed: bits 15:0 of the reason.
    EntryFailure(u16),
    /// No rule.
    Other(u16),
}

impl Reason {
    /// Decodes the exit-reason field.
    #[must_use]
    pub const fn decode(raw: u32) -> Self {
        let [low, high, _, top] = raw.to_le_bytes();
        let basic = u16::from_le_bytes([low, high]);
        if top & 0x80 != 0 {
            return Self::EntryFailure(basic);
        }
        match basic {
            0 => Self::ExceptionOrNmi,
            2 => Self::TripleFault,
            3 => Self::Init,
            4 => Self::Sipi,
            8 => Self::NmiWindow,
            10 => Self::Cpuid,
            11 => Self::Getsec,
            13 => Self::Invd,
            // VMCALL to VMXON, INVEPT, INVVPID, VMFUNC
            18..=27 | 50 | 53 | 59 => Self::VmxInstruction,
            28 => Self::ControlRegister,
            30 => Self::Io,
            31 => Self::ReadMsr,
            32 => Self::WriteMsr,
            48 => Self::EptViolation,
            55 => Self::Xsetbv,
            other => Self::Other(other),
        }
    }

    /// Whether the exit is by an instruction that raises #GP(0) outside ring 0.
    #[must_use]
    pub const fn is_privileged_instruction(self) -> bool {
        match self {
            Self::Invd | Self::ControlRegister | Self::ReadMsr | Self::WriteMsr | Self::Xsetbv => {
                true
            }
            Self::ExceptionOrNmi
            | Self::TripleFault
            | Self::Init
            | Self::Sipi
            | Self::NmiWindow
            | Self::Cpuid
            | Self::Getsec
            | Self::VmxInstruction
            | Self::Io
            | Self::EptViolation
            | Self::EntryFailure(_)
            | Self::Other(_) => false,
        }
    }
}

/// How many basic exit reasons are counted; those above share the last counter.
pub const COUNTED_REASONS: usize = 70;

/// An event to inject, or one that was being delivered (SDM vol. 3, tables 26-17 and 26-20).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A non-maskable interrupt.
    Nmi,
    /// #UD.
    InvalidOpcode,
    /// #SS(0).
    StackFault,
    /// #GP with an error code.
    GeneralProtection(u32),
    /// #PF with an error code; CR2 is for the caller to set.
    PageFault(u32),
    /// #DF.
    DoubleFault,
}

const VALID: u32 = 1 << 31;
const HAS_ERROR_CODE: u32 = 1 << 11;
const TYPE: u32 = 7 << 8;
const TYPE_NMI: u32 = 2 << 8;
const TYPE_EXCEPTION: u32 = 3 << 8;
const TYPE_INT_N: u32 = 4 << 8;
const TYPE_INT3_INTO: u32 = 6 << 8;

impl Event {
    /// Values of the VM-entry interruption-information and error-code fields.
    #[must_use]
    pub const fn encode(self) -> (u32, u32) {
        match self {
            Self::Nmi => (VALID | TYPE_NMI | 2, 0),
            Self::InvalidOpcode => (VALID | TYPE_EXCEPTION | 6, 0),
            Self::StackFault => (VALID | TYPE_EXCEPTION | HAS_ERROR_CODE | 12, 0),
            Self::PageFault(code) => (VALID | TYPE_EXCEPTION | HAS_ERROR_CODE | 14, code),
            Self::GeneralProtection(code) => (VALID | TYPE_EXCEPTION | HAS_ERROR_CODE | 13, code),
            Self::DoubleFault => (VALID | TYPE_EXCEPTION | HAS_ERROR_CODE | 8, 0),
        }
    }
}

/// Whether an exit's interruption information names an NMI.
#[must_use]
pub const fn is_nmi(information: u32) -> bool {
    information & (VALID | 7 << 8) == VALID | TYPE_NMI
}

/// What a fault of the host becomes when it hits while another event is being delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// This event is injected.
    Inject(Event),
    /// The processor would shut down.
    TripleFault,
}

/// What #GP(0) becomes, given the IDT-vectoring information (SDM vol. 3, 7.15, table 7-5).
///
/// An interrupted interrupt or NMI is lost on bare hardware as well: only the fault is delivered,
/// with the EXT bit set (SDM vol. 2, INT n).
#[must_use]
pub const fn fault_during(vectoring: u32) -> Outcome {
    if vectoring & VALID == 0 {
        return Outcome::Inject(Event::GeneralProtection(0));
    }
    match (vectoring & TYPE, vectoring & 0xff) {
        (TYPE_EXCEPTION, 8) => Outcome::TripleFault,
        (TYPE_EXCEPTION, 0 | 10..=14 | 20 | 21) => Outcome::Inject(Event::DoubleFault),
        // INT n, INT3 and INTO are the program's own; everything else, INT1 too, counts as external.
        (TYPE_INT_N | TYPE_INT3_INTO, _) => Outcome::Inject(Event::GeneralProtection(0)),
        _ => Outcome::Inject(Event::GeneralProtection(1)),
    }
}
