//! The control port, for both of its sides: `visor` and `visorctl`.
//!
//! Two dword ports; accesses of another size are not the visor's. A write to [`SELECT`] selects an
//! index, a read of either port gives the value at that index, a write to [`DATA`] writes there. An index
//! that does not exist, or can only be written, reads [`ABSENT`]; writing what cannot be written does
//! nothing.
//!
//! What is selected is selected until the next write to [`SELECT`]: a stream of words needs one. A
//! selection may be the processor's own or the whole machine's, so a program that uses the port stays on
//! one processor and holds the lock that `docs/visorctl.md` names.
//!
//! A value of 64 bits is two indexes, of which the lower has the low half and latches the high one.

use crate::error::Error;

/// The port for indexes.
pub const SELECT: u16 = 0xce0;
/// The port for values.
pub const DATA: u16 = 0xce4;

/// What [`INDEX_MAGIC`] reads when a visor answers: "VISR".
pub const MAGIC: u32 = u32::from_le_bytes(*b"VISR");
/// Major version (high half) and minor version (low half) of what is described here.
pub const VERSION: u32 = 0x0001_0005;
/// The first version with tickets.
pub const WITH_TICKETS: u32 = 0x0001_0001;
/// The first version that tells of the IOMMU.
pub const WITH_IOMMU: u32 = 0x0001_0003;
/// The first version that tells of the TPM.
pub const WITH_TPM: u32 = 0x0001_0004;
/// The first version with keys, that signs and takes sealed tickets.
pub const WITH_KEYS: u32 = 0x0001_0004;
/// The first version that tells of the processor.
pub const WITH_LEAKS: u32 = 0x0001_0005;
/// What an empty port reads, and an index that does not exist.
pub const ABSENT: u32 = u32::MAX;

/// Reads [`MAGIC`].
pub const INDEX_MAGIC: u32 = 0;
/// Reads [`VERSION`].
pub const INDEX_VERSION: u32 = 1;
/// Reads where the visor's memory begins, in MiB.
pub const INDEX_BASE: u32 = 2;
/// Reads the length of the visor's memory, in MiB.
pub const INDEX_LENGTH: u32 = 3;
/// Reads the number of processors.
pub const INDEX_PROCESSORS: u32 = 4;
/// Reads how many counters there are from [`INDEX_COUNTER`].
pub const INDEX_COUNTERS: u32 = 5;
/// Reads how often the visor refused an access.
pub const INDEX_EVENTS: u32 = 6;
/// Reads how many frames of the host are tables of its VMs.
pub const INDEX_TABLES: u32 = 7;
/// Reads how many pages the visor has left.
pub const INDEX_FREE: u32 = 8;
/// Reads the TSC ticks spent in the visor: 64 bits.
pub const INDEX_TICKS: u32 = 0x80;
/// Reads the number of exits for basic exit reason 0: 64 bits. Reason n is at 2 n from here.
pub const INDEX_COUNTER: u32 = 0x100;

/// Write: begins a submission of as many bytes as the value says, and drops an unfinished one. Read:
/// what has become of it, a [`Submission`].
pub const INDEX_BEGIN: u32 = 0x400;
/// Write: the next 4 bytes of the ticket.
pub const INDEX_WORD: u32 = 0x401;
/// Write: any value drops an unfinished submission.
pub const INDEX_CANCEL: u32 = 0x402;
/// Reads how many accepted tickets wait for their VM.
pub const INDEX_WAITING: u32 = 0x403;
/// Reads 1 if tickets are taken in clear.
pub const INDEX_CLEAR: u32 = 0x404;
/// Reads 1 if VMs without a ticket are refused. Since 1.2.
pub const INDEX_REFUSES: u32 = 0x405;

/// Write: has the visor compare its tables with the frame table, for the RAM in this GiB of physical
/// memory. Read: 0 if they agree, or the number of the first frame on which they do not, plus 1. Since
/// 1.2.
pub const INDEX_CHECK: u32 = 0x406;
/// Reads how many GiB there are to be checked. Since 1.2.
pub const INDEX_CHECK_END: u32 = 0x407;

/// Reads whether an IOMMU keeps devices from memory, an [`Iommu`]. Since 1.3.
pub const INDEX_IOMMU: u32 = 0x408;
/// Reads 1 if tickets are taken without one. Since 1.3.
pub const INDEX_WITHOUT_IOMMU: u32 = 0x409;
/// Reads how many accesses of devices the IOMMU has refused, as far as it has told. Since 1.3.
pub const INDEX_DMA_REFUSED: u32 = 0x40a;

/// Reads 1 if the processor does not keep a VM's memory from its host. Since 1.5.
pub const INDEX_LEAKS: u32 = 0x40e;
/// Reads 1 if tickets are taken nevertheless. Since 1.5.
pub const INDEX_DESPITE_LEAKS: u32 = 0x40f;

/// Reads what became of the measurements, a [`Tpm`]. Since 1.4.
pub const INDEX_TPM: u32 = 0x40b;
/// Reads how many bytes the log of the measurements has: 0 if there is none. Since 1.4.
pub const INDEX_LOG_BYTES: u32 = 0x40c;
/// Write: selects a word of the log. Read: the selected word; behind the log's end, zeros. Since 1.4.
pub const INDEX_LOG: u32 = 0x40d;

/// Write: selects a VM, 0..[`VMS`].
pub const INDEX_VM: u32 = 0x410;
/// Reads the selected VM's [`VmState`].
pub const INDEX_VM_STATE: u32 = 0x411;
/// Reads why the selected VM was stopped: a number of the visor's, 0 if it was not.
pub const INDEX_VM_CAUSE: u32 = 0x412;
/// Reads the first of the four words of the selected VM's id.
pub const INDEX_VM_ID: u32 = 0x413;
/// Reads how many vCPUs the selected VM has.
pub const INDEX_VM_CPUS: u32 = 0x417;
/// Reads how many private pages the selected VM has in memory.
pub const INDEX_VM_RESIDENT: u32 = 0x418;
/// Reads how many private pages of the selected VM the host has, sealed.
pub const INDEX_VM_SEALED: u32 = 0x419;
/// Write: 1 destroys the selected VM.
pub const INDEX_VM_DESTROY: u32 = 0x41a;
/// Reads how often the host was asked in a row for a page of the selected VM's that it does not give, or not
/// for writing. Since 1.4.
pub const INDEX_VM_ASKED: u32 = 0x41b;
/// Reads the number of that page, its address by 4096. Since 1.4.
pub const INDEX_VM_WANTED: u32 = 0x41c;
/// Write: the first of the eight words of the nonce that statements are about. Since 1.4, as all up to
/// [`INDEX_SIGNATURE`].
pub const INDEX_NONCE: u32 = 0x420;
/// Write: has the visor sign a statement: 1 a nonce, 2 a receipt for the selected VM, 3 the audit log's head. Read:
/// how many bytes the statement has; 0 if there is none.
pub const INDEX_SIGN: u32 = 0x428;
/// Reads the number of the VM whose ticket was accepted last.
pub const INDEX_ACCEPTED: u32 = 0x429;
/// Reads the first of the sixteen words of the visor's public keys: X25519, then Ed25519.
pub const INDEX_KEYS: u32 = 0x430;
/// Reads the first of the words of the statement.
pub const INDEX_STATEMENT: u32 = 0x440;
/// Reads the first of the sixteen words of its signature.
pub const INDEX_SIGNATURE: u32 = 0x490;
/// One more than the last of them.
pub const INDEX_SIGNATURE_END: u32 = 0x4a0;
/// Reads how many VMs of the host ran without a ticket since boot.
pub const INDEX_UNPROTECTED: u32 = 0x480;

/// Reads how many audit events there were since boot: one more than the last one's number.
pub const INDEX_AUDIT_END: u32 = 0x500;
/// Reads the number of the oldest event that is still there.
pub const INDEX_AUDIT_OLDEST: u32 = 0x501;
/// Write: selects an event by its number.
pub const INDEX_AUDIT: u32 = 0x502;
/// Reads the first of the eight words of the selected event ([`crate::audit::Event`]).
pub const INDEX_AUDIT_EVENT: u32 = 0x503;
/// Reads the first of the eight words of the chain value after the last event.
pub const INDEX_AUDIT_CHAIN: u32 = 0x510;

/// VMs that may have tickets at one time.
pub const VMS: u32 = 64;

/// What has become of a submission.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Submission {
    /// There was none, or it was cancelled.
    None,
    /// More words are expected.
    Receiving,
    /// The ticket waits for its VM.
    Accepted,
    /// The ticket was refused.
    Refused(Error),
}

impl Submission {
    /// Tells a refusal from the other states; the error's number is below.
    pub const REFUSED: u32 = 0x8000_0000;

    /// The value at [`INDEX_BEGIN`].
    #[must_use]
    pub const fn word(self) -> u32 {
        match self {
            Self::None => 0,
            Self::Receiving => 1,
            Self::Accepted => 2,
            Self::Refused(error) => Self::REFUSED | error.number(),
        }
    }

    /// What `word` says; `None` for a word that this version does not know.
    #[must_use]
    pub fn of_word(word: u32) -> Option<Self> {
        match word {
            0 => Some(Self::None),
            1 => Some(Self::Receiving),
            2 => Some(Self::Accepted),
            _ => Error::of_number(word.checked_sub(Self::REFUSED)?).map(Self::Refused),
        }
    }
}

/// Whether an IOMMU keeps devices from the visor's memory and from VMs'.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Iommu {
    /// The machine has none.
    Absent,
    /// It does.
    On,
    /// There is one that the visor cannot use; the serial line said why.
    Broken,
    /// It does now; but devices could reach the visor while it started, as a unit has no protected region.
    Late,
}

impl Iommu {
    /// The value at [`INDEX_IOMMU`].
    #[must_use]
    pub const fn word(self) -> u32 {
        match self {
            Self::Absent => 0,
            Self::On => 1,
            Self::Broken => 2,
            Self::Late => 3,
        }
    }

    /// What `word` says; `None` for a word that this version does not know.
    #[must_use]
    pub const fn of_word(word: u32) -> Option<Self> {
        match word {
            0 => Some(Self::Absent),
            1 => Some(Self::On),
            2 => Some(Self::Broken),
            3 => Some(Self::Late),
            _ => None,
        }
    }

    /// Whether an IOMMU keeps devices from memory by now: tickets are taken.
    #[must_use]
    pub const fn is_on(self) -> bool {
        matches!(self, Self::On | Self::Late)
    }
}

/// Whether the visor is measured, so that a tenant can tell what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tpm {
    /// The machine has no TPM 2.0.
    Absent,
    /// A TPM holds the visor's configuration and key.
    Measured,
    /// There is one that the visor cannot use; the serial line said why.
    Broken,
}

impl Tpm {
    /// The value at [`INDEX_TPM`].
    #[must_use]
    pub const fn word(self) -> u32 {
        match self {
            Self::Absent => 0,
            Self::Measured => 1,
            Self::Broken => 2,
        }
    }

    /// What `word` says; `None` for a word that this version does not know.
    #[must_use]
    pub const fn of_word(word: u32) -> Option<Self> {
        match word {
            0 => Some(Self::Absent),
            1 => Some(Self::Measured),
            2 => Some(Self::Broken),
            _ => None,
        }
    }
}

/// How a VM with a ticket is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VmState {
    /// There is none in this place.
    None,
    /// Its ticket waits for the host to start it.
    Waiting,
    /// It runs, or may run.
    Running,
    /// It never runs again.
    Stopped,
}

impl VmState {
    /// The value at [`INDEX_VM_STATE`].
    #[must_use]
    pub const fn word(self) -> u32 {
        match self {
            Self::None => 0,
            Self::Waiting => 1,
            Self::Running => 2,
            Self::Stopped => 3,
        }
    }

    /// What `word` says; `None` for a word that this version does not know.
    #[must_use]
    pub const fn of_word(word: u32) -> Option<Self> {
        match word {
            0 => Some(Self::None),
            1 => Some(Self::Waiting),
            2 => Some(Self::Running),
            3 => Some(Self::Stopped),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::{Iommu, Submission, Tpm, VmState};
    use crate::error::Error;
    use std::vec::Vec;

    #[test]
    fn words_of_submissions_and_vms_read_back() {
        let mut submissions: Vec<_> =
            Error::ALL.iter().map(|error| Submission::Refused(*error)).collect();
        submissions.extend([Submission::None, Submission::Receiving, Submission::Accepted]);
        for submission in submissions {
            assert_eq!(Submission::of_word(submission.word()), Some(submission));
        }
        for state in [VmState::None, VmState::Waiting, VmState::Running, VmState::Stopped] {
            assert_eq!(VmState::of_word(state.word()), Some(state));
        }
        for state in [Iommu::Absent, Iommu::On, Iommu::Broken, Iommu::Late] {
            assert_eq!(Iommu::of_word(state.word()), Some(state));
            assert_eq!(state.is_on(), matches!(state.word(), 1 | 3));
        }
        for state in [Tpm::Absent, Tpm::Measured, Tpm::Broken] {
            assert_eq!(Tpm::of_word(state.word()), Some(state));
        }
    }

    #[test]
    fn an_unknown_word_says_nothing() {
        for word in [3, Submission::REFUSED, super::ABSENT] {
            assert_eq!(Submission::of_word(word), None, "{word:#x}");
        }
        assert_eq!(VmState::of_word(4), None);
        assert_eq!(Iommu::of_word(4), None);
        assert_eq!(Tpm::of_word(3), None);
    }
}
