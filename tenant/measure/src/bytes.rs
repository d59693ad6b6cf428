//! Numbers in other people's structures.

/// The bytes at `at`.
pub(crate) fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

/// Puts `field` at `at`, if it fits there.
pub(crate) fn put(bytes: &mut [u8], at: usize, field: &[u8]) {
    if let Some(place) = bytes.get_mut(at..).and_then(|rest| rest.get_mut(..field.len())) {
        place.copy_from_slice(field);
    }
}

/// Sets the byte at `at` so that the sum of all bytes is 0.
pub(crate) fn balance(bytes: &mut [u8], at: usize) {
    let sum = bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    if let Some(place) = bytes.get_mut(at) {
        *place = place.wrapping_sub(sum);
    }
}

#[cfg(test)]
mod tests {
    use super::{array, balance, put};

    #[test]
    fn what_lies_outside_is_neither_read_nor_written() {
        let mut bytes = [1, 2, 3, 4];
        put(&mut bytes, 3, &[9, 9]);
        put(&mut bytes, 7, &[9]);
        put(&mut bytes, 1, &[7, 8]);
        assert_eq!(bytes, [1, 7, 8, 4]);
        assert_eq!((array(&bytes, 2), array::<2>(&bytes, 3)), (Some([8, 4]), None));
    }

    #[test]
    fn balanced_bytes_have_the_sum_zero_whatever_was_at_the_place() {
        for before in [0, 200] {
            let mut bytes = [100, 100, before, 100];
            balance(&mut bytes, 2);
            assert_eq!(bytes, [100, 100, 212, 100]);
        }
    }
}
