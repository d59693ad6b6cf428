//! Empty disk images that can have snapshots (QEMU's `docs/interop/qcow2.txt`).

/// Bytes of a cluster, and their logarithm.
const CLUSTER: u64 = 1 << BITS;
const BITS: u32 = 16;
/// The disk's bytes: one cluster has all entries for that.
const DISK: u64 = 1 << 20;

/// An image without content: the header, the table of counts, a block of them, and the table of what is where.
pub(crate) fn empty() -> Vec<u8> {
    let [counts, block, places, end] = [1, 2, 3, 4].map(|number: u64| number * CLUSTER);
    let mut image = vec![0; usize::try_from(end).unwrap_or(0)];
    let mut put = |at: u64, bytes: &[u8]| {
        let at = usize::try_from(at).unwrap_or(0);
        if let Some(place) = image.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    };
    put(0, b"QFI\xfb");
    for (at, number) in [(4, 3), (20, BITS), (36, 1), (56, 1), (96, 4), (100, 104)] {
        put(at, &number.to_be_bytes());
    }
    for (at, number) in [(24, DISK), (40, places), (48, counts), (counts, block)] {
        put(at, &number.to_be_bytes());
    }
    for number in 0..end / CLUSTER {
        put(block + 2 * number, &1_u16.to_be_bytes());
    }
    image
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_is_counted_if_and_only_if_it_is_in_the_file() {
        let image = empty();
        let word = |at: usize| u64::from_be_bytes(image[at..at + 8].try_into().unwrap());
        assert_eq!((&image[..8], word(24)), (b"QFI\xfb\0\0\0\x03".as_slice(), DISK));
        let counts = usize::try_from(word(48)).unwrap();
        let block = usize::try_from(word(counts)).unwrap();
        let counted = image[block..].chunks(2).take_while(|count| **count == [0, 1]).count();
        assert_eq!(counted * (1 << BITS), image.len());
        assert!(image[usize::try_from(word(40)).unwrap()..].iter().all(|byte| *byte == 0));
    }
}
