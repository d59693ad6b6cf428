//! The CPU membrane: what a protected VM shows its host, and what the host may answer.
//!
//! There are two VMCS12 of each protected virtual processor. The *shown* one is the host's, as for
//! any VM, and from the first entry on holds decoys where the VM's state was. The *effective* one is
//! the visor's alone: the true state, and controls made of the host's. VMCS02 is made of the effective
//! one by [`Vcpu::merge`], as for any VM.
//!
//! An exit goes to the host as [`crate::disclosure`] says. The host answers as it always does, by
//! changing registers and moving RIP on; the visor takes out of that what the answer needs, and
//! ignores the rest, as hosts write all registers back at times.

mod answers;
mod controls;
mod decoy;
mod device;
mod enter;
mod exits;
mod leave;
pub mod msr;
mod processor;
pub mod start;
pub mod window;

use core::fmt;

use emulate::walk::Memory;
use ept::list::List;
use ept::shadow::Access;

use crate::cpuid;
use crate::disclosure::Exit;
use crate::exit::Event;
use crate::field::Vmcs;
use crate::unroll::unroll;
use crate::vcpu::Vcpu;
use crate::vmcs12::Vmcs12;

pub use decoy::DECOY_RIP;
use device::Job;
pub use leave::{ask_again, shut_down};
use processor::Name;

/// The general-purpose registers of whoever the processor is about to run, or was running, by their
/// numbers in instruction encodings (SDM vol. 2, table 2-2). Number 4, RSP, is in the VMCS and never
/// asked for.
pub trait Registers {
    /// The register with this number.
    fn get(&self, number: u8) -> u64;
    /// Sets the register with this number.
    fn set(&mut self, number: u8, value: u64);
}

/// What the guard needs of the VM besides its VMCS: its memory, and what is where in it.
pub trait Space: Memory {
    /// Whether the VM has a device at this guest-physical address: its ticket has no memory there.
    fn is_device(&self, address: u64) -> bool;
    /// PKRU of the VM.
    fn pkru(&self) -> u32;
    /// Bits in a physical address of the VM, at most 52.
    fn physical_bits(&self) -> u32;
    /// The id of a processor that has begun with this vector and asks for it for the first time, when the
    /// host would say that it is `told`.
    fn name(&self, vector: u8, told: u32) -> u8;
    /// Whether the VM has processor `id` begin anew with this vector; then it has begun.
    fn restarts(&self, id: u8, vector: u8) -> bool;
    /// What the host sees stored when the VM stores `value` in a device: `place` is the address and the number
    /// of bytes. Asked again, it is the same.
    ///
    /// # Errors
    /// The VM needs this page first, with these rights.
    fn stored(&self, place: (u64, u8), value: u64) -> Result<u64, (u64, Access)>;
    /// What the VM has loaded from there when the host has answered `value`.
    fn loaded(&self, place: (u64, u8), value: u64) -> u64;
    /// What is to be stored in a device of the VM's before it runs: an address, and 4 bytes. Said once.
    fn kick(&self) -> Option<(u64, u64)>;
    /// Makes `word` of the window page an entry for the page of a device at `address`; returns where the window
    /// page is.
    ///
    /// # Errors
    /// The host has to provide this page first, with these rights.
    fn open(&self, address: u64, word: u8) -> Result<u64, (u64, Access)>;
    /// Brings the VM what its devices have for it, before it runs and learns of that by an interrupt.
    ///
    /// # Errors
    /// The VM needs this page first, with these rights.
    fn deliver(&self) -> Result<(), (u64, Access)>;
}

/// Bits 31:0.
fn low(value: u64) -> u32 {
    let [a, b, c, d, ..] = value.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

const RSP: u8 = 4;

/// General-purpose registers at rest.
type File = [u64; 16];

/// Fills `file` in place: a copy of one would go through more vector registers than the visor may use.
fn save(registers: &impl Registers, file: &mut File) {
    let mut saver = Saver(registers, file);
    unroll!(saver.one());
}

fn restore(file: &File, registers: &mut impl Registers) {
    let mut restorer = Restorer(file, registers);
    unroll!(restorer.one());
}

/// Saves registers by numbers that are constants, so that each is a move: it is done at every exit.
struct Saver<'a, R>(&'a R, &'a mut File);

impl<R: Registers> Saver<'_, R> {
    #[inline(always)]
    fn one<const NUMBER: usize>(&mut self) {
        if let (Some(value), Some(number)) = (self.1.get_mut(NUMBER), number(NUMBER)) {
            *value = self.0.get(number);
        }
    }
}

/// The way back.
struct Restorer<'a, R>(&'a File, &'a mut R);

impl<R: Registers> Restorer<'_, R> {
    #[inline(always)]
    fn one<const NUMBER: usize>(&mut self) {
        if let (Some(value), Some(number)) = (self.0.get(NUMBER), number(NUMBER)) {
            self.1.set(number, *value);
        }
    }
}

/// A register that is in files.
#[inline(always)]
fn number(index: usize) -> Option<u8> {
    u8::try_from(index).ok().filter(|number| *number != RSP)
}

/// An event of the VM's whose delivery an exit cut short, to be delivered at the next entry: VM-entry
/// interruption information, error code, instruction length.
#[derive(Clone, Copy)]
struct Delivery {
    information: u32,
    code: u32,
    length: u32,
}

/// For how many leaves and subleaves the host's answer to CPUID is remembered. Systems ask for some 30.
const FEATURES: usize = 64;

/// What the visor keeps of a protected virtual processor besides the effective VMCS12.
pub struct Secrets {
    /// The VM's registers while it does not run.
    gprs: File,
    /// What the host has left in the processor's registers at its last entry.
    outside: File,
    /// The exit that the host has not answered yet.
    pending: Option<Exit>,
    /// RIP and the length of the instruction as the host knows them of that exit.
    told: (u64, u32),
    /// What that exit is an access of.
    job: Option<Job>,
    delivery: Option<Delivery>,
    name: Name,
    /// Whom its next command to the local APIC is for, in xAPIC mode.
    destination: u32,
    /// What the host has answered to CPUID first: leaf, subleaf, and the answer as it came.
    features: List<(u32, u32, cpuid::Answer), FEATURES>,
    /// Translations of the VM's must go.
    flush: bool,
    xcr0: u64,
    /// CPUID leaf 0xD, subleaf 0, EDX:EAX.
    xcr0_supported: u64,
    /// IA32_VMX_CR4_FIXED1.
    cr4_supported: u64,
    /// The tag of the VM's translations; 0: none.
    tag: u16,
}

impl Secrets {
    /// Of a virtual processor that has not run. `tag` is its VPID, which no other of the same VM may
    /// have on the same processor: each could otherwise be made to use the other's translations. 0 is
    /// always right: nothing stays cached then. `supported` are CPUID.0xD.0 EDX:EAX and
    /// IA32_VMX_CR4_FIXED1.
    #[must_use]
    pub const fn new(tag: u16, supported: (u64, u64)) -> Self {
        Self {
            gprs: [0; 16],
            outside: [0; 16],
            pending: None,
            told: (0, 0),
            job: None,
            delivery: None,
            name: Name::Is(0),
            destination: 0,
            features: const { List::new((0, 0, answers::NOTHING)) },
            flush: false,
            xcr0: 1,
            xcr0_supported: supported.0,
            cr4_supported: supported.1,
            tag,
        }
    }
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secrets")
    }
}

/// A protected virtual processor that this processor has at hand.
#[derive(Debug)]
pub struct Guarded<'a> {
    effective: Vcpu<'a>,
    secrets: &'a mut Secrets,
}

/// What becomes of an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Verdict {
    /// The host gets what the shown VMCS12 and the registers now hold.
    Host,
    /// Likewise; and the VM sends an INIT or start-up IPI by this command, in the form of x2APIC mode.
    Signal(u64),
    /// The visor has answered: the VM goes on after the instruction.
    Step,
    /// The VM gets an exception.
    Raise(Event),
    /// The VM goes on where it was, with the event that VMCS02 now holds.
    Stay,
    /// Likewise, and bits 3:0 and some of the others become set in DR6, as a debug exception has it
    /// (SDM vol. 3, 29.2.1): bits 3:0 are replaced, the others added.
    Debug(u64),
    /// CPUID leaf 0xD: the processor's answer with the VM's XCR0 and an IA32_XSS of 0, made fit by
    /// [`Guarded::extended_state`]; then as `Step`.
    ExtendedState,
    /// The VM's tables have no translation for this access.
    Fault {
        /// Guest-physical address.
        address: u64,
        /// Kinds of access.
        access: Access,
    },
    /// INS or OUTS: [`Guarded::string_port`] is to be called.
    StringPort,
    /// The VM gets a page fault: its CR2 is to become `linear`.
    PageFault {
        /// Linear address.
        linear: u64,
        /// Error code.
        code: u32,
    },
    /// The VM cannot go on.
    Stop(Cause),
}

/// What becomes of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Entered {
    /// The VM runs.
    Run,
    /// The VM does not run: the shown VMCS12 and the registers hold the next exit.
    Show,
    /// Likewise; and the VM sends what [`Verdict::Signal`] says.
    Signal(u64),
    /// The VM does not run before it has this page with these rights. Then [`Guarded::resume`], or
    /// [`Guarded::show_page`] if the host has to provide it.
    Page {
        /// Guest-physical address.
        address: u64,
        /// Kinds of access.
        access: Access,
    },
}

/// Why a protected VM is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// There is no rule for exits of this basic reason.
    NoRule(u16),
    /// It has shut down (triple fault).
    Shutdown,
    /// A task switch.
    TaskSwitch,
    /// Paging by PAE outside IA-32e mode.
    PaePaging,
    /// Its first state is one in which no VM may start.
    FirstState,
    /// It has accessed a device at this guest-physical address in a way that none can be accessed: to
    /// fetch code, to walk page tables, to deliver an event.
    Device(u64),
    /// It has accessed a device by an instruction that is not known.
    Instruction,
}

impl Cause {
    /// A stable number, for the audit log; bits 15:8 are the kind, and 31:16 a detail.
    #[must_use]
    pub fn number(self) -> u64 {
        match self {
            Self::NoRule(reason) => 0x100 | u64::from(reason) << 16,
            Self::Shutdown => 0x200,
            Self::TaskSwitch => 0x400,
            Self::PaePaging => 0x500,
            Self::FirstState => 0x600,
            Self::Device(_) => 0x700,
            Self::Instruction => 0x800,
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRule(reason) => write!(f, "no rule for exits of basic reason {reason}"),
            Self::Shutdown => f.write_str("the VM has shut down"),
            Self::TaskSwitch => f.write_str("task switches are not supported in protected VMs"),
            Self::PaePaging => f.write_str("32-bit PAE paging is not supported in protected VMs"),
            Self::FirstState => f.write_str("the VM starts in a state in which none may start"),
            // Not where in the page: of a walk that would tell of the linear address.
            Self::Device(address) => {
                write!(f, "no such access to a device, in the page at {:#x}", address & !0xfff)
            }
            Self::Instruction => f.write_str("an instruction on a device is not supported"),
        }
    }
}

impl<'a> Guarded<'a> {
    /// A virtual processor of which VMCS02 holds nothing yet.
    pub fn new(effective: &'a mut Vmcs12, secrets: &'a mut Secrets) -> Self {
        Self { effective: Vcpu::new(effective), secrets }
    }

    /// The effective VMCS12.
    #[must_use]
    pub const fn effective(&self) -> &Vcpu<'a> {
        &self.effective
    }

    /// The effective VMCS12, to be merged into VMCS02.
    pub const fn effective_mut(&mut self) -> &mut Vcpu<'a> {
        &mut self.effective
    }

    /// Reads what only VMCS02 holds, which is about to be used for another.
    pub fn synchronize(&mut self, v02: &impl Vmcs) {
        if self.effective.has_stale() {
            self.effective.fetch(v02);
        }
    }

    /// XCR0 of the VM.
    #[must_use]
    pub const fn xcr0(&self) -> u64 {
        self.secrets.xcr0
    }

    /// Whether it is the VM's first one.
    #[must_use]
    pub const fn is_first(&self) -> bool {
        matches!(self.secrets.name, Name::Is(0))
    }

    /// It is not the VM's first one, but begins with this vector.
    pub const fn begins_at(&mut self, vector: u8) {
        self.secrets.name = Name::Begun(vector);
    }

    /// Whether translations with the VM's tag must be dropped before the entry (INVVPID), as its own
    /// instructions would have done. Without a tag there are none.
    #[must_use]
    pub const fn take_flush(&mut self) -> bool {
        core::mem::replace(&mut self.secrets.flush, false)
    }

    /// The processor has refused to enter: the host gets back the registers that it has entered with.
    pub fn take_back(&mut self, registers: &mut impl Registers) {
        restore(&self.secrets.outside, registers);
    }

    /// Sets a field of the effective VMCS12, and notes it as changed if it was another. One of the
    /// VM's state must not be stale.
    fn put(&mut self, encoding: u32, value: u64) {
        put(&mut self.effective, encoding, value);
    }
}

/// Sets a field if it is another.
#[inline(always)]
fn put(vcpu: &mut Vcpu<'_>, encoding: u32, value: u64) {
    if vcpu.fields().read_raw(encoding) != value {
        vcpu.write(encoding, value);
    }
}
