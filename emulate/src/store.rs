//! What a store does to memory, registers and flags.

pub(crate) const CARRY: u64 = 1;
const PARITY: u64 = 1 << 2;
const ADJUST: u64 = 1 << 4;
const ZERO: u64 = 1 << 6;
const SIGN: u64 = 1 << 7;
const DIRECTION: u64 = 1 << 10;
const OVERFLOW: u64 = 1 << 11;
const STATUS: u64 = CARRY | PARITY | ADJUST | ZERO | SIGN | OVERFLOW;
const RESUME: u64 = 1 << 16;

/// The registers that a store may read and change.
pub trait Registers {
    /// General register 0 to 15: RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
    fn general(&self, number: u8) -> u64;
    /// Writes one of those.
    fn set_general(&mut self, number: u8, value: u64);
    /// RFLAGS.
    fn rflags(&self) -> u64;
    /// Writes RFLAGS.
    fn set_rflags(&mut self, value: u64);
}

/// A register operand: the general register of `number`, from bit `shift` on, which is 8 for AH, CH,
/// DH and BH.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Register {
    pub(crate) number: u8,
    pub(crate) shift: u32,
}

pub(crate) const RAX: Register = Register { number: 0, shift: 0 };
const RCX: Register = Register { number: 1, shift: 0 };
const RSI: Register = Register { number: 6, shift: 0 };
const RDI: Register = Register { number: 7, shift: 0 };

impl Register {
    /// The value of this size.
    pub(crate) fn get(self, size: Size, registers: &impl Registers) -> u64 {
        registers.general(self.number) >> self.shift & size.mask()
    }

    /// Writes a value of this size. One of 4 bytes clears the upper half (SDM vol. 1, 3.4.1.1).
    pub(crate) fn set(self, size: Size, value: u64, registers: &mut impl Registers) {
        let keep = if size == Size::FOUR { 0 } else { !(size.mask() << self.shift) };
        let old = registers.general(self.number);
        registers.set_general(self.number, old & keep | (value & size.mask()) << self.shift);
    }
}

/// Size of a memory operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    bytes: u64,
    mask: u64,
}

impl Size {
    pub(crate) const ONE: Self = Self { bytes: 1, mask: 0xff };
    pub(crate) const TWO: Self = Self { bytes: 2, mask: 0xffff };
    pub(crate) const FOUR: Self = Self { bytes: 4, mask: 0xffff_ffff };
    pub(crate) const EIGHT: Self = Self { bytes: 8, mask: u64::MAX };

    /// Number of bytes: 1, 2, 4 or 8.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.bytes
    }

    /// A number with all bits of this size set.
    #[must_use]
    pub const fn mask(self) -> u64 {
        self.mask
    }
}

/// What becomes of a memory operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// It is overwritten: mov, movnti, stos, xchg.
    Set,
    /// It is overwritten if it is what the accumulator is: cmpxchg.
    CompareExchange,
    /// add, xadd
    Add,
    /// adc
    AddWithCarry,
    /// sub
    Subtract,
    /// sbb
    SubtractWithBorrow,
    /// or
    Or,
    /// and
    And,
    /// xor
    Xor,
    /// inc
    Increment,
    /// dec
    Decrement,
    /// not
    Not,
    /// neg
    Negate,
    /// bts
    SetBit,
    /// btr
    ResetBit,
    /// btc
    ComplementBit,
}

/// What a string instruction does once, or as often as it is repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Series {
    /// Size of the registers that count and address.
    pub(crate) address_size: Size,
    /// Whether RCX counts: rep.
    pub(crate) counted: bool,
    /// Whether RSI moves on, and RDI.
    pub(crate) moves: (bool, bool),
}

/// An instruction that stores to memory.
///
/// To execute it: read the memory operand, put what [`Store::apply`] makes of it in its place by one
/// locked operation, then [`Store::finish`]. The caller advances RIP, ends blocking by STI or MOV SS,
/// and lets the trap happen that RFLAGS.TF asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Store {
    /// Bytes in the instruction.
    pub length: u64,
    /// Size of the memory operand. An address that is not a multiple of it is not supported: the
    /// processor may report any byte of such an operand.
    pub size: Size,
    /// What becomes of the memory operand.
    pub operation: Operation,
    /// For stos and rep stos.
    pub series: Option<Series>,
    /// The source operand, if it is no immediate one.
    pub(crate) register: Register,
    pub(crate) immediate: Option<u64>,
    /// Whether the source operand gets what was in memory: xchg, xadd.
    pub(crate) exchange: bool,
}

/// The result of an operation.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// What was in memory.
    old: u64,
    /// What is there afterwards.
    pub new: u64,
    /// Status flags, of which it has `changed` these.
    flags: u64,
    changed: u64,
}

impl Store {
    /// The source operand; without a meaning where the operation needs none.
    #[must_use]
    pub fn source(&self, registers: &impl Registers) -> u64 {
        self.immediate.unwrap_or_else(|| self.register.get(self.size, registers))
    }

    /// Does the rest when memory has the `outcome`. Returns by how much RIP advances: by 0 if there
    /// is more to store.
    #[must_use]
    pub fn finish(&self, outcome: Outcome, registers: &mut impl Registers) -> u64 {
        if let Some(series) = self.series
            && !series.advance(self.size, registers)
        {
            return 0;
        }
        let failed = self.operation == Operation::CompareExchange && outcome.flags & ZERO == 0;
        if self.exchange || failed {
            let register = if failed { RAX } else { self.register };
            register.set(self.size, outcome.old, registers);
        }
        let kept = registers.rflags() & !(outcome.changed | RESUME);
        registers.set_rflags(kept | outcome.flags & outcome.changed);
        self.length
    }

    /// What the operation makes of `old`.
    #[must_use]
    // A call costs less than what compilers compute ahead of the loop that it is in.
    #[inline(never)]
    pub fn apply(&self, old: u64, registers: &impl Registers) -> Outcome {
        let (size, value) = (self.size, self.source(registers));
        let old = old & size.mask;
        let carry = || registers.rflags() & CARRY;
        // Where a bit offset selects another word of memory, that is the one that the processor has
        // reported.
        let number = value & (8 * size.bytes - 1);
        let bit = |new| (new, old >> number & CARRY, CARRY);
        let but_carry = |(new, flags, _)| (new, flags, STATUS & !CARRY);
        let (new, flags, changed) = match self.operation {
            Operation::Set => (value, 0, 0),
            Operation::CompareExchange => {
                let expected = RAX.get(size, registers);
                let (_, flags, changed) = size.subtract(expected, old, 0);
                (if expected == old { value } else { old }, flags, changed)
            }
            Operation::Add => size.add(old, value, 0),
            Operation::AddWithCarry => size.add(old, value, carry()),
            Operation::Subtract => size.subtract(old, value, 0),
            Operation::SubtractWithBorrow => size.subtract(old, value, carry()),
            Operation::Or => size.result(old | value, 0, 0),
            Operation::And => size.result(old & value, 0, 0),
            Operation::Xor => size.result(old ^ value, 0, 0),
            Operation::Increment => but_carry(size.add(old, 1, 0)),
            Operation::Decrement => but_carry(size.subtract(old, 1, 0)),
            Operation::Not => (!old & size.mask, 0, 0),
            Operation::Negate => size.subtract(0, old, 0),
            Operation::SetBit => bit(old | 1 << number),
            Operation::ResetBit => bit(old & !(1 << number)),
            Operation::ComplementBit => bit(old ^ 1 << number),
        };
        Outcome { old, new, flags, changed }
    }
}

/// Results with their status flags, and which of those they change.
impl Size {
    fn add(self, a: u64, b: u64, carry: u64) -> (u64, u64, u64) {
        let sum = a.wrapping_add(b).wrapping_add(carry);
        self.result(sum, a & b | (a | b) & !sum, (a ^ sum) & (b ^ sum))
    }

    fn subtract(self, a: u64, b: u64, borrow: u64) -> (u64, u64, u64) {
        let difference = a.wrapping_sub(b).wrapping_sub(borrow);
        self.result(difference, !a & b | (!a | b) & difference, (a ^ b) & (a ^ difference))
    }

    /// A result with its flags (SDM vol. 1, 3.4.3.1). `carries` has a bit set where one was carried
    /// out of it, `overflow` has the sign bit set where the sign is wrong. Logical operations leave
    /// the adjust flag undefined: processors clear it.
    fn result(self, value: u64, carries: u64, overflow: u64) -> (u64, u64, u64) {
        let (new, sign) = (value & self.mask, self.mask ^ self.mask >> 1);
        let [low, ..] = new.to_le_bytes();
        let flags = [
            (CARRY, carries & sign != 0),
            (PARITY, low.count_ones().is_multiple_of(2)),
            (ADJUST, carries & 8 != 0),
            (ZERO, new == 0),
            (SIGN, new & sign != 0),
            (OVERFLOW, overflow & sign != 0),
        ];
        let add = |all, (flag, is_set)| if is_set { all | flag } else { all };
        (new, flags.into_iter().fold(0, add), STATUS)
    }
}

impl Series {
    /// Where the next store of stos goes, relative to ES: RDI, or as much of it as addresses have.
    /// `None` if none is left, or it goes downwards: that is not supported.
    #[must_use]
    pub fn offset(self, registers: &impl Registers) -> Option<u64> {
        let upwards = registers.rflags() & DIRECTION == 0;
        (upwards && self.left(registers) > 0).then(|| RDI.get(self.address_size, registers))
    }

    /// How many elements are left.
    pub(crate) fn left(self, registers: &impl Registers) -> u64 {
        if self.counted { RCX.get(self.address_size, registers) } else { 1 }
    }

    /// Moves on by one element. Whether it was the last.
    fn advance(self, size: Size, registers: &mut impl Registers) -> bool {
        let left = self.left(registers).saturating_sub(1);
        let upwards = registers.rflags() & DIRECTION == 0;
        let step = if upwards { size.bytes } else { size.bytes.wrapping_neg() };
        for (register, moves) in [(RSI, self.moves.0), (RDI, self.moves.1)] {
            if moves {
                let offset = register.get(self.address_size, registers).wrapping_add(step);
                register.set(self.address_size, offset, registers);
            }
        }
        if self.counted {
            RCX.set(self.address_size, left, registers);
        }
        left == 0
    }
}
