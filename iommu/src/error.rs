//! Why a unit cannot be programmed, or no longer.

use core::fmt;

/// What is wrong with a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Error {
    /// Physical address of its registers.
    pub unit: u64,
    /// What it is.
    pub cause: Cause,
}

/// What can be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// It cannot do what the visor needs.
    Lacks(Feature),
    /// It did not finish this within a second.
    Timeout(Step),
    /// Its invalidation queue failed: these are the error bits of its fault status register.
    Queue(u32),
    /// Its registers are not as the visor has left them.
    Changed,
    /// The reservation has no room for more tables.
    Exhausted,
}

/// What a unit may lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    /// The registers answer: neither all ones nor all zeros.
    Registers,
    /// Second-stage tables of 3 or 4 levels.
    SecondStage,
    /// Addresses up to the end of RAM.
    Width,
    /// Queued invalidation.
    Queue,
    /// Invalidations that end when reads and writes under way have.
    Drain,
    /// Interrupt remapping.
    Interrupts,
    /// Interrupt destinations of 32 bits.
    WideDestinations,
    /// Scalable mode with second-stage translation.
    Scalable,
}

/// What a unit may not finish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A protected memory region, on or off.
    Protection,
    /// The queue, on or off.
    Queue,
    /// An invalidation.
    Invalidation,
    /// The root table.
    Root,
    /// Its write buffer.
    Writes,
    /// Translation, on or off.
    Translation,
    /// The interrupt table, or interrupt remapping, on or off.
    Interrupts,
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Registers => "working registers",
            Self::SecondStage => "second-stage tables of 3 or 4 levels",
            Self::Width => "addresses up to the end of RAM",
            Self::Queue => "queued invalidation",
            Self::Drain => "draining of reads and writes under way",
            Self::Interrupts => "interrupt remapping",
            Self::WideDestinations => "interrupt destinations of 32 bits",
            Self::Scalable => "scalable mode with second-stage translation",
        })
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Protection => "switching its protected regions",
            Self::Queue => "switching its invalidation queue",
            Self::Invalidation => "an invalidation",
            Self::Root => "taking its root table",
            Self::Writes => "flushing its write buffer",
            Self::Translation => "switching translation",
            Self::Interrupts => "switching interrupt remapping",
        })
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VT-d unit {:#x}: ", self.unit)?;
        match self.cause {
            Cause::Lacks(feature) => write!(f, "lacks {feature}"),
            Cause::Timeout(step) => write!(f, "did not finish {step} within a second"),
            Cause::Queue(status) => {
                write!(f, "its invalidation queue failed, fault status {status:#x}")
            }
            Cause::Changed => f.write_str("its registers have changed"),
            Cause::Exhausted => f.write_str("the reservation has no room for its tables"),
        }
    }
}
