//! The host's stores to the tables of its VMs, which it can only read: each is decoded, checked and
//! performed on its behalf. Where that cannot be, the tables are given up, and the host's instruction
//! is executed again on what is then ordinary memory.

use emulate::access::LONGEST;
use emulate::decode::{self, Mode};
use emulate::store::{Series, Store};
use ept::addr::{Frame, PAGE};
use nested_vmx::field::{
    EXIT_QUALIFICATION, GUEST_RFLAGS, GUEST_RIP, GUEST_RSP, IDT_VECTORING, Segment, Vmcs,
};

use crate::cpu::vmx::Current;
use crate::host::{self, Next, Registers};
use crate::host_memory;
use crate::machine::Machine;

/// Answers an EPT violation of the host at `address`, if it is a store to a table of a VM and can be
/// performed.
pub(crate) fn store(machine: &Machine, address: u64, registers: &mut Registers) -> Option<Next> {
    if !machine.tables.is_table(Frame::containing(address)) {
        return None;
    }
    let length = perform(machine, address, registers)?;
    host::step_by(length);
    Some(Next::Stay)
}

/// Does the instruction that stores at `address`; returns by how much it advances RIP.
fn perform(machine: &Machine, address: u64, registers: &mut Registers) -> Option<u64> {
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
    let mut state = registers.for_emulation();
    let store = fetch(machine, &state)?;
    let bytes = store.size.bytes();
    // The processor has reported the address of a byte, the registers have that of the operand.
    let elsewhere = |series: Series| series.offset % PAGE != address % PAGE;
    if !address.is_multiple_of(bytes) || store.series.is_some_and(elsewhere) {
        return None;
    }
    let in_page = (PAGE - address % PAGE) / bytes;
    let count = store.series.map_or(1, |series| series.count.min(in_page));
    let size = u8::try_from(bytes).ok()?;
    let one =
        |number: u64| machine.tables.store(address + number * bytes, size, |old| store.apply(old));
    let old = one(0)?;
    let more = (1..count).take_while(|number| one(*number).is_some());
    let done = 1 + u64::try_from(more.count()).ok()?;
    let length = store.finish(old, done, &mut state);
    registers.after_emulation(&state);
    Some(length)
}

/// The instruction at the host's instruction pointer, if it is a store that is known.
fn fetch(machine: &Machine, state: &emulate::store::Registers) -> Option<Store> {
    const BIG: u32 = 1 << 14;
    let code = Segment::Cs.fields();
    let (mode, base) = if host::in_64_bit_code() {
        (Mode::Bits64, 0)
    } else if Current.read(code.rights) & BIG != 0 {
        (Mode::Bits32, Current.read(code.base))
    } else {
        return None;
    };
    let mut bytes = [0; LONGEST];
    let linear = base.wrapping_add(Current.read(GUEST_RIP));
    let bytes = host_memory::fetch(machine, linear, &mut bytes)?;
    decode::decode(bytes, mode, state)
}

impl Registers {
    fn for_emulation(&self) -> emulate::store::Registers {
        let r = &self.r;
        let [r8, r9, r10, r11, r12, r13, r14, r15] = *r;
        let rsp = Current.read(GUEST_RSP);
        let general = [
            self.rax, self.rcx, self.rdx, self.rbx, rsp, self.rbp, self.rsi, self.rdi, r8, r9, r10,
            r11, r12, r13, r14, r15,
        ];
        emulate::store::Registers { general, rflags: Current.read(GUEST_RFLAGS) }
    }

    /// Takes over what a store may have changed: not RSP, since none of them does.
    fn after_emulation(&mut self, state: &emulate::store::Registers) {
        let [rax, rcx, rdx, rbx, _, rbp, rsi, rdi, r @ ..] = state.general;
        *self = Self { rax, rcx, rdx, rbx, rbp, rsi, rdi, r };
        Current.write(GUEST_RFLAGS, state.rflags);
    }
}
