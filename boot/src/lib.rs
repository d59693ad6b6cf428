#![no_std]
#![doc = include_str!("../README.md")]

#[cfg(test)]
extern crate std;

pub mod acpi;
pub mod cmdline;
pub mod efi;
pub mod handoff;
pub mod mbi;
mod mbi1;
mod mbi2;
pub mod memmap;
pub mod memory;
mod raw;
pub mod txt;
