//! What a unit remembers: contexts, paging structures, translations, interrupts.

use std::collections::HashMap;

use super::memory::Ram;

/// What a device tries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Try {
    Read,
    Write,
}

/// A kind of invalidation that a unit does not carry out, though it says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flaw {
    Contexts,
    Pasids,
    Translations,
    Structures,
    Interrupts,
}

/// Where a device's tables begin: root, levels, domain.
type Context = (u64, u8, u16);
/// A translation: where the page begins, whether it is writable; none if absence is remembered.
type Page = Option<(u64, bool)>;

#[derive(Default)]
pub(crate) struct Caches {
    /// The root table and the interrupt table in use, as their registers were.
    pub(crate) root: u64,
    pub(crate) interrupts: u64,
    pub(crate) flaw: Option<Flaw>,
    /// Leaves that were found without the bit that has devices look into the caches.
    pub(crate) unsnooped: u32,
    /// Whether the root table is looked at when it is set.
    pub(crate) checks_root: bool,
    contexts: HashMap<u16, Context>,
    /// PASID-table entries by their directory.
    pasids: HashMap<u64, Context>,
    /// By domain, bits that the page has, first address.
    pages: HashMap<(u16, u32, u64), Page>,
    /// The same, of what tables translate.
    tables: HashMap<(u16, u32, u64), u64>,
    entries: HashMap<u64, [u64; 2]>,
}

const NONE: u64 = 0;

impl Caches {
    pub(crate) fn mode(&self) -> u64 {
        self.root >> 10 & 3
    }

    /// Where `source` arrives at `address`, or the fault reason.
    pub(crate) fn translate(
        &mut self,
        ram: &Ram,
        unit: (u64, u64),
        (source, address): (u16, u64),
        access: Try,
    ) -> Result<u64, u8> {
        let (root, levels, domain) = self.context(ram, source)?;
        assert_ne!(unit.0 >> 8 & 1 << (levels - 2), 0, "so many levels");
        let width =
            (12 + 9 * u32::from(levels)).min(u32::try_from(unit.0 >> 16 & 0x3f).unwrap() + 1);
        if address >> width != 0 {
            return Err(4);
        }
        let remembered = [12, 21, 30].into_iter().find_map(|bits| {
            let page = self.pages.get(&(domain, bits, address >> bits))?;
            Some((bits, *page))
        });
        let (bits, page) = remembered.unwrap_or_else(|| {
            let (bits, page) = self.walk(ram, unit, (root, levels, domain), address);
            if page.is_some() || unit.0 >> 7 & 1 != 0 {
                let _ = self.pages.insert((domain, bits, address >> bits), page);
            }
            (bits, page)
        });
        match page {
            Some((_, false)) if access == Try::Write => Err(5),
            Some((base, _)) => Ok(base + address % (1 << bits)),
            None => Err(if access == Try::Write { 5 } else { 6 }),
        }
    }

    fn walk(
        &mut self,
        ram: &Ram,
        (cap, ecap): (u64, u64),
        context: Context,
        address: u64,
    ) -> (u32, Page) {
        let (root, levels, domain) = context;
        let mut bits = 12 + 9 * (u32::from(levels) - 1);
        let mut table = root;
        // From the lowest table that it remembers.
        for below in [12, 21, 30] {
            if below < bits
                && let Some(known) = self.tables.get(&(domain, below, address >> (below + 9)))
            {
                (table, bits) = (*known, below);
                break;
            }
        }
        loop {
            let index = usize::try_from(address >> bits & 511).unwrap();
            let raw = ram.table_word(table, index);
            let base = raw & 0xf_ffff_ffff_f000;
            if raw & 3 == NONE {
                return (12, None);
            }
            let leaf = bits == 12 || raw & 0x80 != 0;
            // Only a unit with snoop control has its bit, and only in leaves.
            let snoop = if leaf { (ecap >> 7 & 1) << 11 } else { 0 };
            let known = 0xf_ffff_ffff_f000 | 0x83 | snoop;
            assert_eq!(raw & !known, 0, "a reserved or unused bit");
            if leaf {
                self.unsnooped += u32::from(raw & 1 << 11 == 0);
                assert!(bits == 12 || cap >> 34 & 1 << ((bits - 21) / 9) != 0, "no such leaf");
                assert_eq!(base % (1 << bits), 0, "a leaf that is not aligned");
                return (bits, Some((base, raw & 2 != 0)));
            }
            (table, bits) = (base, bits - 9);
            let _ = self.tables.insert((domain, bits, address >> (bits + 9)), table);
        }
    }

    fn context(&mut self, ram: &Ram, source: u16) -> Result<Context, u8> {
        if let Some(context) = self.contexts.get(&source) {
            return Ok(*context);
        }
        let root = self.root & !0xfff;
        let (bus, function) = (usize::from(source >> 8), usize::from(source & 0xff));
        let word = |table: u64, index| ram.table_word(table & !0xfff, index);
        let (entry, index) = match self.mode() {
            0 => (word(root, bus * 2), function * 2),
            1 => (word(root, bus * 2 + function / 128), function % 128 * 4),
            mode => panic!("mode {mode}"),
        };
        if entry & 1 == 0 {
            return Err(1);
        }
        let (low, high) = (word(entry, index), word(entry, index + 1));
        if low & 1 == 0 {
            return Err(2);
        }
        let levels = |width: u64| u8::try_from(width + 2).unwrap();
        let context = if self.mode() == 0 {
            assert_eq!((low & 0xffe, high & !0xff_ff07), (0, 0), "translation type 0");
            (low & !0xfff, levels(high & 7), u16::try_from(high >> 8).unwrap())
        } else if let Some(context) = self.pasids.get(&(low & !0xfff)) {
            *context
        } else {
            assert_eq!((low & 0xffe, high), (0, 0), "no device TLB, PASID, page requests");
            let directory = word(low, 0);
            assert_eq!(directory & 0xfff, 1);
            let (first, second) = (word(directory, 0), word(directory, 1));
            assert_eq!(first & 0x1c3, 1 | 2 << 6, "second-stage translation");
            let width = levels(first >> 2 & 7);
            let context = (first & !0xfff, width, u16::try_from(second & 0xffff).unwrap());
            let _ = self.pasids.insert(low & !0xfff, context);
            context
        };
        assert_ne!(context.2, 0, "domain 0 is reserved");
        let _ = self.contexts.insert(source, context);
        Ok(context)
    }

    /// The entry of interrupt `index`, if `source` may raise it.
    pub(crate) fn interrupt(&mut self, ram: &Ram, source: u16, index: u64) -> Result<[u64; 2], u8> {
        if index >= 2 << (self.interrupts & 0xf) {
            return Err(0x21);
        }
        let word = |word| {
            let at = usize::try_from(index * 2 + word).unwrap();
            ram.table_word(self.interrupts & !0xfff, at)
        };
        let entry = *self.entries.entry(index).or_insert_with(|| [word(0), word(1)]);
        if entry[0] & 1 == 0 {
            // Absence is not remembered.
            let _ = self.entries.remove(&index);
            return Err(0x22);
        }
        assert_eq!(entry[1] >> 18, 1, "all of the source is checked");
        if entry[1] & 0x3_ffff == u64::from(source) { Ok(entry) } else { Err(0x26) }
    }

    /// Carries out a descriptor; whether it is a good one.
    pub(crate) fn forget(&mut self, [low, high]: [u64; 2], (cap, wide): (u64, u64)) -> bool {
        let does = |flaw| self.flaw != Some(flaw);
        let (contexts, pasids) = (does(Flaw::Contexts), does(Flaw::Pasids));
        let (pages, tables) = (does(Flaw::Translations), does(Flaw::Structures));
        let entries = does(Flaw::Interrupts);
        let granularity = low >> 4 & 3;
        match (low & 0xf, granularity) {
            (1, 1) if contexts => self.contexts.clear(),
            (2, 1..=3) => {
                assert_eq!(low >> 6 & 3, (cap >> 54 & 3), "it drains");
                let (order, base) = (high & 0x3f, high & !0xfff);
                if granularity == 3 && (cap >> 39 & 1 == 0 || order > cap >> 48 & 0x3f) {
                    return false;
                }
                let bytes = 0x1000_u64 << order;
                let block = base / bytes * bytes..base / bytes * bytes + bytes;
                let domain = u16::try_from(low >> 16 & 0xffff).unwrap();
                let mine = |of: u16| granularity == 1 || of == domain;
                // A larger page than the block may stay.
                let within = |bits: u32, at: u64| {
                    granularity != 3 || (block.start <= at << bits && (at + 1) << bits <= block.end)
                };
                let touches =
                    |bits: u32, at: u64| at << bits < block.end && block.start < (at + 1) << bits;
                if pages {
                    self.pages.retain(|(of, bits, at), _| !(mine(*of) && within(*bits, *at)));
                }
                if tables {
                    let apart = |bits, at| granularity == 3 && !touches(bits, at);
                    self.tables.retain(|(of, bits, at), _| !mine(*of) || apart(bits + 9, *at));
                }
            }
            (4, 0 | 2) if entries => self.entries.clear(),
            (4, 1 | 3) if entries => {
                let _ = self.entries.remove(&(low >> 32 & 0xffff));
            }
            (7, 3) if wide != 0 && pasids => self.pasids.clear(),
            (1, 1) | (4, _) => {}
            (7, 3) if wide != 0 => {}
            _ => return false,
        }
        true
    }
}
