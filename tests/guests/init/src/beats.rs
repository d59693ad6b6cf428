//! Work that shows whether this machine's memory is what it was: it goes on until the machine ends.

use std::hint::black_box;
use std::thread;
use std::time::Duration;

use crate::system;

/// Bytes that are looked at: the first half changes, in the second one all pages are equal.
const LENGTH: usize = 4 << 20;
/// A line that others can search for.
const MARK: &[u8; 16] = b"a visor's beats\n";

/// Fills memory, and says at every beat whether it is as it was, before it changes it.
pub(crate) fn go_on() -> Result<(), String> {
    beat(|_| Ok(()))
}

/// The same, and at every beat uses most of what is free.
pub(crate) fn breathe() -> Result<(), String> {
    beat(fill)
}

/// Writes to three quarters of the pages that are free, and looks whether all is there then.
fn fill(beat: u64) -> Result<(), String> {
    let text = system::text("/proc/meminfo");
    let free = text.lines().find_map(|line| line.strip_prefix("MemFree:")?.strip_suffix("kB"));
    let free = free.and_then(|kib| kib.trim().parse::<usize>().ok());
    let mut bytes = vec![0; free.ok_or("no MemFree")? / 4 * 3 / 4 * 4096];
    for (at, page) in (beat..).zip(bytes.chunks_mut(4096)) {
        page[8..16].copy_from_slice(&at.to_le_bytes());
    }
    let wrong = (beat..).zip(black_box(&bytes).chunks(4096));
    let wrong = wrong.filter(|(at, page)| word(&page[8..16]) != *at).count();
    if wrong == 0 { Ok(()) } else { Err(format!("{wrong} pages are others at beat {beat}")) }
}

fn beat(more: fn(u64) -> Result<(), String>) -> Result<(), String> {
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
        more(beat)?;
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
