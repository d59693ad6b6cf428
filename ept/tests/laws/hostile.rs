//! A host that stores whatever it likes into its tables, and what must come of it.
//!
//! What the host does comes from a list of numbers, so that chance and a fuzzer can play it.

use std::collections::BTreeMap;

use ept::addr::{Frame, GuestFrame, PAGE, Span};
use ept::direct::{Direct, Generation, Machine, Refused, Store};
use ept::entry::Level;
use ept::ept01::{Ept01, Rules};
use ept::frames::{Event, FrameTable, Guard, State, View, Vm};
use ept::mtrr::Mtrrs;

use crate::board::{
    BAD, Board, DENIED, END, FLAGS, GOOD, PRIVATE, Part, TABLES, USED, VIEWS, VISOR, WIDTH,
    level_of, page, pick, ram, span, value, walk,
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
    /// Pages of the host's that protected VMs share with it.
    shared: Vec<u64>,
    /// EPT01 as it was: its tables, and the level of the leaf for each page of interest.
    before: (usize, Vec<Option<Level>>),
}

impl<'w> World<'w> {
    #[expect(clippy::large_stack_frames, reason = "a test has stack enough")]
    pub(crate) fn new(mut frames: FrameTable<'w>, board: Board<'w>) -> Self {
        frames.apply(span(VISOR), Event::Claim).unwrap();
        frames.set_views(span(VIEWS));
        let mtrrs = Mtrrs::read(WIDTH, |index| if index == 0x2ff { 1 << 11 | 6 } else { 0 });
        let denied = [span(DENIED)];
        let mut board = board;
        let rules = Rules { frames: &frames, mtrrs: &mtrrs, denied: &denied };
        let ept = Ept01::build(&mut board, &rules, END).unwrap();
        board.tables.live = true;
        let direct = Direct::new(board.generation);
        let (shared, before) = (Vec::new(), (0, Vec::new()));
        let mut world = Self { frames, mtrrs, denied, ept, direct, board, shared, before };
        world.before = world.shape();
        world
    }

    pub(crate) fn parts(&mut self) -> (Machine<'_, 'w, Board<'w>>, &mut Direct<'w, 3>) {
        let Self { frames, mtrrs, denied, ept, direct, board, .. } = self;
        let machine = Machine { frames, mtrrs, denied, ept: *ept, width: WIDTH, hardware: board };
        (machine, direct)
    }

    /// The first page of RAM of which a table says what the frame table does not.
    pub(crate) fn disagreement(&mut self) -> Option<u64> {
        let machine = self.parts().0;
        ram().into_iter().find_map(|ram| machine.disagreement(ram)).map(Frame::base)
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

    pub(crate) fn load_for(&mut self, root: u64, guard: Guard) -> Result<u64, Refused> {
        let running = self.board.running.keys().chain(self.board.guarded.keys());
        let running: Vec<u64> = running.copied().collect();
        let (mut machine, direct) = self.parts();
        let frame = Frame::containing(root);
        let in_use = |root: Frame| running.contains(&root.base());
        let loaded = direct.load(&mut machine, frame, guard, in_use)?;
        assert_eq!(machine.is_guarded(frame), guard == Guard::Guarded);
        let roots = match guard {
            Guard::Counted => &mut self.board.running,
            Guard::Guarded => &mut self.board.guarded,
        };
        let _ = roots.insert(root, loaded);
        self.board.observe();
        Ok(loaded)
    }

    pub(crate) fn release(&mut self, root: u64) {
        let (mut machine, direct) = self.parts();
        direct.release(&mut machine, Frame::containing(root));
        let runs = |roots: &BTreeMap<u64, u64>| roots.contains_key(&root);
        assert!(!runs(&self.board.running) && !runs(&self.board.guarded), "a VM runs on");
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
        if self.board.views.contains_key(&at.0) {
            // Whatever it stores is lost.
            return;
        }
        self.touch(at.0);
        if self.board.may_write_now(at.0) {
            let entry = self.board.cell(at);
            return self.board.store(at, part.set(entry, change(part.of(entry))));
        }
        let stored = self.board.stored(at);
        let before = (self.board.races, self.board.flushes, self.board.cell(at));
        let expected = part.set(before.2, change(part.of(before.2)));
        let Some(State::Table { level, guard, .. }) = self.state(at.0) else {
            panic!("{at:x?} traps")
        };
        let shift = level.bytes().ilog2();
        let same = walk(before.2, shift) == walk(expected, shift);
        let pages_only = [before.2, expected].iter().all(|e| walk(*e, shift).is_none_or(|w| w.1));
        let fits = same || self.fits(Some((expected, shift, guard)));
        let address = at.0 + 8 * u64::try_from(at.1).unwrap() + part.offset;
        let (table, index) = (Frame::containing(at.0), at.1);
        let store = Store { table, level, index, old: before.2, new: expected };
        let announced = self.parts().0.before_write(address, part.bytes, &change);
        check_announced(announced.unwrap(), store, guard);
        let result = self.write(address, part.bytes, &change);
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

    /// The host is stopped at a page that it may not have.
    fn touch(&mut self, page: u64) {
        if self.board.private.contains(&page) {
            self.give(&[page]);
        }
    }

    /// Whether `root` leads to `page`.
    fn leads_to(&self, root: u64, page: u64) -> bool {
        let mut hanging = Hanging::default();
        // Who walks it does not matter.
        let _ = self.collect((root, 39, Guard::Guarded), &mut hanging);
        hanging.tables.contains_key(&page)
    }

    /// Collects all that hangs from `table`; `false` if a table has two levels or guards.
    fn collect(&self, (table, shift, guard): (u64, u32, Guard), hanging: &mut Hanging) -> bool {
        if let Some(other) = hanging.tables.insert(table, (shift, guard)) {
            return other == (shift, guard);
        }
        let mut entries = USED.iter().map(|index| self.board.cell((table, *index)));
        entries.all(|raw| self.follow((raw, shift, guard), hanging))
    }

    /// The same for an entry.
    fn follow(&self, (raw, shift, guard): (u64, u32, Guard), hanging: &mut Hanging) -> bool {
        match walk(raw, shift) {
            Some((page, true)) if guard == Guard::Counted => {
                hanging.leaves.push(Span::sized(page, 1 << shift).unwrap());
            }
            Some((table, false)) => return self.collect((table, shift - 9, guard), hanging),
            Some((_, true)) | None => {}
        }
        true
    }

    /// All that hangs from loaded roots and from one more entry, and is shared; and whether each
    /// table has one level and guard.
    fn survey(&mut self, entry: Option<(u64, u32, Guard)>) -> (Hanging, bool) {
        let page = |page: &u64| Span::sized(*page, PAGE).unwrap();
        let leaves = self.shared.iter().map(page).collect();
        let mut hanging = Hanging { leaves, ..Hanging::default() };
        let mut entries: Vec<_> = entry.into_iter().collect();
        for root in self.loaded() {
            let guarded = self.parts().0.is_guarded(Frame::containing(root));
            let guard = if guarded { Guard::Guarded } else { Guard::Counted };
            entries.push((root | 7, 48, guard));
        }
        let levels = entries.into_iter().all(|entry| self.follow(entry, &mut hanging));
        (hanging, levels)
    }

    pub(crate) fn loaded(&mut self) -> Vec<u64> {
        let (machine, direct) = self.parts();
        let mut pages = TABLES.concat();
        pages.retain(|page| direct.is_loaded(&machine, Frame::containing(*page)));
        pages
    }

    /// Whether all loaded roots, and what hangs from one more entry, are fit for who walks them.
    fn fits(&mut self, entry: Option<(u64, u32, Guard)>) -> bool {
        let (Hanging { tables, leaves }, levels) = self.survey(entry);
        let all = span((0, END));
        let private = &self.board.private;
        let fine = |page: &Span| {
            let bad = [span(VISOR), span(DENIED).grow_to(PAGE)];
            all.covers(*page)
                && !bad.iter().any(|bad| bad.overlaps(*page))
                && !tables.keys().chain(private).any(|closed| page.contains(*closed))
        };
        let hosts = |table: &u64| is_hosts_ram(*table) && !private.contains(table);
        levels && leaves.iter().all(fine) && tables.keys().all(hosts)
    }

    /// One step of the host's.
    pub(crate) fn step(&mut self, number: u64) {
        let (kind, number) = (number % 16, number >> 4);
        let page = page(number);
        match kind {
            0..=7 => self.step_store((page, pick(&USED, number >> 4)), number >> 6),
            8 => self.step_private(page, number >> 4),
            9 => self.step_private(pick(&PRIVATE, number >> 2), number),
            10..=12 => self.step_load(pick(&TABLES[0], number), number),
            13 => self.release(pick(&TABLES[0], number)),
            14 if number % 4 == 0 => self.step_demote(page),
            14 if number % 4 == 1 => self.step_view(number >> 2),
            14 => {
                let _ = self.board.running.pop_first();
                let _ = self.board.guarded.pop_first();
            }
            _ if number % 4 == 0 => self.step_load(page, number),
            _ => self.step_load(pick(&TABLES[0], number), number),
        }
        self.check_private();
        for page in TABLES.concat().into_iter().chain(BAD).chain(GOOD.concat()).chain(PRIVATE) {
            let page = Span::sized(page, PAGE).unwrap();
            assert_eq!(self.parts().0.disagreement(page), None);
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

    fn step_load(&mut self, root: u64, number: u64) {
        let guard = pick(&[Guard::Counted, Guard::Guarded], number >> 6);
        let was_guarded = self.parts().0.is_guarded(Frame::containing(root));
        let same = was_guarded == (guard == Guard::Guarded);
        let loaded = self.loaded();
        let fits = self.fits(Some((root | 7, 48, guard)));
        let before = (self.board.races, self.board.flushes);
        let result = self.load_for(root, guard);
        let flushes = self.board.flushes - before.1;
        if result.is_err() {
            self.clear(&pick(&TABLES, self.board.luck));
        }
        if loaded.contains(&root) && same {
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
        let closed = self.board.private.contains(&table);
        assert_eq!(self.state(table).map(State::closed), Some(closed));
        assert_eq!(self.loaded(), kept);
    }

    /// A protected VM takes, shares, or gives up a page.
    fn step_private(&mut self, page: u64, number: u64) {
        match number % 4 {
            0 | 1 => self.step_take(page, number >> 2),
            2 if number & 4 == 0 => self.give(&[page]),
            2 => self.give(&self.board.private.iter().copied().collect::<Vec<_>>()),
            _ => self.step_share(page),
        }
    }

    fn step_take(&mut self, page: u64, number: u64) {
        let (Hanging { tables, leaves }, _) = self.survey(None);
        let pages: Vec<u64> = (0..[1, 1, 1, 3][usize::try_from(number % 4).unwrap()])
            .map(|after: u64| page + after * PAGE)
            .collect();
        let free = pages.iter().all(|page| {
            is_hosts_ram(*page)
                && !tables.contains_key(page)
                && !self.board.private.contains(page)
                && !leaves.iter().any(|leaf| leaf.contains(*page))
        });
        let flushes = self.board.flushes;
        let [vm, ..] = (number % u64::from(Vm::MAX)).to_le_bytes();
        let (vm, as_page) = (Vm::new(vm).unwrap(), GuestFrame::containing(number << 6));
        let frames = Span::sized(page, u64::try_from(pages.len()).unwrap() * PAGE).unwrap();
        let before: Vec<_> = pages.iter().map(|page| self.state(*page)).collect();
        let result = self.parts().0.take_all(frames, vm, as_page);
        assert_eq!(result.is_ok(), free, "{page:#x}: {result:x?}");
        assert_eq!(self.board.flushes - flushes, usize::from(free));
        for ((page, was), after) in pages.into_iter().zip(before).zip((0..).step_by(4096)) {
            let as_page = GuestFrame::containing(as_page.base() + after);
            let private = Some(State::Private { vm, page: as_page, view: None });
            assert_eq!(self.state(page), if free { private } else { was });
            if free {
                let _ = self.board.private.insert(page);
            }
        }
        self.board.observe();
    }

    /// The host sees a view of some private page, or does so no more.
    fn step_view(&mut self, number: u64) {
        let pages: Vec<u64> = self.board.private.iter().copied().collect();
        if !pages.is_empty() {
            self.turn_view(pick(&pages, number), number >> 6);
        }
    }

    fn turn_view(&mut self, page: u64, number: u64) {
        let frame = Frame::containing(page);
        let flushes = self.board.flushes;
        if self.board.views.contains_key(&page) {
            let stale = self.parts().0.hide(frame);
            let _ = stale.flush(&mut self.board);
            let _ = self.board.views.remove(&page);
            assert_eq!(self.board.tables.hardware_walk(page), None);
            assert_eq!(self.board.flushes, flushes + 1);
        } else {
            let view = VIEWS.0 + number % 4 * PAGE;
            if self.board.views.values().any(|used| *used == view) {
                return;
            }
            let _ = self.board.views.insert(page, view);
            let number = View(u8::try_from(number % 4).unwrap());
            assert_eq!(self.frames.view(number), Frame::at(view));
            self.parts().0.show(frame, number).unwrap();
            assert!(self.parts().0.show(frame, number).is_err(), "one at a time");
            assert_eq!(self.board.flushes, flushes, "what was absent needs none");
            let seen = self.board.tables.hardware_walk(page);
            assert_eq!(seen.map(|(to, _)| to), Some(view));
        }
        self.board.observe();
    }

    /// Gives `pages` back to the host. Those that no VM has are refused.
    fn give(&mut self, pages: &[u64]) {
        let before = (self.board.flushes, self.board.private.len());
        self.board.private.retain(|page| !pages.contains(page));
        let frames: Vec<_> = pages.iter().map(|page| Frame::containing(*page)).collect();
        let result = self.parts().0.release(&frames);
        self.board.views.retain(|page, _| !pages.contains(page));
        let given = before.1 - self.board.private.len();
        assert_eq!(result.is_ok(), given == pages.len(), "{pages:x?}: {result:?}");
        assert!(self.board.flushes - before.0 <= 1);
        let reach = |page: &u64| {
            let there = self.board.tables.hardware_walk(*page);
            there.is_some_and(|(to, _)| to == *page)
        };
        assert!(result.is_err() || pages.iter().all(reach), "{pages:x?} are not the host's again");
        self.board.observe();
    }

    /// A protected VM maps a page of the host's, or does so no more.
    fn step_share(&mut self, page: u64) {
        let frame = Frame::containing(page);
        if let Some(at) = self.shared.iter().position(|shared| *shared == page) {
            let _ = self.shared.swap_remove(at);
            return self.parts().0.unshare(frame).unwrap();
        }
        let shared = self.parts().0.share(frame);
        let plain = matches!(self.state(page), Some(State::Plain { .. }));
        assert_eq!(shared.is_ok(), plain, "{page:#x}: {shared:?}");
        if plain {
            self.shared.push(page);
        }
    }

    /// No private page is a table, or mapped by a table that processors walk.
    fn check_private(&mut self) {
        let (Hanging { tables, leaves }, _) = self.survey(None);
        for page in self.board.private.clone() {
            assert!(matches!(self.state(page), Some(State::Private { .. })), "{page:#x}");
            assert!(!tables.contains_key(&page), "{page:#x} is private and a table");
            let mapped = leaves.iter().any(|leaf| leaf.contains(page));
            assert!(!mapped, "{page:#x} is private and mapped");
        }
    }

    /// Releases everything: the machine is as it was.
    pub(crate) fn finish(mut self) {
        let (mut machine, direct) = self.parts();
        direct.release_all(&mut machine);
        assert!(self.board.running.is_empty() && self.board.guarded.is_empty());
        self.give(&self.board.private.iter().copied().collect::<Vec<_>>());
        for page in std::mem::take(&mut self.shared) {
            self.parts().0.unshare(Frame::containing(page)).unwrap();
        }
        assert_eq!(self.shape(), self.before, "EPT01");
        assert_eq!(self.disagreement(), None);
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

/// What hangs from roots: tables with log2 of the bytes of an entry and who walks them, and what
/// leaves map that processors use.
#[derive(Debug, Default)]
struct Hanging {
    tables: BTreeMap<u64, (u32, Guard)>,
    leaves: Vec<Span>,
}

/// The visor knows of a store before it happens if it is to a guarded table.
fn check_announced(announced: Option<Store>, store: Store, guard: Guard) {
    assert_eq!(announced, (guard == Guard::Guarded).then_some(store));
}

fn is_hosts_ram(page: u64) -> bool {
    ram().iter().any(|ram| ram.contains(page)) && !span(VISOR).contains(page)
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
