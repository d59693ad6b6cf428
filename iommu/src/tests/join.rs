//! Units that follow the frame table together with EPT01, as `ept` has it followed.

use std::boxed::Box;
use std::collections::HashMap;
use std::vec::Vec;

use ept::addr::{Frame, GuestFrame, HUGE, LARGE, PAGE, Span};
use ept::direct::{Direct, Generation, HostMemory, Machine};
use ept::entry::Level;
use ept::ept01::{self, Ept01, Flushed, Rules, TableMem, Tlb};
use ept::frames::{Event, FrameTable, Guard, View, Vm};
use ept::mtrr::Mtrrs;
use proptest::prelude::*;

use super::world::{DENIED, DEVICE, PLACE, VISOR, World, frame, page, take, view};
use crate::fake::{CAP, ECAP, Fake, Flaw, IRE, Mem, QIE, Ram, SNOOP, Sight, State, TE, Try};
use crate::{Cause, Devices, Error, Fault, Snoop, Step, Unit};

/// Where the host has tables for a VM, from the root on.
const TABLES: [u64; 4] = [PLACE, PLACE + PAGE, PLACE + 2 * PAGE, PLACE + LARGE];
const PLACES: [u64; 6] =
    [PLACE, PLACE + PAGE, PLACE + 2 * PAGE, PLACE + 3 * PAGE, PLACE + LARGE, PLACE + 2 * LARGE];

/// What `ept` works with: its tables and the units', the host's memory, devices.
struct Board {
    mem: Mem,
    devices: Devices<'static, Fake>,
    host: HashMap<(u64, usize), u64>,
    flushes: u32,
}

impl TableMem for Board {
    fn allocate(&mut self) -> Option<Frame> {
        self.mem.allocate()
    }
    fn free(&mut self, frame: Frame) {
        self.mem.free(frame);
    }
    fn read(&self, table: Frame, index: usize) -> u64 {
        self.mem.read(table, index)
    }
    fn write(&mut self, table: Frame, index: usize, raw: u64) {
        self.mem.write(table, index, raw);
    }
}

impl HostMemory for Board {
    fn entry(&self, table: Frame, index: usize) -> u64 {
        self.host.get(&(table.base(), index)).copied().unwrap_or_default()
    }
    fn exchange(&mut self, table: Frame, index: usize, old: u64, new: u64) -> bool {
        let was = self.entry(table, index);
        if was == old {
            let _ = self.host.insert((table.base(), index), new);
        }
        was == old
    }
}

impl Tlb for Board {
    fn flush(&mut self, _: Span) {
        self.flushes += 1;
        self.devices.flush(&mut self.mem).expect("units that answer");
    }
    fn revise_devices(&mut self, frames: &FrameTable<'_>, page: Span) -> Span {
        self.devices.revise(&mut self.mem, frames, page)
    }
    fn complete_devices(&mut self, frames: &FrameTable<'_>, page: Span, leave: &Flushed) {
        self.devices.complete(&mut self.mem, frames, page, leave).expect("units that answer");
    }
}

/// A machine whose units follow, and the rest of it.
struct Joined {
    world: World,
    board: Board,
    ept: Ept01,
    mtrrs: Mtrrs,
}

impl Joined {
    fn new(sight: Sight, capabilities: &[(u64, u64)]) -> Self {
        Self::up_to(sight, capabilities, ept01::end(33))
    }

    /// EPT01 ends at `end`.
    fn up_to(sight: Sight, capabilities: &[(u64, u64)], end: u64) -> Self {
        let mut world = World::stopped(sight, capabilities);
        let units = Box::leak(std::mem::take(&mut world.units).into_boxed_slice());
        let mut mem = world.mem.clone();
        let place = (&world.frames, &[DENIED][..]);
        let devices = Devices::start(units, &mut mem, place, (33, 5 * HUGE)).expect("a start");
        let mtrrs = Mtrrs::read(33, |_| 0);
        let rules = Rules { frames: &world.frames, mtrrs: &mtrrs, denied: &[DENIED] };
        let ept = Ept01::build(&mut mem, &rules, end).expect("tables");
        let board = Board { mem, devices, host: HashMap::new(), flushes: 0 };
        Self { world, board, ept, mtrrs }
    }

    fn machine(&mut self) -> Machine<'_, 'static, Board> {
        Machine {
            frames: &mut self.world.frames,
            mtrrs: &self.mtrrs,
            denied: &[DENIED],
            ept: self.ept,
            width: 33,
            hardware: &mut self.board,
        }
    }

    /// Devices reach of all `places` what the policy says, and the tables agree with that.
    fn check(&self, places: &[u64]) {
        for place in places {
            self.world.check(*place);
            let devices = &self.board.devices;
            assert!(devices.agrees(&self.board.mem, &self.world.frames, frame(*place)));
        }
    }

    /// A device's access, and whether it succeeds.
    fn reaches(&self, address: u64, access: Try) -> bool {
        self.world.fakes.iter().any(|fake| fake.dma(DEVICE, address, access).is_ok())
    }
}

fn vm() -> Vm {
    Vm::new(1).expect("a VM")
}

fn guest(number: u64) -> GuestFrame {
    GuestFrame::containing(number * PAGE)
}

#[test]
fn a_page_that_a_vm_takes_is_out_of_every_devices_reach_until_it_gives_it_back() {
    for (sight, ecap) in [(Sight::Coherent, ECAP), (Sight::WrittenBack, ECAP & !1)] {
        let mut joined = Joined::new(sight, &[(CAP, ecap), (CAP & !(1 << 35), ECAP)]);
        joined.check(&PLACES);
        joined.machine().take(frame(PLACE), vm(), guest(7)).unwrap();
        assert!(!joined.reaches(PLACE, Try::Read) && !joined.reaches(PLACE, Try::Write));
        joined.check(&PLACES);
        joined.machine().show(frame(PLACE), View(2)).unwrap();
        joined.check(&PLACES);
        let there = joined.world.fakes[0].dma(DEVICE, PLACE, Try::Write);
        assert_eq!(there, Ok(VISOR.start() + 2 * PAGE));
        let mut machine = joined.machine();
        let hidden = machine.hide(frame(PLACE));
        let _ = hidden.flush(machine.hardware);
        assert!(!joined.reaches(PLACE, Try::Read));
        joined.machine().release(&[frame(PLACE)]).unwrap();
        assert!(joined.reaches(PLACE, Try::Write));
        joined.check(&PLACES);
    }
}

#[test]
fn devices_look_into_the_caches_if_every_unit_can_have_them_do_so() {
    let with = (CAP, ECAP | SNOOP);
    for (units, snoop) in [
        ([with, with], Snoop::Always),
        ([with, (CAP, ECAP)], Snoop::AsAsked),
        ([(CAP, ECAP), with], Snoop::AsAsked),
    ] {
        let mut joined = Joined::new(Sight::Coherent, &units);
        assert_eq!(joined.board.devices.snoop(), snoop);
        // Leaves of all sizes, what is split, what is read-only, views, and what is merged again.
        joined.check(&[0x10_0000, HUGE, 2 * HUGE, PLACE]);
        joined.machine().take(frame(PLACE), vm(), guest(7)).unwrap();
        joined.machine().show(frame(PLACE), View(2)).unwrap();
        joined.check(&PLACES);
        joined.machine().release(&[frame(PLACE)]).unwrap();
        joined.check(&PLACES);
        for fake in &joined.world.fakes {
            let unsnooped = fake.0.borrow().caches.unsnooped;
            assert_eq!(unsnooped == 0, snoop == Snoop::Always, "{unsnooped} of {units:x?}");
        }
    }
}

#[test]
fn a_page_that_only_devices_could_still_reach_is_flushed_too() {
    // EPT01 knows nothing of the page.
    let mut joined = Joined::up_to(Sight::Coherent, &[(CAP, ECAP)], HUGE);
    joined.world.change(PLACE, take(0));
    joined.world.change(PLACE, view(1));
    let Joined { world, board, .. } = &mut joined;
    let changed = board.devices.revise(&mut board.mem, &world.frames, page(PLACE));
    assert!(changed.covers(page(PLACE)));
    board.devices.flush(&mut board.mem).unwrap();
    assert!(joined.reaches(PLACE, Try::Write), "the view");
    let mut machine = joined.machine();
    let hidden = machine.hide(frame(PLACE));
    assert_eq!(hidden.span(), page(PLACE));
    let _ = hidden.flush(machine.hardware);
    assert!(!joined.reaches(PLACE, Try::Read));
}

#[test]
fn tables_that_do_not_follow_disagree() {
    let mut joined = Joined::new(Sight::Coherent, &[(CAP, ECAP)]);
    let agrees = |joined: &Joined| {
        joined.board.devices.agrees(&joined.board.mem, &joined.world.frames, frame(PLACE))
    };
    assert!(agrees(&joined));
    joined.world.change(PLACE, Event::Link(Level::Pt, Guard::Counted, None));
    assert!(!agrees(&joined), "it is writable");
    joined.world.change(PLACE, Event::Unlink(None));
    joined.world.change(PLACE, Event::Forget);
    joined.world.change(PLACE, take(0));
    assert!(!agrees(&joined), "it is there");
}

#[test]
fn tables_of_the_hosts_are_read_only_to_devices_while_processors_may_walk_them() {
    static GENERATION: Generation = Generation::new();
    for guard in [Guard::Counted, Guard::Guarded] {
        let mut joined = Joined::new(Sight::Coherent, &[(CAP, ECAP)]);
        joined.check(&PLACES);
        for pair in TABLES.windows(2) {
            let _ = joined.board.host.insert((pair[0], 3), pair[1] | 7);
        }
        let mut direct = Direct::<4>::new(&GENERATION);
        let root = frame(TABLES[0]);
        let _ = direct.load(&mut joined.machine(), root, guard, |_| false).unwrap();
        for table in TABLES {
            assert!(joined.reaches(table, Try::Read) && !joined.reaches(table, Try::Write));
        }
        joined.check(&PLACES);
        direct.release(&mut joined.machine(), root);
        for table in TABLES {
            assert!(joined.reaches(table, Try::Write), "{table:#x}");
        }
        joined.check(&PLACES);
    }
}

#[test]
fn a_unit_that_does_not_answer_or_forget_is_no_leave() {
    let mut joined = Joined::new(Sight::Coherent, &[(CAP, ECAP), (CAP, ECAP)]);
    joined.world.change(PLACE, take(0));
    let Joined { world, board, .. } = &mut joined;
    let _ = board.devices.revise(&mut board.mem, &world.frames, page(PLACE));
    world.fakes[1].0.borrow_mut().stuck = true;
    let error = board.devices.flush(&mut board.mem).unwrap_err();
    assert!(matches!(error, Error { unit: 0x2000, cause: Cause::Timeout(_) }), "{error}");
    // The attack that the flush is there against.
    let mut joined = Joined::new(Sight::Coherent, &[(CAP, ECAP)]);
    joined.check(&PLACES);
    joined.world.fakes[0].0.borrow_mut().caches.flaw = Some(Flaw::Translations);
    joined.machine().take(frame(PLACE), vm(), guest(7)).unwrap();
    assert!(joined.reaches(PLACE, Try::Write));
}

#[test]
fn changes_are_flushed_and_tables_merged_however_many() {
    let mut joined = Joined::new(Sight::Coherent, &[(CAP, ECAP)]);
    let live = joined.world.ram.borrow().live.len();
    let places: Vec<u64> = (0..40).map(|n| 4 * HUGE + 2 * n * LARGE).collect();
    let all = Span::new(4 * HUGE, 5 * HUGE).unwrap();
    let change_all = |joined: &mut Joined, event: fn(u64) -> Event| {
        for place in &places {
            joined.world.change(*place, event(*place));
        }
        let leave = joined.ept.stale().flush(&mut joined.board);
        let Joined { world, board, .. } = joined;
        let gone = board.devices.revise(&mut board.mem, &world.frames, all);
        board.devices.flush(&mut board.mem).unwrap();
        board.devices.complete(&mut board.mem, &world.frames, all, &leave).unwrap();
        gone
    };
    joined.check(&places);
    let gone = change_all(&mut joined, take);
    assert!(places.iter().all(|place| gone.covers(page(*place))), "{gone}");
    joined.check(&places);
    assert_eq!(joined.world.ram.borrow().live.len(), live + 40);
    assert!(change_all(&mut joined, |_| Event::Release).is_empty());
    assert_eq!(joined.world.ram.borrow().live.len(), live);
    joined.check(&places);
}

#[test]
fn units_without_leaves_of_all_sizes_translate_no_more_than_ram_and_4_gib() {
    let small: &'static [Span] = Box::leak(Box::new([Span::new(0, 16 * PAGE).unwrap()]));
    for (cap, width) in [(CAP, 39), (CAP & !(1 << 35), 32), (CAP & !(0b11 << 34), 32)] {
        let words = usize::try_from(FrameTable::entries(small)).unwrap();
        let frames = FrameTable::new(small, Box::leak(std::vec![0; words].into())).unwrap();
        let ram = Ram::new(VISOR.start(), Sight::Coherent);
        let unit = Unit::probe(Fake::new(&ram, cap, ECAP), 0x1000).unwrap();
        let units = Box::leak(Box::new([unit]));
        let place = (&frames, &[][..]);
        let devices = Devices::start(units, &mut Mem(ram), place, (39, 16 * PAGE)).unwrap();
        assert_eq!(devices.domain.all(), Span::new(0, 1 << width).unwrap());
    }
}

#[test]
fn faults_of_all_units_are_told() {
    let mut joined = Joined::new(Sight::Coherent, &[(CAP, ECAP), (CAP, ECAP)]);
    for fake in &joined.world.fakes {
        assert!(fake.dma(DEVICE, VISOR.start(), Try::Read).is_err());
    }
    let mut faults = Vec::<Fault>::new();
    let told = joined.board.devices.poll(1 << 40, |fault| faults.push(fault)).unwrap();
    assert_eq!((told.records, told.lost, faults.len()), (2, false, 2));
    let again = joined.board.devices.poll(2 << 40, |_| panic!("it was told"));
    assert_eq!(again.unwrap().records, 0);
    for _ in 0..9 {
        assert!(joined.world.fakes[1].dma(DEVICE, VISOR.start(), Try::Read).is_err());
    }
    let too_early = joined.board.devices.poll(2 << 40, |_| panic!("it is too early"));
    assert!(!too_early.unwrap().lost);
    assert!(joined.board.devices.poll(3 << 40, drop).unwrap().lost);
}

#[test]
fn a_unit_that_is_switched_off_behind_the_visors_back_is_found_out() {
    let behind: [fn(&mut State); 4] = [
        |state| state.status &= !TE,
        |state| state.status &= !QIE,
        |state| state.status |= IRE,
        |state| state.root_register += PAGE,
    ];
    for (number, change) in behind.into_iter().enumerate() {
        let mut joined = Joined::new(Sight::Coherent, &[(CAP, ECAP), (CAP, ECAP)]);
        let devices = &mut joined.board.devices;
        assert!(devices.poll(1 << 40, drop).is_ok());
        assert!(devices.flush(&mut joined.board.mem).is_ok());
        change(&mut joined.world.fakes[1].0.borrow_mut());
        let error = devices.poll(2 << 40, drop).unwrap_err();
        assert_eq!(error.cause, Cause::Changed, "{number}");
        let page = Span::sized(PLACE, PAGE).unwrap();
        let _ = joined.world.frames.change(frame(PLACE), take(PLACE)).unwrap();
        let _ = devices.revise(&mut joined.board.mem, &joined.world.frames, page);
        let error = devices.flush(&mut joined.board.mem).unwrap_err();
        let queue_is_off = number == 1;
        let expected =
            if queue_is_off { Cause::Timeout(Step::Invalidation) } else { Cause::Changed };
        assert_eq!(error.cause, expected, "{number}");
    }
}

#[test]
fn without_memory_devices_lose_what_is_the_hosts_and_never_gain() {
    let mut joined = Joined::new(Sight::Coherent, &[(CAP, ECAP)]);
    joined.world.change(PLACE, take(0));
    joined.world.ram.borrow_mut().left = 0;
    let Joined { world, board, .. } = &mut joined;
    let gone = board.devices.revise(&mut board.mem, &world.frames, page(PLACE));
    assert!(gone.covers(Span::sized(PLACE - PLACE % LARGE, LARGE).unwrap()));
    board.devices.flush(&mut board.mem).unwrap();
    assert!(!joined.reaches(PLACE, Try::Read) && !joined.reaches(PLACE + PAGE, Try::Read));
    assert!(!joined.board.devices.agrees(
        &joined.board.mem,
        &joined.world.frames,
        frame(PLACE + PAGE)
    ));
    // The next change nearby gives it back.
    joined.world.ram.borrow_mut().left = 8;
    joined.machine().release(&[frame(PLACE)]).unwrap();
    joined.check(&PLACES);
}

#[test]
fn what_was_given_before_memory_ran_out_is_flushed_all_the_same() {
    // Units that remember absence.
    let mut joined = Joined::new(Sight::Coherent, &[(CAP | 1 << 7, ECAP)]);
    joined.machine().take(frame(PLACE), vm(), guest(7)).unwrap();
    joined.world.ram.borrow_mut().left = 0;
    joined.world.change(PLACE + LARGE, take(0));
    let Joined { world, board, .. } = &mut joined;
    let gone = board.devices.revise(&mut board.mem, &world.frames, page(PLACE + LARGE));
    assert!(gone.covers(page(PLACE + LARGE)));
    board.devices.flush(&mut board.mem).unwrap();
    assert!(!joined.reaches(PLACE, Try::Write));
    joined.world.change(PLACE, Event::Release);
    joined.world.ram.borrow_mut().left = 0;
    let leave = joined.ept.stale().flush(&mut joined.board);
    let both = Span::sized(PLACE - PLACE % LARGE, 2 * LARGE).unwrap();
    let Joined { world, board, .. } = &mut joined;
    let done = board.devices.complete(&mut board.mem, &world.frames, both, &leave);
    assert!(joined.reaches(PLACE, Try::Write), "{done:?}");
    assert_eq!(done.unwrap_err().cause, Cause::Exhausted);
}

/// Something that the visor does.
#[derive(Clone, Copy, Debug)]
enum Act {
    Take(u64),
    Show(u64, u8),
    Hide(u64),
    Release(u64, u64),
    Load(Guard),
    Unload,
    Use(u64),
}

fn act() -> impl Strategy<Value = Act> {
    let place = || proptest::sample::select(&PLACES[..]);
    prop_oneof![
        place().prop_map(Act::Take),
        place().prop_map(Act::Take),
        (place(), 0_u8..8).prop_map(|(at, number)| Act::Show(at, number)),
        place().prop_map(Act::Hide),
        (place(), place()).prop_map(|(one, other)| Act::Release(one, other)),
        Just(Act::Load(Guard::Counted)),
        Just(Act::Load(Guard::Guarded)),
        Just(Act::Unload),
        place().prop_map(Act::Use),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn devices_reach_what_the_host_reaches_whatever_the_visor_does(
        acts in proptest::collection::vec(act(), 1..30), kind in 0_usize..3,
    ) {
        static GENERATION: Generation = Generation::new();
        let (sight, unit) = match kind {
            0 => (Sight::Coherent, (CAP, ECAP)),
            1 => (Sight::WrittenBack, (CAP & !(1 << 35), ECAP & !1)),
            _ => (Sight::Coherent, (CAP | 1 << 7, ECAP)),
        };
        let mut joined = Joined::new(sight, &[unit, (CAP, ECAP)]);
        for pair in TABLES.windows(2) {
            let _ = joined.board.host.insert((pair[0], 3), pair[1] | 7);
        }
        let mut direct = Direct::<4>::new(&GENERATION);
        let root = frame(TABLES[0]);
        for act in acts {
            let flushes = joined.board.flushes;
            let mut machine = joined.machine();
            let done = match act {
                Act::Take(at) => machine.take(frame(at), vm(), guest(at / PAGE)).is_ok(),
                Act::Show(at, number) => machine.show(frame(at), View(number)).is_ok(),
                Act::Hide(at) => {
                    let hidden = machine.hide(frame(at));
                    let _ = hidden.flush(machine.hardware);
                    true
                }
                Act::Release(one, other) => machine.release(&[frame(one), frame(other)]).is_ok(),
                Act::Load(guard) => direct.load(&mut machine, root, guard, |_| false).is_ok(),
                Act::Unload => {
                    direct.release(&mut machine, root);
                    true
                }
                Act::Use(_) => false,
            };
            if let Act::Use(at) = act {
                joined.world.check(at);
            }
            if let (Act::Take(_), true) = (act, done) {
                prop_assert_eq!(joined.board.flushes, flushes + 1);
            }
            joined.check(&PLACES);
        }
    }
}
