//! Bytes, as hexadecimal digits in JSON.

use std::fmt;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Bytes, which are lower-case hexadecimal digits in JSON and in text.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bytes(pub Vec<u8>);

/// A text is not an even number of lower-case hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotHex;

impl fmt::Display for NotHex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not an even number of lower-case hexadecimal digits")
    }
}

impl std::error::Error for NotHex {}

impl Bytes {
    /// The bytes, if there are as many as asked for.
    #[must_use]
    pub fn array<const N: usize>(&self) -> Option<[u8; N]> {
        self.0.as_slice().try_into().ok()
    }
}

impl FromStr for Bytes {
    type Err = NotHex;

    fn from_str(text: &str) -> Result<Self, NotHex> {
        let digit = |digit: &u8| match *digit {
            b'0'..=b'9' => Ok(*digit - b'0'),
            b'a'..=b'f' => Ok(*digit - b'a' + 10),
            _ => Err(NotHex),
        };
        let (pairs, rest) = text.as_bytes().as_chunks::<2>();
        if !rest.is_empty() {
            return Err(NotHex);
        }
        pairs
            .iter()
            .map(|[high, low]| Ok(digit(high)? << 4 | digit(low)?))
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<&[u8]> for Bytes {
    fn from(bytes: &[u8]) -> Self {
        Self(bytes.to_vec())
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::{Bytes, NotHex};

    #[test]
    fn bytes_and_digits_are_the_same_thing() {
        let bytes = Bytes(vec![0, 0x0f, 0xa0, 0xff]);
        assert_eq!(bytes.to_string(), "000fa0ff");
        assert_eq!("000fa0ff".parse(), Ok(bytes));
        for wrong in ["0", "0g", "AA", " 0", "é"] {
            assert_eq!(wrong.parse::<Bytes>(), Err(NotHex), "{wrong}");
        }
    }
}
