//! What exits cost: ticks for each operation by the guest's own clock, and how many exits of the
//! hardware it is; and what it costs the host to take the right to write from a VM's page.

use crate::code;
use crate::memory::{Backing, LARGE, Memory, PAGE};
use crate::meter::{self, Meter};
use crate::mode::{FREE, HANDLER, SHARED};
use crate::tests::{Machine, with_irqchip};
use crate::vm::{Exit, LOG_DIRTY};

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

/// Measures and prints everything: `cost OPERATION TICKS` and `exits OPERATION COUNT`.
pub(crate) fn measure() -> Result<(), String> {
    let mut meter = Meter::new()?;
    for (name, times, at, code) in OPERATIONS {
        let mut bench = Bench::new()?;
        if times == TIMES {
            // Once, so that everything has been touched.
            let _ = bench.ticks(code(), 16, at)?;
        }
        bench.tell(&mut meter, (name, times), |bench| bench.ticks(code(), times, at))?;
    }
    let mut bench = Bench::new()?;
    let all = bench.machine.memory.all();
    let pages = usize::try_from(all.size).unwrap_or(0) / PAGE;
    bench.machine.vm.slot(0, LOG_DIRTY, 0, all)?;
    // Twice, so that the tables are made of small pages, all of them written to.
    for _ in 0..2 {
        let _ = bench.machine.vm.dirty(0, pages)?;
        let _ = bench.ticks(code::timed_ept_4k(), SMALL_PAGES, SMALL)?;
    }
    bench.tell(&mut meter, ("ept_write", SMALL_PAGES), |bench| {
        let began = meter::clock();
        let _ = bench.machine.vm.dirty(0, pages)?;
        Ok(meter::clock() - began)
    })
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

    /// Prints what `measured` takes, and the exits meanwhile, for each of so many times.
    fn tell(
        &mut self,
        meter: &mut Meter,
        (name, times): (&str, u64),
        measured: impl FnOnce(&mut Self) -> Result<u64, String>,
    ) -> Result<(), String> {
        let [first, second] = [(); 2].map(|()| meter.exits(&self.machine.vcpu));
        let (first, second) = (first?, second?);
        let ticks = measured(self)?;
        // Reading the counters may exit, too.
        let reading = second - first;
        let exits = meter.exits(&self.machine.vcpu)?.saturating_sub(second + reading);
        let hundredths = exits * 100 / times;
        println!("vmm: cost {name} {}", ticks / times);
        println!("vmm: exits {name} {}.{:02}", hundredths / 100, hundredths % 100);
        Ok(())
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
