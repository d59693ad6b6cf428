//! The host's stores to the tables of its VMs, which it can only read: each is decoded, checked and
//! performed on its behalf. Where that cannot be, the tables are given up, and the host's instruction
//! is executed again on what is then ordinary memory.

use emulate::access::LONGEST;
use emulate::decode::{self, Mode};
use emulate::store::Store;
use ept::addr::PAGE;
use membrane::Progress;
use nested_vmx::field::{
    EXIT_QUALIFICATION, GUEST_CR3, GUEST_CR4, GUEST_RFLAGS, GUEST_RIP, IDT_VECTORING, Segment, Vmcs,
};
use spin::Mutex;

use crate::cpu::size;
use crate::cpu::vmx::Current;
use crate::host::{self, Next, Registers};
use crate::host_memory::{self, Reads};
use crate::machine::Machine;
use crate::memory;
use crate::percpu::PerCpu;
use crate::shootdown;

/// Answers an EPT violation of the host at `address`, if it is a store to a table of a VM and can be
/// performed. A series of stores goes on with the next exit.
// In the one large function that handles all exits no register would be left for it.
#[inline(never)]
pub(crate) fn store(machine: &Machine, address: u64, registers: &mut Registers) -> Option<Next> {
    /// A write whose linear address led here, not a page walk on the way to it.
    const WRITE: u64 = 1 << 1;
    const OF_OPERAND: u64 = 0b11 << 7;
    const VECTORING: u32 = 1 << 31;
    let qualification = Current.read(EXIT_QUALIFICATION);
    if qualification & (WRITE | OF_OPERAND) != WRITE | OF_OPERAND
        || Current.read(IDT_VECTORING) & VECTORING != 0
    {
        return None;
    }
    let index = size(PerCpu::current().index.get().into());
    let mut last = shootdown::lock(LAST.get(index)?);
    let store = fetch(machine, &mut last)?;
    let bytes = store.size.bytes();
    // The processor has reported the address of a byte, the registers have that of the operand.
    let supported = address & (bytes - 1) == 0
        && store.series.is_none_or(|series| {
            series.offset(registers).is_some_and(|offset| offset % PAGE == address % PAGE)
        });
    let (bytes, mut outcome) = (u8::try_from(bytes).ok().filter(|_| supported)?, None);
    let change = |old| outcome.insert(store.apply(old, registers)).new;
    if machine.tables.store(address, bytes, change)? == Progress::Again {
        return Some(Next::Stay);
    }
    host::step_by(store.finish(outcome?, registers));
    Some(Next::Stay)
}

/// A store that was decoded, and all that it was found by.
struct Decoded {
    /// Linear address, CR3, CR4.
    place: (u64, u64, u64),
    /// `None` if more than that counts, outside 64-bit code, or if it was too much.
    reads: Option<Reads>,
    store: Store,
}

/// Each processor's last. None waits for its lock: meanwhile what it has read could become a protected
/// VM's.
static LAST: [Mutex<Option<Decoded>>; PROCESSORS] = [const { Mutex::new(None) }; PROCESSORS];
/// Most processors that there are.
const PROCESSORS: usize = 512;

/// The instruction at the host's instruction pointer, if it is a store that is known.
///
/// Hosts store to tables by the same few instructions. In 64-bit code the `last` one is taken again
/// while CR3 and CR4 are the same, and so is whatever was read to find it: its bytes, and the entries
/// of the host's tables that lead to them. So nothing is remembered that the processor would have to
/// forget. Other registers can only forbid to execute it, and the processor just has.
fn fetch<'l>(machine: &Machine, last: &'l mut Option<Decoded>) -> Option<&'l Store> {
    const BIG: u32 = 1 << 14;
    let code = Segment::Cs.fields();
    let (mode, base) = if host::in_64_bit_code() {
        (Mode::Bits64, 0)
    } else if Current.read(code.rights) & BIG != 0 {
        (Mode::Bits32, Current.read(code.base))
    } else {
        return None;
    };
    let linear = base.wrapping_add(Current.read(GUEST_RIP));
    let place = (linear, Current.read(GUEST_CR3), Current.read(GUEST_CR4));
    // The processor has just read all that, so it is still the host's: nobody takes a frame before this
    // processor has left the exit that it is in.
    let is = |(address, value): &(u64, u64)| memory::read_u64(*address) == *value;
    let same = |last: &Decoded| {
        last.place == place && last.reads.as_ref().is_some_and(|reads| reads.iter().all(is))
    };
    if mode == Mode::Bits32 || !last.as_ref().is_some_and(same) {
        *last = Some(decode(machine, place, mode)?);
    }
    last.as_ref().map(|last| &last.store)
}

/// The store at a `place`, where the host executes an instruction.
#[cold]
fn decode(machine: &Machine, place: (u64, u64, u64), mode: Mode) -> Option<Decoded> {
    let mut bytes = [0; LONGEST];
    let bytes = host_memory::fetch(machine, place.0, &mut bytes)?;
    let store = decode::decode(bytes, mode)?;
    // What comes after the instruction does not count, and would cost time at each store.
    let instruction = bytes.get(..size(store.length))?;
    let reads = (mode == Mode::Bits64).then(|| host_memory::reads(machine, place.0, instruction));
    Some(Decoded { place, reads: reads.flatten(), store })
}

/// The host's; RSP and RFLAGS are in VMCS01.
impl emulate::store::Registers for Registers {
    fn general(&self, number: u8) -> u64 {
        self.numbered(number)
    }
    fn set_general(&mut self, number: u8, value: u64) {
        self.set_numbered(number, value);
    }
    fn rflags(&self) -> u64 {
        Current.read(GUEST_RFLAGS)
    }
    fn set_rflags(&mut self, value: u64) {
        Current.write(GUEST_RFLAGS, value);
    }
}
