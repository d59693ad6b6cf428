//! `keep`: what VMCSs hold while others are current, and what an exit leaves of the fields that it
//! has nothing to say about.

use super::{COMPATIBILITY, PAE, PROTECTED, REAL, RING3, TWO_LEVELS, VIRTUAL_8086};
use crate::field::{self as f, ALL, Field};
use crate::guest;
use crate::instruction::{get, set, vmclear, vmptrld};
use crate::log::{self, Line};
use crate::vm::Step::{self, Set};
use crate::vm::{self, Launch};

/// Fields that an exit writes, or that are there for what this file does not do.
fn is_kept(field: Field) -> bool {
    !field.is_read_only() && field != f::ENTRY_INTERRUPTION && field != f::PREEMPTION_TIMER
}

/// A value that tells one VMCS and one field from another.
const fn mark(region: u64, field: Field) -> u64 {
    ((0x0101_0101_0101_0101 * (region + 1)) ^ ((field.0 as u64) << 3)) & field.mask()
}

/// Every field of three VMCSs holds its own while the others are current.
fn three() {
    log::result(format_args!("keep.three"), |line| {
        for region in 0..3 {
            let _ = vmclear(vm::region(region));
            let _ = vmptrld(vm::region(region));
            for (_, field) in ALL.iter().filter(|(_, field)| is_kept(*field)) {
                set(*field, mark(region as u64, *field));
            }
        }
        for region in [1, 0, 2] {
            let _ = vmptrld(vm::region(region));
            check(line, region as u64);
        }
        for region in 0..3 {
            let _ = vmclear(vm::region(region));
            let _ = vmptrld(vm::region(region));
            check(line, region as u64);
            let _ = vmclear(vm::region(region));
        }
    });
}

fn check(line: &mut Line, region: u64) {
    let lost = ALL
        .iter()
        .filter(|(_, field)| is_kept(*field))
        .filter(|(_, field)| {
            crate::instruction::vmread(u64::from(field.0)).0
                == crate::instruction::Outcome::Succeeded
        })
        .filter(|(_, field)| get(*field) != mark(region, *field))
        .count();
    line.add(format_args!("lost {lost} "));
}

fn reason(line: &mut Line, launch: Launch) {
    match vm::enter(launch) {
        Ok(exit) => line.add(format_args!("exit {} ", exit.reason)),
        Err(outcome) => line.add(format_args!("{outcome} ")),
    }
}

/// Launch states of two VMCSs that take turns.
fn turns() {
    use Launch::{Again, First};
    log::result(format_args!("keep.launch-states"), |line| {
        vm::fresh(guest::code!("vmcall"));
        reason(line, First);
        vm::adopt(vm::region(1));
        reason(line, Again);
        reason(line, First);
        let _ = vmptrld(vm::region(0));
        reason(line, First);
        reason(line, Again);
        let _ = vmclear(vm::region(1));
        reason(line, Again);
        let _ = vmptrld(vm::region(1));
        reason(line, Again);
        reason(line, First);
        let _ = vmclear(vm::region(1));
    });
    log::result(format_args!("keep.error-number"), |line| {
        vm::fresh(guest::code!("vmcall"));
        reason(line, Again);
        vm::adopt(vm::region(1));
        let before = get(f::INSTRUCTION_ERROR);
        let _ = vmptrld(vm::region(0));
        line.add(format_args!("other {before} own {}", get(f::INSTRUCTION_ERROR)));
    });
    log::result(format_args!("keep.reason-after-vmfail"), |line| {
        vm::fresh(guest::code!("vmcall"));
        reason(line, First);
        reason(line, First);
        line.add(format_args!("reason {}", get(f::EXIT_REASON)));
    });
}

const STATES: &[(&str, &[Step])] = &[
    ("long", &[]),
    ("ring3", &[RING3]),
    ("compatibility", &[COMPATIBILITY]),
    ("protected", &[PROTECTED]),
    ("pae", &[PAE]),
    ("two-levels", &[TWO_LEVELS]),
    ("real", &[REAL]),
    ("virtual-8086", &[VIRTUAL_8086]),
    (
        "unusable",
        &[
            Set(f::GUEST_ES_RIGHTS, 0x1_0000),
            Set(f::GUEST_FS_RIGHTS, 0x1_0000),
            Set(f::GUEST_FS_BASE, 0x1234),
            Set(f::GUEST_LDTR_SELECTOR, 0x68),
            Set(f::GUEST_LDTR_BASE, 0x5000),
        ],
    ),
    (
        "masks",
        &[
            Set(f::CR0_MASK, u64::MAX),
            Set(f::CR4_MASK, u64::MAX),
            Set(f::CR0_SHADOW, 0x1234),
            Set(f::CR4_SHADOW, 0x5678),
            Set(f::EXCEPTION_BITMAP, 0xffff_ffff),
            Set(f::CR3_TARGET_0, 0x1111),
            Set(f::TSC_OFFSET, 0x2222),
        ],
    ),
];

/// Which fields are otherwise after an exit than before the entry.
fn fields() {
    for (name, steps) in STATES {
        log::result(format_args!("keep.fields-{name}"), |line| {
            if !vm::can(steps) {
                return line.add(format_args!("unsupported"));
            }
            vm::fresh(guest::code!("vmcall"));
            vm::prepare(steps);
            let mut before = [0; ALL.len()];
            for ((_, field), value) in ALL.iter().zip(&mut before) {
                *value = get(*field);
            }
            reason(line, Launch::First);
            for ((name, field), old) in ALL.iter().zip(before) {
                let new = get(*field);
                if is_kept(*field) && new != old {
                    line.add(format_args!("{name} {old:#x} {new:#x} "));
                }
            }
        });
    }
}

pub(super) fn run() {
    three();
    turns();
    fields();
}
