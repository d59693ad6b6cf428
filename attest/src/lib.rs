//! What proves a visor to tenants: measurements in a TPM, keys, sealed tickets and signed statements.
#![no_std]

#[cfg(any(test, feature = "std"))]
extern crate std;

mod bytes;
mod content;
pub mod envelope;
pub mod keys;
pub mod log;
pub mod measure;
pub mod policy;
#[cfg(any(test, feature = "std"))]
pub mod seal;
pub mod serials;
pub mod statement;
pub mod submission;
#[cfg(test)]
mod tests;
pub mod tpm;
