//! Memory that other processors may change, and that keeps a history.

use std::cell::{Cell, RefCell};

use emulate::walk::Memory;

/// What happens before a compare-exchange: another processor changes memory.
type Interference = Box<dyn Fn(&Fake, u64)>;

/// Physical memory from address 0. It ends somewhere, and parts of it are out of reach.
pub(crate) struct Fake {
    pub(crate) words: Vec<Cell<u64>>,
    /// Pages that may only be read.
    pub(crate) read_only: Vec<u64>,
    /// Reads, and compare-exchanges: address, old, new.
    pub(crate) reads: Cell<usize>,
    pub(crate) stores: RefCell<Vec<(u64, u64, u64)>>,
    interference: Option<Interference>,
}

impl Fake {
    pub(crate) fn new(words: &[u64]) -> Self {
        Self {
            words: words.iter().copied().map(Cell::new).collect(),
            read_only: Vec::new(),
            reads: Cell::new(0),
            stores: RefCell::default(),
            interference: None,
        }
    }

    /// Memory of so many pages, all zero.
    pub(crate) fn pages(count: usize) -> Self {
        Self::new(&vec![0; 512 * count])
    }

    pub(crate) fn interfere(&mut self, how: impl Fn(&Self, u64) + 'static) {
        self.interference = Some(Box::new(how));
    }

    pub(crate) fn cell(&self, address: u64) -> Option<&Cell<u64>> {
        assert_eq!(address % 8, 0, "units are aligned");
        self.words.get(usize::try_from(address / 8).ok()?)
    }

    pub(crate) fn set(&self, address: u64, value: u64) {
        self.cell(address).unwrap().set(value);
    }

    pub(crate) fn get(&self, address: u64) -> u64 {
        self.cell(address).unwrap().get()
    }

    pub(crate) fn contents(&self) -> Vec<u64> {
        self.words.iter().map(Cell::get).collect()
    }
}

impl Memory for Fake {
    fn read(&self, address: u64) -> Option<u64> {
        self.reads.set(self.reads.get() + 1);
        self.cell(address).map(Cell::get)
    }

    fn compare_exchange(&self, address: u64, old: u64, new: u64) -> Option<bool> {
        if let Some(how) = &self.interference {
            how(self, address);
        }
        let cell = self.cell(address)?;
        if self.read_only.contains(&(address / 4096 * 4096)) {
            return None;
        }
        self.stores.borrow_mut().push((address, old, new));
        let found = cell.get();
        if found == old {
            cell.set(new);
        }
        Some(found == old)
    }
}
