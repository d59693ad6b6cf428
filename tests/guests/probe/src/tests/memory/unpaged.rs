//! Accesses without the probe's own paging: physical addresses as they are, and PAE tables that the
//! processor reads while it turns paging on.

use super::Reservation;
use crate::console;
use crate::cpu;
use crate::fault::Local;
use crate::report::Checks;

core::arch::global_asm!(include_str!("../../unpaged.s"), options(raw));

unsafe extern "C" {
    static unpaged_fault: u8;
    static mut unpaged_gates: [u64; 14];
    static mut unpaged_refused: u32;
    fn unpaged_access(address: u32, kind: u32);
}

const GENERAL_PROTECTION: usize = 13;
/// Of a PAE page-directory-pointer-table entry (SDM vol. 3, table 5-8).
const PRESENT: u64 = 1;
const RESERVED: u64 = 0b110;
const READ: u32 = 0;
/// By name, in the order of `unpaged.s`; all but the first act on what is there, if it can be read.
const KINDS: [&str; 5] =
    ["read", "write", "execution", "use for PAE paging", "use for PAE paging with NE off"];

/// Tries each kind at the sample pages, if they are below 4 GiB.
pub(super) fn without_paging(checks: &mut Checks, reservation: Reservation) {
    prepare();
    for physical in reservation.samples() {
        let Ok(address) = u32::try_from(physical) else {
            return console::line(format_args!("{physical:#x} is out of reach without paging"));
        };
        for (kind, name) in (READ..).zip(KINDS) {
            let refused = attempt(address, kind);
            checks.that(
                refused == Some(0),
                format_args!("{name} of {address:#x} without paging raises #GP(0), {refused:?}"),
            );
            if kind == READ && refused.is_none() {
                break;
            }
        }
    }
}

/// Page-directory-pointer tables with reserved bits are refused wherever they are; this also tells a
/// machine without a visor that the ones above would be.
pub(super) fn malformed_pointers(checks: &mut Checks) {
    static TABLE: Local<[u64; 4]> = Local::new([PRESENT | RESERVED; 4]);
    prepare();
    for (kind, name) in (READ..).zip(KINDS).skip(3) {
        let refused = attempt(TABLE.get() as u32, kind);
        checks.that(
            refused == Some(0),
            format_args!("{name} with reserved bits set raises #GP(0), {refused:?}"),
        );
    }
}

/// Switches to a 32-bit task, which always exits and which no host of today does.
pub(super) fn switch_task() {
    const TASK: u32 = 5;
    prepare();
    let _ = attempt(0, TASK);
}

/// One 32-bit interrupt gate (SDM vol. 3, 7.11), for #GP.
fn prepare() {
    let target = &raw const unpaged_fault as u64;
    let gate = target & 0xffff | 0x08 << 16 | 0x8e00 << 32 | (target >> 16) << 48;
    // SAFETY: this test's own table, not loaded at the moment.
    unsafe { unpaged_gates[GENERAL_PROTECTION] = gate };
}

/// The error code of the #GP that ended the access.
fn attempt(address: u32, kind: u32) -> Option<u32> {
    let (cr0, cr4) = (cpu::cr0(), cpu::cr4());
    // SAFETY: keeps all registers and tables but the control registers, which follow.
    let refused = unsafe {
        unpaged_access(address, kind);
        unpaged_refused
    };
    cpu::set_cr4(cr4);
    cpu::set_cr0(cr0);
    refused.checked_sub(1)
}
