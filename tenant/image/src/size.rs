//! Sizes of disks.

use crate::BLOCK;

/// The most blocks that a disk has (docs/disk-format.md).
const MOST: u64 = 1 << 32;

/// Bytes, as words such as `20G` say: a number, and K, M, G or T for 1,024 and its powers.
///
/// # Errors
/// What it is not: a number; whole blocks; a size that a sealed disk can have.
pub fn size(words: &str) -> Result<u64, String> {
    let (digits, shift) = match words.as_bytes().last() {
        Some(b'K') => (words.strip_suffix('K'), 10),
        Some(b'M') => (words.strip_suffix('M'), 20),
        Some(b'G') => (words.strip_suffix('G'), 30),
        Some(b'T') => (words.strip_suffix('T'), 40),
        _ => (Some(words), 0),
    };
    let number: Option<u64> = digits.and_then(|digits| digits.parse().ok());
    let bytes = number.and_then(|number| number.checked_mul(1 << shift));
    let bytes = bytes.ok_or("a number of bytes, or of K, M, G or T")?;
    if !bytes.is_multiple_of(BLOCK) {
        return Err("not in whole blocks of 4,096 bytes".into());
    }
    if bytes == 0 || bytes / BLOCK > MOST {
        return Err("4K to 16T".into());
    }
    Ok(bytes)
}

/// The words that [`size`] understands as so many bytes, the shortest ones.
#[must_use]
pub fn words(bytes: u64) -> String {
    let units = [(40, "T"), (30, "G"), (20, "M"), (10, "K")];
    let unit = units.iter().find(|(shift, _)| bytes > 0 && bytes.is_multiple_of(1 << shift));
    unit.map_or_else(|| bytes.to_string(), |(shift, word)| format!("{}{word}", bytes >> shift))
}

#[cfg(test)]
mod tests {
    use super::{size, words};

    #[test]
    fn a_size_is_in_whole_blocks_and_one_that_a_disk_can_have() {
        let good =
            [("4096", 4096), ("8K", 8192), ("3M", 3 << 20), ("2G", 2 << 30), ("16T", 16 << 40)];
        for (words, bytes) in good {
            assert_eq!(size(words), Ok(bytes));
        }
        for (shown, bytes) in
            [("4K", 4096), ("3M", 3 << 20), ("2052K", 2_101_248), ("16T", 16 << 40)]
        {
            assert_eq!((words(bytes), size(shown)), (shown.to_owned(), Ok(bytes)));
        }
        assert_eq!((words(0), words(1023)), ("0".to_owned(), "1023".to_owned()));
        for words in ["", "K", "-4K", "4k", "4096.0", "0", "4095", "2K", "17T", "99999999999999T"] {
            assert!(size(words).is_err(), "{words}");
        }
    }
}
