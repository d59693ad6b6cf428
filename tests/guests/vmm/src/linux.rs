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
use crate::protected::launch::ticket_of;
use crate::protected::{Ticket, ask_outside};
use crate::uart::{self, Uart};
use crate::vm::{Exit, Vcpu, Vm};
use control::PORT;
use std::fs;
use std::ops::Range;
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
}

/// The guest that `word` asks for.
pub(crate) fn shape(word: &str) -> Option<Shape> {
    let (backing, launch) = match word {
        "linux" => (Backing::Small, Launch::Entry),
        "linux-2m" => (Backing::Large, Launch::Entry),
        "linux-reset" => (Backing::Small, Launch::Reset),
        "linux-protected" => (Backing::Small, Launch::Ticket),
        "linux-2m-protected" => (Backing::Large, Launch::Ticket),
        _ => return None,
    };
    Some(Shape { backing, launch })
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
    let pages = load(&memory, &read("/kernel")?, &read("/initrd2")?, &words)?;
    let mut counts = Vec::new();
    let mut ticket = Ticket::none();
    if shape.launch == Launch::Ticket {
        let (before, began) = (meter.visor(), clock());
        ticket = submit(&memory, &pages)?;
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
    let secret = drive(&vm, &mut vcpu)?;
    for (what, name) in [("exits", "exits"), ("faults", "pf_taken")] {
        counts.push((what, vcpu.statistic(name)?));
    }
    drop((vcpu, vm, memory, rom));
    ticket.withdraw()?;
    if let Some(words) = secret {
        let is_ticketed = shape.launch == Launch::Ticket;
        ask_outside(&words, if is_ticketed { "protected" } else { "unprotected" });
    }
    Ok(counts)
}

/// Submits the ticket of a guest that has this in its memory at first.
fn submit(memory: &Memory, pages: &[Range<usize>]) -> Result<Ticket, String> {
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
    Ticket::submit(id, &ticket_of(id, &ranges, &image)?)
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
    memory.write(mp::PLACE, &mp::tables());
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
        pages(mp::PLACE, mp::tables().len()),
        pages(KERNEL, code.len()),
        pages(initrd_at, initrd.len()),
    ])
}

/// Runs the guest to its last line; the disguised secret that it has told of.
fn drive(vm: &Vm, vcpu: &mut Vcpu) -> Result<Option<String>, String> {
    let (mut uart, mut served, mut raised) = (Uart::default(), Served::new()?, false);
    let mut secret = None;
    loop {
        match vcpu.run()? {
            Exit::Out(PORT, bytes) => served.select(&bytes),
            Exit::In(PORT, 4) => {
                let value = served.read(vcpu)?;
                vcpu.answer(&value.to_le_bytes());
            }
            Exit::Out(port @ uart::FIRST..=uart::LAST, bytes) => {
                for byte in bytes {
                    let Some(line) = uart.write(port, byte) else { continue };
                    let line = line.trim();
                    if line == "init: done" {
                        return Ok(secret);
                    }
                    if line.contains("Kernel panic") {
                        return Err(line.to_owned());
                    }
                    if let Some(words) = line.strip_prefix("init: secret ") {
                        secret = Some(words.to_owned());
                    }
                }
            }
            Exit::In(port @ uart::FIRST..=uart::LAST, count) => {
                let bytes: Vec<u8> = (0..count).map(|_| uart.read(port)).collect();
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
        if uart.interrupting() != raised {
            raised = !raised;
            vm.line(uart::IRQ, raised.into())?;
        }
    }
}
