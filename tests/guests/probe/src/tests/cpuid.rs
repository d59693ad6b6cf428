//! `cpuid`: prints every leaf, for comparison with the bare machine, and checks those that the
//! visor answers itself: VMX on, SMX and Processor Trace off, and the bits that follow CR4 and XCR0.

use super::{Arguments, Machine};
use crate::report::{Checks, Outcome};
use crate::{console, cpu};

const VMX: u32 = 1 << 5;
const SMX: u32 = 1 << 6;
const XSAVE: u32 = 1 << 26;
const OSXSAVE: u32 = 1 << 27;
const AVX: u32 = 1 << 28;
const PROCESSOR_TRACE: u32 = 1 << 25;
const PKU: u32 = 1 << 3;
const OSPKE: u32 = 1 << 4;
const CR4_OSXSAVE: u64 = 1 << 18;
const CR4_PKE: u64 = 1 << 22;

pub(super) fn run(_: &Machine, _: &Arguments) -> Outcome {
    print_all();
    let mut checks = Checks::new();
    hidden(&mut checks);
    osxsave(&mut checks);
    ospke(&mut checks);
    save_area(&mut checks);
    checks.finish()
}

fn print_all() {
    for first in [0, 0x4000_0000, 0x8000_0000] {
        let last = cpu::cpuid(first, 0)[0];
        // Without a hypervisor's leaves the processor answers with its last basic one.
        if last < first || last > first + 0xff {
            continue;
        }
        for leaf in first..=last {
            for subleaf in 0..subleaves(leaf) {
                print(leaf, subleaf);
            }
        }
    }
}

fn print(leaf: u32, subleaf: u32) {
    let [a, b, c, d] = cpu::cpuid(leaf, subleaf);
    if subleaf == 0 || [a, b, c, d] != [0; 4] {
        console::line(format_args!(
            "cpuid {leaf:08x}.{subleaf:02x} {a:08x} {b:08x} {c:08x} {d:08x}"
        ));
    }
}

/// How many subleaves to ask for (SDM vol. 2, CPUID).
fn subleaves(leaf: u32) -> u32 {
    match leaf {
        0x07 | 0x14 | 0x17 | 0x18 => (cpu::cpuid(leaf, 0)[0] & 0xff) + 1,
        0x04 | 0x0b | 0x1f => 5,
        0x0d => 32,
        0x0f | 0x10 | 0x12 => 4,
        _ => 1,
    }
}

fn hidden(checks: &mut Checks) {
    let features = cpu::cpuid(1, 0)[2];
    checks.that(features & VMX != 0, format_args!("CPUID.1:ECX.VMX is 1"));
    checks.that(features & SMX == 0, format_args!("CPUID.1:ECX.SMX is 0"));
    if cpu::cpuid(0, 0)[0] >= 7 {
        let trace = cpu::cpuid(7, 0)[1] & PROCESSOR_TRACE;
        checks.that(trace == 0, format_args!("CPUID.7:EBX.PT is 0"));
    }
    if cpu::cpuid(0, 0)[0] >= 0x14 {
        let leaf = cpu::cpuid(0x14, 0);
        checks.that(leaf == [0; 4], format_args!("CPUID.14h is empty"));
    }
}

fn osxsave(checks: &mut Checks) {
    if cpu::cpuid(1, 0)[2] & XSAVE == 0 {
        return;
    }
    for bit in [CR4_OSXSAVE, 0, CR4_OSXSAVE] {
        cpu::set_cr4(cpu::cr4() & !CR4_OSXSAVE | bit);
        let shown = cpu::cpuid(1, 0)[2] & OSXSAVE != 0;
        checks.that(
            shown == (bit != 0),
            format_args!("CPUID.OSXSAVE follows CR4.OSXSAVE, {shown} with CR4 {bit:#x}"),
        );
    }
}

fn ospke(checks: &mut Checks) {
    if cpu::cpuid(0, 0)[0] < 7 || cpu::cpuid(7, 0)[2] & PKU == 0 {
        return;
    }
    for bit in [CR4_PKE, 0] {
        cpu::set_cr4(cpu::cr4() & !CR4_PKE | bit);
        let shown = cpu::cpuid(7, 0)[2] & OSPKE != 0;
        checks.that(
            shown == (bit != 0),
            format_args!("CPUID.OSPKE follows CR4.PKE, {shown} with CR4 {bit:#x}"),
        );
    }
}

/// CPUID.0Dh.0:EBX is the size of the save area for the states enabled in XCR0.
fn save_area(checks: &mut Checks) {
    let features = cpu::cpuid(1, 0)[2];
    if features & XSAVE == 0 || features & AVX == 0 {
        return;
    }
    let avx_end = cpu::cpuid(0x0d, 2)[0] + cpu::cpuid(0x0d, 2)[1];
    for (enabled, size) in [(1, 576), (3, 576), (7, avx_end), (1, 576)] {
        cpu::xsetbv(0, enabled);
        let shown = cpu::cpuid(0x0d, 0)[1];
        checks.that(
            shown == size,
            format_args!("CPUID.0Dh size {size} with XCR0 {enabled}, is {shown}"),
        );
    }
    cpu::set_cr4(cpu::cr4() & !CR4_OSXSAVE);
}
