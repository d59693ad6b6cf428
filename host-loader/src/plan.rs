//! What is to be done to memory before the kernel starts, as data: planned first, then executed.

use crate::LoadError;
use core::fmt;
use ept::addr::Span;
use ept::list::List;

/// The BIOS service in 3 pieces, moves of 33 modules, and 16 segments each copied and zeroed.
const STEPS: usize = 68;

/// Physical memory below 4 GiB, as the loader changes it. What is copied may lie in the scratch.
pub trait Memory {
    /// Copies `from` to `to`; the two may overlap, as with `memmove`.
    fn copy(&mut self, from: Span, to: u64);
    /// Sets every byte of `span` to zero.
    fn zero(&mut self, span: Span);
}

/// One change of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The bytes of `from` also go to `to`.
    Copy {
        /// What is copied.
        from: Span,
        /// Where its first byte goes.
        to: u64,
    },
    /// Every byte becomes zero.
    Zero(Span),
}

/// How the kernel is entered: 32-bit flat protected mode, paging and interrupts off; the general
/// registers not named here are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The protocol that the kernel speaks.
    pub protocol: Protocol,
    /// The instruction pointer.
    pub eip: u32,
    /// The physical address of the boot tables: ESI for Linux, EBX for multiboot.
    pub tables: u32,
}

/// How a kernel expects to be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// The Linux/x86 32-bit boot protocol.
    Linux,
    /// Multiboot 0.6.96.
    Multiboot1,
    /// Multiboot2 2.0.
    Multiboot2,
}

impl Entry {
    /// EAX at the entry.
    #[must_use]
    pub const fn eax(&self) -> u32 {
        match self.protocol {
            Protocol::Linux => 0,
            Protocol::Multiboot1 => 0x2bad_b002,
            Protocol::Multiboot2 => 0x36d7_6289,
        }
    }

    /// EBX at the entry.
    #[must_use]
    pub const fn ebx(&self) -> u32 {
        match self.protocol {
            Protocol::Linux => 0,
            Protocol::Multiboot1 | Protocol::Multiboot2 => self.tables,
        }
    }

    /// ESI at the entry.
    #[must_use]
    pub const fn esi(&self) -> u32 {
        match self.protocol {
            Protocol::Linux => self.tables,
            Protocol::Multiboot1 | Protocol::Multiboot2 => 0,
        }
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = match self.protocol {
            Protocol::Linux => "Linux",
            Protocol::Multiboot1 => "multiboot",
            Protocol::Multiboot2 => "multiboot2",
        };
        write!(f, "{protocol} kernel at {:#x}, its tables at {:#x}", self.eip, self.tables)
    }
}

/// Fills the unused places.
const NOTHING: Step = Step::Zero(Span::sized(0, 0).unwrap());

/// What is changed before the kernel is entered, in order.
#[derive(Debug)]
pub struct Steps(List<Step, STEPS>);

impl Steps {
    /// No step yet. The list is filled in place, since it is too large to be handed up the stack.
    pub const EMPTY: Self = Self(List::new(NOTHING));

    /// Takes every step on `memory`.
    pub fn execute(&self, memory: &mut impl Memory) {
        for step in self.0.iter() {
            match *step {
                Step::Copy { from, to } => memory.copy(from, to),
                Step::Zero(span) => memory.zero(span),
            }
        }
    }

    /// Adds `step`, unless it changes nothing.
    pub(crate) fn push(&mut self, step: Step) -> Result<(), LoadError> {
        match step {
            Step::Copy { from: span, .. } | Step::Zero(span) if span.is_empty() => Ok(()),
            Step::Copy { .. } | Step::Zero(_) => self.0.push(step).map_err(|_| LoadError::Steps),
        }
    }
}

impl core::ops::Deref for Steps {
    type Target = [Step];
    fn deref(&self) -> &[Step] {
        &self.0
    }
}
