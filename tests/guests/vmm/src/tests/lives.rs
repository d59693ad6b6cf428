//! VMs that come and go: several processors, several VMs, sudden ends.

use super::{Machine, same, until};
use crate::code;
use crate::kvm::{Regs, checked};
use crate::memory::{Backing, Memory, PAGE};
use crate::mode::{self, Mode, SHARED};
use crate::vm::{Exit, Vcpu, Vm};
use std::fs;
use std::thread;
use std::time::Duration;

/// Two processors of one VM hand a flag to and fro.
pub(super) fn two_vcpus() -> Result<(), String> {
    // On one host processor each turn costs a time slice.
    let parallel = thread::available_parallelism().map_or(1, usize::from) > 1;
    let turns = if parallel { 1000 } else { 10 };
    let memory = Memory::new(4 << 20, Backing::Small)?;
    let vm = Vm::with(&memory)?;
    let mut vcpus = [vm.vcpu(0)?, vm.vcpu(1)?];
    for (vcpu, other) in vcpus.iter().zip([1, 0]) {
        mode::enter(vcpu, &memory, Mode::Long, code::hand_over())?;
        let mut regs = vcpu.regs()?;
        (regs.rcx, regs.rsi, regs.rdi, regs.rsp) =
            (turns, 1 - other, other, 0xa000 - other * 0x800);
        vcpu.set_regs(&regs)?;
    }
    thread::scope(|scope| {
        let threads = vcpus.each_mut().map(|vcpu| scope.spawn(|| until(vcpu, &Exit::Halt)));
        threads.into_iter().try_for_each(|thread| {
            thread.join().unwrap_or_else(|_| Err("a thread ended early".to_owned()))
        })
    })?;
    same("the flag", memory.word(SHARED), 0)
}

/// Two processors fill memory of their own while the host takes a third part away from both again
/// and again: tables of the VM change on several processors at once.
pub(super) fn racing() -> Result<(), String> {
    const PAGES: usize = 64;
    const SUM: usize = 0x2000;
    let part = |index: usize| mode::FREE + index * PAGES * PAGE;
    let memory = Memory::new(8 << 20, Backing::Small)?;
    let vm = Vm::with(&memory)?;
    let mut vcpus = [vm.vcpu(0)?, vm.vcpu(1)?];
    for vcpu in &vcpus {
        mode::enter(vcpu, &memory, Mode::Long, code::fill_pages())?;
    }
    memory.write(SUM, code::sum_pages());
    let call = |vcpu: &mut Vcpu, at: usize, [rsi, rdi]: [usize; 2]| {
        mode::start(vcpu, at)?;
        let regs = Regs { rcx: PAGES as u64, rsi: rsi as u64, rdi: rdi as u64, ..vcpu.regs()? };
        vcpu.set_regs(&regs)?;
        until(vcpu, &Exit::Halt)
    };
    thread::scope(|scope| {
        let mut threads = Vec::new();
        for (index, vcpu) in vcpus.iter_mut().enumerate() {
            threads.push(scope.spawn(move || {
                for round in 0..10 {
                    call(vcpu, mode::CODE, [round * PAGES, part(index)])?;
                    call(vcpu, mode::CODE, [0, part(2)])?;
                    call(vcpu, SUM, [0, part(index)])?;
                    let first = round * PAGES;
                    let wanted: usize = (first..first + PAGES).sum();
                    same("the sum", vcpu.regs()?.rax, wanted as u64)?;
                }
                Ok(())
            }));
        }
        while threads.iter().any(|thread| !thread.is_finished()) {
            memory.advise(part(2)..part(3), libc::MADV_DONTNEED)?;
            thread::sleep(Duration::from_millis(1));
        }
        threads.into_iter().try_for_each(|thread| {
            thread.join().unwrap_or_else(|_| Err("a thread ended early".to_owned()))
        })
    })
}

/// A VMM that is killed while its guest runs leaves nothing behind that disturbs the next.
pub(super) fn killed() -> Result<(), String> {
    for _ in 0..3 {
        let (child, memory) = counting_child()?;
        // SAFETY: the child is this process's own and has not been waited for.
        let _ = checked(unsafe { libc::kill(child, libc::SIGKILL) })?;
        let mut status = 0;
        // SAFETY: as above.
        let _ = checked(unsafe { libc::waitpid(child, &raw mut status, 0) })?;
        same("the signal", libc::WTERMSIG(status), libc::SIGKILL)?;
        let stopped = memory.word(SHARED);
        thread::sleep(Duration::from_millis(5));
        same("the count of a dead guest", memory.word(SHARED), stopped)?;
        once()?;
    }
    Ok(())
}

/// Leaves a VMM with a running guest behind: for what the host does then.
pub(super) fn leave_running() -> Result<(), String> {
    let (_child, _memory) = counting_child()?;
    Ok(())
}

/// A process whose guest counts for ever, and the memory where it does.
fn counting_child() -> Result<(libc::pid_t, Memory), String> {
    let memory = Memory::new(4 << 20, Backing::Shared)?;
    // SAFETY: this process has one thread, and the child leaves by `exit`.
    let child = checked(unsafe { libc::fork() })?;
    if child == 0 {
        let result = count_in(&memory);
        println!("vmm: a child ended: {result:?}");
        std::process::exit(1);
    }
    let begun = wait_for(|| memory.word(SHARED) > 1000);
    begun.map(|()| (child, memory)).map_err(|why| format!("the guest does not count: {why}"))
}

fn count_in(memory: &Memory) -> Result<Exit, String> {
    let vm = Vm::with(memory)?;
    let mut vcpu = vm.vcpu(0)?;
    mode::enter(&vcpu, memory, Mode::Long, code::count())?;
    vcpu.run()
}

fn wait_for(mut condition: impl FnMut() -> bool) -> Result<(), String> {
    for _ in 0..2000 {
        if condition() {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(2));
    }
    Err("waited in vain".to_owned())
}

/// A VM from its beginning to its end.
fn once() -> Result<(), String> {
    filled().map(drop)
}

fn filled() -> Result<Machine, String> {
    let mut machine = Machine::new(4, Mode::Long, code::fill_pages())?;
    machine.call(code::fill_pages(), [64, 5, mode::FREE as u64])?;
    machine.until(&Exit::Halt)?;
    same("a page", machine.memory.word(mode::FREE + 63 * 4096), 5 + 63)?;
    Ok(machine)
}

/// Twenty VMs one after the other, then eight at once.
pub(super) fn many() -> Result<(), String> {
    for _ in 0..20 {
        once()?;
    }
    let mut all = (0..8).map(|_| filled()).collect::<Result<Vec<_>, _>>()?;
    for machine in &mut all {
        let sum = machine.result(code::sum_pages(), [64, 0, mode::FREE as u64])?;
        same("the sum", sum, (5..69).sum())?;
    }
    Ok(())
}

/// The processor that a guest runs on goes away and comes back.
pub(super) fn cpu_hotplug() -> Result<(), String> {
    const SWITCH: &str = "/sys/devices/system/cpu/cpu1/online";
    let memory = Memory::new(4 << 20, Backing::Small)?;
    let (word, vm) = (|| memory.word(SHARED), Vm::with(&memory)?);
    let mut vcpu = vm.vcpu(0)?;
    mode::enter(&vcpu, &memory, Mode::Long, code::count())?;
    thread::scope(|scope| {
        let runner = scope.spawn(|| {
            stay_on(1)?;
            // SAFETY: no arguments; the number of this thread.
            let id = unsafe { libc::gettid() };
            memory.set_word(SHARED + 8, u64::try_from(id).unwrap_or(0));
            until(&mut vcpu, &Exit::Interrupted)
        });
        let mut last = 0;
        for online in ["1", "0", "1", "0", "1"] {
            fs::write(SWITCH, online).map_err(|why| format!("{SWITCH}: {why}"))?;
            wait_for(|| word() > last + 1000).map_err(|why| format!("online={online}: {why}"))?;
            last = word();
        }
        super::interrupts::catch_alarms()?;
        let id = i32::try_from(memory.word(SHARED + 8)).unwrap_or(0);
        // SAFETY: a signal for a thread of this process, with a handler.
        let sent = unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), id, libc::SIGALRM) };
        same("sending a signal", sent, 0)?;
        runner.join().unwrap_or_else(|_| Err("the thread ended early".to_owned()))
    })
}

/// Keeps this thread on one processor, as long as there is that one.
fn stay_on(number: usize) -> Result<(), String> {
    // SAFETY: a set of processors is plain bits.
    let result = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(number, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set)
    };
    checked(result).map(drop)
}
