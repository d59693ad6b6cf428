//! What the boot crate promises, checked over memory that the tests make up.
#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::large_stack_frames,
    reason = "a helper that fails ends its test, and a test has stack enough"
)]

mod acpi;
mod cmdline;
mod efi;
mod fake;
mod handoff;
mod mbi1;
mod mbi2;
mod memmap;
mod seeds;
mod txt;
