//! The visor's control port, from ring 3.

use control::{DATA, PORT, Port};
use std::arch::asm;

/// The visor's ports.
#[derive(Debug)]
pub(crate) struct Control(());

impl Control {
    /// Asks the kernel for the ports. They have an index of its own on each processor: programs that use
    /// them run on machines with one, or stay on one.
    pub(crate) fn new() -> Result<Self, String> {
        // SAFETY: only grants this process the ports.
        let result = unsafe { libc::ioperm(PORT.into(), 8, 1) };
        crate::kvm::checked(result).map(|_| Self(()))
    }

    /// Writes `values`, one after the other, to what is at `index`.
    pub(crate) fn write(&mut self, index: u32, values: impl IntoIterator<Item = u32>) {
        // SAFETY: `new` obtained the port; the instruction touches no memory.
        unsafe {
            asm!("out dx, eax", in("dx") PORT, in("eax") index,
                 options(nostack, preserves_flags, nomem));
        }
        for value in values {
            // SAFETY: as above.
            unsafe {
                asm!("out dx, eax", in("dx") DATA, in("eax") value,
                     options(nostack, preserves_flags, nomem));
            }
        }
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
