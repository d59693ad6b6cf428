//! What sealed pages are and are not, checked against published vectors and a second implementation.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::large_stack_frames,
    reason = "all of it is test code, in which a panic is a failed test"
)]

mod laws;
mod reference;
mod refusals;
mod run;
mod vectors;
