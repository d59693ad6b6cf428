//! A remapping unit made of the specification, for the tests: it walks tables in memory, remembers
//! whatever it may remember until it is told to forget, and obeys when it likes.

mod caches;
mod memory;

use std::cell::RefCell;
use std::rc::Rc;
use std::vec::Vec;

use crate::registers::Registers;

pub(crate) use caches::{Caches, Flaw, Try};
pub(crate) use memory::{GARBAGE, Mem, Ram, Sight};

/// Bits of the command and status registers.
pub(crate) const TE: u32 = 1 << 31;
pub(crate) const QIE: u32 = 1 << 26;
pub(crate) const IRE: u32 = 1 << 25;
pub(crate) const CFI: u32 = 1 << 23;
const SRTP: u32 = 1 << 30;
const WBF: u32 = 1 << 27;
const SIRTP: u32 = 1 << 24;

/// Where the fault records are, and how many.
const RECORDS: u64 = 0x220;

/// A unit. All of it is open to the tests.
pub(crate) struct State {
    pub(crate) ram: Rc<RefCell<Ram>>,
    pub(crate) cap: u64,
    pub(crate) ecap: u64,
    pub(crate) status: u32,
    pub(crate) root_register: u64,
    pub(crate) caches: Caches,
    pub(crate) queue: (u64, u64, u64),
    pub(crate) faults: u32,
    pub(crate) records: Vec<[u64; 2]>,
    pub(crate) next_record: usize,
    pub(crate) fault_control: u32,
    pub(crate) protected: (u32, [u32; 2], [u64; 2]),
    interrupt_register: u64,
    /// Commands and invalidations that it never carries out.
    pub(crate) deaf: u32,
    pub(crate) stuck: bool,
    /// Pauses that it takes before it looks at its queue.
    pub(crate) lag: u32,
    due: u32,
    /// How often translation was switched off.
    pub(crate) gaps: u32,
    /// Every descriptor that it has carried out.
    pub(crate) heard: Vec<[u64; 2]>,
}

/// A handle to a unit.
#[derive(Clone)]
pub(crate) struct Fake(pub(crate) Rc<RefCell<State>>);

/// Capabilities of a common unit: 48 and 39 bits, every page size, blocks up to 2^18 pages, four fault
/// records, queue, interrupts, protected regions, drains, coherent.
pub(crate) const CAP: u64 = 0b110 << 8
    | 47 << 16
    | 0b11 << 34
    | 1 << 39
    | 18 << 48
    | (RECORDS / 16) << 24
    | 3 << 40
    | 0b11 << 5
    | 0b11 << 54;
pub(crate) const ECAP: u64 = 0b1_1011;
/// Adds snoop control.
pub(crate) const SNOOP: u64 = 1 << 7;
/// Adds scalable mode.
pub(crate) const SCALABLE: u64 = 1 << 43 | 1 << 46 | 1 << 48;

impl Fake {
    pub(crate) fn new(ram: &Rc<RefCell<Ram>>, cap: u64, ecap: u64) -> Self {
        let records = usize::try_from((cap >> 40 & 0xff) + 1).unwrap();
        Self(Rc::new(RefCell::new(State {
            ram: Rc::clone(ram),
            cap,
            ecap,
            status: CFI,
            root_register: 0,
            caches: Caches::default(),
            queue: (0, 0, 0),
            faults: 0,
            records: std::vec![[0; 2]; records],
            next_record: 0,
            fault_control: 0,
            protected: (0, [0; 2], [0; 2]),
            interrupt_register: 0,
            deaf: 0,
            stuck: false,
            lag: 0,
            due: 0,
            gaps: 0,
            heard: Vec::new(),
        })))
    }

    /// A device's access: where it arrives, or the reason why it does not.
    pub(crate) fn dma(&self, source: u16, address: u64, access: Try) -> Result<u64, u8> {
        let state = &mut *self.0.borrow_mut();
        if state.is_protected(address) {
            return Err(PROTECTED);
        }
        if state.status & TE == 0 {
            return Ok(address);
        }
        let unit = (state.cap, state.ecap);
        let ram = Rc::clone(&state.ram);
        let found = state.caches.translate(&ram.borrow(), unit, (source, address), access);
        if let Err(reason) = found {
            let kind =
                u64::from(access == Try::Read) << 62 | u64::from(reason) << 32 | u64::from(source);
            state.record([address & !0xfff, kind]);
        }
        found
    }

    /// A device's message: the entry by which it is delivered, or the reason why it is not.
    pub(crate) fn interrupt(&self, source: u16, address: u32, data: u32) -> Result<[u64; 2], u8> {
        let state = &mut *self.0.borrow_mut();
        if state.status & IRE == 0 {
            return Ok([0; 2]);
        }
        let handle = u64::from(address >> 5 & 0x7fff | (address >> 2 & 1) << 15);
        let index = handle + if address & 8 == 0 { 0 } else { u64::from(data & 0xffff) };
        let found = if address & 0x10 == 0 {
            if state.status & CFI == 0 { Err(0x25) } else { Ok([0; 2]) }
        } else {
            let ram = Rc::clone(&state.ram);
            state.caches.interrupt(&ram.borrow(), source, index)
        };
        if let Err(reason) = found {
            let kind = u64::from(reason) << 32 | u64::from(source);
            state.record([index << 48, kind]);
        }
        found
    }
}

/// Not a fault reason: the access was in a protected region.
pub(crate) const PROTECTED: u8 = 0xff;

impl State {
    fn is_protected(&self, address: u64) -> bool {
        let (on, low, high) = self.protected;
        let granule = 0xf_ffff;
        let within = |base: u64, limit: u64| (base..=limit | granule).contains(&address);
        let low = self.cap >> 5 & 1 != 0 && within(low[0].into(), low[1].into());
        let high = self.cap >> 6 & 1 != 0 && within(high[0], high[1]);
        on & 1 != 0 && (low || high)
    }

    fn record(&mut self, [low, high]: [u64; 2]) {
        let at = self.next_record;
        if self.records[at][1] >> 63 != 0 {
            self.faults |= 1;
            return;
        }
        if self.records.iter().all(|record| record[1] >> 63 == 0) {
            self.faults = self.faults & !0xff00 | u32::try_from(at).unwrap() << 8;
        }
        self.records[at] = [low, high | 1 << 63];
        self.next_record = (at + 1) % self.records.len();
    }

    fn command(&mut self, value: u32) {
        const LASTING: u32 = TE | QIE | IRE | CFI;
        let once = value & (SRTP | WBF | SIRTP);
        let changed = (value ^ self.status) & LASTING;
        assert_eq!((once | changed).count_ones(), 1, "one command at a time");
        self.gaps += u32::from(changed & self.status & TE != 0);
        self.status ^= changed & !self.deaf;
        let once = once & !self.deaf;
        if once & SRTP != 0 {
            assert!(self.status & TE == 0 || self.root_register >> 10 & 3 == self.caches.mode());
            self.caches.root = self.root_register;
            if self.caches.checks_root {
                let first = self.ram.borrow().table_word(self.root_register & !0xfff, 0);
                assert_ne!(first, GARBAGE, "a root table that is not there yet");
            }
            self.status |= SRTP;
        }
        if once & SIRTP != 0 {
            self.caches.interrupts = self.interrupt_register;
            self.status |= SIRTP;
        }
        if once & WBF != 0 {
            self.ram.borrow_mut().drain();
        }
        if changed & QIE != 0 {
            self.queue.0 = 0;
        }
    }

    /// Carries out what is in the queue.
    fn work(&mut self) {
        let wide = self.queue.2 >> 11 & 1;
        let bytes = 16 << wide;
        while self.status & QIE != 0 && !self.stuck && self.queue.0 != self.queue.1 {
            let at = usize::try_from(self.queue.0 / 8).unwrap();
            let ring = self.queue.2 & !0xfff;
            let word = |index| self.ram.borrow().word(ring, index);
            let descriptor = [word(at), word(at + 1)];
            if wide != 0 {
                assert_eq!([word(at + 2), word(at + 3)], [0; 2]);
            }
            self.heard.push(descriptor);
            if descriptor[0] & 0xf == 5 {
                assert_eq!(descriptor[0] & 0xffff_ffff, 5 | 1 << 5);
                let (at, value) = (descriptor[1], descriptor[0] >> 32);
                self.ram.borrow_mut().set_word(at & !0xfff, 0, value);
            } else if !self.caches.forget(descriptor, (self.cap, wide)) {
                self.faults |= 1 << 4;
                return;
            }
            self.queue.0 = (self.queue.0 + bytes) % 4096;
        }
    }
}

impl Registers for Fake {
    fn read32(&self, offset: u64) -> u32 {
        let state = self.0.borrow();
        match offset {
            0x1c => state.status,
            0x34 => {
                let pending = state.records.iter().any(|record| record[1] >> 63 != 0);
                state.faults | u32::from(pending) << 1
            }
            0x64 => state.protected.0,
            0x68 => state.protected.1[0],
            0x6c => state.protected.1[1],
            _ => panic!("read of 32 bits at {offset:#x}"),
        }
    }

    fn read64(&self, offset: u64) -> u64 {
        let state = self.0.borrow();
        match offset {
            0x08 => state.cap,
            0x10 => state.ecap,
            0x20 => state.root_register,
            0x70 => state.protected.2[0],
            0x78 => state.protected.2[1],
            0x80 => state.queue.0,
            0x88 => state.queue.1,
            RECORDS.. => {
                let at = usize::try_from((offset - RECORDS) / 8).unwrap();
                state.records[at / 2][at % 2]
            }
            _ => panic!("read of 64 bits at {offset:#x}"),
        }
    }

    fn write32(&mut self, offset: u64, value: u32) {
        let state = &mut *self.0.borrow_mut();
        match offset {
            0x18 => state.command(value),
            0x34 => state.faults &= !(value & 0x71),
            0x38 => state.fault_control = value,
            0x64 => {
                let on = if state.stuck { 0 } else { value >> 31 };
                state.protected.0 = value & 1 << 31 | on;
            }
            0x68 => state.protected.1[0] = value & 0xfff0_0000,
            0x6c => state.protected.1[1] = value & 0xfff0_0000,
            RECORDS.. => {
                assert_eq!((offset % 16, value), (12, 1 << 31));
                let at = usize::try_from((offset - RECORDS) / 16).unwrap();
                state.records[at][1] &= !(1 << 63);
            }
            _ => panic!("write of 32 bits at {offset:#x}"),
        }
    }

    fn write64(&mut self, offset: u64, value: u64) {
        let state = &mut *self.0.borrow_mut();
        match offset {
            0x20 => state.root_register = value,
            0x70 => state.protected.2[0] = value & 0xffff_fff0_0000,
            0x78 => state.protected.2[1] = value & 0xffff_fff0_0000,
            0x88 => {
                state.queue.1 = value;
                state.due = state.lag;
                if state.lag == 0 {
                    state.work();
                }
            }
            0x90 => state.queue.2 = value,
            0xb8 => state.interrupt_register = value,
            _ => panic!("write of 64 bits at {offset:#x}"),
        }
    }

    fn pause(&self) {
        let state = &mut *self.0.borrow_mut();
        if state.due > 0 {
            state.due -= 1;
            if state.due == 0 {
                state.work();
            }
        }
    }
}
