//! A host that stores whatever it likes into its tables, and what must come of it.
//!
//! What the host does comes from a list of numbers, so that chance and a fuzzer can play it.

use std::collections::BTreeMap;

use ept::addr::{Frame, PAGE, Span};
use ept::direct::{Direct, Generation, Machine, Refused};
use ept::entry::Level;
use ept::ept01::{Ept01, Rules};
use ept::frames::{Event, FrameTable, State};
use ept::mtrr::Mtrrs;

use crate::board::{
    BAD, Board, DENIED, END, FLAGS, GOOD, TABLES, USED, VISOR, WIDTH, level_of, page, pick, ram,
    span, value, walk,
};

/// What a store did to its operand, in a table of this level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Written {
    pub(crate) old: u64,
    pub(crate) new: u64,
    pub(crate) level: Level,
}

/// A world in which a host plays.
#[derive(Debug)]
pub(crate) struct World<'w> {
    pub(crate) frames: FrameTable<'w>,
    mtrrs: Mtrrs,
    denied: [Span; 1],
    ept: Ept01,
    pub(crate) direct: Direct<'w, 3>,
    pub(crate) board: Board<'w>,
    /// EPT01 as it was: its tables, and the level of the leaf for each page of interest.
    before: (usize, Vec<Option<Level>>),
}

impl<'w> World<'w> {
    #[expect(clippy::large_stack_frames, reason = "a test has stack enough")]
    pub(crate) fn new(mut frames: FrameTable<'w>, board: Board<'w>) -> Self {
        frames.apply(span(VISOR), Event::Claim).unwrap();
        let mtrrs = Mtrrs::read(WIDTH, |index| if index == 0x2ff { 1 << 11 | 6 } else { 0 });
        let denied = [span(DENIED)];
        let mut board = board;
        let rules = Rules { frames: &frames, mtrrs: &mtrrs, denied: &denied };
        let ept = Ept01::build(&mut board, &rules, END).unwrap();
        board.tables.live = true;
        let direct = Direct::new(board.generation);
        let mut world = Self { frames, mtrrs, denied, ept, direct, board, before: (0, Vec::new()) };
        world.before = world.shape();
        world
    }

    pub(crate) fn parts(&mut self) -> (Machine<'_, 'w, Board<'w>>, &mut Direct<'w, 3>) {
        let Self { frames, mtrrs, denied, ept, direct, board, .. } = self;
        let machine = Machine { frames, mtrrs, denied, ept: *ept, width: WIDTH, hardware: board };
        (machine, direct)
    }

    /// EPT01's tables, and its leaves.
    pub(crate) fn shape(&self) -> (usize, Vec<Option<Level>>) {
        let pages = TABLES.concat().into_iter().chain(BAD).chain(GOOD.concat());
        let level = |page| self.ept.walk(&self.board, page).map(|(_, level)| level);
        (self.board.tables.used(), pages.map(level).collect())
    }

    pub(crate) fn state(&self, page: u64) -> Option<State> {
        self.frames.state(Frame::containing(page))
    }

    pub(crate) fn load(&mut self, root: u64) -> Result<u64, Refused> {
        let running: Vec<u64> = self.board.running.keys().copied().collect();
        let (mut machine, direct) = self.parts();
        let root = Frame::containing(root);
        let loaded = direct.load(&mut machine, root, |root| running.contains(&root.base()))?;
        let _ = self.board.running.insert(root.base(), loaded);
        self.board.observe();
        Ok(loaded)
    }

    pub(crate) fn release(&mut self, root: u64) {
        let (mut machine, direct) = self.parts();
        direct.release(&mut machine, Frame::containing(root));
        assert!(!self.board.running.contains_key(&root), "a VM runs on");
    }

    pub(crate) fn release_empty(&mut self, address: u64) {
        let (mut machine, direct) = self.parts();
        direct.release_empty(&mut machine, address);
    }

    pub(crate) fn demote(&mut self, table: u64) {
        let (mut machine, direct) = self.parts();
        direct.demote(&mut machine, Frame::containing(table));
    }

    pub(crate) fn write(
        &mut self,
        address: u64,
        bytes: u8,
        change: impl Fn(u64) -> u64,
    ) -> Result<Written, Refused> {
        let mut last = (0, 0);
        let change = |old| {
            last = (old, change(old));
            last.1
        };
        let level = self.parts().0.write(address, bytes, change)?;
        Ok(Written { old: last.0, new: last.1 & u64::MAX >> (64 - 8 * bytes), level })
    }

    /// The host stores to entry `at` by an instruction that computes `change`, of `bytes` bytes at
    /// an offset. What the visor refuses to do for it, it does itself after a demotion.
    pub(crate) fn host_store(&mut self, at: (u64, usize), part: Part, change: impl Fn(u64) -> u64) {
        if self.board.may_write_now(at.0) {
            let entry = self.board.cell(at);
            return self.board.store(at, part.set(entry, change(part.of(entry))));
        }
        let stored = self.board.stored(at);
        let before = (self.board.races, self.board.flushes, self.board.cell(at));
        let expected = part.set(before.2, change(part.of(before.2)));
        let Some(State::Table { level, .. }) = self.state(at.0) else { panic!("{at:x?} traps") };
        let shift = level.bytes().ilog2();
        let same = walk(before.2, shift) == walk(expected, shift);
        let pages_only = [before.2, expected].iter().all(|e| walk(*e, shift).is_none_or(|w| w.1));
        let fits = same || self.fits(Some((expected, shift)));
        let index = u64::try_from(at.1).unwrap();
        let result = self.write(at.0 + 8 * index + part.offset, part.bytes, &change);
        let undisturbed = self.board.races == before.0;
        if undisturbed {
            assert_eq!(result.is_ok(), fits, "{before:x?} {expected:#x}: {result:x?}");
            let flushes = self.board.flushes - before.1;
            assert!(flushes <= if pages_only { 0 } else { 4 }, "{flushes} flushes");
        }
        match result {
            Ok(done) => {
                assert_eq!((done.old ^ part.of(stored)) & !(FLAGS >> (8 * part.offset)), 0);
                assert_eq!(done.new, change(done.old) & part.mask());
                let _ = self.board.stored.insert(at, part.set(stored, done.new));
                assert_eq!(done.level, level);
                if level == Level::Pml4 {
                    self.release_empty(at.0);
                }
            }
            Err(Refused::Frame(_) | Refused::Denied(_)) => {
                self.demote(at.0);
                assert!(self.board.may_write_now(at.0), "demoted and still read-only");
                self.host_store(at, part, change);
            }
            Err(refused) => panic!("{refused} at {at:x?}"),
        }
    }

    /// Whether `root` leads to `page`.
    fn leads_to(&self, root: u64, page: u64) -> bool {
        let mut tables = BTreeMap::new();
        let _ = self.collect((root, 39), &mut tables, &mut Vec::new());
        tables.contains_key(&page)
    }

    /// Collects all that hangs from `table`; `false` if a table has two levels.
    fn collect(
        &self,
        (table, shift): (u64, u32),
        tables: &mut BTreeMap<u64, u32>,
        leaves: &mut Vec<Span>,
    ) -> bool {
        if let Some(other) = tables.insert(table, shift) {
            return other == shift;
        }
        USED.iter()
            .all(|index| self.follow(self.board.cell((table, *index)), shift, tables, leaves))
    }

    fn follow(
        &self,
        raw: u64,
        shift: u32,
        tables: &mut BTreeMap<u64, u32>,
        leaves: &mut Vec<Span>,
    ) -> bool {
        match walk(raw, shift) {
            Some((page, true)) => leaves.push(Span::sized(page, 1 << shift).unwrap()),
            Some((table, false)) => return self.collect((table, shift - 9), tables, leaves),
            None => {}
        }
        true
    }

    pub(crate) fn loaded(&mut self) -> Vec<u64> {
        let (machine, direct) = self.parts();
        let mut pages = TABLES.concat();
        pages.retain(|page| direct.is_loaded(&machine, Frame::containing(*page)));
        pages
    }

    /// Whether all loaded roots, and what hangs from one more entry, are fit for the processor.
    fn fits(&mut self, entry: Option<(u64, u32)>) -> bool {
        let (mut tables, mut leaves) = (BTreeMap::new(), Vec::new());
        let roots = self.loaded().into_iter().map(|root| (root | 7, 48));
        let roots: Vec<_> = roots.chain(entry).collect();
        let levels =
            roots.iter().all(|(raw, shift)| self.follow(*raw, *shift, &mut tables, &mut leaves));
        let all = span((0, END));
        let fine = |page: &Span| {
            let bad = [span(VISOR), span(DENIED).grow_to(PAGE)];
            all.covers(*page)
                && !bad.iter().any(|bad| bad.overlaps(*page))
                && !tables.keys().any(|table| page.contains(*table))
        };
        let ram = |table: &u64| {
            ram().iter().any(|ram| ram.contains(*table)) && !span(VISOR).contains(*table)
        };
        levels && leaves.iter().all(fine) && tables.keys().all(ram)
    }

    /// One step of the host's.
    pub(crate) fn step(&mut self, number: u64) {
        let (kind, number) = (number % 16, number >> 4);
        let page = page(number);
        match kind {
            0..=9 => self.step_store((page, pick(&USED, number >> 4)), number >> 6),
            10..=12 => self.step_load(pick(&TABLES[0], number)),
            13 => self.release(pick(&TABLES[0], number)),
            14 if number % 4 == 0 => self.step_demote(page),
            14 => {
                let _ = self.board.running.pop_first();
            }
            _ if number % 4 == 0 => self.step_load(page),
            _ => self.step_load(pick(&TABLES[0], number)),
        }
        for (at, value) in &self.board.cells {
            let stored = self.board.stored(*at);
            assert_eq!((value ^ stored) & !FLAGS, 0, "the host stored {stored:#x} at {at:x?}");
        }
    }

    fn step_store(&mut self, at: (u64, usize), number: u64) {
        let (how, number) = (number % 16, number >> 4);
        let value = value(number, level_of(at.0));
        let part = match how {
            0 => Part { offset: 4 * (number & 1), bytes: 4 },
            1 => Part { offset: number & 7, bytes: 1 },
            2 => Part { offset: number & 6, bytes: 2 },
            _ => Part { offset: 0, bytes: 8 },
        };
        match how {
            3 => self.host_store(at, part, |old| old & value),
            4 => self.host_store(at, part, |old| old | value),
            5 => self.host_store(at, part, |old| old ^ (1 << (number & 63))),
            6 => self.host_store(at, part, |old| old.wrapping_add(value)),
            _ => self.host_store(at, part, |_| value),
        }
    }

    fn step_load(&mut self, root: u64) {
        let loaded = self.loaded();
        let fits = self.fits(Some((root | 7, 48)));
        let before = (self.board.races, self.board.flushes);
        let result = self.load(root);
        let flushes = self.board.flushes - before.1;
        if result.is_err() {
            self.clear(&pick(&TABLES, self.board.luck));
        }
        if loaded.contains(&root) {
            assert!(result.is_ok() && flushes == 0, "it was loaded: {result:?}");
        } else if loaded.len() < 3 && self.board.races == before.0 {
            assert_eq!(result.is_ok(), fits, "{root:#x}: {result:x?}");
            assert!(flushes <= if fits { 4 } else { 5 }, "{flushes} flushes");
        }
    }

    /// The host clears tables.
    fn clear(&mut self, tables: &[u64]) {
        for table in tables {
            for index in USED {
                self.host_store((*table, index), Part::WHOLE, |_| 0);
            }
        }
    }

    fn step_demote(&mut self, table: u64) {
        let was_table = matches!(self.state(table), Some(State::Table { .. }));
        let mut kept = self.loaded();
        kept.retain(|root| !was_table || !self.leads_to(*root, table));
        self.demote(table);
        assert_eq!(self.state(table).map(State::closed), Some(false));
        assert_eq!(self.loaded(), kept);
    }

    /// Releases everything: the machine is as it was.
    pub(crate) fn finish(mut self) {
        let (mut machine, direct) = self.parts();
        direct.release_all(&mut machine);
        assert!(self.board.running.is_empty());
        assert_eq!(self.shape(), self.before, "EPT01");
        for page in ram().iter().flat_map(|ram| (ram.start()..ram.end()).step_by(4096)) {
            let visor = span(VISOR).contains(page);
            let free = if visor { State::Visor } else { State::Plain { maps: 0 } };
            assert_eq!(self.state(page), Some(free), "{page:#x}");
            // Nor is it mapped by a large page.
            let claimed = self.frames.change(Frame::containing(page), Event::Claim);
            assert_eq!(claimed.is_ok(), !visor, "{page:#x}: {claimed:?}");
        }
    }
}

/// The bytes of an entry that an instruction stores to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part {
    pub(crate) offset: u64,
    pub(crate) bytes: u8,
}

impl Part {
    pub(crate) const WHOLE: Self = Self { offset: 0, bytes: 8 };

    fn mask(self) -> u64 {
        if self.bytes == 8 { u64::MAX } else { (1 << (8 * self.bytes)) - 1 }
    }

    fn of(self, entry: u64) -> u64 {
        entry >> (8 * self.offset) & self.mask()
    }

    fn set(self, entry: u64, value: u64) -> u64 {
        let shift = 8 * self.offset;
        entry & !(self.mask() << shift) | (value & self.mask()) << shift
    }
}

/// Lets the host play, with `luck` for what happens at the same time.
pub(crate) fn play(luck: u64, steps: impl IntoIterator<Item = u64>) {
    let ram = ram();
    let mut storage = vec![0; usize::try_from(FrameTable::entries(&ram)).unwrap()];
    let frames = FrameTable::new(&ram, &mut storage).unwrap();
    let generation = Generation::new();
    let mut world = World::new(frames, Board::new(&generation, luck));
    for step in steps {
        world.step(step);
    }
    world.finish();
}
