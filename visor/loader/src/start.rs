//! The way in and the way out: 32-bit protected mode without paging on both sides of long mode.

use core::arch::{asm, global_asm};

use host_loader::Entry;

/// Virtual address at which the low 4 GiB of physical memory are seen: the second entry of the top
/// page table.
pub(crate) const WINDOW: u64 = 1 << 39;

unsafe extern "sysv64" {
    /// Leaves long mode and jumps to `eip` with the three registers; `base` is the area's.
    fn loader_leave(eip: u32, eax: u32, ebx: u32, esi: u32, base: u32) -> !;
}

/// Jumps to the host's kernel.
pub(crate) fn leave(entry: &Entry, base: u32) -> ! {
    // SAFETY:
    // 1. `base` is where the area lies: the code that leaves long mode is reached there.
    // 2. Nothing of this program is needed after it.
    unsafe { loader_leave(entry.eip, entry.eax(), entry.ebx(), entry.esi(), base) }
}

/// Stops this processor for good.
pub(crate) fn halt() -> ! {
    loop {
        // SAFETY: stopping touches no memory; interrupts are off.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) }
    }
}

// Defines `loader_entry`, where the visor enters, and `loader_leave`.
global_asm!(include_str!("start.s"), main = sym crate::main);
