//! Bytes as hexadecimal digits.

use std::fmt::Write;

/// Two lower-case digits a byte.
pub(crate) fn encode(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut digits, byte| {
        // A string takes all.
        let _ = write!(digits, "{byte:02x}");
        digits
    })
}

/// Exactly `N` bytes.
pub(crate) fn decode<const N: usize>(digits: &str) -> Result<[u8; N], String> {
    let wrong = || format!("{} hexadecimal digits are needed", 2 * N);
    if digits.len() != 2 * N || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return Err(wrong());
    }
    let mut bytes = [0; N];
    for (at, byte) in bytes.iter_mut().enumerate() {
        let pair = digits.get(2 * at..2 * at + 2).ok_or_else(wrong)?;
        *byte = u8::from_str_radix(pair, 16).map_err(|_| wrong())?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::{decode, encode};

    #[test]
    fn bytes_read_back_from_their_digits() {
        assert_eq!(encode(&[0, 0x1f, 0xff]), "001fff");
        assert_eq!(decode("001fFF"), Ok([0, 0x1f, 0xff]));
    }

    #[test]
    fn other_lengths_and_other_letters_are_refused() {
        for digits in ["", "00", "0000000", "00000g", "+1-1+1", "äöü"] {
            assert!(decode::<3>(digits).is_err(), "{digits}");
        }
    }
}
