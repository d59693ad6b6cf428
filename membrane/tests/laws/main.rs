//! What must hold of protected VMs' memory, whatever a host does.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::large_stack_frames,
    clippy::cognitive_complexity,
    reason = "all of it is test code, in which a panic is a failed test"
)]

mod board;
mod checks;
mod devices;
mod given_up;
mod huge;
mod pieces;
mod play;
mod processors;
mod refusals;
mod restarts;
mod sizes;
mod sparse;
mod splits;
mod tickets;
mod views;
mod world;
