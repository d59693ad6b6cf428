//! `submit`.

use std::fmt;
use std::fs;
use std::path::Path;

use serde::Serialize;
use ticket::port::{
    INDEX_ACCEPTED, INDEX_BEGIN, INDEX_CANCEL, INDEX_VM_ID, INDEX_WORD, Submission, VMS, VmState,
};

use crate::failure::Failure;
use crate::hex;
use crate::port::Port;
use crate::visor::Visor;

/// Words between two looks at what the visor says.
const CHUNK: usize = 4096;
/// Where a ticket in clear has the VM's id.
const ID: usize = 16;

/// A ticket that the visor has.
#[derive(Debug, Serialize)]
pub(crate) struct Submitted {
    /// The VM's slot.
    vm: u32,
    id: String,
    bytes: u32,
}

/// A ticket's file: dwords, as the port takes them. Whether it is right is the visor's to say.
#[derive(Debug)]
pub(crate) struct Words {
    bytes: Vec<u8>,
    length: u32,
    id: [u8; 16],
}

impl Words {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// [`Failure::File`], and [`Failure::NoTicket`] if its length is none that the port could take.
    pub(crate) fn read(path: &Path) -> Result<Self, Failure> {
        let bytes = fs::read(path).map_err(|why| Failure::File(path.into(), why))?;
        let none =
            || Failure::NoTicket(path.into(), u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        let id = bytes.get(ID..).and_then(|rest| rest.first_chunk()).copied().ok_or_else(none)?;
        let length = u32::try_from(bytes.len()).map_err(|_| none())?;
        if !length.is_multiple_of(4) {
            return Err(none());
        }
        Ok(Self { bytes, length, id })
    }
}

/// Gives the visor the ticket; `progress` hears what part of it has gone.
///
/// # Errors
/// As [`Visor::find_with_tickets`], and [`Failure::Refused`].
pub(crate) fn submit(
    port: impl Port,
    words: &Words,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Submitted, Failure> {
    let mut visor = Visor::find_with_tickets(port)?;
    visor.put(INDEX_BEGIN, words.length);
    expect(&mut visor, Submission::Receiving)?;
    let (dwords, _) = words.bytes.as_chunks();
    let mut gone = 0;
    for chunk in dwords.chunks(CHUNK) {
        visor.put_all(INDEX_WORD, chunk.iter().copied().map(u32::from_le_bytes));
        gone += chunk.len();
        progress(gone, dwords.len());
        if gone < dwords.len() {
            expect(&mut visor, Submission::Receiving)?;
        }
    }
    expect(&mut visor, Submission::Accepted)?;
    let (vm, id) = taken(&mut visor, words)?.ok_or(Failure::Vanished)?;
    Ok(Submitted { vm, id: hex::encode(&id), bytes: words.length })
}

/// The VM that has the ticket now. What a sealed one says, only the visor knows.
fn taken<P: Port>(visor: &mut Visor<P>, words: &Words) -> Result<Option<(u32, [u8; 16])>, Failure> {
    if !visor.has_keys() {
        return Ok(visor.slot_of(words.id)?.map(|vm| (vm, words.id)));
    }
    let vm = visor.value(INDEX_ACCEPTED);
    let is_there = vm < VMS && visor.vm(vm)? != VmState::None;
    Ok(is_there.then(|| (vm, visor.bytes(INDEX_VM_ID))))
}

/// Makes sure that the submission is as it should be, and drops it if not.
fn expect<P: Port>(visor: &mut Visor<P>, submission: Submission) -> Result<(), Failure> {
    let value = visor.value(INDEX_BEGIN);
    match Submission::of_word(value) {
        Some(found) if found == submission => return Ok(()),
        _ => visor.put(INDEX_CANCEL, 0),
    }
    match Submission::of_word(value) {
        Some(Submission::Refused(error)) => Err(Failure::Refused(error)),
        Some(Submission::None | Submission::Receiving | Submission::Accepted) | None => {
            Err(Failure::Protocol { index: INDEX_BEGIN, value })
        }
    }
}

impl fmt::Display for Submitted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "VM {} has its ticket, and takes it when the host starts it: {}",
            self.vm, self.id
        )
    }
}
