//! Random numbers, for keys.

use crate::cpu;

/// Tries for each word: a processor that refuses ten times in a row is broken (SDM vol. 1, 7.3.17.1).
const TRIES: u32 = 10;

/// 32 bytes that nobody can guess; `None` if the processor's generator does not work.
pub(crate) fn bytes32() -> Option<[u8; 32]> {
    let mut words = [0_u64; 4];
    let mut last = word()?;
    for place in &mut words {
        *place = word().filter(|fresh| *fresh != last)?;
        last = *place;
    }
    let mut bytes = [0; 32];
    for (bytes, word) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(words) {
        *bytes = word.to_le_bytes();
    }
    Some(bytes)
}

fn word() -> Option<u64> {
    (0..TRIES).find_map(|_| cpu::random())
}
