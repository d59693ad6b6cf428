//! `mtrr`: changes a variable-range MTRR by the manual's protocol and back (SDM vol. 3, 12.11.8);
//! memory of every type stays accessible, with its contents.

use super::{Arguments, Machine};
use crate::fault::Local;
use crate::report::{Checks, Outcome, fail};
use crate::{console, cpu, paging};

const CAPABILITIES: u32 = 0xfe;
const DEFAULT_TYPE: u32 = 0x2ff;
const FIRST_BASE: u32 = 0x200;
const ENABLED: u64 = 1 << 11;
const VALID: u64 = 1 << 11;
const CR0_CD: u64 = 1 << 30;
const CR0_NW: u64 = 1 << 29;
/// UC, WT, WP and WB; WC is optional.
const TYPES: [u64; 4] = [0, 4, 5, 6];
const WORDS: usize = 1024;
const PATTERN: u64 = 0x0123_4567_89ab_cdef;

static BUFFER: Local<[u64; WORDS]> = Local::new([0; WORDS]);

pub(super) fn run(_: &Machine, _: &Arguments) -> Outcome {
    let ranges = cpu::rdmsr(CAPABILITIES) & 0xff;
    let free = (0..ranges as u32)
        .map(|number| FIRST_BASE + 2 * number)
        .find(|base| cpu::rdmsr(base + 1) & VALID == 0);
    let Some(base) = free else {
        fail!("none of {ranges} variable-range MTRRs is free");
    };
    console::line(format_args!("variable-range MTRR {base:#x} of {ranges} is free"));
    let mut checks = Checks::new();
    let before = [cpu::rdmsr(base), cpu::rdmsr(base + 1), cpu::rdmsr(DEFAULT_TYPE)];
    for kind in TYPES {
        retype(&mut checks, base, kind);
    }
    change(base, before[0], before[1]);
    let after = [cpu::rdmsr(base), cpu::rdmsr(base + 1), cpu::rdmsr(DEFAULT_TYPE)];
    checks.that(before == after, format_args!("the MTRRs are back, {after:x?}"));
    checks.finish()
}

/// Gives the 2 MiB around the buffer a type, over what the other MTRRs say.
fn retype(checks: &mut Checks, msr: u32, kind: u64) {
    let at = BUFFER.get() as u64 & !(paging::MIB2 - 1);
    let mask = !(paging::MIB2 - 1) & ((1 << cpu::physical_bits()) - 1);
    fill(kind);
    change(msr, at | kind, mask | VALID);
    let shown = (cpu::rdmsr(msr), cpu::rdmsr(msr + 1));
    checks.that(
        shown == (at | kind, mask | VALID),
        format_args!("the MTRR holds type {kind}, {shown:x?}"),
    );
    checks.that(holds(kind), format_args!("memory of type {kind} keeps its contents"));
    fill(kind + 1);
    checks.that(holds(kind + 1), format_args!("memory of type {kind} can be written"));
}

fn fill(seed: u64) {
    for index in 0..WORDS {
        // SAFETY: inside the buffer, which only this test uses; volatile, to reach memory.
        unsafe { (&raw mut (*BUFFER.get())[index]).write_volatile(PATTERN + seed) };
    }
}

fn holds(seed: u64) -> bool {
    (0..WORDS).all(|index| {
        // SAFETY: as in `fill`.
        let word = unsafe { (&raw const (*BUFFER.get())[index]).read_volatile() };
        word == PATTERN + seed
    })
}

fn change(msr: u32, base: u64, mask: u64) {
    let (cr0, default) = (cpu::cr0(), cpu::rdmsr(DEFAULT_TYPE));
    cpu::set_cr0(cr0 & !CR0_NW | CR0_CD);
    cpu::write_back_caches();
    cpu::set_cr3(cpu::cr3());
    cpu::wrmsr(DEFAULT_TYPE, default & !ENABLED);
    cpu::wrmsr(msr, base);
    cpu::wrmsr(msr + 1, mask);
    cpu::wrmsr(DEFAULT_TYPE, default);
    cpu::write_back_caches();
    cpu::set_cr3(cpu::cr3());
    cpu::set_cr0(cr0);
}
