//! `flip`: every bit of every guest-state field, flipped by itself in a VM of each mode: which flips
//! the entry refuses, and what the VM does after the others.

use super::{COMPATIBILITY, PAE, REAL, RING3, VIRTUAL_8086};
use crate::capability as c;
use crate::exit::VMCALL;
use crate::field::{self as f, ALL, Field};
use crate::guest;
use crate::instruction::{get, set};
use crate::log::{self, Line};
use crate::vm::Step::{self, Do, On, Set};
use crate::vm::{self, Launch};

/// Every field of the VM's state is looked at by the entry, and a VM that runs on is stopped soon.
const LOOKED_AT: &[Step] = &[
    On(c::LOAD_DEBUG),
    On(c::ENTRY_LOAD_PAT),
    On(c::ENTRY_LOAD_EFER),
    On(c::EXIT_LOAD_PAT),
    On(c::EXIT_LOAD_EFER),
    On(c::PREEMPTION),
    Set(f::PREEMPTION_TIMER, 0x80),
];

const STATES: &[(&str, &[Step])] = &[
    ("long", &[]),
    ("ring3", &[RING3]),
    ("compatibility", &[COMPATIBILITY]),
    ("pae", &[PAE]),
    ("real", &[REAL]),
    ("virtual-8086", &[VIRTUAL_8086]),
];

/// Controls that point somewhere, which the VM does not use, and those that only say when to exit.
const CONTROLS: &[Field] = &[
    f::VPID,
    f::IO_BITMAP_A,
    f::IO_BITMAP_B,
    f::MSR_BITMAP,
    f::VIRTUAL_APIC,
    f::TSC_OFFSET,
    f::EXCEPTION_BITMAP,
    f::PAGE_FAULT_MASK,
    f::PAGE_FAULT_MATCH,
    f::CR3_TARGET_COUNT,
    f::CR3_TARGET_0,
    f::ENTRY_ERROR_CODE,
    f::ENTRY_INSTRUCTION_LENGTH,
    f::TPR_THRESHOLD,
    f::CR0_MASK,
    f::CR4_MASK,
    f::CR0_SHADOW,
    f::CR4_SHADOW,
];

const CONTROLLED: &[Step] = &[
    On(c::IO_BITMAPS),
    On(c::MSR_BITMAPS),
    On(c::TPR_SHADOW),
    On(c::VPIDS),
    On(c::CR3_LOAD_EXITING),
    Set(f::VPID, 3),
    Do(|| set(f::VIRTUAL_APIC, vm::page(vm::VIRTUAL_APIC))),
];

fn is_guest_state(field: Field) -> bool {
    field.0 >> 10 & 3 == 2 && field != f::PREEMPTION_TIMER
}

/// What came of one entry.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Result {
    /// VMfail, or an entry that failed: nothing ran.
    Refused(u64),
    /// The VM's first instruction exited.
    Ran,
    /// Another exit, which may have changed the VM.
    Went(u64),
}

fn enter(launch: Launch) -> Result {
    let rip = get(f::GUEST_RIP);
    match vm::enter(launch) {
        Ok(exit) if exit.is_failed_entry() => Result::Refused(exit.reason & 0xffff),
        Ok(exit) if exit.reason == VMCALL && get(f::GUEST_RIP) == rip => Result::Ran,
        Ok(exit) => Result::Went(exit.reason),
        Err(_) => Result::Refused(0),
    }
}

/// Bits by what their flips came to, in the order in which results came.
#[derive(Default)]
struct Tally {
    kinds: [Option<(Result, u64)>; 8],
}

impl Tally {
    fn add(&mut self, result: Result, bit: u32) {
        let is_this =
            |kind: &&mut Option<(Result, u64)>| kind.is_none_or(|(other, _)| other == result);
        if let Some(kind) = self.kinds.iter_mut().find(is_this) {
            let bits = kind.map_or(0, |(_, bits)| bits);
            *kind = Some((result, bits | 1 << bit));
        }
    }

    fn show(&self, line: &mut Line) {
        for (result, bits) in self.kinds.into_iter().flatten() {
            match result {
                Result::Refused(how) => line.add(format_args!("refused {how} {bits:#x} ")),
                Result::Ran => line.add(format_args!("runs {bits:#x} ")),
                Result::Went(reason) => line.add(format_args!("exit {reason} {bits:#x} ")),
            }
        }
    }
}

fn start(steps: &[Step]) {
    vm::fresh(guest::code!("vmcall"));
    vm::prepare(LOOKED_AT);
    vm::prepare(steps);
}

fn one_field(line: &mut Line, field: Field, steps: &[Step]) {
    start(steps);
    let mut launch = Launch::First;
    let base = get(field);
    let mut tally = Tally::default();
    for bit in 0..field.mask().count_ones() {
        set(field, base ^ 1 << bit);
        let result = enter(launch);
        tally.add(result, bit);
        match result {
            Result::Refused(_) => set(field, base),
            Result::Ran => {
                launch = Launch::Again;
                set(field, base);
            }
            Result::Went(_) => {
                launch = Launch::First;
                start(steps);
            }
        }
    }
    tally.show(line);
}

fn case(state: &str, field: Field, steps: &[Step]) {
    log::result(format_args!("flip.{state}.{field}"), |line| {
        if vm::can(steps) && vm::can(LOOKED_AT) {
            one_field(line, field, steps);
        } else {
            line.add(format_args!("unsupported"));
        }
    });
}

pub(super) fn run() {
    for (state, steps) in STATES {
        for (_, field) in ALL.iter().filter(|(_, field)| is_guest_state(*field)) {
            case(state, *field, steps);
        }
    }
    for field in CONTROLS {
        case("control", *field, CONTROLLED);
    }
}
