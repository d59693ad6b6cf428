//! One VM with the [guest](super::guest), with a ticket or without.

use super::guest::{
    self, ARGUMENT_PORT, BULK, COMMAND_PORT, Command, DEVICE, FIRST, GADGET_PORT, LOST_PORT,
    PLANTED, RESET, RESET_AT, RESULT_PORT, SECOND, SIZE, STREAM_PORT, UNTOUCHED, VERSIONED, WINDOW,
};
use super::launch::{self, Id, Visor};
use super::look::Secrets;
use crate::memory::{Memory, PAGE};
use crate::tests::alarm_in;
use crate::vm::{Exit, Vcpu, Vm};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use ticket::port::VmState;

/// Whether a VM has a ticket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Plain,
    Ticketed,
}

/// Why something did not come to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// The guest runs code that it never would, or is lost in exceptions.
    Taken,
    /// The VM ended by a shutdown.
    Shutdown,
    /// Neither went the guest on nor did it end.
    Hung,
    /// Something that no attack is about.
    Odd(String),
}

impl From<String> for Trouble {
    fn from(why: String) -> Self {
        Self::Odd(why)
    }
}

/// The vector of this program's interrupts.
pub(super) const VECTOR: u32 = 0x41;
/// Every byte that the guest gets of its device and its stream.
pub(super) const SAYS: u8 = 0x33;
/// Long enough for every command, in the emulated clock.
const PATIENCE: Duration = Duration::from_secs(4);

/// Number and guest address of a memory slot, and its part of the memory.
pub(super) type Slot = (u32, u64, Range<usize>);
const fn slot(number: u32, at: usize, pages: usize) -> Slot {
    (number, at as u64, at..at + pages * PAGE)
}
pub(super) const SLOT_LOW: Slot = slot(0, 0, FIRST / PAGE);
pub(super) const SLOT_FIRST: Slot = slot(1, FIRST, 1);
pub(super) const SLOT_SECOND: Slot = slot(2, SECOND, 1);
pub(super) const SLOT_VERSIONED: Slot = slot(3, VERSIONED, 1);
pub(super) const SLOT_UNTOUCHED: Slot = slot(4, UNTOUCHED, 1);
pub(super) const SLOT_BULK: Slot = slot(6, BULK, guest::BULK_PAGES);
pub(super) const SLOT_WINDOW: Slot = slot(8, WINDOW, 1);
const AFTER: usize = WINDOW + PAGE;
const SLOTS: [Slot; 10] = [
    SLOT_LOW,
    SLOT_FIRST,
    SLOT_SECOND,
    SLOT_VERSIONED,
    SLOT_UNTOUCHED,
    slot(5, PLANTED, (WINDOW - PLANTED) / PAGE),
    SLOT_BULK,
    (7, RESET_AT, RESET..RESET + PAGE),
    SLOT_WINDOW,
    slot(9, AFTER, (RESET - AFTER) / PAGE),
];

/// The number of the next one.
static MADE: AtomicU64 = AtomicU64::new(1);

/// Has those from here on be others than those that `boot` boots before have left behind.
pub(super) fn number_anew(boot: u8) {
    MADE.store(u64::from(boot) << 8 | 1, Ordering::Relaxed);
}

/// A VM under attack.
pub(super) struct Victim {
    // In the order in which they must go.
    pub(super) vcpu: Vcpu,
    pub(super) vm: Arc<Vm>,
    pub(super) memory: Arc<Memory>,
    pub(super) kind: Kind,
    pub(super) id: Id,
    pub(super) secrets: Secrets,
    /// What [`ARGUMENT_PORT`] gives.
    pub(super) argument: u32,
    /// What the guest is told to do when it asks next.
    order: Command,
    ticket: Ticket,
    /// What its image is made from.
    seed: u64,
}

/// The ticket of a VM that has one: it goes with the VM, or the next VM would take it.
#[derive(Debug)]
pub(crate) struct Ticket(Option<Id>);

impl Ticket {
    /// Submits `ticket`, of the VM called `id`.
    pub(crate) fn submit(id: Id, ticket: &[u8]) -> Result<Self, String> {
        Visor::find()?.submit(ticket).map(|()| Self(Some(id)))
    }

    /// That of a VM that has none.
    pub(crate) const fn none() -> Self {
        Self(None)
    }

    /// Ends the VM, which the visor must forget then.
    pub(crate) fn withdraw(&mut self) -> Result<(), String> {
        let Some(id) = self.0.take() else { return Ok(()) };
        let mut visor = Visor::find()?;
        if visor.destroy(id)? && visor.state(id)?.0 == VmState::None {
            return Ok(());
        }
        Err("the visor does not forget the VM".to_owned())
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Err(why) = self.withdraw() {
            println!("vmm: a ticket stays: {why}");
        }
    }
}

impl Victim {
    /// A VM that has not run yet.
    pub(super) fn new(kind: Kind) -> Result<Self, String> {
        Self::with(kind, Memory::aligned(SIZE)?)
    }

    fn with(kind: Kind, memory: Memory) -> Result<Self, String> {
        // Children of this process count on their own.
        let number = MADE.fetch_add(1, Ordering::Relaxed) << 24 | u64::from(std::process::id());
        // Secrets of VMs without a ticket stay behind in the host's memory, so the others have their own.
        let seed = number << 1 | u64::from(kind == Kind::Ticketed);
        let image = guest::image(seed);
        let mut id = *b"guest of vmm\0\0\0\0";
        id[8..].copy_from_slice(&seed.to_le_bytes());
        let mut ticket = Ticket::none();
        if kind == Kind::Ticketed {
            ticket = Ticket::submit(id, &launch::ticket(id, &image)?)?;
        }
        for (at, bytes) in &image {
            let offset = if *at == RESET_AT { RESET } else { *at as usize };
            memory.write(offset, bytes);
        }
        let vm = Vm::new()?;
        for slot in SLOTS {
            add(&vm, &memory, slot)?;
        }
        let (vcpu, secrets) = (vm.vcpu(0)?, Secrets::of(seed));
        let (argument, order) = (0, Command::Nothing);
        let (vm, memory) = (Arc::new(vm), Arc::new(memory));
        Ok(Self { vcpu, vm, memory, kind, id, secrets, argument, order, ticket, seed })
    }

    /// What it began with.
    pub(super) fn image(&self) -> Vec<(u64, Vec<u8>)> {
        guest::image(self.seed)
    }

    /// A VM whose guest waits for its first command.
    pub(super) fn started(kind: Kind) -> Result<Self, Trouble> {
        let mut victim = Self::new(kind)?;
        victim.start().map(|()| victim)
    }

    /// From the first instruction to the wait for a command.
    pub(super) fn start(&mut self) -> Result<(), Trouble> {
        match self.next()? {
            Exit::In(COMMAND_PORT, 1) => Ok(()),
            other => Err(odd(&other)),
        }
    }

    /// Runs to the next exit that tells something about the guest itself.
    pub(super) fn next(&mut self) -> Result<Exit, Trouble> {
        alarm_in(PATIENCE)?;
        let exit = self.vcpu.run();
        alarm_in(Duration::ZERO)?;
        match exit? {
            Exit::Out(GADGET_PORT | LOST_PORT, _) => Err(Trouble::Taken),
            Exit::Shutdown => Err(Trouble::Shutdown),
            Exit::Interrupted => Err(Trouble::Hung),
            exit => Ok(exit),
        }
    }

    /// Tells a waiting guest what to do.
    pub(super) fn order(&mut self, command: Command) {
        self.order = command;
        self.vcpu.answer(&[command as u8]);
    }

    /// Orders `command`, and its result; the guest waits again then. HLT ends by an interrupt.
    pub(super) fn command(&mut self, command: Command) -> Result<u32, Trouble> {
        self.order(command);
        self.finish()
    }

    /// To the result of a command that was ordered, and on to the wait for the next.
    pub(super) fn finish(&mut self) -> Result<u32, Trouble> {
        let mut result = None;
        for _ in 0..64 {
            match (self.next()?, result) {
                (Exit::Out(RESULT_PORT, bytes), None) => {
                    result = Some(<[u8; 4]>::try_from(bytes).map_or(0, u32::from_le_bytes));
                }
                (Exit::In(COMMAND_PORT, 1), Some(result)) => return Ok(result),
                // Asked for again, because the first answer did not count.
                (Exit::In(COMMAND_PORT, 1), None) => self.vcpu.answer(&[self.order as u8]),
                (Exit::In(ARGUMENT_PORT, 4), None) => {
                    self.vcpu.answer(&self.argument.to_le_bytes());
                }
                (Exit::Halt, None) => self.vcpu.interrupt(VECTOR)?,
                // By the device; else while a memory slot is away.
                (Exit::Load(DEVICE, length), None) => self.vcpu.answer(&vec![SAYS; length]),
                (Exit::In(STREAM_PORT, count), None) => self.vcpu.answer(&vec![SAYS; count]),
                (Exit::Load(_, length), None) => self.vcpu.answer(&vec![0; length]),
                (Exit::Store(..) | Exit::Out(STREAM_PORT, _), None) => {}
                (other, _) => return Err(odd(&other)),
            }
        }
        Err(Trouble::Hung)
    }

    /// [`Command::Peek`] or [`Command::Poke`] at `offset`.
    pub(super) fn command_at(&mut self, command: Command, offset: usize) -> Result<u32, Trouble> {
        self.argument = u32::try_from(offset - FIRST).unwrap_or(0);
        self.command(command)
    }

    /// Orders HLT and stops at it.
    pub(super) fn until_halt(&mut self) -> Result<(), Trouble> {
        self.order(Command::Halt);
        match self.next()? {
            Exit::Halt => Ok(()),
            other => Err(odd(&other)),
        }
    }

    /// Makes `slot` of the memory at `offset` instead of its own.
    pub(super) fn remap(&self, slot: &Slot, offset: usize) -> Result<(), String> {
        self.vm.remove_slot(slot.0)?;
        self.map(slot, offset)
    }

    /// Makes `slot`, which is away, of the memory at `offset`.
    pub(super) fn map(&self, (number, at, range): &Slot, offset: usize) -> Result<(), String> {
        add(&self.vm, &self.memory, (*number, *at, offset..offset + range.len()))
    }

    /// What the visor says of the VM; nothing for one without a ticket.
    pub(super) fn state(&self) -> Result<Option<(VmState, u32)>, String> {
        match self.kind {
            Kind::Plain => Ok(None),
            Kind::Ticketed => Visor::find()?.state(self.id).map(Some),
        }
    }

    /// Ends the VM in the order in which a VMM does it; the visor must forget it then.
    pub(super) fn end(self) -> Result<(), String> {
        let Self { vcpu, vm, memory, mut ticket, .. } = self;
        drop((vcpu, vm, memory));
        ticket.withdraw()
    }

    /// Has a ticket.
    pub(super) fn is_ticketed(&self) -> bool {
        self.kind == Kind::Ticketed
    }
}

fn add(vm: &Vm, memory: &Memory, (number, at, range): Slot) -> Result<(), String> {
    vm.slot(number, 0, at, memory.part(range))
}

pub(super) fn odd(exit: &Exit) -> Trouble {
    Trouble::Odd(format!("exit {exit:x?}"))
}
