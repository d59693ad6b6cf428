//! A host, two protected VMs, one that is not protected, and what must hold after everything that
//! happens between them.

use std::collections::BTreeMap;

use ept::addr::{Frame, GuestFrame, PAGE, Span};
use ept::direct::{Direct, Generation, Machine};
use ept::ept01::{Ept01, Rules};
use ept::frames::{self, FrameTable, Guard, State};
use ept::mtrr::Mtrrs;
use ept::shadow::Access;
use membrane::Progress;
use membrane::vm::{Cause, Fault, Filled, Life};
use membrane::vms::{Restart, Vms};
use sha2::{Digest, Sha256};
use ticket::parse::Sink;
use ticket::{Class, Header, Range, Secret};

use crate::board::{Board, Page, RAM, VIEWS, has_secret, secret};

pub(crate) const MIB: u64 = 1 << 20;
const WIDTH: u8 = 36;
pub(crate) const END: u64 = 8 * MIB;
/// Frames in the visor's pool.
pub(crate) const PLENTY: usize = 4096;

/// Pages that VMs use, in one page table.
pub(crate) const PRIVATE: [u64; 6] = [0x10, 0x11, 0x12, 0x13, 0x14, 0x15];
pub(crate) const SHARED: [u64; 3] = [0x20, 0x21, 0x30];
/// Pages that the manifest has: the last of these is the last one before memory of another class.
pub(crate) const KNOWN: [u64; 3] = [0x10, 0x11, 0x1f];
/// Private pages under one entry of the page directory.
pub(crate) const LARGE: (u64, u64) = (0x200, 0x400);
/// Private pages beside [`PRIVATE`].
const REST: (u64, u64) = (0x16, 0x20);
/// Frames that the host lends.
pub(crate) const DATA: (u64, u64) = (32, 56);

/// EPTP flags: write-back, four levels, accessed and dirty flags.
pub(crate) const EPTP: u64 = 0x5e;
/// A leaf that permits everything, of write-back memory.
pub(crate) const LEAF: u64 = 0x37;

/// Host tables of a VM, by what they are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tables {
    pub(crate) roots: [u64; 2],
    pub(crate) pdpt: u64,
    pub(crate) pd: u64,
    pub(crate) pt: u64,
    pub(crate) spare: u64,
}

/// Those of VM 0, 1, and of the one that is not protected.
pub(crate) const fn tables(vm: usize) -> Tables {
    let base = [0, 8, 16][vm] * PAGE;
    Tables {
        roots: [base, base + PAGE],
        pdpt: base + 2 * PAGE,
        pd: base + 3 * PAGE,
        pt: base + 4 * PAGE,
        spare: base + 5 * PAGE,
    }
}

/// A VM, and what it knows of its memory.
#[derive(Debug)]
pub(crate) struct Guest {
    pub(crate) number: frames::Vm,
    pub(crate) eptp: u64,
    pub(crate) expected: BTreeMap<u64, Page>,
}

/// Everything.
pub(crate) struct World {
    pub(crate) board: Board,
    pub(crate) table: FrameTable<'static>,
    mtrrs: &'static Mtrrs,
    ept: Ept01,
    direct: Direct<'static, 4>,
    pub(crate) vms: Box<Vms>,
    pub(crate) guests: [Option<Guest>; 2],
    /// What the next page that a VM stores has in it.
    stores: u64,
    launches: u8,
    /// How often tickets permit their VMs to be started anew.
    pub(crate) restarts: u32,
    /// Whether all that the host did was honest, so that no VM may be stopped.
    pub(crate) honest: bool,
}

/// What the image of the VM has at `page`.
pub(crate) fn image(page: u64) -> Page {
    let [low, ..] = page.to_le_bytes();
    [low ^ 0xa5; 4096]
}

fn index(number: u64) -> usize {
    usize::try_from(number % 512).unwrap()
}

pub(crate) fn frame(base: u64) -> Frame {
    Frame::at(base).unwrap()
}

impl World {
    pub(crate) fn new() -> Self {
        let ram: &'static [Span] = Vec::leak(RAM.map(|(a, b)| Span::new(a, b).unwrap()).to_vec());
        let words = usize::try_from(FrameTable::entries(ram)).unwrap();
        let mut table = FrameTable::new(ram, Vec::leak(vec![0; words])).unwrap();
        table.set_views(Span::new(VIEWS.0, VIEWS.1).unwrap());
        let mtrrs = Box::leak(Box::new(Mtrrs::read(WIDTH, |index| match index {
            0x2ff => 1 << 11 | 6,
            _ => 0,
        })));
        let mut board = Board::new(PLENTY);
        let rules = Rules { frames: &table, mtrrs, denied: &[] };
        let ept = Ept01::build(&mut board, &rules, END).unwrap();
        board.host = ept.pointer();
        let direct = Direct::new(Box::leak(Box::new(Generation::new())));
        let mut world = Self {
            board,
            table,
            mtrrs,
            ept,
            direct,
            vms: Box::new(Vms::new()),
            guests: [None, None],
            stores: 0,
            launches: 0,
            restarts: 0,
            honest: true,
        };
        for vm in 0..3 {
            world.build(vm);
        }
        world.board.remember();
        world
    }

    /// The pages that VMs use.
    pub(crate) fn pages(&self) -> impl Iterator<Item = u64> + use<> {
        let large = if self.board.seen > 2 * MIB { LARGE } else { (0, 0) };
        PRIVATE.into_iter().chain(REST.0..REST.1).chain(SHARED).chain(large.0..large.1)
    }

    /// A VM with pages enough for a large leaf, and all RAM looked at.
    pub(crate) fn large() -> Self {
        let mut world = Self::new();
        world.board.seen = 6 * MIB;
        world.board.remember();
        world.launch(0);
        world
    }

    /// Two VMs that run.
    pub(crate) fn running() -> Self {
        let mut world = Self::new();
        for vm in 0..2 {
            world.launch(vm);
        }
        world
    }

    /// The same, and both may be started anew so often.
    pub(crate) fn with_restarts(restarts: u32) -> Self {
        let mut world = Self::new();
        world.restarts = restarts;
        for vm in 0..2 {
            world.launch(vm);
        }
        world
    }

    /// Links the host's tables of a VM; nothing is mapped.
    fn build(&mut self, vm: usize) {
        let t = tables(vm);
        for root in t.roots {
            let _ = self.store(root, 0, t.pdpt | 7);
        }
        let _ = self.store(t.pdpt, 0, t.pd | 7);
        let _ = self.store(t.pd, 0, t.pt | 7);
    }

    pub(crate) fn parts(&mut self) -> (Machine<'_, 'static, Board>, &mut Vms) {
        let (machine, vms, _) = self.all();
        (machine, vms)
    }

    fn all(&mut self) -> (Machine<'_, 'static, Board>, &mut Vms, &mut Direct<'static, 4>) {
        let Self { board, table, mtrrs, ept, vms, direct, .. } = self;
        let machine =
            Machine { frames: table, mtrrs, denied: &[], ept: *ept, width: WIDTH, hardware: board };
        (machine, vms, direct)
    }

    /// Submits the ticket of VM `vm`.
    pub(crate) fn submit(&mut self, vm: usize) -> Result<frames::Vm, ticket::error::Error> {
        self.launches += 1;
        self.vms.begin(&mut self.board, [self.launches; 32]);
        let known = u32::try_from(KNOWN.len()).unwrap();
        let header = Header {
            vm: [u8::try_from(vm).unwrap(); 16],
            secret: Secret::new([0x5e; 32]),
            state: ticket::State::Reset,
            ranges: 4,
            disks: 0,
            pages: known,
            processors: 2,
            restarts: self.restarts,
        };
        let mut sink = self.vms.sink(&mut self.board);
        sink.header(&header)?;
        let ranges = [
            (0x10, 0x20, Class::Private),
            (0x20, 0x22, Class::Shared),
            (0x30, 0x31, Class::Window),
            (LARGE.0, LARGE.1, Class::Private),
        ];
        for (start, end, class) in ranges {
            sink.range(Range { start: start * PAGE, length: (end - start) * PAGE, class })?;
        }
        for page in KNOWN {
            sink.page(page * PAGE, &Sha256::digest(image(page)).into())?;
        }
        self.vms.accept(&mut self.board, 0, &ticket::Origin::default())
    }

    /// Submits the ticket of VM `vm` and starts it with its first root.
    pub(crate) fn launch(&mut self, vm: usize) {
        let waits = match self.submit(vm) {
            Ok(number) => number,
            Err(error) => {
                self.vms.refused(&mut self.board, error, 0);
                return;
            }
        };
        let number = self.vms.launch(0).unwrap();
        assert_eq!(number, waits);
        let eptp = self.vms.vm(number).unwrap().pointer();
        self.board.guests.push((eptp, self.pages().map(|page| page * PAGE).collect()));
        self.guests[vm] = Some(Guest { number, eptp, expected: BTreeMap::new() });
        self.load(vm, 0);
    }

    /// A processor enters the VM with one of its roots.
    pub(crate) fn load(&mut self, vm: usize, root: usize) {
        let root = frame(tables(vm).roots[root]);
        let Some(guest) = &self.guests[vm] else { return };
        let number = guest.number;
        let (mut machine, vms, direct) = self.all();
        let watched = direct.is_loaded(&machine, root) && machine.is_guarded(root);
        let loaded = direct.load(&mut machine, root, Guard::Guarded, |_| true);
        if loaded.is_ok() && !watched {
            vms.unwatched(&mut machine, number);
        }
    }

    /// The unprotected VM runs, with its tables as they are.
    pub(crate) fn load_unprotected(&mut self) {
        let (mut machine, _, direct) = self.all();
        let _ = direct.load(&mut machine, frame(tables(2).roots[0]), Guard::Counted, |_| true);
    }

    /// Everything leaves VMs, and the root is ordinary memory again.
    pub(crate) fn release_root(&mut self, vm: usize, root: usize) {
        let _ = self.until_done(|world| {
            let (mut machine, vms) = world.parts();
            vms.seal_all(&mut machine)
        });
        for guest in self.guests.iter().flatten() {
            assert_eq!(self.vms.vm(guest.number).unwrap().resident(), 0);
        }
        self.forget_root(frame(tables(vm).roots[root]));
    }

    /// The same, but the VM is not asked.
    pub(crate) fn forget_root(&mut self, root: Frame) {
        let (mut machine, _, direct) = self.all();
        direct.release(&mut machine, root);
    }

    pub(crate) fn until_done(&mut self, mut step: impl FnMut(&mut Self) -> Progress) -> usize {
        for times in 1..1000 {
            self.board.remember();
            if step(self) == Progress::Done {
                return times;
            }
            self.check();
        }
        panic!("it never ends");
    }

    /// The host stores an entry of a table. If it may not write there, the visor does.
    pub(crate) fn store(&mut self, table: u64, at: u64, value: u64) -> usize {
        use ept::direct::HostMemory;
        let at = index(at);
        if self.board.host_may(table) & 2 != 0 {
            let old = self.board.entry(frame(table), at);
            assert!(self.board.exchange(frame(table), at, old, value));
            return 0;
        }
        let address = table + u64::try_from(at).unwrap() * 8;
        let (machine, _) = self.parts();
        let Ok(store) = machine.before_write(address, 8, |_| value) else { return 0 };
        let times = store.map_or(0, |store| {
            self.until_done(|world| {
                let (mut machine, vms) = world.parts();
                vms.release_before(&mut machine, store.table, store.index, store.new)
            })
        });
        let (mut machine, _) = self.parts();
        let _ = machine.write(address, 8, |_| value);
        times
    }

    /// The host's entry of a table.
    pub(crate) fn entry(&self, table: u64, at: u64) -> u64 {
        use ept::direct::HostMemory;
        self.board.entry(frame(table), index(at))
    }

    /// Where the host arrives at `base`, if it may at all; `rights` are what it needs.
    fn touch(&mut self, base: u64, rights: u64) -> Option<u64> {
        if let Some(there) = self.arrive(base, rights) {
            return Some(there);
        }
        let private = matches!(self.table.state(frame(base)), Some(State::Private { .. }));
        let (mut machine, vms) = self.parts();
        assert_eq!(vms.touched(&mut machine, frame(base)), private);
        self.board.remember();
        self.arrive(base, rights)
    }

    fn arrive(&self, base: u64, rights: u64) -> Option<u64> {
        let there = self.board.host_finds(base);
        assert!(there.len() < 2, "the host may arrive at one of several: {there:x?}");
        there.into_iter().find(|(_, may)| may & rights == rights).map(|((_, to), _)| to)
    }

    /// What the host reads at `base`: it can always read its memory.
    pub(crate) fn host_read(&mut self, base: u64) -> Page {
        let there = self.touch(base, 1).unwrap();
        let page = self.board.page(there);
        assert!(!has_secret(&page), "the host reads a secret at {base:#x}");
        page
    }

    /// The host writes to `base`, if it is no table.
    pub(crate) fn host_write(&mut self, base: u64, page: &Page) {
        if let Some(there) = self.touch(base, 3) {
            self.board.set_page(there, page);
        }
    }

    /// A VM without a ticket wants `base`: if that is private, the host has it after that. What is in
    /// it then.
    pub(crate) fn other_vm_gets(&mut self, base: u64) -> Page {
        let private = matches!(self.table.state(frame(base)), Some(State::Private { .. }));
        let (mut machine, vms) = self.parts();
        assert_eq!(vms.give_up(&mut machine, frame(base)), private);
        self.host_read(base)
    }

    /// The VM accesses a page: where it arrives, in each way that it may, or how that ended.
    pub(crate) fn reach(
        &mut self,
        vm: usize,
        page: u64,
        access: Access,
    ) -> Result<Vec<u64>, Filled> {
        let Some(guest) = &self.guests[vm] else { return Err(Filled::Unloaded) };
        let (number, eptp) = (guest.number, guest.eptp);
        let root = tables(vm).roots[0];
        for _ in 0..4 {
            if let Life::Stopped(cause) = self.vms.vm(number).unwrap().life() {
                return Err(Filled::Stopped(cause));
            }
            self.board.remember();
            let there = self.board.guest_may(eptp, page * PAGE);
            let there: Vec<u64> = there
                .into_iter()
                .filter(|(_, rights)| rights & access.bits() == access.bits())
                .map(|(to, _)| to)
                .collect();
            if !there.is_empty() {
                return Ok(there);
            }
            let fault = Fault { at: page * PAGE + 8, access, word: 1 };
            let (mut machine, vms) = self.parts();
            let filled = vms.fill(&mut machine, number, root | EPTP, fault);
            if filled != Filled::Mapped {
                return Err(filled);
            }
        }
        panic!("a page that was mapped is not there");
    }

    /// The VM reads a page; what it finds is what it stored last, or what the ticket says.
    pub(crate) fn guest_read(&mut self, vm: usize, page: u64) -> Result<(), Filled> {
        for at in self.reach(vm, page, Access::READ)? {
            let found = self.board.page(at);
            if SHARED.contains(&page) {
                continue;
            }
            let guest = self.guests[vm].as_ref().unwrap();
            let first = if KNOWN.contains(&page) { image(page) } else { [0; 4096] };
            let expected = guest.expected.get(&page).copied().unwrap_or(first);
            assert!(found == expected, "VM {vm} finds {:02x?} at {page:#x}", &found[..16]);
        }
        Ok(())
    }

    /// The VM stores a page.
    pub(crate) fn guest_write(&mut self, vm: usize, page: u64) -> Result<(), Filled> {
        self.stores += 1;
        let is_shared = SHARED.contains(&page);
        let content = if is_shared { [0x77; 4096] } else { secret(self.stores) };
        for at in self.reach(vm, page, Access::READ.or(Access::WRITE))? {
            self.board.set_page(at, &content);
        }
        if !is_shared {
            let _ = self.guests[vm].as_mut().unwrap().expected.insert(page, content);
        }
        self.board.check_secrets();
        Ok(())
    }

    /// The VM gives up what is in these pages: from now on it finds zeros there.
    pub(crate) fn guest_forget(&mut self, vm: usize, pages: &[u64]) {
        let Some(guest) = &mut self.guests[vm] else { return };
        let number = guest.number;
        let private = pages.iter().filter(|page| !SHARED.contains(page));
        guest.expected.extend(private.map(|page| (*page, [0; 4096])));
        let launch = self.vms.vm(number).unwrap().launch();
        self.board.remember();
        let (mut machine, vms) = self.parts();
        let pages = pages.iter().map(|page| GuestFrame::containing(page * PAGE));
        if let Err(cause) = vms.forget(&mut machine, (number, launch), pages) {
            vms.close(&mut machine, number, cause);
        }
    }

    /// Destroys a VM.
    pub(crate) fn destroy(&mut self, vm: usize) -> usize {
        let Some(guest) = &self.guests[vm] else { return 0 };
        let (number, eptp) = (guest.number, guest.eptp);
        let launch = self.vms.vm(number).map_or(0, membrane::vm::Vm::launch);
        // From its first step on nobody enters the VM. What processors remember they still do.
        self.board.remember();
        self.board.guests.retain(|(other, _)| *other != eptp);
        self.until_done(|world| {
            let (mut machine, vms) = world.parts();
            let progress = vms.destroy(&mut machine, number);
            assert!(vms.pointer_if_running(number, launch).is_none());
            if progress == Progress::Done {
                world.guests[vm] = None;
            }
            progress
        })
    }

    /// The host starts a VM anew. If that runs, it knows nothing of what it was. How many pieces that took.
    pub(crate) fn restart(&mut self, vm: usize) -> Option<usize> {
        let number = self.guests[vm].as_ref()?.number;
        let launch = self.vms.vm(number).unwrap().launch();
        if self.cause(vm).is_none() {
            let (mut machine, vms) = self.parts();
            assert_eq!(vms.restart(&mut machine, (number, launch), &[0; 32]), Restart::Refused);
            assert_eq!(self.cause(vm), Some(Cause::Restarted), "it is stopped first");
        }
        for times in 1..1000 {
            self.launches = self.launches.wrapping_add(1);
            self.board.remember();
            let random = [self.launches; 32];
            let (mut machine, vms) = self.parts();
            let restart = vms.restart(&mut machine, (number, launch), &random);
            assert_eq!(vms.pointer_if_running(number, launch), None, "the launch of before runs");
            match restart {
                Restart::Again => {
                    let honest = std::mem::replace(&mut self.honest, false);
                    self.check();
                    self.honest = honest;
                }
                Restart::Refused => return None,
                Restart::Launched(next) => {
                    assert!(vms.running(number, next).is_some());
                    self.guests[vm].as_mut().unwrap().expected.clear();
                    return Some(times);
                }
            }
        }
        panic!("it never ends");
    }

    /// Why a VM was stopped, if it was.
    pub(crate) fn cause(&self, vm: usize) -> Option<Cause> {
        let guest = self.guests[vm].as_ref()?;
        match self.vms.vm(guest.number)?.life() {
            Life::Stopped(cause) => Some(cause),
            Life::Waiting | Life::Running => None,
        }
    }

    /// Frees frames of the pool or takes them away.
    pub(crate) fn starve(&mut self, left: usize) {
        self.board.left = left;
    }
}
