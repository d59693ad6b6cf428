//! What a test has to say: its failure, and the checks that led to it.

use crate::console;
use core::fmt::{self, Write};

/// What a test returns.
pub type Outcome = Result<(), Failure>;

/// Why a test failed: one line, cut to what fits (the line that a failed check printed is whole).
pub struct Failure {
    text: [u8; 112],
    length: usize,
}

impl Failure {
    pub fn new(why: fmt::Arguments) -> Self {
        let mut failure = Self { text: [0; 112], length: 0 };
        // A line that is too long is cut; that is all that can go wrong.
        let _ = failure.write_fmt(why);
        failure
    }
}

impl Write for Failure {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for (place, byte) in self.text[self.length..].iter_mut().zip(text.bytes()) {
            *place = byte;
            self.length += 1;
        }
        Ok(())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match core::str::from_utf8(&self.text[..self.length]) {
            Ok(text) => f.write_str(text),
            Err(_) => f.write_str("(reason is not text)"),
        }
    }
}

/// Returns from a test with a [`Failure`].
#[macro_export]
macro_rules! fail {
    ($($text:tt)*) => {
        return Err($crate::report::Failure::new(format_args!($($text)*)))
    };
}
pub use fail;

/// Counts checks, prints the failed ones, and keeps the first as the reason.
pub struct Checks {
    done: u32,
    failed: u32,
    first: Option<Failure>,
}

/// Failed checks beyond these are counted and not printed.
const PRINTED: u32 = 24;

impl Default for Checks {
    fn default() -> Self {
        Self::new()
    }
}

impl Checks {
    pub const fn new() -> Self {
        Self { done: 0, failed: 0, first: None }
    }

    /// Notes one check; `what` describes it as it should have been and as it was.
    #[expect(clippy::fn_params_excessive_bools, reason = "the condition of an assertion")]
    pub fn that(&mut self, holds: bool, what: fmt::Arguments) {
        self.done += 1;
        if holds {
            return;
        }
        self.failed += 1;
        if self.failed <= PRINTED {
            console::line(format_args!("bad: {what}"));
        }
        if self.first.is_none() {
            self.first = Some(Failure::new(what));
        }
    }

    pub fn finish(self) -> Outcome {
        console::line(format_args!("{} checks, {} failed", self.done, self.failed));
        match self.first {
            None => Ok(()),
            Some(first) => fail!("{} of {} checks: {first}", self.failed, self.done),
        }
    }
}
