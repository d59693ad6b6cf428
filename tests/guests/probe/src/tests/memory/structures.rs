//! Structures that the processor itself reads and writes: paging structures, descriptor tables and
//! task states that lie in the reservation.

use super::{Reservation, Shown, is_refusal, read};
use crate::cpu;
use crate::fault::{self, Fault, SCRATCH_SELECTOR, catch};
use crate::paging::{self, PAGE};
use crate::report::Checks;

/// Two adjacent pages of the window: the probe's own copy, and the visor's first.
const OWN_SLOT: usize = 8;
const VISOR_SLOT: usize = 9;
static OWN: fault::Local<[u8; PAGE as usize]> = fault::Local::new([0; PAGE as usize]);
const _: () = assert!(align_of::<fault::Local<[u8; 4096]>>() == 4096);

/// Address translation whose paging structures are the visor's, at each level.
pub(super) fn page_walks(checks: &mut Checks, reservation: Reservation) {
    for physical in reservation.samples() {
        let table = paging::table_entry(physical);
        let directory = paging::directory_entry(2, table);
        walk(checks, "page table", read(directory));
        let _ = paging::directory_entry(2, 0);
        let pointer = paging::pointer_entry(2, table);
        walk(checks, "page directory", read(pointer));
        let _ = paging::pointer_entry(2, 0);
        paging::set_pml4(2, table);
        walk(checks, "page-directory-pointer table", read(paging::pml4_address(2)));
        paging::set_pml4(2, 0);
    }
}

fn walk(checks: &mut Checks, level: &str, result: Result<u64, Fault>) {
    checks.that(
        is_refusal(result),
        format_args!(
            "a walk through a {level} in the reservation raises #GP(0), {}",
            Shown(result)
        ),
    );
}

/// Each table lies across the edge of two pages, so that the entries needed to deliver the #GP are
/// the probe's own and the ones that are tried are the visor's.
pub(super) fn descriptor_tables(checks: &mut Checks, reservation: Reservation) {
    if !is_refusal(read(paging::page(VISOR_SLOT, reservation.base))) {
        // The processor would act on whatever lies there.
        return checks.that(false, format_args!("descriptor tables: the reservation is readable"));
    }
    let edge = paging::page(OWN_SLOT, OWN.get() as u64) + PAGE;
    let _ = paging::page(VISOR_SLOT, reservation.base);
    local_table(checks, edge);
    global_table(checks, edge);
    interrupt_table(checks, edge);
    task_register(checks, edge);
    interrupt_stack(checks, edge);
}

fn load_fs(selector: u16) {
    // SAFETY: FS is not used by the probe.
    unsafe {
        core::arch::asm!("mov fs, {0:x}", in(reg) selector, options(nostack, preserves_flags))
    };
}

fn expect(checks: &mut Checks, what: &str, call: impl FnOnce()) {
    let result = catch(call).map(|()| 0);
    checks.that(
        is_refusal(result),
        format_args!("{what} in the reservation raises #GP(0), {}", Shown(result)),
    );
}

fn local_table(checks: &mut Checks, edge: u64) {
    fault::set_gdt(SCRATCH_SELECTOR, fault::system_descriptor(2, edge, 0xfff));
    cpu::lldt(SCRATCH_SELECTOR);
    expect(checks, "a segment load from an LDT", || load_fs(0x0c));
    cpu::lldt(0);
}

/// Copies `bytes` to just before `edge`.
fn place(edge: u64, from: u64, bytes: usize) -> u64 {
    let to = edge - bytes as u64;
    // SAFETY: the last `bytes` of the probe's own page, which nothing else uses.
    unsafe { core::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, bytes) };
    to
}

fn global_table(checks: &mut Checks, edge: u64) {
    let mut usual = cpu::Pseudo { limit: 0, base: 0 };
    // SAFETY: stores ten bytes into `usual`.
    unsafe { core::arch::asm!("sgdt [{}]", in(reg) &raw mut usual, options(nostack)) };
    let bytes = usize::from(usual.limit) + 1;
    let base = place(edge, usual.base, bytes);
    cpu::lgdt(&cpu::Pseudo { limit: 0xfff, base });
    let beyond = bytes as u16;
    expect(checks, "a segment load from the GDT", || load_fs(beyond));
    expect(checks, "LTR from the GDT", || cpu::ltr(beyond));
    expect(checks, "LLDT from the GDT", || cpu::lldt(beyond));
    cpu::lgdt(&usual);
}

/// Vectors 0 to 31 are the probe's, the others the visor's.
fn interrupt_table(checks: &mut Checks, edge: u64) {
    let usual = fault::idt();
    let base = place(edge, usual.base, 32 * 16);
    cpu::lidt(&cpu::Pseudo { limit: 4095, base });
    expect(checks, "an interrupt gate", || {
        // SAFETY: refused; no handler runs.
        unsafe { core::arch::asm!("int 0x40") };
    });
    cpu::lidt(&usual);
}

/// LTR itself only writes the descriptor; the task state is read at the next stack switch.
fn task_register(checks: &mut Checks, edge: u64) {
    let state = fault::task();
    // Stacks 1 to 4 are the probe's, 5 to 7 the visor's.
    let base = place(edge, &raw const state as u64, 0x44);
    let selector = cpu::str();
    fault::set_gdt(SCRATCH_SELECTOR, fault::system_descriptor(9, base, 103));
    cpu::ltr(SCRATCH_SELECTOR);
    with_gate(0x40, fault::gate(0x40, 5), || {
        expect(checks, "a task state", || {
            // SAFETY: refused; no handler runs.
            unsafe { core::arch::asm!("int 0x40") };
        });
    });
    let own = fault::own_task_descriptor();
    fault::set_gdt(selector, own);
    cpu::ltr(selector);
}

/// An interrupt whose stack is the visor's.
fn interrupt_stack(checks: &mut Checks, edge: u64) {
    fault::set_interrupt_stack(5, edge + 256);
    with_gate(0x40, fault::gate(0x40, 5), || {
        expect(checks, "an interrupt stack", || {
            // SAFETY: refused; no handler runs.
            unsafe { core::arch::asm!("int 0x40") };
        });
    });
    fault::set_interrupt_stack(5, 0);
}

fn with_gate(vector: usize, gate: fault::Gate, call: impl FnOnce()) {
    fault::set_gate(vector, gate);
    call();
    fault::set_gate(vector, fault::usual_gate(vector));
}
