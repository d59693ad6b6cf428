#![no_std]
#![doc = include_str!("../README.md")]

pub mod access;
pub mod context;
pub mod decode;
pub mod instruction;
pub mod operand;
pub mod plan;
pub mod store;
pub mod walk;
