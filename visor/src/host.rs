//! Exits of the host: what each one asks for, by the rules of `nested_vmx`.
#![expect(unsafe_code, reason = "instructions done on the host's behalf")]

mod deliver;

use core::sync::atomic::Ordering;

use boot::cmdline::Quirk;
use ept::addr::Frame;
use ept::shootdown::Processor;
use nested_vmx::exit::{self, Event, Outcome, Reason};
use nested_vmx::field::{
    CR0_MASK, CR0_SHADOW, CR4_SHADOW, EXIT_INTERRUPTION, EXIT_QUALIFICATION, EXIT_REASON,
    GUEST_CR0, GUEST_CR4, GUEST_PHYSICAL_ADDRESS, GUEST_RIP, GUEST_RSP, IDT_VECTORING, Segment,
    Vmcs,
};
use nested_vmx::state;
use nested_vmx::{cpuid, cr, msr};

use crate::cpu::vmx::Current;
use crate::cpu::{self, high, low};
use crate::events::{self, Event as Audit};
use crate::machine::Machine;
use crate::percpu::PerCpu;
use crate::scrub::{self, Last};
use crate::{io, nested, shootdown, smp, stop, table};

pub(crate) use deliver::{add_debug_causes, deliver_again, is_call, set_nmi_window, step_by};
use deliver::{deliver_nmi, inject, step};

/// The host's general-purpose registers but for RSP, which the VMCS holds, as `exit.s` saves them.
#[repr(C)]
#[derive(Debug, Default)]
pub(crate) struct Registers {
    /// RAX, RCX, RDX, RBX.
    pub(crate) rax: u64,
    pub(crate) rcx: u64,
    pub(crate) rdx: u64,
    pub(crate) rbx: u64,
    pub(crate) rbp: u64,
    pub(crate) rsi: u64,
    pub(crate) rdi: u64,
    /// R8 to R15.
    pub(crate) r: [u64; 8],
}

impl Registers {
    /// The register with this number in instruction encodings.
    #[inline(always)]
    pub(crate) fn numbered(&self, number: u8) -> u64 {
        match number {
            0 => self.rax,
            1 => self.rcx,
            2 => self.rdx,
            3 => self.rbx,
            4 => Current.read(GUEST_RSP),
            5 => self.rbp,
            6 => self.rsi,
            7 => self.rdi,
            high => self.r.get(usize::from(high & 7)).copied().unwrap_or(0),
        }
    }

    /// Sets the register with this number.
    #[inline(always)]
    pub(crate) fn set_numbered(&mut self, number: u8, value: u64) {
        match number {
            0 => self.rax = value,
            1 => self.rcx = value,
            2 => self.rdx = value,
            3 => self.rbx = value,
            4 => Current.write(GUEST_RSP, value),
            5 => self.rbp = value,
            6 => self.rsi = value,
            7 => self.rdi = value,
            high => {
                if let Some(register) = self.r.get_mut(usize::from(high & 7)) {
                    *register = value;
                }
            }
        }
    }

    /// As INIT leaves them: EDX holds the processor's signature.
    pub(crate) fn after_init() -> Self {
        let signature = cpu::cpuid(1, 0).eax;
        Self { rdx: signature.into(), ..Self::default() }
    }

    /// Sets what CPUID answers.
    pub(crate) fn set_cpuid(&mut self, answer: cpuid::Answer) {
        self.rax = answer.eax.into();
        self.rbx = answer.ebx.into();
        self.rcx = answer.ecx.into();
        self.rdx = answer.edx.into();
    }

    /// EDX:EAX.
    fn pair(&self) -> u64 {
        u64::from(low(self.rdx)) << 32 | u64::from(low(self.rax))
    }

    fn set_pair(&mut self, value: u64) {
        self.rax = low(value).into();
        self.rdx = high(value).into();
    }
}

/// How the host goes on after an exit.
pub(crate) enum Next {
    /// After the instruction that exited.
    Step,
    /// Where it was.
    Stay,
    /// With an exception.
    Raise(Event),
    /// Not at all: the processor has shut down.
    Shutdown,
}

/// #GP(0): the answer to what a real processor would refuse.
pub(crate) const GP0: Next = Next::Raise(Event::GeneralProtection(0));

/// Called by `exit.s` for every exit.
pub(crate) extern "C" fn on_exit(registers: &mut Registers) {
    let began = cpu::tsc();
    let cpu = PerCpu::current();
    let raw = Current.read(EXIT_REASON);
    cpu.count_exit(raw & 0xffff);
    let machine = Machine::running();
    let next = if cpu.in_guest.get() {
        nested::exit(cpu, machine, raw, registers)
    } else {
        handle(cpu, machine, raw, registers)
    };
    conclude(cpu, machine, next, registers);
    cpu.count_ticks(cpu::tsc().wrapping_sub(began));
}

#[inline(never)]
fn go_on(cpu: &PerCpu, next: Next) {
    match next {
        Next::Stay => {}
        Next::Step => step(),
        Next::Raise(event) => inject(event),
        Next::Shutdown => reset_by_host(cpu),
    }
}

#[inline(always)]
fn conclude(cpu: &PerCpu, machine: &Machine, next: Next, registers: &mut Registers) {
    match next {
        Next::Stay => {}
        Next::Step | Next::Raise(_) | Next::Shutdown => go_on(cpu, next),
    }
    if cpu.nmi_owed.get() {
        deliver_nmi(cpu, machine, registers);
    }
    if cpu.in_guest.get() {
        nested::before_entry(cpu, machine);
    }
}

/// Called by `exit.s` before an entry when an NMI has arrived since the exit.
pub(crate) extern "C" fn on_late_nmi(registers: &mut Registers) {
    let cpu = PerCpu::current();
    while cpu.take_nmi() {
        if !is_call(cpu) {
            cpu.nmi_owed.set(true);
        }
    }
    conclude(cpu, Machine::running(), Next::Stay, registers);
}

/// Called by `exit.s` when the processor has refused to enter: only the host's own fault if it is its
/// VM.
pub(crate) extern "C" fn on_refused(registers: &mut Registers) {
    let (cpu, machine) = (PerCpu::current(), Machine::running());
    if !cpu.in_guest.get() {
        stop::entry_failed();
    }
    let next = nested::entry_refused(cpu, machine, registers);
    conclude(cpu, machine, next, registers);
}

fn handle(cpu: &PerCpu, machine: &Machine, raw: u32, registers: &mut Registers) -> Next {
    let reason = Reason::decode(raw);
    // The processor checks this before it exits (SDM vol. 3, 27.1.1); Bochs 2.7 not always.
    if reason.is_privileged_instruction() && privilege_level() != 0 {
        return GP0;
    }
    match reason {
        Reason::Cpuid => answer_cpuid(registers),
        Reason::Io => io::handle(cpu, machine, registers),
        Reason::ReadMsr => read_msr(registers),
        Reason::WriteMsr => write_msr(cpu, registers),
        Reason::ControlRegister => control_register(cpu, registers),
        Reason::Xsetbv => xsetbv(registers),
        Reason::VmxInstruction => vmx_instruction(cpu, machine, raw, registers),
        // SMX is hidden.
        Reason::Getsec => Next::Raise(Event::InvalidOpcode),
        Reason::Invd => {
            // INVD would throw away what the visor has in the caches as well.
            cpu::write_back_caches();
            Next::Step
        }
        Reason::EptViolation => ept_violation(cpu, registers),
        // Only NMIs exit: the exception bitmap is 0.
        Reason::ExceptionOrNmi => {
            let information = Current.read(EXIT_INTERRUPTION);
            assert!(exit::is_nmi(information), "exception {information:#x} exits");
            cpu::unblock_nmis();
            let _ = cpu.nmi_arrived.fetch_add(1, Ordering::Relaxed);
            Next::Stay
        }
        Reason::NmiWindow => {
            set_nmi_window(false);
            Next::Stay
        }
        Reason::Init => init(cpu, registers),
        Reason::Sipi => start_up(cpu, registers),
        Reason::TripleFault => Next::Shutdown,
        Reason::EntryFailure(reason) => panic!("VM entry failed with basic reason {reason}"),
        Reason::Other(reason) => panic!("no rule for exits of basic reason {reason}"),
    }
}

/// The host's CPL: the DPL of SS (SDM vol. 3, 26.4.1).
fn privilege_level() -> u32 {
    Current.read(Segment::Ss.fields().rights) >> 5 & 3
}

/// CR0 as the host reads it.
pub(crate) fn cr0() -> u64 {
    let owned = Current.read(CR0_MASK);
    Current.read(GUEST_CR0) & !owned | Current.read(CR0_SHADOW) & owned
}

pub(crate) fn in_64_bit_code() -> bool {
    Current.read(Segment::Cs.fields().rights) & 1 << 13 != 0
}

/// Where the bits of a canonical address that must be equal begin, by the current VMCS's CR4.
pub(crate) fn sign_bit() -> u8 {
    const LA57: u64 = 1 << 12;
    if Current.read(GUEST_CR4) & LA57 != 0 { 56 } else { 47 }
}

fn answer_cpuid(registers: &mut Registers) -> Next {
    let (leaf, subleaf) = (low(registers.rax), low(registers.rcx));
    let answer = cpuid::filter(leaf, subleaf, cpu::cpuid(leaf, subleaf), Current.read(GUEST_CR4));
    registers.set_cpuid(answer);
    Next::Step
}

pub(crate) fn read_msr(registers: &mut Registers) -> Next {
    let Some(value) = msr_value(low(registers.rcx)) else {
        return GP0;
    };
    registers.set_pair(value);
    Next::Step
}

/// What the host reads of MSR `index`.
pub(crate) fn msr_value(index: u32) -> Option<u64> {
    let machine = Machine::running();
    match msr::read(index) {
        msr::Read::Masked { clear, set } => Some(cpu::read_msr(index) & !clear | set),
        msr::Read::Mtrr => machine.tables.read_mtrr(index),
        msr::Read::VmxCapability => machine.advertised.msr(index),
        msr::Read::Fault if msr::is_shared(index) => cpu::try_read_msr(index),
        msr::Read::Fault => None,
    }
}

pub(crate) fn write_msr(cpu: &PerCpu, registers: &Registers) -> Next {
    if set_msr(cpu, low(registers.rcx), registers.pair()) { Next::Step } else { GP0 }
}

/// Writes MSR `index` for the host; `false` if it may not, or the processor refuses the value.
pub(crate) fn set_msr(cpu: &PerCpu, index: u32, value: u64) -> bool {
    let machine = Machine::running();
    let current = if index == msr::APIC_BASE { cpu::read_msr(index) } else { 0 };
    match msr::write(index, value, current) {
        // SAFETY: the rules only let through registers on which the visor does not depend.
        msr::Write::Perform => unsafe { cpu::try_write_msr(index, value) },
        // SAFETY: likewise; the host writes these itself without exits, and VMX does not switch them.
        msr::Write::Fault if msr::is_shared(index) => unsafe { cpu::try_write_msr(index, value) },
        msr::Write::Mtrr => machine.tables.write_mtrr(cpu.index.get(), index, value),
        msr::Write::Ignore => true,
        msr::Write::Fault => {
            events::record(cpu.index.get(), Audit::RefusedMsr(index));
            false
        }
    }
}

pub(crate) struct HostRam;

impl cr::HostMemory for HostRam {
    fn read_u64(&self, address: u64) -> Option<u64> {
        Machine::get()?.tables.read_host(address)
    }

    fn width(&self) -> u8 {
        Machine::running().width
    }
}

fn vmx_instruction(
    cpu: &PerCpu,
    machine: &Machine,
    reason: u32,
    registers: &mut Registers,
) -> Next {
    let next = nested::execute(cpu, machine, reason & 0xffff, registers);
    if reason & 0xffff == nested::VMXOFF && nested::takes_init(cpu) {
        // It ends the blocking of INIT.
        step();
        return init(cpu, registers);
    }
    next
}

fn control_register(cpu: &PerCpu, registers: &Registers) -> Next {
    let in_vmx = nested::is_on(cpu);
    match cr::Access::decode(Current.read(EXIT_QUALIFICATION)) {
        cr::Access::WriteCr0(number) => {
            let value = registers.numbered(number);
            const FIXED: u64 = cr::CR0_PE | cr::CR0_NE | cr::CR0_PG;
            if in_vmx && value & FIXED != FIXED {
                return GP0;
            }
            // Outside 64-bit code the upper half of a register means nothing.
            let value = if in_64_bit_code() { value } else { low(value).into() };
            match cr::write_cr0(&mut Current, &HostRam, value) {
                Ok(cache) => {
                    cpu::set_cache_control(cache);
                    // Switching paging off drops what is cached; a VM entry with a VPID does not.
                    cpu::vmx::invept_all();
                    Next::Step
                }
                Err(cr::Fault) => GP0,
            }
        }
        cr::Access::WriteCr4(number) => write_cr4(registers.numbered(number), in_vmx),
        cr::Access::Unexpected => panic!("no rule for this control-register access"),
    }
}

/// MOV to CR4 exits if it changes VMXE or sets a bit of a hidden feature, which the host reads as 0.
#[expect(clippy::fn_params_excessive_bools, reason = "whether the host is in VMX operation")]
fn write_cr4(value: u64, in_vmx: bool) -> Next {
    let shadow = Current.read(CR4_SHADOW);
    let differs = (value ^ shadow) & cr::CR4_OWNED;
    if differs != cr::CR4_VMXE || (in_vmx && value & cr::CR4_VMXE == 0) {
        return GP0;
    }
    // Executed again, the instruction changes no bit of the visor's any more, and the processor
    // does the rest.
    Current.write(CR4_SHADOW, shadow ^ cr::CR4_VMXE);
    Next::Stay
}

fn xsetbv(registers: &Registers) -> Next {
    let supported = cpu::cpuid(0xd, 0);
    let supported = u64::from(supported.edx) << 32 | u64::from(supported.eax);
    let value = registers.pair();
    if !cr::xsetbv_is_valid(low(registers.rcx), value, supported) {
        return GP0;
    }
    // SAFETY: the value was just checked; the instruction exits only where CR4.OSXSAVE can be set,
    // and then the visor has set its own.
    unsafe { cpu::write_xcr0(value) }
    Next::Step
}

fn ept_violation(cpu: &PerCpu, registers: &mut Registers) -> Next {
    let address = Current.read(GUEST_PHYSICAL_ADDRESS);
    let stored = table::store(Machine::running(), address, registers);
    stored.unwrap_or_else(|| repeat_or_refuse(cpu, address))
}

/// An access to the host's physical `address` that EPT01 did not permit, or shadow tables did not:
/// repeated, if it may be by now, or after a table of a VM that is in the way was given up.
pub(crate) fn repeat_or_refuse(cpu: &PerCpu, address: u64) -> Next {
    let machine = Machine::running();
    let frame = Frame::containing(address);
    if machine.tables.reaches(address, Current.read(EXIT_QUALIFICATION)) {
        // Another processor was changing the tables.
    } else if machine.tables.is_table(frame) {
        // If it is not done, the host's access exits again.
        let _ = machine.tables.demote(frame);
    } else if machine.tables.show(frame) {
        // A protected VM's: what the host sees there is sealed now.
    } else if machine.tables.reaches(address, Current.read(EXIT_QUALIFICATION)) {
        // Another processor was quicker.
    } else {
        return refuse_access(cpu, address);
    }
    deliver_again();
    Next::Stay
}

/// #GP(0), for an access to what is not the host's.
fn refuse_access(cpu: &PerCpu, address: u64) -> Next {
    let [access, ..] = Current.read(EXIT_QUALIFICATION).to_le_bytes();
    let rip = Current.read(GUEST_RIP);
    let access = access & 7;
    events::record(cpu.index.get(), Audit::ForbiddenAccess { address, access, rip });
    match exit::fault_during(Current.read(IDT_VECTORING)) {
        Outcome::Inject(event) => Next::Raise(event),
        Outcome::TripleFault => Next::Shutdown,
    }
}

fn init(cpu: &PerCpu, registers: &mut Registers) -> Next {
    const BOOTSTRAP: u64 = 1 << 8;
    if nested::blocks_init(cpu) {
        return Next::Stay;
    }
    if Machine::get().is_some_and(|machine| machine.quirk == Quirk::BochsInit)
        && let Some(page) = cpu.start_page.get()
        && Current.read(GUEST_RIP) == 0
    {
        smp::leave_to_restart(cpu, page);
    }
    cpu.start_page.set(None);
    if cpu::read_msr(msr::APIC_BASE) & BOOTSTRAP == 0 {
        state::wait_for_sipi(&mut Current);
        shootdown::fall_asleep(cpu);
    } else {
        state::init(&mut Current);
        *registers = Registers::after_init();
    }
    set_nmi_window(false);
    cpu.nmi_owed.set(false);
    while cpu.take_nmi() {
        // INIT drops the host's NMI, but not a call.
        let _ = is_call(cpu);
    }
    Next::Stay
}

fn start_up(cpu: &PerCpu, registers: &mut Registers) -> Next {
    let [vector, ..] = Current.read(EXIT_QUALIFICATION).to_le_bytes();
    events::record(cpu.index.get(), Audit::StartUp(vector));
    cpu::unblock_nmis();
    shootdown::wake_up(cpu);
    state::start_up(&mut Current, vector);
    *registers = Registers::after_init();
    cpu.start_page.set(Some(vector));
    Next::Stay
}

fn reset_by_host(cpu: &PerCpu) -> ! {
    events::record(cpu.index.get(), Audit::TripleFault);
    log::warn!("the host triple-faulted on processor {}: reset", cpu.index.get());
    scrub::for_host(Machine::running(), Last::Reset)
}
