//! The VM: a VMCS with a state that works, changed by the steps of a case, entered, and described.

use crate::capability::{self, Control, Set};
use crate::exit::Exit;
use crate::field::{self as f, Field};
use crate::guest::{self, CODE, STACK_TOP};
use crate::instruction::{self, Outcome, get, set};
use crate::{ept, log};
use bare::{cpu, fault, fault::Local, smp::MAX_CPUS};

/// General registers in the order of their encodings; RSP is a field of the VMCS.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub(crate) enum Reg {
    Rax = 0,
    Rcx = 1,
    Rdx = 2,
    Rbx = 3,
    Rbp = 5,
    Rsi = 6,
    Rdi = 7,
    R8 = 8,
    R15 = 15,
}

impl Reg {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Rax => "rax",
            Self::Rcx => "rcx",
            Self::Rdx => "rdx",
            Self::Rbx => "rbx",
            Self::Rbp => "rbp",
            Self::Rsi => "rsi",
            Self::Rdi => "rdi",
            Self::R8 => "r8",
            Self::R15 => "r15",
        }
    }
}

/// What makes a case: changes to the state before the entry, and what is shown after the exit.
#[derive(Clone, Copy)]
pub(crate) enum Step {
    Set(Field, u64),
    Or(Field, u64),
    Not(Field, u64),
    /// The control is 1; a processor without it does not run the case.
    On(Control),
    Off(Control),
    Reg(Reg, u64),
    /// A word of memory.
    Store(u64, u64),
    /// The EPT entry for an address at a level.
    Map(u64, u32, u64),
    /// Anything else before the entry.
    Do(fn()),
    /// Anything else after the last exit.
    Undo(fn()),
    /// The case needs this of the processor.
    Needs(fn() -> bool),
    Show(Reg),
    ShowField(Field),
    ShowWord(u64),
    /// What a function gives after the last exit.
    ShowValue(&'static str, fn() -> u64),
    /// That many exits, each resumed, after the instruction if one caused it.
    Exits(usize),
    All(&'static [Step]),
}
use Step::{All, Do, Exits, Map, Needs, Not, Off, On, Or, Reg as SetReg, Set as SetField, Store};

/// The registers that `enter.s` loads and keeps.
#[repr(C, align(64))]
struct Context {
    registers: [u64; 16],
    rsp: u64,
    /// As the last exit left it.
    rflags: u64,
    cr0: u64,
}

unsafe extern "C" {
    fn vmx_enter(context: *mut Context, launch: u64) -> u64;
    static vmx_exited: u8;
    fn unblock_nmis();
}

static CONTEXTS: [Local<Context>; MAX_CPUS] =
    [const { Local::new(Context { registers: [0; 16], rsp: 0, rflags: 0, cr0: 0 }) }; MAX_CPUS];

type Page = Local<[u64; 512]>;
static REGIONS: [Page; 4] = [const { Local::new([0; 512]) }; 4];
static ROOTS: [Page; MAX_CPUS] = [const { Local::new([0; 512]) }; MAX_CPUS];
static PAGES: [Page; 8] = [const { Local::new([0; 512]) }; 8];

/// Pages that controls point to.
pub(crate) fn page(index: usize) -> u64 {
    PAGES[index].get() as u64
}
pub(crate) const IO_A: usize = 0;
pub(crate) const IO_B: usize = 1;
pub(crate) const MSRS: usize = 2;
pub(crate) const VIRTUAL_APIC: usize = 3;
pub(crate) const ENTRY_LOAD: usize = 4;
pub(crate) const EXIT_STORE: usize = 5;
pub(crate) const EXIT_LOAD: usize = 6;
pub(crate) const SPARE: usize = 7;

/// A region for a VMCS, of four; 0 is the one that cases use.
pub(crate) fn region(index: usize) -> u64 {
    let at = REGIONS[index].get() as u64;
    guest::store(at, u64::from(capability::revision()));
    at
}

/// This processor's VMXON region.
pub(crate) fn root() -> u64 {
    let at = ROOTS[fault::index()].get() as u64;
    guest::store(at, u64::from(capability::revision()));
    at
}

const VMXE: u64 = 1 << 13;

/// Whether VMX can be switched on: firmware may have left that open, or closed.
pub(crate) fn enable() -> bool {
    if cpu::cpuid(1, 0)[2] & 1 << 5 == 0 {
        return false;
    }
    if cpu::rdmsr(capability::FEATURE_CONTROL) & 1 == 0 {
        cpu::wrmsr(capability::FEATURE_CONTROL, 5);
    }
    cpu::set_cr4(cpu::cr4() | VMXE);
    cpu::rdmsr(capability::FEATURE_CONTROL) & 5 == 5
}

/// Enters VMX operation with the case's VMCS current.
pub(crate) fn on() -> Outcome {
    cpu::set_cr4(cpu::cr4() | VMXE);
    instruction::vmxon(root())
}

/// The host's state as fields.
fn host() -> [(Field, u64); 17] {
    let task = fault::own_task_descriptor();
    let base = task[0] >> 16 & 0xff_ffff | (task[0] >> 56) << 24 | task[1] << 32;
    [
        (f::HOST_CR0, cpu::cr0()),
        (f::HOST_CR3, cpu::cr3()),
        (f::HOST_CR4, cpu::cr4()),
        (f::HOST_CS_SELECTOR, 0x10),
        (f::HOST_SS_SELECTOR, 0x18),
        (f::HOST_DS_SELECTOR, 0x18),
        (f::HOST_ES_SELECTOR, 0x18),
        (f::HOST_FS_SELECTOR, 0),
        (f::HOST_GS_SELECTOR, 0),
        (f::HOST_TR_SELECTOR, u64::from(cpu::str())),
        (f::HOST_TR_BASE, base),
        (f::HOST_GDTR_BASE, fault::gdt_base()),
        (f::HOST_IDTR_BASE, fault::idt_base()),
        (f::HOST_RSP, CONTEXTS[fault::index()].get() as u64),
        (f::HOST_RIP, &raw const vmx_exited as u64),
        (f::HOST_PAT, cpu::rdmsr(0x277)),
        (f::HOST_EFER, cpu::rdmsr(0xc000_0080)),
    ]
}

/// The VM's state that is not 0: 64-bit code in ring 0.
const GUEST: &[(Field, u64)] = &[
    (f::LINK_POINTER, u64::MAX),
    (f::GUEST_CR3, guest::PML4),
    (f::GUEST_CS_SELECTOR, guest::CODE_64),
    (f::GUEST_CS_RIGHTS, 0xa09b),
    (f::GUEST_SS_SELECTOR, guest::DATA_0),
    (f::GUEST_DS_SELECTOR, guest::DATA_0),
    (f::GUEST_ES_SELECTOR, guest::DATA_0),
    (f::GUEST_FS_SELECTOR, guest::DATA_0),
    (f::GUEST_GS_SELECTOR, guest::DATA_0),
    (f::GUEST_SS_RIGHTS, 0xc093),
    (f::GUEST_DS_RIGHTS, 0xc093),
    (f::GUEST_ES_RIGHTS, 0xc093),
    (f::GUEST_FS_RIGHTS, 0xc093),
    (f::GUEST_GS_RIGHTS, 0xc093),
    (f::GUEST_CS_LIMIT, 0xffff_ffff),
    (f::GUEST_SS_LIMIT, 0xffff_ffff),
    (f::GUEST_DS_LIMIT, 0xffff_ffff),
    (f::GUEST_ES_LIMIT, 0xffff_ffff),
    (f::GUEST_FS_LIMIT, 0xffff_ffff),
    (f::GUEST_GS_LIMIT, 0xffff_ffff),
    (f::GUEST_LDTR_RIGHTS, 0x1_0000),
    (f::GUEST_TR_SELECTOR, guest::TASK_64),
    (f::GUEST_TR_BASE, guest::TASK),
    (f::GUEST_TR_LIMIT, 0x67),
    (f::GUEST_TR_RIGHTS, 0x8b),
    (f::GUEST_GDTR_BASE, guest::GDT),
    (f::GUEST_GDTR_LIMIT, guest::GDT_LIMIT),
    (f::GUEST_IDTR_BASE, guest::IDT),
    (f::GUEST_IDTR_LIMIT, 0xfff),
    (f::GUEST_DR7, 0x400),
    (f::GUEST_RSP, STACK_TOP),
    (f::GUEST_RIP, CODE),
    (f::GUEST_RFLAGS, 2),
    (f::GUEST_PAT, 0x0007_0406_0007_0406),
    (f::GUEST_EFER, 0x500),
];

/// CR0 and CR4 bits that VMX operation fixes to 1, with those that 64-bit code needs.
pub(crate) const GUEST_CR0: u64 = 0x8001_0031;
pub(crate) const GUEST_CR4: u64 = 0x2620;

/// Ticks of the preemption timer after which a VM that does not exit by itself is stopped.
const PATIENCE: u64 = 0x4000;

/// Makes the case's VMCS current, cleared, with a state that can be entered: `code` runs.
pub(crate) fn fresh(code: &[u8]) {
    // SAFETY: returns to where it was called. An injected NMI leaves NMIs blocked in the host too.
    unsafe { unblock_nmis() };
    // Blocking of virtual NMIs is in the VMCS; Bochs 2.7 keeps it from one VM to the next as well,
    // until an IRET of a VM.
    if Exit::left_blocking() {
        build(guest::code!(
            "push 0x18",
            "push 0x40b000",
            "push 2",
            "push 0x10",
            "lea rax, [rip + 2f]",
            "push rax",
            "iretq",
            "2: vmcall",
        ));
        prepare(&[
            On(capability::NMI_EXITING),
            On(capability::VIRTUAL_NMIS),
            SetField(f::GUEST_INTERRUPTIBILITY, 8),
        ]);
        let _ = enter(Launch::First);
        let _ = Exit::left_blocking();
    }
    build(code);
}

fn build(code: &[u8]) {
    guest::reset(code);
    ept::reset();
    for index in 0..PAGES.len() {
        guest::clear(page(index), 4096);
    }
    adopt(region(0));
}

/// Loads what of the host's state belongs to this processor.
pub(crate) fn set_host() {
    for (field, value) in host() {
        set(field, value);
    }
}

/// Makes the VMCS at `at` current here, cleared, with the state that cases start with.
pub(crate) fn adopt(at: u64) {
    let _ = instruction::vmclear(at);
    let _ = instruction::vmptrld(at);
    // A region's contents are the processor's: nothing but VMWRITE clears a field.
    for (_, field) in f::ALL.iter().filter(|(_, field)| !field.is_read_only()) {
        set(*field, 0);
    }
    for (field, value) in GUEST {
        set(*field, *value);
    }
    set_host();
    set(f::GUEST_CR0, GUEST_CR0);
    set(f::GUEST_CR4, GUEST_CR4);
    set(f::EPT_POINTER, ept::pointer());
    set(f::IO_BITMAP_A, page(IO_A));
    set(f::IO_BITMAP_B, page(IO_B));
    set(f::MSR_BITMAP, page(MSRS));
    for group in Set::ALL {
        set(group.field(), group.must());
    }
    use capability as c;
    for control in [c::PREEMPTION, c::SECONDARY, c::HLT_EXITING, c::IO_EXITING] {
        if control.exists() {
            turn_on(control);
        }
    }
    for control in [c::EPT, c::HOST_64, c::GUEST_64] {
        turn_on(control);
    }
    set(f::PREEMPTION_TIMER, PATIENCE);
    // SAFETY: this processor's own context, and no VM runs.
    unsafe { (*CONTEXTS[fault::index()].get()).registers = [0; 16] };
}

pub(crate) fn turn_on(control: Control) {
    let field = control.set.field();
    set(field, get(field) | 1 << control.bit);
}

fn turn_off(control: Control) {
    let field = control.set.field();
    set(field, get(field) & !(1 << control.bit));
}

/// RFLAGS of the host after the last exit.
pub(crate) fn host_flags() -> u64 {
    // SAFETY: this processor's own context, and no VM runs.
    unsafe { (*CONTEXTS[fault::index()].get()).rflags }
}

/// CR0 of the host after the last exit.
pub(crate) fn host_cr0() -> u64 {
    // SAFETY: as above.
    unsafe { (*CONTEXTS[fault::index()].get()).cr0 }
}

/// A register of the VM.
pub(crate) fn register(register: Reg) -> u64 {
    // SAFETY: this processor's own context, and no VM runs.
    unsafe { (*CONTEXTS[fault::index()].get()).registers[register as usize] }
}

pub(crate) fn set_register(register: Reg, value: u64) {
    // SAFETY: as for `register`.
    unsafe { (*CONTEXTS[fault::index()].get()).registers[register as usize] = value };
}

/// Whether the processor can do all that `steps` ask for.
pub(crate) fn can(steps: &[Step]) -> bool {
    steps.iter().all(|step| match step {
        On(control) => control.exists(),
        Needs(there) => there(),
        All(steps) => can(steps),
        _ => true,
    })
}

/// Takes the steps before the entry.
pub(crate) fn prepare(steps: &[Step]) {
    for step in steps {
        match *step {
            SetField(field, value) => set(field, value),
            Or(field, bits) => set(field, get(field) | bits),
            Not(field, bits) => set(field, get(field) & !bits),
            On(control) => turn_on(control),
            Off(control) => turn_off(control),
            SetReg(register, value) => set_register(register, value),
            Store(at, value) => guest::store(at, value),
            Map(physical, level, entry) => {
                ept::set(physical, level, entry);
                ept::flush();
            }
            Do(act) => act(),
            All(steps) => prepare(steps),
            _ => {}
        }
    }
}

fn exits(steps: &[Step]) -> usize {
    steps.iter().fold(1, |exits, step| match step {
        Exits(count) => *count,
        All(steps) => exits.max(self::exits(steps)),
        _ => exits,
    })
}

/// Shows what the steps ask for after the last exit.
fn show(line: &mut log::Line, steps: &[Step]) {
    for step in steps {
        match *step {
            Step::Show(register) => {
                line.add(format_args!(" {}={:#x}", register.name(), self::register(register)));
            }
            Step::ShowField(field) => line.add(format_args!(" {field}={:#x}", get(field))),
            Step::ShowWord(at) => line.add(format_args!(" [{at:#x}]={:#x}", guest::load(at))),
            Step::ShowValue(name, value) => line.add(format_args!(" {name}={:#x}", value())),
            Step::Undo(act) => act(),
            All(steps) => show(line, steps),
            _ => {}
        }
    }
}

/// Enters the VM once.
pub(crate) fn enter(launch: Launch) -> Result<Exit, Outcome> {
    let context = CONTEXTS[fault::index()].get();
    let launch = u64::from(launch == Launch::First);
    // SAFETY: this processor's own context; the VMCS leads exits back into `enter.s`.
    let flags = fault::catch(|| unsafe { vmx_enter(context, launch) });
    match flags {
        Ok(0) => Ok(Exit::read()),
        Ok(flags) => Err(instruction::judge(flags & 0x41)),
        Err(fault) => Err(Outcome::Faulted(fault)),
    }
}

/// VMLAUNCH or VMRESUME.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Launch {
    First,
    Again,
}

/// Lets the VM go on after the instruction that exited, if one did.
pub(crate) fn skip(exit: &Exit) {
    if exit.by_instruction() {
        set(f::GUEST_RIP, get(f::GUEST_RIP) + get(f::EXIT_INSTRUCTION_LENGTH));
    }
}

/// Enters the VM as it is, `steps` saying how often and what to show.
pub(crate) fn run(line: &mut log::Line, steps: &[Step]) {
    let mut launch = Launch::First;
    for number in 1..=exits(steps) {
        if number > 1 {
            line.add(format_args!(" / "));
        }
        match enter(launch) {
            Ok(exit) => {
                exit.describe(line);
                if exit.is_failed_entry() {
                    break;
                }
                launch = Launch::Again;
                if number < exits(steps) {
                    skip(&exit);
                }
            }
            Err(outcome) => {
                line.add(format_args!("{outcome}"));
                break;
            }
        }
    }
    show(line, steps);
}

/// One case from its fresh state to its line.
pub(crate) fn case(group: &str, name: &str, steps: &[Step], code: &[u8]) {
    let Some(mut line) = log::begin(format_args!("{group}.{name}")) else { return };
    if can(steps) {
        fresh(code);
        prepare(steps);
        run(&mut line, steps);
    } else {
        line.add(format_args!("unsupported"));
    }
}

/// A case in a table.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) steps: &'static [Step],
    pub(crate) code: fn() -> &'static [u8],
}

/// Runs every case of a table.
pub(crate) fn all(group: &str, cases: &[Case]) {
    for Case { name, steps, code } in cases {
        case(group, name, steps, code());
    }
}

/// Defines a table of cases: a name, the steps in brackets, the instructions in braces.
macro_rules! cases {
    ($($table:ident: $($name:literal [$($step:expr),* $(,)?] {$($line:literal),* $(,)?})*;)*) => {$(
        const $table: &[$crate::vm::Case] = &[$($crate::vm::Case {
            name: $name,
            steps: &[$($step),*],
            code: || $crate::guest::code!($($line),*),
        }),*];
    )*};
}
pub(crate) use cases;
