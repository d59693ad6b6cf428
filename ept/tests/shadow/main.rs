//! Shadow mode, checked from outside: against a walk written from the manual, with a host that
//! writes what it likes, and a processor that may remember every entry it was ever shown.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "all of it is test code, in which a panic is a failed test"
)]

mod fake;
mod hostile;
mod model;
mod rules;
mod run;
