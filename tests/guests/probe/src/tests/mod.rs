//! The tests, by the words that the command line may name.

mod apic_base;
mod cpuid;
mod cr;
mod exits;
mod interrupts;
mod load;
mod memory;
mod msr;
mod mtrr;
mod nmi;
mod registers;
mod reset;
mod smp;
mod stats;
mod vmx;
mod xsetbv;

use crate::info::Info;
use crate::report::Outcome;
use core::str::SplitAsciiWhitespace;

/// What every test may look at.
pub(crate) struct Machine<'a> {
    pub(crate) info: &'a Info,
}

/// One test.
pub(crate) struct Test {
    pub(crate) name: &'static str,
    /// Its arguments, for the list.
    pub(crate) usage: &'static str,
    pub(crate) run: fn(&Machine, &Arguments) -> Outcome,
}

impl Test {
    const fn new(
        name: &'static str,
        usage: &'static str,
        run: fn(&Machine, &Arguments) -> Outcome,
    ) -> Self {
        Self { name, usage, run }
    }
}

/// Every test.
pub(crate) const TESTS: &[Test] = &[
    Test::new("apic-base", "[base=ADDRESS]", apic_base::run),
    Test::new("cpuid", "", cpuid::run),
    Test::new("cr", "", cr::run),
    Test::new("device-memory", "", memory::devices),
    Test::new("exits", "[count]", exits::run),
    Test::new("interrupts", "[count]", interrupts::run),
    Test::new("memory", "[base=ADDRESS end=ADDRESS] [paged]", memory::run),
    Test::new("msr", "", msr::run),
    Test::new("mtrr", "", mtrr::run),
    Test::new("nmi", "[count] [cpus=N]", nmi::run),
    Test::new("registers", "", registers::run),
    Test::new("reset-92", "", reset::fast),
    Test::new("reset-cf9", "", reset::chipset),
    Test::new("reset-kbd", "", reset::keyboard),
    Test::new("smp", "[N] [busy] [x2apic]", smp::run),
    Test::new("stats", "", stats::run),
    Test::new("task-switch", "", memory::task_switch),
    Test::new("triple-fault", "", reset::triple_fault),
    Test::new("vmx-instructions", "", vmx::run),
    Test::new("xsetbv", "", xsetbv::run),
];

/// The words after a test's name, up to the next name.
pub(crate) struct Arguments<'a> {
    words: SplitAsciiWhitespace<'a>,
}

impl<'a> Arguments<'a> {
    pub(crate) fn new(words: SplitAsciiWhitespace<'a>) -> Self {
        Self { words }
    }

    fn own(&self) -> impl Iterator<Item = &'a str> {
        self.words.clone().take_while(|word| TESTS.iter().all(|test| test.name != *word))
    }

    /// The first word that is a plain number, or `default`.
    pub(crate) fn number(&self, default: u64) -> u64 {
        self.own().find_map(parse).unwrap_or(default)
    }

    /// The number in a word `key=number`.
    pub(crate) fn value(&self, key: &str) -> Option<u64> {
        self.own()
            .filter_map(|word| word.split_once('='))
            .find(|(name, _)| *name == key)
            .and_then(|(_, number)| parse(number))
    }

    /// Whether `flag` is among the words.
    pub(crate) fn has(&self, flag: &str) -> bool {
        self.own().any(|word| word == flag)
    }
}

fn parse(word: &str) -> Option<u64> {
    match word.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => word.parse().ok(),
    }
}
