//! What can go wrong, with the codes that scripts rely on.

use std::fmt;
use std::io;
use std::path::PathBuf;

use ticket::port;

/// How the program ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Done.
    Good,
    /// Not done.
    Failed,
    /// Words that make no command.
    Usage,
    /// Not under the visor, or a VM ran without a ticket.
    Unprotected,
}

impl Exit {
    pub(crate) const fn code(self) -> u8 {
        match self {
            Self::Good => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Unprotected => 3,
        }
    }
}

/// Why a command was not done.
#[derive(Debug)]
pub(crate) enum Failure {
    /// No visor answers; index 0 read this.
    NoVisor(u32),
    /// The visor's interface, of this version, lacks what is asked for.
    OldVisor(u32),
    /// The kernel does not let this process do what it needs to reach the port.
    Denied(&'static str, io::Error),
    /// Another program has the lock.
    Busy(PathBuf),
    /// The lock cannot be taken.
    Lock(PathBuf, io::Error),
    /// A file cannot be read or written.
    File(PathBuf, io::Error),
    /// A description makes no ticket.
    Description(PathBuf, String),
    /// A kernel, with what goes along, makes no VM.
    Linux(PathBuf, measure::Fault),
    /// A file of this many bytes is no ticket.
    NoTicket(PathBuf, u64),
    /// The visor refused the ticket.
    Refused(ticket::error::Error),
    /// The visor took the ticket, but has no VM for it.
    Vanished,
    /// The visor's tables and its frame table disagree on the frame at this address.
    Disagreement(u64),
    /// There is no VM in this slot.
    NoVm(u32),
    /// The VM in this slot is still there.
    NotDestroyed(u32),
    /// Events are asked for from this one on, but there are only so many.
    NoEvent { since: u32, end: u32 },
    /// The audit log's events do not give its chain value.
    Chain,
    /// The audit log did not hold still.
    Moving,
    /// The visor gave this value at this index, which the protocol does not know.
    Protocol { index: u32, value: u32 },
    /// One of the tools that talk to the TPM failed, or is not there.
    Tool(&'static str, String),
    /// A file of a tenant's is not what it should be, or the answer cannot be written.
    Document(PathBuf, evidence::Error),
    /// A challenge asks for a bank that no TPM has.
    Bank(String),
    /// A challenge has no nonce of 32 bytes.
    Nonce,
    /// The TPM keeps no key here.
    NoKey(u32),
    /// The visor has measured nothing.
    NoLog,
    /// The answer could not be written.
    Output(io::Error),
}

impl From<measure::Error> for Failure {
    fn from(why: measure::Error) -> Self {
        match why {
            measure::Error::File(path, why) => Self::File(path, why),
            measure::Error::Kernel(path, why) => Self::Linux(path, why),
            measure::Error::Ticket(path, why) => Self::Description(path, why),
            measure::Error::Disk(path, why) => Self::Description(path, why.to_string()),
        }
    }
}

impl Failure {
    /// The code in JSON.
    pub(crate) const fn code(&self) -> &'static str {
        match self {
            Self::NoVisor(_) => "no-visor",
            Self::OldVisor(_) => "old-visor",
            Self::Denied(..) => "denied",
            Self::Busy(_) => "busy",
            Self::Lock(..) => "lock",
            Self::File(..) => "file",
            Self::Description(..) => "description",
            Self::Linux(..) => "linux",
            Self::NoTicket(..) => "no-ticket",
            Self::Refused(_) => "refused",
            Self::Vanished => "vanished",
            Self::NoVm(_) => "no-vm",
            Self::Disagreement(_) => "disagreement",
            Self::NotDestroyed(_) => "not-destroyed",
            Self::NoEvent { .. } => "no-event",
            Self::Chain => "chain",
            Self::Moving => "moving",
            Self::Protocol { .. } => "protocol",
            Self::Tool(..) => "tool",
            Self::Document(..) => "document",
            Self::Bank(_) => "bank",
            Self::Nonce => "nonce",
            Self::NoKey(_) => "no-key",
            Self::NoLog => "no-log",
            Self::Output(_) => "output",
        }
    }

    pub(crate) const fn exit(&self) -> Exit {
        if matches!(self, Self::NoVisor(_)) { Exit::Unprotected } else { Exit::Failed }
    }

    /// The number of the visor's refusal.
    pub(crate) const fn refusal(&self) -> Option<u32> {
        if let Self::Refused(error) = self { Some(error.number()) } else { None }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoVisor(found) => write!(
                f,
                "UNPROTECTED: this host was booted without the visor (port {:#x} reads {found:#x})",
                port::SELECT
            ),
            Self::OldVisor(version) => {
                write!(
                    f,
                    "the visor's interface {}.{} is too old for that",
                    version >> 16,
                    version & 0xffff
                )
            }
            Self::Denied(what, why) => {
                write!(f, "{what}: {why} (needs root, and a kernel that is not locked down)")
            }
            Self::Busy(path) => {
                write!(f, "another program talks to the visor: {} is locked", path.display())
            }
            Self::Lock(path, why) if why.kind() == io::ErrorKind::PermissionDenied => {
                write!(f, "cannot lock {}: {why} (needs root)", path.display())
            }
            Self::Lock(path, why) => write!(f, "cannot lock {}: {why}", path.display()),
            Self::File(path, why) => write!(f, "{}: {why}", path.display()),
            Self::Description(path, why) => write!(f, "{}: {why}", path.display()),
            Self::Linux(path, why) => write!(f, "{}: {why}", path.display()),
            Self::NoTicket(path, bytes) => {
                write!(f, "{}: not a ticket: {bytes} bytes long", path.display())
            }
            Self::Refused(error) => write!(f, "the visor refused the ticket: {error}"),
            Self::Vanished => {
                f.write_str("the visor took the ticket, but has no VM for it any more")
            }
            Self::NoVm(slot) => write!(f, "there is no VM {slot}"),
            Self::Disagreement(frame) => write!(
                f,
                "the visor's tables disagree on the memory at {frame:#x}: this must not be, and is a bug \
                 of the visor's"
            ),
            Self::NotDestroyed(slot) => write!(f, "the visor did not destroy VM {slot}"),
            Self::NoEvent { since, end } => {
                write!(f, "no event {since}: the audit log has {end} so far")
            }
            Self::Chain => f.write_str("the audit log's events do not give its chain value"),
            Self::Moving => f.write_str("the audit log changes faster than it can be read"),
            Self::Protocol { index, value } => {
                write!(f, "the visor answers {value:#x} at index {index:#x}: is visorctl too old?")
            }
            Self::Tool(tool, why) => write!(f, "{tool}: {why}"),
            Self::Document(path, why) => write!(f, "{}: {why}", path.display()),
            Self::Bank(bank) => write!(f, "no such bank of PCRs: {bank:?}"),
            Self::Nonce => f.write_str("the challenge has no nonce of 32 bytes"),
            Self::NoKey(handle) => write!(f, "no key at {handle:#x}: `attest identity` makes it"),
            Self::NoLog => f.write_str(
                "the visor has measured nothing: there is no TPM, or it cannot be used (visorctl status)",
            ),
            Self::Output(why) => write!(f, "cannot write the answer: {why}"),
        }
    }
}
