//! `smp`: a second processor. A VMCS that moves, VMs on both, and tables that both change.

use crate::capability::{self as c};
use crate::ept::{self, LEAF};
use crate::field as f;
use crate::guest::{self, CODE, FRAMES, WINDOW_PHYSICAL, load, store};
use crate::instruction::{Outcome, invept, set, vmclear, vmptrld};
use crate::log::{self, Line};
use crate::vm::{self, Launch, Reg as R};
use bare::{cpu, smp};
use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

/// What the other processor found.
static FOUND: [AtomicU64; 4] = [const { AtomicU64::new(0) }; 4];

fn note(slot: usize, value: u64) {
    FOUND[slot].store(value, Ordering::SeqCst);
}

fn found(slot: usize) -> u64 {
    FOUND[slot].load(Ordering::SeqCst)
}

/// An outcome as a number: 0, the error, or a number no error has.
fn number(outcome: Outcome) -> u64 {
    match outcome {
        Outcome::Succeeded => 0,
        Outcome::FailValid(error) => error,
        Outcome::FailInvalid => 100,
        Outcome::OddFlags(_) => 101,
        Outcome::Faulted(fault) => 200 + u64::from(fault.vector),
    }
}

/// One entry, as the exit reason or 1000 and the failure.
fn enter(launch: Launch) -> u64 {
    vm::enter(launch).map_or_else(|outcome| 1000 + number(outcome), |exit| exit.reason)
}

/// Lets the other processor do `task`; whether it came to its end.
fn other(line: &mut Line, task: fn()) {
    smp::run(1, task);
    if !smp::wait_idle(1) {
        line.add(format_args!("stuck "));
    }
}

fn start() {
    cpu::set_cr4(cpu::cr4() | 1 << 13);
    note(0, cpu::rdmsr(c::FEATURE_CONTROL) & 5);
    if found(0) & 1 == 0 {
        cpu::wrmsr(c::FEATURE_CONTROL, 5);
    }
    note(1, number(vm::on()));
}

/// Loads the first region here and enters it as launch state clear.
fn take_over() {
    note(0, number(vmptrld(vm::region(0))));
    vm::set_host();
    set(f::GUEST_RIP, CODE);
    note(1, enter(Launch::First));
    note(2, vm::register(R::Rax));
    note(3, number(vmclear(vm::region(0))));
}

/// A VM of its own, in the region of this processor, on the same tables.
fn own_vm() {
    vm::adopt(vm::region(1));
    note(0, enter(Launch::First));
    note(1, vm::register(R::Rax));
    let _ = vmclear(vm::region(1));
}

/// Runs a VM again and again, each time after INVEPT, until it reads what the other frame holds.
fn watch() {
    vm::adopt(vm::region(1));
    let mut launch = Launch::First;
    note(0, 0);
    for _ in 0..10_000 {
        let _ = invept(1, [ept::pointer(), 0]);
        set(f::GUEST_RIP, CODE);
        note(1, enter(launch));
        launch = Launch::Again;
        note(2, vm::register(R::Rax));
        if found(2) == 0xbb {
            break;
        }
        note(0, 1);
    }
    let _ = vmclear(vm::region(1));
}

/// Adds to bits of an entry that software may use, 400 times.
fn add() {
    let entry = ept::entry_at(WINDOW_PHYSICAL, 1);
    for _ in 0..400 {
        // SAFETY: an entry of a table that the VM alone is translated by.
        unsafe { asm!("lock xadd [{}], {}", in(reg) entry, inout(reg) 1_u64 << 52 => _) };
    }
}

/// Maps and unmaps a page next to the window's first, 400 times.
fn toggle() {
    let entry = ept::entry_at(WINDOW_PHYSICAL + 0x1000, 1);
    for turn in 0..400 {
        store(entry, if turn % 2 == 0 { FRAMES | LEAF } else { 0 });
    }
}

fn case(name: &str, run: impl FnOnce(&mut Line)) {
    log::result(format_args!("smp.{name}"), |line| {
        store(FRAMES, 0xaa);
        store(FRAMES + 0x1000, 0xbb);
        vm::fresh(guest::code!("mov eax, [0x800000]", "vmcall"));
        ept::set(WINDOW_PHYSICAL, 1, FRAMES | LEAF);
        ept::flush();
        run(line);
    });
}

pub(super) fn run() {
    let arrived = smp::start(1).is_some();
    log::result(format_args!("smp.start"), |line| line.add(format_args!("{arrived}")));
    if !arrived {
        return;
    }
    log::result(format_args!("smp.vmxon"), |line| {
        other(line, start);
        line.add(format_args!("feature control {}, vmxon {}", found(0), found(1)));
    });
    case("vmcs-moves", |line| {
        line.add(format_args!("{} ", enter(Launch::First)));
        let _ = vmclear(vm::region(0));
        other(line, take_over);
        line.add(format_args!(
            "load {} exit {} rax {:#x} clear {}",
            found(0),
            found(1),
            found(2),
            found(3)
        ));
        let _ = vmptrld(vm::region(0));
        vm::set_host();
        set(f::GUEST_RIP, CODE);
        line.add(format_args!(" back {} rax {:#x}", enter(Launch::First), vm::register(R::Rax)));
    });
    case("vms-share-tables", |line| {
        line.add(format_args!("{} ", enter(Launch::First)));
        other(line, own_vm);
        line.add(format_args!("other {} rax {:#x}", found(0), found(1)));
    });
    case("edit-seen-elsewhere", |line| {
        smp::run(1, watch);
        let seen_old = bare::time::wait_us(1_000_000, || found(0) == 1);
        store(ept::entry_at(WINDOW_PHYSICAL, 1), (FRAMES + 0x1000) | LEAF);
        let idle = smp::wait_idle(1);
        line.add(format_args!("old {seen_old} done {idle} exit {} rax {:#x}", found(1), found(2)));
    });
    case("racing-adds", |line| {
        line.add(format_args!("{} ", enter(Launch::First)));
        smp::run(1, add);
        add();
        let idle = smp::wait_idle(1);
        line.add(format_args!("done {idle} entry {:#x}", load(ept::entry_at(WINDOW_PHYSICAL, 1))));
    });
    case("racing-neighbours", |line| {
        line.add(format_args!("{} ", enter(Launch::First)));
        smp::run(1, toggle);
        add();
        let idle = smp::wait_idle(1);
        let [first, second] =
            [0, 0x1000].map(|page| load(ept::entry_at(WINDOW_PHYSICAL + page, 1)));
        line.add(format_args!("done {idle} entries {first:#x} {second:#x}"));
    });
    log::result(format_args!("smp.stop"), |line| {
        other(line, || note(0, number(crate::instruction::vmxoff())));
        line.add(format_args!("{}", found(0)));
    });
    smp::stop(1);
}
