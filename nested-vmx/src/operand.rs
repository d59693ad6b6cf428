//! Operands of the host's VMX instructions, from the VM-exit instruction information (SDM vol. 3,
//! tables 29-14 to 29-16).

use crate::check::is_canonical;
use crate::exit::Event;
use crate::field::{self as f, Segment, Vmcs};

/// Where an operand is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the general-purpose register of this number.
    Register(u8),
    /// In memory.
    Memory(Address),
}

/// The parts of a memory operand's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    segment: Segment,
    base: Option<u8>,
    /// Register, and the power of two that it is multiplied with.
    index: Option<(u8, u8)>,
    displacement: u64,
    /// Bits of the address that count.
    mask: u64,
}

/// The operands of one instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operands {
    /// The operand that may be in memory.
    pub place: Place,
    /// The other, a general-purpose register, where there is one.
    pub register: u8,
}

impl Operands {
    /// Decodes the instruction information and the exit qualification, which has the displacement;
    /// `None` for what no processor reports.
    #[must_use]
    pub fn decode(information: u32, qualification: u64) -> Option<Self> {
        const IN_REGISTER: u32 = 1 << 10;
        const NO_INDEX: u32 = 1 << 22;
        const NO_BASE: u32 = 1 << 27;
        let number = |at: u32| {
            let [low, ..] = (information >> at & 15).to_le_bytes();
            low
        };
        let register = number(28);
        if information & IN_REGISTER != 0 {
            return Some(Self { place: Place::Register(number(3)), register });
        }
        let segment = match information >> 15 & 7 {
            0 => Segment::Es,
            1 => Segment::Cs,
            2 => Segment::Ss,
            3 => Segment::Ds,
            4 => Segment::Fs,
            5 => Segment::Gs,
            _ => return None,
        };
        let mask = match information >> 7 & 7 {
            0 => 0xffff,
            1 => 0xffff_ffff,
            2 => u64::MAX,
            _ => return None,
        };
        let place = Place::Memory(Address {
            segment,
            base: (information & NO_BASE == 0).then(|| number(23)),
            index: (information & NO_INDEX == 0).then(|| (number(18), number(0) & 3)),
            displacement: qualification,
            mask,
        });
        Some(Self { place, register })
    }
}

/// What an operand in memory is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Read.
    Read,
    /// Written.
    Write,
}

/// Access rights of a segment (SDM vol. 3, table 26-2).
const EXECUTABLE: u32 = 1 << 3;
const EXPANDS_DOWN: u32 = 1 << 2;
const WRITABLE_OR_READABLE: u32 = 1 << 1;
const LONG: u32 = 1 << 13;
const BIG: u32 = 1 << 14;
const UNUSABLE: u32 = 1 << 16;

impl Address {
    /// The linear address of `bytes` bytes in memory; `register` gives general-purpose registers.
    /// `sign_bit` is where the bits of a canonical address that must be equal begin.
    ///
    /// # Errors
    /// The exception that the processor raises.
    pub fn linear(
        &self,
        vmcs: &impl Vmcs,
        register: impl Fn(u8) -> u64,
        (bytes, usage): (u64, Use),
        sign_bit: u8,
    ) -> Result<u64, Event> {
        let base = self.base.map_or(0, &register);
        let index = self.index.map_or(0, |(number, scale)| register(number) << scale);
        let offset = base.wrapping_add(index).wrapping_add(self.displacement) & self.mask;
        let segment_base = vmcs.read(self.segment.fields().base);
        if !in_64_bit_mode(vmcs) {
            let offset = offset & 0xffff_ffff;
            self.check_segment(vmcs, offset, bytes, usage)?;
            return Ok(segment_base.wrapping_add(offset) & 0xffff_ffff);
        }
        let linear = match self.segment {
            Segment::Fs | Segment::Gs => segment_base.wrapping_add(offset),
            Segment::Es | Segment::Cs | Segment::Ss | Segment::Ds | Segment::Ldtr | Segment::Tr => {
                offset
            }
        };
        let canonical = |address| is_canonical(address, sign_bit);
        if canonical(linear) && canonical(linear.wrapping_add(bytes - 1)) {
            Ok(linear)
        } else {
            Err(self.fault())
        }
    }

    fn check_segment(
        &self,
        vmcs: &impl Vmcs,
        offset: u64,
        bytes: u64,
        usage: Use,
    ) -> Result<(), Event> {
        let fields = self.segment.fields();
        let (rights, limit) = (vmcs.read(fields.rights), u64::from(vmcs.read(fields.limit)));
        let code = rights & EXECUTABLE != 0;
        let permitted = match usage {
            Use::Read => !code || rights & WRITABLE_OR_READABLE != 0,
            Use::Write => !code && rights & WRITABLE_OR_READABLE != 0,
        };
        let last = offset + (bytes - 1);
        let within = if !code && rights & EXPANDS_DOWN != 0 {
            let top = if rights & BIG != 0 { 0xffff_ffff } else { 0xffff };
            offset > limit && last <= top
        } else {
            last <= limit
        };
        if rights & UNUSABLE == 0 && permitted && within { Ok(()) } else { Err(self.fault()) }
    }

    const fn fault(&self) -> Event {
        if matches!(self.segment, Segment::Ss) {
            Event::StackFault
        } else {
            Event::GeneralProtection(0)
        }
    }
}

const LMA: u64 = 1 << 10;

/// Outside IA-32e mode the L bit of a code segment means nothing.
fn in_64_bit_mode(vmcs: &impl Vmcs) -> bool {
    vmcs.read(f::GUEST_EFER) & LMA != 0 && vmcs.read(Segment::Cs.fields().rights) & LONG != 0
}

/// Whether the host may execute a VMX instruction here at all: not in real, virtual-8086 or
/// compatibility mode (#UD), and only in ring 0 (#GP(0)).
///
/// # Errors
/// The exception that the processor raises.
pub fn permitted(vmcs: &impl Vmcs) -> Result<(), Event> {
    const PE: u64 = 1;
    const VM: u64 = 1 << 17;
    if vmcs.read(f::GUEST_CR0) & PE == 0
        || vmcs.read(f::GUEST_RFLAGS) & VM != 0
        || (vmcs.read(f::GUEST_EFER) & LMA != 0 && !in_64_bit_mode(vmcs))
    {
        return Err(Event::InvalidOpcode);
    }
    privileged(vmcs)
}

/// Whether the host is in ring 0: all that is left to check of VMLAUNCH and VMRESUME, which the
/// processor refuses elsewhere before they exit. (VMCALL exits from everywhere.)
///
/// # Errors
/// The exception that the processor raises.
pub fn privileged(vmcs: &impl Vmcs) -> Result<(), Event> {
    let is_ring_0 = vmcs.read(Segment::Ss.fields().rights) >> 5 & 3 == 0;
    if is_ring_0 { Ok(()) } else { Err(Event::GeneralProtection(0)) }
}
