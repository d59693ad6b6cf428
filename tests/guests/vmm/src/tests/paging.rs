//! Memory of guests: pages that come, go, change and are watched.

use super::{Machine, same};
use crate::code;
use crate::memory::{Backing, LARGE, Memory, PAGE};
use crate::mode::{FREE, Mode};
use crate::vm::{Exit, LOG_DIRTY, READ_ONLY};

const PATTERN: u64 = 0x1122_3344_0000_0000;

fn long(mib: usize) -> Result<Machine, String> {
    Machine::new(mib, Mode::Long, code::fill_pages())
}

impl Machine {
    /// The guest stores PATTERN + `seed` + page number into `pages` pages from address `at` on.
    fn fill(&mut self, at: usize, pages: u64, seed: u64) -> Result<(), String> {
        self.call(code::fill_pages(), [pages, PATTERN + seed, at as u64])?;
        self.until(&Exit::Halt)
    }

    /// The sum that the guest finds in `pages` pages from address `at` on.
    fn sum(&mut self, at: usize, pages: u64) -> Result<u64, String> {
        self.result(code::sum_pages(), [pages, 0, at as u64])
    }

    /// A load from address `at` finds no memory.
    fn is_absent(&mut self, at: usize) -> Result<(), String> {
        self.call(code::sum_pages(), [1, 0, at as u64])?;
        self.until(&Exit::Load(at as u64, 8))?;
        self.vcpu.answer(&[9, 0, 0, 0, 0, 0, 0, 0]);
        self.until(&Exit::Halt)?;
        same("what this program answered", self.vcpu.regs()?.rax, 9)
    }
}

/// What [`Machine::sum`] finds after [`Machine::fill`].
fn filled(pages: u64, seed: u64) -> u64 {
    (0..pages).fold(0, |sum, page| sum.wrapping_add(PATTERN + seed + page))
}

/// Every page of 8 MiB is touched for the first time, then again.
pub(super) fn storm() -> Result<(), String> {
    let pages = 2048_usize;
    let mut machine = long(16)?;
    for seed in [1, 500] {
        machine.fill(FREE, pages as u64, seed)?;
        for page in 0..pages {
            let found = machine.memory.word(FREE + page * PAGE);
            same("a page", found, PATTERN + seed + page as u64)?;
        }
    }
    same("the sum", machine.sum(FREE, pages as u64)?, filled(pages as u64, 500))
}

/// The guest's memory consists of large pages, and KVM maps it by such.
pub(super) fn large() -> Result<(), String> {
    let mut machine = long(2)?;
    let memory = Memory::new(8 * LARGE, Backing::Large)?;
    machine.vm.slot(1, 0, 16 << 20, memory.all())?;
    machine.fill(16 << 20, 4096, 3)?;
    same("the sum", machine.sum(16 << 20, 4096)?, filled(4096, 3))?;
    same("a page", memory.word(4095 * PAGE), PATTERN + 3 + 4095)?;
    same("large pages", machine.vm.statistic("pages_2m")?, 8)?;
    // Watching writes splits them; the end of it joins them again.
    machine.vm.slot(1, LOG_DIRTY, 16 << 20, memory.all())?;
    machine.fill((16 << 20) + LARGE, 3, 9)?;
    let dirty = machine.vm.dirty(1, 4096)?;
    if dirty != [512, 513, 514] {
        return Err(format!("written pages: {dirty:?}"));
    }
    machine.vm.slot(1, 0, 16 << 20, memory.all())?;
    machine.fill(16 << 20, 4096, 4)?;
    same("the sum", machine.sum(16 << 20, 4096)?, filled(4096, 4))?;
    machine.vm.remove_slot(1)
}

/// What the host takes from under the guest is gone for the guest, too.
pub(super) fn host_unmaps() -> Result<(), String> {
    let mut machine = long(8)?;
    for round in 0..4 {
        machine.fill(FREE, 512, round)?;
        machine.memory.renew(FREE..FREE + 256 * PAGE)?;
        let rest = machine.sum(FREE + 256 * PAGE, 256)?;
        same("pages that stay", rest, filled(256, round + 256))?;
        same("new pages", machine.sum(FREE, 256)?, 0)?;
        let range = FREE + 256 * PAGE..FREE + 512 * PAGE;
        machine.memory.advise(range, libc::MADV_DONTNEED)?;
        same("pages without need", machine.sum(FREE, 512)?, 0)?;
    }
    Ok(())
}

/// Pages that were only read are the host's one page of zeros, until one side writes.
pub(super) fn copy_on_write() -> Result<(), String> {
    let mut machine = long(8)?;
    same("untouched pages", machine.sum(FREE, 64)?, 0)?;
    machine.memory.set_word(FREE + 5 * PAGE, 77);
    same("with the host's store", machine.sum(FREE, 64)?, 77)?;
    machine.fill(FREE + 10 * PAGE, 10, 1)?;
    let sum = machine.sum(FREE, 64)?;
    same("with the guest's stores", sum, filled(10, 1).wrapping_add(77))?;
    let other = Memory::new(PAGE, Backing::Small)?;
    same("the host's own zeros", other.word(0), 0)
}

/// Memory slots go, come with other memory, and move.
pub(super) fn memslots() -> Result<(), String> {
    const AT: usize = 16 << 20;
    let mut machine = long(2)?;
    let (first, second) = (small(64)?, small(64)?);
    for round in 0..3 {
        machine.vm.slot(1, 0, AT as u64, first.all())?;
        machine.fill(AT, 64, round)?;
        machine.vm.remove_slot(1)?;
        machine.is_absent(AT)?;
        machine.vm.slot(1, 0, AT as u64, second.all())?;
        same("other memory", machine.sum(AT, 64)?, if round == 0 { 0 } else { filled(64, 100) })?;
        machine.fill(AT, 64, 100)?;
        // A slot that changes its address moves.
        let moved = AT + (4 << 20);
        machine.vm.slot(1, 0, moved as u64, second.all())?;
        same("moved memory", machine.sum(moved, 64)?, filled(64, 100))?;
        machine.is_absent(AT)?;
        machine.vm.remove_slot(1)?;
        same("the first memory", first.word(63 * PAGE), PATTERN + round + 63)?;
    }
    Ok(())
}

fn small(pages: usize) -> Result<Memory, String> {
    Memory::new(pages * PAGE, Backing::Small)
}

/// Stores into read-only memory exit, loads do not.
pub(super) fn read_only() -> Result<(), String> {
    const AT: usize = 16 << 20;
    let mut machine = long(2)?;
    let memory = small(16)?;
    memory.set_word(3 * PAGE, 5);
    machine.vm.slot(1, READ_ONLY, AT as u64, memory.all())?;
    same("read-only memory", machine.sum(AT, 16)?, 5)?;
    machine.call(code::fill_pages(), [2, PATTERN, AT as u64])?;
    machine.until(&Exit::Store(AT as u64, PATTERN.to_le_bytes().to_vec()))?;
    let next = (PATTERN + 1).to_le_bytes().to_vec();
    machine.until(&Exit::Store((AT + PAGE) as u64, next))?;
    machine.until(&Exit::Halt)?;
    same("what was stored", memory.word(0), 0)?;
    machine.vm.remove_slot(1)?;
    machine.vm.slot(1, 0, AT as u64, memory.all())?;
    machine.fill(AT, 16, 2)?;
    same("writable memory", memory.word(15 * PAGE), PATTERN + 2 + 15)
}

/// The log of written pages names those, all of those and only those.
pub(super) fn dirty_log() -> Result<(), String> {
    const AT: usize = 16 << 20;
    let mut machine = long(2)?;
    let memory = small(1024)?;
    machine.vm.slot(1, 0, AT as u64, memory.all())?;
    machine.fill(AT, 1024, 0)?;
    machine.vm.slot(1, LOG_DIRTY, AT as u64, memory.all())?;
    let check = |machine: &Machine, wanted: &[usize]| {
        let found = machine.vm.dirty(1, 1024)?;
        if found == wanted { Ok(()) } else { Err(format!("written: {found:?}, not {wanted:?}")) }
    };
    check(&machine, &[])?;
    for first in [0, 100, 700, 100] {
        machine.fill(AT + first * PAGE, 40, 7)?;
        let _ = machine.sum(AT, 1024)?;
        check(&machine, &(first..first + 40).collect::<Vec<_>>())?;
        check(&machine, &[])?;
    }
    // Longer than a log that the processor keeps.
    machine.fill(AT, 1024, 8)?;
    check(&machine, &(0..1024).collect::<Vec<_>>())?;
    machine.vm.slot(1, 0, AT as u64, memory.all())?;
    machine.fill(AT, 1024, 9)?;
    same("the sum", machine.sum(AT, 1024)?, filled(1024, 9))
}
