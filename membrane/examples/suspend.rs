//! Suspends protected VMs of growing size, and counts what that takes. The bench `suspend` builds this as
//! the visor is built, and runs it.
//!
//! Everything is the visor's own but the hardware: the content of pages is made up and forgotten, so
//! that VMs may have more memory than this machine. A page is sealed like any other.
//!
//! Each line is a VM: `suspend MODE PAGES` and the numbers of [`Taken`]. In the mode `slot` the host takes
//! the memory away at once, as KVM does with a memory slot; in the mode `page`, page by page, as it does
//! when it swaps; in the mode `read` it only reads all pages, as a VMM does that saves a VM.
#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::large_stack_frames,
    reason = "a tool for measuring, not a part of the visor"
)]

use std::cell::Cell;
use std::fmt;
use std::time::Instant;

use ept::addr::{Frame, HUGE, PAGE, Span};
use ept::direct::{Direct, Generation, HostMemory, Machine};
use ept::ept01::{Ept01, Flushed, Rules, TableMem, Tlb};
use ept::frames::{FrameTable, Guard, Vm};
use ept::mtrr::Mtrrs;
use ept::shadow::Access;
use membrane::vm::{Fault, Filled};
use membrane::vms::Vms;
use membrane::{Pages, Progress};
use ticket::parse::Sink;
use ticket::{Class, Header, Range, Secret, State};

/// Pages of the VMs.
const SIZES: [u64; 6] = [1 << 10, 1 << 12, 1 << 14, 1 << 16, 1 << 18, 1 << 20];
/// The host's tables lie from 0 on, the frames that it lends from here on, twice as many as the
/// largest VM needs.
const DATA: u64 = HUGE;
const FRAMES: u64 = 2 << 20;
const END: u64 = DATA + FRAMES * PAGE;
/// Scatters consecutive pages over all frames, each in one of its own.
const STRIDE: u64 = 0x9_e371;
/// Frames in which the host sees pages that it reads.
const VIEWS: u64 = 256;
/// The visor's own frames.
const POOL: u64 = 1 << 46;
const WIDTH: u8 = 36;
/// EPTP flags: write-back, four levels, accessed and dirty flags.
const EPTP: u64 = 0x5e;
/// Entries that permit everything: one that leads on, and a leaf of write-back memory.
const LINK: u64 = 7;
const LEAF: u64 = 0x337;
/// An entry of EPT01 is a large leaf.
const LARGE: u64 = 1 << 7;

type Table = [u64; 512];

/// The hardware, with counters.
#[derive(Default)]
struct Board {
    /// The host's tables by their frames from 0 on.
    host: Vec<Table>,
    pool: Vec<Table>,
    free: Vec<usize>,
    /// Words of tables that were read or written, the visor's and the host's.
    words: Cell<u64>,
    flushes: u64,
    worked: u64,
    copied: u64,
}

fn number(base: u64) -> usize {
    usize::try_from(base / PAGE).expect("it is a number of a frame")
}

impl Board {
    fn touch(&self, words: u64) {
        self.words.set(self.words.get() + words);
    }

    /// Bytes of the visor's frames in use.
    fn used(&self) -> u64 {
        let frames = self.pool.len() - self.free.len();
        u64::try_from(frames).expect("frames are few") * PAGE
    }

    /// Bytes of the tables below `entry` of a table of EPT01, whose entries translate 1 << `shift` bytes.
    fn below(&self, entry: u64, shift: u32) -> u64 {
        if entry & LINK == 0 || entry & LARGE != 0 || shift == 12 {
            return 0;
        }
        let table = &self.pool[number(Frame::containing(entry).base() - POOL)];
        PAGE + table.iter().map(|entry| self.below(*entry, shift - 9)).sum::<u64>()
    }
}

impl TableMem for Board {
    fn allocate(&mut self) -> Option<Frame> {
        self.touch(512);
        let index = self.free.pop().unwrap_or(self.pool.len());
        self.pool.resize(self.pool.len().max(index + 1), [0; 512]);
        self.pool[index] = [0; 512];
        Frame::at(POOL + u64::try_from(index).ok()? * PAGE)
    }

    fn free(&mut self, frame: Frame) {
        self.free.push(number(frame.base() - POOL));
    }

    fn read(&self, table: Frame, index: usize) -> u64 {
        self.touch(1);
        self.pool[number(table.base() - POOL)][index]
    }

    fn write(&mut self, table: Frame, index: usize, raw: u64) {
        self.touch(1);
        self.pool[number(table.base() - POOL)][index] = raw;
    }
}

impl HostMemory for Board {
    fn entry(&self, table: Frame, index: usize) -> u64 {
        self.touch(1);
        self.host[number(table.base())][index]
    }

    fn exchange(&mut self, table: Frame, index: usize, old: u64, new: u64) -> bool {
        self.touch(1);
        let entry = &mut self.host[number(table.base())][index];
        let same = *entry == old;
        if same {
            *entry = new;
        }
        same
    }
}

impl Tlb for Board {
    fn flush(&mut self, _: Span) {
        self.flushes += 1;
    }

    fn revise_devices(&mut self, _: &FrameTable<'_>, _: Span) -> Span {
        Span::EMPTY
    }

    fn complete_devices(&mut self, _: &FrameTable<'_>, _: Span, _: &Flushed) {}
}

impl Pages for Board {
    fn with_page<T>(&mut self, _: Frame, work: impl FnOnce(&mut [u8; 4096]) -> T) -> T {
        self.worked += 1;
        work(&mut [0x42; 4096])
    }

    fn copy(&mut self, _: Frame, _: Frame) {
        self.copied += 1;
    }

    fn cpu(&self) -> u32 {
        0
    }

    fn may_spend(&self) -> bool {
        true
    }

    fn window_word(_: usize, _: u64) -> u64 {
        // No VM here has a window.
        0
    }
}

/// What a suspension takes.
struct Taken {
    /// Exits of the host's: its stores, each as often as it has to be repeated.
    exits: u64,
    words: u64,
    flushes: u64,
    /// Bytes that the visor has for the VM, before and after.
    resident: u64,
    sealed: u64,
    /// Bytes of EPT01 before, to keep the host out of the VM's frames one by one.
    split: u64,
    nanoseconds: u128,
}

impl fmt::Display for Taken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { exits, words, flushes, resident, sealed, split, nanoseconds } = self;
        write!(f, "{exits} {words} {flushes} {resident} {sealed} {split} {nanoseconds}")
    }
}

struct World<'w> {
    board: Board,
    table: FrameTable<'w>,
    mtrrs: &'w Mtrrs,
    ept: Ept01,
    vms: Box<Vms>,
}

impl<'w> World<'w> {
    fn new(table: FrameTable<'w>, mtrrs: &'w Mtrrs) -> Self {
        let mut board = Board::default();
        let rules = Rules { frames: &table, mtrrs, denied: &[] };
        let ept = Ept01::build(&mut board, &rules, END).expect("the pool has no end");
        Self { board, table, mtrrs, ept, vms: Box::new(Vms::new()) }
    }

    fn parts(&mut self) -> (Machine<'_, 'w, Board>, &mut Vms) {
        let Self { board, table, mtrrs, ept, vms } = self;
        let (ept, hardware) = (*ept, board);
        let machine = Machine { frames: table, mtrrs, denied: &[], ept, width: WIDTH, hardware };
        (machine, vms)
    }

    /// A VM whose pages are all resident.
    fn launch(&mut self, pages: u64) {
        self.vms.begin(&mut self.board, [1; 32]);
        let secret = Secret::new([2; 32]);
        let header = Header {
            vm: [3; 16],
            secret,
            state: State::Reset,
            ranges: 1,
            disks: 0,
            pages: 0,
            processors: 1,
            restarts: 0,
        };
        let mut sink = self.vms.sink(&mut self.board);
        sink.header(&header).expect("the ticket is good");
        let all = Range { start: 0, length: pages * PAGE, class: Class::Private };
        sink.range(all).expect("the ticket is good");
        let _ = self
            .vms
            .accept(&mut self.board, 0, &ticket::Origin::default())
            .expect("the ticket is good");
        let vm = self.vms.launch(0).expect("a ticket waits");
        let generation = Generation::new();
        let mut direct = Direct::<1>::new(&generation);
        let root = Frame::containing(0);
        let (mut machine, _) = self.parts();
        let _ =
            direct.load(&mut machine, root, Guard::Guarded, |_| true).expect("the tables are good");
        for page in 0..pages {
            self.fill(vm, page * PAGE);
        }
    }

    /// Bytes that the visor has for the VM: those in its pool, and what the frame table has for so many
    /// frames; and bytes of EPT01.
    fn bytes(&self, frames: u64) -> (u64, u64) {
        let ept01 = self.board.below(self.ept.pointer(), 48);
        let part = Span::sized(0, frames * PAGE).expect("it ends below the end of RAM");
        (self.board.used() - ept01 + 8 * FrameTable::entries(&[part]), ept01)
    }

    fn fill(&mut self, vm: Vm, at: u64) {
        let (mut machine, vms) = self.parts();
        let access = Access::READ.or(Access::WRITE);
        let filled = vms.fill(&mut machine, vm, EPTP, Fault { at, access, word: 1 });
        assert_eq!(filled, Filled::Mapped, "page {at:#x}");
    }

    /// The host reads a page where it has lent it; how many exits that takes.
    fn read(&mut self, page: u64) -> u64 {
        let (mut machine, vms) = self.parts();
        assert!(vms.touched(&mut machine, lent(page)), "page {page:#x}");
        1
    }

    /// The host clears an entry of its tables; how many exits that takes.
    fn clear(&mut self, address: u64) -> u64 {
        let mut exits = 0;
        loop {
            exits += 1;
            let (mut machine, vms) = self.parts();
            let store = machine.before_write(address, 8, |_| 0).expect("it is an entry");
            let done = store.is_none_or(|store| {
                vms.release_before(&mut machine, store.table, store.index, 0) == Progress::Done
            });
            if done {
                let _ = machine.write(address, 8, |_| 0).expect("it is an entry");
                return exits;
            }
        }
    }
}

/// The frame that the host lends for a page.
fn lent(page: u64) -> Frame {
    Frame::containing(DATA + page.wrapping_mul(STRIDE) % FRAMES * PAGE)
}

/// The host's tables for a VM of so many pages: the root, what is below it, the page directories, and
/// last the page tables.
fn tables(pages: u64) -> Vec<Table> {
    let directories = (pages * PAGE).div_ceil(HUGE);
    let mut tables = vec![[0; 512]; number((2 + directories + pages / 512) * PAGE)];
    let mut link = |table: u64, entry: u64, value: u64| {
        let (table, entry) = (table + entry / 512, entry % 512);
        tables[number(table * PAGE)][number(entry * PAGE)] = value;
    };
    link(0, 0, PAGE | LINK);
    (0..directories).for_each(|entry| link(1, entry, ((2 + entry) * PAGE) | LINK));
    let first = 2 + directories;
    (0..pages / 512).for_each(|entry| link(2, entry, ((first + entry) * PAGE) | LINK));
    for page in 0..pages {
        link(first, page, lent(page).base() | LEAF);
    }
    tables
}

/// Addresses of the entries that the host clears.
fn entries(mode: &str, pages: u64) -> impl Iterator<Item = u64> {
    let directories = (pages * PAGE).div_ceil(HUGE);
    let (first, count) =
        if mode == "slot" { (PAGE, directories) } else { ((2 + directories) * PAGE, pages) };
    (0..count).map(move |entry| first + entry * 8)
}

fn suspend(mode: &str, pages: u64) -> Taken {
    let ram = [Span::new(0, END).expect("it ends above 0")];
    let words = usize::try_from(FrameTable::entries(&ram)).expect("it fits into memory");
    let mut storage = vec![0; words];
    let mut table = FrameTable::new(&ram, &mut storage).expect("the RAM is in order");
    table.set_views(Span::sized(END, VIEWS * PAGE).expect("it ends below the end of addresses"));
    let all_write_back = |index| if index == 0x2ff { 1 << 11 | 6 } else { 0 };
    let mtrrs = Mtrrs::read(WIDTH, all_write_back);
    let mut world = World::new(table, &mtrrs);
    world.board.host = tables(pages);
    let (_, whole) = world.bytes(0);
    world.launch(pages);
    let (resident, split) = world.bytes(pages);
    (world.board.flushes, world.board.worked) = (0, 0);
    world.board.words.set(0);
    let began = Instant::now();
    let exits = match mode {
        "read" => (0..pages).map(|page| world.read(page)).sum(),
        _ => entries(mode, pages).map(|entry| world.clear(entry)).sum(),
    };
    let nanoseconds = began.elapsed().as_nanos();
    assert_eq!(world.board.worked, pages, "pages that were sealed");
    let shown = if mode == "read" { pages } else { 0 };
    assert_eq!(world.board.copied, shown, "pages of which the host has a view");
    let Board { words, flushes, .. } = &world.board;
    let (words, flushes) = (words.get(), *flushes);
    // A sealed page is in no frame of the VM's.
    let (sealed, _) = world.bytes(0);
    Taken { exits, words, flushes, resident, sealed, split: split - whole, nanoseconds }
}

fn main() {
    for mode in ["slot", "page", "read"] {
        for pages in SIZES {
            println!("suspend {mode} {pages} {}", suspend(mode, pages));
        }
    }
}
