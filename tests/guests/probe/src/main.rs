//! A bare-metal kernel that tests the machine it finds itself on: the *host* of the visor's tests.
//!
//! Its multiboot command line names tests from [`tests::TESTS`], each with its arguments. Every one
//! of them prints `probe: PASS name` or `probe: FAIL name: why`; then the probe powers off.
#![no_std]
#![no_main]

mod apic;
mod console;
mod cpu;
mod fault;
mod info;
mod paging;
mod power;
mod report;
mod smp;
mod tests;
mod time;

use report::Outcome;
use tests::{Machine, TESTS};

core::arch::global_asm!(include_str!("boot.s"), options(raw));
core::arch::global_asm!(include_str!("fault.s"), options(raw));

/// Where `boot.s` arrives, on the boot stack, in long mode, with interrupts off.
#[unsafe(no_mangle)]
extern "C" fn probe_main(magic: u32, info: u32) -> ! {
    console::init();
    fault::init(0);
    paging::init();
    time::init();
    apic::init();
    // The firmware leaves the 8259 on vectors that are exceptions here.
    apic::pic(0);
    let info = match info::read(magic, info) {
        Ok(info) => info,
        Err(why) => power::fail("boot", format_args!("{why}")),
    };
    console::line(format_args!("command line \"{}\"", info.command_line()));
    power::off(run_all(&Machine { info }))
}

/// Runs every test that the command line names; a word that follows a name and is no name itself
/// is an argument of that test.
fn run_all(machine: &Machine) -> power::Verdict {
    let line = machine.info.command_line();
    let mut verdict = power::Verdict::Nothing;
    let mut rest = line.split_ascii_whitespace();
    while let Some(word) = rest.next() {
        let Some(test) = TESTS.iter().find(|test| test.name == word) else {
            continue;
        };
        report::begin(test.name);
        let arguments = tests::Arguments::new(rest.clone());
        verdict = verdict.and(conclude(test.name, (test.run)(machine, &arguments)));
    }
    if verdict == power::Verdict::Nothing {
        console::line(format_args!("FAIL none: the command line names no test; there are:"));
        for test in TESTS {
            console::line(format_args!("  {} {}", test.name, test.usage));
        }
    }
    verdict
}

fn conclude(name: &str, outcome: Outcome) -> power::Verdict {
    match outcome {
        Ok(()) => {
            console::line(format_args!("PASS {name}"));
            power::Verdict::Passed
        }
        Err(why) => {
            console::line(format_args!("FAIL {name}: {why}"));
            power::Verdict::Failed
        }
    }
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo) -> ! {
    console::break_lock();
    match info.location() {
        Some(at) => power::fail(
            report::current(),
            format_args!("{} ({}:{})", info.message(), at.file(), at.line()),
        ),
        None => power::fail(report::current(), format_args!("{}", info.message())),
    }
}
