//! The VM's memory as root has it: through QEMU's process, and in all of the machine's.

use crate::look::{Needle, is_in_stream};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

pub(crate) const PAGE: u64 = 4096;
/// What `visorctl ticket linux` was asked for.
pub(crate) const SIZE: u64 = 64 << 20;

/// The VM's memory in QEMU's process.
pub(crate) struct Memory {
    process: u32,
    base: u64,
    file: File,
}

impl Memory {
    /// That which begins at `base` of process `process`.
    pub(crate) fn of(process: u32, base: u64) -> Result<Self, String> {
        let file = OpenOptions::new().read(true).write(true).open(format!("/proc/{process}/mem"));
        let file = file.map_err(|why| format!("QEMU's memory: {why}"))?;
        Ok(Self { process, base, file })
    }

    /// The address in QEMU of the VM's `at`.
    pub(crate) const fn address(&self, at: u64) -> u64 {
        self.base + at
    }

    /// What the host finds at the VM's `at`.
    pub(crate) fn read(&self, at: u64, count: usize) -> Result<Vec<u8>, String> {
        let mut bytes = vec![0; count];
        let read = self.file.read_exact_at(&mut bytes, self.address(at));
        read.map(|()| bytes).map_err(|why| format!("read: {why}"))
    }

    /// The page that `at` is in.
    pub(crate) fn page(&self, at: u64) -> Result<Vec<u8>, String> {
        self.read(at / PAGE * PAGE, PAGE as usize)
    }

    /// Overwrites it.
    pub(crate) fn write(&self, at: u64, bytes: &[u8]) -> Result<(), String> {
        self.file.write_all_at(bytes, self.address(at)).map_err(|why| format!("write: {why}"))
    }

    /// Whether the secret is anywhere in it.
    pub(crate) fn has(&self, needle: Needle) -> Result<bool, String> {
        let mut file = self.file.try_clone().map_err(|why| why.to_string())?;
        let _ = file.seek(SeekFrom::Start(self.base)).map_err(|why| why.to_string())?;
        is_in_stream(file.take(SIZE), needle)
    }

    /// Where the page with `at` is in the machine's memory.
    pub(crate) fn frame(&self, at: u64) -> Result<u64, String> {
        let failed = |why: std::io::Error| format!("pagemap: {why}");
        let map = File::open(format!("/proc/{}/pagemap", self.process)).map_err(failed)?;
        let mut entry = [0; 8];
        map.read_exact_at(&mut entry, self.address(at) / PAGE * 8).map_err(failed)?;
        let entry = u64::from_le_bytes(entry);
        let (is_there, number) = (entry >> 63 != 0, entry & ((1 << 55) - 1));
        if is_there && number != 0 {
            Ok(number * PAGE)
        } else {
            Err("the page is in no frame".to_owned())
        }
    }
}

/// All memory of the machine.
pub(crate) enum Machine {
    /// As a device.
    Device(File),
    /// As a dump of the kernel's, for kernels that keep the device for devices: the file, and for each piece of
    /// memory its beginning, its end, and its place in the file.
    Dump(File, Vec<[u64; 3]>),
}

impl Machine {
    /// Whichever the kernel has.
    pub(crate) fn open() -> Result<Self, String> {
        let device = File::open("/dev/mem").map_err(|why| format!("/dev/mem: {why}"))?;
        let first = ranges()?.last().map_or(0, |(start, _)| *start);
        if device.read_exact_at(&mut [0; 8], first).is_ok() {
            return Ok(Self::Device(device));
        }
        let dump = File::open("/proc/kcore").map_err(|why| format!("/proc/kcore: {why}"))?;
        let pieces = pieces(&dump).map_err(|why| format!("/proc/kcore: {why}"))?;
        Ok(Self::Dump(dump, pieces))
    }

    /// Bytes at a physical address.
    pub(crate) fn read(&self, at: u64, bytes: &mut [u8]) -> Result<(), String> {
        match self {
            Self::Device(file) => file.read_exact_at(bytes, at),
            Self::Dump(file, pieces) => {
                let piece = pieces.iter().find(|[start, end, _]| (*start..*end).contains(&at));
                let [start, _, offset] = piece.ok_or("memory that the kernel does not dump")?;
                file.read_exact_at(bytes, at - start + offset)
            }
        }
        .map_err(|why| format!("memory at {at:#x}: {why}"))
    }

    /// Whether the secret is anywhere.
    pub(crate) fn has(&self, needle: Needle) -> Result<bool, String> {
        const STEP: u64 = 1 << 20;
        for (start, end) in ranges()? {
            for at in (start..end).step_by(1 << 20) {
                let mut bytes = vec![0; STEP.min(end - at) as usize];
                self.read(at, &mut bytes)?;
                if crate::look::is_in(&bytes, needle) {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }
}

/// The pieces of memory in an ELF dump of the kernel's: its program headers of type 1 that have a physical
/// address, but for the kernel's own image, which is in another piece as well.
fn pieces(dump: &File) -> std::io::Result<Vec<[u64; 3]>> {
    /// Linear addresses of that (Linux 6.1, `Documentation/x86/x86_64/mm.rst`).
    const IMAGE: u64 = 0xffff_ffff_8000_0000;
    let mut head = [0; 64];
    dump.read_exact_at(&mut head, 0)?;
    let count = u16::from_le_bytes([head[56], head[57]]);
    let mut pieces = Vec::new();
    for index in 0..u64::from(count) {
        let mut header = [0; 56];
        dump.read_exact_at(&mut header, 64 + index * 56)?;
        let word = |at: usize| header[at..at + 8].try_into().map_or(0, u64::from_le_bytes);
        let (offset, linear, physical, size) = (word(8), word(16), word(24), word(32));
        let is_memory = header[0] == 1 && physical != u64::MAX && linear < IMAGE;
        if is_memory {
            pieces.push([physical, physical + size, offset]);
        }
    }
    Ok(pieces)
}

/// Beginnings and ends of the machine's memory, in whole pages.
fn ranges() -> Result<Vec<(u64, u64)>, String> {
    let map = fs::read_to_string("/proc/iomem").map_err(|why| format!("iomem: {why}"))?;
    Ok(map.lines().filter_map(range).collect())
}

fn range(line: &str) -> Option<(u64, u64)> {
    let (range, "System RAM") = line.split_once(" : ")? else { return None };
    let (start, last) = range.split_once('-')?;
    let number = |text| u64::from_str_radix(text, 16).ok();
    Some((number(start)?.next_multiple_of(PAGE), (number(last)? + 1) / PAGE * PAGE))
}

#[cfg(test)]
mod tests {
    #[test]
    fn memory_is_found_in_the_kernels_map() {
        assert_eq!(super::range("00001000-0009fbff : System RAM"), Some((0x1000, 0x9f000)));
        assert_eq!(super::range("00100000-001fffff : System RAM"), Some((0x10_0000, 0x20_0000)));
        assert_eq!(super::range("  01000000-01ffffff : Kernel code"), None);
    }
}
