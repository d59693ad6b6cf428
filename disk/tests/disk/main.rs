//! What a sealed disk promises, against storage that waits, loses, tears and lies.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::large_stack_frames,
    clippy::panic,
    reason = "all of it is test code, in which a panic is a failed test"
)]

mod basics;
mod cuts;
mod decoder;
mod host;
mod laws;
mod tampering;
mod vectors;
mod world;
