//! Memory as the visor writes it, and as units see it.

use std::boxed::Box;
use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::vec::Vec;

use ept::addr::{Frame, PAGE};
use ept::ept01::TableMem;

use crate::Memory;

/// When units see in their tables what was written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sight {
    /// At once.
    Coherent,
    /// When its line was written back.
    WrittenBack,
    /// When the write buffer was flushed.
    Buffered,
}

type Page = Box<[u64; 512]>;

/// What is in memory that nobody has written back: it lets devices into a place of nobody's.
pub(crate) const GARBAGE: u64 = 0x66_6083;

pub(crate) struct Ram {
    sight: Sight,
    words: HashMap<u64, Page>,
    seen: HashMap<u64, Page>,
    next: u64,
    free: Vec<u64>,
    pub(crate) left: usize,
    pub(crate) live: HashSet<u64>,
    /// Every word written to a table, in order.
    pub(crate) history: Vec<(u64, usize, u64)>,
}

impl Ram {
    /// Memory for tables from `base` on.
    pub(crate) fn new(base: u64, sight: Sight) -> Rc<RefCell<Self>> {
        Rc::new(RefCell::new(Self {
            sight,
            words: HashMap::new(),
            seen: HashMap::new(),
            next: base,
            free: Vec::new(),
            left: usize::MAX,
            live: HashSet::new(),
            history: Vec::new(),
        }))
    }

    /// What is in memory.
    pub(crate) fn word(&self, table: u64, index: usize) -> u64 {
        self.words.get(&table).expect("memory for tables")[index]
    }

    /// What a unit's walk sees.
    pub(crate) fn table_word(&self, table: u64, index: usize) -> u64 {
        assert!(self.live.contains(&table), "a unit walks {table:#x}, which is no table");
        let pages = if self.sight == Sight::Coherent { &self.words } else { &self.seen };
        pages.get(&table).map_or(GARBAGE, |page| page[index])
    }

    pub(crate) fn set_word(&mut self, table: u64, index: usize, value: u64) {
        self.words.get_mut(&table).expect("memory for tables")[index] = value;
    }

    pub(crate) fn drain(&mut self) {
        self.seen = self.words.clone();
    }
}

/// A handle to memory.
#[derive(Clone)]
pub(crate) struct Mem(pub(crate) Rc<RefCell<Ram>>);

impl TableMem for Mem {
    fn allocate(&mut self) -> Option<Frame> {
        let ram = &mut *self.0.borrow_mut();
        ram.left = ram.left.checked_sub(1)?;
        let base = ram.free.pop().unwrap_or_else(|| {
            ram.next += PAGE;
            ram.next - PAGE
        });
        let _ = ram.words.insert(base, Box::new([0; 512]));
        let _ = ram.seen.insert(base, Box::new([GARBAGE; 512]));
        assert!(ram.live.insert(base));
        Frame::at(base)
    }

    fn free(&mut self, frame: Frame) {
        let ram = &mut *self.0.borrow_mut();
        assert!(ram.live.remove(&frame.base()), "{:#x} is freed twice", frame.base());
        ram.free.push(frame.base());
        ram.left += 1;
    }

    fn read(&self, table: Frame, index: usize) -> u64 {
        self.0.borrow().word(table.base(), index)
    }

    fn write(&mut self, table: Frame, index: usize, raw: u64) {
        let ram = &mut *self.0.borrow_mut();
        assert!(ram.live.contains(&table.base()), "a write to {:#x}, which is free", table.base());
        ram.set_word(table.base(), index, raw);
        ram.history.push((table.base(), index, raw));
    }
}

impl Memory for Mem {
    fn write_back(&mut self, table: Frame, index: usize) {
        let ram = &mut *self.0.borrow_mut();
        if ram.sight == Sight::WrittenBack {
            let line = index / 8 * 8..index / 8 * 8 + 8;
            let words = &ram.words.get(&table.base()).expect("memory for tables")[line.clone()];
            let seen = ram.seen.get_mut(&table.base()).expect("memory for tables");
            seen[line].copy_from_slice(words);
        }
    }
}
