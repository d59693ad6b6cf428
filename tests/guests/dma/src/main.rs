//! A bare-metal kernel that programs an IOMMU with the visor's own code and has devices do DMA.
//!
//! Its multiboot command line names tests from [`tests::TESTS`]; without the word `open` the IOMMU is
//! programmed first. Each test prints `dma: PASS name` or `dma: FAIL name: why`; then it powers off.
#![no_std]
#![no_main]

mod devices;
mod guard;
mod memory;
mod pci;
mod registers;
mod tests;
mod visor;

use bare::{console, power};
use guard::Guard;
use tests::{Machine, TESTS};

/// Where `boot.s` arrives.
#[unsafe(no_mangle)]
extern "C" fn bare_main(magic: u32, info: u32) -> ! {
    let info = bare::start("dma", magic, info);
    let line = info.command_line();
    console::line(format_args!("command line \"{line}\""));
    let is_open = line.split_ascii_whitespace().any(|word| word == "open");
    let guard = if is_open { Guard::open() } else { Guard::closed(info) };
    let mut machine = Machine::new(guard);
    let mut verdict = power::Verdict::Nothing;
    for word in line.split_ascii_whitespace() {
        let Some((name, run)) = TESTS.iter().find(|(name, _)| *name == word) else {
            continue;
        };
        bare::begin(name);
        verdict = verdict.and(match run(&mut machine) {
            Ok(()) => {
                console::line(format_args!("PASS {name}"));
                power::Verdict::Passed
            }
            Err(why) => {
                console::line(format_args!("FAIL {name}: {why}"));
                power::Verdict::Failed
            }
        });
    }
    power::off(verdict)
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo) -> ! {
    bare::panicked(info)
}
