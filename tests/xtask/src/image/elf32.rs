//! A 64-bit program as the plainest multiboot image: ELF32 with one segment, loaded where it lies.
//!
//! QEMU's loader takes no ELF64, and tboot 1.10 reads the program headers of one as if it were
//! ELF32. The code inside is the same; Xen's build does likewise.

use anyhow::{Context, Result, ensure};

/// Offset of the segment in the file. Multiboot headers must lie in the first 8 KiB.
const START: u32 = 0x1000;
const LOADABLE: u32 = 1;

/// A loadable segment of the original.
struct Segment {
    /// Physical address.
    at: u64,
    memory: u64,
    data: Vec<u8>,
}

/// `elf` (ELF64, little-endian) as ELF32.
pub(crate) fn convert(elf: &[u8]) -> Result<Vec<u8>> {
    ensure!(elf.starts_with(b"\x7fELF\x02\x01"), "not an ELF64 file");
    let entry = u32::try_from(number(elf, 24, 8)?).context("the entry point is above 4 GiB")?;
    let segments = segments(elf)?;
    let base = segments.iter().map(|segment| segment.at).min().context("nothing to load")?;
    let ends = segments.iter().map(|segment| segment.at + segment.memory);
    let memory = u32::try_from(ends.max().unwrap_or(base) - base).context("too large")?;
    let mut image = Vec::new();
    for segment in &segments {
        let at = usize::try_from(segment.at - base).context("too large")?;
        let end = at + segment.data.len();
        if image.len() < end {
            image.resize(end, 0);
        }
        drop(image.splice(at..end, segment.data.iter().copied()));
    }
    // Whole pages: the multiboot1 header counts in them.
    image.resize(image.len().next_multiple_of(4096), 0);
    let base = u32::try_from(base).context("a segment lies above 4 GiB")?;
    let size = u32::try_from(image.len()).context("too large")?;
    let mut file = header(entry);
    // Readable, writable, executable: boot loaders do not look, the program maps itself.
    for word in [LOADABLE, START, base, base, size, memory.max(size), 7, START] {
        file.extend_from_slice(&word.to_le_bytes());
    }
    file.resize(usize::try_from(START)?, 0);
    file.append(&mut image);
    Ok(file)
}

/// The file header of a static i386 program with one program header behind it.
fn header(entry: u32) -> Vec<u8> {
    let mut file = b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let (executable, i386, version) = (2_u16, 3_u16, 1_u32);
    file.extend_from_slice(&executable.to_le_bytes());
    file.extend_from_slice(&i386.to_le_bytes());
    let (program_headers, section_headers, flags) = (52_u32, 0, 0);
    for word in [version, entry, program_headers, section_headers, flags] {
        file.extend_from_slice(&word.to_le_bytes());
    }
    // Sizes of the file header and of a program header, number of those; no section headers.
    for half in [52_u16, 32, 1, 40, 0, 0] {
        file.extend_from_slice(&half.to_le_bytes());
    }
    file
}

fn segments(elf: &[u8]) -> Result<Vec<Segment>> {
    let (table, size, count) = (number(elf, 32, 8)?, number(elf, 54, 2)?, number(elf, 56, 2)?);
    let mut segments = Vec::new();
    for index in 0..count {
        let at = table + index * size;
        if number(elf, at, 4)? != u64::from(LOADABLE) {
            continue;
        }
        let (from, length) = (number(elf, at + 8, 8)?, number(elf, at + 32, 8)?);
        let (physical, memory) = (number(elf, at + 24, 8)?, number(elf, at + 40, 8)?);
        let data = slice(elf, from, length)?.to_vec();
        segments.push(Segment { at: physical, memory, data });
    }
    Ok(segments)
}

/// The little-endian number of `size` bytes at `at`.
fn number(elf: &[u8], at: u64, size: u64) -> Result<u64> {
    let bytes = slice(elf, at, size)?.iter().rev();
    Ok(bytes.fold(0, |value, byte| value << 8 | u64::from(*byte)))
}

fn slice(elf: &[u8], at: u64, size: u64) -> Result<&[u8]> {
    let (at, size) = (usize::try_from(at)?, usize::try_from(size)?);
    let rest = elf.get(at..).and_then(|rest| rest.get(..size));
    rest.context("the ELF file is cut short")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ELF64 file whose segments are (physical address, bytes, size in memory).
    fn elf64(entry: u64, segments: &[(u64, &[u8], u64)]) -> Vec<u8> {
        let mut file = vec![0; 64];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file[24..32].copy_from_slice(&entry.to_le_bytes());
        file[32] = 64;
        file[54] = 56;
        file[56] = u8::try_from(segments.len()).unwrap();
        let mut data = Vec::new();
        for (at, bytes, memory) in segments {
            let offset = u64::try_from(64 + 56 * segments.len() + data.len()).unwrap();
            let length = u64::try_from(bytes.len()).unwrap();
            file.extend_from_slice(&[1, 0, 0, 0, 5, 0, 0, 0]);
            for word in [offset, 0xffff_ffff_8000_0000 + at, *at, length, *memory, 0] {
                file.extend_from_slice(&word.to_le_bytes());
            }
            data.extend_from_slice(bytes);
        }
        file.append(&mut data);
        file
    }

    fn word(file: &[u8], at: u64) -> u64 {
        number(file, at, 4).unwrap()
    }

    #[test]
    fn segments_keep_their_distances_and_the_entry_point_stays() {
        let file = convert(&elf64(0x20_0010, &[(0x20_0000, b"ab", 2), (0x20_2000, b"c", 0x3000)]));
        let file = file.unwrap();
        assert_eq!(&file[..5], b"\x7fELF\x01");
        assert_eq!(word(&file, 24), 0x20_0010);
        // Physical address, size in the file in whole pages, size in memory.
        assert_eq!(
            [word(&file, 64), word(&file, 68), word(&file, 72)],
            [0x20_0000, 0x3000, 0x5000]
        );
        assert_eq!((&file[0x1000..0x1003], file[0x3000]), (&b"ab\0"[..], b'c'));
        assert_eq!(file.len(), 0x4000);
    }

    #[test]
    fn a_file_that_is_cut_short_or_of_another_kind_is_refused() {
        let whole = elf64(0, &[(0, b"data", 4)]);
        for length in 0..whole.len() {
            assert!(convert(&whole[..length]).is_err());
        }
        assert!(convert(b"\x7fELF\x01\x01").is_err());
    }
}
