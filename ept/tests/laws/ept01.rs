//! EPT01 under a processor that may walk it between any two stores.

use ept::addr::{Frame, GuestFrame, HUGE, LARGE, PAGE, Span};
use ept::entry::{Leaf, Level, Rights};
use ept::ept01::{Ept01, Exhausted, Rules, tables_needed};
use ept::frames::{Event, FrameTable, Guard, Owner, State, Vm};
use ept::mtrr::{MemoryType, Mtrrs, Types};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::fake::Fake;
use crate::machine::{GIB, MIB, Registers, part, ram, registers};

const END: u64 = 32 * GIB;

fn span(start: u64, end: u64) -> Span {
    Span::new(start, end).unwrap()
}

fn storage(ram: &[Span]) -> Vec<u64> {
    vec![0; usize::try_from(FrameTable::entries(ram)).unwrap()]
}

/// First, middle and last page of `span`: where walks must not arrive.
fn probes(span: Span) -> [u64; 4] {
    let middle = span.start() + span.len() / 2;
    [span.start(), middle, span.end() - PAGE, span.end() - 1]
}

/// What the page at `address` should translate to, asked of that page alone.
fn expected(rules: &Rules<'_>, address: u64) -> Option<(u64, MemoryType)> {
    let page = Span::sized(address & !0xfff, PAGE).unwrap();
    let Types::One(kind) = rules.mtrrs.type_of(page) else { panic!("a page has one type") };
    let owner = rules.frames.owner(Frame::containing(address));
    let withheld = matches!(owner, Some(Owner::Visor | Owner::Vm(_)));
    let denied = rules.denied.iter().any(|denied| denied.grow_to(PAGE).overlaps(page));
    (address < END && !withheld && !denied).then_some((page.start(), kind))
}

/// Checks the page at `address` both as the crate and as the processor see it.
fn check(mem: &Fake, ept: Ept01, rules: &Rules<'_>, address: u64) {
    let wanted = expected(rules, address);
    let walked = mem.hardware_walk(address);
    let kind = |bits: u64| MemoryType::from_number((bits >> 3 & 7).to_le_bytes()[0]).unwrap();
    assert_eq!(walked.map(|(to, bits)| (to & !0xfff, kind(bits))), wanted, "{address:#x}");
    let table = matches!(rules.frames.state(Frame::containing(address)), Some(State::Fresh { .. }));
    let (rights, bits) = if table { (Rights::Read, 1) } else { (Rights::All, 7) };
    assert!(walked.is_none_or(|(to, low)| to == address && low & 0xf47 == bits), "{address:#x}");
    let found = ept.walk(mem, address);
    assert_eq!(found.map(|(leaf, _)| leaf.memory_type), wanted.map(|(_, kind)| kind));
    assert!(found.is_none_or(|(leaf, level)| leaf.rights == rights
        && leaf.frame.base() == address - address % level.bytes()));
}

/// Every place where something may begin or end, and its neighbours.
fn edges(rules: &Rules<'_>, spans: &[Span]) -> Vec<u64> {
    let blocks = (0..END / HUGE).map(|block| span(block * HUGE, (block + 1) * HUGE));
    blocks
        .chain(spans.iter().chain(rules.denied).copied())
        .flat_map(|span| {
            let ends = [span.start(), span.end()];
            ends.into_iter().flat_map(|at| [at.saturating_sub(1), at, at ^ PAGE, at ^ LARGE])
        })
        .collect()
}

const DENIED: [Span; 0] = [];

/// A PC with 6 GiB: its RAM, its registers, where the visor lies.
fn pc() -> ([Span; 3], Registers, Span) {
    let ram = [span(0, 636 << 10), span(MIB, 3 * GIB - 2 * MIB - 5 * PAGE), span(4 * GIB, 7 * GIB)];
    let registers = Registers::plain(6).with(3 * GIB, GIB, 0).with_legacy_hole();
    (ram, registers, span(7 * GIB - 18 * MIB, 7 * GIB))
}

#[test]
fn a_pc_gets_the_largest_leaves_that_its_map_permits() {
    let (ram, registers, visor) = pc();
    let mtrrs = registers.read();
    let mut storage = storage(&ram);
    let mut frames = FrameTable::new(&ram, &mut storage).unwrap();
    frames.apply(visor, Event::Claim).unwrap();
    // The last page only in part: there is no smaller leaf to tell its parts apart.
    let denied = [span(0xfed4_0000, 0xfed4_4801)];
    let rules = Rules { frames: &frames, mtrrs: &mtrrs, denied: &denied };
    let mut mem = Fake::new(100);
    mem.secret = [probes(visor), probes(denied[0].grow_to(PAGE))].concat();
    let ept = Ept01::build(&mut mem, &rules, END).unwrap();
    for (address, wanted) in [
        (0, Some((Level::Pt, MemoryType::Wb))),
        (0xa_0000, Some((Level::Pt, MemoryType::Uc))),
        (2 * MIB, Some((Level::Pd, MemoryType::Wb))),
        (GIB, Some((Level::Pdpt, MemoryType::Wb))),
        // RAM and what lies between it are the same to the host.
        (2 * GIB, Some((Level::Pdpt, MemoryType::Wb))),
        (3 * GIB, Some((Level::Pd, MemoryType::Uc))),
        (0xfed3_f000, Some((Level::Pt, MemoryType::Uc))),
        (0xfed4_4fff, None),
        (7 * GIB - 18 * MIB - 1, Some((Level::Pd, MemoryType::Wb))),
        (7 * GIB - 18 * MIB, None),
        (7 * GIB, Some((Level::Pdpt, MemoryType::Wb))),
        (END - 1, Some((Level::Pdpt, MemoryType::Wb))),
        (END, None),
        (1 << 48, None),
        (u64::MAX, None),
    ] {
        let found = ept.walk(&mem, address);
        let found = found.map(|(leaf, level)| (level, leaf.memory_type));
        assert_eq!(found, wanted, "{address:#x}");
    }
    // PML4, PDPT; PD and PT for the first 2 MiB; the same for the denied pages; PD of the visor, whose
    // blocks are absent as a whole.
    assert_eq!(mem.given(), 2 + 2 + 2 + 1);
}

#[test]
fn the_pointer_names_the_root_of_a_four_level_walk() {
    let (ram, registers, _) = pc();
    let mtrrs = registers.read();
    let mut storage = storage(&ram);
    let frames = FrameTable::new(&ram, &mut storage).unwrap();
    let rules = Rules { frames: &frames, mtrrs: &mtrrs, denied: &DENIED };
    let ept = Ept01::build(&mut Fake::new(100), &rules, END).unwrap();
    assert_eq!(ept.pointer(), 1 << 47 | 0x1e);
    assert_eq!(ept.all(), span(0, END));
}

/// One change of the rules at run time.
#[derive(Clone, Debug)]
enum Change {
    Claim(u64, u64),
    Types(Registers),
    /// A frame becomes a table, or is one no more.
    Link(u64, u64),
    Unlink(u64),
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        (any::<u64>(), any::<u64>()).prop_map(|(place, len)| Change::Claim(place, len)),
        registers().prop_map(Change::Types),
        (any::<u64>(), any::<u64>()).prop_map(|(place, len)| Change::Link(place, len)),
        any::<u64>().prop_map(Change::Unlink),
    ]
}

/// Everything that EPT01 follows from, and the tables.
struct World<'r> {
    frames: FrameTable<'r>,
    mtrrs: Mtrrs,
    denied: &'r [Span],
    mem: Fake,
    ept: Ept01,
    /// What the visor has claimed since.
    claimed: Vec<Span>,
    /// What has become tables.
    linked: Vec<Span>,
}

impl<'r> World<'r> {
    fn new(frames: FrameTable<'r>, registers: &Registers, denied: &'r [Span]) -> Self {
        let mtrrs = registers.read();
        let mut mem = Fake::new(1 << 16);
        mem.secret = denied.iter().copied().flat_map(probes).collect();
        let rules = Rules { frames: &frames, mtrrs: &mtrrs, denied };
        let ept = Ept01::build(&mut mem, &rules, END).unwrap();
        mem.live = true;
        Self { frames, mtrrs, denied, mem, ept, claimed: Vec::new(), linked: Vec::new() }
    }

    /// Follows `change`; what was claimed must be out of reach before the flush is even due.
    fn follow(&mut self, ram: &[Span], change: &Change) -> Result<(), Exhausted> {
        let mut new = None;
        let changed = match change {
            Change::Types(registers) => {
                self.mtrrs = registers.read();
                self.ept.all()
            }
            Change::Claim(place, len) => {
                let Some(claim) = part(ram, *place, *len) else {
                    return Ok(());
                };
                if self.frames.apply(claim, Event::Claim).is_err() {
                    return Ok(());
                }
                new = Some(claim);
                claim
            }
            Change::Link(place, len) => {
                let Some(link) = part(ram, *place, *len) else {
                    return Ok(());
                };
                let private = Event::Take(Vm::new(3).unwrap(), GuestFrame::containing(*len));
                let table = Event::Link(Level::Pt, Guard::Guarded, None);
                let event = if place % 3 == 0 { private } else { table };
                if self.frames.apply(link, event).is_err() {
                    return Ok(());
                }
                self.linked.push(link);
                link
            }
            Change::Unlink(which) => {
                if self.linked.is_empty() {
                    return Ok(());
                }
                let which = usize::try_from(*which).unwrap() % self.linked.len();
                let link = self.linked.swap_remove(which);
                let unlinked = self.frames.apply(link, Event::Unlink(None));
                unlinked.or_else(|_| self.frames.apply(link, Event::Release)).unwrap();
                link
            }
        };
        self.revise(changed, new)
    }

    /// Lets the tables follow in `changed`, of which `new` is now out of reach.
    fn revise(&mut self, changed: Span, new: Option<Span>) -> Result<(), Exhausted> {
        let rules = Rules { frames: &self.frames, mtrrs: &self.mtrrs, denied: self.denied };
        let stale = self.ept.revise(&mut self.mem, &rules, changed);
        if let Some(claim) = new {
            self.mem.secret.extend(probes(claim));
            self.claimed.push(claim);
            assert!(stale.span().covers(claim), "what was taken away must be flushed");
        }
        for address in &self.mem.secret {
            assert_eq!(self.mem.hardware_walk(*address), None, "{address:#x} after revise");
        }
        let flushed = stale.flush(&mut self.mem);
        self.ept.complete(&mut self.mem, &rules, flushed)
    }

    fn rules(&self) -> Rules<'_> {
        Rules { frames: &self.frames, mtrrs: &self.mtrrs, denied: self.denied }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_built_table_translates_every_page_as_its_rules_say(
        ram in ram(),
        registers in registers(),
        claims in vec((any::<u64>(), any::<u64>()), 0..4),
        denied in vec((0..END, 0..4 * MIB), 0..3),
        addresses in vec(0..2 * END, 64),
    ) {
        let mut storage = storage(&ram);
        let mut frames = FrameTable::new(&ram, &mut storage).unwrap();
        let mut spans = ram.clone();
        let mut mem = Fake::new(1 << 16);
        for (place, len) in claims {
            if let Some(claim) = part(&ram, place, len)
                && frames.apply(claim, Event::Claim).is_ok()
            {
                spans.push(claim);
                mem.secret.extend(probes(claim));
            }
        }
        let denied: Vec<_> =
            denied.into_iter().map(|(start, len)| span(start, start + len)).collect();
        mem.secret.extend(denied.iter().filter(|span| !span.is_empty()).map(|span| span.start()));
        let mtrrs = registers.read();
        let rules = Rules { frames: &frames, mtrrs: &mtrrs, denied: &denied };
        let ept = Ept01::build(&mut mem, &rules, END).unwrap();
        for address in addresses.into_iter().chain(edges(&rules, &spans)) {
            check(&mem, ept, &rules, address);
        }
    }

    #[test]
    fn the_tables_follow_claims_and_memory_types_and_never_show_what_is_taken(
        ram in ram(),
        registers in registers(),
        changes in vec(change(), 1..6),
        addresses in vec(0..END, 32),
    ) {
        let mut storage = storage(&ram);
        let denied = [span(20 * GIB + PAGE, 20 * GIB + 4 * MIB)];
        let frames = FrameTable::new(&ram, &mut storage).unwrap();
        let mut world = World::new(frames, &registers, &denied);
        for change in &changes {
            world.follow(&ram, change).unwrap();
            let rules = world.rules();
            let spans = [ram.clone(), world.claimed.clone(), world.linked.clone()].concat();
            for address in addresses.iter().copied().chain(edges(&rules, &spans)) {
                check(&world.mem, world.ept, &rules, address);
            }
        }
    }

    #[test]
    fn what_was_split_for_tables_becomes_large_again_and_its_tables_are_freed(
        ram in ram(),
        registers in registers(),
        links in vec((any::<u64>(), any::<u64>()), 1..6),
        order in any::<u64>(),
        addresses in vec(0..END, 32),
    ) {
        let mut storage = storage(&ram);
        let frames = FrameTable::new(&ram, &mut storage).unwrap();
        let mut world = World::new(frames, &registers, &DENIED);
        let used = world.mem.used();
        let level = |world: &World<'_>, address: &u64| {
            world.ept.walk(&world.mem, *address).map(|(_, level)| level)
        };
        let places: Vec<u64> = addresses.into_iter().chain(edges(&world.rules(), &ram)).collect();
        let before: Vec<_> = places.iter().map(|address| level(&world, address)).collect();
        for (place, len) in links {
            world.follow(&ram, &Change::Link(place, len)).unwrap();
        }
        prop_assert!(world.linked.is_empty() || world.mem.used() >= used);
        while !world.linked.is_empty() {
            world.follow(&ram, &Change::Unlink(order)).unwrap();
        }
        let after: Vec<_> = places.iter().map(|address| level(&world, address)).collect();
        prop_assert_eq!(before, after);
        prop_assert_eq!(world.mem.used(), used);
    }

    #[test]
    fn without_memory_for_tables_nothing_is_wrong_and_the_caller_knows(
        ram in ram(),
        change in change(),
        left in 0..12_usize,
        addresses in vec(0..END, 64),
    ) {
        let mut storage = storage(&ram);
        let frames = FrameTable::new(&ram, &mut storage).unwrap();
        let mut world = World::new(frames, &Registers::plain(6), &DENIED);
        world.mem.left = left;
        let result = world.follow(&ram, &change);
        let rules = world.rules();
        let spans = [ram.clone(), world.claimed.clone()].concat();
        for address in addresses.into_iter().chain(edges(&rules, &spans)) {
            if result.is_ok() || world.mem.hardware_walk(address).is_some() {
                check(&world.mem, world.ept, &rules, address);
            }
        }
    }
}

#[test]
fn building_with_too_few_frames_fails_and_shows_nothing_of_the_visor() {
    let (ram, registers, visor) = pc();
    let mtrrs = registers.read();
    let mut storage = storage(&ram);
    let mut frames = FrameTable::new(&ram, &mut storage).unwrap();
    frames.apply(visor, Event::Claim).unwrap();
    let rules = Rules { frames: &frames, mtrrs: &mtrrs, denied: &DENIED };
    for left in 0..5 {
        let mut mem = Fake::new(left);
        mem.secret = probes(visor).to_vec();
        assert_eq!(Ept01::build(&mut mem, &rules, END).map(|_| ()), Err(Exhausted), "{left}");
    }
    assert!(Ept01::build(&mut Fake::new(5), &rules, END).is_ok());
}

#[test]
fn a_claim_in_a_huge_page_takes_out_the_whole_page_until_the_flush() {
    let ram = [span(0, 4 * GIB)];
    let mut storage = storage(&ram);
    let frames = FrameTable::new(&ram, &mut storage).unwrap();
    let mut world = World::new(frames, &Registers::plain(6), &DENIED);
    let claim = span(GIB + 7 * PAGE, GIB + 8 * PAGE);
    world.frames.apply(claim, Event::Claim).unwrap();
    let rules = Rules { frames: &world.frames, mtrrs: &world.mtrrs, denied: &DENIED };
    let stale = world.ept.revise(&mut world.mem, &rules, claim);
    assert_eq!(stale.span(), span(GIB, 2 * GIB));
    assert_eq!(world.ept.walk(&world.mem, GIB), None);
    let flushed = stale.flush(&mut world.mem);
    world.ept.complete(&mut world.mem, &rules, flushed).unwrap();
    let level = |address| world.ept.walk(&world.mem, address).map(|(_, level)| level);
    assert_eq!(level(GIB), Some(Level::Pt));
    assert_eq!(level(claim.start()), None);
    assert_eq!(level(GIB + LARGE), Some(Level::Pd));
    assert_eq!(level(2 * GIB), Some(Level::Pdpt));
}

#[test]
fn rights_are_given_back_only_after_the_flush() {
    let ram = [span(0, 4 * GIB)];
    let mut storage = storage(&ram);
    let frames = FrameTable::new(&ram, &mut storage).unwrap();
    let mut world = World::new(frames, &Registers::plain(6), &DENIED);
    let tables = [span(GIB, GIB + PAGE), span(GIB + 9 * PAGE, GIB + 10 * PAGE)];
    for table in tables {
        world.frames.apply(table, Event::Link(Level::Pt, Guard::Counted, None)).unwrap();
        world.revise(table, None).unwrap();
    }
    let rights = |world: &World<'_>, address| {
        world.ept.walk(&world.mem, address).map(|(leaf, _)| leaf.rights)
    };
    world.frames.apply(tables[0], Event::Unlink(None)).unwrap();
    let rules = Rules { frames: &world.frames, mtrrs: &world.mtrrs, denied: &DENIED };
    let stale = world.ept.revise(&mut world.mem, &rules, tables[0]);
    assert_eq!(rights(&world, GIB), Some(Rights::Read));
    let flushed = stale.flush(&mut world.mem);
    let rules = Rules { frames: &world.frames, mtrrs: &world.mtrrs, denied: &DENIED };
    world.ept.complete(&mut world.mem, &rules, flushed).unwrap();
    assert_eq!(rights(&world, GIB), Some(Rights::All));
    assert_eq!(rights(&world, tables[1].start()), Some(Rights::Read));
}

#[test]
fn following_one_frame_touches_only_the_tables_on_its_path() {
    let ram = [span(0, 64 * GIB)];
    let mut storage = storage(&ram);
    let frames = FrameTable::new(&ram, &mut storage).unwrap();
    let mut world = World::new(frames, &Registers::plain(6), &DENIED);
    let first = span(GIB, GIB + PAGE);
    world.frames.apply(first, Event::Link(Level::Pt, Guard::Counted, None)).unwrap();
    world.revise(first, None).unwrap();
    let (stores, reads) = (world.mem.stores, world.mem.reads.get());
    let second = span(GIB + PAGE, GIB + 2 * PAGE);
    world.frames.apply(second, Event::Link(Level::Pt, Guard::Counted, None)).unwrap();
    world.revise(second, None).unwrap();
    assert_eq!(world.mem.stores, stores + 1);
    // Four on each way down, twice.
    assert_eq!(world.mem.reads.get(), reads + 8);
}

#[test]
fn a_change_of_type_alone_happens_in_place() {
    let ram = [span(0, 4 * GIB)];
    let mut storage = storage(&ram);
    let frames = FrameTable::new(&ram, &mut storage).unwrap();
    let mut world = World::new(frames, &Registers::plain(6), &DENIED);
    let before = (world.mem.given(), world.mem.stores);
    world.mtrrs = Registers::plain(6).with(GIB, GIB, 4).read();
    let rules = Rules { frames: &world.frames, mtrrs: &world.mtrrs, denied: &DENIED };
    let stale = world.ept.revise(&mut world.mem, &rules, world.ept.all());
    let leaf =
        Leaf { frame: Frame::at(GIB).unwrap(), rights: Rights::All, memory_type: MemoryType::Wt };
    assert_eq!(world.ept.walk(&world.mem, GIB), Some((leaf, Level::Pdpt)));
    assert_eq!(stale.span(), span(GIB, 2 * GIB));
    let flushed = stale.flush(&mut world.mem);
    world.ept.complete(&mut world.mem, &rules, flushed).unwrap();
    assert_eq!((world.mem.given(), world.mem.stores), (before.0, before.1 + 1));
}

#[test]
fn rules_that_did_not_change_need_no_flush() {
    let (ram, registers, _) = pc();
    let mut storage = storage(&ram);
    let frames = FrameTable::new(&ram, &mut storage).unwrap();
    let mut world = World::new(frames, &registers, &DENIED);
    let stores = world.mem.stores;
    let rules = Rules { frames: &world.frames, mtrrs: &world.mtrrs, denied: &DENIED };
    let stale = world.ept.revise(&mut world.mem, &rules, world.ept.all());
    assert!(stale.span().is_empty());
    let flushed = stale.flush(&mut world.mem);
    world.ept.complete(&mut world.mem, &rules, flushed).unwrap();
    assert_eq!(world.mem.stores, stores);
}

#[test]
fn the_computed_bound_suffices_for_ten_ranges_moved_once_everywhere() {
    let (ram, _, visor) = pc();
    let mut storage = storage(&ram);
    let mut frames = FrameTable::new(&ram, &mut storage).unwrap();
    frames.apply(visor, Event::Claim).unwrap();
    let denied: Vec<_> = (8..16).map(|at| span(at * GIB + PAGE, at * GIB + GIB - PAGE)).collect();
    let ranges = |first: u64| {
        // The base is not aligned to the length: as bad as a range can be placed.
        let mut registers = Registers::plain(6).with_legacy_hole();
        registers.cap = registers.cap & !0xff | 10;
        (0..10).fold(registers, |r, n| r.with((first + n) * GIB + 3 * MIB, PAGE, 0))
    };
    let mut world = World::new(frames, &ranges(10), &denied);
    world.follow(&ram, &Change::Types(ranges(20))).unwrap();
    let needed = usize::try_from(tables_needed(END, &[])).unwrap();
    assert!(world.mem.given() <= needed, "{} of {needed}", world.mem.given());
}

#[test]
fn the_computed_bound_suffices_for_a_table_in_every_large_page_of_ram() {
    let (ram, registers, visor) = pc();
    let mut storage = storage(&ram);
    let mut frames = FrameTable::new(&ram, &mut storage).unwrap();
    frames.apply(visor, Event::Claim).unwrap();
    let mut world = World::new(frames, &registers, &DENIED);
    for block in (0..7 * GIB).step_by(2 << 20) {
        if world
            .frames
            .change(Frame::containing(block), Event::Link(Level::Pt, Guard::Counted, None))
            .is_ok()
        {
            world.revise(span(block, block + PAGE), None).unwrap();
        }
    }
    let needed = usize::try_from(tables_needed(END, &ram)).unwrap();
    assert!(world.mem.used() > 3000 && world.mem.used() <= needed);
}
