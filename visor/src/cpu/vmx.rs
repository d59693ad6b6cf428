//! VMX instructions, and the current VMCS as `nested_vmx` sees it.

use core::arch::asm;

use ept::addr::Frame;
use nested_vmx::field::{INSTRUCTION_ERROR, Vmcs};

/// A VMX instruction failed (SDM vol. 3, 32.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum VmxError {
    /// VMfailInvalid: no current VMCS, or VMX refused.
    Invalid,
    /// VMfailValid with this number (SDM vol. 3, 32.4).
    Valid(u32),
}

fn outcome(carry: u8, zero: u8) -> Result<(), VmxError> {
    if carry != 0 {
        Err(VmxError::Invalid)
    } else if zero != 0 {
        Err(VmxError::Valid(Current.read(INSTRUCTION_ERROR)))
    } else {
        Ok(())
    }
}

/// Enters VMX root operation.
///
/// # Safety
/// `region` is a frame of the visor's that nothing else uses, begins with the VMCS revision, and
/// CR0, CR4 and IA32_FEATURE_CONTROL allow VMX.
pub(crate) unsafe fn vmxon(region: Frame) -> Result<(), VmxError> {
    let address = region.base();
    let (carry, zero): (u8, u8);
    // SAFETY: the caller vouches for the region and the registers.
    unsafe {
        asm!("vmxon [{}]", "setc {}", "setz {}", in(reg) &raw const address,
             out(reg_byte) carry, out(reg_byte) zero, options(nostack));
    }
    if carry | zero != 0 { Err(VmxError::Invalid) } else { Ok(()) }
}

/// Makes `region` a fresh VMCS and the current one.
///
/// # Safety
/// `region` is a zeroed frame of the visor's that nothing else uses and begins with the VMCS
/// revision; this processor is in VMX root operation.
pub(crate) unsafe fn load_fresh(region: Frame) -> Result<(), VmxError> {
    let address = region.base();
    let (carry, zero): (u8, u8);
    // SAFETY: the caller vouches for the region.
    unsafe {
        asm!("vmclear [{}]", "setc {}", "setz {}", in(reg) &raw const address,
             out(reg_byte) carry, out(reg_byte) zero, options(nostack));
    }
    outcome(carry, zero)?;
    let (carry, zero): (u8, u8);
    // SAFETY: as above.
    unsafe {
        asm!("vmptrld [{}]", "setc {}", "setz {}", in(reg) &raw const address,
             out(reg_byte) carry, out(reg_byte) zero, options(nostack));
    }
    outcome(carry, zero)
}

/// Has the processor write what it holds of the VMCS in `region` back, which is not the current one.
///
/// # Safety
/// `region` is one of this processor's that was loaded by [`load_fresh`], and is not selected again
/// before that.
pub(crate) unsafe fn unload(region: Frame) {
    let address = region.base();
    // SAFETY: the caller vouches for the region.
    unsafe {
        asm!("vmclear [{}]", in(reg) &raw const address, options(nostack));
    }
}

/// Makes `region`, a VMCS of this processor's that was loaded before, the current one.
#[inline(always)]
pub(crate) fn select(region: &Frame) {
    // A frame is its address.
    let address: *const Frame = region;
    // SAFETY: regions that are passed here belong to this processor alone and stay what they are;
    // VMPTRLD touches nothing else.
    unsafe {
        asm!("vmptrld [{}]", "jbe {}", in(reg) address, label { not_loaded() },
             options(nostack));
    }
}

/// Drops what this processor has cached of linear addresses, by INVVPID of type `kind`.
pub(crate) fn invvpid(kind: u64, tag: u16, linear: u64) {
    let descriptor = [u64::from(tag), linear];
    // SAFETY: INVVPID only empties caches; an operand that the processor refuses has no effect.
    unsafe {
        asm!("invvpid {}, [{}]", in(reg) kind, in(reg) &raw const descriptor, options(nostack));
    }
}

/// Writes the VMCS in `region` back to memory and leaves VMX operation.
///
/// # Safety
/// `region` is this processor's current VMCS, and nothing enters the host any more.
pub(crate) unsafe fn leave(region: Frame) {
    let address = region.base();
    // SAFETY: the caller vouches for the region.
    unsafe { asm!("vmclear [{}]", in(reg) &raw const address, options(nostack)) }
    // SAFETY: the processor is in VMX root operation; an INIT that was blocked is taken now.
    unsafe { asm!("vmxoff", options(nostack)) }
}

/// Drops every translation that this processor has cached through any EPT.
pub(crate) fn invept_all() {
    let descriptor = [0_u64; 2];
    // SAFETY: INVEPT of all contexts only empties caches; its support was checked at boot.
    unsafe {
        asm!("invept {}, [{}]", in(reg) 2_u64, in(reg) &raw const descriptor, options(nostack));
    }
}

/// Drops every translation that this processor has cached through the EPT of this pointer, which the
/// processor accepts.
pub(crate) fn invept(pointer: u64) {
    let descriptor = [pointer, 0];
    // SAFETY: INVEPT of a single context only empties caches.
    unsafe {
        asm!("invept {}, [{}]", in(reg) 1_u64, in(reg) &raw const descriptor, options(nostack));
    }
}

#[cold]
fn not_loaded() -> ! {
    panic!("VMPTRLD failed")
}

/// The current VMCS of this processor.
#[derive(Debug)]
pub(crate) struct Current;

impl Vmcs for Current {
    #[inline(always)]
    fn read_raw(&self, encoding: u32) -> u64 {
        let value: u64;
        // SAFETY: VMREAD of a field changes no memory; a VMCS is current from `load_fresh` on, and
        // fields that this processor lacks are not named in `nested_vmx::field`.
        unsafe {
            asm!("vmread {}, {}", out(reg) value, in(reg) u64::from(encoding),
                 options(nomem, nostack));
        }
        value
    }

    #[inline(always)]
    fn write_raw(&mut self, encoding: u32, value: u64) {
        // SAFETY: what the fields make the processor do is checked where they are computed
        // (`crate::vmcs`, `nested_vmx`); the instruction itself touches no memory of Rust's. It fails
        // only for a field that the processor lacks, which then has no bearing on what it does, and
        // without a current VMCS, which `load_fresh` and `select` rule out.
        unsafe {
            asm!("vmwrite {}, {}", in(reg) u64::from(encoding), in(reg) value,
                 options(nomem, nostack));
        }
    }
}
