#![no_std]
#![doc = include_str!("../README.md")]

pub mod aead;
mod cipher;
pub mod key;
pub mod page;
pub mod record;

/// Whether pages are sealed with the processor's AES instructions, with the feature `pure-rust`. Without them the code is right but
/// slow, and its time may tell something of the data: the visor must not be built so.
pub const HARDWARE_AES: bool = cfg!(target_feature = "aes");
