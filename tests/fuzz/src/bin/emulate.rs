//! One instruction of the host. First byte 0 or 1: its bytes, in 64-bit or 32-bit code, and the
//! registers. Any other: an access to memory with page tables made of the rest.
#![no_main]

#[expect(dead_code, reason = "the tests of `emulate` use more of it")]
#[path = "../../../../emulate/tests/rules/fake.rs"]
mod fake;
#[path = "../../../../emulate/tests/rules/model.rs"]
mod model;
#[path = "../../../../emulate/tests/rules/other.rs"]
mod other;

use emulate::context::{Access, Context};
use emulate::decode::{Mode, decode};
use other::Registers;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    match data.split_first() {
        Some((0, rest)) => execute(Mode::Bits64, rest),
        Some((1, rest)) => execute(Mode::Bits32, rest),
        Some((_, rest)) => access(rest),
        None => {}
    }
});

/// Little-endian numbers; the last may be cut short.
fn numbers(bytes: &[u8]) -> impl Iterator<Item = u64> {
    bytes.chunks(8).map(|chunk| {
        let mut number = [0; 8];
        number[..chunk.len()].copy_from_slice(chunk);
        u64::from_le_bytes(number)
    })
}

fn execute(mode: Mode, data: &[u8]) {
    let Some((&len, rest)) = data.split_first() else {
        return;
    };
    let (bytes, rest) = rest.split_at(rest.len().min((len % 24).into()));
    let mut numbers = numbers(rest);
    let mut next = || numbers.next().unwrap_or_default();
    let registers = Registers { general: std::array::from_fn(|_| next()), rflags: next() };
    let old = next();
    let Some(store) = decode(bytes, mode) else {
        return;
    };
    other::compare(&store, bytes, mode, &registers);
    let outcome = store.apply(old, &registers);
    assert_eq!(outcome.new & !store.size.mask(), 0);
    assert_eq!(outcome.new, store.apply(old & store.size.mask(), &registers).new);
    let mut after = registers;
    let length = store.finish(outcome, &mut after);
    if length == 0 {
        assert!(store.series.is_some() && after.general[1] != 0);
        return;
    }
    assert_eq!(length, store.length);
    // Status flags and RFLAGS.RF.
    assert_eq!((after.rflags ^ registers.rflags) & !0x1_08d5, 0);
    assert_eq!(after.rflags & 0x1_0000, 0);
    let changed = after.general.iter().zip(&registers.general).filter(|(a, b)| a != b).count();
    assert!(changed <= if store.series.is_some() { 2 } else { 1 });
}

fn access(data: &[u8]) {
    let mut numbers = numbers(data);
    let mut next = || numbers.next().unwrap_or_default();
    let (cr0, cr3, cr4, efer, rflags) = (next(), next() & 0x7fff, next(), next(), next());
    let pdptes = std::array::from_fn(|_| next());
    let [pkru, pkrs] = [next(); 2].map(|keys| u32::try_from(keys & 0xffff_ffff).unwrap());
    let [kind, width, cpl, huge, ..] = next().to_le_bytes();
    let context = Context {
        cr0,
        cr3,
        cr4,
        efer,
        rflags,
        pdptes,
        pkru,
        pkrs,
        cpl: cpl % 4,
        physical_bits: u32::from(width) % 21 + 32,
        huge_pages: huge % 2 == 1,
    };
    let linear = next();
    let words: Vec<u64> = numbers.collect();
    let words: Vec<u64> = words.iter().copied().cycle().take(512 * 6).collect();
    let access = [Access::Read, Access::Write, Access::Fetch][usize::from(kind) % 3];
    let _result = model::compare(&context, &words, linear, access);
}
