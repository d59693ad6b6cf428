//! The rules of the crate, checked from outside: against models written in another
//! way.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "all of it is test code, in which a panic is a failed test"
)]

mod access;
mod fake;
mod model;
mod walk;
