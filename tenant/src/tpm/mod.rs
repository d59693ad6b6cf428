//! What a TPM says, and how it is checked.

pub mod certificate;
pub mod credential;
pub mod log;
pub mod public;
pub mod quote;
pub mod revocation;
pub mod signature;
