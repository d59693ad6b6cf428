//! The visor's control port, from ring 3.

use control::{PORT, Port};
use std::arch::asm;

/// The visor's port.
#[derive(Debug)]
pub(crate) struct Control(());

impl Control {
    /// Asks the kernel for the port. It has an index of its own on each processor: programs that read
    /// it run on machines with one.
    pub(crate) fn new() -> Result<Self, String> {
        // SAFETY: only grants this process the port.
        let result = unsafe { libc::ioperm(PORT.into(), 4, 1) };
        crate::kvm::checked(result).map(|_| Self(()))
    }
}

impl Port for Control {
    fn read(&mut self, index: u32) -> u32 {
        let value: u32;
        // SAFETY: `new` obtained the port; neither instruction touches memory.
        unsafe {
            asm!("out dx, eax", "in eax, dx", in("dx") PORT, inout("eax") index => value,
                 options(nostack, preserves_flags, nomem));
        }
        value
    }
}
