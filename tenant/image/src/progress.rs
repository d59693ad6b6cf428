//! How far a long command is.

use serde::Serialize;

/// What is being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Blocks are written.
    Write,
    /// What was written is read again and compared, or a disk is checked.
    Verify,
}

impl Phase {
    /// It, for people.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Write => "write",
            Self::Verify => "verify",
        }
    }
}

/// How far.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    /// What is being done.
    pub phase: Phase,
    /// How many bytes are done.
    pub done: u64,
    /// Of how many.
    pub total: u64,
}

/// Who is told.
pub trait Progress {
    /// Some more is done. It is said often: some hundred times for each GiB.
    fn step(&mut self, step: Step);
}

/// Nobody.
#[derive(Clone, Copy, Debug)]
pub struct Quiet;

impl Progress for Quiet {
    fn step(&mut self, _: Step) {}
}
