//! What the guest does with its device: every instruction that may have a device's operand, in each size,
//! at places inside of the device, across its pages and across its ends, by every form of address.
//!
//! Offsets are those in the five pages: 0x1000 to 0x3000 is the device.

use super::addresses::{Address, addresses_of_16, addresses_of_32, addresses_of_64};
use super::guest::{HIGH, LINEAR, RECORD, RECORD_CODE};
use std::ops::Range;

/// Where the guest has a port that gives and takes streams of bytes.
pub(super) const PORT: u16 = 0x30;

const CARRY: u16 = 1;
const ADJUST: u16 = 0x10;
const ZERO: u16 = 0x40;
pub(super) const DOWN: u16 = 0x400;
/// What arithmetic leaves in RFLAGS, and the direction.
const ARITHMETIC: u16 = 0x8d5 | DOWN;

/// The part of the five pages that is the device.
pub(super) const DEVICE: Range<usize> = 0x1000..0x3000;
/// In memory, in the device, and unaligned there; across its two pages, into it, and out of it.
pub(super) const MEMORY: usize = 0x200;
pub(super) const INSIDE: usize = 0x1040;
pub(super) const UNALIGNED: usize = 0x1123;
pub(super) const MIDDLE: usize = 0x2000;
pub(super) const BEGIN: usize = 0x1000;
pub(super) const END: usize = 0x3000;

/// Bytes of the five pages that an instruction reads or writes, each once.
#[derive(Clone, Debug)]
pub(super) struct Touched {
    pub(super) bytes: Range<usize>,
    pub(super) read: bool,
    pub(super) written: bool,
}

/// One instruction, with everything that it depends on.
#[derive(Clone, Debug)]
pub(super) struct Case {
    pub(super) name: String,
    registers: [u64; 16],
    pub(super) flags: u16,
    /// Flags that are defined after it.
    mask: u16,
    /// What is executed with memory, and with the device.
    code: [Vec<u8>; 2],
    /// Where a displacement relative to RIP is, and where it leads.
    relative: Option<(usize, u64)>,
    pub(super) touched: Vec<Touched>,
    /// What KVM does otherwise than a processor: it reads before it looks at where to write.
    pub(super) is_beyond_kvm: bool,
}

impl Case {
    /// The record of the case for the guest, which has it at `at`.
    pub(super) fn record(&self, at: u64) -> Result<Vec<u8>, String> {
        let mut record = vec![0; RECORD];
        for (index, register) in self.registers.iter().enumerate() {
            record[index * 8..index * 8 + 8].copy_from_slice(&register.to_le_bytes());
        }
        record[0x80..0x82].copy_from_slice(&(self.flags | 2).to_le_bytes());
        record[0x88..0x8a].copy_from_slice(&self.mask.to_le_bytes());
        for (code, start) in self.code.iter().zip(RECORD_CODE) {
            let mut code = code.clone();
            if let Some((place, target)) = self.relative {
                let next = at + (start + code.len()) as u64;
                let displacement = target.wrapping_sub(next) as u32;
                code[place..place + 4].copy_from_slice(&displacement.to_le_bytes());
            }
            code.push(0xc3);
            if code.len() > RECORD_CODE[1] - RECORD_CODE[0] {
                return Err(format!("{} is too long", self.name));
            }
            record[start..start + code.len()].copy_from_slice(&code);
        }
        Ok(record)
    }
}

/// The byte at `offset` of the five pages at first.
pub(super) fn pattern(offset: usize) -> u8 {
    let word = (offset as u32 / 4).wrapping_add(1).wrapping_mul(0x9e37_79b1);
    word.to_le_bytes()[offset % 4]
}

/// Byte `index` of the stream that IN gets.
pub(super) fn stream(index: usize) -> u8 {
    pattern(index + 1).wrapping_add(7)
}

/// All cases for code of 16, 32 or 64 bits.
pub(super) fn cases(bits: u32) -> Vec<Case> {
    let mut maker = Maker { bits, cases: Vec::new(), turn: 0 };
    for form in forms() {
        maker.form(&form);
    }
    maker.addresses();
    maker.strings();
    maker.ports();
    if bits == 64 {
        maker.faults();
    }
    maker.cases
}

/// Numbers of registers, and bits of REX.
pub(super) const RAX: usize = 0;
pub(super) const RCX: usize = 1;
pub(super) const RDX: usize = 2;
pub(super) const RBX: usize = 3;
pub(super) const RBP: usize = 5;
pub(super) const RSI: usize = 6;
pub(super) const RDI: usize = 7;
pub(super) const REX_B: u8 = 1;
pub(super) const REX_X: u8 = 2;
const REX_R: u8 = 4;
const REX_W: u8 = 8;

/// What an instruction does with its memory operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Does {
    Read,
    Write,
    Change,
}

/// An instruction with a ModRM byte.
#[derive(Clone, Debug)]
struct Form {
    name: &'static str,
    /// Its opcode; of two bytes if it begins with 0x0f.
    opcode: &'static [u8],
    /// ModRM.reg, where it is no register.
    digit: Option<u8>,
    /// Bytes of an immediate operand; `Some(4)` stands for as many as the operand has, 4 at most.
    immediate: Option<u8>,
    does: Does,
    /// Flags that it leaves undefined.
    undefined: u16,
    /// The memory operand's size, where it is not that of the register.
    memory: Option<u8>,
}

const fn plain(name: &'static str, opcode: &'static [u8], does: Does) -> Form {
    Form { name, opcode, digit: None, immediate: None, does, undefined: 0, memory: None }
}

const fn extending(name: &'static str, opcode: &'static [u8], memory: u8) -> Form {
    Form { memory: Some(memory), ..plain(name, opcode, Does::Read) }
}

const fn digit(name: &'static str, opcode: &'static [u8], digit: u8, does: Does) -> Form {
    Form { digit: Some(digit), ..plain(name, opcode, does) }
}

const fn bit(name: &'static str, number: u8, does: Does) -> Form {
    let undefined = ARITHMETIC & !(CARRY | ZERO | DOWN);
    Form { immediate: Some(1), undefined, ..digit(name, &[0x0f, 0xba], number, does) }
}

const OTHERS: [Form; 31] = [
    plain("mov-store", &[0x88], Does::Write),
    plain("mov-store", &[0x89], Does::Write),
    plain("mov-load", &[0x8a], Does::Read),
    plain("mov-load", &[0x8b], Does::Read),
    Form { immediate: Some(1), ..digit("mov-immediate", &[0xc6], 0, Does::Write) },
    Form { immediate: Some(4), ..digit("mov-immediate", &[0xc7], 0, Does::Write) },
    extending("movzx", &[0x0f, 0xb6], 1),
    extending("movzx", &[0x0f, 0xb7], 2),
    extending("movsx", &[0x0f, 0xbe], 1),
    extending("movsx", &[0x0f, 0xbf], 2),
    extending("movsxd", &[0x63], 4),
    plain("movnti", &[0x0f, 0xc3], Does::Write),
    Form { undefined: ADJUST, ..plain("test", &[0x84], Does::Read) },
    Form { undefined: ADJUST, ..plain("test", &[0x85], Does::Read) },
    Form { undefined: ADJUST, immediate: Some(1), ..digit("test", &[0xf6], 0, Does::Read) },
    Form { undefined: ADJUST, immediate: Some(4), ..digit("test", &[0xf7], 0, Does::Read) },
    digit("not", &[0xf6], 2, Does::Change),
    digit("not", &[0xf7], 2, Does::Change),
    digit("neg", &[0xf6], 3, Does::Change),
    digit("neg", &[0xf7], 3, Does::Change),
    digit("inc", &[0xfe], 0, Does::Change),
    digit("dec", &[0xff], 1, Does::Change),
    plain("xchg", &[0x86], Does::Change),
    plain("xchg", &[0x87], Does::Change),
    plain("cmpxchg", &[0x0f, 0xb0], Does::Change),
    plain("cmpxchg", &[0x0f, 0xb1], Does::Change),
    plain("xadd", &[0x0f, 0xc1], Does::Change),
    bit("bt", 4, Does::Read),
    bit("bts", 5, Does::Change),
    bit("btr", 6, Does::Change),
    bit("btc", 7, Does::Change),
];

/// Opcodes by the number of the operation: to memory, from memory, with immediates.
const ARITHMETICS: [(&str, [&[u8]; 4]); 8] = [
    ("add", [&[0x00], &[0x01], &[0x02], &[0x03]]),
    ("or", [&[0x08], &[0x09], &[0x0a], &[0x0b]]),
    ("adc", [&[0x10], &[0x11], &[0x12], &[0x13]]),
    ("sbb", [&[0x18], &[0x19], &[0x1a], &[0x1b]]),
    ("and", [&[0x20], &[0x21], &[0x22], &[0x23]]),
    ("sub", [&[0x28], &[0x29], &[0x2a], &[0x2b]]),
    ("xor", [&[0x30], &[0x31], &[0x32], &[0x33]]),
    ("cmp", [&[0x38], &[0x39], &[0x3a], &[0x3b]]),
];

fn forms() -> Vec<Form> {
    let mut forms = OTHERS.to_vec();
    for (number, (name, opcodes)) in (0..).zip(ARITHMETICS) {
        let undefined = if ["or", "and", "xor"].contains(&name) { ADJUST } else { 0 };
        let changes = if name == "cmp" { Does::Read } else { Does::Change };
        for (index, opcode) in opcodes.into_iter().enumerate() {
            let does = if index < 2 { changes } else { Does::Read };
            forms.push(Form { undefined, ..plain(name, opcode, does) });
        }
        for (opcode, bytes) in [(&[0x80], 1), (&[0x81], 4), (&[0x83], 1)] {
            let immediate = Some(bytes);
            forms.push(Form { undefined, immediate, ..digit(name, opcode, number, changes) });
        }
    }
    forms
}

/// Makes cases for code of so many bits; turns through what it combines.
pub(super) struct Maker {
    pub(super) bits: u32,
    pub(super) cases: Vec<Case>,
    pub(super) turn: usize,
}

impl Maker {
    pub(super) fn sizes(&self) -> &'static [u8] {
        if self.bits == 64 { &[2, 4, 8] } else { &[2, 4] }
    }

    fn addresses_of(&self, offset: usize) -> Vec<Address> {
        match self.bits {
            16 => addresses_of_16(offset),
            32 => addresses_of_32(offset),
            _ => addresses_of_64(offset),
        }
    }

    /// Where offset 0 of the five pages is.
    pub(super) fn origin(&self) -> u64 {
        if self.bits == 16 { 0 } else { LINEAR }
    }

    /// A form in all its sizes, each at another place and by another address.
    fn form(&mut self, form: &Form) {
        let is_wide = match form.opcode {
            [0x0f, 0xba | 0xb6 | 0xbe | 0xc3] => true,
            [0x63] => self.bits == 64,
            [.., last] => last & 1 != 0,
            [] => false,
        };
        if form.name == "movsxd" && self.bits != 64 || form.name == "movnti" && self.bits == 16 {
            return;
        }
        let sizes = if is_wide { self.sizes() } else { &[1] };
        for size in sizes {
            let is_odd = form.name == "movnti" && *size == 2
                || form.memory.is_some_and(|memory| memory >= *size);
            if is_odd {
                continue;
            }
            let memory = usize::from(form.memory.unwrap_or(*size));
            self.turn += 1;
            let half = memory / 2;
            let places =
                [INSIDE, MIDDLE - half, UNALIGNED, BEGIN - half, INSIDE + 8, END - half, 0x2ff0];
            let place = places[self.turn % places.len()];
            let ways = self.addresses_of(place);
            let way = ways[self.turn % ways.len()].clone();
            self.instruction(form, *size, place, &way);
        }
    }

    /// Loads and stores at each place by each address.
    fn addresses(&mut self) {
        let forms = [&OTHERS[1], &OTHERS[3], &OTHERS[0], &OTHERS[2]];
        for place in [INSIDE, UNALIGNED, MIDDLE - 1, BEGIN - 3, END - 1] {
            for way in self.addresses_of(place) {
                self.turn += 1;
                let sizes = self.sizes();
                let form = forms[self.turn % 4];
                let size = if self.turn % 4 < 2 { sizes[self.turn / 4 % sizes.len()] } else { 1 };
                self.instruction(form, size, place, &way);
            }
        }
        let offsets = [INSIDE, INSIDE + 16, INSIDE + 32, INSIDE + 48];
        for (opcode, offset) in (0xa0..=0xa3).zip(offsets) {
            self.absolute(opcode, offset);
        }
        // The register that has the address.
        let way = self.addresses_of(INSIDE).remove(if self.bits == 16 { 7 } else { 0 });
        let mut form = OTHERS[3].clone();
        (form.name, form.digit) = ("mov-itself", Some(3));
        self.instruction(&form, if self.bits == 64 { 8 } else { 4 }, INSIDE, &way);
    }

    /// mov between RAX and an address that stands in the code.
    fn absolute(&mut self, opcode: u8, offset: usize) {
        let size = if opcode & 1 == 0 { 1 } else { self.bits as u8 / 8 };
        let (at, width) = match self.bits {
            16 => (offset as u64, 2),
            32 => (LINEAR + offset as u64, 4),
            _ => (HIGH + offset as u64, 8),
        };
        let mut code = if size == 8 { vec![0x48] } else { Vec::new() };
        code.push(opcode);
        code.extend(&at.to_le_bytes()[..width]);
        let is_load = opcode < 0xa2;
        let touched =
            Touched { bytes: offset..offset + usize::from(size), read: is_load, written: !is_load };
        self.push(format!("mov-absolute {opcode:x}"), &[], [code.clone(), code], vec![touched]);
    }

    fn instruction(&mut self, form: &Form, size: u8, place: usize, way: &Address) {
        let is_small = size < 8 && (size == 2) != (self.bits == 16) && size != 1;
        let reg = form.digit.unwrap_or_else(|| self.register(size, way));
        let mut rex = way.rex | if size == 8 { REX_W } else { 0 };
        rex |= if reg >= 8 { REX_R } else { 0 };
        let mut code = way.prefixes.clone();
        if is_small {
            code.push(0x66);
        }
        let locks = form.does == Does::Change && self.turn.is_multiple_of(3);
        if locks {
            code.push(0xf0);
        }
        if rex != 0 {
            code.push(0x40 | rex);
        }
        code.extend(form.opcode);
        code.push(way.modrm | (reg & 7) << 3);
        let displacement = code.len() + way.tail.len().saturating_sub(4);
        code.extend(&way.tail);
        if let Some(bytes) = form.immediate {
            let bytes = usize::from(if bytes == 4 { size.min(4) } else { bytes });
            code.extend(&[0x9d, 0x3c, 0xa5, 0xf1][..bytes]);
        }
        let memory = usize::from(form.memory.unwrap_or(size));
        let touched = Touched {
            bytes: place..place + memory,
            read: form.does != Does::Write,
            written: form.does != Does::Read,
        };
        let name = format!("{} {size} {} {place:#x}", form.name, way.name);
        self.push(name, &way.sets, [code.clone(), code], vec![touched]);
        let Some(case) = self.cases.last_mut() else { return };
        case.mask &= !form.undefined;
        case.relative = way.relative.map(|target| (displacement, target));
        // Every second one finds what it compares with.
        if form.name == "cmpxchg" && self.turn.is_multiple_of(2) {
            let found = (0..8).rev().fold(0, |value, byte| {
                value << 8 | if byte < memory { u64::from(pattern(place + byte)) } else { 0xee }
            });
            case.registers[RAX] = found;
        }
    }

    /// A register that is not in the address; one of 1 byte without REX may be a second byte.
    fn register(&self, size: u8, way: &Address) -> u8 {
        let is_free = |reg: &u8| !way.sets.iter().any(|(set, _)| *set == usize::from(*reg));
        let candidates: &[u8] = match self.bits {
            64 => &[2, 9, 0, 14, 1, 11],
            _ => &[2, 0, 1],
        };
        if size == 1 && way.rex == 0 && self.turn.is_multiple_of(2) {
            // AH, CH or DH.
            return 4 + (self.turn / 2 % 3) as u8;
        }
        let free: Vec<u8> = candidates.iter().copied().filter(is_free).collect();
        free[self.turn % free.len()]
    }

    pub(super) fn push(
        &mut self,
        name: String,
        sets: &[(usize, u64)],
        code: [Vec<u8>; 2],
        touched: Vec<Touched>,
    ) {
        let mut registers = [0; 16];
        for (index, register) in (1..).zip(&mut registers) {
            *register = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(index).rotate_left(23);
        }
        for (index, value) in sets {
            registers[*index] = *value;
        }
        let flags = if self.turn.is_multiple_of(2) { CARRY | 0x80 } else { ZERO | ADJUST };
        let (mask, relative) = (ARITHMETIC, None);
        let is_beyond_kvm = false;
        let case = Case { name, registers, flags, mask, code, relative, touched, is_beyond_kvm };
        self.cases.push(case);
    }
}
