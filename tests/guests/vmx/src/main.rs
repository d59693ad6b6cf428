//! A bare-metal VMX user: runs tables of cases and prints one line for each, the same on every
//! machine whose VMX is the same.
//!
//! Words of the multiboot command line name groups of [`groups::GROUPS`]; without any, all run
//! but the one for two processors.
//! `stats` adds what the visor counted. `case=PREFIX` leaves only cases whose names begin so. The last line is `vmx: done N cases`.
#![no_std]
#![no_main]

mod capability;
mod ept;
mod exit;
mod field;
mod groups;
mod guest;
mod instruction;
mod log;
mod vm;

use bare::{console, cpu, fault, power};
use control::{PORT, Port, Status};
use groups::{GROUPS, SMP};

core::arch::global_asm!(include_str!("enter.s"), options(raw));

/// Where `boot.s` arrives.
#[unsafe(no_mangle)]
extern "C" fn bare_main(magic: u32, info: u32) -> ! {
    let line = bare::start("vmx", magic, info).command_line();
    if let Some(prefix) = line.split(' ').find_map(|word| word.strip_prefix("case=")) {
        log::only(prefix);
    }
    if !vm::enable() {
        power::fail("vmx", format_args!("this machine has no VMX"));
    }
    let named = |name: &str| line.split(' ').any(|word| word == name);
    let all = !named(SMP.name) && !GROUPS.iter().any(|group| named(group.name));
    let _ = vm::on();
    for group in GROUPS.iter().chain([&SMP]) {
        if !named(group.name) && (!all || group.name == SMP.name) {
            continue;
        }
        bare::begin(group.name);
        if let Err(fault) = fault::catch(group.run) {
            console::line(format_args!("{}: ended by {fault:?}", group.name));
        }
    }
    if named("stats") {
        stats();
    }
    console::line(format_args!("done {} cases", log::count()));
    power::off(power::Verdict::Passed)
}

/// The visor's control port.
struct Control;

impl Port for Control {
    fn read(&mut self, index: u32) -> u32 {
        cpu::out32(PORT, index);
        cpu::in32(PORT)
    }
}

/// What the visor counted, if there is one: how often cases made it act.
fn stats() {
    if let Ok(mut status) = Status::find(Control) {
        status.each(|name, value| console::line(format_args!("stats {name} {value}")));
    }
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo) -> ! {
    bare::panicked(info)
}
