//! Work that shows whether this machine's memory is what it was: it goes on until the machine ends.

use std::thread;
use std::time::Duration;

/// Bytes that are looked at: the first half changes, in the second one all pages are equal.
const LENGTH: usize = 4 << 20;
/// A line that others can search for.
const MARK: &[u8; 16] = b"a visor's beats\n";

/// Fills memory, and says at every beat whether it is as it was, before it changes it.
pub(crate) fn go_on() -> Result<(), String> {
    let mut bytes = MARK.repeat(LENGTH / MARK.len());
    let (changing, equal) = bytes.split_at_mut(LENGTH / 2);
    for beat in 0_u64.. {
        let number = beat.to_le_bytes();
        for (at, page) in (0_u64..).zip(changing.chunks_mut(4096)) {
            let (kept, rest) = page.split_at_mut(16);
            let (place, last) = kept.split_at_mut(8);
            let expected = if beat == 0 { None } else { Some((at, beat - 1)) };
            let found = (word(place), word(last));
            if expected.is_some_and(|expected| expected != found) || !is_marked(rest) {
                return Err(format!("page {at} is {found:?} at beat {beat}"));
            }
            place.copy_from_slice(&at.to_le_bytes());
            last.copy_from_slice(&number);
        }
        if let Some(at) = equal.chunks(4096).position(|page| !is_marked(page)) {
            return Err(format!("equal page {at} is another at beat {beat}"));
        }
        println!("init: beat {beat}");
        thread::sleep(Duration::from_millis(300));
    }
    Ok(())
}

/// Whether there is nothing else than the line that others can search for.
fn is_marked(bytes: &[u8]) -> bool {
    bytes.chunks(MARK.len()).all(|line| line == MARK)
}

fn word(bytes: &[u8]) -> u64 {
    bytes.try_into().map_or(0, u64::from_le_bytes)
}
