//! What bare-metal test programs share: start-up, console, exceptions, further processors, power.
//!
//! A program is a binary crate that defines
//! `extern "C" fn bare_main(magic: u32, info: u32) -> !`, where `boot.s` arrives on the boot stack,
//! in long mode, with interrupts off; that calls [`start`] first; and that is linked by `image.ld`.
#![no_std]

pub mod apic;
pub mod console;
pub mod cpu;
pub mod fault;
pub mod info;
pub mod paging;
pub mod power;
pub mod report;
pub mod smp;
pub mod time;

use core::panic::PanicInfo;
use fault::Local;
use info::Info;

core::arch::global_asm!(include_str!("boot.s"), options(raw));
core::arch::global_asm!(include_str!("fault.s"), options(raw));

/// Name of the program, and of the test that runs.
static NAMES: Local<[&str; 2]> = Local::new(["", "boot"]);

/// Makes the machine usable for the program called `name`, on the boot processor, and reads what
/// its loader passed.
pub fn start(name: &'static str, magic: u32, at: u32) -> &'static Info {
    // SAFETY: no other processor runs yet.
    unsafe { (*NAMES.get())[0] = name };
    console::init();
    fault::init(0);
    paging::init();
    time::init();
    apic::init();
    // The firmware leaves the 8259 on vectors that are exceptions here.
    apic::pic(0);
    match info::read(magic, at) {
        Ok(info) => info,
        Err(why) => power::fail("boot", format_args!("{why}")),
    }
}

/// The name of the program, which begins each of its lines.
pub fn name() -> &'static str {
    // SAFETY: written once, before other processors run.
    unsafe { (*NAMES.get())[0] }
}

/// Remembers which test runs, for a failure outside its own control flow.
pub fn begin(test: &'static str) {
    // SAFETY: the boot processor alone writes it; another one only reads it to report its end.
    unsafe { (*NAMES.get())[1] = test };
}

/// The name of the test that runs.
pub fn current() -> &'static str {
    // SAFETY: as for `begin`.
    unsafe { (*NAMES.get())[1] }
}

/// Ends the program after a panic.
pub fn panicked(info: &PanicInfo) -> ! {
    console::break_lock();
    match info.location() {
        Some(at) => {
            power::fail(current(), format_args!("{} ({}:{})", info.message(), at.file(), at.line()))
        }
        None => power::fail(current(), format_args!("{}", info.message())),
    }
}
