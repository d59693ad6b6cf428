//! The memory of a machine that runs, seen from outside: that of its emulator.
//!
//! A test that searches for a secret must not hold it, or it would find its own. So words are compared
//! disguised, by a multiplication that the program under test does too.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Two words that follow each other, disguised.
pub(crate) type Needle = [u64; 2];

/// Mappings that are smaller are no machine's memory.
const SMALLEST: u64 = 64 << 20;
/// What is read at a time: whole pages, in which the words lie.
const STEP: usize = 1 << 20;

/// What a word looks like disguised.
pub(crate) const fn disguised(word: u64) -> u64 {
    word.wrapping_mul(0xd134_2543_de82_ef95).rotate_left(29)
}

/// Where `needle` is in the memory of process `pid`, which is held meanwhile: offsets in its mapping. In
/// Bochs, that of the machine's memory has one page more at the beginning.
///
/// # Errors
/// If the memory cannot be read, or there is none that is as large as a machine's.
pub(crate) fn places(pid: u32, needle: Needle) -> Result<Vec<u64>> {
    signal("STOP", pid)?;
    let found = places_in(pid, needle);
    signal("CONT", pid)?;
    found
}

fn places_in(pid: u32, needle: Needle) -> Result<Vec<u64>> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).context("no map of the emulator")?;
    let memory = File::open(format!("/proc/{pid}/mem")).context("no memory of the emulator")?;
    let large: Vec<(u64, u64)> = maps.lines().filter_map(mapping).collect();
    ensure!(!large.is_empty(), "the emulator has no memory as large as a machine's");
    let (mut found, mut bytes) = (Vec::new(), vec![0; STEP]);
    for (start, end) in large {
        for at in (start..end).step_by(STEP) {
            let length = usize::try_from(end - at).unwrap_or(STEP).min(STEP);
            let Some(part) = bytes.get_mut(..length) else { continue };
            memory.read_exact_at(part, at).context("cannot read the emulator's memory")?;
            found.extend(occurrences(part, needle).into_iter().map(|offset| at - start + offset));
        }
    }
    Ok(found)
}

/// Start and end of a line's mapping, if it can be written and is large.
fn mapping(line: &str) -> Option<(u64, u64)> {
    let mut words = line.split_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let number = |text| u64::from_str_radix(text, 16).ok();
    let (start, end) = (number(start)?, number(end)?);
    (words.next()?.starts_with("rw") && end - start >= SMALLEST).then_some((start, end))
}

/// Offsets of `needle` in `bytes`.
fn occurrences(bytes: &[u8], needle: Needle) -> Vec<u64> {
    let mut before = 0;
    let mut found = Vec::new();
    for (word, at) in bytes.as_chunks().0.iter().zip((0..).step_by(8)) {
        let word = disguised(u64::from_le_bytes(*word));
        if [before, word] == needle {
            found.push(at - 8);
        }
        before = word;
    }
    found
}

fn signal(name: &str, pid: u32) -> Result<()> {
    crate::tool::run(Command::new("kill").args(["-s", name, &pid.to_string()]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_words_are_found_where_they_follow_each_other_aligned() {
        let words: [u64; 5] = [1, 7, 9, 7, 8];
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let needle = [7, 9].map(disguised);
        assert_eq!(occurrences(&bytes, needle), [8]);
        assert!(occurrences(&bytes, [7, 1].map(disguised)).is_empty());
        assert!(occurrences(&bytes, [7, 9]).is_empty());
        assert!(occurrences(&bytes[1..], needle).is_empty());
    }

    #[test]
    fn large_writable_mappings_are_memory() {
        let line = |end: &str, rights: &str| mapping(&format!("7f0000000000-{end} {rights} 0 0 0"));
        assert_eq!(line("7f0010000000", "rw-p"), Some((0x7f00_0000_0000, 0x7f00_1000_0000)));
        assert_eq!(line("7f0000001000", "rw-p"), None);
        assert_eq!(line("7f0010000000", "r--p"), None);
    }

    #[test]
    fn a_word_in_another_process_is_found() {
        // A shell that doubles a text until it is large enough to count as a machine's memory.
        let script = "x=0123456789abcdef; for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 \
                      19 20 21 22 23; do x=$x$x; done; echo ready; read y";
        let mut child = Command::new("bash")
            .args(["-c", script])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = [0; 5];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut line).unwrap();
        let words = [*b"01234567", *b"89abcdef"].map(u64::from_le_bytes);
        let found = [words.map(disguised), [1, 2]].map(|needle| places(child.id(), needle));
        child.kill().unwrap();
        let _ = child.wait().unwrap();
        let [found, other] = found.map(|places| places.unwrap().len());
        assert!(found > 1_000_000, "{found}");
        assert_eq!(other, 0);
    }
}
