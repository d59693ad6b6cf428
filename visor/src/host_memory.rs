//! The host's memory, as its own instructions and the processor on its behalf reach it.

use core::cell::RefCell;

use emulate::access::LONGEST;
use emulate::context::{Access, Context};
use emulate::walk::{self, AddressSpace, Error};
use ept::addr::{Frame, Span};
use ept::list::{Full, List};
use ept::shadow::{self, Permission};
use nested_vmx::exit::Event;
use nested_vmx::field::{
    GUEST_CR0, GUEST_CR3, GUEST_CR4, GUEST_EFER, GUEST_PDPTE0, GUEST_PDPTE1, GUEST_PDPTE2,
    GUEST_PDPTE3, GUEST_RFLAGS, Segment, Vmcs,
};

use crate::cpu;
use crate::cpu::vmx::Current;
use crate::machine::Machine;
use crate::memory;
use crate::shootdown;

/// A page of the host's RAM that holds no page table of a VM. Stays so until the end of the exit in
/// which it was asked for: a frame changes its owner or role only after every processor has left
/// the exit that it is in.
#[derive(Debug)]
pub(crate) struct HostPage {
    /// Where it appears.
    linear: u64,
}

/// The page at `frame`, if the host may write it.
pub(crate) fn page(machine: &Machine, frame: Frame) -> Option<HostPage> {
    machine.tables.is_plain(frame).then(|| HostPage::of(frame))
}

/// What was found out about a page, and when: no frame becomes a table without a call to all
/// processors.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Known {
    frame: Frame,
    calls: u64,
}

impl Known {
    pub(crate) const NOTHING: Self = Self { frame: Frame::containing(0), calls: u64::MAX };

    /// As [`page`], but asked only once between two calls.
    pub(crate) fn page(&mut self, machine: &Machine, frame: Frame) -> Option<HostPage> {
        let calls = shootdown::calls();
        if self.frame == frame && self.calls == calls {
            return Some(HostPage::of(frame));
        }
        let found = page(machine, frame)?;
        *self = Self { frame, calls };
        Some(found)
    }
}

impl HostPage {
    const fn of(frame: Frame) -> Self {
        Self { linear: memory::linear(frame.base()) }
    }

    /// The 8 bytes at `index`.
    pub(crate) fn read(&self, index: usize) -> u64 {
        memory::read_word(self.linear, index)
    }

    /// The byte at `offset`.
    pub(crate) fn read_byte(&self, offset: usize) -> u8 {
        let offset = u64::try_from(offset % 4096).unwrap_or(0);
        memory::read_u8(self.linear - memory::DIRECT + offset)
    }

    /// Writes the 8 bytes at `index`.
    pub(crate) fn write(&self, index: usize, value: u64) {
        memory::write_word(self.linear, index, value);
    }
}

/// Reads of the host's RAM: where, and what was there.
pub(crate) type Reads = List<(u64, u64), READS>;

/// What the longest instruction takes: two pages, by five tables each, and three units of 8 bytes.
const READS: usize = 13;

/// The host's memory as its page tables and operands reach it.
struct Ram<'a> {
    machine: &'a Machine,
    /// Where reads are noted, if they are.
    reads: Option<&'a RefCell<Result<Reads, Full>>>,
}

impl walk::Memory for Ram<'_> {
    fn read(&self, address: u64) -> Option<u64> {
        let value = self.machine.tables.read_host(address)?;
        if let Some(mut reads) = self.reads.map(RefCell::borrow_mut)
            && let Ok(list) = &mut *reads
            && let Err(full) = list.push((address, value))
        {
            *reads = Err(full);
        }
        Some(value)
    }

    fn compare_exchange(&self, address: u64, old: u64, new: u64) -> Option<bool> {
        let plain = self.machine.tables.is_plain(Frame::containing(address));
        plain.then(|| memory::compare_exchange(address, old, new) == old)
    }
}

/// Registers that the translation of the host's linear addresses depends on; VMCS01 is current.
///
/// Protection keys are left out: those of user pages would deny the kernel an operand only with
/// SMAP off as well.
fn context(machine: &Machine) -> Context {
    let v = &Current;
    let rights = v.read(Segment::Ss.fields().rights);
    let [cpl, ..] = (rights >> 5 & 3).to_le_bytes();
    Context {
        cr0: v.read(GUEST_CR0),
        cr3: v.read(GUEST_CR3),
        cr4: v.read(GUEST_CR4),
        efer: v.read(GUEST_EFER),
        rflags: v.read(GUEST_RFLAGS),
        pdptes: [GUEST_PDPTE0, GUEST_PDPTE1, GUEST_PDPTE2, GUEST_PDPTE3].map(|field| v.read(field)),
        cpl,
        physical_bits: machine.width.into(),
        huge_pages: true,
        ..Context::default()
    }
}

/// The exception that an access ends in.
fn exception(error: Error) -> Event {
    match error {
        Error::Fault { linear, code } => {
            cpu::set_page_fault_address(linear);
            Event::PageFault(code)
        }
        // Device memory and the visor's: no place for an operand.
        Error::Unreachable(_) | Error::Contended(_) => Event::GeneralProtection(0),
    }
}

/// The bytes of the instruction at the host's `linear` address, as far as they can be fetched.
pub(crate) fn fetch<'b>(
    machine: &Machine,
    linear: u64,
    bytes: &'b mut [u8; LONGEST],
) -> Option<&'b [u8]> {
    let (context, memory) = (&context(machine), &Ram { machine, reads: None });
    AddressSpace { context, memory }.fetch(linear, bytes).ok()
}

/// What is read to fetch just `bytes` at the host's `linear` address, unless they are others by now,
/// or other processors made that too much.
pub(crate) fn reads(machine: &Machine, linear: u64, bytes: &[u8]) -> Option<Reads> {
    let reads = RefCell::new(Ok(Reads::new((0, 0))));
    let (context, memory) = (&context(machine), &Ram { machine, reads: Some(&reads) });
    let mut again = [0; LONGEST];
    let again = again.get_mut(..bytes.len())?;
    AddressSpace { context, memory }.read(linear, again, Access::Fetch).ok()?;
    reads.into_inner().ok().filter(|_| again == bytes)
}

/// Reads an operand at the host's `linear` address.
pub(crate) fn read(machine: &Machine, linear: u64, bytes: &mut [u8]) -> Result<(), Event> {
    let (context, memory) = (&context(machine), &Ram { machine, reads: None });
    AddressSpace { context, memory }.read(linear, bytes, Access::Read).map_err(exception)
}

/// Writes a result to the host's `linear` address.
pub(crate) fn write(machine: &Machine, linear: u64, bytes: &[u8]) -> Result<(), Event> {
    let (context, memory) = (&context(machine), &Ram { machine, reads: None });
    AddressSpace { context, memory }.write(linear, bytes).map_err(exception)
}

/// The host's memory as a place for its VMs' page tables.
pub(crate) struct HostTablesOfVm<'a>(pub(crate) &'a Machine);

impl shadow::Host for HostTablesOfVm<'_> {
    fn read(&self, address: u64) -> Option<u64> {
        self.0.tables.read_host(address)
    }

    fn set_bits(&self, address: u64, expected: u64, bits: u64) -> bool {
        if !self.0.tables.is_plain(Frame::containing(address)) {
            return true;
        }
        memory::compare_exchange(address, expected, expected | bits) == expected
    }

    fn permitted(&self, span: Span) -> Permission {
        self.0.tables.permitted(span)
    }
}
