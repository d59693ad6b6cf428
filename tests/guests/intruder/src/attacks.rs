//! The attacks.

use crate::debugger::{Debugger, R12, RIP};
use crate::kvm::{self, Thread};
use crate::look::{is_in, is_in_stream, is_part_in, is_part_in_text};
use crate::memory::{Machine, Memory, PAGE, SIZE};
use crate::vm::{Health, Kind, OTHER, Place, Vm};
use std::fs::File;
use std::time::Duration;

/// What an attack does; whether it got what it wanted. One that wants the VM changed says no, and the VM finds out
/// itself.
pub(crate) type Attack = fn(&mut Vm) -> Result<bool, String>;

/// In the order in which they are done. The last ones end a VM that has a ticket.
pub(crate) const ATTACKS: &[(&str, Attack)] = &[
    ("read-process-memory", |vm| paused(vm, |vm| vm.memory()?.has(vm.needle))),
    ("dump-by-monitor", |vm| paused(vm, dump_by_monitor)),
    ("dump-with-registers", |vm| paused(vm, dump_with_registers)),
    ("read-by-address", read_by_address),
    ("read-frame", read_frame),
    ("search-all-memory", |vm| paused(vm, |vm| Machine::open()?.has(vm.needle))),
    ("registers-by-monitor", registers_by_monitor),
    ("registers-by-debugger", registers_by_debugger),
    ("registers-by-kvm", registers_by_kvm),
    ("vectors-by-kvm", |vm| several(vm, |cpu| cpu.get(kvm::GET_XSAVE).map(Vec::from))),
    ("tables-by-kvm", tables_by_kvm),
    ("msrs-by-kvm", msrs_by_kvm),
    ("translate-by-kvm", translate_by_kvm),
    ("step-by-debugger", step_by_debugger),
    ("breakpoint-by-debugger", breakpoint_by_debugger),
    ("registers-set-by-debugger", set_by_debugger),
    ("instruction-set-by-debugger", instruction_by_debugger),
    ("registers-set-by-kvm", set_by_kvm),
    ("inject-undefined", |vm| inject(vm, 6, 0)),
    ("inject-protection", |vm| inject(vm, 13, 1)),
    ("inject-divide-error", |vm| inject(vm, 0, 0)),
    ("interrupt-by-vector-3", |vm| interrupt(vm, 3)),
    ("interrupt-by-vector-4", |vm| interrupt(vm, 4)),
    ("write-data", |vm| scribble(vm, "data")),
    ("write-secret", |vm| scribble(vm, "secret")),
    ("inject-code-in-program", |vm| patch(vm, "program")),
    ("inject-code-in-kernel", |vm| patch(vm, "kernel")),
    ("swap-contents", swap_contents),
    ("replay-page", replay_page),
    ("swap-pages", swap_pages),
    ("drop-page", drop_page),
    ("replay-dropped-page", replay_dropped_page),
    ("exchange-with-other-vm", exchange),
];

/// Looks often enough to meet the VM at its work, not in its kernel.
const LOOKS: usize = 8;

/// Longer than any instruction takes, and than a beat if it is taken four times.
const SHORT: Duration = Duration::from_millis(500);

/// Whether any of some looks at the stopped virtual processor shows the secret.
fn several(vm: &mut Vm, look: impl Fn(&Thread) -> Result<Vec<u8>, String>) -> Result<bool, String> {
    for _ in 0..LOOKS {
        let bytes = look(&Thread::stop(vm.process(), vm.thread()?)?)?;
        if is_part_in(&bytes, vm.needle) {
            return Ok(true);
        }
        vm.beat()?;
    }
    Ok(false)
}

/// Does `attack` while the VM stands still: it would take half of the processor.
fn paused(vm: &mut Vm, attack: impl Fn(&mut Vm) -> Result<bool, String>) -> Result<bool, String> {
    let _ = vm.monitor("stop")?;
    let result = attack(vm);
    let _ = vm.monitor("cont")?;
    result
}

/// QEMU writes the VM's memory to a file.
fn dump_by_monitor(vm: &mut Vm) -> Result<bool, String> {
    let _ = vm.monitor(r#"pmemsave 0 0x4000000 "/run/dump""#)?;
    found_in_dump(vm)
}

/// QEMU writes a core file of the VM.
fn dump_with_registers(vm: &mut Vm) -> Result<bool, String> {
    let _ = vm.monitor("dump-guest-memory /run/dump")?;
    found_in_dump(vm)
}

fn found_in_dump(vm: &Vm) -> Result<bool, String> {
    let failed = |why: std::io::Error| format!("dump: {why}");
    let dump = File::open("/run/dump").map_err(failed)?;
    let length = dump.metadata().map_err(failed)?.len();
    let found = is_in_stream(dump, vm.needle);
    std::fs::remove_file("/run/dump").map_err(failed)?;
    // All of it must be there, else nothing was searched.
    if length < 60 << 20 { Err(format!("a dump of {length} bytes")) } else { found }
}

/// QEMU walks the VM's page tables.
fn read_by_address(vm: &mut Vm) -> Result<bool, String> {
    let at = vm.place("secret")?.linear;
    for _ in 0..LOOKS {
        let bytes = vm.debugger()?.read(at, 64)?;
        if is_in(&bytes, vm.needle) {
            return Ok(true);
        }
        vm.beat()?;
    }
    Ok(false)
}

/// The secret's own frame in the machine's memory.
fn read_frame(vm: &mut Vm) -> Result<bool, String> {
    let at = vm.memory()?.frame(vm.place("secret")?.physical)?;
    let mut bytes = vec![0; PAGE as usize];
    Machine::open()?.read(at, &mut bytes)?;
    Ok(is_in(&bytes, vm.needle))
}

fn registers_by_monitor(vm: &mut Vm) -> Result<bool, String> {
    for _ in 0..LOOKS {
        let text = vm.monitor("info registers")?;
        if is_part_in_text(&text, vm.needle) {
            return Ok(true);
        }
        vm.beat()?;
    }
    Ok(false)
}

fn registers_by_debugger(vm: &mut Vm) -> Result<bool, String> {
    for _ in 0..LOOKS {
        let bytes = vm.debugger()?.registers()?;
        if is_part_in(&bytes, vm.needle) {
            return Ok(true);
        }
        vm.beat()?;
    }
    Ok(false)
}

fn registers_by_kvm(vm: &mut Vm) -> Result<bool, String> {
    several(vm, |cpu| Ok([&cpu.get(kvm::GET_REGS)?[..], &cpu.get(kvm::GET_FPU)?].concat()))
}

/// CR3, and from there through the VM's page tables to where its kernel lies.
fn tables_by_kvm(vm: &mut Vm) -> Result<bool, String> {
    let sregs = Thread::stop(vm.process(), vm.thread()?)?.get(kvm::GET_SREGS)?;
    // struct kvm_sregs: CR3 is behind eight segments of 24 bytes, two tables of 16, CR0 and CR2.
    let root = sregs[240..248].try_into().map_or(0, u64::from_le_bytes);
    let (Place { linear, physical }, memory) = (vm.place("kernel")?, vm.memory()?);
    Ok(walk(&memory, root, linear)? == Some(physical))
}

/// Where `linear` is by the page tables of four levels at `root` (SDM vol. 3, section 4.5.4).
fn walk(memory: &Memory, root: u64, linear: u64) -> Result<Option<u64>, String> {
    const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
    let mut table = root & ADDRESS;
    for shift in [39, 30, 21, 12] {
        let at = table + (linear >> shift) % 512 * 8;
        if at >= SIZE {
            return Ok(None);
        }
        let entry = memory.read(at, 8)?.try_into().map_or(0, u64::from_le_bytes);
        if entry & 1 == 0 {
            return Ok(None);
        }
        table = entry & ADDRESS;
        if shift == 12 || shift < 39 && entry & 0x80 != 0 {
            let below = (1 << shift) - 1;
            return Ok(Some(table & !below | linear & below));
        }
    }
    Ok(None)
}

/// The kernel's entry point, IA32_LSTAR: an address in its text.
fn msrs_by_kvm(vm: &mut Vm) -> Result<bool, String> {
    const LSTAR: u32 = 0xc000_0082;
    let mut list = [0; 24];
    list[0] = 1;
    list[8..12].copy_from_slice(&LSTAR.to_le_bytes());
    Thread::stop(vm.process(), vm.thread()?)?.ask(kvm::GET_MSRS, &mut list)?;
    let value = list[16..].try_into().map_or(0, u64::from_le_bytes);
    Ok(value >= 0xffff_ffff_8000_0000)
}

/// KVM walks the VM's page tables.
fn translate_by_kvm(vm: &mut Vm) -> Result<bool, String> {
    let Place { linear, physical } = vm.place("kernel")?;
    let mut translation = [0; 24];
    translation[..8].copy_from_slice(&linear.to_le_bytes());
    Thread::stop(vm.process(), vm.thread()?)?.ask(kvm::TRANSLATE, &mut translation)?;
    let found = translation[8..16].try_into().map_or(0, u64::from_le_bytes);
    Ok(translation[16] != 0 && found == physical)
}

/// One instruction, then another: the VM stops after each, and shows where it is.
fn step_by_debugger(vm: &mut Vm) -> Result<bool, String> {
    let near = vm.place("loop")?.linear;
    for _ in 0..LOOKS {
        let mut debugger = vm.debugger()?;
        let does_stop = debugger.resume("s", SHORT)?;
        if does_stop && (near..near + 8).contains(&debugger.rip()?) {
            return Ok(true);
        }
        drop(debugger);
        vm.beat()?;
    }
    Ok(false)
}

/// Stops where the VM's program is known to come by.
fn breakpoint_by_debugger(vm: &mut Vm) -> Result<bool, String> {
    let at = vm.place("loop")?.linear;
    let mut debugger = vm.debugger()?;
    let _ = debugger.ask(&format!("Z1,{at:x},1"))?;
    let does_stop = debugger.resume("c", 4 * SHORT)? && debugger.rip()? == at;
    let _ = debugger.ask(&format!("z1,{at:x},1"))?;
    Ok(does_stop)
}

/// Does `change` when the VM is at its work; of a VM that hides where it is, at some time.
fn at_work(
    vm: &mut Vm,
    change: impl Fn(&mut Debugger) -> Result<(), String>,
) -> Result<bool, String> {
    let near = vm.place("loop")?.linear;
    for look in 1..=LOOKS {
        let mut debugger = vm.debugger()?;
        if look == LOOKS || (near..near + 8).contains(&debugger.rip()?) {
            change(&mut debugger)?;
            return Ok(false);
        }
        drop(debugger);
        vm.beat()?;
    }
    Ok(false)
}

fn set_by_debugger(vm: &mut Vm) -> Result<bool, String> {
    at_work(vm, |debugger| debugger.set(R12, 0x1234))
}

/// The next instruction is one that the VM never does.
fn instruction_by_debugger(vm: &mut Vm) -> Result<bool, String> {
    let at = vm.place("gadget")?.linear;
    at_work(vm, |debugger| debugger.set(RIP, at))
}

/// As [`at_work`], for changes by KVM, which get the registers.
fn at_work_by_kvm(
    vm: &mut Vm,
    change: impl Fn(&Thread, &mut [u8; 144]) -> Result<(), String>,
) -> Result<bool, String> {
    let near = vm.place("loop")?.linear;
    for look in 1..=LOOKS {
        let thread = Thread::stop(vm.process(), vm.thread()?)?;
        let mut registers = thread.get(kvm::GET_REGS)?;
        let rip = registers[128..136].try_into().map_or(0, u64::from_le_bytes);
        if look == LOOKS || (near..near + 8).contains(&rip) {
            change(&thread, &mut registers)?;
            return Ok(false);
        }
        drop(thread);
        vm.beat()?;
    }
    Ok(false)
}

/// All of R12 to R15.
fn set_by_kvm(vm: &mut Vm) -> Result<bool, String> {
    at_work_by_kvm(vm, |thread, registers| {
        registers[96..128].fill(0x55);
        thread.ask(kvm::SET_REGS, registers)
    })
}

/// Changes what KVM delivers next (`struct kvm_vcpu_events`), from the byte `at` on.
fn deliver(vm: &mut Vm, at: usize, changed: &[u8]) -> Result<bool, String> {
    at_work_by_kvm(vm, |thread, _| {
        let mut events = thread.get(kvm::GET_EVENTS)?;
        events[at..at + changed.len()].copy_from_slice(changed);
        thread.ask(kvm::SET_EVENTS, &mut events)
    })
}

/// An exception that the VM has not caused, with the error code 0 if it has one.
fn inject(vm: &mut Vm, vector: u8, has_code: u8) -> Result<bool, String> {
    deliver(vm, 0, &[1, vector, has_code, 0, 0, 0, 0, 0])
}

/// The same as if it were a device's interrupt.
fn interrupt(vm: &mut Vm, vector: u8) -> Result<bool, String> {
    deliver(vm, 8, &[1, vector, 0])
}

/// Other bytes in a page, through QEMU's process.
fn scribble(vm: &mut Vm, name: &str) -> Result<bool, String> {
    let at = vm.place(name)?.physical;
    vm.memory()?.write(at + 0x100, &[0xa5; 64])?;
    Ok(false)
}

/// Code of the attacker's in place of a function's: `mov eax, 1337; ret`. Later the function is as it was.
fn patch(vm: &mut Vm, name: &str) -> Result<bool, String> {
    let (at, memory) = (vm.place(name)?.physical, vm.memory()?);
    let before = memory.read(at, 6)?;
    memory.write(at, &[0xb8, 0x39, 0x05, 0, 0, 0xc3])?;
    let health = vm.health();
    memory.write(at, &before)?;
    Ok(health != Health::Fine)
}

/// The contents of two pages, exchanged through QEMU's process.
fn swap_contents(vm: &mut Vm) -> Result<bool, String> {
    let (memory, [one, other]) = two_pages(vm)?;
    let (first, second) = (memory.page(one)?, memory.page(other)?);
    memory.write(one, &second)?;
    memory.write(other, &first)?;
    Ok(false)
}

fn two_pages(vm: &mut Vm) -> Result<(Memory, [u64; 2]), String> {
    let pages = [vm.place("data")?.physical, vm.place("more-data")?.physical];
    Ok((vm.memory()?, pages))
}

/// What the page with the VM's count was two beats ago.
fn replay_page(vm: &mut Vm) -> Result<bool, String> {
    let (memory, at) = (vm.memory()?, vm.place("count")?.physical);
    let before = memory.page(at)?;
    vm.beat()?;
    vm.beat()?;
    memory.write(at, &before)?;
    Ok(false)
}

/// The same page, whose frame QEMU gives back before.
fn replay_dropped_page(vm: &mut Vm) -> Result<bool, String> {
    let (memory, at) = (vm.memory()?, vm.place("count")?.physical);
    let before = memory.page(at)?;
    vm.beat()?;
    vm.beat()?;
    let thread = Thread::stop(vm.process(), vm.thread()?)?;
    drop_by(&thread, memory.address(at))?;
    memory.write(at, &before)?;
    Ok(false)
}

/// Two VMs get each the other's page, in frames that were given back before.
fn exchange(vm: &mut Vm) -> Result<bool, String> {
    let _ = vm.monitor("stop")?;
    let mut other = Vm::start(vm.kind, OTHER)?;
    let _ = vm.monitor("cont")?;
    let [one, two] = [vm.place("secret")?.physical, other.place("secret")?.physical];
    let memory = [vm.memory()?, other.memory()?];
    let threads = [
        Thread::stop(vm.process(), vm.thread()?)?,
        Thread::stop(other.process(), other.thread()?)?,
    ];
    let pages = [memory[0].page(one)?, memory[1].page(two)?];
    drop_by(&threads[0], memory[0].address(one))?;
    drop_by(&threads[1], memory[1].address(two))?;
    memory[0].write(one, &pages[1])?;
    memory[1].write(two, &pages[0])?;
    drop(threads);
    // The first one is looked at by who has called.
    let (health, cause) = (other.health(), other.stop_cause()?);
    println!("root: the other VM is {health:?}, stopped for {cause:?}");
    let is_stopped = matches!(health, Health::Gone | Health::Silent) && cause.is_some();
    other.end()?;
    Ok(vm.kind == Kind::Protected && !is_stopped)
}

/// QEMU gives back a page that the VM uses.
fn drop_page(vm: &mut Vm) -> Result<bool, String> {
    let at = vm.memory()?.address(vm.place("data")?.physical);
    drop_by(&Thread::stop(vm.process(), vm.thread()?)?, at)?;
    Ok(false)
}

fn drop_by(thread: &Thread, at: u64) -> Result<(), String> {
    let advice = u64::from(libc::MADV_DONTNEED.unsigned_abs());
    done(thread.call(libc::SYS_madvise, [at, PAGE, advice, 0, 0, 0])?).map(drop)
}

/// QEMU has two pages change places.
fn swap_pages(vm: &mut Vm) -> Result<bool, String> {
    let (memory, [one, other]) = two_pages(vm)?;
    let thread = Thread::stop(vm.process(), vm.thread()?)?;
    let (one, other) = (memory.address(one), memory.address(other));
    let none = [0, 2 * PAGE, 0, 0x22, u64::MAX, 0];
    // Room that nobody uses: mmap without rights, private and anonymous.
    let room = done(thread.call(libc::SYS_mmap, none)?)?;
    // MREMAP_MAYMOVE | MREMAP_FIXED
    for (from, to) in [(one, room), (other, one), (room, other)] {
        let _ = done(thread.call(libc::SYS_mremap, [from, PAGE, PAGE, 3, to, 0])?)?;
    }
    Ok(false)
}

/// A system call's result, unless it is an error.
fn done(result: i64) -> Result<u64, String> {
    u64::try_from(result).map_err(|_| format!("QEMU's call failed: {result}"))
}
