//! One instruction of a VM that accesses devices: the mode, its bytes, the registers, its address, the
//! segments, and which pages are a device's.
#![no_main]

#[path = "../../../../emulate/tests/rules/devices.rs"]
mod devices;
#[expect(dead_code, reason = "the tests of `emulate` use more of it")]
#[path = "../../../../emulate/tests/rules/other.rs"]
mod other;

use devices::Bases;
use emulate::decode::{Mode, decode};
use emulate::instruction::instruction;
use other::Registers;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let [mode, len, rest @ ..] = data else {
        return;
    };
    let mode = [Mode::Bits64, Mode::Bits32, Mode::Bits16][usize::from(mode % 3)];
    let (bytes, rest) = rest.split_at(rest.len().min((len % 24).into()));
    let mut numbers = rest.chunks(8).map(|chunk| {
        let mut number = [0; 8];
        number[..chunk.len()].copy_from_slice(chunk);
        u64::from_le_bytes(number)
    });
    let mut next = || numbers.next().unwrap_or_default();
    let registers = Registers { general: std::array::from_fn(|_| next()), rflags: next() };
    let (rip, bases) = (next(), Bases(std::array::from_fn(|_| next()), next()));
    let devices = next();
    let known = devices::compare(bytes, (mode, rip), &registers, &bases);
    let found = instruction(bytes, mode, rip);
    assert!(known == found.is_some() && found.is_none_or(|found| found.store.length <= 15));
    if let (Some(found), Some(store)) = (found, decode(bytes, mode)) {
        assert_eq!(found.store, store);
    }
    let is_device = |at: u64| devices >> (at / 4096 % 64) & 1 != 0;
    let outcome = |is_device: &dyn Fn(u64) -> bool| {
        devices::outcome(bytes, mode, (&registers, &bases), is_device)
    };
    // The memory of ins and outs is never a device's.
    if let (Some(some), Some(all)) = (outcome(&is_device), outcome(&|_| true)) {
        assert_eq!(some, all);
    }
});
