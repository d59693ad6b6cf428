//! The part of the control port that is about protected VMs: `ticket::port` says what is where.
//!
//! Selections are the machine's, not a processor's: a tool may move between processors from one access to
//! the next. Tools lock each other out.

use ept::frames::Vm;
use membrane::vm::Life;
use membrane::{Pages, Progress};
use spin::Mutex;
use ticket::error::Error;
use ticket::parse::{Parser, Progress as Parsed};
use ticket::port::{self, Submission, VmState};

use crate::iommu;
use crate::machine::Machine;
use crate::nested;
use crate::random;
use crate::shootdown;

/// What was selected, and how far a submission has come.
struct Desk {
    parser: Option<Parser>,
    submission: Submission,
    /// What the last check has found.
    disagreement: u32,
    vm: u32,
    event: u32,
}

static DESK: Mutex<Desk> = Mutex::new(Desk {
    parser: None,
    submission: Submission::None,
    disagreement: 0,
    vm: 0,
    event: 0,
});

/// The value at `index`; `None` if this part has none there.
pub(crate) fn read(machine: &Machine, index: u32) -> Option<u32> {
    let desk = shootdown::lock(&DESK);
    let (vm, event) = (desk.vm, desk.event);
    let tables = &machine.tables;
    match index {
        port::INDEX_BEGIN => Some(desk.submission.word()),
        port::INDEX_WAITING => Some(tables.with_protected(|vms, _| count(vms.waiting()))),
        port::INDEX_CLEAR => Some(machine.dev_tickets.into()),
        port::INDEX_REFUSES => Some((!machine.unprotected_vms).into()),
        port::INDEX_IOMMU => Some(iommu::state().word()),
        port::INDEX_WITHOUT_IOMMU => Some(machine.without_iommu.into()),
        port::INDEX_DMA_REFUSED => Some(iommu::refused()),
        port::INDEX_CHECK => Some(desk.disagreement),
        port::INDEX_CHECK_END => Some(tables.gibs()),
        port::INDEX_VM..=port::INDEX_VM_SEALED => about_vm(machine, vm, index),
        port::INDEX_UNPROTECTED => Some(tables.unprotected()),
        port::INDEX_AUDIT_END => Some(tables.with_protected(|vms, _| word(vms.audit.count()))),
        port::INDEX_AUDIT_OLDEST => Some(tables.with_protected(|vms, _| word(vms.audit.oldest()))),
        port::INDEX_AUDIT_EVENT..port::INDEX_AUDIT_CHAIN => {
            let found = tables.with_protected(|vms, _| vms.audit.event(event.into()).copied());
            found.and_then(|bytes| part(&bytes, index - port::INDEX_AUDIT_EVENT))
        }
        port::INDEX_AUDIT_CHAIN.. => {
            let chain = tables.with_protected(|vms, _| *vms.audit.chain());
            part(&chain, index - port::INDEX_AUDIT_CHAIN)
        }
        _ => None,
    }
}

/// What `index` says about the VM with this number.
fn about_vm(machine: &Machine, number: u32, index: u32) -> Option<u32> {
    let number = u8::try_from(number).ok().and_then(Vm::new)?;
    machine.tables.with_protected(|vms, _| {
        let vm = vms.vm(number);
        if index == port::INDEX_VM_STATE {
            return Some(vm.map_or(VmState::None, |vm| state(vm.life())).word());
        }
        let vm = vm?;
        match index {
            port::INDEX_VM_CAUSE => match vm.life() {
                Life::Stopped(cause) => Some(cause.number()),
                Life::Waiting | Life::Running => Some(0),
            },
            port::INDEX_VM_ID..port::INDEX_VM_CPUS => part(vm.id(), index - port::INDEX_VM_ID),
            port::INDEX_VM_CPUS => Some(vm.vcpus()),
            port::INDEX_VM_RESIDENT => Some(word(vm.resident())),
            port::INDEX_VM_SEALED => Some(word(vm.sealed())),
            _ => None,
        }
    })
}

const fn state(life: Life) -> VmState {
    match life {
        Life::Waiting => VmState::Waiting,
        Life::Running => VmState::Running,
        Life::Stopped(_) => VmState::Stopped,
    }
}

/// Word `number` of `bytes`.
fn part(bytes: &[u8], number: u32) -> Option<u32> {
    let at = usize::try_from(number).ok()?.checked_mul(4)?;
    bytes.get(at..)?.first_chunk().map(|word| u32::from_le_bytes(*word))
}

/// A count, as far as 32 bits can tell.
fn word(count: u64) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// Writes `value` to `index`. `Again`: there is more to do than one exit should take.
pub(crate) fn write(machine: &Machine, index: u32, value: u32) -> Progress {
    let mut desk = shootdown::lock(&DESK);
    match index {
        port::INDEX_BEGIN => desk.begin(machine, value),
        port::INDEX_WORD => desk.word(machine, value),
        port::INDEX_CANCEL => {
            desk.parser = None;
            desk.submission = Submission::None;
            machine.tables.with_protected(|vms, trees| vms.cancel(trees.hardware));
        }
        port::INDEX_CHECK => desk.disagreement = machine.tables.check(value),
        port::INDEX_VM => desk.vm = value,
        port::INDEX_AUDIT => desk.event = value,
        port::INDEX_VM_DESTROY if value == 1 => {
            if let Some(number) = u8::try_from(desk.vm).ok().and_then(Vm::new) {
                let destroyed =
                    machine.tables.with_protected(|vms, trees| vms.destroy(trees, number));
                if destroyed == Progress::Done {
                    nested::sweep(machine);
                    machine.tables.count_tickets();
                }
                return destroyed;
            }
        }
        _ => {}
    }
    Progress::Done
}

impl Desk {
    fn begin(&mut self, machine: &Machine, length: u32) {
        let launch = random::bytes32().filter(|_| machine.dev_tickets);
        let is_open = !iommu::state().is_on() && !machine.without_iommu;
        let parser = launch.ok_or(Error::ClearTickets).and_then(|launch| {
            let parser = if is_open { Err(Error::NoIommu) } else { Parser::new(length) }?;
            machine.tables.with_protected(|vms, trees| vms.begin(trees.hardware, launch));
            Ok(parser)
        });
        self.submission = match parser {
            Ok(parser) => {
                self.parser = Some(parser);
                Submission::Receiving
            }
            Err(error) => self.refuse(machine, error),
        };
    }

    fn word(&mut self, machine: &Machine, word: u32) {
        let Some(parser) = &mut self.parser else {
            if self.submission == Submission::None {
                self.submission = Submission::Refused(Error::NotBegun);
            }
            return;
        };
        if !machine.tables.may_spend() {
            self.submission = self.refuse(machine, Error::Memory);
            return;
        }
        let parsed = machine
            .tables
            .with_protected(|vms, trees| parser.word(word, &mut vms.sink(trees.hardware)));
        match parsed {
            Ok(Parsed::More) => {}
            Ok(Parsed::Complete) => self.accept(machine),
            Err(error) => self.submission = self.refuse(machine, error),
        }
    }

    fn accept(&mut self, machine: &Machine) {
        self.parser = None;
        let accepted = machine.tables.with_protected(|vms, trees| {
            let cpu = trees.hardware.cpu();
            vms.accept(trees.hardware, cpu)
        });
        // A refusal is in the audit log already.
        self.submission = accepted.map_or_else(Submission::Refused, |_| Submission::Accepted);
        machine.tables.count_tickets();
    }

    fn refuse(&mut self, machine: &Machine, error: Error) -> Submission {
        self.parser = None;
        log::warn!("a ticket is refused: {error}");
        machine.tables.with_protected(|vms, trees| {
            let cpu = trees.hardware.cpu();
            vms.refused(trees.hardware, error, cpu);
        });
        Submission::Refused(error)
    }
}
