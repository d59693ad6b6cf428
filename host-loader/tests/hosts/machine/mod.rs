//! A machine as the loader finds it: memory, its map, files in it, and a handoff that tells.

pub(crate) mod kernels;

use std::fmt;

use ept::addr::Span;
use host_loader::{Area, Bios, Entry, Handoff, LoadError, Memory, Scratch, Step, Steps, area};

pub(crate) const MIB: u64 = 1 << 20;
/// In the place of the real-mode service: its entry is at 16, its code is three bytes.
pub(crate) const SERVICE: [u8; 19] = *b"\x10\0countoldtablesABC";
/// Where the loader area is unless a test says otherwise.
pub(crate) const AREA: u64 = 14 * MIB;
/// All memory there is.
pub(crate) const END: u64 = 24 * MIB;

pub(crate) fn size(number: u64) -> usize {
    usize::try_from(number).unwrap()
}

pub(crate) fn number(size: usize) -> u64 {
    u64::try_from(size).unwrap()
}

pub(crate) fn word(bytes: &[u8], at: u32) -> u32 {
    let at = size(at.into());
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

/// Bytes that differ from file to file and from place to place.
pub(crate) fn content(seed: u8, len: usize) -> Vec<u8> {
    let step = |at: usize| u8::try_from((at * 7 + at / 251) % 253).unwrap().wrapping_mul(3);
    (0..len).map(|at| step(at).wrapping_add(seed)).collect()
}

/// A file in memory.
#[derive(Clone, Debug)]
pub(crate) struct File {
    pub(crate) at: u64,
    pub(crate) bytes: Vec<u8>,
    pub(crate) string: &'static str,
}

/// What the loader is given.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    pub(crate) area: u64,
    /// Base, length, E820 type.
    pub(crate) map: Vec<(u64, u64, u32)>,
    pub(crate) loader_name: &'static str,
    /// The kernel and then the modules.
    pub(crate) files: Vec<File>,
    /// Interrupt vectors and BIOS data; none unless a test says otherwise.
    pub(crate) low_page: Vec<u8>,
    /// Further tags: type and what follows the size.
    pub(crate) tags: Vec<(u32, Vec<u8>)>,
}

impl Machine {
    /// 24 MiB of RAM but for the hole below 1 MiB, and `kernel` at 8 MiB.
    pub(crate) fn with_kernel(kernel: Vec<u8>) -> Self {
        let string = "vmlinuz root=/dev/sda";
        Self {
            area: AREA,
            map: vec![(0, 0x9_f000, 1), (0x9_f000, 0x6_1000, 2), (MIB, END - MIB, 1)],
            loader_name: "GRUB 0.97",
            files: vec![File { at: 8 * MIB, bytes: kernel, string }],
            low_page: Vec::new(),
            tags: Vec::new(),
        }
    }

    #[must_use]
    pub(crate) fn module(mut self, at: u64, bytes: Vec<u8>) -> Self {
        self.files.push(File { at, bytes, string: "module one two" });
        self
    }

    #[must_use]
    pub(crate) fn tag(mut self, kind: u32, body: Vec<u8>) -> Self {
        self.tags.push((kind, body));
        self
    }

    pub(crate) fn handoff(&self) -> Vec<u8> {
        let text = |text: &str| [text.as_bytes(), b"\0"].concat();
        let mut tags = vec![(1, text(self.files.first().map_or("", |kernel| kernel.string)))];
        tags.push((2, text(self.loader_name)));
        for file in &self.files {
            let end = file.at + number(file.bytes.len());
            let ends = [file.at, end].map(|at| u32::try_from(at).unwrap().to_le_bytes());
            tags.push((3, [ends.concat(), text(file.string)].concat()));
        }
        tags.push((4, [639_u32, 1234].map(u32::to_le_bytes).concat()));
        let entry = |&(base, len, kind): &(u64, u64, u32)| {
            [&base.to_le_bytes()[..], &len.to_le_bytes(), &kind.to_le_bytes(), &[0; 4]].concat()
        };
        let entries: Vec<u8> = self.map.iter().flat_map(entry).collect();
        tags.push((6, [[24_u32, 0].map(u32::to_le_bytes).concat(), entries].concat()));
        tags.extend(self.tags.iter().cloned());
        tags.push((0, Vec::new()));
        structure(&tags)
    }

    /// Plans and executes; every step is checked against the rules.
    pub(crate) fn boot(&self) -> Result<Booted, LoadError> {
        let handoff = self.handoff();
        let area = Area::at(self.area).unwrap();
        let handoff = Handoff::parse(&handoff, area)?;
        let mut scratch = vec![0xcc; size(area::SCRATCH_LEN)];
        let base = u32::try_from(area.scratch()).unwrap();
        let mut steps = Steps::EMPTY;
        let kernel = self.files.first().map_or(&[][..], |file| &file.bytes);
        let entry = host_loader::plan(
            handoff,
            kernel,
            Bios { low_page: &self.low_page, service: &SERVICE },
            &mut Scratch::new(&mut scratch, base),
            &mut steps,
        )?;

        let mut memory = Ram { bytes: vec![0xee; size(END)], machine: self };
        memory.bytes[..self.low_page.len()].copy_from_slice(&self.low_page);
        let at = size(area.scratch());
        memory.bytes[at..at + scratch.len()].copy_from_slice(&scratch);
        for file in &self.files {
            let at = size(file.at);
            memory.bytes[at..at + file.bytes.len()].copy_from_slice(&file.bytes);
        }
        steps.execute(&mut memory);
        let bytes = memory.bytes;
        Ok(Booted { bytes, entry, steps: steps.to_vec() })
    }

    fn must_be_free(&self, span: Span) {
        let ram = self.map.iter().filter(|entry| entry.2 == 1);
        let mut pages = (span.start() / 4096..span.end().div_ceil(4096)).map(|page| page * 4096);
        let is_ram = |page| ram.clone().any(|&(base, len, _)| base <= page && page < base + len);
        assert!(pages.all(is_ram), "{span:x?} is not all RAM");
        let area = Area::at(self.area).unwrap().span();
        assert!(!span.overlaps(area), "{span:x?} is in the loader area");
        let is_bios = [(0x54, 4), (0x40e, 2), (0x413, 2)].contains(&(span.start(), span.len()));
        assert!(is_bios || span.start() >= 4096, "{span:x?} holds the interrupt vectors");
    }
}

/// A multiboot2 structure of `tags`.
pub(crate) fn structure(tags: &[(u32, Vec<u8>)]) -> Vec<u8> {
    let mut all = vec![0; 8];
    for (kind, body) in tags {
        all.extend(kind.to_le_bytes());
        all.extend(u32::try_from(8 + body.len()).unwrap().to_le_bytes());
        all.extend(body);
        all.resize(all.len().next_multiple_of(8), 0);
    }
    let total = u32::try_from(all.len()).unwrap().to_le_bytes();
    all[..4].copy_from_slice(&total);
    all
}

/// Memory that executes steps and refuses those that break the rules.
struct Ram<'m> {
    bytes: Vec<u8>,
    machine: &'m Machine,
}

impl Memory for Ram<'_> {
    fn copy(&mut self, from: Span, to: u64) {
        self.machine.must_be_free(Span::sized(to, from.len()).unwrap());
        self.bytes.copy_within(size(from.start())..size(from.end()), size(to));
    }

    fn zero(&mut self, span: Span) {
        self.machine.must_be_free(span);
        self.bytes[size(span.start())..size(span.end())].fill(0);
    }
}

/// What the kernel finds.
pub(crate) struct Booted {
    pub(crate) bytes: Vec<u8>,
    pub(crate) entry: Entry,
    pub(crate) steps: Vec<Step>,
}

impl fmt::Debug for Booted {
    /// Without all of memory.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} by {:x?}", self.entry, self.steps)
    }
}

impl Booted {
    /// From physical address `at` on.
    pub(crate) fn at(&self, at: u32) -> &[u8] {
        &self.bytes[size(at.into())..]
    }

    /// The boot tables.
    pub(crate) fn tables(&self) -> &[u8] {
        self.at(self.entry.tables)
    }

    /// The zero-terminated string at `at`.
    pub(crate) fn text(&self, at: u32) -> &str {
        let bytes = self.at(at);
        let len = bytes.iter().position(|&byte| byte == 0).unwrap();
        std::str::from_utf8(&bytes[..len]).unwrap()
    }
}
