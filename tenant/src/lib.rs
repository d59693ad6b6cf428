//! Checks a machine and its visor before a tenant parts with a key.

pub mod bank;
pub mod check;
pub mod cli;
pub mod disks;
pub mod docs;
pub mod eat;
pub mod enroll;
pub mod expect;
pub mod failure;
pub mod machine;
pub mod made;
pub mod policy;
pub mod random;
mod reader;
pub mod receipt;
pub mod reply;
pub mod report;
pub mod run;
pub mod seal;
pub mod tpm;
pub mod verify;
pub mod visor;
