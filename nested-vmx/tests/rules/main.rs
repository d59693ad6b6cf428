//! The rules of the crate, checked from outside: against the manual's tables and against models
//! written in another way.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "all of it is test code, in which a panic is a failed test"
)]

mod advertise;
mod bitmap;
mod capability;
mod checks;
mod cpuid;
mod cr0;
mod disclosure;
mod entry_checks;
mod exits;
mod fake;
mod fields;
mod good;
mod guard;
mod io;
mod leave;
mod model;
mod msr;
mod operand;
mod operation;
mod power;
mod run;
mod state;
mod step;
mod vcpu;
mod vmcs12;
mod xcr0;
