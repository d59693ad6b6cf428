//! What exits cost: ticks for each operation by the guest's own clock, and how often the visor was
//! entered, if there is one.

use crate::code;
use crate::memory::{Backing, LARGE, Memory};
use crate::mode::{FREE, HANDLER, SHARED};
use crate::port::Control;
use crate::tests::{Machine, with_irqchip};
use crate::vm::Exit;
use control::Status;

const MADV_POPULATE_WRITE: i32 = 23;
/// Where the memory of large pages is.
const ABOVE: u64 = 64 << 20;
const LARGE_PAGES: u64 = 16;
const SMALL_PAGES: u64 = 1024;
const TIMES: u64 = 1000;
const SMALL: u64 = FREE as u64;

type Operation = (&'static str, u64, u64, fn() -> &'static [u8]);

/// Name, how many times, and from which address on: the repeatable ones, then those that only a
/// first touch makes.
const OPERATIONS: [Operation; 8] = [
    ("cpuid", TIMES, SMALL, code::timed_cpuid),
    ("pio_kernel", TIMES, SMALL, code::timed_pio_kernel),
    ("pio_user", TIMES, SMALL, code::timed_pio_user),
    ("msr_write", TIMES, SMALL, code::timed_msr_write),
    ("hlt_irq", TIMES, SMALL, code::timed_hlt_irq),
    ("vmcall", TIMES, SMALL, code::timed_vmcall),
    ("ept_4k", SMALL_PAGES, SMALL, code::timed_ept_4k),
    ("ept_2m", LARGE_PAGES, ABOVE, code::timed_ept_2m),
];

/// Measures and prints everything: `cost OPERATION TICKS`, and on the visor `exits OPERATION COUNT`.
pub(crate) fn measure() -> Result<(), String> {
    let mut visor = Status::find(Control::new()?).ok();
    for (name, times, at, code) in OPERATIONS {
        let mut bench = Bench::new()?;
        if times == TIMES {
            // Once, so that everything has been touched.
            let _ = bench.ticks(code(), 16, at)?;
        }
        let before = visor.as_mut().map(|visor| [exits(visor), exits(visor)]);
        let ticks = bench.ticks(code(), times, at)?;
        println!("vmm: cost {name} {}", ticks / times);
        if let (Some(visor), Some([first, second])) = (&mut visor, before) {
            // Reading the counters enters the visor, too.
            let reading = second - first;
            let hundredths = exits(visor).saturating_sub(second + reading) * 100 / times;
            println!("vmm: exits {name} {}.{:02}", hundredths / 100, hundredths % 100);
        }
    }
    Ok(())
}

struct Bench {
    machine: Machine,
    // Outlives the machine that uses it.
    _above: Memory,
}

impl Bench {
    fn new() -> Result<Self, String> {
        let machine = with_irqchip(code::timed_cpuid(), &[0x30])?;
        machine.memory.write(HANDLER, code::close());
        let small = usize::try_from(SMALL_PAGES).unwrap_or(0) * 4096;
        // The guest's fault is measured, not the host's.
        machine.memory.advise(FREE..FREE + small, MADV_POPULATE_WRITE)?;
        let above = Memory::new(usize::try_from(LARGE_PAGES).unwrap_or(0) * LARGE, Backing::Large)?;
        above.advise(0..above.size(), MADV_POPULATE_WRITE)?;
        machine.vm.slot(1, 0, ABOVE, above.all())?;
        let x2apic = 0xfee0_0d00;
        let mut sregs = machine.vcpu.sregs()?;
        sregs.apic_base = x2apic;
        machine.vcpu.set_sregs(&sregs)?;
        // The spurious-interrupt register: without it the local APIC delivers nothing.
        machine.vcpu.set_msr(0x80f, 0x1ff)?;
        Ok(Self { machine, _above: above })
    }

    fn ticks(&mut self, code: &[u8], times: u64, at: u64) -> Result<u64, String> {
        self.machine.call(code, [times, 0, at])?;
        loop {
            match self.machine.vcpu.run()? {
                Exit::Out(0x10, _) => {}
                Exit::Out(0x11, _) => return Ok(self.machine.memory.word(SHARED + 8)),
                other => return Err(format!("exit {other:x?}")),
            }
        }
    }
}

/// How often the visor was entered so far, for any reason.
fn exits(status: &mut Status<Control>) -> u64 {
    (0..status.counters()).filter_map(|reason| status.exits(reason)).sum()
}
