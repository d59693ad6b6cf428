//! What the boot loader passed: the command line and the memory map, from a multiboot1 or a
//! multiboot2 information structure, copied out before anything may overwrite them.

use crate::fault::Local;
use core::fmt;

const MULTIBOOT1: u32 = 0x2bad_b002;
const MULTIBOOT2: u32 = 0x36d7_6289;
/// Multiboot 0.6.96, 3.3: flags of the information structure.
const HAS_COMMAND_LINE: u32 = 1 << 2;
const HAS_MAP: u32 = 1 << 6;
/// Multiboot2 2.0, 3.6: tag types.
const TAG_END: u32 = 0;
const TAG_COMMAND_LINE: u32 = 1;
const TAG_MAP: u32 = 6;

const MAX_REGIONS: usize = 64;
const MAX_LINE: usize = 512;

/// One entry of the memory map.
#[derive(Clone, Copy)]
pub struct Region {
    pub base: u64,
    pub length: u64,
    /// E820 type: 1 is RAM.
    pub kind: u32,
}

impl Region {
    pub fn end(&self) -> u64 {
        self.base.saturating_add(self.length)
    }
}

/// The program's copy of what it was told.
pub struct Info {
    line: [u8; MAX_LINE],
    line_length: usize,
    regions: [Region; MAX_REGIONS],
    count: usize,
}

/// Why the program was not told.
pub enum BadInfo {
    /// The loader is none that is known here.
    Magic(u32),
}

impl fmt::Display for BadInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Magic(found) => write!(f, "not started by multiboot: magic {found:#x}"),
        }
    }
}

static INFO: Local<Info> = Local::new(Info {
    line: [0; MAX_LINE],
    line_length: 0,
    regions: [Region { base: 0, length: 0, kind: 0 }; MAX_REGIONS],
    count: 0,
});

/// Reads the structure at `at`; called once, on the boot processor.
pub fn read(magic: u32, at: u32) -> Result<&'static Info, BadInfo> {
    // SAFETY: the only mutable use, before any other.
    let info = unsafe { &mut *INFO.get() };
    match magic {
        MULTIBOOT1 => info.read_1(u64::from(at)),
        MULTIBOOT2 => info.read_2(u64::from(at)),
        other => return Err(BadInfo::Magic(other)),
    }
    Ok(info)
}

/// Physical memory below 4 GiB, identity-mapped by `boot.s`.
fn byte(at: u64) -> u8 {
    // SAFETY: mapped and initialized; the loader's structures are not changed by anyone.
    unsafe { (at as *const u8).read_volatile() }
}

fn dword(at: u64) -> u32 {
    u32::from_le_bytes([byte(at), byte(at + 1), byte(at + 2), byte(at + 3)])
}

fn qword(at: u64) -> u64 {
    u64::from(dword(at + 4)) << 32 | u64::from(dword(at))
}

impl Info {
    /// The command line as it came.
    pub fn command_line(&self) -> &str {
        core::str::from_utf8(&self.line[..self.line_length]).unwrap_or("")
    }

    pub fn regions(&self) -> &[Region] {
        &self.regions[..self.count]
    }

    /// Whether all of `[base, base + length)` is RAM in one entry.
    pub fn is_ram(&self, base: u64, length: u64) -> bool {
        self.regions()
            .iter()
            .any(|region| region.kind == 1 && region.base <= base && base + length <= region.end())
    }

    fn read_1(&mut self, at: u64) {
        let flags = dword(at);
        if flags & HAS_COMMAND_LINE != 0 {
            self.copy_line(u64::from(dword(at + 16)));
        }
        if flags & HAS_MAP != 0 {
            let (mut entry, length) = (u64::from(dword(at + 48)), dword(at + 44));
            let end = entry + u64::from(length);
            while entry < end {
                self.add_region(entry + 4);
                entry += u64::from(dword(entry)) + 4;
            }
        }
    }

    fn read_2(&mut self, at: u64) {
        let end = at + u64::from(dword(at));
        let mut tag = at + 8;
        while tag < end {
            let (kind, size) = (dword(tag), u64::from(dword(tag + 4)));
            match kind {
                TAG_END => return,
                TAG_COMMAND_LINE => self.copy_line(tag + 8),
                TAG_MAP => {
                    let step = u64::from(dword(tag + 8)).max(24);
                    let mut entry = tag + 16;
                    while entry + step <= tag + size {
                        self.add_region(entry);
                        entry += step;
                    }
                }
                _ => {}
            }
            tag += size.max(8).next_multiple_of(8);
        }
    }

    fn copy_line(&mut self, at: u64) {
        self.line_length = 0;
        for place in &mut self.line {
            *place = byte(at + self.line_length as u64);
            if *place == 0 {
                return;
            }
            self.line_length += 1;
        }
    }

    fn add_region(&mut self, at: u64) {
        if let Some(place) = self.regions.get_mut(self.count) {
            *place = Region { base: qword(at), length: qword(at + 8), kind: dword(at + 16) };
            self.count += 1;
        }
    }
}
