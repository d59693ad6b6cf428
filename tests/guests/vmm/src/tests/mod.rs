//! The tests, by name.

mod exits;
mod interrupts;
mod lives;
mod outside;
mod paging;
mod state;

use crate::cost;
use crate::memory::{Backing, Memory};
use crate::mode::{self, Mode};
use crate::protected;
use crate::vm::{Exit, Vcpu, Vm};
use crate::work;
use crate::xen;
pub(crate) use interrupts::alarm_in;

/// A test: says why it failed.
pub(crate) type Test = fn() -> Result<(), String>;

/// What `all` stands for.
const TESTS: &[(&str, Test)] = &[
    ("real-mode", exits::real_mode),
    ("protected-mode", exits::protected_mode),
    ("long-mode", exits::long_mode),
    ("mode-switches", exits::mode_switches),
    ("triple-fault", exits::triple_fault),
    ("single-step", exits::single_step),
    ("ept-storm", paging::storm),
    ("large-pages", paging::large),
    ("host-unmaps", paging::host_unmaps),
    ("copy-on-write", paging::copy_on_write),
    ("memslots", paging::memslots),
    ("read-only", paging::read_only),
    ("dirty-log", paging::dirty_log),
    ("interrupt-windows", interrupts::windows),
    ("interrupt-lines", interrupts::lines),
    ("timer", interrupts::timer),
    ("ipis", interrupts::ipis),
    ("signals", interrupts::signals),
    ("registers", state::registers),
    ("suspend-resume", state::suspend),
    ("interleaved", state::interleaved),
    ("two-vcpus", lives::two_vcpus),
    ("racing", lives::racing),
    ("killed", lives::killed),
    ("many", lives::many),
];

/// What needs a second processor or the visor, changes the host, or is no test.
const OTHERS: &[(&str, Test)] = &[
    ("cpu-hotplug", lives::cpu_hotplug),
    ("leave-running", lives::leave_running),
    ("visor-memory", outside::visor_memory),
    ("protected-first", protected::first),
    ("protected-left", protected::left),
    ("protected-resets", protected::resets),
    ("protected-control", protected::control),
    ("protected-control-2-cpus", protected::control_on_two),
    ("protected-attacks", protected::attacks),
    ("protected-devices-control", protected::devices_control),
    ("protected-devices", protected::devices),
    ("protected-life", protected::life),
    ("protected-life-2-cpus", protected::life_on_two),
    ("protected-sealed", protected::sealed),
    ("protected-smp-control", protected::smp_control),
    ("protected-smp", protected::smp),
    ("xen-first", xen::first),
    ("xen-left", xen::left),
    ("xen-control", xen::control),
    ("xen-attacks", xen::attacks),
    ("xen-dump", xen::dump),
    ("cost", cost::plain),
    ("cost-protected", cost::protected),
    ("compile", work::compile),
    ("database", work::database),
    ("switches", work::switches),
    ("echo", work::echo),
    ("files", work::files),
    ("processes", work::processes),
];

/// The tests that `words` name; one that does not exist fails.
pub(crate) fn selected(words: &[String]) -> Vec<(String, Test)> {
    let mut chosen = Vec::new();
    for word in words {
        if word == "all" {
            chosen.extend(TESTS.iter().map(|(name, test)| ((*name).to_owned(), *test)));
            continue;
        }
        let known = TESTS.iter().chain(OTHERS).find(|(name, _)| name == word);
        chosen.push((word.clone(), known.map_or(unknown as Test, |(_, test)| *test)));
    }
    chosen
}

fn unknown() -> Result<(), String> {
    Err("no such test".to_owned())
}

/// A VM with one processor.
#[derive(Debug)]
pub(crate) struct Machine {
    // In the order in which they must go.
    pub(crate) vcpu: Vcpu,
    pub(crate) vm: Vm,
    pub(crate) memory: Memory,
}

impl Machine {
    /// A VM with `mib` MiB, in front of `code`.
    pub(crate) fn new(mib: usize, mode: Mode, code: &[u8]) -> Result<Self, String> {
        let memory = Memory::new(mib << 20, Backing::Small)?;
        let vm = Vm::with(&memory)?;
        let vcpu = vm.vcpu(0)?;
        mode::enter(&vcpu, &memory, mode, code)?;
        Ok(Self { vcpu, vm, memory })
    }

    /// Starts the code at [`mode::CODE`] anew with these values of RCX, RSI and RDI.
    pub(crate) fn call(&mut self, code: &[u8], [rcx, rsi, rdi]: [u64; 3]) -> Result<(), String> {
        self.memory.write(mode::CODE, code);
        mode::start(&self.vcpu, mode::CODE)?;
        let mut regs = self.vcpu.regs()?;
        (regs.rcx, regs.rsi, regs.rdi) = (rcx, rsi, rdi);
        self.vcpu.set_regs(&regs)
    }

    /// Runs to the next exit, which must be this one.
    pub(crate) fn until(&mut self, exit: &Exit) -> Result<(), String> {
        until(&mut self.vcpu, exit)
    }

    /// [`Machine::call`], then to the HLT at the end; what RAX is there.
    pub(crate) fn result(&mut self, code: &[u8], arguments: [u64; 3]) -> Result<u64, String> {
        self.call(code, arguments)?;
        self.until(&Exit::Halt)?;
        Ok(self.vcpu.regs()?.rax)
    }
}

/// Runs to the next exit, which must be this one.
pub(crate) fn until(vcpu: &mut Vcpu, exit: &Exit) -> Result<(), String> {
    let found = vcpu.run()?;
    if found == *exit {
        return Ok(());
    }
    let regs = vcpu.regs()?;
    Err(format!("exit {found:x?}, not {exit:x?}, {regs:x?}"))
}

/// Fails unless both are the same.
pub(crate) fn same<T: PartialEq + std::fmt::LowerHex>(
    what: &str,
    found: T,
    wanted: T,
) -> Result<(), String> {
    if found == wanted {
        return Ok(());
    }
    Err(format!("{what}: {found:#x}, not {wanted:#x}"))
}
