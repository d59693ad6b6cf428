#![doc = include_str!("../README.md")]

mod copy;
mod error;
pub mod files;
pub mod key;
mod manage;
mod partial;
pub mod plain;
pub mod progress;
mod random;
mod room;
mod sealed;
mod size;
mod storage;

pub use disk::header::Refusal;
pub use error::Error;
pub use manage::{
    Broken, Found, How, Order, Resume, anew, create, info, rekey, seal, unseal, verify,
};
pub use size::{size, words};

/// Bytes in a block.
pub(crate) const BLOCK: u64 = 4096;

/// A block.
pub type Block = [u8; 4096];

/// A wrapping key.
pub type WrappingKey = [u8; 32];
