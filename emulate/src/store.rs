//! What a store does to memory, registers and flags.

pub(crate) const CARRY: u64 = 1;
const PARITY: u64 = 1 << 2;
const ADJUST: u64 = 1 << 4;
const ZERO: u64 = 1 << 6;
const SIGN: u64 = 1 << 7;
const OVERFLOW: u64 = 1 << 11;
const STATUS: u64 = CARRY | PARITY | ADJUST | ZERO | SIGN | OVERFLOW;
const RESUME: u64 = 1 << 16;

/// The registers that a store may read and change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Registers {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
    pub general: [u64; 16],
    /// RFLAGS.
    pub rflags: u64,
}

/// A register operand: [`Registers::general`] of `number`, from bit `shift` on, which is 8 for AH,
/// CH, DH and BH.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Register {
    pub(crate) number: u8,
    pub(crate) shift: u32,
}

pub(crate) const RAX: Register = Register { number: 0, shift: 0 };
pub(crate) const RCX: Register = Register { number: 1, shift: 0 };
pub(crate) const RDI: Register = Register { number: 7, shift: 0 };

impl Registers {
    /// The value of a register of this size.
    pub(crate) fn get(&self, register: Register, size: Size) -> u64 {
        let value = self.general.get(usize::from(register.number));
        value.map_or(0, |value| value >> register.shift & size.mask())
    }

    /// Writes a register of this size. One of 4 bytes clears the upper half (SDM vol. 1, 3.4.1.1).
    fn set(&mut self, register: Register, size: Size, value: u64) {
        let keep = if size == Size::FOUR { 0 } else { !(size.mask() << register.shift) };
        if let Some(slot) = self.general.get_mut(usize::from(register.number)) {
            *slot = *slot & keep | (value & size.mask()) << register.shift;
        }
    }
}

/// Size of a memory operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(u64);

impl Size {
    pub(crate) const ONE: Self = Self(1);
    pub(crate) const TWO: Self = Self(2);
    pub(crate) const FOUR: Self = Self(4);
    pub(crate) const EIGHT: Self = Self(8);

    /// Number of bytes: 1, 2, 4 or 8.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// A number with all bits of this size set.
    #[must_use]
    pub const fn mask(self) -> u64 {
        u64::MAX >> (64 - 8 * self.0)
    }

    /// The bit that a bit offset selects. Where the offset selects another word of memory, that is
    /// the word that the processor has reported.
    pub(crate) const fn bit(self, offset: u64) -> u64 {
        offset % (8 * self.0)
    }

    const fn sign(self) -> u64 {
        1 << (8 * self.0 - 1)
    }
}

/// What becomes of a memory operand. Numbers have the size of the operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// It is overwritten: mov, movnti, stos, xchg.
    Set(u64),
    /// It becomes `new` if it is `expected`, which is the accumulator: cmpxchg.
    CompareExchange {
        /// What it must be.
        expected: u64,
        /// The source operand.
        new: u64,
    },
    /// Both are added to it: add, adc, xadd.
    Add {
        /// The source operand.
        value: u64,
        /// 1 for adc with the carry flag set, or else 0.
        carry: u64,
    },
    /// Both are subtracted from it: sub, sbb.
    Subtract {
        /// The source operand.
        value: u64,
        /// 1 for sbb with the carry flag set, or else 0.
        borrow: u64,
    },
    /// or
    Or(u64),
    /// and
    And(u64),
    /// xor
    Xor(u64),
    /// inc
    Increment,
    /// dec
    Decrement,
    /// not
    Not,
    /// neg
    Negate,
    /// bts of the bit of this number.
    SetBit(u64),
    /// btr of the bit of this number.
    ResetBit(u64),
    /// btc of the bit of this number.
    ComplementBit(u64),
}

/// A series of equal stores to ascending addresses: stos, rep stos.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Series {
    /// Stores still to be done, at least 1.
    pub count: u64,
    /// Where the next goes, relative to ES: RDI, or EDI in 32-bit code.
    pub offset: u64,
    /// Size of the registers that count and address.
    pub(crate) address_size: Size,
    /// Whether RCX counts: rep.
    pub(crate) counted: bool,
}

/// An instruction that stores to memory, with the values of its operands.
///
/// To execute it: read `old`, put [`Store::apply`] of it in its place by one locked operation, then
/// [`Store::finish`]. The caller advances RIP, ends blocking by STI or MOV SS, and lets the trap
/// happen that RFLAGS.TF asks for.
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
    /// Where xchg and xadd put what was in memory.
    pub(crate) register: Option<Register>,
}

/// The result of an operation, and the flags among `STATUS` that it changes.
struct Outcome {
    new: u64,
    flags: u64,
    changed: u64,
}

impl Store {
    /// What is in memory afterwards, if `old` was before.
    #[must_use]
    pub fn apply(&self, old: u64) -> u64 {
        self.outcome(old & self.size.mask()).new
    }

    /// Does the rest after `done` elements were stored, where `old` was before: one, or for a
    /// [`Series`] up to its count. Returns by how much RIP advances: by 0 if elements are left.
    #[must_use]
    pub fn finish(&self, old: u64, done: u64, registers: &mut Registers) -> u64 {
        if let Some(series) = self.series
            && !series.advance(done, self.size, registers)
        {
            return 0;
        }
        let old = old & self.size.mask();
        let outcome = self.outcome(old);
        let kept = registers.rflags & !(outcome.changed | RESUME);
        registers.rflags = kept | outcome.flags & outcome.changed;
        if let Some(register) = self.register {
            registers.set(register, self.size, old);
        }
        if let Operation::CompareExchange { expected, .. } = self.operation
            && expected != old
        {
            registers.set(RAX, self.size, old);
        }
        self.length
    }

    fn outcome(&self, old: u64) -> Outcome {
        let size = self.size;
        let plain = |new| Outcome { new, flags: 0, changed: 0 };
        let bit = |number: u64, new| Outcome { new, flags: old >> number & CARRY, changed: CARRY };
        let but_carry = |outcome| Outcome { changed: STATUS & !CARRY, ..outcome };
        match self.operation {
            Operation::Set(value) => plain(value),
            Operation::CompareExchange { expected, new } => {
                let new = if expected == old { new } else { old };
                Outcome { new, ..size.subtract(expected, old, 0) }
            }
            Operation::Add { value, carry } => size.add(old, value, carry),
            Operation::Subtract { value, borrow } => size.subtract(old, value, borrow),
            Operation::Or(value) => size.result(old | value, 0, 0),
            Operation::And(value) => size.result(old & value, 0, 0),
            Operation::Xor(value) => size.result(old ^ value, 0, 0),
            Operation::Increment => but_carry(size.add(old, 1, 0)),
            Operation::Decrement => but_carry(size.subtract(old, 1, 0)),
            Operation::Not => plain(!old & size.mask()),
            Operation::Negate => size.subtract(0, old, 0),
            Operation::SetBit(number) => bit(number, old | 1 << number),
            Operation::ResetBit(number) => bit(number, old & !(1 << number)),
            Operation::ComplementBit(number) => bit(number, old ^ 1 << number),
        }
    }
}

impl Size {
    fn add(self, a: u64, b: u64, carry: u64) -> Outcome {
        let sum = a.wrapping_add(b).wrapping_add(carry);
        self.result(sum, a & b | (a | b) & !sum, (a ^ sum) & (b ^ sum))
    }

    fn subtract(self, a: u64, b: u64, borrow: u64) -> Outcome {
        let difference = a.wrapping_sub(b).wrapping_sub(borrow);
        self.result(difference, !a & b | (!a | b) & difference, (a ^ b) & (a ^ difference))
    }

    /// A result with its flags (SDM vol. 1, 3.4.3.1). `carries` has a bit set where one was carried
    /// out of it, `overflow` has the sign bit set where the sign is wrong. Logical operations leave
    /// the adjust flag undefined: processors clear it.
    fn result(self, value: u64, carries: u64, overflow: u64) -> Outcome {
        let new = value & self.mask();
        let [low, ..] = new.to_le_bytes();
        let flags = [
            (CARRY, carries & self.sign() != 0),
            (PARITY, low.count_ones().is_multiple_of(2)),
            (ADJUST, carries & 8 != 0),
            (ZERO, new == 0),
            (SIGN, new & self.sign() != 0),
            (OVERFLOW, overflow & self.sign() != 0),
        ];
        let set = flags.into_iter().filter(|(_, is_set)| *is_set);
        Outcome { new, flags: set.map(|(flag, _)| flag).sum(), changed: STATUS }
    }
}

impl Series {
    /// Moves on by `done` elements. Whether that were all.
    fn advance(self, done: u64, size: Size, registers: &mut Registers) -> bool {
        let done = done.min(self.count);
        let offset = self.offset.wrapping_add(done.wrapping_mul(size.bytes()));
        registers.set(RDI, self.address_size, offset);
        let left = self.count - done;
        if self.counted {
            registers.set(RCX, self.address_size, left);
        }
        left == 0
    }
}
