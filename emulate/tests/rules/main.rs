//! The rules of the crate, checked from outside: against models written in another way, against
//! another decoder, and against the processor.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "all of it is test code, in which a panic is a failed test"
)]

mod access;
mod devices;
mod encodings;
mod fake;
mod instructions;
mod model;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod native;
mod oracle;
mod other;
mod plans;
mod seeds;
mod walk;
