//! Kernels that are just enough of one.

use super::{content, number};

/// A bzImage of protocol 2.15 whose fields can be changed before it is made.
#[derive(Clone, Debug)]
pub(crate) struct BzImage {
    pub(crate) version: u16,
    pub(crate) load_flags: u8,
    pub(crate) alignment: u32,
    pub(crate) relocatable: u8,
    pub(crate) preferred: u64,
    pub(crate) init_size: u32,
    pub(crate) initrd_max: u32,
    pub(crate) command_line_max: u32,
    /// Bytes of the protected-mode part.
    pub(crate) payload: usize,
}

pub(crate) const SETUP: usize = 3 * 512;

impl Default for BzImage {
    fn default() -> Self {
        Self {
            version: 0x20f,
            load_flags: 1,
            alignment: 0x20_0000,
            relocatable: 1,
            preferred: 0x40_0000,
            init_size: 0x30_0000,
            initrd_max: 0x7fff_ffff,
            command_line_max: 2047,
            payload: 0x12340,
        }
    }
}

impl BzImage {
    pub(crate) fn file(&self) -> Vec<u8> {
        let mut file = vec![0; SETUP];
        let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
        put(0x1f1, &[2]);
        put(0x1f4, &u32::try_from(self.payload / 16).unwrap().to_le_bytes());
        put(0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]);
        put(0x202, b"HdrS");
        put(0x206, &self.version.to_le_bytes());
        put(0x211, &[self.load_flags]);
        put(0x22c, &self.initrd_max.to_le_bytes());
        put(0x230, &self.alignment.to_le_bytes());
        put(0x234, &[self.relocatable]);
        put(0x238, &self.command_line_max.to_le_bytes());
        put(0x258, &self.preferred.to_le_bytes());
        put(0x260, &self.init_size.to_le_bytes());
        file.extend(content(11, self.payload));
        file
    }
}

/// A piece of an ELF file and where it goes.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    pub(crate) virt: u64,
    pub(crate) phys: u64,
    pub(crate) bytes: Vec<u8>,
    pub(crate) memory: u64,
}

/// Where the first part lies in an ELF file.
pub(crate) const FIRST: usize = 0x400;

/// An ELF executable of 32 or 64 bits whose first part begins with `header`.
pub(crate) fn elf(bits: u32, entry: u64, header: &[u8], parts: &[Part]) -> Vec<u8> {
    let narrow = |value: u64| u32::try_from(value).unwrap().to_le_bytes();
    let mut file = vec![0; FIRST];
    let mut table = Vec::new();
    for (place, part) in parts.iter().enumerate() {
        let mut bytes = part.bytes.clone();
        if place == 0 {
            bytes[..header.len()].copy_from_slice(header);
        }
        let at = number(file.len());
        let stored = number(bytes.len());
        table.extend(1_u32.to_le_bytes());
        if bits == 32 {
            let fields = [at, part.virt, part.phys, stored, part.memory, 7, 4].map(narrow);
            table.extend(fields.concat());
        } else {
            table.extend(7_u32.to_le_bytes());
            let fields = [at, part.virt, part.phys, stored, part.memory, 4096];
            table.extend(fields.map(u64::to_le_bytes).concat());
        }
        file.extend(bytes);
    }
    let count = u16::try_from(parts.len()).unwrap().to_le_bytes();
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"\x7fELF");
    put(5, &[1, 1]);
    put(16, &[2, 0]);
    if bits == 32 {
        put(4, &[1]);
        put(18, &[3, 0]);
        put(24, &[narrow(entry), narrow(52)].concat());
        put(42, &[[32, 0], count].concat());
        put(52, &table);
    } else {
        put(4, &[2]);
        put(18, &[62, 0]);
        put(24, &[entry, 64].map(u64::to_le_bytes).concat());
        put(54, &[[56, 0], count].concat());
        put(64, &table);
    }
    file
}

/// A multiboot1 header: `flags` and what follows the checksum.
pub(crate) fn header1(flags: u32, rest: &[u32]) -> Vec<u8> {
    let magic = 0x1bad_b002_u32;
    let check = 0_u32.wrapping_sub(magic).wrapping_sub(flags);
    let words = [&[magic, flags, check], rest].concat();
    words.into_iter().flat_map(u32::to_le_bytes).collect()
}

/// A multiboot2 header of tags: type, flags, and what follows the size as words.
pub(crate) fn header2(tags: &[(u16, u16, &[u32])]) -> Vec<u8> {
    let mut body: Vec<u8> = Vec::new();
    for (kind, flags, words) in tags.iter().chain([&(0, 0, &[][..])]) {
        body.extend(kind.to_le_bytes());
        body.extend(flags.to_le_bytes());
        body.extend(u32::try_from(8 + 4 * words.len()).unwrap().to_le_bytes());
        body.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        body.resize(body.len().next_multiple_of(8), 0);
    }
    let magic = 0xe852_50d6_u32;
    let len = u32::try_from(16 + body.len()).unwrap();
    let check = 0_u32.wrapping_sub(magic).wrapping_sub(len);
    let head: Vec<u8> = [magic, 0, len, check].into_iter().flat_map(u32::to_le_bytes).collect();
    [head, body].concat()
}
