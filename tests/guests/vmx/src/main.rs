//! A bare-metal VMX user: runs tables of cases and prints one line for each, the same on every
//! machine whose VMX is the same.
//!
//! Words of the multiboot command line name groups of [`groups::GROUPS`]; without any, all run
//! but the one for two processors.
//! `case=PREFIX` leaves only cases whose names begin so. The last line is `vmx: done N cases`.
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

use bare::{console, fault, power};
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
    console::line(format_args!("done {} cases", log::count()));
    power::off(power::Verdict::Passed)
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo) -> ! {
    bare::panicked(info)
}
