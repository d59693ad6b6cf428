//! Exceptions and interrupts: caught, counted, and survived.

use crate::{apic, console, cpu, power, smp::MAX_CPUS};
use core::cell::UnsafeCell;
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

pub const UD: u8 = 6;
pub const GP: u8 = 13;
pub const PF: u8 = 14;
pub const NMI: u8 = 2;
/// Leaves a call in ring 3 without a fault.
const LEAVE_RING3: u8 = 0x81;

/// First selector of a task state; one pair of words per processor.
pub const FIRST_TASK: u16 = 0x40;
/// The selector of a slot that tests may fill.
pub const SCRATCH_SELECTOR: u16 = FIRST_TASK + 16 * MAX_CPUS as u16;
const CODE64: u16 = 0x10;
const DATA: u16 = 0x18;

/// What an instruction raised.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    pub vector: u8,
    pub error: u64,
    /// CR2 of a page fault.
    pub address: u64,
    /// RCX and RDI, for string instructions.
    pub string: [u64; 2],
}

impl core::fmt::Debug for Fault {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "vector {} error {:#x}", self.vector, self.error)
    }
}

/// The interrupted state, as `isr_common` pushes it.
#[repr(C)]
pub struct Frame {
    /// R15 … RAX, in that order.
    pub registers: [u64; 15],
    pub vector: u64,
    pub error: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

/// Where a guarded call resumes; zero when none runs.
#[repr(C)]
#[derive(Clone, Copy)]
struct Recovery {
    rsp: u64,
    rip: u64,
}

/// 64-bit task state (SDM vol. 3, 8.7).
#[repr(C, packed)]
#[derive(Clone, Copy)]
pub struct TaskState {
    reserved: u32,
    pub rsp: [u64; 3],
    reserved_2: u64,
    pub ist: [u64; 7],
    reserved_3: [u8; 10],
    map_base: u16,
}
const _: () = assert!(size_of::<TaskState>() == 104);

const STACK: usize = 16 * 1024;

#[repr(C, align(16))]
struct PerCpu {
    recovery: Recovery,
    fault: Fault,
    task: TaskState,
    /// For exceptions, NMI, and double faults: IST 1 to 3.
    stacks: [[u8; STACK]; 3],
    ring3_stack: [u8; STACK],
}

/// A cell that one processor at a time uses: per-processor data, or data of the boot processor.
#[repr(C, align(4096))]
pub struct Local<T>(UnsafeCell<T>);
// SAFETY: each user names, where it takes the pointer, why no other processor is there.
unsafe impl<T> Sync for Local<T> {}

impl<T> Local<T> {
    pub const fn new(value: T) -> Self {
        Self(UnsafeCell::new(value))
    }
    pub const fn get(&self) -> *mut T {
        self.0.get()
    }
}

const NOTHING: PerCpu = PerCpu {
    recovery: Recovery { rsp: 0, rip: 0 },
    fault: Fault { vector: 0, error: 0, address: 0, string: [0; 2] },
    task: TaskState {
        reserved: 0,
        rsp: [0; 3],
        reserved_2: 0,
        ist: [0; 7],
        reserved_3: [0; 10],
        map_base: 0,
    },
    stacks: [[0; STACK]; 3],
    ring3_stack: [0; STACK],
};
static PER_CPU: [Local<PerCpu>; MAX_CPUS] = [const { Local::new(NOTHING) }; MAX_CPUS];

/// An interrupt gate as two words (SDM vol. 3, 6.14.1).
pub type Gate = [u64; 2];
static IDT: Local<[Gate; 256]> = Local::new([[0; 2]; 256]);

unsafe extern "C" {
    static isr_stubs: u8;
    static mut gdt: [u64; 40];
    fn guarded_call(call: extern "C" fn(*mut u8), data: *mut u8, recovery: *mut Recovery) -> u64;
    fn guarded_call_ring3(
        call: extern "C" fn(*mut u8),
        data: *mut u8,
        recovery: *mut Recovery,
        stack: u64,
    ) -> u64;
}

/// The interrupt gate of `vector`, on the given interrupt stack (0: the current one).
pub fn gate(vector: usize, stack: u64) -> Gate {
    let target = &raw const isr_stubs as u64 + 16 * vector as u64;
    let ring: u64 = if vector == usize::from(LEAVE_RING3) { 3 } else { 0 };
    let low = target & 0xffff
        | u64::from(CODE64) << 16
        | stack << 32
        | (0x8e00 | ring << 13) << 32
        | (target >> 16 & 0xffff) << 48;
    [low, target >> 32]
}

/// The interrupt stack each vector runs on: exceptions must survive a test's broken stack, and
/// interrupts stay on the interrupted one.
pub fn usual_gate(vector: usize) -> Gate {
    gate(
        vector,
        match vector {
            2 => 2,
            8 => 3,
            0..=31 | 0x81 => 1,
            _ => 0,
        },
    )
}

/// The table in use, for tests that build a variant.
pub fn idt() -> cpu::Pseudo {
    cpu::Pseudo { limit: 4095, base: IDT.get() as u64 }
}

/// Where the global descriptor table is.
pub fn gdt_base() -> u64 {
    &raw const gdt as u64
}

/// Where the interrupt descriptor table is.
pub fn idt_base() -> u64 {
    IDT.get() as u64
}

/// Sets one word of the global descriptor table.
pub fn set_gdt(selector: u16, words: [u64; 2]) {
    let index = usize::from(selector) / 8;
    // SAFETY: inside the table that `boot.s` defines, at a slot of this processor or of the one
    // test that runs.
    unsafe {
        gdt[index] = words[0];
        gdt[index + 1] = words[1];
    }
}

/// A system descriptor (SDM vol. 3, figure 8-4): 9 an available task state, 2 a local table.
pub fn system_descriptor(kind: u64, base: u64, limit: u64) -> [u64; 2] {
    let low = limit & 0xffff
        | (base & 0xff_ffff) << 16
        | (0x80 | kind) << 40
        | (limit >> 16 & 0xf) << 48
        | (base >> 24 & 0xff) << 56;
    [low, base >> 32]
}

/// Sets up exception handling on processor `index`.
pub fn init(index: usize) {
    if index == 0 {
        for vector in 0..256 {
            // SAFETY: the boot processor alone runs, with interrupts off and no table loaded.
            unsafe { (*IDT.get())[vector] = usual_gate(vector) };
        }
    }
    let own = PER_CPU[index].get();
    // SAFETY: this processor's own slot, before it can take an exception.
    let task = unsafe {
        let mut stacks = [0; 7];
        for (top, stack) in stacks.iter_mut().zip(&(*own).stacks) {
            *top = stack.as_ptr_range().end as u64;
        }
        (*own).task.ist = stacks;
        (*own).task.rsp = [stacks[0], 0, 0];
        (*own).task.map_base = 104;
        &raw const (*own).task as u64
    };
    let selector = FIRST_TASK + 16 * index as u16;
    set_gdt(selector, system_descriptor(9, task, 103));
    cpu::lidt(&idt());
    cpu::ltr(selector);
}

/// A copy of this processor's task state.
pub fn task() -> TaskState {
    // SAFETY: this processor's own slot, which only it writes.
    unsafe { (*PER_CPU[index()].get()).task }
}

/// The descriptor of this processor's task state, ready for LTR.
pub fn own_task_descriptor() -> [u64; 2] {
    // SAFETY: only the address is taken.
    let task = unsafe { &raw const (*PER_CPU[index()].get()).task };
    system_descriptor(9, task as u64, 103)
}

/// Sets interrupt stack `number` of this processor: 4 to 7 are free, 2 is the NMI's.
pub fn set_interrupt_stack(number: usize, top: u64) {
    // SAFETY: this processor's own slot; the caller keeps the stack usable while a gate names it.
    unsafe { (*PER_CPU[index()].get()).task.ist[number - 1] = top };
}

/// Top of the interrupt stack `number` in use on this processor.
pub fn interrupt_stack(number: usize) -> u64 {
    let task = task();
    let stacks = task.ist;
    stacks[number - 1]
}

/// Sets a gate of the table that all processors share.
pub fn set_gate(vector: usize, gate: Gate) {
    // SAFETY: one test runs at a time, and the vector is its own.
    unsafe { (*IDT.get())[vector] = gate };
}

/// The number of this processor, from its task register: needs no exit and no memory.
pub fn index() -> usize {
    let offset = cpu::str().saturating_sub(FIRST_TASK);
    usize::from(offset / 16) % MAX_CPUS
}

struct Job<F, T> {
    call: MaybeUninit<F>,
    result: MaybeUninit<T>,
}

extern "C" fn run<F: FnOnce() -> T, T>(job: *mut u8) {
    let job: *mut Job<F, T> = job.cast();
    // SAFETY: `catch` passes its own job, and calls this once.
    unsafe {
        let call = (*job).call.assume_init_read();
        let _ = (*job).result.write(call());
    }
}

extern "C" fn run_in_ring3<F: FnOnce() -> T, T>(job: *mut u8) {
    run::<F, T>(job);
    // SAFETY: the way back to ring 0; does not return.
    unsafe { core::arch::asm!("int 0x81", options(noreturn)) };
}

/// Runs `call` and returns what it returned, or the exception that ended it.
///
/// The frames between are dropped without running destructors: `call` must own nothing (`Copy`
/// results and plain captures), which is why it is bound to instructions in practice.
pub fn catch<T: Copy>(call: impl FnOnce() -> T) -> Result<T, Fault> {
    guarded(call, Runner::Ring0)
}

/// As [`catch`], in ring 3.
pub fn catch_ring3<T: Copy>(call: impl FnOnce() -> T) -> Result<T, Fault> {
    guarded(call, Runner::Ring3(spare_stack() - 8))
}

/// Top of a stack that only [`catch_ring3`] uses, or the test that asks for it.
pub fn spare_stack() -> u64 {
    // SAFETY: only the address is taken.
    unsafe { (&raw const (*PER_CPU[index()].get()).ring3_stack) as u64 + STACK as u64 }
}

enum Runner {
    Ring0,
    Ring3(u64),
}

fn guarded<F: FnOnce() -> T, T: Copy>(call: F, runner: Runner) -> Result<T, Fault> {
    let own = PER_CPU[index()].get();
    let mut job: Job<F, T> = Job { call: MaybeUninit::new(call), result: MaybeUninit::uninit() };
    let data: *mut u8 = (&raw mut job).cast();
    // SAFETY: this processor's own slot; an exception between these lines would find either the
    // old or the new recovery, and both are valid.
    let status = unsafe {
        let outer = (*own).recovery;
        let recovery = &raw mut (*own).recovery;
        let status = match runner {
            Runner::Ring0 => guarded_call(run::<F, T>, data, recovery),
            Runner::Ring3(stack) => guarded_call_ring3(run_in_ring3::<F, T>, data, recovery, stack),
        };
        (*own).recovery = outer;
        status
    };
    // SAFETY: the slot is this processor's; the result was written when `run` came to its end.
    unsafe {
        let fault = (&raw const (*own).fault).read_volatile();
        if status != 0 && fault.vector != LEAVE_RING3 {
            return Err(fault);
        }
        Ok(job.result.assume_init())
    }
}

/// How often each vector arrived, by processor.
static ARRIVED: [[AtomicU64; 256]; MAX_CPUS] =
    [const { [const { AtomicU64::new(0) }; 256] }; MAX_CPUS];
/// Where the last interrupt or NMI arrived.
static LAST_RIP: AtomicU64 = AtomicU64::new(0);
/// Called in the NMI handler, for tests of nesting.
static NMI_HOOK: AtomicUsize = AtomicUsize::new(0);

/// How often `vector` arrived at this processor so far.
pub fn arrived(vector: u8) -> u64 {
    arrived_at(index(), vector)
}

/// How often `vector` arrived at processor `cpu` so far.
pub fn arrived_at(cpu: usize, vector: u8) -> u64 {
    ARRIVED[cpu][usize::from(vector)].load(Ordering::SeqCst)
}

/// The instruction that the last interrupt or NMI would have returned to.
pub fn last_rip() -> u64 {
    LAST_RIP.load(Ordering::SeqCst)
}

/// Runs `hook` inside every NMI handler from now on, or nothing again.
pub fn set_nmi_hook(hook: Option<fn()>) {
    NMI_HOOK.store(hook.map_or(0, |hook| hook as usize), Ordering::SeqCst);
}

#[unsafe(no_mangle)]
extern "C" fn isr_dispatch(frame: &mut Frame) {
    let vector = frame.vector as u8;
    let _ = ARRIVED[index()][usize::from(vector)].fetch_add(1, Ordering::SeqCst);
    match vector {
        NMI => on_nmi(frame),
        LEAVE_RING3 => recover(frame),
        0..=31 => recover(frame),
        32.. => {
            LAST_RIP.store(frame.rip, Ordering::SeqCst);
            apic::acknowledge(vector);
        }
    }
}

fn on_nmi(frame: &Frame) {
    LAST_RIP.store(frame.rip, Ordering::SeqCst);
    let hook = NMI_HOOK.load(Ordering::SeqCst);
    if hook != 0 {
        // SAFETY: `set_nmi_hook` stored a function of this type.
        let hook: fn() = unsafe { core::mem::transmute(hook) };
        hook();
    }
}

/// Ends the guarded call that raised this, or the program when there is none.
fn recover(frame: &mut Frame) {
    let own = PER_CPU[index()].get();
    let address = cpu::cr2();
    // SAFETY: this processor's own slot, and its guarded call cannot run meanwhile.
    let recovery = unsafe {
        (*own).fault = Fault {
            vector: frame.vector as u8,
            error: frame.error,
            address,
            string: [frame.registers[13], frame.registers[8]],
        };
        core::mem::replace(&mut (*own).recovery, Recovery { rsp: 0, rip: 0 })
    };
    if recovery.rip == 0 {
        console::break_lock();
        power::fail(
            crate::current(),
            format_args!(
                "exception {} (error {:#x}) at {:#x}, cr2 {address:#x}, cpu {}",
                frame.vector,
                frame.error,
                frame.rip,
                index()
            ),
        );
    }
    frame.registers[14] = 1;
    frame.rip = recovery.rip;
    frame.rsp = recovery.rsp;
    frame.cs = u64::from(CODE64);
    frame.ss = u64::from(DATA);
    frame.rflags = 2;
}
