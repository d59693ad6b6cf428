#![no_std]
#![doc = include_str!("../README.md")]

pub mod access;
pub mod context;
pub mod decode;
pub mod store;
pub mod walk;
