//! `xsetbv`: XCR0 takes every valid value and refuses every other (SDM vol. 2, XSETBV).

use super::{Arguments, Machine};
use crate::fault::{Fault, GP, UD, catch, catch_ring3};
use crate::report::{Checks, Outcome};
use crate::{console, cpu};

const CR4_OSXSAVE: u64 = 1 << 18;
const X87: u64 = 1;
const SSE: u64 = 2;
const AVX: u64 = 4;
const BOUND: u64 = 3 << 3;
const AVX512: u64 = 7 << 5;
const PKRU: u64 = 1 << 9;

pub(super) fn run(_: &Machine, _: &Arguments) -> Outcome {
    let mut checks = Checks::new();
    if cpu::cpuid(1, 0)[2] & 1 << 26 == 0 {
        console::line(format_args!("no XSAVE"));
        note(&mut checks, "XSETBV without XSAVE", UD, catch(|| cpu::xsetbv(0, 1)));
        return checks.finish();
    }
    note(&mut checks, "XSETBV without CR4.OSXSAVE", UD, catch(|| cpu::xsetbv(0, 1)));
    cpu::set_cr4(cpu::cr4() | CR4_OSXSAVE);
    let [low, _, _, high] = cpu::cpuid(0x0d, 0);
    let supported = u64::from(high) << 32 | u64::from(low);
    console::line(format_args!("XCR0 may be {supported:#x}"));
    valid(&mut checks, supported);
    invalid(&mut checks, supported);
    note(&mut checks, "XSETBV in ring 3", GP, catch_ring3(|| cpu::xsetbv(0, 1)));
    for register in [1, 2, 0xffff_ffff] {
        note(&mut checks, "XSETBV of another register", GP, catch(|| cpu::xsetbv(register, 1)));
    }
    cpu::xsetbv(0, X87);
    cpu::set_cr4(cpu::cr4() & !CR4_OSXSAVE);
    checks.finish()
}

fn valid(checks: &mut Checks, supported: u64) {
    let all = X87 | SSE | AVX;
    for value in [X87, X87 | SSE, all, all | AVX512, all | PKRU, supported, X87] {
        if value & !supported != 0 {
            continue;
        }
        let result = catch(|| cpu::xsetbv(0, value));
        let shown = cpu::xgetbv(0);
        checks.that(
            result.is_ok() && shown == value,
            format_args!("XCR0 takes {value:#x}, shows {shown:#x}"),
        );
    }
}

fn invalid(checks: &mut Checks, supported: u64) {
    let all = X87 | SSE | AVX;
    let combinations = [0, SSE, X87 | AVX, 1 << 3 | X87, BOUND, X87 | SSE | AVX512, all | 1 << 5];
    let missing = (0..64).map(|bit| 1 << bit).filter(|bit| bit & supported == 0);
    for value in combinations.into_iter().chain(missing.map(|bit| bit | X87)) {
        let before = cpu::xgetbv(0);
        note(checks, "an invalid XCR0", GP, catch(|| cpu::xsetbv(0, value)));
        let after = cpu::xgetbv(0);
        checks.that(
            before == after,
            format_args!("a refused XCR0 {value:#x} leaves {before:#x}, is {after:#x}"),
        );
    }
}

fn note(checks: &mut Checks, what: &str, expected: u8, result: Result<(), Fault>) {
    let found = result.err().map_or(255, |fault| fault.vector);
    checks.that(
        found == expected,
        format_args!("{what} raises vector {expected}, raised {found} (255: none)"),
    );
}
