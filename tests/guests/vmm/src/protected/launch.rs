//! Tickets: made, submitted through the control port, and what became of their VMs.

use super::guest::{BULK, BULK_PAGES, RESET, RESET_AT, WINDOW};
use super::sealed;
use crate::kvm::checked;
use crate::memory::PAGE;
use crate::port::Control;
use attest::keys::{PUBLIC_BYTES, SIGNATURE_BYTES};
use attest::statement::{Kind, MAX_BODY, Nonce};
use control::{Port, Status};
use ticket::Class;
use ticket::build::Ticket;
use ticket::port::{
    INDEX_BEGIN, INDEX_CLEAR, INDEX_FREE, INDEX_KEYS, INDEX_NONCE, INDEX_SIGN, INDEX_SIGNATURE,
    INDEX_STATEMENT, INDEX_TABLES, INDEX_VM, INDEX_VM_ASKED, INDEX_VM_CAUSE, INDEX_VM_DESTROY,
    INDEX_VM_ID, INDEX_VM_RESIDENT, INDEX_VM_SEALED, INDEX_VM_STATE, INDEX_VM_WANTED,
    INDEX_WAITING, INDEX_WORD, Submission, VMS, VmState,
};

/// The name of a VM in its ticket.
pub(crate) type Id = [u8; 16];

/// The ticket of the guest that `image` starts.
pub(super) fn ticket(id: Id, image: &[(u64, Vec<u8>)]) -> Result<Vec<u8>, String> {
    let after = WINDOW + PAGE;
    let ranges = [
        (0, WINDOW as u64, Class::Private),
        (WINDOW as u64, PAGE as u64, Class::Window),
        (after as u64, (RESET - after) as u64, Class::Private),
        (BULK as u64, (BULK_PAGES * PAGE) as u64, Class::Private),
        (RESET_AT, PAGE as u64, Class::Private),
    ];
    let pages: Vec<_> = image.iter().map(|(at, bytes)| (*at, bytes.as_slice())).collect();
    ticket_of(id, &ranges, &pages)
}

/// The ticket of a VM with this memory map and this launch image, that begins in the reset state.
pub(crate) fn ticket_of(
    id: Id,
    ranges: &[(u64, u64, Class)],
    image: &[(u64, &[u8])],
) -> Result<Vec<u8>, String> {
    ticket_for(1, id, ranges, image)
}

/// Likewise, of one with so many processors.
pub(crate) fn ticket_for(
    processors: u32,
    id: Id,
    ranges: &[(u64, u64, Class)],
    image: &[(u64, &[u8])],
) -> Result<Vec<u8>, String> {
    let mut ticket = Ticket::new(id, [0x5a; 32]);
    ticket.processors = processors;
    for (start, length, class) in ranges {
        ticket = ticket.range(*start, *length, *class);
    }
    for (at, bytes) in image {
        ticket.image(*at, bytes).map_err(|why| why.to_string())?;
    }
    ticket.bytes().map_err(|why| why.to_string())
}

/// The visor, which takes tickets: sealed ones only, or such in clear too.
#[derive(Debug)]
pub(crate) struct Visor {
    port: Control,
    takes_clear: bool,
}

/// What the visor has, in frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Frames {
    /// Of the host, that are tables of its VMs.
    pub(super) tables: u32,
    /// Of its own, that are free.
    pub(super) free: u32,
}

impl Visor {
    /// Finds it. What is selected belongs to a processor, so each use of it stays on the first.
    pub(crate) fn find() -> Result<Self, String> {
        let _ = Status::find(Control::new()?).map_err(|none| none.to_string())?;
        let mut visor = Self { port: Control::new()?, takes_clear: false };
        visor.takes_clear = visor.at_home(|port| port.read(INDEX_CLEAR))? == 1;
        Ok(visor)
    }

    /// Submits a ticket, which must be accepted. It is sealed before if it has to be.
    pub(crate) fn submit(&mut self, ticket: &[u8]) -> Result<(), String> {
        let state = if self.takes_clear {
            self.offer(ticket)?
        } else {
            let keys = self.keys()?;
            self.offer(&sealed::seal(ticket, &sealed::policy()?, &keys)?)?
        };
        match state {
            Submission::Accepted => Ok(()),
            Submission::Refused(why) => Err(format!("the ticket is refused: {why}")),
            other => Err(format!("the ticket is not accepted: {other:?}")),
        }
    }

    /// Submits a ticket as it is; what becomes of it.
    pub(super) fn offer(&mut self, ticket: &[u8]) -> Result<Submission, String> {
        let length = u32::try_from(ticket.len()).map_err(|why| why.to_string())?;
        let words = ticket.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word));
        let state = self.at_home(|port| {
            port.write(INDEX_BEGIN, [length]);
            port.write(INDEX_WORD, words);
            port.read(INDEX_BEGIN)
        })?;
        Submission::of_word(state).ok_or(format!("a submission's state: {state:#x}"))
    }

    /// The visor's public keys.
    pub(super) fn keys(&mut self) -> Result<[u8; PUBLIC_BYTES], String> {
        self.at_home(|port| words(port, INDEX_KEYS))
    }

    /// What the visor states about `nonce`, and the VM called `id` if that is asked for; nothing if it does
    /// not.
    pub(super) fn state_of(
        &mut self,
        kind: Kind,
        id: Option<Id>,
        nonce: &Nonce,
    ) -> Result<Option<Signed>, String> {
        let nonce: Vec<u32> =
            nonce.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)).collect();
        let sign = |port: &mut Control| {
            for (word, index) in nonce.into_iter().zip(INDEX_NONCE..) {
                port.write(index, [word]);
            }
            port.write(INDEX_SIGN, [kind.number()]);
            let length = port.read(INDEX_SIGN) as usize;
            let mut body = words::<MAX_BODY>(port, INDEX_STATEMENT).to_vec();
            body.truncate(length);
            (length != 0).then(|| (body, words(port, INDEX_SIGNATURE)))
        };
        match id {
            Some(id) => self.at_vm(id, sign).map(Option::flatten),
            None => self.at_home(sign),
        }
    }

    /// The state of the VM called `id`, and why it was stopped.
    pub(crate) fn state(&mut self, id: Id) -> Result<(VmState, u32), String> {
        let read = |port: &mut Control| (port.read(INDEX_VM_STATE), port.read(INDEX_VM_CAUSE));
        let Some((state, cause)) = self.at_vm(id, read)? else { return Ok((VmState::None, 0)) };
        Ok((VmState::of_word(state).ok_or(format!("a VM's state: {state:#x}"))?, cause))
    }

    /// How many private pages of the VM are in memory, and sealed in the host's.
    pub(super) fn pages(&mut self, id: Id) -> Result<(u32, u32), String> {
        let read = |port: &mut Control| (port.read(INDEX_VM_RESIDENT), port.read(INDEX_VM_SEALED));
        self.at_vm(id, read)?.ok_or_else(|| "no such VM".to_owned())
    }

    /// Which page the host was asked for last, and how often in a row.
    pub(super) fn asked(&mut self, id: Id) -> Result<(u32, u32), String> {
        let read = |port: &mut Control| (port.read(INDEX_VM_WANTED), port.read(INDEX_VM_ASKED));
        self.at_vm(id, read)?.ok_or_else(|| "no such VM".to_owned())
    }

    /// Ends the VM called `id`; whether there was one.
    pub(crate) fn destroy(&mut self, id: Id) -> Result<bool, String> {
        let found = self.at_vm(id, |port| port.write(INDEX_VM_DESTROY, [1]))?;
        Ok(found.is_some())
    }

    pub(super) fn frames(&mut self) -> Result<Frames, String> {
        self.at_home(|port| Frames { tables: port.read(INDEX_TABLES), free: port.read(INDEX_FREE) })
    }

    /// How many tickets wait for their VM.
    pub(super) fn waiting(&mut self) -> Result<u32, String> {
        self.at_home(|port| port.read(INDEX_WAITING))
    }

    fn at_vm<T>(
        &mut self,
        id: Id,
        work: impl FnOnce(&mut Control) -> T,
    ) -> Result<Option<T>, String> {
        let words = id.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word));
        let words: Vec<u32> = words.collect();
        self.at_home(|port| {
            for number in 0..VMS {
                port.write(INDEX_VM, [number]);
                let is_there = port.read(INDEX_VM_STATE) != VmState::None.word();
                let mut named = words.iter().zip(INDEX_VM_ID..);
                if is_there && named.all(|(word, index)| port.read(index) == *word) {
                    return Some(work(port));
                }
            }
            None
        })
    }

    /// Does `work` on the first processor, then gives this thread its processors back.
    fn at_home<T>(&mut self, work: impl FnOnce(&mut Control) -> T) -> Result<T, String> {
        let before = processors()?;
        let mut first = before;
        // SAFETY: sets of processors are plain bits.
        unsafe {
            libc::CPU_ZERO(&mut first);
            libc::CPU_SET(0, &mut first);
        }
        stay_on(&first)?;
        let done = work(&mut self.port);
        stay_on(&before).map(|()| done)
    }
}

/// A statement's bytes, and its signature.
pub(super) type Signed = (Vec<u8>, [u8; SIGNATURE_BYTES]);

/// The bytes of the words from `index` on.
fn words<const N: usize>(port: &mut Control, index: u32) -> [u8; N] {
    let mut bytes = [0; N];
    for (word, index) in bytes.as_chunks_mut().0.iter_mut().zip(index..) {
        *word = port.read(index).to_le_bytes();
    }
    bytes
}

/// The processors that this thread may run on.
fn processors() -> Result<libc::cpu_set_t, String> {
    // SAFETY: a set of processors is plain bits, which the kernel fills in.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        let size = size_of::<libc::cpu_set_t>();
        checked(libc::sched_getaffinity(0, size, &raw mut set)).map(|_| set)
    }
}

fn stay_on(set: &libc::cpu_set_t) -> Result<(), String> {
    // SAFETY: the kernel reads the set.
    let result =
        unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const *set) };
    checked(result).map(drop)
}

/// Lets this thread run on processor `number` only.
pub(super) fn move_to(number: usize) -> Result<(), String> {
    // SAFETY: as above.
    let set = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(number, &mut set);
        set
    };
    stay_on(&set)
}

#[cfg(test)]
mod tests {
    use super::ticket;
    use crate::protected::guest;
    use ticket::build::Discard;

    #[test]
    fn the_guests_ticket_is_well_formed() {
        let bytes = ticket([7; 16], &guest::image(1)).unwrap();
        assert_eq!(ticket::build::parse(&bytes, &mut Discard), Ok(()));
    }
}
