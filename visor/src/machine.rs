//! What all processors share once the machine is set up.

use core::sync::atomic::AtomicU32;

use boot::cmdline::{OnPanic, Quirk};
use ept::addr::{Frame, Span};
use nested_vmx::advertise::Advertised;
use nested_vmx::bitmap::Always;
use nested_vmx::capability::{Controls, RawCapabilities};
use spin::Once;

use crate::percpu::{self, PerCpu};
use crate::tables::HostTables;

/// The running visor's view of its machine: set once, before the host runs.
#[derive(Debug)]
pub(crate) struct Machine {
    /// The visor's memory.
    pub(crate) reservation: Span,
    /// What of it is neither the image's nor the visor's page tables.
    pub(crate) rest: Span,
    /// Blocks of all processors, one after the other.
    pub(crate) blocks: Frame,
    /// Number of processors.
    pub(crate) processors: u32,
    /// VMX capabilities, the same on every processor (checked).
    pub(crate) capabilities: RawCapabilities,
    /// The VMX that the host sees.
    pub(crate) advertised: Advertised,
    /// A list of MSRs that no processor loads.
    pub(crate) bad_list: Frame,
    /// VMREAD and VMWRITE bitmaps, where the processor has VMCS shadowing.
    pub(crate) decoys: Option<(Frame, Frame)>,
    /// Physical-address bits that name memory.
    pub(crate) width: u8,
    /// The host's execution controls.
    pub(crate) controls: Controls,
    /// I/O bitmap A.
    pub(crate) io_bitmap_a: Frame,
    /// I/O bitmap B.
    pub(crate) io_bitmap_b: Frame,
    /// MSR bitmaps.
    pub(crate) msr_bitmap: Frame,
    /// What of them goes for VMs as well.
    pub(crate) always_exits: Always,
    /// MSR bitmaps of protected VMs.
    pub(crate) guarded_bitmap: Frame,
    /// An EPT pointer that leads to no memory at all.
    pub(crate) nowhere: u64,
    /// Whether tickets are taken in clear.
    pub(crate) dev_tickets: bool,
    /// Whether VMs without a ticket may run.
    pub(crate) unprotected_vms: bool,
    /// Whether tickets are taken where no IOMMU keeps devices from memory.
    pub(crate) without_iommu: bool,
    /// Whether tickets are taken where the processor does not keep VMs' memory from the host.
    pub(crate) leaky_processor: bool,
    /// Processors on which the host is in VMX operation.
    pub(crate) in_vmx: AtomicU32,
    /// Frame table and EPT01.
    pub(crate) tables: HostTables,
    /// What the emulator needs.
    pub(crate) quirk: Quirk,
    /// What a panic does in the end.
    pub(crate) on_panic: OnPanic,
}

static MACHINE: Once<Machine> = Once::new();

impl Machine {
    /// Sets up the one machine there is.
    #[expect(clippy::large_stack_frames, reason = "runs once, on the boot stack of 64 KiB")]
    pub(crate) fn establish(self) -> &'static Self {
        MACHINE.call_once(|| self)
    }

    /// The machine, once it is set up.
    pub(crate) fn get() -> Option<&'static Self> {
        MACHINE.get()
    }

    /// The machine, for code that only runs once it is set up.
    pub(crate) fn running() -> &'static Self {
        Self::get().unwrap_or_else(|| panic!("the machine is not set up"))
    }

    /// Where block `index` lies.
    pub(crate) fn block(&self, index: u32) -> Frame {
        Frame::containing(self.blocks.base() + u64::from(index) * percpu::SIZE)
    }

    /// Where all blocks lie.
    pub(crate) fn all_blocks(&self) -> Span {
        let bytes = u64::from(self.processors) * percpu::SIZE;
        Span::sized(self.blocks.base(), bytes).unwrap_or_default()
    }

    /// Every processor's block.
    pub(crate) fn each(&self) -> impl Iterator<Item = &'static PerCpu> {
        (0..self.processors).filter_map(|index| PerCpu::at(self.block(index)))
    }
}
