//! Hosts that play, driven by bytes: an honest one, that swaps and moves pages as hosts do, and one
//! that does anything. [`honest`] and [`hostile`] are also what a fuzzer would call.

use std::collections::{BTreeMap, BTreeSet};

use ept::addr::{GuestFrame, PAGE};
use ept::frames::State;
use ept::shadow::Access;
use membrane::vm::Filled;
use proptest::collection::vec;
use proptest::prelude::*;

use crate::board::Page;
use crate::world::{DATA, KNOWN, LEAF, PLENTY, PRIVATE, SHARED, World, frame, image, tables};

/// Takes one byte after the other; 0 when there are no more.
struct Input<'a>(std::slice::Iter<'a, u8>);

impl Input<'_> {
    fn byte(&mut self) -> u8 {
        self.0.next().copied().unwrap_or(0)
    }

    fn below(&mut self, end: u64) -> u64 {
        u64::from(self.byte()) % end
    }

    fn one_of<T: Copy>(&mut self, items: &[T]) -> T {
        items[usize::from(self.byte()) % items.len()]
    }

    fn vm(&mut self) -> usize {
        usize::from(self.byte()) % 2
    }

    fn data(&mut self) -> u64 {
        (DATA.0 + self.below(DATA.1 - DATA.0)) * PAGE
    }
}

fn all_pages() -> Vec<u64> {
    PRIVATE.into_iter().chain(SHARED).collect()
}

/// What an honest host knows.
#[derive(Default)]
struct Host {
    /// Where pages are, by VM and page.
    places: BTreeMap<(usize, u64), u64>,
    /// What it has of pages that are nowhere.
    swap: BTreeMap<(usize, u64), Page>,
    /// What it read of pages that came back and were only read since.
    clean: BTreeMap<(usize, u64), Page>,
    /// What it saw of private pages that it did not write to and that were only read since.
    seen: BTreeMap<(usize, u64), Page>,
    /// Private pages that it wrote to since they came.
    scribbled: BTreeSet<(usize, u64)>,
    /// Private pages that the VM gave up and has not touched since: what is there is nothing that will be
    /// there again, and the VM's next touch, which the host is told of as a write or not at all, changes it.
    given_up: BTreeSet<(usize, u64)>,
}

impl Host {
    /// A frame that nothing is in.
    fn free(&self, input: &mut Input<'_>) -> u64 {
        let used: Vec<u64> = self.places.values().copied().collect();
        let first = input.data();
        let frames = (DATA.0..DATA.1).map(|number| number * PAGE).cycle();
        let mut free = frames.skip_while(|base| *base != first).filter(|base| !used.contains(base));
        free.next().unwrap()
    }

    /// Answers what it is told: a write to a page that is not there, or that it lets nobody write to.
    fn lend(&mut self, world: &mut World, input: &mut Input<'_>, at: (usize, u64)) {
        let Some(place) = self.places.get(&at) else { return self.swap_in(world, input, at) };
        let entry = world.entry(tables(at.0).pt, at.1);
        assert_eq!(entry & 2, 0, "a page that is there is absent");
        let _ = world.store(tables(at.0).pt, at.1, place | LEAF);
    }

    /// Puts a page where the VM wants it.
    fn swap_in(&mut self, world: &mut World, input: &mut Input<'_>, at: (usize, u64)) {
        let place = self.free(input);
        let first = if KNOWN.contains(&at.1) { image(at.1) } else { [input.byte(); 4096] };
        let content = self.swap.remove(&at);
        if let Some(content) = content
            && !self.given_up.contains(&at)
        {
            let _ = self.clean.insert(at, content);
        }
        world.host_write(place, &content.unwrap_or(first));
        let _ = world.store(tables(at.0).pt, at.1, place | LEAF);
        let _ = self.places.insert(at, place);
    }

    /// Looks at a page that a VM uses, as tools that dump VMs do, or writes to it while the VM has it, as none
    /// should: that is lost. What was sealed where it lies, ahead of others that left, a write would forge.
    fn meddle(&mut self, world: &mut World, input: &mut Input<'_>, at: (usize, u64)) {
        let Some(place) = self.places.get(&at) else { return };
        if SHARED.contains(&at.1) {
            return;
        }
        let state = world.table.state(frame(*place));
        if input.below(2) == 0 && matches!(state, Some(State::Private { .. })) {
            world.host_write(*place, &[input.byte(); 4096]);
            let _ = self.scribbled.insert(at);
            return;
        }
        let content = world.host_read(*place);
        if !self.scribbled.contains(&at) && !self.given_up.contains(&at) {
            let same = self.seen.insert(at, content).is_none_or(|before| before == content);
            assert!(same, "page {:#x} has changed its bytes", at.1);
        }
    }

    /// Takes a page away. One that was not changed is the same again.
    fn swap_out(&mut self, world: &mut World, at: (usize, u64)) {
        let Some(place) = self.places.remove(&at) else { return };
        let _ = self.scribbled.remove(&at);
        let _ = world.store(tables(at.0).pt, at.1, 0);
        let content = world.host_read(place);
        if SHARED.contains(&at.1) {
            return;
        }
        for before in [self.clean.remove(&at), self.seen.remove(&at)].into_iter().flatten() {
            assert!(before == content, "page {:#x} has changed its bytes", at.1);
        }
        let _ = self.swap.insert(at, content);
    }

    /// A VM was started anew: the host loads again what it has to find.
    fn reset(&mut self, world: &mut World, vm: usize) {
        self.swap.retain(|at, _| at.0 != vm);
        self.clean.retain(|at, _| at.0 != vm);
        self.seen.retain(|at, _| at.0 != vm);
        self.scribbled.retain(|at| at.0 != vm);
        self.given_up.retain(|at| at.0 != vm);
        for ((_, page), place) in self.places.iter().filter(|(at, _)| at.0 == vm) {
            if KNOWN.contains(page) {
                world.host_write(*place, &image(*page));
            }
            let _ = world.store(tables(vm).pt, *page, place | LEAF);
            world.guest_read(vm, *page).unwrap();
        }
    }
}

/// The VM accesses a page, and the host answers what it is told.
fn access(world: &mut World, host: &mut Host, input: &mut Input<'_>, at: (usize, u64)) {
    let writes = input.below(3) == 0;
    let access = |world: &mut World| {
        if writes { world.guest_write(at.0, at.1) } else { world.guest_read(at.0, at.1) }
    };
    if let Err(filled) = access(world) {
        let page = GuestFrame::at(at.1 * PAGE).unwrap();
        match filled {
            Filled::Absent(absent) => {
                assert_eq!(absent, page);
                host.lend(world, input, at);
            }
            Filled::Denied { at: denied, .. } => {
                assert_eq!(denied, page);
                let place = host.places[&at];
                let _ = world.store(tables(at.0).pt, at.1, place | LEAF);
            }
            Filled::Mapped | Filled::Unloaded | Filled::Device { .. } | Filled::Stopped(_) => {
                panic!("an honest host is told {filled:?}")
            }
        }
        access(world).unwrap();
    }
    let _ = host.given_up.remove(&at);
    if writes {
        let _ = host.clean.remove(&at);
        let _ = host.seen.remove(&at);
    }
}

fn honest_step(world: &mut World, host: &mut Host, input: &mut Input<'_>) {
    let at = (input.vm(), input.one_of(&all_pages()));
    match input.byte() % 15 {
        12 => {
            let _ = world.restart(at.0).unwrap();
            host.reset(world, at.0);
        }
        13 | 14 => {
            world.guest_forget(at.0, &[at.1]);
            // What the host has of it is worth nothing: the VM does not mind which bytes come back.
            let _ = (host.clean.remove(&at), host.seen.remove(&at), host.swap.remove(&at));
            let _ = host.given_up.insert(at);
        }
        0..=5 => access(world, host, input, at),
        6 | 7 => host.swap_out(world, at),
        8 => {
            // It tracks what the VM writes, or how old its pages are.
            if let Some(place) = host.places.get(&at) {
                let rights = input.one_of(&[0x35, 0x137, 0x237, 0x335]);
                let _ = world.store(tables(at.0).pt, at.1, place | rights);
            }
        }
        9 => host.meddle(world, input, at),
        10 => {
            // The VM gets a second root, and another processor uses it.
            world.load(at.0, 1);
        }
        _ => {
            let vm = at.0;
            let pages: Vec<_> = host.places.keys().copied().filter(|at| at.0 == vm).collect();
            let t = tables(vm);
            let _ = world.store(t.pd, 0, 0);
            for at in pages {
                // The table is plain memory now.
                let _ = world.store(t.pt, at.1, 0);
                if let Some(place) = host.places.remove(&at) {
                    let content = world.host_read(place);
                    if !SHARED.contains(&at.1) {
                        let _ = host.swap.insert(at, content);
                        let _ = (host.clean.remove(&at), host.seen.remove(&at));
                        let _ = host.scribbled.remove(&at);
                    }
                }
            }
            let _ = world.store(t.pd, 0, t.pt | 7);
        }
    }
}

/// An honest host: no VM is ever stopped, and each finds what it stored.
pub(crate) fn honest(bytes: &[u8]) {
    let mut world = World::with_restarts(1000);
    let mut host = Host::default();
    let mut input = Input(bytes.iter());
    while input.0.len() != 0 {
        honest_step(&mut world, &mut host, &mut input);
        world.check();
    }
    for (vm, page) in (0..2).flat_map(|vm| PRIVATE.map(|page| (vm, page))) {
        if world.guest_read(vm, page).is_err() {
            host.lend(&mut world, &mut input, (vm, page));
            world.guest_read(vm, page).unwrap();
        }
    }
    world.finish();
}

/// What a hostile host has seen.
#[derive(Default)]
struct Spy {
    seen: Vec<Page>,
    /// What pages were when it took them away.
    swap: BTreeMap<(usize, u64), Page>,
}

impl Spy {
    /// Does, for once, what the VM needs.
    fn serve(&mut self, world: &mut World, input: &mut Input<'_>, at: (usize, u64)) {
        let t = tables(at.0);
        world.load(at.0, 0);
        if world.entry(t.pd, 0) != t.pt | 7 {
            let _ = world.store(t.pd, 0, t.pt | 7);
        }
        let entry = world.entry(t.pt, at.1);
        if entry & 7 != 0 {
            let _ = world.store(t.pt, at.1, entry | LEAF);
            return;
        }
        let entries = (0..3).flat_map(|vm| all_pages().into_iter().map(move |page| (vm, page)));
        let used: Vec<u64> =
            entries.map(|(vm, page)| world.entry(tables(vm).pt, page) & !0xfff).collect();
        let first = input.data();
        let frames = (DATA.0..DATA.1).map(|number| number * PAGE).cycle();
        let place = frames.skip_while(|base| *base != first).find(|base| !used.contains(base));
        let content = self.swap.remove(&at).unwrap_or(image(at.1));
        world.host_write(place.unwrap(), &content);
        let _ = world.store(t.pt, at.1, place.unwrap() | LEAF);
    }

    /// Takes a page away, and keeps what it is then.
    fn swap_out(&mut self, world: &mut World, at: (usize, u64)) {
        let pt = tables(at.0).pt;
        let place = world.entry(pt, at.1) & !0xfff;
        let _ = world.store(pt, at.1, 0);
        if (DATA.0..DATA.1).contains(&(place / PAGE)) {
            let _ = self.swap.insert(at, world.host_read(place));
        }
    }
}

/// The VM accesses a page; mostly the host helps, if it has to.
fn use_page(world: &mut World, spy: &mut Spy, input: &mut Input<'_>, at: (usize, u64)) {
    let writes = input.below(2) == 0;
    for _ in 0..2 {
        let done =
            if writes { world.guest_write(at.0, at.1) } else { world.guest_read(at.0, at.1) };
        let helps = input.below(8) != 0;
        if done.is_ok() || !helps || world.cause(at.0).is_some() {
            break;
        }
        spy.serve(world, input, at);
    }
}

fn hostile_step(world: &mut World, spy: &mut Spy, input: &mut Input<'_>) {
    let at = (input.vm(), input.one_of(&all_pages()));
    let (vm, page) = at;
    let t = tables(vm);
    match input.byte() % 44 {
        0..=15 => use_page(world, spy, input, at),
        16..=20 => spy.swap_out(world, at),
        21 => drop(world.reach(vm, page, Access::FETCH)),
        22 => {
            let low = input.one_of(&[0x37, 0x337, 0x35, 0x31, 0x33, 0x34, 0x36, 7, 0x87, 0]);
            let _ = world.store(t.pt, page, input.data() | low);
        }
        23 => {
            // The same frame for two pages, perhaps of two VMs.
            let entry = world.entry(t.pt, page);
            let _ = world.store(tables(input.vm()).pt, input.one_of(&all_pages()), entry);
        }
        24 => misuse_table(world, input, vm, page),
        25 | 26 => {
            let entry = world.entry(t.pt, page);
            let _ = world.store(t.pt, page, entry ^ input.one_of(&[1, 2, 4, 0x100, 0x200, 0x800]));
        }
        27..=29 => spy.seen.push(world.host_read(input.data())),
        30 => {
            let bytes = [[input.byte(); 4096], image(page), [0; 4096]];
            let replay = spy.seen.get(usize::from(input.byte()) % 8).copied();
            let content = replay.unwrap_or(input.one_of(&bytes));
            world.host_write(input.data(), &content);
            let _ = spy.swap.insert(at, content);
        }
        31 => misuse_root(world, input, vm),
        32..=34 => {
            world.load_unprotected();
            let value = input.one_of(&[0, 1, 2]) * input.data();
            let leaf = if value == 0 { 0 } else { input.data() | LEAF };
            let _ = world.store(tables(2).pt, input.one_of(&all_pages()), leaf);
        }
        40 | 41 => drop(world.restart(vm)),
        42 | 43 => {
            let other = input.one_of(&all_pages());
            world.guest_forget(vm, &[page, other, page]);
            // Perhaps the host has it back as it was before.
            if input.below(2) == 0 {
                let _ = spy.swap.remove(&at);
            }
        }
        38 => spy.seen.push(world.other_vm_gets(input.data())),
        35..=37 => {
            if input.below(8) == 0 || world.cause(vm).is_some() {
                let _ = world.destroy(vm);
                world.launch(vm);
                spy.swap.retain(|(other, _), _| *other != vm);
            }
        }
        _ => {
            let left = usize::from(input.byte());
            world.starve(if left < 12 { left } else { PLENTY });
        }
    }
}

/// Tables as pages, and as tables where they do not belong.
fn misuse_table(world: &mut World, input: &mut Input<'_>, vm: usize, page: u64) {
    let (t, other) = (tables(vm), tables(input.vm()));
    if input.below(4) == 0 {
        let place = [t.pt, t.pd, other.pt, t.roots[0], world.board.host & !0xfff];
        let _ = world.store(t.pt, page, input.one_of(&place) | LEAF);
        return;
    }
    let data = input.data();
    let table = input.one_of(&[t.pt, t.spare, 0, tables(1 - vm).pt, data]);
    let low = if table == 0 { 0 } else { 7 };
    let _ = world.store(t.pd, input.below(2), table | low);
}

/// Roots that come and go, watched or not.
fn misuse_root(world: &mut World, input: &mut Input<'_>, vm: usize) {
    let root = usize::from(input.byte()) % 2;
    match input.below(3) {
        0 => world.release_root(vm, root),
        1 => world.forget_root(frame(tables(vm).roots[root])),
        _ => {}
    }
    world.load(vm, root);
}

/// A host that does anything.
pub(crate) fn hostile(bytes: &[u8]) {
    let mut world = World::with_restarts(3);
    world.honest = false;
    let mut spy = Spy::default();
    let mut input = Input(bytes.iter());
    while input.0.len() != 0 {
        hostile_step(&mut world, &mut spy, &mut input);
        world.check();
    }
    world.finish();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn an_honest_host_swaps_and_moves_pages_and_no_vm_notices(bytes in vec(any::<u8>(), 0..320)) {
        honest(&bytes);
    }

    #[test]
    fn a_hostile_host_sees_no_secret_and_no_vm_finds_what_it_did_not_store(
        bytes in vec(any::<u8>(), 0..320),
    ) {
        hostile(&bytes);
    }
}
