//! The code that answers for the BIOS once the host runs.

use core::arch::global_asm;
use core::slice;

global_asm!(include_str!("service.s"));

unsafe extern "C" {
    static service_start: u8;
    static service_end: u8;
}

/// The code, as [`host_loader::Bios`] wants it.
pub(crate) fn code() -> &'static [u8] {
    let (start, end) = (&raw const service_start, &raw const service_end);
    let len = end.addr() - start.addr();
    // SAFETY: `service.s` puts `len` bytes of constants between the two.
    unsafe { slice::from_raw_parts(start, len) }
}
