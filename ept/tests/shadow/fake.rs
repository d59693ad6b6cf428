//! Memory for EPT02 with a processor that walks it, and the host's memory.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use ept::addr::{Frame, PAGE, Span};
use ept::ept01::TableMem;
use ept::shadow::{Format, Host, Permission, Shadow};

/// Where EPT02 lies: outside everything that EPT12 can map by right.
pub(crate) const TABLES: u64 = 1 << 46;
/// One past the host's RAM.
pub(crate) const RAM_END: u64 = 4 << 30;

pub(crate) const FRAME: u64 = 0x000f_ffff_ffff_f000;

pub(crate) fn span(start: u64, len: u64) -> Span {
    Span::sized(start, len).unwrap()
}

fn number(value: u64) -> usize {
    usize::try_from(value).unwrap()
}

/// The visor's frames for EPT02; ones are in them at first.
#[derive(Debug)]
pub(crate) struct Tables(Vec<Vec<u64>>);

impl Tables {
    /// `frames` of them, with a shadow in them.
    pub(crate) fn with_shadow(frames: u64, format: Format) -> (Self, Shadow) {
        let mut tables = Self(vec![vec![u64::MAX; 512]; number(frames)]);
        let shadow = Shadow::new(&mut tables, span(TABLES, frames * PAGE), format).unwrap();
        (tables, shadow)
    }

    fn table(&self, base: u64) -> &[u64] {
        &self.0[number((base - TABLES) / PAGE)]
    }

    /// All that a processor may have read, links and leaves: log2 of the bytes that the entry
    /// translates, the first guest-physical address, the entry.
    pub(crate) fn entries(&self) -> BTreeMap<(u32, u64), u64> {
        let mut found = BTreeMap::new();
        self.collect(TABLES, 39, 0, &mut found);
        found
    }

    fn collect(&self, table: u64, shift: u32, base: u64, found: &mut BTreeMap<(u32, u64), u64>) {
        for (index, entry) in (0_u64..).zip(self.table(table)) {
            if entry & 7 != 0 {
                let gpa = base + (index << shift);
                assert_eq!(found.insert((shift, gpa), *entry), None);
                if !is_leaf(shift, *entry) {
                    assert_eq!(entry & !FRAME, 7, "a link has other bits");
                    self.collect(entry & FRAME, shift - 9, gpa, found);
                }
            }
        }
    }

    /// The processor's walk: where `gpa` leads, bits 6:0 of the leaf, log2 of its size.
    pub(crate) fn walk(&self, gpa: u64) -> Option<(u64, u64, u32)> {
        let mut table = TABLES;
        for shift in [39, 30, 21, 12] {
            let entry = self.table(table)[number(gpa >> shift & 511)];
            if entry & 7 == 0 {
                return None;
            }
            if is_leaf(shift, entry) {
                let base = entry & FRAME;
                assert_eq!(base & ((1 << shift) - 1), 0, "reserved bits in {entry:#x}");
                return Some((base + (gpa & ((1 << shift) - 1)), entry & 0x7f, shift));
            }
            table = entry & FRAME;
        }
        None
    }
}

pub(crate) fn is_leaf(shift: u32, entry: u64) -> bool {
    match shift {
        12 => true,
        21 | 30 => entry & 0x80 != 0,
        _ => false,
    }
}

impl TableMem for Tables {
    fn allocate(&mut self) -> Option<Frame> {
        panic!("a shadow lives in its own frames")
    }
    fn free(&mut self, _table: Frame) {
        panic!("a shadow keeps its frames")
    }
    fn read(&self, table: Frame, index: usize) -> u64 {
        self.table(table.base())[index]
    }
    fn write(&mut self, table: Frame, index: usize, raw: u64) {
        self.0[number((table.base() - TABLES) / PAGE)][index] = raw;
    }
}

/// The host: its memory, and what it may reach; everything except where `rules` say otherwise.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    pub(crate) words: RefCell<BTreeMap<u64, u64>>,
    pub(crate) rules: Vec<(Span, Permission)>,
    /// What another processor stores just before flags are set next.
    pub(crate) rival: Cell<Option<(u64, u64)>>,
}

impl Machine {
    pub(crate) fn new(rules: Vec<(Span, Permission)>) -> Self {
        Self { words: RefCell::default(), rules, rival: Cell::new(None) }
    }

    pub(crate) fn store(&self, address: u64, raw: u64) {
        let _ = self.words.borrow_mut().insert(address, raw);
    }

    pub(crate) fn load(&self, address: u64) -> Option<u64> {
        let word = || self.words.borrow().get(&address).copied().unwrap_or(0);
        (address < RAM_END).then(word)
    }

    /// What the host may do with the page that holds `address`.
    pub(crate) fn page(&self, address: u64) -> Permission {
        let rule = self.rules.iter().find(|(span, _)| span.contains(address));
        rule.map_or(Permission::All, |(_, permission)| *permission)
    }

    /// Whether every page of `block` is like its first one: something could only change where a
    /// rule begins or ends.
    pub(crate) fn uniform(&self, block: Span) -> bool {
        let edges = self.rules.iter().flat_map(|(span, _)| [span.start(), span.end()]);
        let first = self.page(block.start());
        edges.filter(|edge| block.contains(*edge)).all(|edge| self.page(edge) == first)
    }
}

impl Host for Machine {
    fn read(&self, address: u64) -> Option<u64> {
        assert_eq!(address % 8, 0);
        self.load(address)
    }

    fn set_bits(&self, address: u64, expected: u64, bits: u64) -> bool {
        assert_ne!(expected & bits, bits, "a locked operation for nothing");
        if let Some((at, raw)) = self.rival.take() {
            self.store(at, raw);
        }
        let same = self.load(address) == Some(expected);
        if same {
            self.store(address, expected | bits);
        }
        same
    }

    fn permitted(&self, block: Span) -> Permission {
        assert!([12, 21, 30].iter().any(|size| block.len() == 1 << size));
        assert_eq!(block.start() % block.len(), 0);
        if self.uniform(block) { self.page(block.start()) } else { Permission::Mixed }
    }
}
