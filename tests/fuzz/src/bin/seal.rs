//! Sealed pages: six bytes for each thing that the host, the VM or a careless visor does. What must
//! hold is in the tests of `seal`, as is the second implementation that everything is compared with.
#![no_main]

#[path = "../../../../seal/tests/rules/reference.rs"]
mod reference;
#[path = "../../../../seal/tests/rules/run.rs"]
mod run;

use run::{Run, Step};

// The tests run without the processor's AES instructions, so here they are.
const _: () = assert!(seal::HARDWARE_AES);

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let mut run = Run::new();
    for bytes in data.chunks_exact(6).take(64) {
        run.step(step(bytes));
    }
});

/// What happens: its kind, a page, a number, a place, a byte.
fn step(bytes: &[u8]) -> Step {
    let [kind, slot, number, low, high, byte] = *bytes else {
        unreachable!("chunks of six");
    };
    let at = u16::from_le_bytes([low, high]);
    match kind % 8 {
        0 | 1 => Step::Write(slot, at, byte),
        2 => Step::Seal(slot),
        3 => Step::Reseal(slot, number),
        4 | 5 => Step::Back(slot, number, at, 0),
        6 => Step::Back(slot, number, at, byte),
        _ => Step::Record(slot, number, byte),
    }
}
