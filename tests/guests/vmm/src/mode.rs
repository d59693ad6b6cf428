//! Putting a processor into a mode, with what the mode needs in guest memory.

use crate::kvm::{Regs, Segment, Sregs, Table};
use crate::memory::Memory;
use crate::vm::Vcpu;

/// Where guest code is put and started.
pub(crate) const CODE: usize = 0x1000;
/// Where code that interrupts enter is put.
pub(crate) const HANDLER: usize = 0x3000;
const GDT: usize = 0x5000;
/// Pseudo-descriptors of the GDT and the IDT, for guests that load them themselves.
const GDT_POINTER: usize = 0x5f00;
const IDT_POINTER: usize = 0x5f10;
const IDT: usize = 0x6000;
/// Where guests and tests leave values for each other.
pub(crate) const SHARED: usize = 0x7000;
const STACK: u64 = 0xa000;
const TABLES: usize = 0x10000;
/// Where the memory that tests touch begins; below lie the tables.
pub(crate) const FREE: usize = 0x20_0000;

/// A place below 1 MiB where no test has memory, which the base of FS leads to.
pub(crate) const DEVICE: u64 = 0xb_8000;

const CODE_SEGMENT: u16 = 8;
const DATA_SEGMENT: u16 = 16;
/// Of 16, 32 and 64 bits; of data.
pub(crate) const DESCRIPTORS: [u64; 5] =
    [0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x00cf_9b00_0000_ffff, 0x0000_9b00_0000_ffff];

/// A mode of the processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// 16 bits, not protected.
    Real,
    /// 32 bits, flat, without paging.
    Protected,
    /// 64 bits; the lowest 4 GiB are mapped to themselves by pages of 2 MiB.
    Long,
}

/// Puts `code` at [`CODE`] and `vcpu` in front of it.
pub(crate) fn enter(vcpu: &Vcpu, memory: &Memory, mode: Mode, code: &[u8]) -> Result<(), String> {
    lay_out(memory);
    memory.write(CODE, code);
    vcpu.set_sregs(&sregs(vcpu.sregs()?, mode))?;
    start(vcpu, CODE)
}

/// Puts `vcpu`, which is in its mode already, in front of the code at `at`.
pub(crate) fn start(vcpu: &Vcpu, at: usize) -> Result<(), String> {
    vcpu.set_regs(&Regs { rip: at as u64, rsp: STACK, rflags: 2, ..Regs::default() })
}

/// Makes the handler of `vector` begin at [`HANDLER`] + `offset`.
pub(crate) fn gate(memory: &Memory, vector: usize, offset: usize) {
    let interrupt_gate = 0x8e00_u64 << 32;
    let low = (HANDLER + offset) as u64 | u64::from(CODE_SEGMENT) << 16 | interrupt_gate;
    memory.set_word(IDT + vector * 16, low);
    memory.set_word(IDT + vector * 16 + 8, 0);
}

/// Puts what modes need into `memory`.
pub(crate) fn lay_out(memory: &Memory) {
    for (index, descriptor) in DESCRIPTORS.iter().enumerate() {
        memory.set_word(GDT + index * 8, *descriptor);
    }
    memory.set_word(GDT_POINTER, (GDT as u64) << 16 | 0xff);
    memory.set_word(IDT_POINTER, (IDT as u64) << 16 | 0xfff);
    let (present, large) = (0b11, 1 << 7);
    let table = |index: usize| (TABLES + index * 0x1000) as u64 | present;
    memory.set_word(TABLES, table(1));
    for gib in 0..4 {
        memory.set_word(TABLES + 0x1000 + gib * 8, table(2 + gib));
    }
    for page in 0..4 * 512 {
        memory.set_word(TABLES + 0x2000 + page * 8, (page as u64) << 21 | large | present);
    }
}

fn sregs(mut sregs: Sregs, mode: Mode) -> Sregs {
    const PE: u64 = 1;
    const NE: u64 = 1 << 5;
    const PG: u64 = 1 << 31;
    const PAE_AND_OSFXSR: u64 = 1 << 5 | 1 << 9;
    const LME_AND_LMA: u64 = 1 << 8 | 1 << 10;
    sregs.gdt = Table { base: GDT as u64, limit: 0xff, ..Table::default() };
    sregs.idt = Table { base: IDT as u64, limit: 0xfff, ..Table::default() };
    let flat = |selector, kind| Segment {
        limit: u32::MAX,
        selector,
        kind,
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..Segment::default()
    };
    let (code, data) = (flat(CODE_SEGMENT, 11), flat(DATA_SEGMENT, 3));
    match mode {
        Mode::Real => {
            sregs.cs = Segment { base: 0, selector: 0, ..sregs.cs };
            sregs.fs.selector = u16::try_from(DEVICE >> 4).unwrap_or(0);
        }
        Mode::Protected => {
            sregs.cr0 = PE | NE;
            sregs.cs = Segment { selector: 24, ..code };
            for segment in [&mut sregs.ds, &mut sregs.es, &mut sregs.fs, &mut sregs.ss] {
                *segment = data;
            }
        }
        Mode::Long => {
            (sregs.cr0, sregs.cr4) = (PE | NE | PG, PAE_AND_OSFXSR);
            (sregs.cr3, sregs.efer) = (TABLES as u64, LME_AND_LMA);
            sregs.cs = Segment { l: 1, db: 0, ..code };
            for segment in [&mut sregs.ds, &mut sregs.es, &mut sregs.fs, &mut sregs.ss] {
                *segment = data;
            }
        }
    }
    sregs.fs.base = DEVICE;
    sregs
}
