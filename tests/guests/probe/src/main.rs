//! A bare-metal kernel that tests the machine it finds itself on: the *host* of the visor's tests.
//!
//! Its multiboot command line names tests from [`tests::TESTS`], each with its arguments. Every one
//! of them prints `probe: PASS name` or `probe: FAIL name: why`; then the probe powers off.
#![no_std]
#![no_main]

mod tests;

use bare::{apic, console, cpu, fault, info, paging, power, report, smp, time};
use report::Outcome;
use tests::{Machine, TESTS};

/// Where `boot.s` arrives.
#[unsafe(no_mangle)]
extern "C" fn bare_main(magic: u32, info: u32) -> ! {
    let info = bare::start("probe", magic, info);
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
        bare::begin(test.name);
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
    bare::panicked(info)
}
