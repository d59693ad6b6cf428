//! The rules of the crate, checked from outside: against the manual's tables and against models
//! written in another way.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "all of it is test code, in which a panic is a failed test"
)]

mod capability;
mod cpuid;
mod cr0;
mod entry_checks;
mod exits;
mod fake;
mod fields;
mod io;
mod msr;
mod state;
mod xcr0;
