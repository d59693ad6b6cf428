//! The tests, by the words that the command line may name.

mod cpuid;
mod exits;
mod memory;
mod stats;

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

/// Every test.
pub(crate) const TESTS: &[Test] = &[
    Test {
        name: "cpuid",
        usage: "",
        run: cpuid::run,
    },
    Test {
        name: "exits",
        usage: "[count]",
        run: exits::run,
    },
    Test {
        name: "memory",
        usage: "[base=ADDRESS end=ADDRESS]",
        run: memory::run,
    },
    Test {
        name: "stats",
        usage: "",
        run: stats::run,
    },
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
        self.words
            .clone()
            .take_while(|word| TESTS.iter().all(|test| test.name != *word))
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
