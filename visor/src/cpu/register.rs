//! Registers that VM entries and exits leave alone.

use core::arch::asm;

use x86_64::registers::control::{Cr2, Cr4, Cr4Flags};

use super::{cpuid, low, read_msr, set_page_fault_address, write_msr};

/// A register that VMX does not switch, of those that a VM uses without an exit.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Register {
    /// A model-specific register.
    Msr(u32),
    /// DR0, DR1, DR2, DR3.
    Dr0,
    Dr1,
    Dr2,
    Dr3,
    /// What debug exceptions report. Each entry loads DR7 from the VMCS, but not this.
    Dr6,
    /// The address of the last page fault.
    Cr2,
    /// Rights of protection keys, which XCR0 need not govern.
    Pkru,
}

/// IA32_TSC_AUX.
pub(crate) const TSC_AUX: u32 = 0xc000_0103;
/// IA32_PERF_GLOBAL_CTRL.
pub(crate) const PERF_GLOBAL_CTRL: u32 = 0x38f;
/// IA32_XSS.
pub(crate) const XSS: u32 = 0xda0;

macro_rules! read_debug {
    ($name:literal) => {{
        let value: u64;
        // SAFETY: reading a debug register changes nothing; DR7.GD is clear in VMX root mode.
        unsafe {
            asm!(concat!("mov {}, ", $name), out(reg) value,
                 options(nomem, nostack, preserves_flags));
        }
        value
    }};
}

macro_rules! write_debug {
    ($name:literal, $value:expr) => {
        // SAFETY: no breakpoint is enabled in VMX root mode: each exit sets DR7 to 0x400.
        unsafe {
            asm!(concat!("mov ", $name, ", {}"), in(reg) $value,
                 options(nomem, nostack, preserves_flags));
        }
    };
}

impl Register {
    /// Whether this processor has it.
    pub(crate) fn exists(self) -> bool {
        match self {
            Self::Msr(TSC_AUX) => {
                cpuid(0x8000_0001, 0).edx & 1 << 27 != 0 || structured().ecx & 1 << 22 != 0
            }
            Self::Msr(XSS) => cpuid(0xd, 1).eax & 1 << 3 != 0,
            // From version 2 of performance monitoring on.
            Self::Msr(PERF_GLOBAL_CTRL) => cpuid(0, 0).eax >= 0xa && cpuid(0xa, 0).eax & 0xff >= 2,
            Self::Pkru => Cr4::read_raw() & Cr4Flags::PROTECTION_KEY_USER.bits() != 0,
            Self::Msr(_)
            | Self::Dr0
            | Self::Dr1
            | Self::Dr2
            | Self::Dr3
            | Self::Dr6
            | Self::Cr2 => true,
        }
    }

    /// Its value; it exists.
    #[inline(always)]
    pub(crate) fn read(self) -> u64 {
        match self {
            Self::Msr(index) => read_msr(index),
            Self::Dr0 => read_debug!("dr0"),
            Self::Dr1 => read_debug!("dr1"),
            Self::Dr2 => read_debug!("dr2"),
            Self::Dr3 => read_debug!("dr3"),
            Self::Dr6 => read_debug!("dr6"),
            Self::Cr2 => Cr2::read_raw(),
            Self::Pkru => {
                let value: u32;
                // SAFETY: CR4.PKE is set where the register exists.
                unsafe {
                    asm!("rdpkru", in("ecx") 0, out("eax") value, out("edx") _,
                         options(nomem, nostack, preserves_flags));
                }
                value.into()
            }
        }
    }

    /// Sets it.
    ///
    /// # Safety
    /// It exists and `value` is its initial one, or was read from it.
    pub(crate) unsafe fn write(self, value: u64) {
        match self {
            // SAFETY: the visor uses none of those that are passed here: it executes no SYSCALL, no
            // SWAPGS, no RDTSCP and no XSAVES.
            Self::Msr(index) => unsafe { write_msr(index, value) },
            Self::Dr0 => write_debug!("dr0", value),
            Self::Dr1 => write_debug!("dr1", value),
            Self::Dr2 => write_debug!("dr2", value),
            Self::Dr3 => write_debug!("dr3", value),
            Self::Dr6 => write_debug!("dr6", value),
            Self::Cr2 => set_page_fault_address(value),
            // SAFETY: CR4.PKE is set where the register exists; the visor has no user pages.
            Self::Pkru => unsafe {
                asm!("wrpkru", in("eax") low(value), in("ecx") 0, in("edx") 0,
                     options(nostack, preserves_flags));
            },
        }
    }
}

/// Leaf 7 of CPUID, zeros where there is none.
pub(crate) fn structured() -> nested_vmx::cpuid::Answer {
    if cpuid(0, 0).eax >= 7 { cpuid(7, 0) } else { nested_vmx::cpuid::Answer::default() }
}
