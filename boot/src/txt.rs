//! What is there of a measured launch by Intel TXT: the chipset's registers and the heap (*Intel TXT Software
//! Development Guide*, revision 017, appendices B and C), and the page that tboot shares with what it starts
//! (`include/tboot.h` of tboot 1.10).
//!
//! Firmware or a boot loader could have made all of it up. So nothing here shows that there was such a launch: it can
//! only speak against it. What shows it are the TPM's PCRs.

use core::fmt;

use ept::addr::Span;

use crate::memory::{self, Memory};
use crate::raw;

/// Physical address of the registers for everybody.
pub const PUBLIC: u64 = 0xfed3_0000;
/// Physical address of the same registers for what was launched, which alone can give commands.
pub const PRIVATE: u64 = 0xfed2_0000;

/// Offset of TXT.CMD.SECRETS: whatever is written there, the chipset remembers that memory holds secrets.
pub const CMD_SECRETS: u64 = 0x8e0;
/// Offset of TXT.E2STS, which says whether it does.
pub const E2STS: u64 = 0x8f0;
/// Bit of [`E2STS`]: memory holds secrets.
const SECRETS_STS: u64 = 1 << 1;

const STS: u64 = 0x000;
const SENTER_DONE: u64 = 1 << 0;
const SEXIT_DONE: u64 = 1 << 1;
const PRIVATE_OPEN: u64 = 1 << 7;
const ESTS: u64 = 0x008;
/// TXT.RESET.STS and TXT.WAKE-ERROR.STS.
const ERRORS: u64 = 1 << 0 | 1 << 6;
const ERRORCODE: u64 = 0x030;
/// Its bits that say that it means something, and that this is from software.
const ERROR_VALID: u64 = 1 << 31;
const ERROR_SOFTWARE: u64 = 1 << 30;
/// Its bits that say which module has written it.
const ERROR_MODULE: u64 = 0xf;
const DIDVID: u64 = 0x110;
const INTEL: u64 = 0x8086;
const SINIT_BASE: u64 = 0x270;
const HEAP_BASE: u64 = 0x300;
/// From the register with the base of a region to the one with its size.
const SIZE: u64 = 8;

/// Most bytes of the heap that are believed; firmware gives it less than 1 MiB.
const LARGEST_HEAP: u64 = 16 << 20;

/// A part of the heap: after the 64 bits of its own length, a version of 32 bits and the rest.
struct Part {
    name: &'static str,
    /// The first version that is known. Later ones append to it.
    version: u32,
    /// Bytes of that version, length included.
    bytes: u64,
}

/// The parts in their order (appendix C). The form of the second is the business of whoever made it.
const HEAP: [Part; 4] = [
    Part { name: "BiosData", version: 2, bytes: 36 },
    Part { name: "OsMleData", version: 0, bytes: 12 },
    Part { name: "OsSinitData", version: 4, bytes: 92 },
    Part { name: "SinitMleData", version: 6, bytes: 152 },
];

/// What tboot's shared page begins with: {663c8dff-e8b3-4b82-aabf-19ea4d057a08}. In two parts: whole, the compiler would
/// compare it in a vector register.
const SHARED: [u64; 2] = [0x4b82_e8b3_663c_8dff, 0x087a_054d_ea19_aabf];
/// Bytes of its version 6, the first with [`SHARED_FLAGS`].
const SHARED_BYTES: u64 = 584;
const SHARED_VERSION: usize = 16;
const SHARED_FLAGS: usize = 568;
/// Processors wait for a word in memory instead of a start-up IPI.
const WAKE_BY_MEMORY: u32 = 1 << 0;

/// Parts a command line from the word `tboot=0x…` that tboot appends after a measured launch; the address in it, of the
/// page that tboot shares.
///
/// Only the last word can be tboot's, so that any other is left for [`parse`](crate::cmdline::parse) to refuse.
#[must_use]
pub fn part(line: &[u8]) -> (&[u8], Option<u32>) {
    let parted = || {
        let at = line.iter().rposition(|byte| *byte == b' ')?;
        let (rest, word) = line.split_at_checked(at)?;
        let digits = str::from_utf8(word.strip_prefix(b" tboot=0x")?).ok()?;
        let address = u32::from_str_radix(digits, 16).ok().filter(|_| !digits.starts_with('+'))?;
        Some((rest, Some(address)))
    };
    parted().unwrap_or((line, None))
}

/// Whether TXT.ERRORCODE tells of an error. A module that has ended well writes there as well: its own number, and
/// zeros for where and what.
const fn is_failure(code: u64) -> bool {
    code & ERROR_VALID != 0 && code & !(ERROR_VALID | ERROR_MODULE) != ERROR_SOFTWARE
}

/// Whether registers, heap, and the page at physical address `shared`, if tboot has named one, are as after a launch
/// that still lasts. `register` reads the public register at an offset; each number is read once.
///
/// # Errors
/// The first thing that is not.
pub fn check(
    register: impl Fn(u64) -> u64,
    memory: &dyn Memory,
    shared: Option<u32>,
) -> Result<(), TxtError> {
    if register(DIDVID) & 0xffff != INTEL {
        return Err(TxtError::Absent);
    }
    let status = register(STS);
    if status & (SENTER_DONE | SEXIT_DONE) != SENTER_DONE {
        return Err(TxtError::NotLaunched);
    }
    if status & PRIVATE_OPEN == 0 {
        return Err(TxtError::Closed);
    }
    let (errors, code) = (register(ESTS), register(ERRORCODE));
    if errors & ERRORS != 0 || is_failure(code) {
        return Err(TxtError::Failed { errors, code });
    }
    let region = |base| Span::sized(register(base), register(base + SIZE));
    let heap = region(HEAP_BASE).filter(|heap| heap.len() <= LARGEST_HEAP && !heap.is_empty());
    let sinit = region(SINIT_BASE).filter(|sinit| !sinit.is_empty());
    match (heap, sinit) {
        (Some(heap), Some(sinit)) if !heap.overlaps(sinit) => check_heap(memory, heap)?,
        _ => return Err(TxtError::Regions),
    }
    shared.map_or(Ok(()), |address| check_shared(memory, address.into()))
}

fn check_heap(memory: &dyn Memory, heap: Span) -> Result<(), TxtError> {
    let mut at = heap.start();
    for Part { name, version, bytes } in HEAP {
        let bad = TxtError::Heap(name);
        let head = Span::sized(at, 12).filter(|head| heap.covers(*head)).ok_or(bad)?;
        let head = memory.bytes(head).and_then(|head| raw::array::<12>(head, 0)).ok_or(bad)?;
        let (len, found) = (raw::quad(&head, 0), raw::word(&head, 8));
        let part = len.filter(|len| *len >= bytes).and_then(|len| Span::sized(at, len));
        let part = part.filter(|part| heap.covers(*part)).ok_or(bad)?;
        if found.is_none_or(|found| found < version) {
            return Err(bad);
        }
        at = part.end();
    }
    Ok(())
}

fn check_shared(memory: &dyn Memory, address: u64) -> Result<(), TxtError> {
    /// The first version with [`SHARED_FLAGS`].
    const FLAGGED: u32 = 6;
    let page = memory::bytes(memory, address, SHARED_BYTES).ok_or(TxtError::Shared)?;
    if [0, 8].map(|at| raw::quad(page, at)) != SHARED.map(Some) {
        return Err(TxtError::Shared);
    }
    let version = raw::word(page, SHARED_VERSION).ok_or(TxtError::Shared)?;
    let flags = raw::word(page, SHARED_FLAGS).filter(|_| version >= FLAGGED);
    if flags.is_some_and(|flags| flags & WAKE_BY_MEMORY != 0) {
        return Err(TxtError::Waiting);
    }
    Ok(())
}

/// Whether register [`E2STS`] says that the chipset remembers secrets.
///
/// # Errors
/// [`TxtError::Forgetful`] if not.
pub const fn check_secrets(e2sts: u64) -> Result<(), TxtError> {
    if e2sts & SECRETS_STS == 0 { Err(TxtError::Forgetful) } else { Ok(()) }
}

/// What speaks against a measured launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TxtError {
    /// No chipset with TXT answers.
    Absent,
    /// None was done, or it was ended.
    NotLaunched,
    /// The private registers are closed.
    Closed,
    /// The chipset tells of errors.
    Failed {
        /// TXT.ESTS.
        errors: u64,
        /// TXT.ERRORCODE.
        code: u64,
    },
    /// Heap and SINIT module are not two regions of memory.
    Regions,
    /// This part of the heap is too short, too long, or too old.
    Heap(&'static str),
    /// There is no page of tboot's where its word in the command line says.
    Shared,
    /// tboot has the other processors wait for a word in memory.
    Waiting,
    /// The chipset does not remember that memory holds secrets.
    Forgetful,
    /// The TPM holds no launch.
    Unmeasured,
}

impl TxtError {
    /// Whether it is what machines say that nobody has made any launch on.
    #[must_use]
    pub const fn is_usual(self) -> bool {
        matches!(self, Self::Absent | Self::NotLaunched)
    }
}

impl fmt::Display for TxtError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("no chipset with TXT answers"),
            Self::NotLaunched => f.write_str("the chipset knows of none that lasts"),
            Self::Closed => f.write_str("TXT's private registers are closed"),
            Self::Failed { errors, code } => {
                write!(f, "TXT tells of errors: status {errors:#x}, code {code:#x}")
            }
            Self::Regions => f.write_str("TXT's heap and SINIT are no two regions of memory"),
            Self::Heap(part) => write!(f, "bad {part} in TXT's heap"),
            Self::Shared => f.write_str("no page of tboot's is where its word says"),
            Self::Waiting => f.write_str("tboot was told ap_wake_mwait: leave that out"),
            Self::Forgetful => f.write_str("TXT does not note that memory holds secrets"),
            Self::Unmeasured => f.write_str("PCR 17 to 19 are not as after one"),
        }
    }
}
