//! Descriptor tables of a processor in VMX root mode.
#![expect(unsafe_code, reason = "loading descriptor tables")]

use spin::Once;
use x86_64::structures::DescriptorTablePointer;
use x86_64::structures::gdt::{Descriptor, SegmentSelector};
use x86_64::structures::idt::InterruptDescriptorTable;
use x86_64::structures::tss::TaskStateSegment;
use x86_64::{PrivilegeLevel, VirtAddr};

use crate::percpu::PerCpu;

/// Code segment.
pub(crate) const CODE: SegmentSelector = SegmentSelector::new(1, PrivilegeLevel::Ring0);
/// Data segment.
pub(crate) const DATA: SegmentSelector = SegmentSelector::new(2, PrivilegeLevel::Ring0);
/// Task state segment.
pub(crate) const TASK: SegmentSelector = SegmentSelector::new(3, PrivilegeLevel::Ring0);

const CODE_64: u64 = 0x00af_9b00_0000_ffff;
const DATA_64: u64 = 0x00cf_9300_0000_ffff;
/// Distance between the entries in `exit.s`.
const ENTRY_BYTES: u64 = 16;

unsafe extern "C" {
    static exception_entries: u8;
    static nmi_entry: u8;
}

/// Gates for the 22 defined exceptions; interrupts stay disabled in VMX root mode.
#[expect(clippy::large_stack_frames, reason = "runs once, on the boot stack of 64 KiB")]
fn interrupts() -> &'static InterruptDescriptorTable {
    static TABLE: Once<InterruptDescriptorTable> = Once::new();
    TABLE.call_once(|| {
        let address = |symbol: *const u8| u64::try_from(symbol.addr()).unwrap_or(0);
        let first = address(&raw const exception_entries);
        let at = |vector: u64| VirtAddr::new(first + vector * ENTRY_BYTES);
        let mut idt = InterruptDescriptorTable::new();
        fill(&mut idt, at, VirtAddr::new(address(&raw const nmi_entry)));
        idt
    })
}

macro_rules! gates {
    ($idt:ident, $at:ident, $($name:ident = $vector:literal),*) => {
        $(
            // SAFETY: the address is the entry for this vector in `exit.s`; it never returns.
            let _ = unsafe { $idt.$name.set_handler_addr($at($vector)) };
        )*
    };
}

fn fill(idt: &mut InterruptDescriptorTable, at: impl Fn(u64) -> VirtAddr, nmi: VirtAddr) {
    gates!(
        idt,
        at,
        divide_error = 0,
        debug = 1,
        breakpoint = 3,
        overflow = 4,
        bound_range_exceeded = 5,
        invalid_opcode = 6,
        device_not_available = 7,
        invalid_tss = 10,
        segment_not_present = 11,
        stack_segment_fault = 12,
        general_protection_fault = 13,
        page_fault = 14,
        x87_floating_point = 16,
        alignment_check = 17,
        simd_floating_point = 19,
        virtualization = 20,
        cp_protection_exception = 21
    );
    // SAFETY: `nmi_entry` saves what it uses and returns with IRET.
    let options = unsafe { idt.non_maskable_interrupt.set_handler_addr(nmi) };
    // SAFETY: IST 1 is set up in `load`, for this gate alone.
    let _ = unsafe { options.set_stack_index(0) };
    // SAFETY: as for the gates above.
    let options = unsafe { idt.double_fault.set_handler_addr(at(8)) };
    // SAFETY: IST 2 is set up in `load`, for this gate alone.
    let _ = unsafe { options.set_stack_index(1) };
    // SAFETY: as for the gates above.
    let options = unsafe { idt.machine_check.set_handler_addr(at(18)) };
    // SAFETY: IST 3 is set up in `load`, for this gate alone.
    let _ = unsafe { options.set_stack_index(2) };
}

/// Loads GS base, GDT, TSS and IDT of `cpu`.
pub(crate) fn load(cpu: &'static PerCpu) {
    let mut task = TaskStateSegment::new();
    let [nmi, double_fault, machine_check] = cpu.interrupt_stack_tops().map(VirtAddr::new);
    let none = VirtAddr::zero();
    task.interrupt_stack_table = [nmi, double_fault, machine_check, none, none, none, none];
    cpu.tss.set(task);
    // SAFETY: the block lives as long as the visor, and its TSS is not written again.
    let task: &'static TaskStateSegment = unsafe { &*cpu.tss.as_ptr() };
    if let Descriptor::SystemSegment(low, high) = Descriptor::tss_segment(task) {
        cpu.gdt.set([0, CODE_64, DATA_64, low, high]);
    }
    let pointer = DescriptorTablePointer { limit: 39, base: VirtAddr::from_ptr(cpu.gdt.as_ptr()) };
    // SAFETY: the table has the selectors above and lives as long as the visor.
    unsafe { x86_64::instructions::tables::lgdt(&pointer) };
    // SAFETY: the selector is that of the TSS just described.
    unsafe { x86_64::instructions::tables::load_tss(TASK) };
    interrupts().load();
    x86_64::registers::model_specific::GsBase::write(VirtAddr::new(cpu.base()));
}

/// Bytes of the table of interrupts, which all processors share.
pub(crate) const TABLE_BYTES: u64 = 4096;
const _: () = assert!(size_of::<InterruptDescriptorTable>() == 4096);

/// Its linear address.
pub(crate) fn interrupts_base() -> u64 {
    u64::try_from((&raw const *interrupts()).addr()).unwrap_or(0)
}

/// GDT and IDT base of `cpu`, for the host-state area of its VMCS.
pub(crate) fn table_bases(cpu: &PerCpu) -> (u64, u64, u64) {
    let address = |pointer: *const u8| u64::try_from(pointer.addr()).unwrap_or(0);
    (address(cpu.gdt.as_ptr().cast()), interrupts_base(), address(cpu.tss.as_ptr().cast()))
}
