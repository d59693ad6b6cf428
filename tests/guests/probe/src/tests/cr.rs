//! `cr`: control registers hold what is written, refuse what the manual says they refuse, and take
//! the processor through every mode and back (SDM vol. 3, 2.5 and 10.9; vol. 2, MOV CR).

use super::{Arguments, Machine};
use crate::cpu;
use crate::fault::{Fault, GP, catch};
use crate::report::{Checks, Outcome};

const CR0_NE: u64 = 1 << 5;
const CR0_WP: u64 = 1 << 16;
const CR0_NW: u64 = 1 << 29;
const CR0_CD: u64 = 1 << 30;
const CR0_PG: u64 = 1 << 31;
const CR0_PE: u64 = 1;
const CR4_PAE: u64 = 1 << 5;
const CR4_LA57: u64 = 1 << 12;
const CR4_SMXE: u64 = 1 << 14;
const CR4_PCIDE: u64 = 1 << 17;

core::arch::global_asm!(include_str!("../modes.s"), options(raw));

pub(super) fn run(_: &Machine, _: &Arguments) -> Outcome {
    let mut checks = Checks::new();
    cr0_holds(&mut checks);
    cr0_refuses(&mut checks);
    cr4_holds(&mut checks);
    cr4_refuses(&mut checks);
    others(&mut checks);
    machine_status_word(&mut checks);
    for flip in [0, CR0_NE, CR0_WP, CR0_NE | CR0_CD] {
        round_trip(&mut checks, flip as u32);
    }
    checks.finish()
}

fn refused(checks: &mut Checks, what: &str, value: u64, result: Result<(), Fault>) {
    let raised = matches!(result, Err(Fault { vector: GP, error: 0, .. }));
    checks.that(raised, format_args!("{what} {value:#x} raises #GP, {result:?}"));
}

/// With and without each bit that 64-bit code may change, NE (which VMX forces) among them; TS is
/// left to [`machine_status_word`], since compiled code uses SSE registers.
fn cr0_holds(checks: &mut Checks) {
    let usual = cpu::cr0();
    let bits = [CR0_NE, CR0_WP, 1 << 18, 1 << 1, CR0_CD, CR0_CD | CR0_NW, CR0_NE | CR0_CD];
    for bit in bits {
        for value in [usual | bit, usual & !bit, usual] {
            let result = catch(|| cpu::set_cr0(value));
            let shown = cpu::cr0();
            cpu::set_cr0(usual);
            checks.that(
                result.is_ok() && shown == value,
                format_args!("CR0 takes {value:#x}, shows {shown:#x}"),
            );
        }
    }
    // Reserved bits of the low half are ignored.
    for bit in [1 << 6, 1 << 15, 1 << 17, 1 << 19, 1 << 28] {
        let result = catch(|| cpu::set_cr0(usual & !CR0_NE | bit));
        let shown = cpu::cr0();
        cpu::set_cr0(usual);
        checks.that(
            result.is_ok() && shown == usual & !CR0_NE,
            format_args!("CR0 ignores reserved bit {bit:#x}, shows {shown:#x}"),
        );
    }
}

fn cr0_refuses(checks: &mut Checks) {
    let usual = cpu::cr0();
    let bad = [
        usual & !CR0_PE,
        usual & !CR0_PG,
        usual & !(CR0_PG | CR0_PE),
        usual & !(CR0_PG | CR0_NE),
        usual & !CR0_CD | CR0_NW,
        (usual & !(CR0_CD | CR0_NE)) | CR0_NW,
        usual | 1 << 32,
        usual & !CR0_NE | 1 << 63,
    ];
    for value in bad {
        refused(checks, "CR0", value, catch(|| cpu::set_cr0(value)));
        let shown = cpu::cr0();
        checks.that(
            shown == usual,
            format_args!("a refused write leaves CR0 {usual:#x}, is {shown:#x}"),
        );
    }
}

/// CR4 bit, and where CPUID promises it: leaf, register, bit. SMEP and SMAP are left out: the
/// probe's pages are all open to ring 3.
const CR4_BITS: &[(u64, u32, usize, u32)] = &[
    (2, 1, 3, 4),
    (3, 1, 3, 2),
    (4, 1, 3, 3),
    (7, 1, 3, 13),
    (8, 1, 3, 0),
    (11, 7, 2, 2),
    (13, 1, 2, 5),
    (16, 7, 1, 0),
    (17, 1, 2, 17),
    (18, 1, 2, 26),
    (22, 7, 2, 3),
];

fn cr4_holds(checks: &mut Checks) {
    let usual = cpu::cr4();
    for (bit, leaf, register, feature) in CR4_BITS {
        let exists =
            cpu::cpuid(0, 0)[0] >= *leaf && cpu::cpuid(*leaf, 0)[*register] & 1 << feature != 0;
        let value = usual ^ 1 << bit;
        let result = catch(|| cpu::set_cr4(value));
        let shown = cpu::cr4();
        cpu::set_cr4(usual);
        if exists {
            checks.that(
                result.is_ok() && shown == value,
                format_args!("CR4 takes {value:#x}, shows {shown:#x}"),
            );
        } else {
            refused(checks, "CR4", value, result);
        }
    }
}

fn cr4_refuses(checks: &mut Checks) {
    let usual = cpu::cr4();
    let bits = [CR4_SMXE, CR4_LA57, 1 << 15, 1 << 19, 1 << 26, 1 << 31, 1 << 33, 1 << 63];
    for bit in bits {
        refused(checks, "CR4", usual | bit, catch(|| cpu::set_cr4(usual | bit)));
        if cpu::cr4() != usual {
            cpu::set_cr4(usual);
        }
    }
    let value = usual & !CR4_PAE;
    refused(checks, "CR4", value, catch(|| cpu::set_cr4(value)));
    if cpu::cpuid(1, 0)[2] & 1 << 17 != 0 {
        let table = cpu::cr3();
        cpu::set_cr3(table | 1 << 3);
        let value = usual | CR4_PCIDE;
        refused(checks, "CR4 with a PCID in CR3,", value, catch(|| cpu::set_cr4(value)));
        cpu::set_cr3(table);
    }
    let shown = cpu::cr4();
    checks.that(shown == usual, format_args!("refused writes leave CR4 {usual:#x}, is {shown:#x}"));
}

fn others(checks: &mut Checks) {
    let table = cpu::cr3();
    for bit in [cpu::physical_bits(), 52, 62, 63] {
        let value = table | 1 << bit;
        refused(checks, "CR3", value, catch(|| cpu::set_cr3(value)));
    }
    refused(checks, "CR8", 16, catch(|| cpu::set_cr8(16)));
    cpu::set_cr8(5);
    let _ = cpu::cpuid(0, 0);
    checks.that(cpu::cr8() == 5, format_args!("CR8 holds 5, is {}", cpu::cr8()));
    cpu::set_cr8(0);
    cpu::set_cr2(0x1234_5678_9000);
    let _ = cpu::cpuid(0, 0);
    checks.that(
        cpu::cr2() == 0x1234_5678_9000,
        format_args!("CR2 survives an exit, is {:#x}", cpu::cr2()),
    );
}

/// LMSW, SMSW and CLTS (SDM vol. 2).
fn machine_status_word(checks: &mut Checks) {
    let usual = cpu::cr0();
    let word: u64;
    // SAFETY: sets TS for two instructions that use no x87 or SSE state.
    unsafe {
        core::arch::asm!("lmsw {0:x}", "smsw {1}", "clts", in(reg) usual as u16 | 8, out(reg) word,
                         options(nostack));
    }
    checks.that(
        word & 8 != 0 && cpu::cr0() == usual,
        format_args!("LMSW sets TS and CLTS clears it, {word:#x}"),
    );
    // SAFETY: LMSW cannot clear PE; the other bits stay as they are.
    unsafe {
        core::arch::asm!("lmsw {0:x}", in(reg) usual as u16 & !1, options(nostack));
    }
    checks.that(cpu::cr0() == usual, format_args!("LMSW does not clear PE, CR0 {:#x}", cpu::cr0()));
}

unsafe extern "C" {
    static mode_low: u8;
    static mode_low_end: u8;
    static mut mode_log: [[u32; 2]; 8];
    static mut mode_flip: u32;
    static mut mode_efer: u32;
    static mut mode_equipment: u32;
    fn mode_trip();
}

/// CR0 writes of the trip, in order.
const STEPS: [&str; 7] = [
    "paging off",
    "PAE paging on",
    "PAE paging off",
    "two-level paging on",
    "two-level paging off",
    "real mode",
    "protected mode",
];

fn round_trip(checks: &mut Checks, flip: u32) {
    let (cr0, cr4) = (cpu::cr0(), cpu::cr4());
    // SAFETY: the trip needs the low page (conventional memory, unused), no interrupts, and gives
    // all registers and tables back; its variables are used here only.
    let (log, efer, equipment) = unsafe {
        let bytes = &raw const mode_low_end as usize - &raw const mode_low as usize;
        core::ptr::copy_nonoverlapping(&raw const mode_low, 0x9000 as *mut u8, bytes);
        mode_flip = flip;
        mode_trip();
        (mode_log, mode_efer, mode_equipment)
    };
    cpu::set_cr4(cr4);
    cpu::set_cr0(cr0);
    for ([written, found], step) in log.into_iter().zip(STEPS) {
        checks.that(
            written == found,
            format_args!("{step}: CR0 {written:#x} shows as {found:#x}, changing {flip:#x}"),
        );
    }
    checks.that(efer & 0x500 == 0x100, format_args!("EFER.LMA goes with paging, EFER {efer:#x}"));
    checks.that(equipment != 0, format_args!("the firmware answers in real mode"));
}
