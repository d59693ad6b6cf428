//! What belongs to one processor: its stacks, descriptor tables, VMX regions and counters.
#![expect(
    unsafe_code,
    reason = "GS points to the processor's own block, by the visor's setup alone"
)]

use core::arch::asm;
use core::cell::{Cell, RefCell, UnsafeCell};
use core::mem::{MaybeUninit, offset_of};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use ept::addr::{Frame, PAGE, Span};
use ept::shootdown::Call;
use nested_vmx::exit::COUNTED_REASONS;
use x86_64::structures::tss::TaskStateSegment;

use crate::cpu::size;
use crate::memory;
use crate::nested::{Nested, SLOTS, SlotPages};

const STACK: usize = 32 * 1024;
const SMALL_STACK: usize = 8 * 1024;

#[repr(C, align(16))]
struct Stack<const N: usize>([u8; N]);

/// Frames for EPT02.
const SHADOW_FRAMES: usize = 64;

#[repr(C, align(4096))]
struct Region([u8; 4096]);

/// A page that the processor's microcode reads.
#[repr(C, align(4096))]
pub(crate) struct Words([AtomicU64; 512]);

impl Words {
    /// Sets the word at `index`, which is below 512.
    pub(crate) fn write(&self, index: usize, value: u64) {
        if let Some(word) = self.0.get(index) {
            word.store(value, Ordering::Relaxed);
        }
    }
}

/// One processor's block. Lives in zeroed frames of the reservation and is never freed.
#[repr(C, align(4096))]
pub(crate) struct PerCpu {
    /// Linear address of this block: what `gs:[0]` reads.
    this: Cell<u64>,
    /// Physical address of this block.
    physical: Cell<u64>,
    /// NMIs that have arrived and were not looked at yet: counted by the NMI handler, in assembly.
    pub(crate) nmi_arrived: AtomicU32,
    /// Whether the VMCS that is current has not been launched: read in assembly.
    launch: AtomicBool,
    /// Whether the processor runs a VM of the host, or is about to: VMCS02 is current.
    pub(crate) in_guest: Cell<bool>,
    /// Whether that VM is a protected one.
    pub(crate) guarded: Cell<bool>,
    /// An NMI of the host's that has arrived and is not delivered yet.
    pub(crate) nmi_owed: Cell<bool>,
    /// How others call this processor.
    pub(crate) call: Call,
    /// EPT02 must be emptied before a VM is entered.
    pub(crate) shadow_is_stale: Cell<bool>,
    /// Base of the root with which the processor runs a VM: the frame of an EPT12.
    pub(crate) root: AtomicU64,
    /// Position among the visor's processors; 0 is the bootstrap processor.
    pub(crate) index: Cell<u32>,
    /// APIC id.
    pub(crate) apic_id: Cell<u32>,
    /// Whether this processor was stopped, for good.
    pub(crate) stopped: AtomicBool,
    /// Set when a VMCS is current.
    pub(crate) running: Cell<bool>,
    /// Page at which the last start-up IPI started this processor.
    pub(crate) start_page: Cell<Option<u8>>,
    /// What the host wrote to the control port.
    pub(crate) control: Cell<u32>,
    /// High half that goes with the counter read last.
    pub(crate) latched: Cell<u32>,
    /// Exits by basic reason.
    pub(crate) exits: [AtomicU64; COUNTED_REASONS],
    /// TSC ticks between exits and entries.
    pub(crate) ticks: AtomicU64,
    /// Null, code, data, and the two halves of the TSS descriptor.
    pub(crate) gdt: Cell<[u64; 5]>,
    pub(crate) tss: Cell<TaskStateSegment>,
    machine_check_stack: Stack<SMALL_STACK>,
    /// From here on there may be something of a VM.
    nested: UnsafeCell<MaybeUninit<RefCell<Nested>>>,
    vmxon: Region,
    vmcs: Region,
    /// MSR bitmaps of the VM that runs.
    pub(crate) msr_bitmap: Words,
    /// Virtual-APIC page for VMs whose own cannot be used.
    virtual_apic: Region,
    slots: [SlotPages; SLOTS],
    shadow: [Region; SHADOW_FRAMES],
    nmi_stack: Stack<SMALL_STACK>,
    double_fault_stack: Stack<SMALL_STACK>,
    exit_stack: Stack<STACK>,
}

/// Offset of the stack on which the machine ends. It is free as long as no machine check comes, after which nothing
/// goes on.
#[expect(clippy::as_conversions, reason = "a constant below 2^64")]
pub(crate) const LAST_STACK: u64 = offset_of!(PerCpu, machine_check_stack) as u64;
/// Its end, and the offset from the block of what may hold something of a VM: all of the rest. Before the stack is
/// what a processor needs to be stopped.
#[expect(clippy::as_conversions, reason = "a constant below 2^64")]
pub(crate) const SECRETS: u64 = {
    let offset = offset_of!(PerCpu, nested) as u64;
    assert!(offset.is_multiple_of(16), "the end of a stack");
    offset
};

/// Bytes of one processor's block.
pub(crate) const SIZE: u64 = {
    #[expect(clippy::as_conversions, reason = "a constant below 2^64")]
    let bytes = size_of::<PerCpu>() as u64;
    assert!(bytes.is_multiple_of(PAGE), "blocks follow each other by whole frames");
    bytes
};

/// Offset of the top of the exit stack from the block.
#[expect(clippy::as_conversions, reason = "a constant below 2^64")]
pub(crate) const STACK_TOP: u64 = (offset_of!(PerCpu, exit_stack) + STACK) as u64;
/// Offset of `launch` from GS.
pub(crate) const LAUNCH: usize = offset_of!(PerCpu, launch);
/// Offset of `index` from GS.
pub(crate) const INDEX: usize = offset_of!(PerCpu, index);
/// Offset of `stopped` from GS.
pub(crate) const STOPPED: usize = offset_of!(PerCpu, stopped);
/// Offset of `nmi_arrived` from GS.
pub(crate) const NMI_ARRIVED: usize = offset_of!(PerCpu, nmi_arrived);
const _: () = assert!(offset_of!(PerCpu, this) == 0, "`gs:[0]` reads `this`");

impl core::fmt::Debug for PerCpu {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "processor {} (APIC id {})", self.index.get(), self.apic_id.get())
    }
}

impl PerCpu {
    /// The block in the frames from `home`, for processor `index`.
    ///
    /// # Safety
    /// The frames are zeroed, mapped, for this block alone, and only this processor uses it (all
    /// fields that another one reads are atomic).
    pub(crate) unsafe fn adopt(home: Frame, index: u32, apic_id: u32) -> Option<&'static Self> {
        let block = memory::pointer::<Self>(home)?;
        // SAFETY: all-zero bytes are a valid block; the caller vouches for the memory.
        let block = unsafe { block.as_ref() };
        block.this.set(memory::linear(home.base()));
        block.physical.set(home.base());
        block.index.set(index);
        block.apic_id.set(apic_id);
        Some(block)
    }

    /// The block in the frames from `home`, adopted before.
    pub(crate) fn at(home: Frame) -> Option<&'static Self> {
        let block = memory::pointer::<Self>(home)?;
        // SAFETY: `crate::machine` only names frames of blocks, zeroed when they were taken; other
        // processors' fields that are not atomic are not read.
        Some(unsafe { block.as_ref() })
    }

    /// The running processor's block.
    pub(crate) fn current() -> &'static Self {
        let this: *const Self;
        // SAFETY: GS base is set before anything calls this, to a block whose first field is its
        // own address; every VM exit restores it.
        unsafe {
            asm!("mov {}, gs:[0]", out(reg) this, options(nostack, readonly, preserves_flags));
        }
        // SAFETY: the block lives as long as the visor.
        unsafe { &*this }
    }

    /// Linear address of the block: the GS base.
    pub(crate) fn base(&self) -> u64 {
        self.this.get()
    }

    fn offset(&self, offset: usize) -> u64 {
        self.this.get() + u64::try_from(offset).unwrap_or(0)
    }

    /// Top of the stack on which exits are handled.
    pub(crate) fn exit_stack_top(&self) -> u64 {
        self.this.get() + STACK_TOP
    }

    /// Tops of the stacks for NMIs, double faults and machine checks: IST 1, 2 and 3.
    pub(crate) fn interrupt_stack_tops(&self) -> [u64; 3] {
        [
            self.offset(offset_of!(Self, nmi_stack) + SMALL_STACK),
            self.offset(offset_of!(Self, double_fault_stack) + SMALL_STACK),
            self.offset(offset_of!(Self, machine_check_stack) + SMALL_STACK),
        ]
    }

    fn frame(&self, offset: usize) -> Frame {
        Frame::containing(self.physical.get() + u64::try_from(offset).unwrap_or(0))
    }

    /// The VMXON region.
    pub(crate) fn vmxon_region(&self) -> Frame {
        self.frame(offset_of!(Self, vmxon))
    }

    /// The VMCS with which this processor runs the host.
    pub(crate) fn vmcs_region(&self) -> Frame {
        self.frame(offset_of!(Self, vmcs))
    }

    /// MSR bitmaps of the VM that runs.
    pub(crate) fn msr_bitmap_frame(&self) -> Frame {
        self.frame(offset_of!(Self, msr_bitmap))
    }

    /// Virtual-APIC page of the VM that runs.
    pub(crate) fn virtual_apic_frame(&self) -> Frame {
        self.frame(offset_of!(Self, virtual_apic))
    }

    /// The three pages of slot `index`: fields, VMCS02, shadow VMCS.
    pub(crate) fn slot_frames(&self, index: usize) -> [Frame; 3] {
        let base = offset_of!(Self, slots) + index * size_of::<SlotPages>();
        [0, 1, 2].map(|page| self.frame(base + page * 4096))
    }

    /// Frames for EPT02.
    pub(crate) fn shadow_frames(&self) -> Span {
        let start = self.frame(offset_of!(Self, shadow)).base();
        let len = u64::try_from(size_of::<[Region; SHADOW_FRAMES]>()).unwrap_or(0);
        Span::sized(start, len).unwrap_or_default()
    }

    /// Sets up nested VMX. Called once, before the host runs.
    ///
    /// # Safety
    /// No reference from [`PerCpu::nested`] exists yet, and this is the running processor's block.
    #[expect(clippy::large_stack_frames, reason = "runs once, on a stack that is empty")]
    pub(crate) unsafe fn start_nested(&self, nested: Nested) {
        let place = self.nested.get();
        // SAFETY: the caller vouches that nothing else refers to the place.
        unsafe { place.write(MaybeUninit::new(RefCell::new(nested))) }
    }

    /// Nested VMX, set up before the host runs.
    pub(crate) fn nested(&self) -> &RefCell<Nested> {
        // SAFETY: after `start_nested` there are only shared references to the place.
        let place = unsafe { &*self.nested.get() };
        // SAFETY: `crate::launch` calls `start_nested` before it enters the host, and nothing before
        // that asks for it.
        unsafe { place.assume_init_ref() }
    }

    /// Says whether the current VMCS is to be entered by VMLAUNCH.
    #[expect(clippy::fn_params_excessive_bools, reason = "the flag that assembly reads")]
    pub(crate) fn launch(&self, due: bool) {
        self.launch.store(due, Ordering::Relaxed);
    }

    /// Whether this processor has entered the host: a VMCS is current.
    pub(crate) fn running(&self) -> bool {
        self.running.get()
    }

    /// Counts one exit.
    pub(crate) fn count_exit(&self, basic_reason: u32) {
        let last = COUNTED_REASONS - 1;
        if let Some(counter) = self.exits.get(size(basic_reason.into()).min(last)) {
            // Only this processor writes: no locked instruction is needed.
            counter.store(counter.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
        }
    }

    /// Counts time spent in the visor, in TSC ticks.
    pub(crate) fn count_ticks(&self, ticks: u64) {
        self.ticks.store(self.ticks.load(Ordering::Relaxed).wrapping_add(ticks), Ordering::Relaxed);
    }
}
