//! How a processor comes to run the host: in VMX non-root mode.
//!
//! Tests of what needs no VMX build the visor with `without-vmx/processor.rs` in the place of this file.
#![expect(unsafe_code, reason = "entering the host")]

use nested_vmx::state;

use crate::cpu::{self, vmx::Current};
use crate::{guest_state, shootdown, smp, vmcs};
use crate::{host::Registers, machine::Machine, nested::Nested, percpu::PerCpu};

pub(crate) use crate::cpu::vmx::invept_all as forget;
pub(crate) use crate::vmcs::{NoVmx, capabilities, enable};

/// Brings this processor into VMX root mode, with a VMCS for the host; `None` if the pool is empty.
#[expect(clippy::large_stack_frames, reason = "runs once, on a stack that is empty")]
pub(crate) fn join(cpu: &'static PerCpu, machine: &'static Machine) -> Result<Option<()>, NoVmx> {
    let host_pat = vmcs::pat();
    vmcs::enter_root(cpu, machine)?;
    guest_state::join();
    if cpu.index.get() == 0 && !guest_state::is_tight() {
        log::warn!(
            "the processor does not say that it keeps VMs' memory from the host: L1TF, MDS, TAA"
        );
    }
    cpu.running.set(true);
    vmcs::prepare(cpu, machine, host_pat);
    let Some(nested) = Nested::new(cpu, machine) else { return Ok(None) };
    nested_vmx::bitmap::close(|place, value| cpu.msr_bitmap.write(place, value));
    // SAFETY: this is the running processor's block, and nothing has asked for the value yet.
    unsafe { cpu.start_nested(nested) };
    Ok(Some(()))
}

/// Enters the host on the bootstrap processor: its loader, at `entry`, in 32-bit flat protected mode.
pub(crate) fn start_host(entry: u32, area: u64, handoff: u64) -> ! {
    state::flat_32_bit(&mut Current, entry);
    enter(Registers { rsi: area, rbx: handoff, ..Registers::default() })
}

/// Enters the host on an application processor, which waits for a start-up IPI, or has had one.
pub(crate) fn wait_for_host(cpu: &PerCpu) -> ! {
    state::init(&mut Current);
    match cpu.start_page.get() {
        None => {
            state::wait_for_sipi(&mut Current);
            shootdown::fall_asleep(cpu);
        }
        Some(page) => {
            state::start_up(&mut Current, page);
            shootdown::wake_up(cpu);
        }
    }
    smp::ready();
    // As reset leaves them.
    cpu::set_cache_control(nested_vmx::cr::CR0_CACHE);
    enter(Registers::after_init())
}

fn enter(registers: Registers) -> ! {
    unsafe extern "C" {
        fn vm_launch(registers: *const Registers) -> !;
    }
    // SAFETY: the VMCS is complete; exits use the exit stack from its top, of which nothing is
    // needed any more once the registers have been loaded from it.
    unsafe { vm_launch(&raw const registers) }
}
