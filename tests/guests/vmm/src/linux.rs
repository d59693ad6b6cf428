//! A Linux guest: a bzImage by the 32-bit boot protocol (Linux, `Documentation/x86/boot.rst`), one
//! processor, interrupt controllers and timer in the kernel, a serial port here.
//!
//! With a ticket, or as if it had one, it begins at the reset vector, in a page of code that does what is
//! otherwise this program's: it enters the kernel.

use crate::code;
use crate::kvm::Regs;
use crate::memory::{Backing, Memory, PAGE};
use crate::meter::{Meter, Served, clock};
use crate::mode::{self, Mode};
use crate::mp;
use crate::protected::launch::ticket_for;
use crate::protected::{Ticket, ask_outside};
use crate::threads::{self, Runner};
use crate::uart::{self, Uart};
use crate::vm::{Exit, Vcpu, Vm};
use control::PORT;
use std::fs;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard};
use std::thread;
use std::time::Duration;
use ticket::Class;

const MEMORY: usize = 224 << 20;
const BOOT_PARAMS: usize = 0x2_0000;
const COMMAND_LINE: usize = 0x3_0000;
const KERNEL: usize = 0x10_0000;
/// Offset of the setup header, in the image as in the boot parameters.
const HEADER: usize = 0x1f1;

/// What every guest is told.
const WORDS: &str = "console=ttyS0 quiet panic=-1 mitigations=off tsc=reliable no_timer_check \
                     random.trust_cpu=on nokaslr pci=off";

/// The page of the reset vector.
const RESET: u64 = 0xffff_f000;
/// The last page of memory, of which the guest is not told: by it, the visor tells of device memory.
const WINDOW: usize = MEMORY - PAGE;

/// How a guest begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Launch {
    /// At the kernel's entry.
    Entry,
    /// At the reset vector.
    Reset,
    /// At the reset vector, with a ticket.
    Ticket,
}

/// A guest that this program can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    backing: Backing,
    launch: Launch,
    processors: u8,
}

/// The guest that `word` asks for.
pub(crate) fn shape(word: &str) -> Option<Shape> {
    let (backing, launch, processors) = match word {
        "linux" => (Backing::Small, Launch::Entry, 1),
        "linux-2m" => (Backing::Large, Launch::Entry, 1),
        "linux-reset" => (Backing::Small, Launch::Reset, 1),
        "linux-smp" => (Backing::Small, Launch::Reset, 2),
        "linux-protected" => (Backing::Small, Launch::Ticket, 1),
        "linux-smp-protected" => (Backing::Small, Launch::Ticket, 2),
        "linux-2m-protected" => (Backing::Large, Launch::Ticket, 1),
        _ => return None,
    };
    Some(Shape { backing, launch, processors })
}

/// Boots `/kernel` with `/initrd2` and the actions for its `init` to the line that says that it is
/// done. What the VM's whole life took is printed: `boot NAME WHAT COUNT`. What making and submitting its
/// ticket takes is part of that, and is printed too.
pub(crate) fn boot(name: &str, shape: Shape, actions: &str) -> Result<(), String> {
    let mut meter = Meter::new()?;
    let (before, began) = (meter.visor(), clock());
    let counts = live(shape, actions, &mut meter)?;
    println!("vmm: boot {name} ticks {}", clock() - began);
    for (what, count) in counts {
        println!("vmm: boot {name} {what} {count}");
    }
    if let (Some(before), Some(after)) = (before, meter.visor()) {
        println!("vmm: boot {name} visor.exits {}", after.exits - before.exits);
        println!("vmm: boot {name} visor.violations {}", after.violations - before.violations);
        println!("vmm: boot {name} visor.ticks {}", after.ticks - before.ticks);
    }
    Ok(())
}

/// A VM from its first page to its last; KVM's counts of its exits.
fn live(
    shape: Shape,
    actions: &str,
    meter: &mut Meter,
) -> Result<Vec<(&'static str, u64)>, String> {
    let read = |path: &str| fs::read(path).map_err(|why| format!("{path}: {why}"));
    let memory = Memory::new(MEMORY, shape.backing)?;
    // It cannot measure that against a timer each access to which takes the emulator a millisecond.
    let khz = Vm::new()?.tsc_khz()?;
    let words = format!("{WORDS} tsc_early_khz={khz} init.do={actions}");
    let tables = mp::tables(shape.processors);
    memory.write(mp::PLACE, &tables);
    let pages = load(&memory, &read("/kernel")?, &read("/initrd2")?, &words)?;
    let mut counts = Vec::new();
    let mut ticket = Ticket::none();
    if shape.launch == Launch::Ticket {
        let (before, began) = (meter.visor(), clock());
        ticket = submit(&memory, &pages, shape.processors)?;
        counts.push(("ticket.ticks", clock() - began));
        if let (Some(before), Some(after)) = (before, meter.visor()) {
            counts.push(("ticket.visor.exits", after.exits - before.exits));
        }
    }
    let vm = Vm::with(&memory)?;
    vm.with_irqchip()?;
    let mut vcpu = vm.vcpu(0)?;
    let rom = Memory::new(PAGE, Backing::Small)?;
    if shape.launch == Launch::Entry {
        mode::enter(&vcpu, &memory, Mode::Protected, &[])?;
        let (rip, rsi) = (KERNEL as u64, BOOT_PARAMS as u64);
        vcpu.set_regs(&Regs { rip, rsi, rflags: 2, ..Regs::default() })?;
    } else {
        rom.write(0, &stub());
        vm.slot(1, 0, RESET, rom.all())?;
    }
    let others = (1..shape.processors).map(|id| vm.vcpu(id.into()));
    let mut others = others.collect::<Result<Vec<_>, _>>()?;
    let secret = drive(&vm, &mut vcpu, &mut others)?;
    for (what, name) in [("exits", "exits"), ("faults", "pf_taken")] {
        counts.push((what, vcpu.statistic(name)?));
    }
    drop((vcpu, others, vm, memory, rom));
    ticket.withdraw()?;
    if let Some(words) = secret {
        let is_ticketed = shape.launch == Launch::Ticket;
        ask_outside(&words, if is_ticketed { "protected" } else { "unprotected" });
    }
    Ok(counts)
}

/// Submits the ticket of a guest that has this in its memory at first.
fn submit(memory: &Memory, pages: &[Range<usize>], processors: u8) -> Result<Ticket, String> {
    let page = PAGE as u64;
    let ranges = [
        (0, WINDOW as u64, Class::Private),
        (WINDOW as u64, page, Class::Window),
        (RESET, page, Class::Private),
    ];
    let stub = stub();
    let contents: Vec<_> =
        pages.iter().map(|range| memory.read(range.start, range.len())).collect();
    let starts = pages.iter().map(|range| range.start as u64);
    let mut image: Vec<_> = starts.zip(contents.iter().map(Vec::as_slice)).collect();
    image.push((RESET, &stub));
    let id = *b"Linux of vmm\0\0\0\0";
    Ticket::submit(id, &ticket_for(processors.into(), id, &ranges, &image)?)
}

/// The page of the reset vector.
fn stub() -> Vec<u8> {
    let mut page = code::linux_stub().to_vec();
    page.resize(PAGE, 0);
    // jmp to its first byte
    page[0xff0..0xff3].copy_from_slice(&[0xe9, 0x0d, 0xf0]);
    page
}

/// Puts everything in its place; which pages these are, in ascending order.
fn load(
    memory: &Memory,
    image: &[u8],
    initrd: &[u8],
    words: &str,
) -> Result<[Range<usize>; 5], String> {
    let sectors = match image.get(HEADER) {
        Some(0) => 4,
        Some(sectors) => usize::from(*sectors),
        None => return Err("the kernel is cut short".to_owned()),
    };
    let (setup, code) = image.split_at_checked((sectors + 1) * 512).ok_or("no kernel")?;
    if setup.get(0x202..0x206) != Some(b"HdrS") {
        return Err("not a bzImage".to_owned());
    }
    memory.write(KERNEL, code);
    let initrd_at = (WINDOW - initrd.len()) & !0xfff;
    memory.write(initrd_at, initrd);
    memory.write(COMMAND_LINE, words.as_bytes());
    // The header ends where its own jump leads.
    let end = 0x202 + usize::from(setup[0x201]);
    memory.write(BOOT_PARAMS + HEADER, &setup[HEADER..end]);
    let (unknown_loader, e820_entries, ram) = (0xff, 2, 1);
    memory.write(BOOT_PARAMS + 0x210, &[unknown_loader]);
    for (offset, value) in
        [(0x218, initrd_at), (0x21c, initrd.len()), (0x228, COMMAND_LINE), (0x1e8, e820_entries)]
    {
        let value = u32::try_from(value).map_err(|why| why.to_string())?;
        let bytes = value.to_le_bytes();
        memory.write(BOOT_PARAMS + offset, if offset == 0x1e8 { &bytes[..1] } else { &bytes });
    }
    for (index, (start, end)) in [(0, 0x9_fc00), (KERNEL, WINDOW)].into_iter().enumerate() {
        let at = BOOT_PARAMS + 0x2d0 + index * 20;
        memory.write(at, &(start as u64).to_le_bytes());
        memory.write(at + 8, &((end - start) as u64).to_le_bytes());
        memory.write(at + 16, &u32::to_le_bytes(ram));
    }
    let pages =
        |start: usize, length: usize| start & !0xfff..(start + length).next_multiple_of(PAGE);
    Ok([
        pages(BOOT_PARAMS, PAGE),
        pages(COMMAND_LINE, words.len()),
        pages(mp::PLACE, PAGE - mp::PLACE % PAGE),
        pages(KERNEL, code.len()),
        pages(initrd_at, initrd.len()),
    ])
}

/// What the processors share.
struct Devices {
    uart: Uart,
    served: Served,
    raised: bool,
    runners: Vec<Runner>,
    /// What the guest has told of its secret.
    secret: Option<String>,
    /// The guest has come to its last line, or a processor has failed.
    is_over: bool,
}

/// Runs the guest to its last line; the disguised secret that it has told of.
fn drive(vm: &Vm, first: &mut Vcpu, others: &mut [Vcpu]) -> Result<Option<String>, String> {
    let (uart, served) = (Uart::default(), Served::new()?);
    let (raised, runners, secret, is_over) = (false, Vec::new(), None, false);
    let devices = Mutex::new(Devices { uart, served, raised, runners, secret, is_over });
    run_all(vm, first, others, &devices)?;
    Ok(devices.into_inner().map_err(|_| LOST)?.secret)
}

/// Runs all processors, each in a thread of its own, until all is over.
fn run_all(
    vm: &Vm,
    first: &mut Vcpu,
    others: &mut [Vcpu],
    devices: &Mutex<Devices>,
) -> Result<(), String> {
    if others.is_empty() {
        return run(vm, first, devices);
    }
    threads::catch_kicks()?;
    thread::scope(|scope| {
        let all = std::iter::once(first).chain(others);
        let all = all.map(|vcpu| scope.spawn(|| run(vm, vcpu, devices))).collect::<Vec<_>>();
        while !all.iter().all(|thread| thread.is_finished()) {
            thread::sleep(Duration::from_millis(5));
            let devices = lock(devices)?;
            if devices.is_over {
                devices.runners.iter().for_each(|runner| runner.kick());
            }
        }
        all.into_iter()
            .try_for_each(|thread| thread.join().unwrap_or_else(|_| Err(LOST.to_owned())))
    })
}

const LOST: &str = "a thread ended early";

fn lock(devices: &Mutex<Devices>) -> Result<MutexGuard<'_, Devices>, String> {
    devices.lock().map_err(|_| LOST.to_owned())
}

/// Runs one processor until all is over.
fn run(vm: &Vm, vcpu: &mut Vcpu, devices: &Mutex<Devices>) -> Result<(), String> {
    lock(devices)?.runners.push(Runner::this());
    loop {
        let exit = vcpu.run();
        let mut devices = lock(devices)?;
        if devices.is_over {
            return Ok(());
        }
        let served = exit.and_then(|exit| devices.serve(vm, vcpu, exit));
        devices.is_over = served.as_ref().map_or(true, |ends| *ends);
        if devices.is_over {
            return served.map(drop);
        }
    }
}

impl Devices {
    /// Does what an exit asks for; whether it was the guest's last.
    fn serve(&mut self, vm: &Vm, vcpu: &mut Vcpu, exit: Exit) -> Result<bool, String> {
        match exit {
            Exit::Out(PORT, bytes) => self.served.select(&bytes),
            Exit::In(PORT, 4) => {
                let value = self.served.read(vcpu)?;
                vcpu.answer(&value.to_le_bytes());
            }
            Exit::Out(port @ uart::FIRST..=uart::LAST, bytes) => {
                for byte in bytes {
                    let Some(line) = self.uart.write(port, byte) else { continue };
                    let line = line.trim();
                    if line == "init: done" {
                        return Ok(true);
                    }
                    if line.contains("Kernel panic") {
                        return Err(line.to_owned());
                    }
                    if let Some(words) = line.strip_prefix("init: secret ") {
                        self.secret = Some(words.to_owned());
                    }
                }
            }
            Exit::In(port @ uart::FIRST..=uart::LAST, count) => {
                let bytes: Vec<u8> = (0..count).map(|_| self.uart.read(port)).collect();
                vcpu.answer(&bytes);
            }
            // The clock's chip is there, and has nothing to say.
            Exit::In(0x70 | 0x71, count) => vcpu.answer(&vec![0; count]),
            Exit::In(_, count) | Exit::Load(_, count) => vcpu.answer(&vec![0xff; count]),
            Exit::Out(..) | Exit::Store(..) | Exit::Interrupted => {}
            other => {
                let rip = vcpu.regs()?.rip;
                return Err(format!("exit {other:x?} at {rip:#x}"));
            }
        }
        if self.uart.interrupting() != self.raised {
            self.raised = !self.raised;
            vm.line(uart::IRQ, self.raised.into())?;
        }
        Ok(false)
    }
}
