//! What the host of a protected VM sees of each exit, and what it may change: the disclosure table.
//!
//! The table is data without any vendor's encodings; `guard` applies it for VMX. An exit without a
//! row stops the VM. `docs/disclosure.md` is made from it by
//! `cargo run -p nested-vmx --example disclosure`.

/// A general-purpose register as the host knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// RAX.
    A,
    /// RCX.
    C,
    /// RDX.
    D,
    /// RBX.
    B,
    /// The instruction's register operand, whichever it is. The host sees it as RAX.
    Operand,
}

impl Register {
    /// Its number in instruction encodings, for the host.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::A | Self::Operand => 0,
            Self::C => 1,
            Self::D => 2,
            Self::B => 3,
        }
    }
}

/// Which bits of a register take part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// As many bytes as the access has: 1, 2, 4 or 8.
    Access,
    /// Bits 3:0. As a change it makes the others 0.
    Four,
    /// Bits 31:0. As a change it makes the others 0, as instructions do.
    Half,
    /// All bits that the instruction uses in the VM's mode.
    Full,
}

/// Part of a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// The register.
    pub register: Register,
    /// The bits.
    pub width: Width,
}

/// What the host is told about an exit besides its reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// The length of the instruction.
    Length,
    /// The interrupt or exception that it is.
    Event,
    /// An interrupt or NMI of the host's whose delivery the exit cut short; never an event of the
    /// VM's own.
    Delivery,
    /// Port, direction and size.
    Port,
    /// Guest-physical address, direction and size. The length is that of an instruction of the visor's.
    Device,
    /// Which control register, and which instruction.
    Control,
    /// The four bits that LMSW loads.
    Source,
    /// The address of a page (bits 11:0 are 0), and whether it is mapped with too few rights.
    Page,
}

/// An exception that the host may raise instead of completing an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exception {
    /// #UD.
    InvalidOpcode,
    /// #GP(0).
    GeneralProtection,
}

/// Who answers, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The visor, and the host is not told.
    Visor,
    /// The host does what it likes. The VM goes on where it was.
    Resumes,
    /// The instruction counts as completed if the host has moved on by its length, and is repeated
    /// otherwise.
    Completes,
    /// Likewise, or the host raises this exception.
    CompletesOrRaises(Exception),
    /// The VM has stopped.
    Ends,
}

/// Kinds of exits that have a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// An interrupt of the host's.
    Interrupt,
    /// An NMI of the host's.
    Nmi,
    /// An INIT or start-up signal of the host's.
    Signal,
    /// #MC.
    MachineCheck,
    /// The VM can take an interrupt, as the host wanted to know.
    InterruptWindow,
    /// The VM can take an NMI, likewise.
    NmiWindow,
    /// The VM's task priority fell below the host's threshold.
    TaskPriority,
    /// The host's time is up.
    Timer,
    /// CPUID.
    Cpuid,
    /// HLT.
    Halt,
    /// PAUSE.
    Pause,
    /// MONITOR, MWAIT.
    Wait,
    /// WBINVD.
    WriteBack,
    /// MOV to CR0 or CR4.
    WriteControl,
    /// CLTS.
    ClearTaskSwitched,
    /// LMSW.
    LoadStatusWord,
    /// MOV to CR8.
    WritePriority,
    /// MOV from CR8.
    ReadPriority,
    /// XSETBV.
    ExtendedControl,
    /// IN, or one element of INS.
    PortIn,
    /// OUT, or one element of OUTS.
    PortOut,
    /// Part of a load from device memory.
    DeviceRead,
    /// Part of a store to device memory.
    DeviceWrite,
    /// RDMSR of a register that hosts emulate.
    ReadMsr,
    /// WRMSR likewise.
    WriteMsr,
    /// A page of the VM is absent, or mapped with too few rights.
    Page,
    /// RDMSR and WRMSR of all other registers.
    OwnMsr,
    /// CPUID about the size of the extended state.
    ExtendedState,
    /// VMCALL.
    Hypercall,
    /// An instruction of a feature that is hidden.
    Hidden,
    /// RDPMC.
    Counter,
    /// INVD.
    Discard,
    /// #AC.
    AlignmentCheck,
    /// #DB.
    Debug,
    /// The VM has shut down, or the visor has stopped it.
    Shutdown,
}

/// The rule for one kind of exit.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// The kind.
    pub exit: Exit,
    /// Its name in the document.
    pub name: &'static str,
    /// What the host is told.
    pub told: &'static [Told],
    /// What it sees of the registers. All others are 0.
    pub sees: &'static [Part],
    /// What it may change, if the instruction completes.
    pub changes: &'static [Part],
    /// Who answers.
    pub answer: Answer,
}

const fn part(register: Register, width: Width) -> Part {
    Part { register, width }
}

const ACCESS: &[Part] = &[part(Register::A, Width::Access)];
const INDEX: &[Part] = &[part(Register::C, Width::Half)];
const PAIR: &[Part] = &[part(Register::A, Width::Half), part(Register::D, Width::Half)];
const INDEX_AND_PAIR: &[Part] = &[
    part(Register::C, Width::Half),
    part(Register::A, Width::Half),
    part(Register::D, Width::Half),
];
const LEAF: &[Part] = &[part(Register::A, Width::Half), part(Register::C, Width::Half)];
const FOUR: &[Part] = &[
    part(Register::A, Width::Half),
    part(Register::B, Width::Half),
    part(Register::C, Width::Half),
    part(Register::D, Width::Half),
];
const OPERAND: &[Part] = &[part(Register::Operand, Width::Full)];
const PRIORITY: &[Part] = &[part(Register::Operand, Width::Four)];

const LENGTH: &[Told] = &[Told::Length];
const CONTROL: &[Told] = &[Told::Length, Told::Control];
const PORT: &[Told] = &[Told::Length, Told::Port];
const DEVICE: &[Told] = &[Told::Length, Told::Device];
const GP_OR_NOT: Answer = Answer::CompletesOrRaises(Exception::GeneralProtection);

/// Who is told what, sees what, and may change what.
type Rights = (&'static [Told], &'static [Part], &'static [Part]);
const NOTHING: Rights = (&[], &[], &[]);

const fn row(exit: Exit, name: &'static str, rights: Rights, answer: Answer) -> Row {
    let (told, sees, changes) = rights;
    Row { exit, name, told, sees, changes, answer }
}

/// The table.
pub const ROWS: [Row; 35] = [
    row(Exit::Interrupt, "interrupt of the host", (&[Told::Event], &[], &[]), Answer::Resumes),
    row(Exit::Nmi, "NMI of the host", (&[Told::Event, Told::Delivery], &[], &[]), Answer::Resumes),
    row(Exit::Signal, "INIT, start-up IPI of the host", NOTHING, Answer::Resumes),
    row(
        Exit::MachineCheck,
        "machine check",
        (&[Told::Event, Told::Delivery], &[], &[]),
        Answer::Resumes,
    ),
    row(Exit::InterruptWindow, "interrupt window", NOTHING, Answer::Resumes),
    row(Exit::NmiWindow, "NMI window", NOTHING, Answer::Resumes),
    row(Exit::TaskPriority, "task priority below threshold", NOTHING, Answer::Resumes),
    row(Exit::Timer, "preemption timer", NOTHING, Answer::Resumes),
    row(Exit::Cpuid, "CPUID, each leaf once", (LENGTH, LEAF, FOUR), Answer::Completes),
    row(Exit::Halt, "HLT", (LENGTH, &[], &[]), Answer::Completes),
    row(Exit::Pause, "PAUSE", (LENGTH, &[], &[]), Answer::Completes),
    row(
        Exit::Wait,
        "MONITOR, MWAIT",
        (LENGTH, &[], &[]),
        Answer::CompletesOrRaises(Exception::InvalidOpcode),
    ),
    row(Exit::WriteBack, "WBINVD", (LENGTH, &[], &[]), Answer::Completes),
    row(Exit::WriteControl, "MOV to CR0, CR4", (CONTROL, OPERAND, &[]), GP_OR_NOT),
    row(Exit::ClearTaskSwitched, "CLTS", (CONTROL, &[], &[]), GP_OR_NOT),
    row(
        Exit::LoadStatusWord,
        "LMSW",
        (&[Told::Length, Told::Control, Told::Source], &[], &[]),
        GP_OR_NOT,
    ),
    row(Exit::WritePriority, "MOV to CR8", (CONTROL, PRIORITY, &[]), GP_OR_NOT),
    row(Exit::ReadPriority, "MOV from CR8", (CONTROL, &[], PRIORITY), Answer::Completes),
    row(Exit::ExtendedControl, "XSETBV", (LENGTH, INDEX_AND_PAIR, &[]), GP_OR_NOT),
    row(Exit::PortIn, "IN, an element of INS", (PORT, &[], ACCESS), Answer::Completes),
    row(Exit::PortOut, "OUT, an element of OUTS", (PORT, ACCESS, &[]), Answer::Completes),
    row(Exit::DeviceRead, "load from device memory", (DEVICE, &[], ACCESS), Answer::Completes),
    row(Exit::DeviceWrite, "store to device memory", (DEVICE, ACCESS, &[]), Answer::Completes),
    row(Exit::ReadMsr, "RDMSR of an emulated register", (LENGTH, INDEX, PAIR), GP_OR_NOT),
    row(
        Exit::WriteMsr,
        "WRMSR of an emulated register, of EFER",
        (LENGTH, INDEX_AND_PAIR, &[]),
        GP_OR_NOT,
    ),
    row(
        Exit::Page,
        "page absent, or mapped with too few rights",
        (&[Told::Page, Told::Delivery], &[], &[]),
        Answer::Resumes,
    ),
    row(Exit::OwnMsr, "RDMSR, WRMSR of any other register", NOTHING, Answer::Visor),
    row(Exit::ExtendedState, "CPUID leaf 0xD", NOTHING, Answer::Visor),
    row(Exit::Hypercall, "VMCALL", NOTHING, Answer::Visor),
    row(Exit::Hidden, "GETSEC, VMX instructions", NOTHING, Answer::Visor),
    row(Exit::Counter, "RDPMC", NOTHING, Answer::Visor),
    row(Exit::Discard, "INVD", NOTHING, Answer::Visor),
    row(Exit::AlignmentCheck, "alignment check", NOTHING, Answer::Visor),
    row(Exit::Debug, "debug exception", NOTHING, Answer::Visor),
    row(Exit::Shutdown, "shutdown, or the VM was stopped", NOTHING, Answer::Ends),
];

impl Exit {
    /// The rule; `None` where there is none, and the VM stops.
    #[must_use]
    pub fn row(self) -> Option<&'static Row> {
        const { &ROWS }.iter().find(|row| row.exit == self)
    }
}

impl Row {
    /// Whether the host is told this.
    #[must_use]
    pub fn tells(&self, what: Told) -> bool {
        self.told.contains(&what)
    }
}
