//! A visor for tests: the other side of the port protocol, on top of the visor's own parser.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use ticket::audit::{self, Event, Kind, NO_VM};
use ticket::error::Error;
use ticket::parse::{Parser, Progress, Sink};
use ticket::port::*;
use ticket::{Disk, Header, Range};

use crate::port::Port;

/// What came to the ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Select(u32),
    Read(u32),
    Write(u32, u32),
}

/// One VM with a ticket.
#[derive(Clone, Debug)]
pub(crate) struct FakeVm {
    pub(crate) id: [u8; 16],
    pub(crate) state: VmState,
    pub(crate) cause: u32,
    pub(crate) pages: u32,
}

/// The visor's state.
pub(crate) struct Machine {
    /// Values that nothing changes.
    pub(crate) fixed: BTreeMap<u32, u32>,
    pub(crate) version: u32,
    pub(crate) clear: bool,
    pub(crate) refuses: bool,
    /// The GiB that were checked, and what the check of number 2 finds.
    pub(crate) checked: Vec<u32>,
    pub(crate) wrong: u32,
    /// How often hosts were asked for a page.
    pub(crate) asked: u32,
    pub(crate) vms: BTreeMap<u32, FakeVm>,
    pub(crate) unprotected: u32,
    /// Pages of manifests that there is room for.
    pub(crate) room: u32,
    /// Whether DESTROY does anything.
    pub(crate) destroys: bool,
    pub(crate) events: Vec<[u8; 32]>,
    pub(crate) oldest: u32,
    pub(crate) chain: [u8; 32],
    /// Events that are still to come while the log is read.
    pub(crate) coming: u32,
    pub(crate) history: Vec<Access>,
    index: u32,
    vm: u32,
    event: u32,
    submission: Submission,
    accepted: u32,
    nonce: [u32; 8],
    /// What was signed last.
    statement: Vec<u8>,
    receiving: Option<(Parser, Draft)>,
}

/// What the sink has of a ticket.
#[derive(Default)]
struct Draft {
    id: [u8; 16],
    taken: Vec<[u8; 16]>,
    pages: u32,
    room: u32,
}

impl Sink for Draft {
    fn header(&mut self, header: &Header) -> Result<(), Error> {
        self.id = header.vm;
        if self.taken.contains(&header.vm) { Err(Error::Duplicate) } else { Ok(()) }
    }

    fn range(&mut self, _: Range) -> Result<(), Error> {
        Ok(())
    }

    fn disk(&mut self, _: Disk) -> Result<(), Error> {
        Ok(())
    }

    fn page(&mut self, _: u64, _: &[u8; 32]) -> Result<(), Error> {
        self.pages += 1;
        if self.pages > self.room { Err(Error::Memory) } else { Ok(()) }
    }
}

impl Machine {
    /// Records an event.
    pub(crate) fn record(&mut self, kind: Kind, vm: u8, a: u64) {
        let sequence = u64::try_from(self.events.len()).unwrap();
        let event = Event { sequence, kind: kind.number(), vm, cpu: 1, a, b: 0 }.bytes();
        self.chain = audit::extend(&self.chain, &event);
        self.events.push(event);
    }

    fn end(&self) -> u32 {
        self.events.len().try_into().unwrap()
    }

    fn slot(&self) -> u8 {
        u8::try_from(self.vm).unwrap()
    }

    fn read(&mut self) -> u32 {
        let vm = self.vms.get(&self.vm);
        let word = |bytes: &[u8], at: u32| {
            let at = usize::try_from(at).unwrap();
            u32::from_le_bytes(*bytes.as_chunks().0.get(at).unwrap())
        };
        match self.index {
            INDEX_VERSION => self.version,
            index if self.fixed.contains_key(&index) => self.fixed[&index],
            _ if self.version < VERSION => ABSENT,
            INDEX_BEGIN => self.submission.word(),
            INDEX_WAITING => {
                let waits = |vm: &&FakeVm| vm.state == VmState::Waiting;
                self.vms.values().filter(waits).count().try_into().unwrap()
            }
            INDEX_CLEAR => self.clear.into(),
            INDEX_REFUSES => self.refuses.into(),
            INDEX_CHECK => {
                self.checked.last().map_or(0, |gib| if *gib == 2 { self.wrong } else { 0 })
            }
            INDEX_CHECK_END => 3,
            INDEX_VM_STATE => vm.map_or(VmState::None, |vm| vm.state).word(),
            INDEX_VM_CAUSE => vm.map_or(0, |vm| vm.cause),
            index @ INDEX_VM_ID..INDEX_VM_CPUS => {
                vm.map_or(0, |vm| word(&vm.id, index - INDEX_VM_ID))
            }
            INDEX_VM_CPUS => vm.map_or(0, |_| 2),
            INDEX_VM_RESIDENT => vm.map_or(0, |vm| vm.pages),
            INDEX_VM_SEALED => vm.map_or(0, |_| 7),
            INDEX_VM_ASKED => self.asked,
            INDEX_VM_WANTED => 0x1234,
            INDEX_ACCEPTED => self.accepted,
            INDEX_SIGN => u32::try_from(self.statement.len()).unwrap(),
            index @ INDEX_STATEMENT..INDEX_UNPROTECTED => {
                word(&self.statement, index - INDEX_STATEMENT)
            }
            index @ INDEX_SIGNATURE..INDEX_SIGNATURE_END => index,
            INDEX_UNPROTECTED => self.unprotected,
            INDEX_AUDIT_END => self.end(),
            INDEX_AUDIT_OLDEST => self.oldest,
            index @ INDEX_AUDIT_EVENT..=0x50a => {
                let event = self.events.get(usize::try_from(self.event).unwrap());
                let event = event.filter(|_| self.event >= self.oldest);
                event.map_or(ABSENT, |event| word(event, index - INDEX_AUDIT_EVENT))
            }
            index @ INDEX_AUDIT_CHAIN..=0x517 => {
                let value = word(&self.chain, index - INDEX_AUDIT_CHAIN);
                if index == 0x513 && self.coming > 0 {
                    self.coming -= 1;
                    self.record(Kind::Unprotected, NO_VM, 0);
                }
                value
            }
            _ => ABSENT,
        }
    }

    fn write(&mut self, value: u32) {
        if self.version < VERSION {
            return;
        }
        match self.index {
            INDEX_BEGIN => {
                let begun = if self.clear { Parser::new(value) } else { Err(Error::ClearTickets) };
                self.receiving = None;
                match begun {
                    Ok(parser) => {
                        let taken = self.vms.values().map(|vm| vm.id).collect();
                        let draft = Draft { taken, room: self.room, ..Draft::default() };
                        self.receiving = Some((parser, draft));
                        self.submission = Submission::Receiving;
                    }
                    Err(error) => self.refuse(error),
                }
            }
            INDEX_WORD => self.word(value),
            INDEX_CANCEL => {
                self.receiving = None;
                self.submission = Submission::None;
            }
            INDEX_CHECK => self.checked.push(value),
            INDEX_VM => self.vm = value,
            INDEX_VM_DESTROY if value == 1 && self.destroys => {
                let gone = self.vms.remove(&self.vm);
                gone.iter().for_each(|_| self.record(Kind::Destroyed, self.slot(), 0));
            }
            INDEX_AUDIT => self.event = value,
            index @ INDEX_NONCE..INDEX_SIGN => {
                self.nonce[usize::try_from(index - INDEX_NONCE).unwrap()] = value;
            }
            INDEX_SIGN => self.statement = self.sign(value),
            _ => {}
        }
    }

    /// As long as the visor's; what a receipt says is not looked at.
    fn sign(&self, kind: u32) -> Vec<u8> {
        let mut body: Vec<u8> = self.nonce.iter().flat_map(|word| word.to_le_bytes()).collect();
        match kind {
            2 if self.vms.contains_key(&self.vm) => body.resize(168, 7),
            3 => {
                body.extend(u64::from(self.end()).to_le_bytes());
                body.extend(self.chain);
            }
            _ => body.clear(),
        }
        body
    }

    fn word(&mut self, word: u32) {
        let Some((parser, draft)) = &mut self.receiving else {
            if self.submission == Submission::None {
                self.refuse(Error::NotBegun);
            }
            return;
        };
        match parser.word(word, draft) {
            Ok(Progress::More) => {}
            Ok(Progress::Complete) => {
                let (id, pages) = (draft.id, draft.pages);
                self.receiving = None;
                let Some(slot) = (0..VMS).find(|slot| !self.vms.contains_key(slot)) else {
                    return self.refuse(Error::Slots);
                };
                let vm = FakeVm { id, state: VmState::Waiting, cause: 0, pages };
                let _ = self.vms.insert(slot, vm);
                self.submission = Submission::Accepted;
                self.accepted = slot;
                self.record(Kind::Accepted, u8::try_from(slot).unwrap(), 0);
            }
            Err(error) => self.refuse(error),
        }
    }

    fn refuse(&mut self, error: Error) {
        self.receiving = None;
        self.submission = Submission::Refused(error);
        self.record(Kind::Refused, NO_VM, error.number().into());
    }
}

/// The fake's port; the test keeps another handle to the same machine.
#[derive(Clone)]
pub(crate) struct Fake(pub(crate) Rc<RefCell<Machine>>);

impl Fake {
    /// A visor with 24 MiB, two processors and 300 exits that takes tickets in clear.
    pub(crate) fn new() -> Self {
        let fixed = BTreeMap::from([
            (INDEX_MAGIC, MAGIC),
            (INDEX_BASE, 1000),
            (INDEX_LENGTH, 24),
            (INDEX_PROCESSORS, 2),
            (INDEX_COUNTERS, 2),
            (INDEX_EVENTS, 3),
            (INDEX_TABLES, 17),
            (INDEX_FREE, 500),
            (INDEX_IOMMU, Iommu::On.word()),
            (INDEX_WITHOUT_IOMMU, 0),
            (INDEX_DMA_REFUSED, 4),
            (INDEX_LEAKS, 0),
            (INDEX_DESPITE_LEAKS, 0),
            (INDEX_TPM, Tpm::Measured.word()),
            (INDEX_LOG_BYTES, 626),
            (INDEX_TICKS, 5),
            (INDEX_TICKS + 1, 1),
            (INDEX_COUNTER, 100),
            (INDEX_COUNTER + 1, 0),
            (INDEX_COUNTER + 2, 200),
            (INDEX_COUNTER + 3, 0),
        ]);
        Self(Rc::new(RefCell::new(Machine {
            fixed,
            version: VERSION,
            clear: true,
            refuses: false,
            checked: Vec::new(),
            wrong: 0,
            asked: 0,
            vms: BTreeMap::new(),
            unprotected: 0,
            room: u32::MAX,
            destroys: true,
            events: Vec::new(),
            oldest: 0,
            chain: audit::GENESIS,
            accepted: ABSENT,
            nonce: [0; 8],
            statement: Vec::new(),
            coming: 0,
            history: Vec::new(),
            index: ABSENT,
            vm: 0,
            event: 0,
            submission: Submission::None,
            receiving: None,
        })))
    }
}

impl Port for Fake {
    fn select(&mut self, index: u32) {
        let mut machine = self.0.borrow_mut();
        machine.history.push(Access::Select(index));
        machine.index = index;
    }

    fn read(&mut self) -> u32 {
        let mut machine = self.0.borrow_mut();
        let index = machine.index;
        machine.history.push(Access::Read(index));
        machine.read()
    }

    fn write(&mut self, value: u32) {
        let mut machine = self.0.borrow_mut();
        let index = machine.index;
        machine.history.push(Access::Write(index, value));
        machine.write(value);
    }
}
