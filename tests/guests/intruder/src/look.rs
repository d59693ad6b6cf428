//! Searching for a secret that is known in disguise only: so nobody finds the searcher's copy.

use std::io::Read;

/// Two words that follow each other, disguised.
pub(crate) type Needle = [u64; 2];

/// What a word looks like disguised.
const fn disguised(word: u64) -> u64 {
    word.wrapping_mul(0xd134_2543_de82_ef95).rotate_left(29)
}

/// Whether the words lie in `bytes`, aligned as they are in memory.
pub(crate) fn is_in(bytes: &[u8], needle: Needle) -> bool {
    let mut was_first = false;
    bytes.as_chunks().0.iter().any(|word| {
        // Most of memory is zeros, which need no disguise.
        let word = if *word == [0; 8] { 0 } else { disguised(u64::from_le_bytes(*word)) };
        let is_found = was_first && word == needle[1];
        was_first = word == needle[0];
        is_found
    })
}

/// Whether one of the words lies anywhere in `bytes`.
pub(crate) fn is_part_in(bytes: &[u8], needle: Needle) -> bool {
    bytes.windows(8).any(|window| {
        let word = window.try_into().map_or(0, u64::from_le_bytes);
        needle.contains(&disguised(word))
    })
}

/// Whether one of the words stands in a text, in 16 hexadecimal digits or as a half of 32.
pub(crate) fn is_part_in_text(text: &str, needle: Needle) -> bool {
    let digits = text.split(|c: char| !c.is_ascii_hexdigit());
    digits.filter(|word| word.len().is_multiple_of(16)).any(|word| {
        let halves = (0..word.len()).step_by(16).filter_map(|at| word.get(at..at + 16));
        let mut words = halves.filter_map(|half| u64::from_str_radix(half, 16).ok());
        words.any(|word| needle.contains(&disguised(word)))
    })
}

/// Whether the words lie in what `from` has, at a multiple of 8 from its beginning.
pub(crate) fn is_in_stream(mut from: impl Read, needle: Needle) -> Result<bool, String> {
    let mut bytes = vec![0; 1 << 20];
    loop {
        let mut length = 0;
        while length < bytes.len() {
            match from.read(&mut bytes[length..]).map_err(|why| why.to_string())? {
                0 => break,
                count => length += count,
            }
        }
        if length == 0 {
            return Ok(false);
        }
        if is_in(&bytes[..length], needle) {
            return Ok(true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{disguised, is_in, is_in_stream, is_part_in, is_part_in_text};

    const NEEDLE: [u64; 2] = [disguised(0x1122_3344_5566_7788), disguised(9)];

    #[test]
    fn two_words_are_found_where_they_follow_each_other() {
        let bytes: Vec<u8> =
            [1, 0x1122_3344_5566_7788_u64, 9].iter().flat_map(|word| word.to_le_bytes()).collect();
        assert!(is_in(&bytes, NEEDLE) && is_in_stream(&bytes[..], NEEDLE).unwrap());
        assert!(
            !is_in(&bytes[16..], NEEDLE)
                && !is_in(&bytes[1..], NEEDLE)
                && !is_in(&bytes[..16], NEEDLE)
        );
    }

    #[test]
    fn one_word_is_found_at_every_byte_and_in_texts() {
        let bytes = [&[5], &9_u64.to_le_bytes()[..]].concat();
        assert!(is_part_in(&bytes, NEEDLE) && !is_part_in(&bytes[..8], NEEDLE));
        let text = "XMM08=00000000000000000000000000000009";
        assert!(is_part_in_text(text, NEEDLE) && !is_part_in_text(&text[1..], [1, 2]));
        assert!(is_part_in_text("R12=1122334455667788 R13=0", NEEDLE));
    }
}
