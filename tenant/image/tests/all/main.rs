//! Disks as files.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a helper that fails is a failed test"
)]

mod cuts;
mod folder;
mod keys;
mod power;
mod qcow2;
mod raw;
mod resume;
mod sealed;
