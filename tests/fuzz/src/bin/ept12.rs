//! A hostile host's stores to its tables: the first 8 bytes decide what happens at the same time,
//! each 8 that follow, up to 256 times, are a step of the host's.
#![no_main]

#[expect(dead_code, reason = "the tests of `ept` use more of it")]
#[path = "../../../../ept/tests/laws/board.rs"]
mod board;
#[expect(dead_code, reason = "the tests of `ept` use more of it")]
#[path = "../../../../ept/tests/laws/fake.rs"]
mod fake;
#[path = "../../../../ept/tests/laws/hostile.rs"]
mod hostile;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let (numbers, _) = data.as_chunks();
    let mut numbers = numbers.iter().map(|number| u64::from_le_bytes(*number));
    if let Some(luck) = numbers.next() {
        hostile::play(luck, numbers.take(256));
    }
});
