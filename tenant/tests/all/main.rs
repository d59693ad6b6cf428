//! The tenant's program against evidence that was recorded from a software TPM, and forgeries of it.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a helper that fails is a failed test"
)]

mod authority;
mod boot;
mod commands;
mod disks;
mod enrollment;
mod forgeries;
mod hostile;
mod kinds;
mod record;
#[path = "../../../visorctl/src/tests/schema.rs"]
mod schema;
mod sealing;
mod swtpm;
mod tokens;
