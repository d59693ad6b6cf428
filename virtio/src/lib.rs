#![no_std]
#![doc = include_str!("../README.md")]

mod backend;
mod chain;
pub mod device;
pub mod layout;
pub mod memory;
mod queue;
mod request;
mod room;
pub mod sealed;
