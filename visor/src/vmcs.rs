//! Into VMX root operation, and the VMCS with which a processor runs the host.
#![expect(unsafe_code, reason = "control registers and VMX regions")]

use core::fmt;

use nested_vmx::capability::RawCapabilities;
use nested_vmx::control::Primary;
use nested_vmx::cpuid::Answer;
use nested_vmx::cr::{CR0_NE, CR4_OWNED};
use nested_vmx::field::{
    self as f, CR3_TARGET_COUNT, ENTRY_MSR_LOAD_COUNT, EXCEPTION_BITMAP, EXIT_MSR_LOAD_COUNT,
    EXIT_MSR_STORE_COUNT, VMCS_LINK_POINTER, Vmcs,
};
use nested_vmx::msr::{FEATURE_CONTROL, Permission, vmx_permission};
use x86_64::registers::control::{Cr0, Cr3, Cr4, Cr4Flags};

use crate::cpu::vmx::{self, Current, VmxError};
use crate::cpu::{self, cpuid, read_msr};
use crate::machine::Machine;
use crate::memory;
use crate::percpu::PerCpu;
use crate::segments;

const PAT: u32 = 0x277;
const EFER: u32 = 0xc000_0080;
/// Power-up value: write-back first, as the visor's page tables want it.
const VISOR_PAT: u64 = 0x0007_0406_0007_0406;
/// VMX_BASIC bit 55: the TRUE capability MSRs exist.
const TRUE_CONTROLS: u64 = 1 << 55;

/// Why a processor cannot run the visor.
#[derive(Clone, Copy, Debug)]
pub(crate) enum NoVmx {
    /// CPUID says so.
    Absent,
    /// Firmware locked it off.
    LockedOff,
    /// VMXON or the first VMPTRLD failed.
    Failed(VmxError),
}

impl fmt::Display for NoVmx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("the processor has no VMX"),
            Self::LockedOff => f.write_str("firmware has locked VMX off (IA32_FEATURE_CONTROL)"),
            Self::Failed(error) => write!(f, "the processor refuses VMX operation: {error:?}"),
        }
    }
}

/// Checks that VMX is there and not locked off, and enables it where firmware left that open.
pub(crate) fn enable() -> Result<(), NoVmx> {
    if cpuid(1, 0).ecx & 1 << 5 == 0 {
        return Err(NoVmx::Absent);
    }
    match vmx_permission(read_msr(FEATURE_CONTROL)) {
        Permission::Granted => Ok(()),
        Permission::Open(value) => {
            // SAFETY: the register exists with VMX, is unlocked, and takes these bits.
            unsafe { cpu::write_msr(FEATURE_CONTROL, value) };
            Ok(())
        }
        Permission::LockedOff => Err(NoVmx::LockedOff),
    }
}

/// Reads the capability MSRs that exist on this processor.
pub(crate) fn capabilities() -> RawCapabilities {
    let basic = read_msr(0x480);
    let shift = if basic & TRUE_CONTROLS != 0 { 0xc } else { 0 };
    let primary = read_msr(0x482 + shift);
    let secondary = cpu::high(primary) & Primary::SECONDARY.bits() != 0;
    let secondary = if secondary { read_msr(0x48b) } else { 0 };
    // EPT or VPID (bits 1 and 5) bring their capability register along.
    let ept_vpid = if cpu::high(secondary) & 0b10_0010 != 0 { read_msr(0x48c) } else { 0 };
    RawCapabilities {
        basic,
        pin: read_msr(0x481 + shift),
        primary,
        secondary,
        exit: read_msr(0x483 + shift),
        entry: read_msr(0x484 + shift),
        misc: read_msr(0x485),
        ept_vpid,
        cr0_fixed: (read_msr(0x486), read_msr(0x487)),
        cr4_fixed: (read_msr(0x488), read_msr(0x489)),
    }
}

/// Enters VMX root operation on this processor, with a fresh current VMCS.
pub(crate) fn enter_root(cpu: &PerCpu, machine: &Machine) -> Result<(), NoVmx> {
    let capabilities = &machine.capabilities;
    set_control_registers(capabilities);
    for region in [cpu.vmxon_region(), cpu.vmcs_region()] {
        memory::write_entry(region, 0, capabilities.revision().into());
    }
    // SAFETY: the region is this processor's own; the control registers were just set.
    unsafe { vmx::vmxon(cpu.vmxon_region()) }.map_err(NoVmx::Failed)?;
    // SAFETY: likewise.
    unsafe { vmx::load_fresh(cpu.vmcs_region()) }.map_err(NoVmx::Failed)
}

fn set_control_registers(capabilities: &RawCapabilities) {
    let (must, may) = capabilities.cr0_fixed;
    let cr0 = (Cr0::read_raw() | must) & may;
    // SAFETY: the bits that VMX fixes do not change how the visor's code executes.
    unsafe { Cr0::write_raw(cr0) };
    let mut wanted = Cr4Flags::PHYSICAL_ADDRESS_EXTENSION
        | Cr4Flags::OSFXSR
        | Cr4Flags::OSXMMEXCPT_ENABLE
        | Cr4Flags::PAGE_GLOBAL;
    let features = cpuid(1, 0).ecx;
    let structured = if cpuid(0, 0).eax >= 7 { cpuid(7, 0) } else { Answer::default() };
    for (present, flag) in [
        (features & 1 << 26 != 0, Cr4Flags::OSXSAVE),
        (structured.ebx & 1 << 7 != 0, Cr4Flags::SUPERVISOR_MODE_EXECUTION_PROTECTION),
        (structured.ebx & 1 << 20 != 0, Cr4Flags::SUPERVISOR_MODE_ACCESS_PREVENTION),
        // For RDPKRU and WRPKRU, to hide a VM's.
        (structured.ecx & 1 << 3 != 0, Cr4Flags::PROTECTION_KEY_USER),
    ] {
        wanted.set(flag, present);
    }
    let (must, may) = capabilities.cr4_fixed;
    // SAFETY: the visor has no user pages, so SMEP, SMAP and PKE refuse it nothing; the other bits are
    // those it has been running with.
    unsafe { Cr4::write_raw((wanted.bits() | must) & may) };
    // SAFETY: the power-up value, with which the visor's tables were made.
    unsafe { cpu::write_msr(PAT, VISOR_PAT) };
}

/// Number of physical-address bits that name memory. With memory encryption the topmost ones name a
/// key: to the same memory, and past the host's limits.
pub(crate) fn address_width() -> u8 {
    const TME: u32 = 1 << 13;
    const TME_ACTIVATE: u32 = 0x982;
    const LOCKED_AND_ON: u64 = 0b11;
    let [width, ..] = cpuid(0x8000_0008, 0).eax.to_le_bytes();
    if cpuid(0, 0).eax < 7 || cpuid(7, 0).ecx & TME == 0 {
        return width;
    }
    let [activate @ .., _, _, _] = read_msr(TME_ACTIVATE).to_le_bytes();
    let [flags, _, _, _, key_bits] = activate;
    let on = u64::from(flags) & LOCKED_AND_ON == LOCKED_AND_ON;
    if on { width.saturating_sub(key_bits & 15) } else { width }
}

/// Number of address bits in an entry of a page table: those that name a key included.
pub(crate) fn entry_width() -> u8 {
    let [width, ..] = cpuid(0x8000_0008, 0).eax.to_le_bytes();
    width
}

/// The memory-type table that firmware left: the host's to begin with.
pub(crate) fn pat() -> u64 {
    read_msr(PAT)
}

/// Fills the current VMCS but for the host's initial state (`nested_vmx::state`).
pub(crate) fn prepare(cpu: &PerCpu, machine: &Machine, host_pat: u64) {
    let v = &mut Current;
    let controls = &machine.controls;
    v.write(f::PIN_CONTROLS, controls.pin);
    v.write(f::PRIMARY_CONTROLS, controls.primary);
    v.write(f::SECONDARY_CONTROLS, controls.secondary);
    v.write(f::EXIT_CONTROLS, controls.exit);
    v.write(f::ENTRY_CONTROLS, controls.entry);
    v.write(EXCEPTION_BITMAP, 0);
    v.write(f::PAGE_FAULT_MASK, 0);
    v.write(f::PAGE_FAULT_MATCH, 0);
    for count in [CR3_TARGET_COUNT, EXIT_MSR_STORE_COUNT, EXIT_MSR_LOAD_COUNT, ENTRY_MSR_LOAD_COUNT]
    {
        v.write(count, 0);
    }
    v.write(f::IO_BITMAP_A, machine.io_bitmap_a.base());
    v.write(f::IO_BITMAP_B, machine.io_bitmap_b.base());
    v.write(f::MSR_BITMAP, machine.msr_bitmap.base());
    v.write(f::EPT_POINTER, machine.tables.pointer());
    if controls.vpid {
        v.write(f::VPID, nested_vmx::merge::HOST_VPID);
    }
    if controls.secondary & nested_vmx::control::Secondary::XSAVES.bits() != 0 {
        v.write(f::XSS_EXITING_BITMAP, 0);
    }
    if let Some((read, write)) = machine.decoys {
        v.write(f::VMREAD_BITMAP, read.base());
        v.write(f::VMWRITE_BITMAP, write.base());
    }
    v.write(VMCS_LINK_POINTER, u64::MAX);
    v.write(f::CR0_MASK, CR0_NE);
    v.write(f::CR4_MASK, CR4_OWNED);
    v.write(f::CR4_SHADOW, 0);
    v.write(f::GUEST_PAT, host_pat);
    v.write(f::GUEST_SYSENTER_CS, 0);
    v.write(f::GUEST_SYSENTER_ESP, 0);
    v.write(f::GUEST_SYSENTER_EIP, 0);
    root_state(cpu);
}

/// The state that every exit loads.
pub(crate) fn root_state(cpu: &PerCpu) {
    unsafe extern "C" {
        static vm_exit: u8;
    }
    let v = &mut Current;
    let (gdt, idt, task) = segments::table_bases(cpu);
    v.write(f::HOST_CR0, Cr0::read_raw());
    v.write(f::HOST_CR3, Cr3::read_raw().0.start_address().as_u64());
    v.write(f::HOST_CR4, Cr4::read_raw());
    v.write(f::HOST_CS_SELECTOR, segments::CODE.0);
    for selector in [
        f::HOST_SS_SELECTOR,
        f::HOST_DS_SELECTOR,
        f::HOST_ES_SELECTOR,
        f::HOST_FS_SELECTOR,
        f::HOST_GS_SELECTOR,
    ] {
        v.write(selector, segments::DATA.0);
    }
    v.write(f::HOST_TR_SELECTOR, segments::TASK.0);
    v.write(f::HOST_FS_BASE, 0);
    v.write(f::HOST_GS_BASE, cpu.base());
    v.write(f::HOST_TR_BASE, task);
    v.write(f::HOST_GDTR_BASE, gdt);
    v.write(f::HOST_IDTR_BASE, idt);
    v.write(f::HOST_SYSENTER_CS, 0);
    v.write(f::HOST_SYSENTER_ESP, 0);
    v.write(f::HOST_SYSENTER_EIP, 0);
    v.write(f::HOST_PAT, VISOR_PAT);
    v.write(f::HOST_EFER, read_msr(EFER));
    v.write(f::HOST_RSP, cpu.exit_stack_top());
    v.write(f::HOST_RIP, u64::try_from((&raw const vm_exit).addr()).unwrap_or(0));
}
