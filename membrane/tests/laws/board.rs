//! A machine whose processors remember everything that they may, and which judges whatever the visor
//! does while it does it.

use std::collections::{BTreeMap, BTreeSet};

use ept::addr::{Frame, PAGE, Span};
use ept::direct::HostMemory;
use ept::ept01::{Flushed, TableMem, Tlb};
use ept::frames::FrameTable;
use membrane::Pages;

pub(crate) type Page = [u8; 4096];

const MIB: u64 = 1 << 20;
/// Where the visor's own frames lie: outside of everything that anybody else may reach.
const POOL: u64 = 1 << 46;
/// The host's RAM.
pub(crate) const RAM: [(u64, u64); 2] = [(0, MIB), (2 * MIB, 6 * MIB)];
/// The visor's frames for views.
pub(crate) const VIEWS: (u64, u64) = (1 << 45, (1 << 45) + 3 * PAGE);
/// How much of it is looked at: small, so that looking at all of it is quick.
pub(crate) const SMALL: u64 = 64 * PAGE;
/// Begins each 16 bytes that a VM stores in private memory.
const SECRET: [u8; 8] = *b"private!";

/// A page that a VM stores in private memory: no two are equal.
pub(crate) fn secret(number: u64) -> Page {
    let mut page = [0; 4096];
    for chunk in page.chunks_exact_mut(16) {
        chunk[..8].copy_from_slice(&SECRET);
        chunk[8..].copy_from_slice(&number.to_le_bytes());
    }
    page
}

/// Whether there is anything in it that a VM stored in private memory.
pub(crate) fn has_secret(page: &Page) -> bool {
    page.chunks_exact(16).any(|chunk| chunk[..8] == SECRET)
}

/// Where pages lead, and bits 2:0 of what they permit there.
pub(crate) type Reach = BTreeMap<(u64, u64), u64>;

/// Memory, and everything that processors may remember of tables.
#[derive(Debug)]
pub(crate) struct Board {
    ram: BTreeMap<u64, Box<Page>>,
    /// Frames of RAM that hold secrets.
    secrets: BTreeSet<u64>,
    tables: Vec<[u64; 512]>,
    /// Whether each of them is in use.
    used: Vec<bool>,
    /// End of the RAM that is looked at.
    pub(crate) seen: u64,
    /// Frames that may still be given.
    pub(crate) left: usize,
    /// Whether VMs should do with what they have.
    pub(crate) scarce: bool,
    /// EPTP of EPT01.
    pub(crate) host: u64,
    /// EPTPs of VMs that may run, and the pages that they use.
    pub(crate) guests: Vec<(u64, Vec<u64>)>,
    /// Where the host may arrive, by what a processor remembers.
    host_tlb: Reach,
    /// The same of each VM, by its EPTP and page.
    guest_tlb: BTreeMap<u64, Reach>,
    /// Tables that processors may walk for a VM, and at which page they begin.
    walked: BTreeMap<u64, u64>,
    /// Tables of all, as they were remembered; whether more may have come to be reached since; and for
    /// how many VMs and how much RAM that was.
    known: BTreeSet<u64>,
    more: bool,
    scope: (usize, u64),
    pub(crate) flushes: usize,
    /// How often the visor has worked on a page.
    pub(crate) worked: usize,
}

fn number(table: u64) -> usize {
    usize::try_from((table - POOL) / PAGE).unwrap()
}

fn place(index: usize) -> std::ops::Range<usize> {
    index * 8..index * 8 + 8
}

impl Board {
    pub(crate) fn new(left: usize) -> Self {
        Self {
            ram: BTreeMap::new(),
            secrets: BTreeSet::new(),
            tables: Vec::new(),
            used: Vec::new(),
            seen: SMALL,
            left,
            scarce: false,
            host: 0,
            guests: Vec::new(),
            host_tlb: BTreeMap::new(),
            guest_tlb: BTreeMap::new(),
            walked: BTreeMap::new(),
            known: BTreeSet::new(),
            more: true,
            scope: (0, 0),
            flushes: 0,
            worked: 0,
        }
    }

    /// Frames of the visor's in use.
    pub(crate) fn used(&self) -> usize {
        self.used.iter().filter(|used| **used).count()
    }

    /// The frames of RAM that are looked at.
    pub(crate) fn frames(&self) -> impl Iterator<Item = u64> + use<> {
        let seen = self.seen / PAGE;
        let all = RAM.into_iter().flat_map(|(start, end)| start / PAGE..end / PAGE);
        all.take_while(move |number| *number < seen).map(|number| number * PAGE)
    }

    fn table(&self, table: u64) -> &[u64; 512] {
        let number = number(table);
        assert!(self.used[number], "a walk through memory that was given back");
        &self.tables[number]
    }

    /// Frames of the visor's that hang from `eptp`.
    pub(crate) fn hanging(&self, eptp: u64) -> usize {
        self.hanging_from(eptp & !0xfff, 39)
    }

    fn hanging_from(&self, table: u64, shift: u32) -> usize {
        let links = self.table(table).iter().filter(|raw| **raw != 0 && shift > 12);
        let below = links.filter(|raw| *raw & 0x80 == 0);
        1 + below
            .map(|raw| self.hanging_from(raw & 0x000f_ffff_ffff_f000, shift - 9))
            .sum::<usize>()
    }

    /// Adds all tables from `table` down to `found`, the first of which translates from `base` on.
    fn walk_all(&self, found: &mut BTreeMap<u64, u64>, (table, base): (u64, u64), shift: u32) {
        let _ = found.insert(table, base);
        let entries = (shift > 12).then(|| *self.table(table)).into_iter().flatten();
        for (base, entry) in (base..).step_by(1 << shift).zip(entries) {
            if entry & 7 != 0 && entry & 0x80 == 0 {
                self.walk_all(found, (entry & 0x000f_ffff_ffff_f000, base), shift - 9);
            }
        }
    }

    pub(crate) fn page(&self, frame: u64) -> Page {
        self.ram.get(&frame).map_or([0; 4096], |page| **page)
    }

    pub(crate) fn set_page(&mut self, frame: u64, page: &Page) {
        let mut all = RAM.iter().chain(&[VIEWS]);
        assert!(all.any(|(start, end)| (*start..*end).contains(&frame)), "no RAM");
        let _ = self.ram.insert(frame, Box::new(*page));
        let _ = self.secrets.remove(&frame);
        if has_secret(page) {
            let _ = self.secrets.insert(frame);
        }
    }

    /// The processor's walk, written from the manual: where `address` leads, and the leaf.
    pub(crate) fn walk(&self, eptp: u64, address: u64) -> Option<(u64, u64)> {
        assert_eq!(eptp & 0xfff, 0x1e, "write-back tables of four levels, without flags");
        let mut table = eptp & !0xfff;
        for shift in [39, 30, 21, 12] {
            let entry = self.table(table)[usize::try_from(address >> shift & 0x1ff).unwrap()];
            if entry & 7 == 0 {
                return None;
            }
            assert_ne!(entry & 3, 2, "writes without reads");
            let base = entry & 0x000f_ffff_ffff_f000;
            if shift == 12 || entry & 0x80 != 0 {
                return Some((base + (address & ((1 << shift) - 1)), entry));
            }
            assert_eq!(entry & 0xfff, 7, "reserved bits in {entry:#x}");
            table = base;
        }
        None
    }

    /// Changes the leaf for `page` of an EPT02, as no visor should.
    pub(crate) fn damage(&mut self, eptp: u64, page: u64, damage: impl Fn(u64) -> u64) {
        let mut table = eptp & !0xfff;
        for shift in [39, 30, 21, 12] {
            let index = usize::try_from(page >> shift & 0x1ff).unwrap();
            let entry = self.table(table)[index];
            if shift == 12 || entry & 0x80 != 0 {
                self.tables[number(table)][index] = damage(entry);
                return;
            }
            table = entry & 0x000f_ffff_ffff_f000;
        }
    }

    /// How many tables processors may walk for VMs.
    pub(crate) fn walks(&self) -> usize {
        self.walked.len()
    }

    /// Whether an EPT02 has `page` in a leaf of 2 MiB.
    pub(crate) fn is_large(&self, eptp: u64, page: u64) -> bool {
        self.walk(eptp, page).is_some_and(|(_, entry)| entry & 0x80 != 0)
    }

    /// The raw leaf for `page` of an EPT02, whatever it permits.
    pub(crate) fn leaf(&self, eptp: u64, page: u64) -> u64 {
        let mut table = eptp & !0xfff;
        for shift in [39, 30, 21] {
            let entry = self.table(table)[usize::try_from(page >> shift & 0x1ff).unwrap()];
            if entry == 0 {
                return 0;
            }
            if entry & 0x80 != 0 {
                return (entry & !0x80) + page % (1 << shift);
            }
            table = entry & 0x000f_ffff_ffff_f000;
        }
        self.table(table)[usize::try_from(page >> 12 & 0x1ff).unwrap()]
    }

    /// Lets every processor remember all that tables say now.
    pub(crate) fn remember(&mut self) {
        let scope = (self.guests.len(), self.seen);
        if !std::mem::take(&mut self.more) && self.scope == scope {
            return;
        }
        self.scope = scope;
        for frame in self.frames() {
            if let Some((to, raw)) = self.walk(self.host, frame) {
                let is_view = (VIEWS.0..VIEWS.1).contains(&to);
                assert!(to == frame || is_view, "EPT01 is the identity but for views");
                *self.host_tlb.entry((frame, to)).or_default() |= raw & 7;
            }
        }
        let mut guest_tlb = std::mem::take(&mut self.guest_tlb);
        for (eptp, pages) in &self.guests {
            let tlb = guest_tlb.entry(*eptp).or_default();
            for page in pages {
                if let Some((to, raw)) = self.walk(*eptp, *page) {
                    *tlb.entry((*page, to)).or_default() |= raw & 7;
                }
            }
        }
        self.guest_tlb = guest_tlb;
        let mut walked = BTreeMap::new();
        for (eptp, _) in &self.guests {
            self.walk_all(&mut walked, (eptp & !0xfff, 0), 39);
        }
        for (table, base) in &walked {
            let before = self.walked.insert(*table, *base);
            assert!(before.is_none_or(|before| before == *base), "remembered at {before:x?}");
        }
        self.walk_all(&mut walked, (self.host & !0xfff, 0), 39);
        self.known = walked.into_keys().collect();
    }

    /// Where the host arrives at `address` and what it may do there, by tables or by what a processor
    /// remembers.
    pub(crate) fn host_finds(&self, address: u64) -> Reach {
        let all = (address, 0)..=(address, u64::MAX);
        let mut there: Reach = self.host_tlb.range(all).map(|(at, may)| (*at, *may)).collect();
        if let Some((to, raw)) = self.walk(self.host, address) {
            *there.entry((address, to)).or_default() |= raw & 7;
        }
        there
    }

    /// What the host may do with `frame`, wherever it finds that.
    pub(crate) fn host_may(&self, frame: u64) -> u64 {
        let is_view = (VIEWS.0..VIEWS.1).contains(&frame);
        let addresses = is_view.then(|| self.frames()).into_iter().flatten();
        let found = addresses.chain([frame]).flat_map(|address| self.host_finds(address));
        found.filter(|((_, to), _)| *to == frame).fold(0, |may, (_, rights)| may | rights)
    }

    /// Where the VM may arrive at `page`, by what a processor remembers, and its rights there.
    pub(crate) fn guest_may(&self, eptp: u64, page: u64) -> Vec<(u64, u64)> {
        let tlb = self.guest_tlb.get(&eptp);
        let there = tlb.into_iter().flatten().filter(|((from, _), _)| *from == page);
        there.map(|((_, to), rights)| (*to, *rights)).collect()
    }

    /// Whether any VM may arrive at `frame`.
    pub(crate) fn any_guest_may(&self, frame: u64) -> bool {
        self.guest_tlb.values().flatten().any(|((_, to), _)| *to == frame)
    }

    /// Asserts that the host reaches nothing that a VM stored in private memory.
    pub(crate) fn check_secrets(&self) {
        for frame in &self.secrets {
            assert_eq!(self.host_may(*frame), 0, "the host can reach a secret at {frame:#x}");
        }
    }
}

impl TableMem for Board {
    fn allocate(&mut self) -> Option<Frame> {
        self.left = self.left.checked_sub(1)?;
        let number = self.used.iter().position(|used| !used).unwrap_or(self.used.len());
        self.used.resize(self.used.len().max(number + 1), false);
        self.tables.resize(self.used.len(), [0; 512]);
        self.used[number] = true;
        self.tables[number] = [0; 512];
        Frame::at(POOL + u64::try_from(number).unwrap() * PAGE)
    }

    fn free(&mut self, frame: Frame) {
        assert!(!self.walked.contains_key(&frame.base()), "given back before the flush");
        let used = std::mem::replace(&mut self.used[number(frame.base())], false);
        assert!(used, "freed and not in use");
        self.left += 1;
    }

    fn read(&self, table: Frame, index: usize) -> u64 {
        self.table(table.base())[index]
    }

    fn write(&mut self, table: Frame, index: usize, raw: u64) {
        self.tables[number(table.base())][index] = raw;
        // What permits nothing lets nobody reach more.
        self.more |= raw & 7 != 0 && self.known.contains(&table.base());
        if self.host != 0 {
            self.check_secrets();
        }
    }
}

impl HostMemory for Board {
    fn entry(&self, table: Frame, index: usize) -> u64 {
        let page = self.ram.get(&table.base());
        page.map_or(0, |page| u64::from_le_bytes(page[place(index)].try_into().unwrap()))
    }

    fn exchange(&mut self, table: Frame, index: usize, old: u64, new: u64) -> bool {
        let same = self.entry(table, index) == old;
        if same {
            let mut page = self.page(table.base());
            page[place(index)].copy_from_slice(&new.to_le_bytes());
            self.set_page(table.base(), &page);
        }
        same
    }
}

impl Tlb for Board {
    fn flush(&mut self, _: Span) {
        self.flushes += 1;
        self.host_tlb.clear();
        self.guest_tlb.clear();
        self.walked.clear();
        self.more = true;
        self.remember();
        self.check_secrets();
    }

    fn revise_devices(&mut self, _: &FrameTable<'_>, _: Span) -> Span {
        Span::EMPTY
    }

    fn complete_devices(&mut self, _: &FrameTable<'_>, _: Span, _: &Flushed) {}
}

/// What the window page holds at `index`.
pub(crate) fn window_word(index: usize, window: u64) -> u64 {
    window | 0x1000_0000_0000 | u64::try_from(index).unwrap()
}

impl Pages for Board {
    fn with_page<T>(&mut self, frame: Frame, work: impl FnOnce(&mut Page) -> T) -> T {
        self.remember();
        let frame = frame.base();
        assert_eq!(self.host_may(frame), 0, "the host can reach {frame:#x} while it is worked on");
        assert!(!self.any_guest_may(frame), "a VM can reach {frame:#x} while it is worked on");
        self.worked += 1;
        let mut page = self.page(frame);
        let result = work(&mut page);
        self.set_page(frame, &page);
        result
    }

    fn window_word(index: usize, window: u64) -> u64 {
        window_word(index, window)
    }

    fn copy(&mut self, from: Frame, to: Frame) {
        self.remember();
        let (from, to) = (from.base(), to.base());
        assert_eq!((self.host_may(from), self.host_may(to)), (0, 0), "the host can reach a copy");
        assert!(!self.any_guest_may(to), "a VM can reach {to:#x}");
        let mut writers = self.guest_tlb.values().flatten();
        let writes = writers.any(|((_, at), rights)| *at == from && rights & 2 != 0);
        assert!(!writes, "a VM can write to {from:#x} while it is copied");
        let page = self.page(from);
        self.set_page(to, &page);
    }

    fn may_spend(&self) -> bool {
        !self.scarce
    }

    fn cpu(&self) -> u32 {
        3
    }
}
