//! The part of the control port that is about protected VMs: `ticket::port` says what is where.
//!
//! Selections are the machine's, not a processor's: a tool may move between processors from one access to
//! the next. Tools lock each other out.

use core::sync::atomic::{AtomicU64, Ordering};

use attest::envelope::Visor;
use attest::keys::SIGNATURE_BYTES;
use attest::policy::Weaknesses;
use attest::serials::Serials;
use attest::statement::{Body, Kind, Nonce, Receipt, Statement};
use attest::submission::Submission as Incoming;
use ept::frames::Vm;
use membrane::vm::Life;
use membrane::{Pages, Progress};
use spin::Mutex;
use ticket::error::Error;
use ticket::parse::Progress as Parsed;
use ticket::port::{self, Submission, VmState};

use crate::cpu::size;
use crate::machine::Machine;
use crate::{cpu, guest_state, iommu, keys, nested, random, shootdown, tpm, vectors};

/// What was selected, and how far a submission has come.
struct Desk {
    /// What is being received.
    incoming: Incoming,
    submission: Submission,
    /// The VM whose ticket was accepted last.
    accepted: u32,
    /// The last serial of each tenant.
    serials: Serials,
    nonce: Nonce,
    /// What was signed last.
    signed: Option<(Body, [u8; SIGNATURE_BYTES])>,
    /// What the last check has found.
    disagreement: u32,
    vm: u32,
    event: u32,
    /// Of the log of measurements.
    log_word: u32,
}

static DESK: Mutex<Desk> = Mutex::new(Desk {
    incoming: Incoming::new(),
    submission: Submission::None,
    accepted: port::ABSENT,
    serials: Serials::new(),
    nonce: [0; 32],
    signed: None,
    disagreement: 0,
    vm: 0,
    event: 0,
    log_word: 0,
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
        port::INDEX_LEAKS => Some((!guest_state::is_tight()).into()),
        port::INDEX_DESPITE_LEAKS => Some(machine.leaky_processor.into()),
        port::INDEX_TPM => Some(tpm::state().word()),
        port::INDEX_LOG_BYTES => Some(tpm::with_log(|log| count(log.len()))),
        port::INDEX_LOG => Some(tpm::with_log(|log| padded(log, desk.log_word))),
        port::INDEX_CHECK => Some(desk.disagreement),
        port::INDEX_CHECK_END => Some(tables.gibs()),
        port::INDEX_VM..=port::INDEX_VM_WANTED => about_vm(machine, vm, index),
        port::INDEX_SIGN => Some(desk.signed.as_ref().map_or(0, |(body, _)| count(body.len()))),
        port::INDEX_ACCEPTED => Some(desk.accepted),
        port::INDEX_KEYS..port::INDEX_STATEMENT => {
            part(keys::get().public(), index - port::INDEX_KEYS)
        }
        port::INDEX_STATEMENT..port::INDEX_UNPROTECTED => {
            part(&desk.signed.as_ref()?.0, index - port::INDEX_STATEMENT)
        }
        port::INDEX_SIGNATURE..port::INDEX_SIGNATURE_END => {
            part(&desk.signed.as_ref()?.1, index - port::INDEX_SIGNATURE)
        }
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
            port::INDEX_VM_CAUSE => Some(cause(vm.life())),
            port::INDEX_VM_ID..port::INDEX_VM_CPUS => part(vm.id(), index - port::INDEX_VM_ID),
            port::INDEX_VM_CPUS => Some(vm.vcpus()),
            port::INDEX_VM_RESIDENT => Some(word(vm.resident())),
            port::INDEX_VM_SEALED => Some(word(vm.sealed())),
            port::INDEX_VM_ASKED => Some(vm.asked().1),
            port::INDEX_VM_WANTED => Some(word(vm.asked().0.number())),
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

fn cause(life: Life) -> u32 {
    match life {
        Life::Stopped(cause) => cause.number(),
        Life::Waiting | Life::Running => 0,
    }
}

/// The highest that any processor's TSC was seen at: in 2^32 ticks. The host can write it, and so stop this clock,
/// but not turn it back.
fn age() -> u64 {
    static HIGHEST: AtomicU64 = AtomicU64::new(0);
    let now = cpu::tsc() >> 32;
    HIGHEST.fetch_max(now, Ordering::Relaxed).max(now)
}

/// Word `number` of `bytes`.
fn part(bytes: &[u8], number: u32) -> Option<u32> {
    let at = usize::try_from(number).ok()?.checked_mul(4)?;
    bytes.get(at..)?.first_chunk().map(|word| u32::from_le_bytes(*word))
}

/// Word `number` of `bytes`, which zeros follow.
fn padded(bytes: &[u8], number: u32) -> u32 {
    let at = usize::try_from(number).unwrap_or(usize::MAX).saturating_mul(4);
    let rest = bytes.get(at..).unwrap_or_default();
    rest.iter().take(4).rev().fold(0, |word, byte| word << 8 | u32::from(*byte))
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
    // Nearly all of it hashes, opens or signs.
    vectors::with(|| take(machine, index, value))
}

fn take(machine: &Machine, index: u32, value: u32) -> Progress {
    let mut desk = shootdown::lock(&DESK);
    match index {
        port::INDEX_BEGIN => desk.begin(machine, value),
        port::INDEX_WORD => desk.word(machine, value),
        port::INDEX_CANCEL => {
            desk.incoming.end();
            desk.submission = Submission::None;
            machine.tables.with_protected(|vms, trees| vms.cancel(trees.hardware));
        }
        port::INDEX_NONCE..port::INDEX_SIGN => {
            let words = desk.nonce.as_chunks_mut().0;
            if let Some(word) = words.get_mut(size(u64::from(index - port::INDEX_NONCE))) {
                *word = value.to_le_bytes();
            }
        }
        port::INDEX_SIGN => desk.sign(machine, value),
        port::INDEX_CHECK => desk.disagreement = machine.tables.check(value),
        port::INDEX_LOG => desk.log_word = value,
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
        let is_open = !iommu::state().is_on() && !machine.without_iommu;
        let leaks = !guest_state::is_tight() && !machine.leaky_processor;
        let begun = match (is_open, leaks) {
            (true, _) => Err(Error::NoIommu),
            (false, true) => Err(Error::Processor),
            (false, false) => self.incoming.begin(length),
        };
        // Without random bytes there would be no keys.
        let begun = begun.and_then(|()| random::bytes32().ok_or(Error::Memory));
        self.submission = match begun {
            Ok(launch) => {
                machine.tables.with_protected(|vms, trees| vms.begin(trees.hardware, launch));
                Submission::Receiving
            }
            Err(error) => self.refuse(machine, error),
        };
    }

    fn word(&mut self, machine: &Machine, word: u32) {
        if self.submission != Submission::Receiving {
            if self.submission == Submission::None {
                self.submission = Submission::Refused(Error::NotBegun);
            }
            return;
        }
        let weaknesses = Weaknesses {
            plain_launch: !tpm::is_launched(),
            no_iommu: iommu::state() != port::Iommu::On,
            development: machine.dev_tickets,
        };
        let visor = Visor { keys: keys::get(), weaknesses, age: age() };
        let parsed = machine.tables.with_protected(|vms, trees| {
            self.incoming.word(word, &visor, &mut vms.sink(trees.hardware))
        });
        match parsed {
            Ok(Parsed::More) => {}
            Ok(Parsed::Complete) => self.accept(machine),
            Err(error) => self.submission = self.refuse(machine, error),
        }
    }

    fn accept(&mut self, machine: &Machine) {
        let origin = self.incoming.origin().copied();
        let noted = origin.ok_or(Error::NotBegun).and_then(|origin| {
            self.serials.check(&origin)?;
            Ok(origin)
        });
        let origin = match noted {
            Ok(origin) => origin,
            Err(error) => {
                self.submission = self.refuse(machine, error);
                return;
            }
        };
        self.incoming.end();
        let accepted = machine.tables.with_protected(|vms, trees| {
            let cpu = trees.hardware.cpu();
            vms.accept(trees.hardware, cpu, &origin)
        });
        // A refusal is in the audit log already.
        self.submission = accepted.map_or_else(Submission::Refused, |number| {
            self.serials.note(&origin);
            self.accepted = number.number().into();
            Submission::Accepted
        });
        machine.tables.count_tickets();
    }

    /// Signs a statement of the kind with this number, if what it is about exists.
    fn sign(&mut self, machine: &Machine, kind: u32) {
        let kind = Kind::of_number(kind);
        let statement = kind.and_then(|kind| self.statement(machine, kind));
        self.signed = statement.map(|statement| {
            let body = statement.body(&self.nonce);
            let signature = keys::sign(statement.kind(), &body);
            (body, signature)
        });
    }

    fn statement(&self, machine: &Machine, kind: Kind) -> Option<Statement> {
        if kind == Kind::Nonce {
            return Some(Statement::Nonce { age: age() });
        }
        machine.tables.with_protected(|vms, _| {
            if kind == Kind::AuditHead {
                let (events, chain) = (vms.audit.count(), *vms.audit.chain());
                return Some(Statement::AuditHead { events, chain });
            }
            let vm = vms.vm(u8::try_from(self.vm).ok().and_then(Vm::new)?)?;
            Some(Statement::Receipt(Receipt {
                origin: *vm.origin(),
                vm: *vm.id(),
                launch: vm.launch(),
                state: state(vm.life()).word(),
                cause: cause(vm.life()),
            }))
        })
    }

    fn refuse(&mut self, machine: &Machine, error: Error) -> Submission {
        self.incoming.end();
        log::warn!("a ticket is refused: {error}");
        machine.tables.with_protected(|vms, trees| {
            let cpu = trees.hardware.cpu();
            vms.refused(trees.hardware, error, cpu);
        });
        Submission::Refused(error)
    }
}
