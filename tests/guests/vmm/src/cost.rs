//! What exits cost: ticks for each operation by the guest's own clock, and how many exits of the
//! hardware it is; and what it costs the host to take the right to write from a VM's page. The same of
//! VMs without tickets and of VMs with.

mod program;

use crate::memory::{Backing, LARGE, Memory, PAGE};
use crate::meter::{self, Meter};
use crate::mode::{self, CODE, FREE, HANDLER};
use crate::protected::launch::{Id, Visor};
use crate::tests::until;
use crate::vm::{Exit, LOG_DIRTY, Vcpu, Vm};
use program::{ARGUMENT_PORT, CLIMB, RESET_VECTOR, RESULT_PORT};
use ticket::Class;
use ticket::build::Ticket;
use ticket::port::VmState;

const MADV_POPULATE_WRITE: i32 = 23;
/// Memory of small pages; what the guest begins with ends at [`IMAGE`].
const LOW: usize = 8 << 20;
const IMAGE: usize = 0x1_6000;
/// The page by which a VM with a ticket gets to devices.
const WINDOW: usize = LOW - PAGE;
/// The page of the reset vector. It comes after [`LOW`] in this program's memory.
const RESET_AT: u64 = 0xffff_f000;
/// Where the memory of large pages is.
const ABOVE: u64 = 64 << 20;
const LARGE_PAGES: u64 = 16;
const SMALL_PAGES: u64 = 1024;
const TIMES: u64 = 1000;
const SMALL: u64 = FREE as u64;
/// The I/O APIC, which is the kernel's, and a place where nothing is.
const IO_APIC: u64 = 0xfec0_0000;
const NOTHING: u64 = 0xd000_0000;
/// The vector of the interrupt that the guest sends to itself.
const VECTOR: usize = 0x30;

const ID: Id = *b"cost of an exit\0";

type Operation = (&'static str, u64, u64, fn() -> &'static [u8]);

/// Name, how many times, and from which address on: the repeatable ones, then those that only a
/// first touch makes.
const OPERATIONS: [Operation; 10] = [
    ("cpuid", TIMES, SMALL, program::cpuid),
    ("pio_kernel", TIMES, SMALL, program::pio_kernel),
    ("pio_user", TIMES, SMALL, program::pio_user),
    ("mmio_kernel", TIMES, IO_APIC, program::mmio_kernel),
    ("mmio_user", TIMES, NOTHING, program::mmio_user),
    ("msr_write", TIMES, SMALL, program::msr_write),
    ("hlt_irq", TIMES, SMALL, program::hlt_irq),
    ("vmcall", TIMES, SMALL, program::vmcall),
    ("ept_4k", SMALL_PAGES, SMALL, program::ept_4k),
    ("ept_2m", LARGE_PAGES, ABOVE, program::ept_2m),
];

/// Measures VMs without tickets.
pub(crate) fn plain() -> Result<(), String> {
    all(Launch::Plain)
}

/// Measures VMs with tickets, which the visor has to take.
pub(crate) fn protected() -> Result<(), String> {
    all(Launch::Ticketed)
}

fn all(launch: Launch) -> Result<(), String> {
    OPERATIONS.into_iter().try_for_each(|operation| measure(operation, launch))?;
    measure_write(launch)
}

fn measure((name, times, at, code): Operation, launch: Launch) -> Result<(), String> {
    let mut bench = Bench::new(launch, code())?;
    if times == TIMES {
        // Once, so that everything has been touched.
        bench.wait()?;
        let _ = bench.ticks(16, at)?;
    }
    bench.tell((name, times), |bench| bench.ticks(times, at))
}

fn measure_write(launch: Launch) -> Result<(), String> {
    let mut bench = Bench::new(launch, program::ept_4k())?;
    let pages = LOW / PAGE;
    bench.vm.slot(0, LOG_DIRTY, 0, bench.memory.part(0..LOW))?;
    // Twice, so that the tables are made of small pages, all of them written to.
    for _ in 0..2 {
        let _ = bench.vm.dirty(0, pages)?;
        bench.wait()?;
        let _ = bench.ticks(SMALL_PAGES, SMALL)?;
    }
    bench.tell(("ept_write", SMALL_PAGES), |bench| {
        let began = meter::clock();
        let _ = bench.vm.dirty(0, pages)?;
        Ok(meter::clock() - began)
    })
}

/// How a VM is launched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Launch {
    Plain,
    Ticketed,
}

struct Bench {
    // In the order in which they must go.
    vcpu: Vcpu,
    vm: Vm,
    memory: Memory,
    _above: Memory,
    ticket: Option<Submitted>,
}

impl Bench {
    /// A VM with `code`, which has not run yet.
    fn new(launch: Launch, code: &[u8]) -> Result<Self, String> {
        let memory = Memory::new(LOW + PAGE, Backing::Small)?;
        mode::lay_out(&memory);
        mode::gate(&memory, VECTOR, 0);
        for (at, bytes) in [
            (CODE, code),
            (CLIMB, program::climb()),
            (HANDLER, program::close()),
            (LOW + 0xff0, RESET_VECTOR.as_slice()),
        ] {
            memory.write(at, bytes);
        }
        // The guest's fault is measured, not the host's.
        let small = usize::try_from(SMALL_PAGES).unwrap_or(0) * PAGE;
        memory.advise(FREE..FREE + small, MADV_POPULATE_WRITE)?;
        let above = Memory::new(usize::try_from(LARGE_PAGES).unwrap_or(0) * LARGE, Backing::Large)?;
        above.advise(0..above.size(), MADV_POPULATE_WRITE)?;
        let ticket = match launch {
            Launch::Plain => None,
            Launch::Ticketed => Some(Submitted::new(&memory, &above)?),
        };
        let vm = Vm::new()?;
        vm.with_irqchip()?;
        vm.slot(0, 0, 0, memory.part(0..LOW))?;
        vm.slot(1, 0, ABOVE, above.all())?;
        vm.slot(2, 0, RESET_AT, memory.part(LOW..LOW + PAGE))?;
        let vcpu = vm.vcpu(0)?;
        Ok(Self { vcpu, vm, memory, _above: above, ticket })
    }

    /// Prints what `measured` takes of a guest that waits, and the exits meanwhile, for each of so many
    /// times.
    fn tell(
        &mut self,
        (name, times): (&str, u64),
        measured: impl FnOnce(&mut Self) -> Result<u64, String>,
    ) -> Result<(), String> {
        self.wait()?;
        let mut meter = Meter::new()?;
        let [first, second] = [(); 2].map(|()| meter.exits(&self.vcpu));
        let (first, second) = (first?, second?);
        let ticks = measured(self)?;
        // Reading the counters may exit, too.
        let reading = second - first;
        let exits = meter.exits(&self.vcpu)?.saturating_sub(second + reading);
        let hundredths = exits * 100 / times;
        let whose = match &mut self.ticket {
            None => "",
            Some(ticket) => ticket.running().map(|()| "protected ")?,
        };
        println!("vmm: {whose}cost {name} {}", ticks / times);
        println!("vmm: {whose}exits {name} {}.{:02}", hundredths / 100, hundredths % 100);
        Ok(())
    }

    /// Runs until the guest asks what to do.
    fn wait(&mut self) -> Result<(), String> {
        until(&mut self.vcpu, &Exit::In(ARGUMENT_PORT, 4))
    }

    /// Has the guest, which waits, do its operation from `at` on; what it says how long that took.
    fn ticks(&mut self, times: u64, at: u64) -> Result<u64, String> {
        let argument = u32::try_from(at | times).map_err(|why| why.to_string())?;
        self.vcpu.answer(&argument.to_le_bytes());
        loop {
            match self.vcpu.run()? {
                Exit::Out(0x10, _) | Exit::Store(NOTHING, _) => {}
                Exit::Out(RESULT_PORT, bytes) => {
                    return Ok(<[u8; 4]>::try_from(bytes).map_or(0, u32::from_le_bytes).into());
                }
                other => return Err(format!("exit {other:x?}")),
            }
        }
    }
}

/// The ticket of a VM, which goes with it.
struct Submitted(Visor);

impl Submitted {
    /// The ticket of the VM that has these memories.
    fn new(memory: &Memory, above: &Memory) -> Result<Self, String> {
        let page = PAGE as u64;
        let mut ticket = Ticket::new(ID, [0x5a; 32])
            .range(0, WINDOW as u64, Class::Private)
            .range(WINDOW as u64, page, Class::Window)
            .range(ABOVE, above.size() as u64, Class::Private)
            .range(RESET_AT, page, Class::Private);
        for (at, bytes) in [(0, memory.read(0, IMAGE)), (RESET_AT, memory.read(LOW, PAGE))] {
            ticket.image(at, &bytes).map_err(|why| why.to_string())?;
        }
        let mut visor = Visor::find()?;
        visor.submit(&ticket.bytes().map_err(|why| why.to_string())?)?;
        Ok(Self(visor))
    }

    /// The VM must have taken it.
    fn running(&mut self) -> Result<(), String> {
        match self.0.state(ID)? {
            (VmState::Running, _) => Ok(()),
            other => Err(format!("the VM with a ticket: {other:?}")),
        }
    }
}

impl Drop for Submitted {
    fn drop(&mut self) {
        match self.0.destroy(ID) {
            Ok(true) => {}
            other => println!("vmm: a ticket stays: {other:?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guest_lies_where_its_code_says() {
        let memory = Memory::new(LOW, Backing::Small).unwrap();
        mode::lay_out(&memory);
        assert!(CLIMB + program::climb().len() <= HANDLER);
        assert_eq!(RESET_VECTOR, [0xea, 0x00, (CLIMB >> 8) as u8, 0, 0]);
        let rest = memory.read(IMAGE, LOW - IMAGE);
        assert!(rest.iter().all(|byte| *byte == 0), "the image ends too early");
    }
}
