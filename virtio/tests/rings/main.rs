//! A driver, a device of the host's, and what is between them.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::large_stack_frames,
    reason = "all of it is test code, in which a panic is a failed test"
)]

mod balloon;
mod driver;
mod host;
mod hostile;
mod laws;
mod registers;
mod rings;
mod run;
mod sealed;
mod world;
