//! A machine whose processors remember everything that they may, and a naive notion of what must
//! hold all the time while a host plays on it.

use std::collections::{BTreeMap, BTreeSet};

use ept::addr::{Frame, PAGE, Span};
use ept::direct::{Generation, HostMemory};
use ept::ept01::{Flushed, TableMem, Tlb};
use ept::frames::FrameTable;

use crate::fake::Fake;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
pub(crate) const WIDTH: u8 = 36;
pub(crate) const END: u64 = 32 * GIB;
/// Pages that the host uses as tables, for each level some. They share large pages with each other,
/// with data, with holes.
pub(crate) const TABLES: [[u64; 4]; 4] = [
    [0, PAGE, 4 * MIB, GIB],
    [2 * PAGE, 2 * MIB, 4 * MIB + PAGE, GIB + PAGE],
    [2 * MIB - PAGE, 2 * MIB + PAGE, 4 * MIB + 2 * PAGE, GIB + 2 * MIB - PAGE],
    [3 * PAGE, 3 * MIB, 4 * MIB + 3 * PAGE, GIB + 2 * PAGE],
];
/// Pages of each size that it may give to VMs, holes among them, by the level of their leaves.
pub(crate) const GOOD: [&[u64]; 4] = [
    &[],
    &[2 * GIB],
    &[8 * MIB, GIB + 2 * MIB, GIB + 4 * MIB, 3 * GIB + 2 * MIB],
    &[8 * PAGE, 4 * MIB + 8 * PAGE, GIB + 2 * MIB, 2 * MIB + 512 * KIB, 3 * GIB],
];
/// Such that have something of the visor's, denied memory, perhaps tables, or are beyond EPT01.
pub(crate) const BAD: [u64; 12] = [
    0,
    2 * MIB,
    4 * MIB,
    6 * MIB,
    8 * MIB - PAGE,
    2 * PAGE,
    GIB,
    GIB + PAGE,
    3 * GIB,
    3 * GIB + PAGE,
    END,
    END - PAGE,
];
/// Entries of a table that the host uses.
pub(crate) const USED: [usize; 4] = [0, 1, 2, 511];
/// What the visor has.
pub(crate) const VISOR: (u64, u64) = (6 * MIB, 8 * MIB);
/// What of it is for views.
pub(crate) const VIEWS: (u64, u64) = (6 * MIB + 16 * PAGE, 6 * MIB + 20 * PAGE);
/// What is denied, in part of a page.
pub(crate) const DENIED: (u64, u64) = (3 * GIB + PAGE + 8, 3 * GIB + PAGE + 16);
/// Accessed and dirty.
pub(crate) const FLAGS: u64 = 0x300;

pub(crate) fn span(bounds: (u64, u64)) -> Span {
    Span::new(bounds.0, bounds.1).unwrap()
}

pub(crate) fn ram() -> [Span; 4] {
    let ram =
        [(0, 2 * MIB + 64 * KIB), (3 * MIB, 5 * MIB), (5 * MIB, 8 * MIB), (GIB, GIB + 3 * MIB)];
    ram.map(span)
}

/// Pages that the host may give to protected VMs besides, and some that it may not.
pub(crate) const PRIVATE: [u64; 8] = [
    8 * PAGE,
    4 * MIB + 8 * PAGE,
    GIB + 2 * MIB,
    GIB + 3 * MIB - PAGE,
    2 * MIB + 64 * KIB - PAGE,
    6 * MIB - PAGE,
    6 * MIB,
    2 * GIB,
];

/// What the processor makes of an entry, written from the manual: where it leads, and whether to a
/// page of `1 << shift` bytes. Reserved bits count as ignored, but for those of addresses.
pub(crate) fn walk(raw: u64, shift: u32) -> Option<(u64, bool)> {
    let address = raw & 0x000f_ffff_ffff_f000;
    let permits = matches!(raw & 7, 1 | 3 | 4 | 5 | 7);
    if !permits || address >> WIDTH != 0 {
        return None;
    }
    let leaf = shift == 12 || shift < 39 && raw & 0x80 != 0;
    Some((if leaf { address >> shift << shift } else { address }, leaf))
}

/// The host's memory, EPT01, and everything that processors may remember of either.
#[derive(Debug)]
pub(crate) struct Board<'w> {
    pub(crate) tables: Fake,
    /// The host's memory where it is not 0.
    pub(crate) cells: BTreeMap<(u64, usize), u64>,
    /// What the host stored there.
    pub(crate) stored: BTreeMap<(u64, usize), u64>,
    /// Pages to which a processor may still write for the host.
    stale: BTreeSet<u64>,
    /// Tables that a processor may walk, with log2 of the bytes of an entry.
    pub(crate) walkable: BTreeSet<(u64, u32)>,
    /// Pages at which it may arrive.
    reachable: BTreeSet<(u64, u64)>,
    /// Roots that processors run VMs with, loaded at a generation.
    pub(crate) running: BTreeMap<u64, u64>,
    /// The same for protected VMs: these tables only the visor walks.
    pub(crate) guarded: BTreeMap<u64, u64>,
    /// Pages that protected VMs have.
    pub(crate) private: BTreeSet<u64>,
    /// What the host sees instead of some of them.
    pub(crate) views: BTreeMap<u64, u64>,
    pub(crate) generation: &'w Generation,
    /// Decides what happens between any two steps of the visor's.
    pub(crate) luck: u64,
    /// Stores that somebody made in a race with the visor.
    pub(crate) races: usize,
    pub(crate) flushes: usize,
    /// Flags that a processor sets just before the next exchange.
    pub(crate) flag_next: u64,
}

impl<'w> Board<'w> {
    pub(crate) fn new(generation: &'w Generation, luck: u64) -> Self {
        let mut tables = Fake::new(64);
        tables.secret = [VISOR.0, VISOR.1 - PAGE, DENIED.0].to_vec();
        Self {
            tables,
            cells: BTreeMap::new(),
            stored: BTreeMap::new(),
            stale: BTreeSet::new(),
            walkable: BTreeSet::new(),
            reachable: BTreeSet::new(),
            running: BTreeMap::new(),
            guarded: BTreeMap::new(),
            private: BTreeSet::new(),
            views: BTreeMap::new(),
            generation,
            luck,
            races: 0,
            flushes: 0,
            flag_next: 0,
        }
    }

    pub(crate) fn cell(&self, at: (u64, usize)) -> u64 {
        self.cells.get(&at).copied().unwrap_or(0)
    }

    pub(crate) fn stored(&self, at: (u64, usize)) -> u64 {
        self.stored.get(&at).copied().unwrap_or(0)
    }

    pub(crate) fn may_write_now(&self, page: u64) -> bool {
        self.tables.hardware_walk(page).is_some_and(|(to, bits)| to == page && bits & 2 != 0)
    }

    /// The host stores to a page of its own.
    pub(crate) fn store(&mut self, at: (u64, usize), value: u64) {
        let _ = self.stored.insert(at, value);
        let _ = self.cells.insert(at, value);
        self.observe();
    }

    /// No processor uses `root` any more.
    pub(crate) fn stop(&mut self, root: u64) {
        let _ = self.running.remove(&root);
    }

    /// What is at these places is what the host stored.
    pub(crate) fn keep(&mut self, places: &[(u64, usize)]) {
        for at in places {
            let _ = self.stored.insert(*at, self.cell(*at));
        }
    }

    /// Without luck, which is 0, never.
    fn chance(&mut self, one_in: u64) -> bool {
        self.luck ^= self.luck << 13;
        self.luck ^= self.luck >> 7;
        self.luck ^= self.luck << 17;
        self.luck != 0 && (self.luck >> 32).is_multiple_of(one_in)
    }

    /// Perhaps another processor of the host stores to a table at this very moment.
    fn race(&mut self) {
        if !self.chance(16) {
            return;
        }
        let luck = self.luck >> 8;
        let page = page(luck);
        if self.may_write_now(page) || self.stale.contains(&page) {
            self.races += 1;
            self.store((page, pick(&USED, luck >> 8)), value(luck >> 16, level_of(page)));
        }
    }

    /// The processors walk everywhere they can, and what they find must be right.
    pub(crate) fn observe(&mut self) {
        let mut todo: Vec<_> = self.walkable.iter().copied().collect();
        todo.extend(self.running.keys().map(|root| (*root, 39)));
        while let Some((table, shift)) = todo.pop() {
            let _ = self.walkable.insert((table, shift));
            for index in USED {
                match walk(self.cell((table, index)), shift) {
                    Some((page, true)) => {
                        let _ = self.reachable.insert((page, 1 << shift));
                    }
                    Some((table, false)) if !self.walkable.contains(&(table, shift - 9)) => {
                        todo.push((table, shift - 9));
                    }
                    Some(_) | None => {}
                }
            }
        }
        self.check();
    }

    /// What the processors have found is right.
    fn check(&self) {
        self.check_guarded();
        self.check_private();
        for (start, len) in &self.reachable {
            let page = Span::sized(*start, *len).unwrap();
            let private = self.private.iter().find(|private| page.contains(**private));
            assert_eq!(private, None, "{page} is private");
            assert!(!page.overlaps(span(VISOR)), "{page} has memory of the visor's");
            assert!(!page.overlaps(span(DENIED)), "{page} has denied memory");
            let table = self.walkable.iter().find(|(table, _)| page.contains(*table));
            assert_eq!(table, None, "{page} has a table");
        }
        for (table, shift) in &self.walkable {
            assert!(ram().iter().any(|ram| ram.contains(*table)), "{table:#x} is not RAM");
            assert!(!span(VISOR).contains(*table), "{table:#x} is the visor's");
            self.check_table(*table);
            let other = self.walkable.range((*table, 0)..(*table, *shift)).next();
            assert_eq!(other, None, "{table:#x} is a table of two levels");
        }
    }

    /// The host does not reach private pages, and elsewhere sees no view.
    fn check_private(&self) {
        for page in &self.private {
            let there = self.tables.hardware_walk(*page).map(|(to, _)| to);
            assert_ne!(there, Some(*page), "the host can reach the private page {page:#x}");
            let viewed = self.views.contains_key(page);
            assert!(viewed || !self.tables.is_stale(*page), "the host can still reach {page:#x}");
        }
        for page in TABLES.iter().flatten().chain(&PRIVATE) {
            let there = self.tables.hardware_walk(*page).map_or(*page, |(to, _)| to);
            let view = self.views.get(page).copied();
            assert!(there == *page || Some(there) == view, "{page:#x} leads to {there:#x}");
        }
    }

    /// The host's stores to a table come to the visor.
    fn check_table(&self, table: u64) {
        let may_write = self.may_write_now(table) || self.stale.contains(&table);
        assert!(!may_write, "the host can write to the table at {table:#x}");
        assert!(!self.private.contains(&table), "the table at {table:#x} is private");
    }

    /// That holds for the tables of protected VMs too, and no processor walks them.
    fn check_guarded(&self) {
        let mut seen = BTreeMap::new();
        let mut todo: Vec<_> = self.guarded.keys().map(|root| (*root, 39)).collect();
        while let Some((table, shift)) = todo.pop() {
            let other = seen.insert(table, shift);
            assert!(other.is_none_or(|other| other == shift), "{table:#x} has two levels");
            if other.is_some() {
                continue;
            }
            self.check_table(table);
            let walked = self.walkable.range((table, 0)..=(table, 39)).next();
            assert_eq!(walked, None, "processors walk the guarded table at {table:#x}");
            let links = USED.map(|index| walk(self.cell((table, index)), shift));
            let links = links.into_iter().flatten().filter(|(_, leaf)| !leaf);
            todo.extend(links.map(|(table, _)| (table, shift - 9)));
        }
    }
}

impl TableMem for Board<'_> {
    fn allocate(&mut self) -> Option<Frame> {
        self.tables.allocate()
    }

    fn free(&mut self, frame: Frame) {
        self.tables.free(frame);
    }

    fn read(&self, table: Frame, index: usize) -> u64 {
        self.tables.read(table, index)
    }

    fn write(&mut self, table: Frame, index: usize, raw: u64) {
        let block = self.tables.block_of(Fake::number(table.base()), index);
        let inside = |page: &&u64| block.is_some_and(|block| block.contains(**page));
        let pages = TABLES.iter().flatten().filter(inside).copied();
        let could: Vec<u64> = pages.filter(|page| self.may_write_now(*page)).collect();
        self.tables.write(table, index, raw);
        self.stale.extend(could);
        self.race();
    }
}

impl HostMemory for Board<'_> {
    fn entry(&self, table: Frame, index: usize) -> u64 {
        self.cell((table.base(), index))
    }

    fn exchange(&mut self, table: Frame, index: usize, old: u64, new: u64) -> bool {
        let at = (table.base(), index);
        // Processors set flags only where they walk.
        let walked = self.walkable.range((at.0, 0)..=(at.0, 39)).next().is_some();
        if walked && self.cell(at) & 7 != 0 && (self.flag_next != 0 || self.chance(8)) {
            let flags = std::mem::take(&mut self.flag_next) | self.luck >> 8 & FLAGS;
            self.races += usize::from(self.cell(at) & flags != flags);
            *self.cells.entry(at).or_default() |= flags;
        }
        let same = self.cell(at) == old;
        if same {
            let _ = self.cells.insert(at, new);
            self.observe();
        }
        self.race();
        same
    }
}

impl Tlb for Board<'_> {
    fn flush(&mut self, span: Span) {
        self.race();
        self.flushes += 1;
        self.tables.flush(span);
        self.stale.clear();
        self.walkable.clear();
        self.reachable.clear();
        // Every processor has left its VM, and looks before it enters again.
        let now = self.generation.current();
        self.running.retain(|_, loaded| *loaded == now);
        self.guarded.retain(|_, loaded| *loaded == now);
        self.observe();
    }

    fn revise_devices(&mut self, _: &FrameTable<'_>, _: Span) -> Span {
        Span::EMPTY
    }

    fn complete_devices(&mut self, _: &FrameTable<'_>, _: Span, _: &Flushed) {}
}

pub(crate) fn pick<T: Copy>(from: &[T], number: u64) -> T {
    from[usize::try_from(number % 64).unwrap() % from.len()]
}

/// A page that the host uses as a table.
pub(crate) fn page(number: u64) -> u64 {
    pick(&pick(&TABLES, number), number >> 2)
}

/// A value for an entry of a table that the host has for `level`, mostly one that makes sense.
pub(crate) fn value(number: u64, level: usize) -> u64 {
    let (kind, number) = (number % 64, number >> 6);
    let flags = number >> 8 & FLAGS;
    let rights = pick(&[7, 7, 7, 1, 3, 5, 4], number >> 16);
    match (kind, TABLES.get(level + 1), GOOD[level]) {
        (0..=29, Some(below), _) => pick(below, number) | 7 | flags,
        (0..=44, _, [_, ..]) => pick(GOOD[level], number) | rights | 0xb0 | flags,
        (57, ..) => page(number) | 1 << (36 + number % 16) | 7,
        (58, ..) => 0x5a0,
        (59, ..) => page(number) | rights | flags,
        (60, ..) => pick(&BAD, number) | rights | number >> 20 & 0x80 | flags,
        (61, ..) => pick(&BAD, number) | rights | number >> 20 & 0xff8,
        (62, ..) => pick(&BAD, number) | 0x86,
        (63, ..) => number,
        _ => 0,
    }
}

/// The level for which the host has `page`.
pub(crate) fn level_of(page: u64) -> usize {
    TABLES.iter().position(|tables| tables.contains(&page)).unwrap()
}

/// The bytes of an entry that an instruction stores to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part {
    pub(crate) offset: u64,
    pub(crate) bytes: u8,
}

impl Part {
    pub(crate) const WHOLE: Self = Self { offset: 0, bytes: 8 };

    pub(crate) fn mask(self) -> u64 {
        if self.bytes == 8 { u64::MAX } else { (1 << (8 * self.bytes)) - 1 }
    }

    pub(crate) fn of(self, entry: u64) -> u64 {
        entry >> (8 * self.offset) & self.mask()
    }

    pub(crate) fn set(self, entry: u64, value: u64) -> u64 {
        let shift = 8 * self.offset;
        entry & !(self.mask() << shift) | (value & self.mask()) << shift
    }
}
