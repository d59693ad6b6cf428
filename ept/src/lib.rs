#![no_std]
#![doc = include_str!("../README.md")]

#[cfg(test)]
extern crate std;

pub mod addr;
pub mod direct;
pub mod entry;
pub mod ept01;
pub mod frames;
pub mod list;
pub mod mtrr;
pub mod reserve;
pub mod shadow;
pub mod shootdown;
