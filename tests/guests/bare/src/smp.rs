//! Further processors: started by INIT-SIPI-SIPI, each then runs one task at a time.

use crate::fault::{self, Local};
use crate::{apic, cpu, time};
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

/// Most processors that a program handles; APIC ids are taken to count from 0.
pub const MAX_CPUS: usize = 8;
/// The page below 1 MiB where they start.
const TRAMPOLINE: u64 = 0x8000;
const STACK: usize = 16 * 1024;
/// How long a processor may take to arrive.
const PATIENCE_US: u64 = 2_000_000;

static STACKS: [Local<[u8; STACK]>; MAX_CPUS] = [const { Local::new([0; STACK]) }; MAX_CPUS];
/// How often each processor arrived.
static STARTS: [AtomicU32; MAX_CPUS] = [const { AtomicU32::new(0) }; MAX_CPUS];
/// The function each processor is to run, or 0.
static TASKS: [AtomicUsize; MAX_CPUS] = [const { AtomicUsize::new(0) }; MAX_CPUS];

unsafe extern "C" {
    static trampoline: u8;
    static trampoline_end: u8;
    static trampoline_state: [u32; 3];
    static mut ap_stack: u64;
    static mut ap_index: u64;
}

/// CR0, CR4 and EFER as a processor found them at its first instruction.
#[derive(Clone, Copy)]
pub struct Found {
    pub cr0: u32,
    pub cr4: u32,
    pub efer: u32,
}

/// How often processor `cpu` arrived so far.
pub fn starts(cpu: usize) -> u32 {
    STARTS[cpu].load(Ordering::SeqCst)
}

/// Starts processor `cpu`, running or not, as Linux does; `None` when it does not arrive.
pub fn start(cpu: usize) -> Option<Found> {
    let before = starts(cpu);
    prepare(cpu);
    apic::send(cpu as u32, apic::INIT);
    time::delay_us(10);
    for _ in 0..2 {
        start_up(cpu);
        time::delay_us(10);
    }
    time::wait_us(PATIENCE_US, || starts(cpu) != before).then(found)
}

/// Sends one start-up interrupt.
pub fn start_up(cpu: usize) {
    apic::send(cpu as u32, apic::START_UP | (TRAMPOLINE / 4096) as u32);
}

/// Sends INIT: the processor stops and waits.
pub fn stop(cpu: usize) {
    apic::send(cpu as u32, apic::INIT);
}

fn prepare(cpu: usize) {
    TASKS[cpu].store(0, Ordering::SeqCst);
    // SAFETY: conventional memory that nothing else uses once the boot information was copied, and
    // variables that no processor reads before it is started.
    unsafe {
        let bytes = &raw const trampoline_end as usize - &raw const trampoline as usize;
        core::ptr::copy_nonoverlapping(&raw const trampoline, TRAMPOLINE as *mut u8, bytes);
        ap_stack = STACKS[cpu].get() as u64 + STACK as u64;
        ap_index = cpu as u64;
    }
}

fn found() -> Found {
    let offset = &raw const trampoline_state as u64 - &raw const trampoline as u64;
    // SAFETY: inside the copied trampoline, written before the processor arrived.
    let [cr0, cr4, efer] = unsafe { ((TRAMPOLINE + offset) as *const [u32; 3]).read_volatile() };
    Found { cr0, cr4, efer }
}

/// Lets processor `cpu` run `task` as soon as it is idle.
pub fn run(cpu: usize, task: fn()) {
    TASKS[cpu].store(task as usize, Ordering::SeqCst);
}

/// Waits until processor `cpu` is idle; whether it became so.
pub fn wait_idle(cpu: usize) -> bool {
    time::wait_us(PATIENCE_US, || TASKS[cpu].load(Ordering::SeqCst) == 0)
}

/// Where `boot.s` brings a started processor.
#[unsafe(no_mangle)]
extern "C" fn bare_ap_main(index: u32) -> ! {
    let cpu = index as usize % MAX_CPUS;
    fault::init(cpu);
    apic::init_further();
    let _ = STARTS[cpu].fetch_add(1, Ordering::SeqCst);
    loop {
        let task = TASKS[cpu].load(Ordering::SeqCst);
        if task == 0 {
            cpu::pause();
            continue;
        }
        // SAFETY: `run` stored a function of this type.
        let task: fn() = unsafe { core::mem::transmute(task) };
        task();
        TASKS[cpu].store(0, Ordering::SeqCst);
    }
}
