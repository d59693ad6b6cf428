//! What the crate promises, checked from outside: against models written in another way, and
//! against table memory that watches every store.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "all of it is test code, in which a panic is a failed test"
)]

mod board;
mod direct;
mod ept01;
mod fake;
mod frames;
mod guarded;
mod hostile;
mod machine;
mod mtrr;
mod reserve;
