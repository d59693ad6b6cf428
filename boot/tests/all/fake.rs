//! Memory, boot information and ACPI tables made up for tests.

use boot::memory::Memory;
use ept::addr::Span;

/// Physical memory of which only some pieces can be read.
#[derive(Default)]
pub(crate) struct Fake(Vec<(u64, Vec<u8>)>);

impl Memory for Fake {
    fn bytes(&self, span: Span) -> Option<&[u8]> {
        if span.is_empty() {
            return Some(&[]);
        }
        self.0.iter().find_map(|(at, bytes)| {
            let from = usize::try_from(span.start().checked_sub(*at)?).ok()?;
            let len = usize::try_from(span.len()).ok()?;
            bytes.get(from..)?.get(..len)
        })
    }
}

impl Fake {
    /// Makes `bytes` readable at `at`.
    pub(crate) fn put(&mut self, at: u64, bytes: impl Into<Vec<u8>>) {
        self.0.push((at, bytes.into()));
    }

    /// Makes readable what can be read in `other`; where both have something, this one shows.
    pub(crate) fn append(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// Memory with `bytes` at `at`.
    pub(crate) fn with(at: u64, bytes: impl Into<Vec<u8>>) -> Self {
        Self(vec![(at, bytes.into())])
    }
}

/// The span `start..end`.
pub(crate) fn span(start: u64, end: u64) -> Span {
    Span::new(start, end).expect("a span")
}

/// Little-endian bytes of 32-bit numbers.
pub(crate) fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Little-endian bytes of 64-bit numbers.
pub(crate) fn quads(quads: &[u64]) -> Vec<u8> {
    quads.iter().flat_map(|quad| quad.to_le_bytes()).collect()
}

/// Base, length and type of map entries, 24 bytes each.
pub(crate) fn map_entries(entries: &[(u64, u64, u32)]) -> Vec<u8> {
    let entry = |&(base, len, kind): &(u64, u64, u32)| quads(&[base, len, kind.into()]);
    entries.iter().flat_map(entry).collect()
}

/// Type, first address, pages and attributes of EFI descriptors, 48 bytes each.
pub(crate) fn descriptors(entries: &[(u32, u64, u64, u64)]) -> Vec<u8> {
    let entry = |&(kind, base, pages, attributes): &(u32, u64, u64, u64)| {
        quads(&[kind.into(), base, 0, pages, attributes, 0x5555])
    };
    entries.iter().flat_map(entry).collect()
}

/// A multiboot2 information structure.
#[derive(Clone, Default)]
pub(crate) struct Tags(Vec<u8>);

impl Tags {
    /// Adds a tag.
    pub(crate) fn tag(mut self, kind: u32, body: impl AsRef<[u8]>) -> Self {
        let body = body.as_ref();
        let len = u32::try_from(body.len() + 8).expect("a short tag");
        self.0.extend(words(&[kind, len]));
        self.0.extend(body);
        self.0.resize(self.0.len().next_multiple_of(8), 0);
        self
    }

    /// Adds a module.
    pub(crate) fn module(self, start: u32, end: u32, string: &str) -> Self {
        let mut body = words(&[start, end]);
        body.extend(string.bytes().chain([0]));
        self.tag(3, body)
    }

    /// Adds a memory map.
    pub(crate) fn map(self, entries: &[(u64, u64, u32)]) -> Self {
        let mut body = words(&[24, 0]);
        body.extend(map_entries(entries));
        self.tag(6, body)
    }

    /// Adds an EFI memory map.
    pub(crate) fn efi(self, entries: &[(u32, u64, u64, u64)]) -> Self {
        let mut body = words(&[48, 1]);
        body.extend(descriptors(entries));
        self.tag(17, body)
    }

    /// The structure, with an end tag.
    pub(crate) fn finish(self) -> Vec<u8> {
        self.tag(0, []).unfinished()
    }

    /// The structure as it stands.
    pub(crate) fn unfinished(self) -> Vec<u8> {
        let len = u32::try_from(self.0.len() + 8).expect("a short structure");
        let mut all = words(&[len, 0]);
        all.extend(self.0);
        all
    }
}

/// An ACPI table with a right length and checksum.
pub(crate) fn table(signature: [u8; 4], body: &[u8]) -> Vec<u8> {
    let mut table = signature.to_vec();
    table.extend(words(&[u32::try_from(body.len() + 36).expect("a short table")]));
    table.resize(36, 0);
    table.extend(body);
    table[9] = sum(&table).wrapping_neg();
    table
}

/// A root pointer: of ACPI 1.0 to the RSDT at `rsdt`, unless there is an `xsdt`.
pub(crate) fn pointer(rsdt: u32, xsdt: Option<u64>) -> Vec<u8> {
    let mut pointer = b"RSD PTR \0MAKER\0".to_vec();
    pointer[15 - 1] = b' ';
    pointer.push(if xsdt.is_some() { 2 } else { 0 });
    pointer.extend(words(&[rsdt]));
    pointer[8] = sum(&pointer).wrapping_neg();
    if let Some(xsdt) = xsdt {
        pointer.extend(words(&[36]));
        pointer.extend(quads(&[xsdt]));
        pointer.extend([0; 4]);
        pointer[32] = sum(&pointer).wrapping_neg();
    }
    pointer
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, &byte| sum.wrapping_add(byte))
}

/// A multiboot1 information structure and what it points to.
#[derive(Default)]
pub(crate) struct Info1 {
    /// Which fields hold something.
    pub(crate) flags: u32,
    fields: std::collections::BTreeMap<usize, u32>,
    rest: Fake,
}

impl Info1 {
    /// Sets the field at offset `at`.
    pub(crate) fn field(mut self, at: usize, value: u32) -> Self {
        let _earlier = self.fields.insert(at, value);
        self
    }

    /// Puts `bytes` into memory.
    pub(crate) fn bytes(mut self, at: u32, bytes: impl Into<Vec<u8>>) -> Self {
        self.rest.put(at.into(), bytes);
        self
    }

    /// Puts a string into memory.
    pub(crate) fn text(self, at: u32, text: &str) -> Self {
        let mut page: Vec<u8> = text.bytes().chain([0]).collect();
        // The visor reads up to the end of a page.
        let end = usize::try_from(at % 4096).expect("small") + page.len();
        page.resize(page.len() + end.next_multiple_of(4096) - end, 0xff);
        self.bytes(at, page)
    }

    /// The command line of the visor, to be put at `at`.
    pub(crate) fn cmdline(mut self, at: u32, text: &str) -> Self {
        self.flags |= 1 << 2;
        self.field(16, at).text(at, text)
    }

    /// The name of the loader, to be put at `at`.
    pub(crate) fn loader_name(mut self, at: u32, text: &str) -> Self {
        self.flags |= 1 << 9;
        self.field(64, at).text(at, text)
    }

    /// The memory map, to be put at `at`.
    pub(crate) fn map(mut self, at: u32, entries: &[(u64, u64, u32)]) -> Self {
        self.flags |= 1 << 6;
        let entries = map_entries(entries);
        let sized = |entry: &[u8]| [&words(&[20]), &entry[..20]].concat();
        let bytes: Vec<u8> = entries.chunks(24).flat_map(sized).collect();
        let len = u32::try_from(bytes.len()).expect("small");
        self.field(44, len).field(48, at).bytes(at, bytes)
    }

    /// The list of modules (start, end, address of the string), to be put at `at`.
    pub(crate) fn modules(mut self, at: u32, modules: &[(u32, u32, u32)]) -> Self {
        self.flags |= 1 << 3;
        let entry = |&(start, end, text): &(u32, u32, u32)| words(&[start, end, text, 0]);
        let bytes: Vec<u8> = modules.iter().flat_map(entry).collect();
        let count = u32::try_from(modules.len()).expect("small");
        self.field(20, count).field(24, at).bytes(at, bytes)
    }

    /// Memory with all of it, the structure at `at`.
    pub(crate) fn finish(self, at: u32) -> Fake {
        let mut bytes = vec![0; 116];
        bytes[..4].copy_from_slice(&self.flags.to_le_bytes());
        for (at, value) in self.fields {
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        let mut memory = Fake::with(at.into(), bytes);
        memory.append(self.rest);
        memory
    }
}
