//! Shadow mode: a byte for the processor, one for EPTP12, then 12 bytes for each thing that the
//! host or its VM does. What must hold is in the tests of `ept`.
#![no_main]

#[path = "../../../../ept/tests/shadow/fake.rs"]
mod fake;
#[path = "../../../../ept/tests/shadow/model.rs"]
mod model;
#[path = "../../../../ept/tests/shadow/run.rs"]
mod run;

use ept::addr::PAGE;
use ept::shadow::{Access, Format};
use fake::Machine;
use run::{COUNT, INDEXES, Run, Step, TABLES12, rules};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let [processor, root, steps @ ..] = data else {
        return;
    };
    let width = [36, 39, 46, 48, 52][usize::from(*processor % 5)];
    let format = Format { width, execute_only: *processor >= 128 };
    let mut run = Run::new(Machine::new(rules()), format, eptp12(*root));
    for bytes in steps.chunks_exact(12).take(100) {
        run.step(step(bytes));
    }
});

/// A root among the tables, with or without accessed and dirty flags.
fn eptp12(raw: u8) -> u64 {
    let flags = if raw & 8 == 0 { 0x1e } else { 0x5e };
    (TABLES12 + u64::from(raw) % COUNT * PAGE) | flags
}

/// Where the host stores: a table and one of the entries that are used.
fn place(raw: u8) -> u64 {
    let table = u64::from(raw >> 2) % COUNT;
    TABLES12 + table * PAGE + INDEXES[usize::from(raw & 3)] * 8
}

/// What happens: its kind, a place or an index for each level, kinds of access, a second place, and
/// an entry as it stands. Its address goes to a table if the kind says so.
fn step(bytes: &[u8]) -> Step {
    let [kind, at, tried, rival, entry @ ..] = bytes else {
        return Step::Invept;
    };
    let raw = u64::from_le_bytes(entry.try_into().expect("8 of the 12"));
    let raw = if kind & 8 == 0 { raw } else { raw & 0xfff | (place(*rival) & !0xfff) };
    let gpa = [39_u8, 30, 21, 12]
        .into_iter()
        .zip([6, 4, 2, 0])
        .fold(0, |gpa, (shift, bits)| gpa | INDEXES[usize::from(at >> bits & 3)] << shift);
    let access = Access::from_bits(u64::from(tried % 7 + 1));
    match kind & 7 {
        0 => Step::Store(place(*at), raw),
        1 => Step::Fill(raw, access),
        2 => Step::Race(gpa, access, (place(*rival), raw)),
        3 => Step::Load(eptp12(*at)),
        4 => Step::Invept,
        5 => Step::Withdraw(raw & ((1 << 40) - 1)),
        _ => Step::Fill(gpa, access),
    }
}
